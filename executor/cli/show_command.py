"""Print derivations as JSON, in the shape of 'nix derivation show' of Nix 2.34."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from executor.cli.options import Invocation
from executor.cli.stores import open_store
from executor.cli.targets import derivation_path
from executor.derivation_json import VERSION, to_json
from executor.formats.nlohmann import JsonValue, dump_json
from executor.formats.store_path import StorePath

if TYPE_CHECKING:
    from executor.cli.stores import Store

EXAMPLE = """\
example:
  executor show --recursive /nix/store/…-hello.drv
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own options."""
    parser.add_argument("derivations", nargs="+", metavar="DRV", help="a .drv path")
    parser.add_argument("-r", "--recursive", action="store_true", help="with all that they need")


def run(invocation: Invocation, arguments: argparse.Namespace) -> int:
    """Print one object for all."""
    with open_store(invocation, read_only=True) as store:
        paths = [derivation_path(store.location, text) for text in arguments.derivations]
        if arguments.recursive:
            paths = [path for path in sorted(store.closure(paths)) if path.is_derivation]
        print_json(_derivations(store, paths))
    return 0


def _derivations(store: Store, paths: list[StorePath]) -> dict[str, JsonValue]:
    shown: dict[str, JsonValue] = {
        path.base_name: to_json(store.read_derivation(path)) for path in paths
    }
    return {"derivations": shown, "version": VERSION}


def print_json(value: dict[str, JsonValue]) -> None:
    """Print as Nix does: numbers and order as in its own output."""
    sys.stdout.flush()
    sys.stdout.buffer.write(dump_json(value) + b"\n")
    sys.stdout.buffer.flush()
