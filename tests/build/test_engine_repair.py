"""Repairing: outputs whose files went bad or away, and what they refer to (row M3)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from executor.api import Executor
from executor.build.plan import Target
from executor.build.result import BuildResult, BuildStatus
from executor.store.tree import delete_tree
from tests.build.conftest import Drv, Run, Workshop
from tests.build.conftest import workshop as workshop

pytestmark = pytest.mark.root


def repair(workshop: Workshop, drv: Drv) -> Run:
    run = Run()

    async def go(executor: Executor) -> list[BuildResult]:
        return await executor.build_all([Target(drv_path=drv.path)], repair=True)

    run.results = workshop.run(go, run)
    return run


def spoil(path: Path) -> None:
    """Other contents in the same file, as a bad disk would leave them."""
    os.chmod(path, 0o644)
    path.write_text("spoilt")
    os.chmod(path, 0o444)


def remove(workshop: Workshop, drv: Drv) -> None:
    descriptor = os.open(workshop.location.real_store_dir, os.O_RDONLY | os.O_DIRECTORY)
    try:
        delete_tree(descriptor, os.fsencode(drv.out.base_name))
    finally:
        os.close(descriptor)


def sound(workshop: Workshop) -> bool:
    with workshop.store() as store:
        return store.verify(check_contents=True) == []


def test_what_is_good_is_left_alone(workshop: Workshop) -> None:
    drv = workshop.make("good")
    workshop.build(drv)
    run = repair(workshop, drv)
    assert run.result.status is BuildStatus.ALREADY_VALID
    assert run.started == []


def test_an_output_with_bad_contents_is_built_again(workshop: Workshop) -> None:
    drv = workshop.make("bad")
    workshop.build(drv)
    before = workshop.info(drv.out)
    spoil(workshop.real(drv.out))
    assert not sound(workshop)
    assert workshop.build(drv).started == []
    assert repair(workshop, drv).started == [drv.path]
    assert workshop.real(drv.out).read_text() == "made\n"
    assert workshop.info(drv.out) == before
    assert sound(workshop)
    assert workshop.leftovers() == []


def test_an_output_that_is_gone_is_built_again(workshop: Workshop) -> None:
    drv = workshop.make("gone")
    workshop.build(drv)
    remove(workshop, drv)
    assert repair(workshop, drv).result.success
    assert sound(workshop)


def test_only_the_bad_output_of_several_is_replaced(workshop: Workshop) -> None:
    script = "echo $dev > $out; head -c 8 /dev/urandom > $dev"
    drv = workshop.make("two", script, outputs=("out", "dev"))
    workshop.build(drv)
    changing = workshop.real(drv.outputs["dev"]).read_bytes()
    spoil(workshop.real(drv.out))
    assert repair(workshop, drv).result.success
    assert workshop.real(drv.outputs["dev"]).read_bytes() == changing
    assert sound(workshop)


def test_the_closure_is_repaired_too(workshop: Workshop) -> None:
    base = workshop.make("base")
    middle = workshop.make("middle", "ln -s $base_out $out", inputs=[base])
    top = workshop.make("top", "ln -s $middle_out $out", inputs=[middle])
    workshop.build(top)
    spoil(workshop.real(base.out))
    run = repair(workshop, top)
    assert run.result.success
    assert run.started == [base.path]
    assert sound(workshop)
    texts = [event.text for event in run.events if hasattr(event, "text")]
    assert any("found corrupted or missing path" in text for text in texts)


def test_inputs_of_what_is_built_again_are_repaired_first(workshop: Workshop) -> None:
    base = workshop.make("base")
    top = workshop.make("top", "cat $base_out > $out", inputs=[base])
    workshop.build(top)
    for drv in (base, top):
        spoil(workshop.real(drv.out))
    assert repair(workshop, top).started == [base.path, top.path]
    assert workshop.real(top.out).read_text() == "made\n"
    assert sound(workshop)


def test_a_bad_path_that_nobody_can_make_is_told(workshop: Workshop) -> None:
    source = workshop.source("source", b"precious")
    drv = workshop.make("user", f"ln -s {workshop.render(source)} $out", sources=[source])
    workshop.build(drv)
    spoil(workshop.real(source))
    result = repair(workshop, drv).result
    assert not result.success
    assert "could not be repaired" in result.message


def test_the_command_line_repairs(workshop: Workshop) -> None:
    drv = workshop.make("bad")
    workshop.build(drv)
    spoil(workshop.real(drv.out))
    assert workshop.cli("build", drv.text).returncode == 0
    assert workshop.real(drv.out).read_text() == "spoilt"
    done = workshop.cli("build", drv.text, "--repair")
    assert (done.returncode, done.stdout) == (0, f"{workshop.render(drv.out)}\n")
    assert workshop.real(drv.out).read_text() == "made\n"


def test_verify_repairs_what_it_finds(workshop: Workshop) -> None:
    input_ = workshop.make("input")
    top = workshop.make("top", "echo $input_out > $out", inputs=[input_])
    assert workshop.build(top).result.success
    workshop.real(input_.out).unlink()
    workshop.real(top.out).chmod(0o644)
    workshop.real(top.out).write_text("damaged\n")
    assert workshop.cli("verify", "--check-contents").returncode == 1
    done = workshop.cli("verify", "--check-contents", "--repair")
    assert done.returncode == 0, done.stderr
    assert workshop.real(input_.out).read_text() == "made\n"
    assert workshop.cli("verify", "--check-contents").returncode == 0
    source = workshop.source("text", b"a source\n")
    workshop.real(source).chmod(0o644)
    workshop.real(source).write_text("changed\n")
    done = workshop.cli("verify", "--check-contents", "--repair")
    assert done.returncode == 1
    assert f"path '{workshop.render(source)}' could not be repaired" in done.stderr
