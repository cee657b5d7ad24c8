"""Collectors that never stop, beside builds that never stop: nothing that is used is deleted."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from executor.api import Executor
from executor.build.result import BuildResult, BuildStatus
from executor.derivation import FloatingOutput
from executor.formats.content_address import IngestionMethod
from executor.formats.hashes import HashAlgorithm
from executor.store.collect import CollectAction, CollectOptions
from executor.store.local import LocalStore
from executor.store.location import parse_store_url
from tests.build.conftest import Workshop
from tests.build.conftest import workshop as workshop
from tests.oracle.builders import OurExecutor, StockNix

pytestmark = [pytest.mark.root, pytest.mark.timeout(240)]

SECONDS = 12.0
# Each reads all that it refers to; the number makes the paths those of this run alone. One output
# each: Nix 2.8 fails to build what needs an output where only another one of its maker is valid.
_GRAPH = """
let
  make = name: script: attributes: derivation ({
    name = "${name}-@tag@"; system = "x86_64-linux"; builder = "/bin/sh";
    args = [ "-ec" "${script}" ];
  } // attributes);
  busybox = "/bin/busybox";
  leaf = n: make "leaf-${toString n}" "${busybox} mkdir $out; echo leaf > $out/file" { };
  middle = n: make "middle-${toString n}" ''
    for i in 1 2 3 4 5; do ${busybox} cat $x/file $y/file > $out; done; echo $x >> $out
  '' { x = leaf n; y = leaf (n + 1); };
in builtins.genList (n: make "top-${toString n}"
  "${busybox} cat $x $y > $out; read a < $x; ${busybox} test $a = leaf; echo $x >> $out"
  { x = middle n; y = middle (n + 1); }) 2
"""


@pytest.fixture
def both(tmp_path: Path) -> tuple[StockNix, OurExecutor, list[str]]:
    """One store for both, and derivations in it with roots, so that only outputs are garbage."""
    root = tmp_path / "root"
    nix, executor = StockNix(root), OurExecutor(root)
    graph = _GRAPH.replace("@tag@", os.urandom(6).hex())
    links = ("--add-root", str(tmp_path / "result"), "--indirect")
    texts = nix.run("nix-instantiate", *links, "-E", graph).stdout.split()
    return nix, executor, [os.readlink(text) for text in texts]


def _repeat(*actions: Callable[[], object], seconds: float = SECONDS) -> list[int]:
    """Call functions again and again, each in a thread; how often. The first error is raised."""
    deadline = time.monotonic() + seconds
    counts, errors = [0] * len(actions), list[BaseException]()

    def loop(number: int) -> None:
        try:
            while time.monotonic() < deadline and not errors:
                actions[number]()
                counts[number] += 1
        except BaseException as error:
            errors.append(error)
            raise

    threads = [threading.Thread(target=loop, args=(number,)) for number in range(len(actions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(seconds + 120)
    if errors:
        raise errors[0]
    return counts


def _require(command: Callable[[], object]) -> Callable[[], object]:
    """An error of a program with what it said."""
    import subprocess

    def run() -> object:
        try:
            return command()
        except subprocess.CalledProcessError as error:
            raise AssertionError(f"{error.cmd[:3]}: {error.stderr}") from error

    return run


@pytest.mark.nix
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_our_collector_beside_both_builders(
    both: tuple[StockNix, OurExecutor, list[str]],
) -> None:
    nix, executor, drvs = both
    location = parse_store_url(str(nix.root), {})
    deleted: list[int] = []

    def collect() -> None:
        with LocalStore.open(location) as store:
            deleted.append(len(store.collect_garbage(CollectOptions()).paths))

    counts = _repeat(
        collect,
        _require(lambda: executor.run("build", *drvs)),
        _require(lambda: nix.run("nix-store", "--realise", *drvs)),
    )
    assert min(counts) >= 2
    assert sum(deleted) > 10
    _in_order(nix, executor)


@pytest.mark.nix
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_the_collector_of_nix_beside_our_builder(
    both: tuple[StockNix, OurExecutor, list[str]],
) -> None:
    nix, executor, drvs = both
    optimise = ("--option", "auto-optimise-store", "true")
    counts = _repeat(
        _require(lambda: nix.run("nix-store", "--gc")),
        _require(lambda: executor.run("build", *optimise, *drvs)),
    )
    assert min(counts) >= 2
    _in_order(nix, executor)


def _in_order(nix: StockNix, executor: OurExecutor) -> None:
    said = nix.run("nix-store", "--verify", "--check-contents").stderr
    assert not [line for line in said.splitlines() if not line.startswith(("reading", "checking"))]
    executor.run("verify", "--check-contents")
    executor.run("gc")
    left = {path.suffix for path in nix.root.glob("nix/store/*") if path.name != ".links"}
    assert left == {".drv"}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_collector_in_the_same_process(workshop: Workshop) -> None:
    """Its locks and roots are this process's own, and count all the same."""
    tag = os.urandom(6).hex()
    leaf = workshop.make(f"leaf{tag}", "echo leaf > $out")
    top = workshop.make(f"top{tag}", f"cat $leaf{tag}_out > $out", inputs=[leaf])
    with workshop.store() as store:
        store.add_permanent_root(str(workshop.directory / "drv"), top.path)

    def build() -> None:
        async def go(executor: Executor) -> BuildResult:
            return await executor.build(top.path)

        assert workshop.run(go).success

    def collect() -> None:
        with LocalStore.open(workshop.location) as store:
            store.collect_garbage(CollectOptions())

    counts = _repeat(collect, build, seconds=6)
    assert min(counts) >= 2
    with workshop.store() as store:
        assert store.verify(check_contents=True) == []


def test_a_build_on_a_full_disk_collects(workshop: Workshop) -> None:
    """`min-free` starts a collection beside the builds, and spares what these use."""
    tag = os.urandom(6).hex()
    garbage = workshop.source(f"garbage{tag}", b"x")
    leaf = workshop.make(f"leaf{tag}", "echo leaf > $out")
    top = workshop.make(f"top{tag}", f"sleep 1; cat $leaf{tag}_out > $out", inputs=[leaf])
    workshop.settings = replace(workshop.settings, min_free=1 << 62)
    run = workshop.build(top)
    assert run.result.status is BuildStatus.BUILT
    assert any("running auto-GC" in text for text in run.notices)
    assert not workshop.is_valid(garbage)
    assert workshop.is_valid(top.out)
    assert workshop.leftovers() == []


@pytest.mark.nix
@pytest.mark.parametrize("keep_outputs", [False, True])
def test_outputs_that_are_known_by_realisations(workshop: Workshop, keep_outputs: bool) -> None:
    """A floating output stays with its derivation, and the derivation with it, as in Nix."""
    workshop.change(experimental_features=frozenset({"ca-derivations"}), keep_outputs=keep_outputs)
    outputs = {"out": FloatingOutput(IngestionMethod.NAR, HashAlgorithm.SHA256)}
    tag = os.urandom(6).hex()
    drv = workshop.make(f"floating{tag}", f"echo {tag} > $out", outputs=outputs)
    out = workshop.build(drv).result.outputs["out"]
    link = Path(workshop.location.state_dir, "gcroots/drv")
    link.symlink_to(drv.text)
    nix = StockNix(workshop.root)
    options = [
        *("--option", "experimental-features", "ca-derivations"),
        *("--option", "keep-outputs", str(keep_outputs).lower()),
    ]
    for root, live in ((drv.path, {drv.path, out} if keep_outputs else {drv.path}), (out, None)):
        link.unlink()
        link.symlink_to(workshop.render(root))
        with workshop.store() as store:
            found = store.collect_garbage(CollectOptions(action=CollectAction.RETURN_LIVE)).paths
        theirs = nix.run("nix-store", "--gc", "--print-live", *options).stdout.split()
        assert found == set(theirs)
        assert live is None or found == {workshop.render(path) for path in live}
