"""Check that the store holds what its database says; with --check-contents every byte of it."""

from __future__ import annotations

import argparse

from executor.cli.interrupts import run_until_signal, signals_wait
from executor.cli.options import Invocation
from executor.cli.stores import open_local_store, open_remote_store
from executor.formats.store_path import StorePath
from executor.store.location import DaemonAddress

EXAMPLE = """\
example:
  sudo executor verify --store ./store --check-contents
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own options."""
    parser.add_argument(
        "--check-contents",
        action="store_true",
        help="hash every path, and the files that are linked",
    )
    parser.add_argument(
        "--repair", action="store_true", help="fetch or build again what is missing or damaged"
    )


def run(invocation: Invocation, arguments: argparse.Namespace) -> int:
    """Print each problem; the exit code tells whether one is left."""
    if invocation.daemon is not None:
        return _ask_daemon(invocation, invocation.daemon, arguments)
    bad: list[StorePath] = []
    with open_local_store(invocation) as store:
        problems = store.verify(
            check_contents=arguments.check_contents,
            repair_links=arguments.repair,
            report=lambda text: invocation.say(0, text),
            on_bad=bad.append,
        )
    if not (arguments.repair and bad):
        return 1 if problems else 0
    repaired = run_until_signal(_repair(invocation, sorted(bad)))
    return 0 if repaired and len(problems) == len(bad) else 1


def _ask_daemon(
    invocation: Invocation, daemon: DaemonAddress, arguments: argparse.Namespace
) -> int:
    """The daemon says what is wrong, and repairs what it can for those whom it trusts."""
    with open_remote_store(invocation, daemon) as store:
        wrong = store.verify(check_contents=arguments.check_contents, repair=arguments.repair)
    return 1 if wrong else 0


async def _repair(invocation: Invocation, paths: list[StorePath]) -> bool:
    """Repair one after the other; tells whether that worked for all."""
    with signals_wait():
        from executor.api import Executor
        from executor.cli.progress import make_display

    store_dir = invocation.location.store_dir
    display = make_display(
        None, print_logs=False, verbosity=invocation.verbosity, store_dir=store_dir
    )
    failed = []
    try:
        async with Executor(store=invocation.store, settings=invocation.settings) as executor:
            executor.subscribe(display.take)
            for path in paths:
                if not await executor.repair_path(path):
                    failed.append(path)
    finally:
        display.close()
    for path in failed:
        invocation.say(0, f"error: path '{store_dir.render(path)}' could not be repaired")
    return not failed
