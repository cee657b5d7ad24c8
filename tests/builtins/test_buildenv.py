"""``builtin:buildenv``: links, merged directories, priorities, collisions, propagation."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from executor.build.result import BuildStatus
from tests.build.conftest import Drv, Run, Workshop
from tests.build.conftest import workshop as workshop

pytestmark = pytest.mark.root

# How a package is described here: path -> contents, where a link is "-> target".
Tree = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Installed:
    """A package of an environment: what it is made of, and how it is wanted."""

    name: str
    tree: Tree
    priority: int = 5
    active: str = "true"


def package(workshop: Workshop, name: str, tree: Tree, inputs: Sequence[Drv] = ()) -> Drv:
    lines = ["mkdir -p $out"]
    for path, content in tree.items():
        lines.append(f"mkdir -p $out/{os.path.dirname(path)}")
        target = content.removeprefix("-> ")
        lines.append(
            f"ln -s {target} $out/{path}"
            if content.startswith("-> ")
            else f"echo {content} > $out/{path}"
        )
    return workshop.make(name, "\n".join(lines), inputs=inputs)


def environment(workshop: Workshop, drvs: Sequence[Drv], words: str, **env: str) -> Drv:
    manifest = workshop.source("env-manifest.nix", b"[]")
    return workshop.make(
        "user-environment",
        inputs=drvs,
        sources=[manifest],
        builder=b"builtin:buildenv",
        args=(),
        platform="builtin",
        env={"derivations": words, "manifest": workshop.render(manifest), **env},
    )


def install(workshop: Workshop, *packages: Installed) -> tuple[Run, Drv]:
    """Build the environment of some packages."""
    drvs = [package(workshop, each.name, each.tree) for each in packages]
    words = " ".join(
        f"{each.active} {each.priority} 1 {workshop.render(drv.out)}"
        for each, drv in zip(packages, drvs, strict=True)
    )
    drv = environment(workshop, drvs, words)
    return workshop.build(drv), drv


def shape(workshop: Workshop, drv: Drv) -> dict[str, str]:
    """Every link below an environment, with its target's package name and rest."""
    top = workshop.real(drv.out)
    found: dict[str, str] = {}
    for directory, names, files in os.walk(top):
        for name in names + files:
            path = Path(directory, name)
            if path.is_symlink():
                target = os.readlink(path).removeprefix("/nix/store/")[33:]
                found[str(path.relative_to(top))] = target
    assert found.pop("manifest.nix") == "env-manifest.nix"
    return found


BIN_A = {"bin/a": "a"}
BIN_B = {"bin/b": "b"}
SHARE = {"share/x/y": "deep"}


@pytest.mark.parametrize(
    ("packages", "expected"),
    [
        pytest.param([], {}, id="nothing"),
        pytest.param(
            [Installed("p", {**BIN_A, **SHARE, "file": "f"})],
            {"bin": "p/bin", "share": "p/share", "file": "p/file"},
            id="a-directory-of-one-package-is-one-link",
        ),
        pytest.param(
            [Installed("p", {**BIN_A, **SHARE}), Installed("q", BIN_B)],
            {"bin/a": "p/bin/a", "bin/b": "q/bin/b", "share": "p/share"},
            id="directories-are-merged",
        ),
        pytest.param(
            [Installed("p", SHARE), Installed("q", {"share/x/z": "z"}), Installed("r", BIN_A)],
            {"share/x/y": "p/share/x/y", "share/x/z": "q/share/x/z", "bin": "r/bin"},
            id="deep-directories-are-merged",
        ),
        pytest.param(
            [Installed("p", BIN_A, priority=7), Installed("q", BIN_A, priority=3)],
            {"bin/a": "q/bin/a"},
            id="the-smaller-number-wins",
        ),
        pytest.param(
            [Installed("p", {"x": "p"}, priority=3), Installed("q", {"x": "q"}, priority=7)],
            {"x": "p/x"},
            id="the-first-may-win",
        ),
        pytest.param(
            [Installed("p", {"x/y": "p"}, priority=3), Installed("q", {"x": "q"}, priority=7)],
            {"x": "p/x"},
            id="a-file-gives-way-to-a-directory",
        ),
        pytest.param(
            [Installed("p", BIN_A), Installed("q", BIN_A, active="false")],
            {"bin": "p/bin"},
            id="inactive-ones-are-left-out",
        ),
        pytest.param(
            [
                Installed("p", {"manifest.json": "x", "log/l": "x", "nix-support/n": "x"}),
                Installed("q", {"info/dir": "x", "info/page": "x", ".hidden": "x"}),
            ],
            {"info": "q/info"},
            id="files-that-would-collide-are-left-out",
        ),
        pytest.param(
            [Installed("p", {"lib": "-> /nowhere", **BIN_A})],
            {"bin": "p/bin"},
            id="dangling-links-are-left-out",
        ),
        pytest.param(
            [Installed("p", {"real/a": "a", "lib": "-> real"}), Installed("q", {"lib/b": "b"})],
            {"real": "p/real", "lib/a": "p/lib/a", "lib/b": "q/lib/b"},
            id="a-link-to-a-directory-is-one",
        ),
    ],
)
def test_an_environment_has(
    workshop: Workshop, packages: list[Installed], expected: dict[str, str]
) -> None:
    run, drv = install(workshop, *packages)
    assert run.result.status is BuildStatus.BUILT, run.log
    found = shape(workshop, drv)
    if "lib/a" in expected:
        found["lib/a"] = found["lib/a"].replace("p/real/", "p/lib/")
    assert found == expected


