"""Targets and store paths as people write them."""

from __future__ import annotations

from pathlib import Path

import pytest

from executor.cli.targets import (
    TargetText,
    derivation_path,
    parse_target,
    resolve_targets,
    store_path,
)
from executor.errors import ExecutorError, FormatError, UsageError
from executor.formats.store_path import StorePath
from executor.store.local import LocalStore
from executor.store.location import parse_store_url

ZERO = "0" * 32
DRV = f"/nix/store/{ZERO}-x.drv"
OUT = f"/nix/store/{ZERO}-x"


@pytest.mark.parametrize(
    ("text", "path", "outputs"),
    [
        (DRV, DRV, None),
        (f"{DRV}^*", DRV, None),
        (f"{DRV}!*", DRV, None),
        (f"{DRV}^out", DRV, {"out"}),
        (f"{DRV}!out", DRV, {"out"}),
        (f"{DRV}^out,dev", DRV, {"out", "dev"}),
        (f"{DRV}!dev,out,dev", DRV, {"out", "dev"}),
        ("./x.json", "./x.json", None),
        ("x.json^dev", "x.json", {"dev"}),
        ("a^b/x.json", "a^b/x.json", None),
        ("a!b/x.json!out", "a!b/x.json", {"out"}),
        (OUT, OUT, None),
        (f"{OUT}^out", f"{OUT}^out", None),
        ("", "", None),
    ],
)
def test_outputs_stand_behind_the_path(text: str, path: str, outputs: set[str] | None) -> None:
    expected = None if outputs is None else frozenset(outputs)
    assert parse_target(text) == TargetText(path, expected)


@pytest.mark.parametrize("outputs", ["", ",", "out,", ",out", "out,,dev"])
@pytest.mark.parametrize("separator", ["^", "!"])
def test_an_empty_name_of_an_output_is_refused(separator: str, outputs: str) -> None:
    with pytest.raises(UsageError, match="names no outputs; write"):
        parse_target(f"{DRV}{separator}{outputs}")


def test_a_path_may_be_the_stored_or_the_real_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    location = parse_store_url(str(tmp_path), {})
    expected = StorePath(ZERO, "x.drv")
    monkeypatch.chdir(tmp_path)
    for text in (
        DRV,
        f"{tmp_path}{DRV}",
        f".{DRV}",
        f"nix/store/../store/{ZERO}-x.drv",
        f"{tmp_path}{DRV}/",
    ):
        assert store_path(location, text) == expected
        assert derivation_path(location, text) == expected


def test_what_is_below_a_path_means_the_path(tmp_path: Path) -> None:
    location = parse_store_url(str(tmp_path), {})
    for text in (f"{OUT}/bin/x", f"{tmp_path}{OUT}/bin/x"):
        assert store_path(location, text) == StorePath(ZERO, "x")


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", UsageError),
        ("/", UsageError),
        ("/etc/shadow", UsageError),
        ("/nix/store", UsageError),
        ("/nix/store/", UsageError),
        ("/nix/store/x.drv", UsageError),
        (f"/nix/store/../store/{ZERO}-x.drv", UsageError),
        (f"{ZERO}-x.drv", UsageError),
        (f"/nix/store/{'e' * 32}-x.drv", UsageError),
        (f"/nix/store/{ZERO}-..", UsageError),
        ("{root}/nix/store", UsageError),
        ("{root}/nix/store/x.drv", FormatError),
        ("{root}/nix/store/../x.drv", UsageError),
    ],
)
def test_other_paths_are_refused(tmp_path: Path, text: str, error: type[ExecutorError]) -> None:
    location = parse_store_url(str(tmp_path), {})
    with pytest.raises(error):
        derivation_path(location, text.format(root=tmp_path))


def test_only_derivations_can_be_built(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a derivation"):
        derivation_path(parse_store_url(str(tmp_path), {}), OUT)


def test_the_roots_of_a_file_are_its_targets(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    file.write_text(
        """{
        "b": {"system": "s", "builder": "b"},
        "a": {"system": "s", "builder": "b"},
        "below": {"system": "s", "builder": "b"},
        "top": {"system": "s", "builder": "b", "inputs": {"drvs": {"below": ["out"]}}}
        }"""
    )
    with LocalStore.open(parse_store_url(str(tmp_path / "root"), {})) as store:
        targets = resolve_targets(store, [f"{file}^out", DRV])
    assert [target.drv_path.name for target in targets] == ["b.drv", "a.drv", "top.drv", "x.drv"]
    assert [target.outputs for target in targets] == [frozenset({"out"})] * 3 + [None]
