"""The Python API over a daemon's socket, and the examples that use it."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec

import pytest

from executor.api import Executor
from executor.build.events import BuildFinished, BuildLogLine, BuildStarted, Event, GraphPlanned
from executor.build.plan import Target
from executor.build.result import BuildResult, BuildStatus, FailureCause
from executor.config import Settings, load_settings
from executor.errors import ExecutorError, UsageError
from executor.formats.store_path import StorePath
from executor.instantiate import instantiate
from executor.remote import ClientError, RemoteError, RemoteExecutor, UnreachableError
from executor.store.local import LocalStore
from executor.store.location import parse_store_url
from tests.protocols.conftest import RunningDaemon, open_directory, start_daemon

pytestmark = [pytest.mark.root, pytest.mark.nix]
ROOT = Path(__file__).parent.parent.parent
ENDLESS = "echo begun; while :; do :; done"


P = ParamSpec("P")


def in_loop(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """A test that runs in an event loop of its own."""

    @wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        asyncio.run(test(*args, **kwargs))

    return run


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[RunningDaemon, RunningDaemon]]:
    """Two daemons with a store each."""
    with open_directory() as one, open_directory() as other:
        daemons = start_daemon(one), start_daemon(other)
        try:
            yield daemons
            for daemon in daemons:
                assert daemon.stop() == 0, daemon.log
        finally:
            for daemon in daemons:
                daemon.process.kill()
                daemon.process.wait()


def make(store: Path, **scripts: str) -> dict[str, StorePath]:
    """Derivations by name; a script that names another one in braces needs it."""
    entries = {
        name: {
            "system": "x86_64-linux",
            "builder": "/bin/sh",
            "args": ["-c", script],
            "inputDrvs": {other: ["out"] for other in scripts if f"{{{{{other}}}}}" in script},
        }
        for name, script in scripts.items()
    }
    with LocalStore.open(parse_store_url(str(store), {})) as opened:
        return dict(instantiate(opened, json.dumps(entries).encode(), "/").by_key)


def settings(**changes: object) -> Settings:
    """Of no file of this machine."""
    loaded = load_settings(environ={"NIX_CONF_DIR": "/nowhere", "NIX_CONFIG": "substituters ="})
    return replace(loaded.settings, **changes)  # type: ignore[arg-type]


def remote(daemon: RunningDaemon, **changes: object) -> RemoteExecutor:
    """An executor whose settings differ so far from the daemon's."""
    names = {name.replace("_", "-") for name in changes}
    store = f"unix://{daemon.socket_path}"
    return RemoteExecutor(store=store, settings=settings(**changes), chosen=names)


def comparable(result: BuildResult, root: Path) -> BuildResult:
    """Without what differs from run to run."""
    return replace(
        result,
        start_time=float(result.start_time > 0),
        stop_time=float(result.stop_time > 0),
        cpu_user=None if result.cpu_user is None else 0,
        cpu_system=None if result.cpu_system is None else 0,
        memory_peak=None,
        pids_peak=None,
        disk_peak=None,
        log_path=result.log_path and result.log_path.replace(str(root), ""),
    )


@in_loop
async def test_results_and_events_are_those_of_a_run_in_process(
    pair: tuple[RunningDaemon, RunningDaemon], tmp_path: Path
) -> None:
    scripts = {"base": "echo one; echo x > $out", "top": "read x < {{base}}; echo $x > $out"}
    scripts["bad"] = "echo oh; exit 3"
    there = make(pair[0].root, **scripts)
    assert make(tmp_path, **scripts) == there
    targets = [Target(drv_path=there["top"]), Target(drv_path=there["bad"])]
    heard: dict[str, list[Event]] = {"remote": [], "local": []}
    async with remote(pair[0]) as executor:
        executor.subscribe(heard["remote"].append)
        plan = await executor.preview(targets)
        results = await executor.build_all(targets, keep_going=True)
    async with Executor(store=str(tmp_path), settings=settings()) as local:
        local.subscribe(heard["local"].append)
        assert await local.preview(targets) == plan
        expected = await local.build_all(targets, keep_going=True)
    assert [comparable(result, pair[0].root) for result in results] == [
        comparable(result, tmp_path) for result in expected
    ]
    assert results[1].log_tail == (b"oh",)
    for kind in (GraphPlanned, BuildLogLine):
        same = [
            [
                replace(event, build_id=0) if isinstance(event, BuildLogLine) else event
                for event in events
                if isinstance(event, kind)
            ]
            for events in heard.values()
        ]
        assert sorted(map(repr, same[0])) == sorted(map(repr, same[1]))
    for other in (BuildStarted, BuildFinished):
        counts = [sum(isinstance(event, other) for event in events) for events in heard.values()]
        assert counts[0] == counts[1] > 0


