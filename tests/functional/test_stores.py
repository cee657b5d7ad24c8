"""Stores in odd places, and stores that may not be written to.

Upstream: chroot-store, read-only-store, secure-drv-outputs.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.build.conftest import SYSTEM, Workshop

pytestmark = pytest.mark.root


def run(
    workshop: Workshop, *arguments: str, cwd: Path, **environment: str
) -> subprocess.CompletedProcess[str]:
    """The command line with a store of the test's own choice."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "executor", *arguments],
        env={**workshop.environment(), "PYTHONPATH": ":".join(sys.path), **environment},
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


def simple(text: str = "hello") -> Mapping[str, Any]:
    return {
        "system": SYSTEM,
        "builder": "/bin/sh",
        "args": ["-c", f"echo {text} > $out"],
        "env": {"PATH": "/bin"},
    }


# Ways to say which directory has the store, and the directory.
PLACES = [
    ("./x", "x"),
    ("./x+y", "x+y"),
    ("{here}/x+y", "x+y"),
    ("local?root={here}/x%2By", "x+y"),
    ("local://{here}/x%2By", "x+y"),
    ("local://{here}/x+y", "x+y"),
]


@pytest.mark.parametrize("store_dir", ["/nix/store", "/nix2/store"])
@pytest.mark.parametrize(("store", "place"), PLACES)
def test_a_store_below_a_directory_can_be_built_in(
    workshop: Workshop, store: str, place: str, store_dir: str
) -> None:
    here = workshop.directory
    file = workshop.json_file({"simple": simple()})
    url = store.format(here=here)
    done = run(workshop, "build", "--store", url, str(file), cwd=here, NIX_STORE_DIR=store_dir)
    assert done.returncode == 0, done.stderr
    path = done.stdout.strip()
    assert path.startswith(f"{store_dir}/")
    assert (here / place / "nix/store" / Path(path).name).read_text() == "hello\n"
    asked = run(
        workshop,
        *("query", "--store", url, "--references", path),
        cwd=here,
        NIX_STORE_DIR=store_dir,
    )
    assert (asked.returncode, asked.stdout) == (0, "")


def test_a_store_that_is_read_only_answers_and_takes_nothing(workshop: Workshop) -> None:
    here = workshop.directory
    drv = workshop.make("plain")
    built = workshop.make("built")
    workshop.build(built)
    url = f"{workshop.root}?read-only=true"
    before = workshop.database.read_bytes()
    asked = run(workshop, "query", "--store", url, "--deriver", built.text, cwd=here)
    assert asked.returncode == 0, asked.stderr
    valid = run(workshop, "build", "--store", url, built.text, cwd=here)
    assert (valid.returncode, valid.stdout) == (0, f"{workshop.render(built.out)}\n"), valid.stderr
    (here / "new").write_text("new\n")
    for words in (("build", drv.text), ("add", str(here / "new"))):
        done = run(workshop, words[0], "--store", url, words[1], cwd=here)
        assert done.returncode == 1
        assert done.stderr.startswith("error: ") or "\nerror: " in done.stderr
        assert "read-only" in done.stderr
    assert workshop.database.read_bytes() == before
    assert not workshop.is_valid(drv.out)


def test_a_forged_derivation_that_was_added_as_a_file_steals_nothing(workshop: Workshop) -> None:
    """A derivation whose text claims the output of another one."""
    good = workshop.make("good", "echo good > $out")
    bad = workshop.make("bad", "echo bad > $out")
    forged = workshop.directory / "bad.drv"
    text = workshop.real(bad.path).read_text()
    forged.write_text(text.replace(workshop.render(bad.out), workshop.render(good.out)))
    added = workshop.cli("add", str(forged))
    if added.returncode == 0:
        done = workshop.cli("build", added.stdout.strip())
        assert done.returncode == 1
        assert done.stdout == ""
    assert not workshop.is_valid(good.out)
    assert workshop.cli("build", good.text).returncode == 0
    assert workshop.real(good.out).read_text() == "good\n"
