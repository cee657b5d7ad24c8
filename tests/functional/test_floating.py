"""Content-addressed, impure and dynamic derivations: at once, over garbage, out of caches.

Upstream: ca/*, impure-derivations, dyn-drv/*.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from executor.api import Executor
from executor.build.plan import Target
from executor.build.result import BuildResult, BuildStatus
from executor.derivation import FloatingOutput
from executor.formats.content_address import IngestionMethod
from executor.formats.hashes import HashAlgorithm
from executor.store.collect import CollectOptions
from tests.build.conftest import Drv, Workshop
from tests.build.test_engine_substitution import Far
from tests.functional.conftest import forget
from tests.functional.conftest import meeting as meeting
from tests.functional.conftest import workshop as workshop

pytestmark = pytest.mark.root

FEATURES = frozenset({"ca-derivations", "dynamic-derivations", "impure-derivations"})
NAR = FloatingOutput(IngestionMethod.NAR, HashAlgorithm.SHA256)
ONE, TWO = {"out": NAR}, {"out": NAR, "dev": NAR}


@pytest.fixture(autouse=True)
def features(workshop: Workshop) -> None:
    workshop.change(experimental_features=FEATURES)


def test_runs_at_once_build_each_floating_output_once(workshop: Workshop, meeting: Path) -> None:
    racy = workshop.make("racy", "echo once >> /meeting/log; sleep 0.5; echo x > $out", outputs=ONE)
    users = [
        workshop.make(f"user-{number}", "cat $racy_out > $out", inputs=[racy]) for number in (1, 2)
    ]

    async def build(executor: Executor) -> list[BuildResult]:
        import asyncio

        found = await asyncio.gather(*(executor.build(drv.path) for drv in (*users, racy)))
        async with Executor(store=str(workshop.root), settings=workshop.settings) as other:
            return [*found, await other.build(racy.path)]

    results = workshop.run(build)
    assert all(result.success for result in results)
    assert (meeting / "log").read_text() == "once\n"


@pytest.mark.parametrize("garbage", ["file", "directory"])
def test_garbage_at_the_true_path_gives_way(workshop: Workshop, garbage: str) -> None:
    drv = workshop.make("floating", outputs=ONE)
    path = workshop.build(drv).result.outputs["out"]
    forget(workshop, path)
    if garbage == "file":
        workshop.real(path).touch()
    else:
        (workshop.real(path) / "deep").mkdir(parents=True)
    result = workshop.build(drv).result
    assert result.outputs == {"out": path}, result.message
    assert workshop.real(path).read_text() == "made\n"
    inode = workshop.real(path).stat().st_ino
    twin = workshop.make("floating", outputs=ONE, env={"seed": "2"})
    assert workshop.build(twin).result.outputs == {"out": path}
    assert workshop.real(path).stat().st_ino == inode


def test_a_plan_names_what_is_not_known_yet(workshop: Workshop) -> None:
    floating = workshop.make("floating", outputs=ONE)
    user = workshop.make("user", "cat $floating_out > $out", inputs=[floating], outputs=ONE)
    words = ("--extra-experimental-features", "ca-derivations")
    planned = workshop.cli("build", user.text, "--dry-run", *words)
    assert planned.stderr.startswith("these 2 derivations will be built:\n")
    assert workshop.build(user).result.success
    assert workshop.cli("build", user.text, "--dry-run", *words).stderr == (
        "all outputs are already valid\n"
    )


def test_one_of_several_outputs_is_fetched_without_the_others(
    workshop: Workshop, tmp_path: Path
) -> None:
    """What depends on a floating derivation is asked for, of which nobody needs an output."""
    far = Far(tmp_path / "far")
    far.workshop.change(experimental_features=FEATURES)

    def make(where: Workshop) -> Drv:
        base = where.make("a", "echo a > $out; echo dev > $dev", outputs=TWO)
        return where.make(
            "more", "cat $a_out > $out; echo second > $dev", outputs=TWO, inputs=[base]
        )

    far.publish(make(far.workshop))
    top = make(workshop)
    workshop.change(substituters=(f"file://{far.cache}",), require_sigs=False, max_jobs=0)
    run = workshop.build_targets(Target(drv_path=top.path, outputs=frozenset({"out"})))
    assert run.result.status is BuildStatus.SUBSTITUTED, run.result.message
    names = {path.name for path in workshop.store().query_all_valid()}
    assert "more" in names
    assert "more-dev" not in names


def test_a_realisation_that_is_known_wins_over_one_from_afar(
    workshop: Workshop, tmp_path: Path
) -> None:
    """Two builds of one derivation that differ; who needs both gets one that fits together."""
    far = Far(tmp_path / "far")
    far.workshop.change(experimental_features=FEATURES)

    def make(where: Workshop) -> tuple[Drv, Drv, Drv]:
        first = where.make("first", "cat /proc/uptime > $out", outputs=ONE)
        left = where.make("left", "cat $first_out > $out; echo l >> $out", inputs=[first])
        right = where.make("right", "cat $first_out > $out", inputs=[first])
        return first, left, right

    _, left, _ = make(far.workshop)
    far.publish(left)
    first, left, right = make(workshop)
    mine = workshop.build(first).result.outputs["out"]
    workshop.change(substituters=(f"file://{far.cache}",), require_sigs=False)
    run = workshop.build(left, right)
    assert all(result.success for result in run.results)
    with workshop.store() as store:
        (realised,) = store.realisations.of_paths([mine])
        assert realised.path == mine


def test_a_collector_takes_outputs_and_leaves_what_is_needed(workshop: Workshop) -> None:
    floating = workshop.make("floating", "mkdir $out; ln -s $out/x $out/y", outputs=ONE)
    user = workshop.make("user", "ln -s $floating_out $out", outputs=ONE, inputs=[floating])
    result = workshop.build(user).result
    link = workshop.directory / "root-link"
    with workshop.store() as store:
        store.add_permanent_root(str(link), result.outputs["out"])
    with workshop.store() as store:
        store.collect_garbage(CollectOptions())
        names = {path.name for path in store.query_all_valid() if not path.is_derivation}
        assert names == {"floating", "user"}
        link.unlink()
        store.collect_garbage(CollectOptions())
        assert store.query_all_valid() == set()
        assert store.realisations.of_paths(result.outputs.values()) == []
    assert workshop.leftovers() == []


def test_a_failed_outer_derivation_is_named(workshop: Workshop) -> None:
    text = {"out": FloatingOutput(IngestionMethod.TEXT, HashAlgorithm.SHA256)}
    producer = workshop.make("inner.drv", "exit 1", outputs=text)
    target: Any = Target(drv_path=producer.path, through=("out",))
    run = workshop.build_targets(target)
    assert run.result.status is BuildStatus.DEPENDENCY_FAILED
    assert "failed to obtain derivation of '" in run.result.message
    words = ("--extra-experimental-features", "ca-derivations dynamic-derivations")
    done = workshop.cli("build", f"{producer.text}^out^out", *words)
    assert done.returncode == 100