@in_loop
async def test_limits_have_their_results(pair: tuple[RunningDaemon, RunningDaemon]) -> None:
    drvs = make(pair[0].root, late=ENDLESS, busy=ENDLESS.replace("begun", "busy"))
    async with remote(pair[0], timeout=1) as executor:
        late = await executor.build(drvs["late"])
    assert (late.status, late.cause) == (BuildStatus.TIMED_OUT, FailureCause.TIMEOUT)
    async with remote(pair[0], build_cpu_max=1) as executor:
        busy = await executor.build(drvs["busy"])
    assert busy.status is BuildStatus.LIMIT_EXCEEDED
    assert busy.exceeded is not None
    assert (busy.exceeded.limit.setting, busy.exceeded.limit.value) == ("build-cpu-max", 1)
    assert busy.cpu_user is not None
    assert busy.cpu_user > 500_000


@in_loop
async def test_a_derivation_is_sent_or_written(
    pair: tuple[RunningDaemon, RunningDaemon], tmp_path: Path
) -> None:
    drv_path = make(tmp_path, sent="echo sent > $out")["sent"]
    with LocalStore.open(parse_store_url(str(tmp_path), {})) as store:
        value = store.read_derivation(drv_path)
    async with remote(pair[0]) as executor:
        result = await executor.build(value, store_derivation=False)
        assert result.status is BuildStatus.BUILT
        assert not await executor.is_valid(drv_path)
        again = await executor.build(value)
        assert again.status is BuildStatus.ALREADY_VALID
        assert await executor.read_derivation(drv_path) == value
        assert (await executor.path_info(drv_path)).nar_size > 0


@in_loop
async def test_many_at_once_and_one_cancelled(pair: tuple[RunningDaemon, RunningDaemon]) -> None:
    scripts = {f"many{number}": f"echo {number} > $out" for number in range(20)}
    drvs = make(pair[0].root, endless=ENDLESS, **scripts)
    begun = asyncio.Event()

    def listen(event: Event) -> None:
        if isinstance(event, BuildLogLine) and event.line == b"begun":
            begun.set()

    async with remote(pair[0]) as executor:
        executor.subscribe(listen)
        endless = asyncio.create_task(executor.build(drvs["endless"]))
        others = asyncio.gather(*(executor.build(drvs[name]) for name in scripts))
        assert all(result.success for result in await others)
        await asyncio.wait_for(begun.wait(), 30)
        endless.cancel()
        with pytest.raises(asyncio.CancelledError):
            await endless
        deadline = time.monotonic() + 20
        while any(pair[0].root.glob("nix/store/*endless.drv.chroot")):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)
        assert (await executor.build(drvs["many0"])).status is BuildStatus.ALREADY_VALID


@in_loop
async def test_an_exception_of_a_listener_reaches_the_caller(
    pair: tuple[RunningDaemon, RunningDaemon],
) -> None:
    drvs = make(pair[0].root, heard="echo begun; while :; do echo more; done")

    def listen(event: Event) -> None:
        if isinstance(event, BuildLogLine):
            raise ZeroDivisionError

    async with remote(pair[0]) as executor:
        executor.subscribe(listen)
        with pytest.raises(ZeroDivisionError):
            await asyncio.wait_for(executor.build(drvs["heard"]), 30)


