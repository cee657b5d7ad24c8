"""The Python API: entering, results, values as derivations, errors."""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from executor.api import BuildResult, BuildStatus, Executor, FailureCause, StorePath, Target
from executor.build.events import Event
from executor.derivation import DeferredOutput, Derivation, DerivationKind
from executor.derivation_hash import ModuloHasher, fill_outputs
from executor.errors import ConfigError, FormatError, UsageError
from executor.store.log_files import read_log
from tests.build.conftest import SYSTEM, Drv, Run, Workshop

pytestmark = pytest.mark.root

SECONDS = 60


def derivation(name: str = "value") -> Derivation:
    """A derivation that is in no store yet; its output path is not filled in."""
    return Derivation(
        name=name,
        outputs={"out": DeferredOutput()},
        input_drvs={},
        input_srcs=frozenset(),
        platform=SYSTEM,
        builder=b"/bin/sh",
        args=(b"-c", b"echo value > $out"),
        env={},
    )


@pytest.mark.parametrize("form", ["text", "path", "value"])
def test_a_derivation_may_be_given_as(workshop: Workshop, form: str) -> None:
    drv = workshop.write(derivation())
    with workshop.store() as store:
        value = store.read_derivation(drv.path)
    given: dict[str, str | StorePath | Derivation] = {
        "text": drv.text,
        "path": drv.path,
        "value": value,
    }

    async def go(executor: Executor) -> BuildResult:
        return await executor.build(given[form])

    result = workshop.run(go)
    assert result.status is BuildStatus.BUILT
    assert result.drv_path == drv.path
    assert workshop.real(drv.out).read_text() == "value\n"


def test_a_value_is_written_to_the_store(workshop: Workshop) -> None:
    drv = workshop.write(derivation())
    other = derivation("other")

    async def go(executor: Executor) -> StorePath:
        filled = fill_outputs(other, ModuloHasher(lambda _path: other, workshop.location.store_dir))
        assert filled.kind is DerivationKind.INPUT_ADDRESSED
        return await executor.write_derivation(filled)

    path = workshop.run(go)
    assert path.name == "other.drv"
    assert path != drv.path
    assert workshop.is_valid(path)


def test_a_value_is_built_without_being_written(workshop: Workshop) -> None:
    """Its inputs are in the store, itself isn't."""
    base = workshop.make("base")
    with workshop.store() as store:
        value = replace(
            derivation("memory"),
            input_drvs={base.path: base.names},
            args=(b"-c", b"/bin/cat $base > $out"),
            env={b"base": workshop.render(base.out).encode()},
        )
        filled = fill_outputs(value, store.modulo_hasher)
    run = Run()

    async def go(executor: Executor) -> BuildResult:
        first = await executor.build(filled, store_derivation=False)
        again = await executor.build(filled, outputs=["out"], store_derivation=False)
        assert again.status is BuildStatus.ALREADY_VALID
        return first

    result = workshop.run(go, run)
    assert result.status is BuildStatus.BUILT, result.message
    assert workshop.real(result.outputs["out"]).read_text() == "made\n"
    assert not workshop.is_valid(result.drv_path)
    assert workshop.info(result.outputs["out"]).deriver == result.drv_path
    assert len(run.started) == 2


def test_results_of_a_success(workshop: Workshop) -> None:
    script = "i=0; while [ $i -lt 60000 ]; do i=$((i+1)); done; sleep 0.3; echo done; echo > $out"
    drv = workshop.make("facts", script)
    before = time.time()
    run = workshop.build(drv)
    after = time.time()
    result = run.result
    assert result.success
    assert result.drv_path == drv.path
    assert dict(result.outputs) == dict(drv.outputs)
    assert before <= result.start_time <= result.stop_time - 0.3 <= after
    assert result.cpu_user is not None
    assert result.cpu_system is not None
    # The loop takes some milliseconds of processor, and sleeping takes none.
    assert 1_000 < result.cpu_user + result.cpu_system < (after - before - 0.25) * 1e6 * 2
    assert (result.exit_code, result.signal, result.cause) == (0, None, None)
    assert result.message == ""
    assert result.log_tail == (b"done",)
    assert result.kept_build_directory is None
    assert result.log_path is not None
    assert Path(result.log_path).stat().st_size > 0
    assert read_log(workshop.location.log_dir, drv.path) == b"done\n"


def test_results_of_what_needs_no_build(workshop: Workshop) -> None:
    drv = workshop.make("valid")
    workshop.build(drv)
    result = workshop.build(drv).result
    assert result == BuildResult(
        drv_path=drv.path, status=BuildStatus.ALREADY_VALID, outputs=dict(drv.outputs)
    )
    assert (result.start_time, result.cpu_user, result.log_path) == (0, None, None)


def test_results_of_a_dependent_say_that_nothing_ran(workshop: Workshop) -> None:
    bad = workshop.make("bad", "exit 1")
    result = workshop.build(workshop.make("top", inputs=[bad]), keep_going=True).result
    assert result.cause is FailureCause.DEPENDENCY
    assert (result.start_time, result.exit_code, result.log_path) == (0, None, None)


