"""Replace equal files in the store by hard links to one of them."""

from __future__ import annotations

import argparse

from executor.cli.options import Invocation
from executor.cli.stores import open_local_store, open_remote_store
from executor.store.collect import render_size

EXAMPLE = """\
example:
  sudo executor optimise --store ./store
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """No options of its own."""


def run(invocation: Invocation, _arguments: argparse.Namespace) -> int:
    """Do it, and say what it saved."""
    if invocation.daemon is not None:
        with open_remote_store(invocation, invocation.daemon) as remote:
            remote.optimise()
        return 0
    with open_local_store(invocation) as store:
        stats = store.optimise(report=lambda text: invocation.say(1, text))
    size = render_size(stats.bytes_freed)
    invocation.say(3, f"{size} freed by hard-linking {stats.files_linked} files")
    return 0
