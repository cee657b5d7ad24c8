"""The command line through a daemon: by somebody who isn't root, as it is by root in process."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from executor.formats.store_path import StoreDir, StorePath
from executor.protocols.client_channel import ClientChannel
from executor.protocols.worker_client import WorkerClient
from executor.protocols.worker_protocol import Trust
from tests.protocols.conftest import RunningDaemon, open_directory, start_daemon

pytestmark = [pytest.mark.root, pytest.mark.nix]
# Somebody else, who may read this checkout all the same.
READ = "+dac_read_search"
NOBODY = [
    *("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"),
    *(f"--inh-caps={READ}", f"--ambient-caps={READ}"),
]
JSON = {
    "version": 4,
    "derivations": {
        "good": {
            "system": "x86_64-linux",
            "builder": "/bin/sh",
            "args": ["-c", "echo hello; echo good > $out"],
        },
        "bad": {
            "system": "x86_64-linux",
            "builder": "/bin/sh",
            "args": ["-c", "echo oh; exit 3"],
        },
        "above": {
            "system": "x86_64-linux",
            "builder": "/bin/sh",
            "args": ["-c", "read x < {{bad}}; echo $x > $out"],
            "inputDrvs": {"bad": ["out"]},
        },
    },
}


@dataclass(frozen=True)
class Both:
    """The same command by nobody through a daemon, and by root on a store of its own."""

    daemon: RunningDaemon
    home: Path

    def through(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """By nobody, through the daemon."""
        where = {"NIX_REMOTE": f"unix://{self.daemon.socket_path}?root={self.daemon.root}"}
        return self._run([*NOBODY, sys.executable, "-m", "executor", *words], where, check=check)

    def within(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """By root, in one process."""
        where = {"NIX_REMOTE": str(self.daemon.directory / "other")}
        return self._run([sys.executable, "-m", "executor", *words], where, check=check)

    def _run(
        self, words: list[str], where: dict[str, str], *, check: bool
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            words,
            env={**self.daemon.environment, "NIX_USER_CONF_FILES": "", **where},
            cwd=self.home,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert "Traceback" not in done.stderr, done.stderr
        if check:
            assert done.returncode == 0, done.stderr
        return done

    def same(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run it in both ways, which have to differ in nothing but where and when."""
        one, other = self.through(*words, check=False), self.within(*words, check=False)
        assert one.returncode == other.returncode, one.stderr + other.stderr
        assert self.plain(one.stdout) == self.plain(other.stdout)
        assert self.plain(one.stderr) == self.plain(other.stderr)
        return one

    def plain(self, text: str) -> str:
        """Without what has to differ: where the store is, and when something was."""
        text = re.sub(r" --store \S+", "", text)
        text = text.replace(str(self.daemon.root), "STORE")
        text = text.replace(str(self.daemon.directory / "other"), "STORE")
        return re.sub(r'"(startTime|stopTime|cpuUser|cpuSystem|\w+Peak)": [0-9.null]+', "", text)


@pytest.fixture(scope="module")
def both() -> Iterator[Both]:
    with open_directory() as directory:
        daemon = start_daemon(directory, settings="allowed-users = nobody\n")
        home = directory / "home"
        home.mkdir()
        os.chown(home, 65534, 65534)
        (home / "all.json").write_text(json.dumps(JSON))
        for name in ("good", "bad"):
            only = {"version": 4, "derivations": {name: JSON["derivations"][name]}}  # type: ignore[index]
            (home / f"{name}.json").write_text(json.dumps(only))
        try:
            yield Both(daemon, home)
            assert daemon.stop() == 0, daemon.log
        finally:
            daemon.process.kill()
            daemon.process.wait()


def test_derivations_and_files_are_added(both: Both) -> None:
    drv = both.same("instantiate", "good.json").stdout.strip()
    assert drv.endswith("-good.drv")
    both.same("show", drv)
    both.same("show", "-r", drv)
    both.same("add", "good.json")
    (both.home / "tree" / "below").mkdir(parents=True)
    (both.home / "tree" / "link").symlink_to("below")
    added = both.same("add", "tree").stdout.strip()
    assert (both.daemon.real(added) / "link").is_symlink()
    both.same("add", "--flat", "--name", "other", "bad.json")


