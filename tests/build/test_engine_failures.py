"""Builds that fail: what is said of them, with which status, and that nothing is left."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import stat
import subprocess
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from executor.api import Executor
from executor.build.plan import Target
from executor.build.result import BuildResult, BuildStatus, FailureCause, exit_status
from executor.derivation import InputAddressed, unparse_derivation
from executor.errors import StoreError
from executor.formats.content_address import IngestionMethod
from executor.formats.store_path import StorePath
from tests.build.conftest import FOREVER, HOST_PROGRAMS, Workshop, fixed, processes_with, structured

pytestmark = pytest.mark.root

NOWHERE = StorePath("0" * 32, "nowhere")


@pytest.mark.parametrize("code", [1, 2, 77, 127, 255])
def test_the_exit_code_of_the_builder_is_told(workshop: Workshop, code: int) -> None:
    drv = workshop.make("failing", f"echo > $out; exit {code}")
    run = workshop.build(drv)
    assert run.result.status is BuildStatus.PERMANENT_FAILURE
    assert run.result.cause is FailureCause.EXIT_CODE
    assert (run.result.exit_code, run.result.signal) == (code, None)
    assert run.result.message.splitlines()[:2] == [
        f"Cannot build '{drv.text}'.",
        f"Reason: builder failed with exit code {code}.",
    ]
    assert exit_status(run.results) == 100
    assert workshop.leftovers() == []


def test_the_signal_that_killed_the_builder_is_told(workshop: Workshop) -> None:
    marker = f"never-{os.getpid()}"
    drv = workshop.make("killed", f"{FOREVER}; echo {marker}")

    async def go(executor: Executor) -> BuildResult:
        building = asyncio.create_task(executor.build(drv.path))
        while not (found := processes_with(marker)):
            await asyncio.sleep(0.02)
        for pid in found:
            os.kill(pid, signal.SIGKILL)
        return await building

    result = workshop.run(go)
    assert result.status is BuildStatus.PERMANENT_FAILURE
    assert result.cause is FailureCause.SIGNAL
    assert (result.exit_code, result.signal) == (None, signal.SIGKILL)
    assert result.message.splitlines()[:2] == [
        f"Cannot build '{drv.text}'.",
        "Reason: builder failed due to signal 9 (Killed).",
    ]
    assert exit_status([result]) == 100
    assert workshop.leftovers() == []


def test_a_crash_of_the_builder_is_told(workshop: Workshop) -> None:
    code = b"import ctypes; ctypes.string_at(0)"
    drv = workshop.make("crash", builder=b"/usr/bin/python3", args=(b"-c", code))
    result = workshop.build(drv, sandbox_paths=HOST_PROGRAMS).result
    assert result.signal == signal.SIGSEGV
    assert result.message.splitlines()[:2] == [
        f"Cannot build '{drv.text}'.",
        "Reason: builder failed due to signal 11 (Segmentation fault).",
    ]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"builder": b"/bin/missing"}, "No such file or directory"),
        ({"builder": b"/etc/passwd"}, "Permission denied"),
        ({"builder": b"/build"}, "Permission denied"),
        ({"builder": b"/bin/sh/below"}, "Not a directory"),
    ],
)
def test_a_builder_that_can_not_be_executed_is_told(
    workshop: Workshop, changes: dict[str, Any], text: str
) -> None:
    drv = workshop.make("unable", **changes)
    run = workshop.build(drv)
    assert run.result.status is BuildStatus.PERMANENT_FAILURE
    assert run.result.cause is FailureCause.EXEC
    assert text in run.result.message
    assert os.fsdecode(changes["builder"]) in run.result.message
    assert exit_status(run.results) == 100
    assert workshop.leftovers() == []


def test_a_file_that_the_kernel_can_not_load_is_told(workshop: Workshop) -> None:
    tool = workshop.make("tool", "echo 'not a program' > $out; chmod +x $out")
    drv = workshop.make("unloadable", inputs=[tool], builder=workshop.render(tool.out).encode())
    run = workshop.build(drv)
    assert run.result.status is BuildStatus.PERMANENT_FAILURE
    assert run.result.cause is FailureCause.EXEC
    assert "Exec format error" in run.result.message


def test_a_failed_fixed_output_may_succeed_another_time(workshop: Workshop) -> None:
    drv = workshop.make("fetch", "exit 1", outputs={"out": fixed(b"x")})
    run = workshop.build(drv)
    assert run.result.status is BuildStatus.TRANSIENT_FAILURE
    assert run.result.exit_code == 1


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"platform": "riscv64-linux"},
            "platform mismatch\nRequired system: 'riscv64-linux'\nCurrent system: 'x86_64-linux'",
        ),
        (
            {"env": {"requiredSystemFeatures": "quantum kvm"}},
            "missing system features\nRequired features: {kvm, quantum}\nAvailable features: {}",
        ),
    ],
)
def test_what_this_machine_can_not_build_is_refused(
    workshop: Workshop, changes: dict[str, Any], text: str
) -> None:
    drv = workshop.make("foreign", **changes)
    run = workshop.build(drv, system="x86_64-linux", system_features=frozenset())
    assert run.result.status is BuildStatus.INPUT_REJECTED
    assert run.result.message == f"Cannot build '{drv.text}'.\nReason: {text}"
    assert run.started == []


def test_no_jobs_means_no_builds(workshop: Workshop) -> None:
    run = workshop.build(workshop.make("plain"), max_jobs=0)
    assert run.result.status is BuildStatus.INPUT_REJECTED
    assert "local builds are disabled (max-jobs = 0)" in run.result.message


def test_a_derivation_can_not_leave_the_sandbox(workshop: Workshop) -> None:
    drv = workshop.make("free", env={"__noChroot": "1"})
    run = workshop.build(drv)
    assert run.result.status is BuildStatus.MISC_FAILURE
    assert "has '__noChroot' set, but that's not allowed" in run.result.message
    assert run.started == []


def test_malformed_attributes_are_refused(workshop: Workshop) -> None:
    drv = workshop.make("odd", env={"exportReferencesGraph": "only-a-name"})
    run = workshop.build(drv)
    assert run.result.cause is FailureCause.INPUT
    assert "odd number of tokens in 'exportReferencesGraph'" in run.result.message
    drv = workshop.make("odd", env=structured(outputChecks="not an object"))
    run = workshop.build(drv)
    assert run.result.cause is FailureCause.INPUT
    assert run.started == []


@pytest.mark.parametrize(
    "data",
    [b"", b"Derive(", b"garbage", b'Derive([],[],[],"x","y",[],[])', b"\xff" * 100],
    ids=["empty", "cut", "text", "no-outputs", "bytes"],
)
def test_a_malformed_derivation_in_the_store_is_refused(workshop: Workshop, data: bytes) -> None:
    """It can't be registered; but a file can be damaged later."""
    with pytest.raises(StoreError, match="error parsing derivation"):
        workshop.source("broken.drv", data)
    drv = workshop.make("broken")
    overwrite(workshop.real(drv.path), data)
    run = workshop.build(drv)
    assert run.result.cause is FailureCause.INPUT
    assert f"'{drv.text}' is not a usable derivation" in run.result.message
    assert exit_status(run.results) == 1
    assert run.started == []


