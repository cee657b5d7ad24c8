"""Try everything that building needs of this machine, for real, and say what to do.

The exit code is 0 when all that any build needs works.
"""

from __future__ import annotations

import argparse
import os

from executor.build.id_slots import build_users
from executor.build.probes import ProbeResult, run_probes
from executor.cli.options import Invocation
from executor.errors import ExecutorError, UsageError

EXAMPLE = """\
example:
  sudo executor doctor
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """No options of its own."""


def run(invocation: Invocation, arguments: argparse.Namespace) -> int:
    """Print a table."""
    del arguments
    if os.geteuid() != 0:
        raise UsageError("the probes need root, as building does; try sudo")
    results = [*run_probes(), _build_users(invocation)]
    width = max(len(result.name) for result in results)
    for result in results:
        mark = "ok     " if result.works else ("MISSING" if result.required else "without")
        print(f"{mark}  {result.name:<{width}}  {result.detail}")
        if result.remedy:
            print(f"         {'':<{width}}  -> {result.remedy}")
    missing = [result.name for result in results if result.required and not result.works]
    print(f"\n{'builds work on this machine' if not missing else 'builds do not work here'}")
    return 1 if missing else 0


def _build_users(invocation: Invocation) -> ProbeResult:
    """Whether a build user can be had."""
    settings = invocation.settings
    remedy = "add members to the group of 'build-users-group', or set it to the empty string"
    try:
        pool = build_users(invocation.location, settings, lambda _text: None)
        lease = pool.try_acquire()
    except (ExecutorError, OSError) as error:
        return ProbeResult(
            name="build users", works=False, required=True, detail=str(error), remedy=remedy
        )
    detail = "all are in use now" if lease is None else f"leased {lease.user.uid}"
    if lease is not None:
        lease.release()
    return ProbeResult(name="build users", works=True, required=True, detail=detail, remedy="")
