"""Realising: closures, targets, who builds what at the same time, outputs that are half there.

Upstream: dependencies, build, parallel, build-delete, multiple-outputs.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from executor.build.plan import Target
from executor.build.result import BuildStatus
from tests.build.conftest import Drv, Workshop, fixed
from tests.functional.conftest import forget

pytestmark = pytest.mark.root

_PATIENCE = 60.0


def test_a_closure_holds_what_the_output_names_and_no_more(workshop: Workshop) -> None:
    """Asked through the command line, of the output, of an input, and of the derivation."""
    dropped = workshop.make("dropped")
    kept = workshop.make("kept", "mkdir $out; echo BAR > $out/bar")
    top = workshop.make(
        "top",
        "mkdir $out; cat $dropped_out $kept_out/bar > $out/text; ln -s $kept_out $out/link",
        inputs=[dropped, kept],
    )
    assert workshop.cli("build", top.text).returncode == 0
    assert (workshop.real(top.out) / "text").read_text() == "made\nBAR\n"
    out, input_ = workshop.render(top.out), workshop.render(kept.out)
    assert workshop.cli("query", "-R", out).stdout.split() == sorted([out, input_])
    assert workshop.cli("query", "--referrers", input_).stdout.split() == [out]
    assert workshop.cli("query", "--deriver", out, input_).stdout.split() == [top.text, kept.text]
    of_derivation = workshop.cli("query", "-R", top.text).stdout.split()
    assert of_derivation == sorted(drv.text for drv in (dropped, kept, top))


def test_all_derivers_of_a_path_are_known(workshop: Workshop) -> None:
    """Two derivations with one output; the second finds it valid and is its deriver, too."""
    output = {"out": fixed(b"same\n")}
    first = workshop.make("twin", "echo same > $out", outputs=output)
    second = workshop.make("twin", "exit 1", outputs=output, env={"number": "2"})
    assert first.out == second.out
    workshop.build(first)
    assert workshop.build(second).result.status is BuildStatus.ALREADY_VALID
    with workshop.store() as store:
        assert store.query_derivers(first.out) == {first.path, second.path}
        store.invalidate(second.path)
        assert store.query_derivers(first.out) == {first.path}


@pytest.mark.parametrize("outputs", ["^*out", "^out,*"])
def test_the_star_of_all_outputs_stands_alone(workshop: Workshop, outputs: str) -> None:
    drv = workshop.make("plain")
    done = workshop.cli("build", drv.text + outputs)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert not workshop.is_valid(drv.out)


def mismatching(workshop: Workshop, count: int) -> list[Drv]:
    """Fixed outputs that don't keep their promises."""
    return [
        workshop.make(f"x{number}", f"echo {number} > $out", outputs={"out": fixed(b"other")})
        for number in range(count)
    ]


def errors(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in done.stderr.splitlines() if line.startswith("error:")]


def test_a_failure_is_told_once_and_what_it_cancelled_is_not_told(workshop: Workshop) -> None:
    drvs = mismatching(workshop, 3)
    done = workshop.cli("build", *(drv.text for drv in drvs), "-j1")
    assert done.returncode == 102
    (told,) = errors(done)
    assert told == f"error: hash mismatch in fixed-output derivation '{drvs[0].text}':"


def test_with_keep_going_every_failure_is_told(workshop: Workshop) -> None:
    drvs = mismatching(workshop, 3)
    done = workshop.cli("build", *(drv.text for drv in drvs), "-k")
    assert done.returncode == 102
    expected = [f"error: hash mismatch in fixed-output derivation '{drv.text}':" for drv in drvs]
    assert sorted(errors(done)) == sorted(expected)


def test_a_dependent_of_failures_names_them(workshop: Workshop) -> None:
    drvs = mismatching(workshop, 2)
    top = workshop.make("top", inputs=drvs)
    done = workshop.cli("build", top.text, "-k")
    assert done.returncode == 102
    assert len(errors(done)) == 3
    assert errors(done)[-1] == f"error: Cannot build '{top.text}'."
    assert "       Reason: 2 dependencies failed.\n" in done.stderr
    assert all(f"         {drv.text}\n" in done.stderr for drv in drvs)


