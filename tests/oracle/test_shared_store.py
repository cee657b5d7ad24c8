"""One store for both: what the executor registers, stock Nix takes for its own, and back."""

from __future__ import annotations

import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.oracle.builders import Case, OurExecutor, StockNix
from tests.oracle.conftest import Oracle

pytestmark = [pytest.mark.root, pytest.mark.nix, pytest.mark.timeout(600)]

_QUERIES = ("--references", "--referrers", "--requisites", "--outputs", "--deriver", "--hash")
_GRAPH = """
let
  make = name: script: attributes: derivation ({
    inherit name; system = "x86_64-linux"; builder = "/bin/sh";
    args = [ "-c" "for i in 1 2 3; do echo $i; done; ${script}" ];
  } // attributes);
  leaf = n: make "leaf-${toString n}" "echo leaf ${toString n} > $out" { };
  middle = n: make "middle-${toString n}" "echo $x $y > $out; echo dev > $dev" {
    outputs = [ "out" "dev" ]; x = leaf n; y = leaf (n + 1);
  };
in builtins.genList (n: make "top-${toString n}" "echo $x $y > $out" {
  x = middle n; y = (middle (n + 1)).dev;
}) 12
"""
# 12 at the top, 13 in the middle, 14 leaves.
_SIZE = 39


def successes(oracle: Oracle) -> list[Case]:
    """The cases that both built."""
    return [
        case
        for name, case in oracle.cases.items()
        if oracle.by_nix[name]["exit_code"] == oracle.by_executor[name]["exit_code"] == 0
    ]


def test_nix_finds_no_fault_with_the_executors_store(oracle: Oracle) -> None:
    nix = StockNix(oracle.executor.root)
    done = nix.run("nix-store", "--verify", "--check-contents")
    assert _complaints(done.stderr) == []


def test_the_executor_finds_no_fault_with_the_store_of_nix(oracle: Oracle) -> None:
    done = OurExecutor(oracle.nix.root).run("verify", "--check-contents")
    assert done.stdout == ""
    assert _complaints(done.stderr) == []


def test_nix_finds_everything_built(oracle: Oracle) -> None:
    drvs = [case.drv for case in successes(oracle)]
    done = StockNix(oracle.executor.root).run("nix-store", "--realise", *drvs)
    assert "building" not in done.stderr
    assert len(done.stdout.split()) >= len(drvs)


def test_the_executor_finds_everything_built_by_nix(oracle: Oracle) -> None:
    drvs = [case.drv for case in successes(oracle)]
    done = OurExecutor(oracle.nix.root).run("build", *drvs)
    assert "all outputs are already valid" in done.stderr
    paths = StockNix(oracle.nix.root).run("nix-store", "--realise", *drvs).stdout.split()
    assert done.stdout.split() == paths


@pytest.mark.parametrize("query", _QUERIES)
def test_answers_agree(oracle: Oracle, query: str) -> None:
    """Asked of the derivation for ``--outputs``, of everything that it needs for the others."""
    nix = StockNix(oracle.executor.root)
    for name in (
        "D7-chain",
        "O4-references",
        "O5-outputs-refer-to-each-other",
        "D3-several-outputs",
    ):
        drv = oracle.cases[name].drv
        outputs = sorted(oracle.by_executor[name]["outputs"])
        for path in [drv] if query == "--outputs" else [drv, *outputs]:
            theirs = nix.run("nix-store", "--query", query, path).stdout.split()
            ours = oracle.executor.run("query", query, path).stdout.split()
            assert sorted(ours) == sorted(theirs), f"{query} of {path}"


def test_logs_are_read_by_both(oracle: Oracle) -> None:
    drv = oracle.cases["R4-long-log-is-kept"].drv
    expected = "".join(f"line {number}\n" for number in range(1, 61))
    assert oracle.executor.run("log", drv).stdout == expected
    assert StockNix(oracle.executor.root).run("nix-store", "--read-log", drv).stdout == expected
    assert OurExecutor(oracle.nix.root).run("log", drv).stdout == expected


def test_both_build_one_graph_in_one_store_at_once(
    fresh: tuple[StockNix, OurExecutor],
) -> None:
    nix, executor = fresh
    drvs = nix.run("nix-instantiate", "-E", _GRAPH).stdout.split()
    assert len(drvs) == 12
    drvs = [drv.split("!")[0] for drv in drvs]
    with ThreadPoolExecutor(2) as pool:
        theirs = pool.submit(nix.run, "nix-store", "--realise", "-j2", *drvs)
        ours = pool.submit(executor.run, "build", "-j2", *reversed(drvs))
        outcome, own = theirs.result(timeout=300), ours.result(timeout=300)
    assert sorted(outcome.stdout.split()) == sorted(own.stdout.split())
    _each_was_built_once(outcome, own)
    assert _complaints(nix.run("nix-store", "--verify", "--check-contents").stderr) == []
    assert not list(nix.root.glob("nix/store/*.lock"))
    assert not list(nix.root.glob("nix/store/*.chroot"))


def _each_was_built_once(*runs: subprocess.CompletedProcess[str]) -> None:
    """Whoever gets the locks second finds the outputs valid, and doesn't say that it builds."""
    lines = [line for run in runs for line in run.stderr.splitlines()]
    built = [line for line in lines if line.startswith("building")]
    assert len(built) == len(set(built)) == _SIZE
    assert not [line for line in lines if line.startswith("error")]


def _complaints(text: str) -> list[str]:
    """What ``--verify`` says beyond telling that it is at work."""
    working = (
        "reading the ",
        "checking path existence",
        "checking link hashes",
        "checking store hashes",
    )
    lines = [line for line in text.splitlines() if not line.startswith(working)]
    return [line for line in lines if line.strip()]


def test_a_path_added_by_one_is_known_to_the_other(
    fresh: tuple[StockNix, OurExecutor], tmp_path: Path
) -> None:
    nix, executor = fresh
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "file").write_text("text\n")
    (tree / "link").symlink_to("file")
    by_nix = nix.run("nix-store", "--add", str(tree)).stdout
    assert executor.run("add", str(tree)).stdout == by_nix
    (tree / "file").write_text("changed\n")
    by_executor = executor.run("add", str(tree)).stdout
    assert by_executor != by_nix
    assert nix.run("nix-store", "--add", str(tree)).stdout == by_executor
    assert _complaints(nix.run("nix-store", "--verify", "--check-contents").stderr) == []
