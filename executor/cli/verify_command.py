"""Check that the store holds what its database says; with --check-contents every byte of it."""

from __future__ import annotations

import argparse

from executor.cli.options import Invocation
from executor.cli.stores import open_store

EXAMPLE = """\
example:
  sudo executor verify --store ./store --check-contents
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own options."""
    parser.add_argument("--check-contents", action="store_true", help="hash every path")


def run(invocation: Invocation, arguments: argparse.Namespace) -> int:
    """Print each problem; the exit code tells whether there was one."""
    with open_store(invocation) as store:
        problems = store.verify(
            check_contents=arguments.check_contents,
            report=lambda text: invocation.say(0, text),
        )
    return 1 if problems else 0