def test_a_build_is_the_same(both: Both) -> None:
    drv = both.same("instantiate", "good.json").stdout.strip()
    out = both.same("build", drv, "-L").stdout.strip()
    assert both.daemon.real(out).read_text() == "good\n"
    both.same("build", drv)
    both.same("build", drv, "--json")
    both.same("build", "good.json", "--check", "--json")
    for question in ("--references", "--referrers", "--requisites", "--hash", "--size"):
        both.same("query", question, out)
    both.same("query", "--deriver", out)
    both.same("query", "--outputs", drv)
    both.same("log", out)
    assert both.through("log", drv).stdout == "hello\n"


def test_a_failure_is_the_same(both: Both) -> None:
    done = both.same("build", "bad.json")
    assert done.returncode == 100
    assert "> oh" in done.stderr
    both.same("build", "bad.json", "-L", "--json")
    both.same("build", "all.json", "--keep-going", "--json")
    both.same("build", "all.json", "--dry-run")
    (record,) = json.loads(both.through("build", "bad.json", "--json", check=False).stdout)
    assert (record["exitCode"], record["cause"], record["status"]) == (
        *(3, "exit-code"),
        "PermanentFailure",
    )


def test_what_was_never_heard_of_is_an_error_in_lines(both: Both) -> None:
    nowhere = "/nix/store/" + "0" * 32 + "-nowhere"
    both.same("query", "--references", nowhere)
    both.same("log", nowhere)
    both.same("build", nowhere + ".drv")


def test_the_build_is_limited_as_asked(both: Both) -> None:
    drv = both.through("instantiate", "good.json").stdout.strip()
    done = both.through("build", drv, "--check", "--timeout", "100", "--option", "cores", "3")
    assert done.stdout
    done = both.through("build", drv, "--sandbox-paths", "/etc", check=False)
    assert "ignoring the client-specified setting 'sandbox-paths'" in done.stderr


def test_roots_keep_and_the_collector_collects(both: Both) -> None:
    out = both.through("build", "good.json", "--add-root", "result").stdout.strip()
    assert os.readlink(both.home / "result") == out
    assert f"{both.home}/result -> {out}" in both.through("gc", "--print-roots").stdout
    junk = both.through("add", "--name", "junk", "bad.json").stdout.strip()
    assert junk in both.through("gc", "--print-dead").stdout
    assert out in both.through("gc", "--print-live").stdout
    assert "would be deleted" in both.through("gc", "--dry-run").stdout
    assert "1 store paths deleted" in both.through("gc", "--delete", junk).stdout
    assert not both.daemon.real(junk).exists()
    done = both.through("gc", "--delete", out, check=False)
    assert done.returncode == 1
    assert "store paths deleted" in both.through("gc").stdout
    assert both.daemon.real(out).exists()
    refused = both.through("gc", "--delete", "--ignore-liveness", out, check=False)
    assert "not allowed to ignore liveness" in refused.stderr


def test_the_store_is_verified_and_optimised(both: Both) -> None:
    assert "freed by hard-linking" in both.through("optimise").stderr
    out = both.through("build", "good.json").stdout.strip()
    assert both.through("verify", "--check-contents").returncode == 0
    real = both.daemon.real(out)
    real.chmod(0o644)
    real.write_text("bad\n")
    done = both.through("verify", "--check-contents", check=False)
    assert done.returncode == 1
    assert out in done.stderr
    refused = both.through("verify", "--repair", check=False)
    assert "not privileged to repair" in refused.stderr
    real.write_text("good\n")
    real.chmod(0o444)
    os.utime(real, (1, 1))