@pytest.mark.parametrize(
    ("packages", "message"),
    [
        ([(5, BIN_A), (5, BIN_A)], "There is a conflict for the following files:"),
        ([(1, {"x": "file"}), (2, {"x/y": "below"})], "and non-directory '"),
        ([(1, {"x/y": "1"}), (2, {"x/z": "2"}), (3, {"x": "file"})], "between non-directory '"),
    ],
    ids=["files", "directory-over-file", "file-over-merged-directory"],
)
def test_a_collision_fails(
    workshop: Workshop, packages: list[tuple[int, Tree]], message: str
) -> None:
    """Packages of one priority come in the order of their paths, so some have several here."""
    installed = [
        Installed(f"p{number}", tree, priority) for number, (priority, tree) in enumerate(packages)
    ]
    run, drv = install(workshop, *installed)
    assert run.result.status is BuildStatus.PERMANENT_FAILURE
    assert message in run.text
    assert not workshop.is_valid(drv.out)
    assert workshop.leftovers() == []


def test_a_conflict_names_both_files(workshop: Workshop) -> None:
    run, _drv = install(workshop, Installed("p", BIN_A), Installed("q", BIN_A))
    log = run.text
    assert "-p/bin/a" in log
    assert "-q/bin/a" in log


def test_propagated_packages_come_last_and_give_way(workshop: Workshop) -> None:
    far = package(workshop, "far", {"bin/far": "far", "bin/a": "other"})
    near = package(workshop, "near", {"bin/near": "near", "nix-support/x": "x"}, inputs=[far])
    propagating = workshop.make(
        "top",
        "mkdir -p $out/bin $out/nix-support; echo a > $out/bin/a;"
        "echo $far_out > $out/nix-support/propagated-user-env-packages",
        inputs=[far],
    )
    words = f"true 5 1 {workshop.render(propagating.out)} true 5 1 {workshop.render(near.out)}"
    drv = environment(workshop, [propagating, near, far], words)
    assert workshop.build(drv).result.success
    assert shape(workshop, drv) == {
        "bin/a": "top/bin/a",
        "bin/near": "near/bin/near",
        "bin/far": "far/bin/far",
    }


def test_the_environment_refers_to_its_packages(workshop: Workshop) -> None:
    p = package(workshop, "p", BIN_A)
    drv = environment(workshop, [p], f"true 5 1 {workshop.render(p.out)}")
    assert workshop.build(drv).result.success
    names = {path.name for path in workshop.info(drv.out).references}
    assert names == {"p", "env-manifest.nix"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("true five 1 /x", "has 'five' instead of a number"),
        ("true 5", "has '' instead of a number"),
        ("true 5 2 /x", "ends in the middle of a package"),
    ],
)
def test_a_malformed_list_of_packages_fails(workshop: Workshop, words: str, message: str) -> None:
    run = workshop.build(environment(workshop, [], words))
    assert run.result.status is BuildStatus.PERMANENT_FAILURE
    assert message in run.text
