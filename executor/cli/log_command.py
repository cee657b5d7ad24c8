"""Print the log of a build: of a derivation, or of the one that made an output."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

from executor.cli.options import Invocation
from executor.cli.stores import open_store
from executor.cli.targets import store_path
from executor.errors import UsageError
from executor.formats.store_path import StorePath
from executor.store.log_files import log_pieces

if TYPE_CHECKING:
    from executor.cli.stores import Store

EXAMPLE = """\
example:
  executor log /nix/store/…-hello.drv
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own options."""
    parser.add_argument("path", metavar="PATH", help="a .drv path, or an output")


def run(invocation: Invocation, arguments: argparse.Namespace) -> int:
    """Print the bytes of the log as they were."""
    path = store_path(invocation.location, arguments.path)
    with open_store(invocation, read_only=True) as store:
        candidates = [path] if path.is_derivation else _makers(store, path)
    log = _here(invocation, candidates)
    if log is None:
        log = _elsewhere(invocation, candidates)
    if log is None:
        raise UsageError(f"build log of '{arguments.path}' is not available")
    for piece in log:
        sys.stdout.buffer.write(piece)
    sys.stdout.buffer.flush()
    return 0


def _here(invocation: Invocation, candidates: list[StorePath]) -> Iterable[bytes] | None:
    logs = (log_pieces(invocation.location.log_dir, candidate) for candidate in candidates)
    return next((log for log in logs if log is not None), None)


def _elsewhere(invocation: Invocation, candidates: list[StorePath]) -> Iterable[bytes] | None:
    """From a substituter, whose logs nobody vouches for."""
    settings = invocation.settings
    if not (candidates and settings.substitute and settings.substituters):
        return None
    from executor.caches.substituters import open_substituters

    substituters = open_substituters(
        settings,
        invocation.location.store_dir,
        warn=lambda text: invocation.say(1, f"warning: {text}"),
    )
    if substituters is None:
        return None
    try:
        logs = map(substituters.log, candidates)
        return next(([log] for log in logs if log is not None), None)
    finally:
        substituters.close()


def _makers(store: Store, path: StorePath) -> list[StorePath]:
    """The derivation that made an output, then those that could; failed builds have logs, too."""
    deriver = store.query_deriver(path) if store.is_valid(path) else None
    return ([] if deriver is None else [deriver]) + sorted(store.query_derivers(path))
