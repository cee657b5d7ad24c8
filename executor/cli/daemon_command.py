"""Serve Nix's clients: as nix-daemon does, on a unix socket or on standard input and output."""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import sys

from executor.build.early import launch_spawner
from executor.cli.interrupts import signals_wait
from executor.cli.options import Invocation
from executor.errors import UsageError

EXAMPLE = """\
example:
  sudo executor daemon
  sudo executor daemon --store ./store --socket ./socket
  NIX_REMOTE=unix://$PWD/socket nix-build …
"""
DEFAULT_SOCKET = "daemon-socket/socket"
# What our clients are told to be talking to: Nix's protocol of that version is what we speak.
_SPOKEN = "2.34.8"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own options."""
    parser.add_argument(
        "--socket",
        "--socket-path",
        metavar="PATH",
        help="where to listen (default: NIX_DAEMON_SOCKET_PATH, or the store's state directory)",
    )
    parser.add_argument("--stdio", action="store_true", help="serve standard input and output")
    parser.add_argument("--daemon", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--process-ops", action="store_true", help=argparse.SUPPRESS)
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--force-trusted", action="store_true", help="trust every client")
    group.add_argument("--force-untrusted", action="store_true", help="trust no client")
    group.add_argument("--default-trust", action="store_true", help="trust by trusted-users")


def run(invocation: Invocation, arguments: argparse.Namespace) -> int:
    """Serve until a signal comes, or the one client has gone."""
    if os.geteuid() != 0:
        raise UsageError("the daemon builds, and building needs root; try sudo")
    if arguments.socket is not None:
        arguments.socket = os.path.abspath(arguments.socket)
    os.chdir("/")
    asyncio.run(_serve(invocation, arguments))
    return 0


async def _serve(invocation: Invocation, arguments: argparse.Namespace) -> None:
    with signals_wait():
        from executor.build.engine import Engine
        from executor.protocols.daemon import Daemon, serve_stdio
        from executor.protocols.session import Host
        from executor.protocols.telling import activity_ids

    def log(text: str) -> None:
        invocation.say(1, text)

    listeners = [] if arguments.stdio else _listeners(invocation, arguments.socket)
    engine = Engine(
        launch_spawner(invocation.location),
        invocation.settings,
        invocation.location,
        on_notice=lambda notice: log(notice.text),
    )
    host = Host(
        engine=engine,
        loop=asyncio.get_running_loop(),
        location=invocation.location,
        settings=invocation.settings,
        version=_SPOKEN,
        activity_ids=activity_ids(),
    )
    trust = True if arguments.force_trusted else False if arguments.force_untrusted else None
    try:
        if arguments.stdio:
            await serve_stdio(host, trusted=trust is not False, log=log)
        else:
            await Daemon(host, log, force_trust=trust).run(listeners, os.environ)
    finally:
        await engine.close()
        sys.stderr.flush()


def _listeners(invocation: Invocation, path: str | None) -> list[socket.socket]:
    from executor.protocols.sockets import handed_down, listen

    listeners = handed_down(os.environ)
    if listeners:
        return listeners
    path = path or os.environ.get("NIX_DAEMON_SOCKET_PATH")
    path = path or f"{invocation.location.state_dir}/{DEFAULT_SOCKET}"
    invocation.say(3, f"listening on '{path}'")
    return [listen(path)]