@in_loop
async def test_errors_are_errors_of_the_client(
    pair: tuple[RunningDaemon, RunningDaemon], tmp_path: Path
) -> None:
    with pytest.raises(UnreachableError, match="executor daemon"):
        async with RemoteExecutor(store=f"unix://{tmp_path}/nowhere", settings=settings()):
            pass
    with pytest.raises(UsageError, match="names no daemon"):
        RemoteExecutor(store=str(tmp_path))
    assert issubclass(ClientError, ExecutorError)
    nowhere = StorePath("0" * 32, "nowhere.drv")
    async with remote(pair[0]) as executor:
        result = await executor.build(nowhere)
        assert "don't know how to build" in result.message
        with pytest.raises(ExecutorError, match="is not valid"):
            await executor.path_info(nowhere)
        with pytest.raises(ExecutorError, match="is not valid"):
            await executor.copy_from(executor, [nowhere])


@in_loop
async def test_a_damaged_path_is_repaired(pair: tuple[RunningDaemon, RunningDaemon]) -> None:
    drv_path = make(pair[0].root, whole="echo whole > $out")["whole"]
    async with remote(pair[0]) as executor:
        result = await executor.build(drv_path)
        real = pair[0].root / "nix/store" / result.outputs["out"].base_name
        real.chmod(0o644)
        real.write_text("broken")
        assert await executor.repair_path(result.outputs["out"])
        assert real.read_text() == "whole\n"


@in_loop
async def test_closures_are_copied(pair: tuple[RunningDaemon, RunningDaemon]) -> None:
    scripts = {"lower": "echo lower > $out", "upper": "echo {{lower}} > $out"}
    drvs = make(pair[0].root, **scripts)
    async with remote(pair[0]) as one, remote(pair[1]) as other:
        result = await one.build(drvs["upper"])
        assert await other.copy_from(one, [result.outputs["out"]]) == 2
        assert await other.is_valid(result.outputs["out"])
        assert await other.copy_from(one, [result.outputs["out"]]) == 0
        more = make(pair[0].root, unsigned="echo unsigned > $out")
        result = await one.build(more["unsigned"])
        with pytest.raises(RemoteError, match="lacks a signature"):
            await other.copy_from(one, [result.outputs["out"]], check=True)


# The examples.


def example(name: str, *words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run an example as people do."""
    return subprocess.run(
        [sys.executable, "-W", "error", str(ROOT / "examples" / name), *words],
        env={**os.environ, "NIX_CONF_DIR": "/nowhere", "PYTHONPATH": str(ROOT)},
        input=stdin,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_graph_is_fanned_out_over_two_executors(
    pair: tuple[RunningDaemon, RunningDaemon],
) -> None:
    parts = {f"part{number}": f"echo built {number}; echo {number} > $out" for number in range(6)}
    read = "; ".join(f"read x < {{{{{name}}}}}; echo $x >> $out" for name in parts)
    drv_path = make(pair[0].root, **parts, whole=read)["whole"]
    addresses = [f"unix://{daemon.socket_path}" for daemon in pair]
    done = example("fan_out.py", f"/nix/store/{drv_path.base_name}", *addresses)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert pair[0].real(lines[-1]).read_text().split() == list("012345")
    for daemon in pair:
        assert any(f": Built at {daemon.socket_path}" in line for line in lines)
    assert "part3.drv> built 3" in lines
    bad = make(pair[0].root, broken="exit 1", needs="read x < {{broken}}")["needs"]
    done = example("fan_out.py", f"/nix/store/{bad.base_name}", *addresses)
    assert (done.returncode, done.stderr) == (1, "it failed\n")


def test_a_worker_answers_with_records(pair: tuple[RunningDaemon, RunningDaemon]) -> None:
    drvs = make(
        pair[0].root, short="echo hi; echo > $out", failing="echo no; exit 4", long=ENDLESS + " #2"
    )
    stdin = "".join(f"/nix/store/{path.base_name}\n" for path in drvs.values())
    done = example("worker.py", f"unix://{pair[0].socket_path}", "--seconds", "5", stdin=stdin)
    assert done.returncode == 0, done.stderr
    records = {record["drv"]: record for record in map(json.loads, done.stdout.splitlines())}
    assert [records[line]["status"] for line in stdin.split()] == [
        *("Built", "PermanentFailure", "Cancelled"),
    ]
    failing = records[f"/nix/store/{drvs['failing'].base_name}"]
    assert (failing["exitCode"], failing["lastLines"]) == (4, ["no"])