def test_a_forged_output_path_is_refused(workshop: Workshop) -> None:
    """What is built under a path that another derivation has would be an attack."""
    victim, forger = workshop.make("victim"), workshop.make("forger")
    with workshop.store() as store:
        honest = store.read_derivation(forger.path)
    forged = replace(
        honest,
        outputs={"out": InputAddressed(victim.out)},
        env={**honest.env, b"out": workshop.render(victim.out).encode()},
    )
    data = unparse_derivation(forged, workshop.location.store_dir)
    with pytest.raises(StoreError, match="has incorrect output"):
        workshop.source("forger.drv", data)
    overwrite(workshop.real(forger.path), data)
    run = workshop.build(forger)
    assert run.result.cause is FailureCause.INPUT
    assert f"has incorrect output '{workshop.render(victim.out)}'" in run.result.message
    assert run.started == []
    assert not workshop.is_valid(victim.out)


def test_a_missing_derivation_is_told(workshop: Workshop) -> None:
    workshop.make("any")
    path = replace(NOWHERE, name="nowhere.drv")
    run = workshop.build_targets(Target(drv_path=path))
    assert run.result.status is BuildStatus.MISC_FAILURE
    assert f"don't know how to build '{workshop.render(path)}'" in run.result.message


def test_a_missing_input_source_is_told(workshop: Workshop) -> None:
    """The derivation is registered; of its source only the database's row is gone."""
    source = workshop.source("source", b"text")
    drv = workshop.make("user", sources=[source])
    with closing(sqlite3.connect(workshop.database)) as database, database:
        database.execute("delete from Refs where reference in (select id from ValidPaths)")
        database.execute("delete from ValidPaths where path = ?", (workshop.render(source),))
    run = workshop.build(drv)
    assert run.result.status is BuildStatus.MISC_FAILURE
    assert run.result.cause is FailureCause.INPUT
    assert run.result.message == (
        f"dependency '{workshop.render(source)}' of '{drv.text}' does not exist in the store"
    )
    assert run.started == []


