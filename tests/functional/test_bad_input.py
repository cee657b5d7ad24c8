"""What is wrong with a store or a derivation is told by name; the rest of the graph is built."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest

from executor.build.plan import Target
from executor.build.result import BuildResult, BuildStatus
from executor.derivation import InputAddressed, unparse_derivation
from executor.formats.store_path import StorePath
from tests.build.conftest import Drv, Workshop
from tests.functional.conftest import workshop as workshop

pytestmark = pytest.mark.root


def with_a_sound_one(workshop: Workshop, *drvs: Drv) -> dict[StorePath, BuildResult]:
    """Build with keep-going, beside a derivation that nothing is wrong with."""
    sound = workshop.make("sound")
    run = workshop.build(*drvs, sound, keep_going=True)
    assert run.results[-1].status is BuildStatus.BUILT
    return run.finished


def test_a_lock_file_that_is_a_link(workshop: Workshop) -> None:
    victim = workshop.directory / "victim"
    victim.write_text("precious")
    drv = workshop.make("locked")
    lock = workshop.real(drv.out).with_name(f"{drv.out.base_name}.lock")
    lock.symlink_to(victim)
    result = with_a_sound_one(workshop, drv)[drv.path]
    assert result.status is BuildStatus.MISC_FAILURE
    assert str(lock) in result.message
    assert victim.read_text() == "precious"


@pytest.mark.parametrize("what", ["output", "source"])
def test_a_valid_path_that_is_missing(workshop: Workshop, what: str) -> None:
    """It is in the database and not on the disk."""
    input_ = workshop.make("input")
    workshop.build(input_)
    source = workshop.source("text", b"a source\n")
    drv = workshop.make(
        "user", f"cat $input_out {workshop.render(source)}", inputs=[input_], sources=[source]
    )
    gone = input_.out if what == "output" else source
    workshop.real(gone).unlink()
    result = with_a_sound_one(workshop, drv)[drv.path]
    assert result.status is BuildStatus.MISC_FAILURE
    assert gone.base_name in result.message
    assert workshop.leftovers() == []


def test_a_path_of_the_closure_that_is_missing(workshop: Workshop) -> None:
    deep = workshop.make("deep")
    middle = workshop.make("middle", "echo $deep_out > $out", inputs=[deep])
    assert workshop.build(middle).result.success
    workshop.real(deep.out).unlink()
    drv = workshop.make("user", "cat $middle_out > $out", inputs=[middle])
    result = with_a_sound_one(workshop, drv)[drv.path]
    assert deep.out.base_name in result.message


def test_a_derivation_that_claims_the_output_of_another(workshop: Workshop) -> None:
    """Its path can't have been computed from it, so it never comes to be built."""
    honest = workshop.make("honest")
    with workshop.store() as store:
        derivation = store.read_derivation(honest.path)
    outputs = {"out": InputAddressed(honest.out)}
    forged = replace(derivation, args=(b"-c", b"echo forged > $out"), outputs=outputs)
    text = unparse_derivation(forged, workshop.location.store_dir)
    path = workshop.location.store_dir.parse(f"/nix/store/{'0' * 32}-honest.drv")
    workshop.real(path).write_bytes(text)
    sound = workshop.make("sound")
    targets = [Target(drv_path=drv) for drv in (path, honest.path, sound.path)]
    run = workshop.build_targets(*targets, keep_going=True)
    assert not run.results[0].success
    assert path.base_name in run.results[0].message
    assert [result.status for result in run.results[1:]] == [BuildStatus.BUILT] * 2
    assert workshop.real(honest.out).read_text() == "made\n"


def test_a_database_that_is_gone_is_an_error_and_nothing_is_lost(workshop: Workshop) -> None:
    drv = workshop.make("drv")
    workshop.build(drv)
    shutil.rmtree(workshop.database.parent)
    done = workshop.cli("build", drv.text)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert workshop.real(drv.out).exists()
