"""Stock Nix builds and adds through the daemon."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from executor.protocols.worker_protocol import Op
from tests.protocols.conftest import (
    RawClient,
    RunningDaemon,
    number,
    open_directory,
    start_daemon,
    text,
)

pytestmark = [pytest.mark.root, pytest.mark.nix]


def expression(name: str, script: str, more: str = "") -> str:
    """A derivation for the shell of the sandbox."""
    return (
        f'derivation {{ name = "{name}"; system = "x86_64-linux"; builder = "/bin/sh"; '
        f'args = ["-c" "{script}"]; {more} }}'
    )


def test_nix_build_builds_and_shows_the_log(daemon: RunningDaemon) -> None:
    done = daemon.nix(
        "nix-build", "--no-out-link", "-E", expression("a", "echo hello; echo x > $out")
    )
    out = done.stdout.strip()
    assert daemon.real(out).read_text() == "x\n"
    assert "\nhello\n" in done.stderr
    drv = daemon.nix("nix-store", "-q", "--deriver", out).stdout.strip()
    assert daemon.nix("nix-store", "--realise", drv).stdout.strip() == out
    assert "checking outputs of" in daemon.nix("nix-store", "-r", "--check", drv).stderr


def test_nix_build_of_the_new_command_line(daemon: RunningDaemon) -> None:
    wanted = expression("b", "echo line; echo x > $out")
    words = ("nix", "build", "--impure", "--no-link", "-L", "--expr", wanted)
    assert "b> line" in daemon.nix(*words).stderr
    daemon.nix(*words, "--rebuild")


def test_a_failure_is_told_with_the_end_of_the_log(daemon: RunningDaemon) -> None:
    bad = expression("bad", "echo oh; exit 3")
    done = daemon.nix("nix-build", "--no-out-link", "-E", bad, check=False)
    assert "Reason: builder failed with exit code 3." in done.stderr
    assert "> oh" in done.stderr
    both = f"[ ({bad}) ({expression('bad2', 'exit 4')}) ]"
    done = daemon.nix("nix-build", "--no-out-link", "-k", "-E", both, check=False)
    assert done.returncode
    assert "exit code 4" in done.stderr


def test_content_addressed_derivations_are_built(daemon: RunningDaemon) -> None:
    more = '__contentAddressed = true; outputHashMode = "recursive"; outputHashAlgo = "sha256";'
    wanted = expression("ca", "echo ca > $out", more)
    options = ("--extra-experimental-features", "ca-derivations")
    done = daemon.nix("nix-build", *options, "--no-out-link", "-E", wanted)
    assert daemon.real(done.stdout.strip()).read_text() == "ca\n"


def test_a_ca_path_is_added_with_every_method(daemon: RunningDaemon) -> None:
    tree = daemon.directory / "tree"
    tree.mkdir()
    (tree / "file").write_text("contents")
    added = daemon.nix("nix-store", "--add", str(tree)).stdout.strip()
    assert (daemon.real(added) / "file").read_text() == "contents"
    flat = daemon.nix("nix-store", "--add-fixed", "sha1", str(tree / "file")).stdout.strip()
    assert daemon.real(flat).read_text() == "contents"
    wanted = 'builtins.toFile "text" "of a text"'
    made = daemon.nix("nix-instantiate", "--eval", "--raw", "-E", wanted, check=False)
    assert made.returncode or daemon.real(made.stdout).exists()


def test_nix_copy_brings_closures_in(daemon: RunningDaemon) -> None:
    other, ours = str(daemon.directory / "other"), f"unix://{daemon.socket_path}"
    wanted = expression("moved", "echo m > $out")
    out = daemon.nix("nix-build", "--no-out-link", "-E", wanted).stdout.strip()
    daemon.nix("nix", "copy", "--no-check-sigs", "--from", ours, "--to", other, out)
    daemon.nix("nix-store", "--delete", out)
    words = ("nix", "copy", "--from", other, "--to", ours, out)
    refused = daemon.nix(*words, check=False)
    assert "lacks a signature by a trusted key" in refused.stderr
    assert not daemon.real(out).exists()
    daemon.nix(*words, "--no-check-sigs")
    assert daemon.real(out).read_text() == "m\n"


def test_garbage_is_collected(daemon: RunningDaemon) -> None:
    added = daemon.nix("nix-store", "--add", __file__).stdout.strip()
    daemon.nix("nix-store", "--delete", added)
    assert not daemon.real(added).exists()
    daemon.nix("nix-store", "--gc")
    daemon.nix("nix-store", "--optimise")
    daemon.nix("nix-store", "--verify", "--check-contents")


def test_who_goes_away_ends_what_it_had_built(daemon: RunningDaemon) -> None:
    wanted = expression("long", "echo started; while :; do read -t 1 x; done < /dev/zero")
    client = subprocess.Popen(
        ["nix-build", "--no-out-link", "-E", wanted],
        env={**daemon.environment, "NIX_REMOTE": f"unix://{daemon.socket_path}"},
        stderr=subprocess.PIPE,
    )
    assert client.stderr is not None
    for line in client.stderr:
        if line == b"started\n":
            break
    assert _builders(daemon)
    client.send_signal(signal.SIGKILL)
    client.wait()
    client.stderr.close()
    deadline = time.monotonic() + 20
    while _builders(daemon):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _builders(daemon: RunningDaemon) -> list[str]:
    """Processes of the build that the test above begins."""
    found = []
    for name in os.listdir("/proc"):
        with contextlib.suppress(OSError):
            command = Path(f"/proc/{name}/cmdline").read_bytes()
            if name.isdigit() and b"echo started; while" in command and b"nix-build" not in command:
                found.append(name)
    return found


def test_two_clients_that_want_the_same_cause_one_build(daemon: RunningDaemon) -> None:
    mark = "echo $$(< /proc/sys/kernel/random/uuid) > $out"
    wanted = expression("shared", f"echo once; {mark.replace('$$', '$')}")
    with concurrent.futures.ThreadPoolExecutor() as pool:
        words = ("nix-build", "--no-out-link", "-E", wanted)
        done = list(pool.map(lambda _: daemon.nix(*words), range(3)))
    assert len({each.stdout for each in done}) == 1
    assert sum("\nonce\n" in each.stderr for each in done) == 1


def test_two_hundred_clients_at_once_are_served(daemon: RunningDaemon) -> None:
    clients = [RawClient(daemon.connect()) for _ in range(200)]
    for client in clients:
        assert client.greet() == 1
    for round_ in range(2):
        for client in clients:
            client.send(number(Op.IS_VALID_PATH), text(f"/nix/store/{'0' * 32}-{round_}"))
        for client in clients:
            client.last()
            assert client.number() == 0
    for client in clients:
        client.connection.close()


def test_sigterm_lets_what_runs_finish_and_nobody_in() -> None:
    with open_directory() as directory:
        daemon = start_daemon(directory)
        loop = "i=0; while [ $i -lt 400000 ]; do i=$((i+1)); done; echo done > $out"
        wanted = expression("last", f"echo started; {loop}")
        with concurrent.futures.ThreadPoolExecutor() as pool:
            done = pool.submit(daemon.nix, "nix-build", "--no-out-link", "-E", wanted)
            while not list((directory / "root/nix/store").glob("*-last.lock")):
                time.sleep(0.02)
            assert daemon.stop() == 0
            out = done.result().stdout.strip()
        assert daemon.real(out).read_text() == "done\n"
        with pytest.raises(ConnectionRefusedError):
            daemon.connect()
