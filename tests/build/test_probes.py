"""The probes of this machine: complete, harmless, and honest about what is missing."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from executor.build.probes import ProbeResult, run_probes
from sandbox import SandboxError, probe

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def results() -> list[ProbeResult]:
    return run_probes()


def test_everything_that_building_needs_works_here(results: list[ProbeResult]) -> None:
    """The other tests build on this very machine, so a required probe that fails is wrong."""
    assert [result for result in results if result.required and not result.works] == []


def test_what_works_needs_no_remedy_and_what_does_not_has_one(results: list[ProbeResult]) -> None:
    assert all(bool(result.remedy) is not result.works for result in results)
    assert all(result.detail for result in results)


def test_each_facility_is_tried_once(results: list[ProbeResult]) -> None:
    names = [result.name for result in results]
    assert len(set(names)) == len(names)
    assert {
        "mount namespace",
        "process namespace",
        "network namespace",
        "user namespace",
        "procfs",
        "system call filter",
        "shell for /bin/sh",
    } <= set(names)


def test_probing_changes_nothing_of_the_caller() -> None:
    before = facts()
    run_probes()
    assert facts() == before


def facts() -> dict[str, object]:
    """What the probes change in their own processes: ids, namespaces, mounts, descriptors."""
    kinds = ("mnt", "pid", "ipc", "uts", "net", "cgroup", "user")
    return {
        **{kind: os.readlink(f"/proc/self/ns/{kind}") for kind in kinds},
        "ids": (os.getresuid(), os.getresgid(), os.getgroups()),
        "mounts": Path("/proc/self/mountinfo").read_text(),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "children": Path(f"/proc/self/task/{os.getpid()}/children").read_text(),
    }


def test_what_a_network_lacks_is_named_with_its_package_and_the_setting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    (found,) = [result for result in run_probes() if result.name == "network of fixed outputs"]
    assert not found.works
    assert not found.required
    assert found.detail == "the program 'pasta' is not there: install the Debian package 'passt'"
    assert "'fod-network' is 'host' or 'none'" in found.remedy


def refuse() -> str:
    raise PermissionError(1, "Operation not permitted")


def explode() -> str:
    raise ValueError("strange")


def die() -> str:
    os._exit(7)


@pytest.mark.parametrize(
    ("attempt", "works", "detail"),
    [
        (lambda: "fine", True, "fine"),
        (refuse, False, "Operation not permitted"),
        (explode, False, "ValueError: strange"),
        (die, False, ""),
    ],
    ids=["works", "refused", "broken", "killed"],
)
def test_the_end_of_a_probe_is_its_result(
    attempt: Callable[[], str], works: bool, detail: str
) -> None:
    result = probe._run(probe._Probe(name="x", attempt=attempt, remedy="do this"))
    assert (result.works, result.detail) == (works, detail)
    assert result.remedy == ("" if works else "do this")


def test_probing_needs_root() -> None:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setresuid(65534, 65534, 65534)
            run_probes()
        except SandboxError as error:
            code = 0 if "root" in str(error) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
