"""What is compared of a whole store: its database, what lies in it unregistered, its logs."""

from __future__ import annotations

import bz2
import sqlite3
from collections.abc import Collection
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.oracle.observe import Output, open_database, valid_paths


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A store, without the paths that were there at the beginning.

    ``outputs`` are the rows (derivation, output's name, path) of ``DerivationOutputs``,
    ``realisations`` the rows (hash of the derivation, output's name, path, signatures, ids of the
    realisations that it refers to), ``unregistered`` names of the store's directory that the
    database doesn't know.
    """

    paths: dict[str, Output]
    outputs: list[list[str]]
    realisations: list[list[Any]]
    unregistered: list[str]
    logs: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        """Plain values, for the golden file and for comparing field by field."""
        return asdict(self)


def take_snapshot(root: Path, before: Collection[str]) -> Snapshot:
    """Look at the store below ``root``; ``before`` are the paths to leave out."""
    with closing(open_database(root)) as database:
        paths = valid_paths(database, root)
        rows = database.execute(
            "SELECT d.path, o.id, o.path FROM DerivationOutputs o"
            " JOIN ValidPaths d ON d.id = o.drv ORDER BY 1, 2"
        )
        return Snapshot(
            paths={path: found for path, found in paths.items() if path not in before},
            outputs=[list(row) for row in rows],
            realisations=_realisations(database),
            unregistered=_unregistered(root, paths),
            logs=_logs(root),
        )


def _realisations(database: sqlite3.Connection) -> list[list[Any]]:
    has = "SELECT 1 FROM sqlite_master WHERE name = 'Realisations'"
    if database.execute(has).fetchone() is None:
        return []
    rows = database.execute(
        "SELECT r.id, drvPath, outputName, v.path, signatures FROM Realisations r"
        " JOIN ValidPaths v ON v.id = r.outputPath"
    ).fetchall()
    names = {number: f"{drv}!{name}" for number, drv, name, *_ in rows}
    links: dict[int, list[str]] = {number: [] for number in names}
    query = "SELECT referrer, realisationReference FROM RealisationsRefs"
    for referrer, reference in database.execute(query):
        links[referrer].append(names[reference])
    return sorted([*row, sorted(links[number])] for number, *row in rows)


def _unregistered(root: Path, valid: Collection[str]) -> list[str]:
    known = {path.rsplit("/", 1)[1] for path in valid} | {".links"}
    # Nix doesn't remove the lock of a floating output that could not be built.
    found = {entry.name for entry in (root / "nix/store").iterdir()} - known
    return sorted(name for name in found if not name.endswith(".lock"))


def _logs(root: Path) -> dict[str, str]:
    top = root / "nix/var/log/nix/drvs"
    return {
        file.parent.name + file.name.removesuffix(".bz2"): bz2.decompress(file.read_bytes()).decode(
            errors="replace"
        )
        for file in sorted(top.glob("*/*.bz2"))
    }
