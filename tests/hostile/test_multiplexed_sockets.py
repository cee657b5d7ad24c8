"""Sockets of 32-bit builds, whose C library asks for them behind a pointer, and who makes them."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from executor.config import SandboxPath
from tests.build.conftest import Run, Workshop, fixed, processes_with, wait_until
from tests.hostile.inside import answers
from tests.hostile.test_id_ranges import RANGE
from tests.hostile.test_id_ranges import ranges as ranges

pytestmark = pytest.mark.root

_SOURCE = Path(__file__).with_name("sockets32.c")
_CAP_SYS_PTRACE = 1 << 19


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The 32-bit program, with a C library of this century; see sockets32.c."""
    made = tmp_path_factory.mktemp("sockets32") / "sockets32"
    made.parent.chmod(0o755)
    options = ("-m32", "-static", "-pthread", "-O1", "-Wall", "-Werror")
    subprocess.run(["gcc", *options, "-o", made, _SOURCE], check=True, timeout=120)
    return made


@pytest.fixture
def here(workshop: Workshop, program: Path) -> Workshop:
    """A store whose builders find the program at ``/bin/sockets32``."""
    shown = SandboxPath(target="/bin/sockets32", source=str(program), read_only=True)
    workshop.change(sandbox_paths=(*workshop.settings.sandbox_paths, shown))
    return workshop


def run(here: Workshop, words: str, platform: str = "i686-linux", **settings: Any) -> Run:
    outputs = {"out": fixed(b"")} if "fod_network" in settings else ("out",)
    script = f"sockets32 {words}; : > $out"
    drv = here.make(words.split()[0], script, outputs=outputs, platform=platform)
    return here.build(drv, timeout=60, **settings)


def said(here: Workshop, words: str, **settings: Any) -> dict[str, str]:
    """What the program said in an i686 build."""
    done = run(here, words, **settings)
    assert done.result.success, (done.result.message, done.text)
    return answers(done.text.splitlines())


FAMILIES = {
    **dict.fromkeys(("unix", "inet", "inet6", "netlink"), "ok"),
    **dict.fromkeys(("raw", "packet", "old-packet"), "EPERM"),
    **dict.fromkeys(("vsock", "alg", "unspecified", "minus", "wide"), "EAFNOSUPPORT"),
    **dict.fromkeys(("kind", "flags", "protocol"), "EINVAL"),
}


@pytest.mark.parametrize("fod_network", [None, "isolated", "host", "none"])
def test_row_051_families_of_i686_builds_are_those_of_all(
    here: Workshop, fod_network: str | None
) -> None:
    settings: dict[str, Any] = {} if fod_network is None else {"fod_network": fod_network}
    assert said(here, "families", **settings) == FAMILIES


def test_row_051_other_builds_have_no_such_sockets(here: Workshop) -> None:
    """A 32-bit program in a 64-bit build, where nobody makes them."""
    found = answers(run(here, "families", platform="x86_64-linux").text.splitlines())
    assert set(found.values()) == {"EAFNOSUPPORT"}


def test_row_051_nor_have_builds_of_a_range_of_ids(ranges: Workshop, program: Path) -> None:
    shown = SandboxPath(target="/bin/sockets32", source=str(program), read_only=True)
    ranges.change(sandbox_paths=(*ranges.settings.sandbox_paths, shown))
    drv = ranges.make("r", "sockets32 families; echo > $out", env=RANGE, platform="i686-linux")
    done = ranges.build(drv)
    assert done.result.success, done.result.message
    assert set(answers(done.text.splitlines()).values()) == {"EAFNOSUPPORT"}


def test_row_051_sockets_that_were_made_are_the_callers_own(here: Workshop) -> None:
    """Flags and numbers are as it asked, and nothing of them stays with who made them."""
    assert said(here, "flags") == {
        "plain": "0,0",
        "flagged": "1,2048",
        "lowest": "3",
        "pair-flags": "1,1",
        "pair": "ok",
        "through": "ok",
        "pair-inet": "EOPNOTSUPP",
        "pair-vsock": "EAFNOSUPPORT",
    }


def test_row_051_pointers_that_lead_nowhere_are_faults(here: Workshop) -> None:
    assert said(here, "pointers") == {
        **dict.fromkeys(("null", "kernel", "cut", "pair-nowhere", "pair-cut"), "EFAULT"),
        "whole": "ok",
        "full": "EMFILE",
    }


def test_row_047_sockets_of_i686_builds_work_and_give_no_rights(here: Workshop) -> None:
    """Over loopback, by abstract names; and netlink refuses, as it refuses the build."""
    assert said(here, "work") == {
        **dict.fromkeys(("bind", "connect", "talk", "abstract", "abstract-connect"), "ok"),
        "peer": "1,1,1",
        "link-down": "EPERM",
    }


def test_row_051_changing_the_arguments_meanwhile_changes_nothing(here: Workshop) -> None:
    """They are copied once. Both kinds of answer were seen, and no socket of the other family."""
    assert said(here, "race 3000") == {"through": "0", "all": "1", "both": "1"}


