"""Build for a stock Nix that has this command as its build-hook: here, in the same store."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys

from executor.build.early import launch_spawner
from executor.cli.interrupts import run_until_signal, signals_wait
from executor.cli.options import Invocation
from executor.errors import ConfigError, UsageError
from executor.store.location import StoreLocation, parse_store_url

EXAMPLE = """\
example (nix.conf of the Nix that is to build through the executor):
  build-hook = /usr/bin/executor build-hook --jobs 4
"""
# The descriptors of a build hook.
_REQUESTS, _TEXTS, _OUTPUT, _OTHER_END = 0, 2, 4, 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own options."""
    parser.add_argument("--jobs", metavar="N", type=int, help="builds at once (default: all CPUs)")
    parser.add_argument("level", nargs="?", type=int, default=3, help=argparse.SUPPRESS)


def run(invocation: Invocation, arguments: argparse.Namespace) -> int:
    """Answer until something is accepted, and build that; the exit code is the verdict."""
    jobs = arguments.jobs if arguments.jobs is not None else len(os.sched_getaffinity(0))
    if jobs < 0:
        raise UsageError("--jobs takes a number")
    with signals_wait():
        from executor.protocols.hook_requests import Answer, exit_code, message
        from executor.protocols.hook_server import DescriptorSource, HookServer, build_job
        from executor.protocols.outlet import Outlet
        from executor.protocols.results import short_text

    with contextlib.suppress(OSError):
        os.close(_OTHER_END)
    if os.geteuid() != 0 or not jobs:
        reason = "building needs root" if jobs else "there are no slots (--jobs 0)"
        _say(message(1, f"the executor builds nothing as a build hook: {reason}"))
        _say(Answer.DECLINE_PERMANENTLY.encode())
        return 0
    server = HookServer(
        invocation.settings,
        lambda store: _locate(invocation, store),
        slots=jobs,
        source=DescriptorSource(_REQUESTS),
        say=_say,
    )
    job = server.next_job()
    if job is None:
        return 0
    launched = launch_spawner(job.location)
    texts, output = Outlet(_TEXTS), Outlet(_OUTPUT)
    try:
        result = run_until_signal(build_job(launched, job, texts, output))
        if not result.success:
            texts.put(message(0, short_text(result)) + b"\n")
        return exit_code(result)
    finally:
        output.close()
        texts.close()


def _locate(invocation: Invocation, store: str | None) -> StoreLocation:
    """The caller's store, which has to be the one of our command line if that names one."""
    theirs = parse_store_url(store or None, os.environ)
    if invocation.store is None or invocation.store == os.environ.get("NIX_REMOTE"):
        return theirs
    if theirs.real_store_dir != invocation.location.real_store_dir:
        raise ConfigError(
            f"it is '{theirs.real_store_dir}', and the executor's is "
            f"'{invocation.location.real_store_dir}'"
        )
    return invocation.location


def _say(line: bytes) -> None:
    sys.stderr.flush()
    os.write(_TEXTS, line + b"\n")