def test_keep_failed_leaves_the_build_directory_to_the_caller(workshop: Workshop) -> None:
    drv = workshop.make(
        "kept", "mkdir deep; echo evidence > deep/file; chmod 4700 deep/file || true; exit 1"
    )
    run = workshop.build(drv, keep_failed=True)
    assert run.result.kept_build_directory is not None
    kept = Path(run.result.kept_build_directory)
    assert (kept / "deep/file").read_text() == "evidence\n"
    for path in (kept.parent, kept, kept / "deep", kept / "deep/file"):
        status = path.lstat()
        assert status.st_uid == os.getuid()
        assert not status.st_mode & (stat.S_ISUID | stat.S_ISGID)
    assert workshop.leftovers() == [kept.parent.name]


@pytest.mark.parametrize("script", ["echo > $out", "exit 1"])
def test_the_build_directory_is_gone_otherwise(workshop: Workshop, script: str) -> None:
    """Of a success it is not kept even under keep-failed."""
    drv = workshop.make("gone", f"echo x > file; {script}")
    run = workshop.build(drv, keep_failed="out" in script)
    assert run.result.kept_build_directory is None
    assert workshop.leftovers() == []


@pytest.mark.parametrize(("lines", "told"), [(3, 3), (25, 25), (40, 25)])
def test_the_last_lines_of_the_log_are_told(workshop: Workshop, lines: int, told: int) -> None:
    run = workshop.build(workshop.make("chatty", f"seq {lines}; exit 1"))
    expected = [str(number).encode() for number in range(lines - told + 1, lines + 1)]
    assert list(run.result.log_tail) == expected


def test_processes_that_outlive_the_builder_are_killed_before_its_outputs_are_read(
    workshop: Workshop,
) -> None:
    drv = workshop.make(
        "haunted", "mkdir $out; (while true; do echo x >> $out/growing; done) & sleep 0.2"
    )
    assert workshop.build(drv).result.success
    size = (workshop.real(drv.out) / "growing").stat().st_size
    time.sleep(0.3)
    assert (workshop.real(drv.out) / "growing").stat().st_size == size
    assert workshop.info(drv.out).nar_size > size


def test_a_failed_build_can_be_tried_again(workshop: Workshop) -> None:
    drv = workshop.make("flaky", "dd if=/dev/zero of=$out bs=1k count=64")
    assert workshop.build(drv, timeout=0, sandbox_paths=()).result.success is False
    assert workshop.leftovers() == []
    assert workshop.build(drv).result.success


def test_recursive_fixed_outputs_may_be_trees(workshop: Workshop) -> None:
    drv = workshop.make(
        "tree", "mkdir $out; echo x > $out/x", outputs={"out": fixed(b"", IngestionMethod.NAR)}
    )
    assert workshop.build(drv).result.status is BuildStatus.HASH_MISMATCH


def overwrite(path: Path, data: bytes) -> None:
    """Damage a file of the store."""
    path.chmod(0o644)
    path.write_bytes(data)


def test_a_full_disk_may_be_the_reason(tmp_path: Path) -> None:
    """Store, build directory and log are on it; the verdict is the builder's all the same."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=30m", "tmpfs", tmp_path], check=True)
    try:
        small = Workshop(tmp_path)
        drv = small.make("full", "seq 1000; dd if=/dev/zero of=$out bs=1M count=90; seq 100000")
        for compress in (True, False):
            result = small.build(drv, compress_build_log=compress).result
            assert result.status is BuildStatus.TRANSIENT_FAILURE, result.message
            assert "lack of free disk space" in result.message
            assert small.leftovers() == []
    finally:
        subprocess.run(["umount", tmp_path], check=True)