def test_a_dependent_does_not_blame_what_was_cancelled(workshop: Workshop) -> None:
    drvs = [workshop.make(f"bad{number}", "exit 1") for number in range(3)]
    top = workshop.make("top", inputs=drvs)
    done = workshop.cli("build", top.text, "-j1")
    assert done.returncode == 100
    assert len(errors(done)) == 2
    assert errors(done)[-1] == f"error: Cannot build '{top.text}'."
    assert "       Reason: 1 dependency failed.\n" in done.stderr


def test_executors_with_one_job_each_share_a_graph(workshop: Workshop, meeting: Path) -> None:
    """Three leaves that wait for each other: somebody who meets a lock goes on to the next."""
    wait = "while [ ! -e /meeting/a -o ! -e /meeting/b -o ! -e /meeting/c ]; do sleep 0.1; done"
    leaves = [
        workshop.make(name, f"touch /meeting/{name}; {wait}; echo {name} > $out") for name in "abc"
    ]
    top = workshop.make("top", "cat $a_out $b_out $c_out > $out", inputs=leaves)
    assert os.listdir(meeting) == []
    command = workshop.command("build", top.text, "-j1")
    environment = {**workshop.environment(), "NIX_CONFIG": configuration(workshop)}
    processes = [
        subprocess.Popen(
            command,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    try:
        ends = [process.communicate(timeout=_PATIENCE) for process in processes]
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.communicate(timeout=_PATIENCE)
    assert [process.returncode for process in processes] == [0, 0, 0], ends
    said = "".join(stderr for _stdout, stderr in ends)
    for drv in (*leaves, top):
        assert said.count(f"building '{drv.text}'...") == 1, said
    assert workshop.real(top.out).read_text() == "a\nb\nc\n"
    assert workshop.leftovers() == []


def configuration(workshop: Workshop) -> str:
    """The settings of the workshop's command line, with sandbox paths that may be written to."""
    text = workshop.environment()["NIX_CONFIG"]
    return "".join(
        line.replace(":ro", "") if line.startswith("sandbox-paths") else line
        for line in text.splitlines(keepends=True)
    )


# Outputs of one derivation, and the one that disappears.
INDEPENDENT = "echo first > $first; echo second > $second"
DEPENDENT = "echo first > $first; echo second > $second; echo $first >> $second"


@pytest.mark.parametrize(
    ("script", "lost"),
    [(INDEPENDENT, "first"), (INDEPENDENT, "second"), (DEPENDENT, "second")],
)
def test_an_input_of_which_one_output_is_gone_is_made_whole(
    workshop: Workshop, script: str, lost: str
) -> None:
    pair = workshop.make("pair", script, outputs=("first", "second"))
    user = workshop.make("user", "busybox head -qn1 $pair_first $pair_second > $out", inputs=[pair])
    assert workshop.build(user).result.success
    forget(workshop, user.out)
    forget(workshop, pair.outputs[lost])
    run = workshop.build(user)
    assert run.started == [pair.path, user.path]
    assert workshop.real(user.out).read_text() == "first\nsecond\n"
    assert workshop.leftovers() == []


def test_an_output_that_is_made_again_has_the_hash_it_had(workshop: Workshop) -> None:
    """While one output is valid, the builder writes to another path, whose name is replaced."""
    pair = workshop.make(
        "pair",
        "mkdir $first $second; echo first > $first/file; ln -s $first $second/link;"
        "echo $first $second > $second/names",
        outputs=("first", "second"),
    )
    workshop.build(pair)
    before = workshop.info(pair.outputs["second"])
    forget(workshop, pair.outputs["second"])
    target = Target(drv_path=pair.path, outputs=frozenset({"second"}))
    assert workshop.build_targets(target).result.status is BuildStatus.BUILT
    again = workshop.info(pair.outputs["second"])
    assert (again.nar_hash, again.references) == (before.nar_hash, before.references)
    second = workshop.real(pair.outputs["second"])
    assert os.readlink(second / "link") == workshop.render(pair.outputs["first"])
    assert workshop.leftovers() == []


def test_only_wanted_outputs_get_roots(workshop: Workshop) -> None:
    drv = workshop.make("pair", INDEPENDENT, outputs=("first", "second"))
    link = workshop.directory / "result"
    done = workshop.cli("build", f"{drv.text}^first", "--add-root", str(link))
    assert done.stdout == f"{workshop.render(drv.outputs['first'])}\n"
    assert [path.name for path in workshop.directory.glob("result*")] == ["result-first"]
