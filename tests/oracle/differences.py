"""The accepted differences of ``differences.toml``, and how two observations are compared."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
FIELDS = ("drv", "exit_code", "status", "outputs", "log")


def differing(
    ours: Mapping[str, Any], theirs: Mapping[str, Any], fields: Iterable[str] = FIELDS
) -> dict[str, str]:
    """The fields that differ, each with both values. A status that Nix doesn't tell is not one."""
    return {
        field: f"executor: {ours[field]!r}\n     Nix: {theirs[field]!r}"
        for field in fields
        if ours[field] != theirs[field] and not (field == "status" and theirs[field] is None)
    }


def accepted(version: str) -> dict[str, frozenset[str]]:
    """By case, the fields in which the executor may differ from this version of Nix, and must."""
    with open(HERE / "differences.toml", "rb") as file:
        table = tomllib.load(file)
    found: dict[str, set[str]] = {}
    for entry in table["difference"]:
        if not entry["cause"]:
            raise ValueError(f"no cause is given for {entry['cases']}")
        if version == entry["nix"] or version.startswith(entry["nix"] + "."):
            for case in entry["cases"]:
                found.setdefault(case, set()).update(entry["fields"])
    return {case: frozenset(fields) for case, fields in found.items()}


def only_the_accepted(
    name: str, found: Mapping[str, str], table: Mapping[str, frozenset[str]]
) -> None:
    """Fail for a difference that isn't listed, and for a listed one that is none any more."""
    expected = table.get(name, frozenset())
    unlisted = "\n".join(text for field, text in found.items() if field not in expected)
    assert not unlisted, f"not in differences.toml:\n{unlisted}"
    assert not expected - set(found), "listed in differences.toml, but equal"
