"""Stock Nix calls the executor as its build hook; what it asks by hand, and how it is answered."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from executor.build.result import BuildResult, BuildStatus
from executor.config import Settings
from executor.errors import FormatError
from executor.formats.store_path import StoreDir, StorePath
from executor.formats.wire import EndOfStreamError, WireReader
from executor.protocols.hook_requests import (
    exit_code,
    read_settings,
    read_try,
    read_wanted,
    settings_for_caller,
)
from executor.protocols.hook_slots import take_slot
from executor.protocols.worker_messages import MessageReader
from executor.protocols.worker_protocol import LATEST
from executor.store.locks import PathLocks, held_for_us
from tests.protocols.conftest import number, open_directory, text
from tests.protocols.machines import PROJECT
from tests.protocols.test_building import expression

_SHIM = """\
#!/bin/sh
export NIX_CONF_DIR={conf} PYTHONPATH={project}
exec {python} -W error -m executor build-hook {words} "$@"
"""


@dataclass(frozen=True)
class Caller:
    """A stock Nix with a store of its own that has the executor as its build hook."""

    directory: Path

    def hook(self, *words: str) -> str:
        """The program that Nix 2.8 takes, which gives its hook no arguments."""
        path = self.directory / ("hook" + "".join(words).replace("-", ""))
        path.write_text(
            _SHIM.format(
                conf=self.directory, project=PROJECT, python=sys.executable, words=" ".join(words)
            )
        )
        path.chmod(0o755)
        return str(path)

    def command(self, *words: str, hook: str = "", **settings: str) -> tuple[list[str], str]:
        """A command line, and the configuration for it."""
        values = {
            "experimental-features": "nix-command ca-derivations",
            "substituters": "",
            "build-users-group": "",
            "max-jobs": "0",
            "build-poll-interval": "1",
            "build-hook": hook or self.hook(),
            **{name.replace("_", "-"): value for name, value in settings.items()},
        }
        configuration = "".join(f"{name} = {value}\n" for name, value in values.items())
        return [words[0], "--store", str(self.directory / "root"), *words[1:]], configuration

    def nix(
        self, *words: str, check: bool = True, hook: str = "", **settings: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command of stock Nix."""
        command, configuration = self.command(*words, hook=hook, **settings)
        done = subprocess.run(
            command,
            env=self.environment(configuration),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            cwd=self.directory,
        )
        if check:
            assert done.returncode == 0, done.stderr
        return done

    def environment(self, configuration: str) -> dict[str, str]:
        path, home = os.environ["PATH"], str(self.directory)
        return {"PATH": path, "HOME": home, "NIX_CONF_DIR": home, "NIX_CONFIG": configuration}

    def build(self, wanted: str) -> str:
        """Build an expression; the output."""
        return self.nix("nix-build", "--no-out-link", "-E", wanted).stdout.strip()

    def real(self, path: str) -> Path:
        return self.directory / "root" / path[1:]


@pytest.fixture(scope="module")
def caller() -> Iterator[Caller]:
    with open_directory() as directory:
        (directory / "nix.conf").write_text("")
        yield Caller(directory)