def test_paths_are_copied_through_the_daemon(both: Both) -> None:
    out = both.through("build", "good.json").stdout.strip()
    cache = both.home / "cache"
    both.through("copy", "--to", f"file://{cache}", out)
    assert list(cache.glob("*.narinfo"))
    there = f"unix://{both.daemon.socket_path}?root={both.daemon.root}"
    added = both.within("add", "--name", "fromroot", "bad.json").stdout.strip()
    both.within("copy", "--to", there, added)
    assert both.through("query", "--size", added).stdout
    unsigned = both.within("build", "good.json").stdout.strip()
    both.through("copy", "--to", there, unsigned)


def test_no_daemon_is_an_error_that_says_what_to_do(both: Both) -> None:
    done = both.through("query", "--hash", "/x", "--store", "unix:///nowhere/socket", check=False)
    assert done.returncode == 1
    assert done.stderr == (
        "error: cannot connect to the daemon at '/nowhere/socket': No such file or directory; it "
        "is started with 'executor daemon' as root, and NIX_DAEMON_SOCKET_PATH says where it "
        "listens\n"
    )
    words = ["build", "good.json", "--store", "auto"]
    nobody = subprocess.run(
        [*NOBODY, sys.executable, "-m", "executor", *words],
        env={**both.daemon.environment, "NIX_STATE_DIR": "/nowhere"},
        cwd=both.home,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert nobody.stderr == (
        "error: building needs root: namespaces, mounts and build users; try sudo, or have root "
        "start 'executor daemon': nobody listens at '/nowhere/daemon-socket/socket'\n"
    )


def test_auto_is_the_daemon_for_who_may_not_change_the_store(both: Both) -> None:
    environment = {
        **both.daemon.environment,
        "NIX_DAEMON_SOCKET_PATH": both.daemon.socket_path,
        "NIX_STATE_DIR": str(both.daemon.root / "nix/var/nix"),
    }
    words = [sys.executable, "-m", "executor", "query", "--hash", "/nix/store/" + "0" * 32 + "-x"]
    for who, store in ((NOBODY, "auto"), (NOBODY, "daemon"), ([], "unix://")):
        done = subprocess.run(
            [*who, *words, "--store", store],
            env=environment,
            cwd=both.home,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert "is not valid" in done.stderr, done.stderr
    # The setting of a file is the default.
    done = subprocess.run(
        [*NOBODY, *words],
        env={**environment, "NIX_CONFIG": "store = daemon"},
        cwd=both.home,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "is not valid" in done.stderr, done.stderr


def test_ctrl_c_ends_the_build_in_the_daemon(both: Both) -> None:
    endless = {
        "system": "x86_64-linux",
        "builder": "/bin/sh",
        "args": ["-c", "echo begun; while :; do :; done"],
    }
    text = json.dumps({"version": 4, "derivations": {"endless": endless}})
    (both.home / "endless.json").write_text(text)
    process = subprocess.Popen(
        [*NOBODY, sys.executable, "-m", "executor", "build", "endless.json", "-L"],
        env={**both.daemon.environment, "NIX_REMOTE": f"unix://{both.daemon.socket_path}"},
        cwd=both.home,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    while "begun" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert "interrupted by the user" in process.stderr.read()
    process.stderr.close()
    assert process.wait(20) == 130
    deadline = time.monotonic() + 20
    while any(both.daemon.root.glob("nix/store/*.chroot")):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_stdio_of_somebody_who_isnt_root_is_the_daemons_socket(both: Both) -> None:
    script = f'#!/bin/sh\nexec {sys.executable} -m executor "$@"\n'
    program = both.home / "executor"
    program.write_text(script)
    program.chmod(0o755)
    process = subprocess.Popen(
        [*NOBODY, str(program), "daemon", "--stdio"],
        env={
            **both.daemon.environment,
            "NIX_REMOTE": f"unix://{both.daemon.socket_path}",
        },
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    stdin, stdout = process.stdin, process.stdout

    def close() -> None:
        stdin.close()

    channel = ClientChannel(stdout.fileno(), stdin.fileno(), close)
    with WorkerClient(channel, StoreDir("/nix/store")) as client:
        assert client.trust is Trust.NOT_TRUSTED
        assert not client.is_valid(StorePath("0" * 32, "x"))
    assert process.wait(10) == 0
    stdout.close()
