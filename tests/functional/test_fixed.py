"""Fixed outputs that meet at one path. Upstream: fixed, fixed-slow-vs-bad."""

from __future__ import annotations

from pathlib import Path

import pytest

from executor.build.result import BuildStatus
from tests.build.conftest import FOREVER, SLEEPING, Workshop, fixed, processes_with

pytestmark = pytest.mark.root


def test_two_derivations_of_one_path_are_not_built_at_once(
    workshop: Workshop, meeting: Path
) -> None:
    """The second of them finds it valid."""
    script = "echo run >> /meeting/runs; sleep 0.5; echo same > $out"
    outputs = {"out": fixed(b"same\n")}
    drvs = [
        workshop.make("same", script, outputs=outputs, env={"dummy": word})
        for word in ("foo", "bar")
    ]
    assert drvs[0].path != drvs[1].path
    assert drvs[0].out == drvs[1].out
    run = workshop.build(*drvs, max_jobs=2)
    assert sorted(result.status for result in run.results) == [
        BuildStatus.BUILT,
        BuildStatus.ALREADY_VALID,
    ]
    assert (meeting / "runs").read_text() == "run\n"
    assert workshop.leftovers() == []


def test_a_recursive_fixed_output_has_the_path_of_an_added_tree(workshop: Workshop) -> None:
    tree = workshop.directory / "fixed"
    (tree / "bla").mkdir(parents=True)
    (tree / "foo").write_text("Hello World!\n")
    (tree / "bar").symlink_to("foo")
    added = workshop.cli("add", str(tree)).stdout.strip()
    content = workshop.cli("query", "--hash", added).stdout.strip()
    file = workshop.json_file(
        {
            "fixed": {
                "system": "x86_64-linux",
                "builder": "/bin/sh",
                "args": [
                    "-c",
                    "mkdir -p $out/bla; echo Hello World! > $out/foo; ln -s foo $out/bar",
                ],
                "env": {"PATH": "/bin"},
                "outputs": {"out": {"method": "nar", "hash": content}},
            }
        }
    )
    done = workshop.cli("build", str(file))
    assert (done.returncode, done.stdout.strip()) == (0, added), done.stderr


def test_a_wrong_output_does_not_wait_for_a_slow_one_at_its_true_path(
    workshop: Workshop, meeting: Path
) -> None:
    """``bad`` makes what ``slow`` has promised and still builds; its failure ends the run."""
    slow = workshop.make(
        "fixed", f"touch /meeting/ready; {FOREVER}", outputs={"out": fixed(b"fixed")}
    )
    bad = workshop.make(
        "fixed",
        "while [ ! -e /meeting/ready ]; do sleep 0.1; done; echo -n fixed > $out",
        outputs={"out": fixed(b"wrong")},
    )
    run = workshop.build(slow, bad, max_jobs=2, timeout=10)
    assert run.results[1].status is BuildStatus.HASH_MISMATCH
    assert run.results[0].status is BuildStatus.CANCELLED
    assert processes_with(SLEEPING) == []
    assert workshop.leftovers() == []


def test_a_wrong_hash_keeps_what_was_made_even_if_that_is_there_already(
    workshop: Workshop,
) -> None:
    right = workshop.make("fixed", "echo x > $out", outputs={"out": fixed(b"x\n")})
    wrong = workshop.make("fixed", "echo x > $out", outputs={"out": fixed(b"y\n")})
    workshop.build(right)
    before = workshop.real(right.out).stat().st_ino
    assert workshop.build(wrong).result.status is BuildStatus.HASH_MISMATCH
    assert workshop.real(right.out).stat().st_ino == before
    assert workshop.leftovers() == []