@pytest.mark.root
@pytest.mark.nix
class TestStockNix:
    """What stock Nix makes of it."""

    def test_builds_in_the_callers_store_with_their_inputs(self, caller: Caller) -> None:
        dependency = expression("dep", "echo dep > $out")
        wanted = expression("a", "echo said; echo $dep > $out", f"dep = {dependency};")
        done = caller.nix("nix-build", "--no-out-link", "-E", wanted)
        out = done.stdout.strip()
        assert "on 'executor'" in done.stderr
        assert "\nsaid\n" in done.stderr
        shown = caller.nix("nix-store", "-q", "--references", out).stdout.strip()
        assert caller.real(out).read_text().strip() == shown
        # It is the caller who keeps the log, and the locks and leftovers are gone.
        drv = caller.nix("nix-store", "-q", "--deriver", out).stdout.strip()
        assert "said" in caller.nix("nix-store", "--read-log", drv).stdout
        left = os.listdir(caller.directory / "root/nix/store")
        assert not [name for name in left if name.endswith((".lock", ".chroot"))]
        checked = caller.nix("nix-build", "--no-out-link", "--check", "-E", wanted)
        assert "checking outputs of" in checked.stderr

    def test_content_addressed_outputs_are_registered(self, caller: Caller) -> None:
        more = '__contentAddressed = true; outputHashMode = "recursive"; outputHashAlgo = "sha256";'
        dependency = expression("ca-dep", "echo dep > $out", more)
        wanted = expression("ca", "echo $dep > $out", f"dep = {dependency}; {more}")
        assert "ca-dep" in caller.real(caller.build(wanted)).read_text()

    def test_a_failure_is_told_with_its_cause(self, caller: Caller) -> None:
        bad = expression("bad", "echo oh no; exit 3")
        done = caller.nix("nix-build", "-E", bad, check=False)
        assert done.returncode == 100
        assert "builder failed with exit code 3" in done.stderr
        assert "oh no" in done.stderr

    def test_limits_are_enforced_by_the_hook(self, caller: Caller) -> None:
        slow = expression("slow", "echo begun; read x < /dev/zero & wait")
        done = caller.nix("nix-build", "-E", slow, check=False, timeout="1")
        assert "timed out after 1 seconds" in done.stderr
        assert done.returncode == 101
        done = caller.nix("nix-build", "-E", slow, check=False, max_silent_time="1")
        assert "1 seconds of silence" in done.stderr
        loud = expression("loud", "while :; do echo xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx; done")
        done = caller.nix("nix-build", "-E", loud, check=False, max_build_log_size="99999")
        assert "more than 99999 bytes" in done.stderr

    def test_what_it_can_not_build_is_declined(self, caller: Caller) -> None:
        strange = expression("strange", "echo > $out").replace("x86_64-linux", "mips-linux")
        done = caller.nix("nix-build", "-vvvvv", "-E", strange, check=False)
        assert done.returncode
        assert "the executor declines" in done.stderr
        featured = expression("featured", "echo > $out", 'requiredSystemFeatures = [ "gold" ];')
        assert caller.nix("nix-build", "-E", featured, check=False).returncode
        # With no slots it is asked once, and the caller builds itself.
        local = expression("local", "echo > $out")
        done = caller.nix(
            *("nix-build", "--no-out-link", "-E", local),
            hook=caller.hook("--jobs 0"),
            max_jobs="1",
            sandbox_paths="/bin/sh=/bin/busybox",
        )
        assert "on 'executor'" not in done.stderr
        assert "builds nothing as a build hook" in done.stderr

    def test_what_finds_no_slot_is_postponed(self, caller: Caller) -> None:
        both = [expression(name, f"echo {name} > $out") for name in ("first", "second", "third")]
        done = caller.nix(
            *("nix-build", "--no-out-link", "-E", f"[ ({') ('.join(both)}) ]"),
            hook=caller.hook("--jobs 1"),
        )
        assert done.stderr.count("on 'executor'") == 3

    def test_a_caller_that_is_killed_leaves_no_builder(self, caller: Caller) -> None:
        mark = "sleep-of-a-killed-caller"
        slow = expression("killed", f"echo {mark}; while :; do read -t 1 x; done < /dev/zero")
        command, configuration = caller.command("nix-build", "-E", slow)
        process = subprocess.Popen(
            command, env=caller.environment(configuration), stderr=subprocess.PIPE
        )
        assert process.stderr
        assert any(line == f"{mark}\n".encode() for line in process.stderr)
        assert _running(f"echo {mark}; while")
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stderr.close()
        deadline = time.monotonic() + 20
        while _running(f"echo {mark}; while"):
            assert time.monotonic() < deadline
            time.sleep(0.05)


def _running(words: str) -> list[str]:
    found = []
    for name in os.listdir("/proc"):
        with contextlib.suppress(OSError):
            command = Path(f"/proc/{name}/cmdline").read_bytes()
            if name.isdigit() and words.encode() in command and b"nix-build" not in command:
                found.append(name)
    return found


