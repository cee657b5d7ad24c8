"""Run the builds of a stock Nix that has this program among its external-builders."""

from __future__ import annotations

import argparse
import asyncio
import grp
import os
from dataclasses import replace

from executor.build.early import launch_spawner
from executor.cli.interrupts import signals_wait
from executor.cli.options import Invocation, one_line
from executor.errors import UsageError

EXAMPLE = """\
example:
  sudo executor external-service --jobs 8
nix.conf of the stock Nix:
  experimental-features = external-builders
  external-builders = [{"systems": ["x86_64-linux"], "program": "/usr/bin/executor",
                        "args": ["external-builder"]}]
"""
DEFAULT_SOCKET = "/run/executor/external-builders/socket"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own options."""
    parser.add_argument("--socket", metavar="PATH", default=DEFAULT_SOCKET, help="where to listen")
    parser.add_argument("--jobs", metavar="N", type=int, help="builds at once (default: all CPUs)")


def run(invocation: Invocation, arguments: argparse.Namespace) -> int:
    """Serve until a signal comes."""
    if os.geteuid() != 0:
        raise UsageError("the service builds, and building needs root; try sudo")
    jobs = arguments.jobs if arguments.jobs is not None else len(os.sched_getaffinity(0))
    if jobs < 1:
        raise UsageError("--jobs takes a number from 1 on")
    invocation.require_local()
    path = os.path.abspath(arguments.socket)
    os.chdir("/")
    asyncio.run(_serve(invocation, path, jobs))
    return 0


async def _serve(invocation: Invocation, path: str, jobs: int) -> None:
    with signals_wait():
        from executor.build.engine import Engine
        from executor.protocols.external_service import ExternalService
        from executor.protocols.session import Host
        from executor.protocols.sockets import listen, notify

    def log(text: str, level: int = 1) -> None:
        invocation.say(level, one_line(text))

    # Nix has leased a member of the group for each of its builds, and waits for us: our builders
    # have ids of the range beside it, or there might be none left for them.
    settings = replace(
        invocation.settings,
        substitute=False,
        sandbox_build_dir="/build",
        auto_allocate_uids=False,
        keep_failed=False,
    )
    engine = Engine(
        launch_spawner(invocation.location),
        replace(settings, build_users_group=""),
        invocation.location,
        on_notice=lambda notice: log(notice.text, notice.level),
    )
    host = Host(
        engine=engine,
        loop=asyncio.get_running_loop(),
        location=invocation.location,
        settings=settings,
        version="",
        activity_ids=iter(()),
    )
    try:
        listener = listen(path)
        _restrict(path, settings.build_users_group)
        service = ExternalService(host, log, jobs=jobs)
        invocation.say(3, f"listening on '{path}'")
        await service.run(listener, lambda: notify(os.environ, "READY=1"))
    finally:
        await engine.close()


def _restrict(path: str, group: str) -> None:
    """Let nobody but the group connect; the kernel's word on who connects is asked, too."""
    gid = 0
    if group:
        try:
            gid = grp.getgrnam(group).gr_gid
        except KeyError:
            raise UsageError(f"the group '{group}' of 'build-users-group' does not exist") from None
    os.chown(path, 0, gid)
    os.chmod(path, 0o660)