def test_one_executor_builds_many_times_and_at_once(workshop: Workshop) -> None:
    drvs = [workshop.make(f"n{number}") for number in range(6)]
    run = Run()

    async def go(executor: Executor) -> list[BuildResult]:
        first = await executor.build(drvs[0].path)
        return [first, *await asyncio.gather(*(executor.build(drv.path) for drv in drvs))]

    results = workshop.run(go, run, max_jobs=3)
    assert [result.status for result in results[:2]] == [
        BuildStatus.BUILT,
        BuildStatus.ALREADY_VALID,
    ]
    assert all(result.success for result in results)
    assert sorted(run.started) == sorted(drv.path for drv in drvs)


def test_one_derivation_may_be_asked_for_twice_at_once(workshop: Workshop) -> None:
    drv = workshop.make("wanted", "sleep 0.3; echo > $out")
    run = Run()

    async def go(executor: Executor) -> list[BuildResult]:
        return await asyncio.gather(*(executor.build(drv.path) for _ in range(3)))

    results = workshop.run(go, run, max_jobs=3)
    assert sorted(result.status for result in results) == [
        BuildStatus.BUILT,
        BuildStatus.ALREADY_VALID,
        BuildStatus.ALREADY_VALID,
    ]
    assert run.started == [drv.path]


def test_wanted_outputs_must_exist(workshop: Workshop) -> None:
    drv = workshop.make("plain")

    async def go(executor: Executor) -> list[FailureCause | None]:
        return [
            (await executor.build(drv.path, outputs=outputs)).cause
            for outputs in (["lib"], ["out"])
        ]

    assert workshop.run(go) == [FailureCause.INPUT, None]


def test_a_plan_tells_what_would_be_built(workshop: Workshop) -> None:
    base = workshop.make("base")
    top = workshop.make("top", inputs=[base])

    async def go(executor: Executor) -> tuple[StorePath, ...]:
        return (await executor.plan([Target(drv_path=top.path)])).to_build

    assert set(workshop.run(go)) == {base.path, top.path}
    workshop.build(base)
    assert workshop.run(go) == (top.path,)
    workshop.build(top)
    assert workshop.run(go) == ()


def test_listeners_hear_of_what_happens_after_they_subscribed(workshop: Workshop) -> None:
    first, second = workshop.make("first"), workshop.make("second")
    heard: list[Event] = []

    async def go(executor: Executor) -> None:
        await executor.build(first.path)
        executor.subscribe(heard.append)
        await executor.build(second.path)

    workshop.run(go)
    assert Run(events=heard).started == [second.path]


@pytest.mark.parametrize("text", ["", "hello.drv", "/nix/store", "/elsewhere/x.drv"])
def test_a_path_that_is_none_is_an_error(workshop: Workshop, text: str) -> None:
    async def go(executor: Executor) -> BuildResult:
        return await executor.build(text)

    with pytest.raises(FormatError):
        workshop.run(go)


def test_an_output_path_is_no_derivation(workshop: Workshop) -> None:
    path = workshop.source("text", b"hello")
    result = workshop.build(Drv(path, "", {}, frozenset())).result
    assert result.cause is FailureCause.INPUT
    assert "is not a derivation" in result.message


@pytest.mark.parametrize("store", ["daemon", "https://cache.example.org", "nonsense"])
def test_a_store_that_is_not_of_this_machine_is_an_error(store: str) -> None:
    with pytest.raises(ConfigError, match=store):
        Executor(store=store)


def test_an_executor_must_be_entered(workshop: Workshop) -> None:
    executor = Executor(store=str(workshop.root), settings=workshop.settings)
    with pytest.raises(RuntimeError, match="not entered"):
        asyncio.run(executor.build(workshop.make("plain").path))


def test_settings_that_make_no_sense_fail_on_entering(workshop: Workshop) -> None:
    with pytest.raises(ConfigError):
        workshop.build(workshop.make("plain"), start_id=0, id_count=1)


def test_max_jobs_overrides_the_setting(workshop: Workshop) -> None:
    executor = Executor(store=str(workshop.root), settings=workshop.settings, max_jobs=7)
    assert executor.settings.max_jobs == 7
    assert workshop.settings.max_jobs != 7


def test_somebody_else_than_root_is_told_to_be_root(tmp_path: Path) -> None:
    """In a child, which is the only way to have other ids for a moment."""

    async def enter() -> None:
        async with Executor(store=str(tmp_path / "store")):
            pass

    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setresuid(65534, 65534, 65534)
            asyncio.run(enter())
            os.write(write_end, b"entered")
        except UsageError as error:
            os.write(write_end, str(error).encode())
        finally:
            os._exit(0)
    os.close(write_end)
    with open(read_end, "rb") as pipe:
        said = pipe.read().decode()
    os.waitpid(child, 0)
    assert said == "building needs root; run this as root, for example with sudo"
    assert not (tmp_path / "store").exists()


def test_importing_the_api_starts_nothing(workshop: Workshop) -> None:
    """A program may make an executor and never enter it."""
    before = len(os.listdir("/proc/self/fd"))
    Executor(store=str(workshop.root), settings=workshop.settings)
    assert len(os.listdir("/proc/self/fd")) == before
    assert not workshop.root.exists()