STORE = StoreDir()
_DRV = "/nix/store/" + "0" * 32 + "-x.drv"
_SETTINGS = number(1) + text("timeout") + text("5") + number(0)
_TRY = text("try") + number(1) + text("x86_64-linux") + text(_DRV) + number(1) + text("kvm")
_WANTED = number(1) + text("/nix/store/" + "0" * 32 + "-in") + number(1) + text("out")


def _reader(data: bytes) -> MessageReader:
    return MessageReader(io.BytesIO(data), STORE, LATEST)


def test_a_conversation_is_read() -> None:
    reader = _reader(_SETTINGS + _TRY + _WANTED + text("bye"))
    assert read_settings(reader) == {"timeout": "5"}
    offer = read_try(reader)
    assert offer is not None
    assert (offer.willing, offer.system) == (True, "x86_64-linux")
    assert (STORE.render(offer.drv_path), offer.features) == (_DRV, frozenset({"kvm"}))
    assert read_wanted(reader) == {"out"}
    assert read_try(reader) is None


def test_row_145_requests_may_end_at_every_byte() -> None:
    for size in range(len(_SETTINGS)):
        with pytest.raises(EndOfStreamError):
            read_settings(WireReader(io.BytesIO(_SETTINGS[:size])))
    for size in range(len(_TRY)):
        with pytest.raises(EndOfStreamError):
            read_try(_reader(_TRY[:size]))
    for size in range(len(_WANTED)):
        with pytest.raises(EndOfStreamError):
            read_wanted(_reader(_WANTED[:size]))


@pytest.mark.parametrize(
    "said",
    [
        _TRY.replace(b".drv", b".drw"),
        _TRY.replace(b"/nix/store/", b"/nix/stor//"),
        _TRY.replace(number(1) + text("kvm"), number(1 << 60)),
        text("try") + number(7),
        text("try") + number(1) + number(1 << 62),
    ],
)
def test_row_145_bad_requests_are_errors(said: bytes) -> None:
    with pytest.raises(FormatError):
        read_try(_reader(said))
    with pytest.raises(FormatError):
        read_settings(WireReader(io.BytesIO(number(2))))


def test_what_is_taken_of_the_callers_settings() -> None:
    ours = Settings(build_hook=("executor", "build-hook"), post_build_hook="/bin/x", cores=1)
    told = {
        "timeout": "7",
        "cores": "3",
        "sandbox": "false",
        "filter-syscalls": "false",
        "post-build-hook": "/bin/theirs",
        "sandbox-paths": "/bin/a=/bin/b",
        "nonsense": "1",
        "max-silent-time": "x",
    }
    settings = settings_for_caller(ours, told)
    assert (settings.timeout, settings.cores, settings.max_silent_time) == (7, 3, 0)
    assert (settings.build_hook, settings.builders, settings.post_build_hook) == ((), "", "")
    assert [path.target for path in settings.sandbox_paths] == ["/bin/a"]
    assert settings.max_jobs == 1
    assert not settings.substitute
    assert not settings.keep_build_log


def test_exit_codes_tell_what_old_callers_understand() -> None:
    path = StorePath("0" * 32, "x.drv")
    expected = {
        BuildStatus.BUILT: 0,
        BuildStatus.ALREADY_VALID: 0,
        BuildStatus.PERMANENT_FAILURE: 100,
        BuildStatus.TIMED_OUT: 101,
        BuildStatus.MISC_FAILURE: 1,
        BuildStatus.LOG_LIMIT_EXCEEDED: 1,
    }
    for status, code in expected.items():
        assert exit_code(BuildResult(drv_path=path, status=status)) == code


def test_slots_are_counted(tmp_path: Path) -> None:
    directory = str(tmp_path / "slots")
    assert not take_slot(0, directory)
    assert [take_slot(2, directory) for _ in range(3)] == [True, True, False]


def test_locks_of_nobody_but_the_caller_count_as_ours(tmp_path: Path) -> None:
    path = str(tmp_path / "x")
    with PathLocks() as locks:
        assert locks.try_acquire([path])
        assert held_for_us([path], os.getpid())
        assert not held_for_us([path], os.getppid())
        assert not held_for_us([path], 0)
