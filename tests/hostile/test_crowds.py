"""Many builds at once, and one that takes what all have in common: row 164."""

from __future__ import annotations

import gc
import grp
import os
from pathlib import Path

import pytest

from executor.api import Executor
from executor.build.plan import Target
from executor.build.result import BuildResult
from tests.build.conftest import HOST_PROGRAMS, Workshop
from tests.hostile.inside import log_of, pause, waiting

pytestmark = pytest.mark.root

# Takes files, terminals, watches and keys for as long as the kernel gives any, and keeps them.
_GREEDY = """
import os, resource, sys, time
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
import ctypes
libc = ctypes.CDLL(None)
def all_of(take, most=20000):
    count = 0
    while count < most and take() >= 0: count += 1
    return count
def terminal():
    try: return os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY)
    except OSError: return -1
def pipe():
    try: return os.pipe()[0]
    except OSError: return -1
print("terminals", all_of(terminal), flush=True)
print("watches", all_of(libc.inotify_init), flush=True)
print("pipes", all_of(pipe), flush=True)
"""


def test_row_164_what_one_build_takes_all_of_is_there_for_the_others(workshop: Workshop) -> None:
    workshop.change(sandbox_paths=(*workshop.settings.sandbox_paths, *HOST_PROGRAMS))
    command, marker = pause()
    program = f"{_GREEDY}\nos.system({command!r}.split(' || ')[0])"
    greedy = workshop.make(
        "greedy", '/usr/bin/python3 -c "$program"; echo > $out', env={"program": program}
    )
    with waiting(workshop, greedy, marker) as running:
        script = "echo here; : | cat; busybox nproc > /dev/null; echo still"
        assert log_of(workshop, script, "modest") == ["here", "still"]
    assert running.run is not None
    taken = dict(line.decode().split() for line in running.run.log if line.count(b" ") == 1)
    assert int(taken["terminals"]) > 500
    assert int(taken["pipes"]) > 1000


def test_row_164_builds_queue_for_ids_and_leave_nothing_open(workshop: Workshop) -> None:
    """More at once than there are build users: none fails, and all descriptors come back."""
    members = grp.getgrnam("nixbld").gr_mem
    crowds = [
        [
            workshop.make(f"one{crowd}-{number}", f"busybox sleep 0.2; echo {number} > $out")
            for number in range(2 * len(members))
        ]
        for crowd in range(3)
    ]
    counts: list[int] = []

    async def go(executor: Executor) -> list[BuildResult]:
        results: list[BuildResult] = []
        for crowd in crowds:
            results += await executor.build_all([Target(drv_path=drv.path) for drv in crowd])
            counts.append(_open_files())
        return results

    results = workshop.run(go, build_users_group="nixbld", max_jobs=len(members) + 8)
    assert [result.message for result in results if not result.success] == []
    assert max(counts[1:]) <= counts[0] + 4, counts
    assert int(Path("/proc/sys/kernel/pty/nr").read_text()) < len(members)


def _open_files() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))