def test_row_051_callers_that_are_killed_harm_nobody_else(here: Workshop) -> None:
    assert said(here, "kill 200") == {"after": "ok"}


@pytest.mark.parametrize("how", ["interrupt", "break"])
def test_row_051_signals_tear_no_call_apart(here: Workshop, how: str) -> None:
    """A handler that doesn't want calls to go on may see EINTR, but never half a pair."""
    assert said(here, f"{how} 1000") == {"bad": "0", "lowest": "3"}


def test_row_051_namespaces_in_a_build_add_nothing(here: Workshop) -> None:
    """Not a capability, and no sockets in a network that the build has made itself."""
    assert said(here, "nested") == {
        **dict.fromkeys(("hidden", "userns", "nested", "netns"), "ok"),
        "nested-raw": "EPERM",
        "elsewhere": "EAFNOSUPPORT",
    }


@contextmanager
def waiting(here: Workshop, tmp_path: Path) -> Iterator[tuple[int, int, list[Run]]]:
    """A build that has made a socket and waits: its process, who made it, and its result."""
    directory = tmp_path / "meet"
    directory.mkdir()
    here.change(
        sandbox_paths=(
            *here.settings.sandbox_paths,
            SandboxPath(target="/meet", source=str(directory), read_only=True),
        )
    )
    runs: list[Run] = []
    thread = threading.Thread(target=lambda: runs.append(run(here, "wait /meet/go")))
    thread.start()
    try:
        wait_until(lambda: bool(processes_with("sockets32\0wait")), "the builder")
        (builder,) = processes_with("sockets32\0wait")
        (maker,) = makers(builder)
        yield builder, maker, runs
    finally:
        (directory / "go").touch()
        thread.join(60)


def makers(builder: int) -> list[int]:
    """Processes in the user namespace of a build that aren't in its process namespace."""
    wanted = os.readlink(f"/proc/{builder}/ns/user")
    inside = os.readlink(f"/proc/{builder}/ns/pid")
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):
            if os.readlink(f"/proc/{entry}/ns/user") == wanted:
                found.append(int(entry))
    return [pid for pid in found if os.readlink(f"/proc/{pid}/ns/pid") != inside]


def test_row_050_who_makes_sockets_can_do_little_else(here: Workshop, tmp_path: Path) -> None:
    with waiting(here, tmp_path) as (builder, maker, runs):
        lines = Path(f"/proc/{maker}/status").read_text().splitlines()
        status = {name: value.split() for name, _, value in (line.partition(":") for line in lines)}
        theirs = Path(f"/proc/{builder}/status").read_text()
        assert f"Uid:\t{chr(9).join(status['Uid'])}\n" in theirs
        assert set(status["Uid"]).isdisjoint({"0"})
        assert status["Groups"] == []
        assert (status["NoNewPrivs"], status["Seccomp"]) == (["1"], ["2"])
        assert {int(status[name][0], 16) for name in ("CapPrm", "CapEff")} == {_CAP_SYS_PTRACE}
        assert {int(status[name][0], 16) for name in ("CapInh", "CapBnd", "CapAmb")} == {0}
        assert os.readlink(f"/proc/{maker}/ns/net") == os.readlink(f"/proc/{builder}/ns/net")
        names = {os.readlink(f"/proc/{maker}/fd/{fd}") for fd in os.listdir(f"/proc/{maker}/fd")}
        assert {name.split(":")[0] for name in names} <= {"/dev/null", "/proc", "anon_inode"} | {
            os.readlink(f"/proc/self/fd/{number}").split(":")[0] for number in (1, 2)
        }
        assert Path(f"/proc/{maker}/cgroup").read_text() == (
            Path(f"/proc/{builder}/cgroup").read_text()
        )
    assert runs[0].result.success, runs[0].result.message
    assert not os.path.exists(f"/proc/{maker}")


def test_row_051_without_who_makes_them_there_are_no_sockets(
    here: Workshop, tmp_path: Path
) -> None:
    """Calls fail, and nothing hangs."""
    with waiting(here, tmp_path) as (_builder, maker, runs):
        os.kill(maker, signal.SIGKILL)
        wait_until(lambda: _is_dead(maker), "its end")
    assert answers(runs[0].text.splitlines()) == {"before": "ok", "after": "ENOSYS"}


def _is_dead(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except FileNotFoundError:
        return True


def test_row_050_who_makes_sockets_ends_with_the_executor(program: Path, tmp_path: Path) -> None:
    here = Workshop(tmp_path)
    shown = SandboxPath(target="/bin/sockets32", source=str(program), read_only=True)
    here.change(sandbox_paths=(*here.settings.sandbox_paths, shown))
    drv = here.make("endless", "sockets32 wait /nowhere", platform="i686-linux")
    running = here.start_cli("build", drv.text)
    try:
        wait_until(lambda: bool(processes_with("sockets32\0wait")), "the builder")
        (builder,) = processes_with("sockets32\0wait")
        (maker,) = makers(builder)
    finally:
        running.kill()
        running.communicate()
    wait_until(lambda: _is_dead(builder) and _is_dead(maker), "their end")
