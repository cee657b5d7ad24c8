"""Print the log of a build: of a derivation, or of the one that made an output."""

from __future__ import annotations

import argparse
import sys

from executor.cli.options import Invocation
from executor.cli.stores import open_store
from executor.cli.targets import store_path
from executor.errors import UsageError
from executor.store.log_files import read_log

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
        candidates = [path] if path.is_derivation else sorted(store.query_derivers(path))
        if not path.is_derivation and (deriver := store.query_deriver(path)) is not None:
            candidates.insert(0, deriver)
    for candidate in candidates:
        log = read_log(invocation.location.log_dir, candidate)
        if log is not None:
            sys.stdout.buffer.write(log)
            sys.stdout.buffer.flush()
            return 0
    raise UsageError(f"the build log of '{arguments.path}' is not here")
