"""Delete what no garbage collector root needs; or say what that would be."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

from executor.cli.options import Invocation
from executor.cli.stores import open_store
from executor.cli.targets import store_path
from executor.errors import UsageError
from executor.store.collect import CollectAction, CollectOptions, CollectResult, render_size
from executor.store.descriptors import display
from executor.store.location import StoreLocation

if TYPE_CHECKING:
    from executor.cli.stores import Store

EXAMPLE = """\
example:
  sudo executor gc --max-freed 10G
  sudo executor gc --delete /nix/store/…-hello
"""
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own options."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--print-roots", action="store_true", help="the roots and what they keep")
    group.add_argument("--print-live", action="store_true", help="the paths that roots reach")
    group.add_argument("--print-dead", action="store_true", help="the paths that they don't")
    group.add_argument("--dry-run", action="store_true", help="count what would be deleted")
    group.add_argument("--delete", action="store_true", help="only the given paths, if dead")
    parser.add_argument(
        "--ignore-liveness", action="store_true", help="with --delete: whatever the roots say"
    )
    parser.add_argument(
        "--max-freed", metavar="BYTES", help="stop when more has been freed (also 500K, 10M, 2G)"
    )
    parser.add_argument("paths", nargs="*", metavar="PATH", help="what to --delete")


def run(invocation: Invocation, arguments: argparse.Namespace) -> int:
    """Do it, and print paths or one line of what was done."""
    options = _options(arguments, invocation.location)
    with open_store(invocation) as store:
        if arguments.print_roots:
            _print_roots(invocation, store)
            return 0
        result = CollectResult()
        try:
            store.collect_garbage(
                options, report=lambda text: invocation.say(3, text), result=result
            )
        finally:
            _print_result(arguments, options, result)
    return 0


def _options(arguments: argparse.Namespace, location: StoreLocation) -> CollectOptions:
    """What is wanted. Raises ``UsageError`` for options that don't go together."""
    printing = arguments.print_roots or arguments.print_live or arguments.print_dead
    if arguments.max_freed is not None and (printing or arguments.dry_run or arguments.delete):
        raise UsageError("option --max-freed is only for deleting all that is dead")
    if arguments.ignore_liveness and not arguments.delete:
        raise UsageError("option --ignore-liveness is only for --delete")
    if arguments.delete != bool(arguments.paths):
        raise UsageError("--delete and paths go together")
    action = CollectAction.DELETE_DEAD
    if arguments.delete:
        action = CollectAction.DELETE_SPECIFIC
    elif arguments.print_live:
        action = CollectAction.RETURN_LIVE
    elif arguments.print_dead or arguments.dry_run:
        action = CollectAction.RETURN_DEAD
    return CollectOptions(
        action=action,
        paths=frozenset(store_path(location, text) for text in arguments.paths),
        ignore_liveness=arguments.ignore_liveness,
        max_freed=None if arguments.max_freed is None else _size(arguments.max_freed),
    )


def _size(text: str) -> int:
    unit = _UNITS.get(text[-1:].upper(), 1)
    digits = (text[:-1] if unit > 1 else text).removeprefix("-")
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 18):
        raise UsageError(f"'{text}' is not a number of bytes")
    # Less than nothing is nothing, as in Nix.
    return 0 if text.startswith("-") else int(digits) * unit


def _print_roots(invocation: Invocation, store: Store) -> None:
    roots = store.find_roots(censor=os.geteuid() != 0, report=lambda text: invocation.say(3, text))
    lines = [
        f"{link} -> {store.store_dir.render(path)}"
        for path, links in roots.items()
        for link in links
    ]
    for line in sorted(lines):
        print(display(os.fsencode(line)))


def _print_result(
    arguments: argparse.Namespace, options: CollectOptions, result: CollectResult
) -> None:
    if options.deletes:
        size = render_size(result.bytes_freed)
        print(f"{len(result.paths)} store paths deleted, {size} freed")
    elif arguments.dry_run:
        print(f"{len(result.paths)} store paths would be deleted")
    else:
        for path in sorted(result.paths):
            print(display(os.fsencode(path)))
