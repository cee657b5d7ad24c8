"""What is compared: how a build ended, and everything that the store then says of its outputs."""

from __future__ import annotations

import bz2
import hashlib
import os
import sqlite3
import stat
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# Longer listings are kept as their hash.
_LONG_LISTING = 30


@dataclass(frozen=True, slots=True)
class Output:
    """One registered path: its row of the database, and its tree as it lies on disk."""

    nar_hash: str
    nar_size: int
    references: list[str]
    deriver: str | None
    content_address: str | None
    ultimate: bool
    tree: list[str]


@dataclass(frozen=True, slots=True)
class Observation:
    """One build. ``status`` is Nix's name of the result; None where Nix doesn't tell it."""

    drv: str
    exit_code: int
    status: str | None
    outputs: dict[str, Output]
    log: str | None

    def to_json(self) -> dict[str, Any]:
        """Plain values, for the golden file and for comparing field by field."""
        return asdict(self)


def store_outputs(root: Path, drv: str) -> dict[str, Output]:
    """Every valid path below ``root`` that is an output of ``drv``, or was made by it."""
    where = (
        "deriver = :drv OR path IN (SELECT o.path FROM DerivationOutputs o"
        " JOIN ValidPaths d ON d.id = o.drv WHERE d.path = :drv)"
    )
    with closing(open_database(root)) as database:
        return valid_paths(database, root, where, {"drv": drv})


def open_database(root: Path) -> sqlite3.Connection:
    """The database of the store below ``root``."""
    return sqlite3.connect(root / "nix/var/nix/db/db.sqlite", timeout=60)


def valid_paths(
    database: sqlite3.Connection,
    root: Path,
    where: str = "1",
    values: Mapping[str, str] | None = None,
) -> dict[str, Output]:
    """Every valid path for which the condition ``where`` is true."""
    rows = database.execute(
        "SELECT id, path, hash, narSize, deriver, ca, ultimate FROM ValidPaths"
        f" WHERE {where} ORDER BY path",
        values or {},
    ).fetchall()
    return {
        path: Output(
            nar_hash=nar_hash,
            nar_size=nar_size,
            references=_references(database, number),
            deriver=deriver,
            content_address=address,
            ultimate=bool(ultimate),
            tree=_tree(root / path.lstrip("/")),
        )
        for number, path, nar_hash, nar_size, deriver, address, ultimate in rows
    }


def read_log(root: Path, drv: str) -> str | None:
    """The build log that the store keeps."""
    name = os.path.basename(drv)
    path = root / "nix/var/log/nix/drvs" / name[:2] / f"{name[2:]}.bz2"
    try:
        return bz2.decompress(path.read_bytes()).decode(errors="replace")
    except FileNotFoundError:
        return None


def _references(database: sqlite3.Connection, number: int) -> list[str]:
    rows = database.execute(
        "SELECT path FROM Refs JOIN ValidPaths ON reference = id WHERE referrer = ? ORDER BY path",
        (number,),
    )
    return [path for (path,) in rows]


def _tree(top: Path) -> list[str]:
    lines = sorted(_lines(os.fsencode(top), b""))
    if len(lines) <= _LONG_LISTING:
        return lines
    return [f"{len(lines)} entries", hashlib.sha256("\n".join(lines).encode()).hexdigest()]


def _lines(path: bytes, relative: bytes) -> Iterator[str]:
    """``<relative path> <mode> <mtime> <owner> [-> target]`` for every entry."""
    info = os.lstat(path)
    # A file's permission bits are those of the store; a link's are the system's.
    target = f" -> {os.readlink(path)!r}" if stat.S_ISLNK(info.st_mode) else ""
    yield f"{relative!r} {info.st_mode:o} {info.st_mtime_ns} {info.st_uid}:{info.st_gid}{target}"
    if stat.S_ISDIR(info.st_mode):
        for name in os.listdir(path):
            yield from _lines(path + b"/" + name, relative + b"/" + name)
