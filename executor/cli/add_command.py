"""Put a file or a directory into the store, and print its path."""

from __future__ import annotations

import argparse
import os

from executor.cli.options import Invocation
from executor.cli.stores import open_store
from executor.formats.content_address import IngestionMethod

EXAMPLE = """\
example:
  sudo executor add --store ./store ./hello-2.12.tar.gz
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own options."""
    parser.add_argument("paths", nargs="+", metavar="PATH", help="a file or a directory")
    parser.add_argument("--name", help="name in the store (default: the file's own)")
    parser.add_argument("--flat", action="store_true", help="hash a file's contents, not its NAR")


def run(invocation: Invocation, arguments: argparse.Namespace) -> int:
    """Add each path."""
    method = IngestionMethod.FLAT if arguments.flat else IngestionMethod.NAR
    with open_store(invocation) as store:
        for path in arguments.paths:
            name = arguments.name or os.path.basename(os.path.abspath(path))
            print(store.store_dir.render(store.add_file_or_tree(name, path, method)))
    return 0
