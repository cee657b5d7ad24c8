"""Put hand-written derivations (JSON) into the store, and print their .drv paths.

Paths of outputs are computed; docs/derivation-json.md tells what may be left out.
"""

from __future__ import annotations

import argparse
import os
import sys

from executor.cli.options import Invocation
from executor.cli.stores import open_store
from executor.instantiate import instantiate, instantiate_file

EXAMPLE = """\
example:
  sudo executor instantiate --store ./store ./hello.json
  nix derivation show /nix/store/…-x.drv | sudo executor instantiate -
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own options."""
    parser.add_argument("files", nargs="+", metavar="FILE", help="a JSON file, or - for stdin")


def run(invocation: Invocation, arguments: argparse.Namespace) -> int:
    """Write the derivations and print where they are."""
    with open_store(invocation) as store:
        for file in arguments.files:
            if file == "-":
                found = instantiate(store, sys.stdin.buffer.read(), os.getcwd())
            else:
                found = instantiate_file(store, file)
            for path in found.roots:
                print(store.store_dir.render(path))
    return 0
