"""Serve Nix's clients: as nix-daemon does, on a unix socket or on standard input and output."""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import sys

from executor.build.early import launch_spawner
from executor.cli.interrupts import signals_wait
from executor.cli.options import Invocation, one_line
from executor.errors import StoreError, UsageError
from executor.store.location import DaemonAddress

EXAMPLE = """\
example:
  sudo executor daemon
  sudo executor daemon --store ./store --socket ./socket
  NIX_REMOTE=unix://$PWD/socket nix-build …
"""
DEFAULT_SOCKET = "daemon-socket/socket"
# What our clients are told to be talking to: Nix's protocol of that version is what we speak.
_SPOKEN = "2.34.8"
_ALLOCATOR = "PYTHONMALLOC"


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
    if arguments.stdio and invocation.daemon is not None and not arguments.process_ops:
        if arguments.force_untrusted:
            raise UsageError(
                "--force-untrusted needs a store of this machine: a daemon trusts who it is asked "
                "by, which is the user of this process; try --store local"
            )
        return _forward(invocation.daemon)
    if os.geteuid() != 0:
        raise UsageError("the daemon builds, and building needs root; try sudo")
    invocation.require_local()
    if arguments.socket is not None:
        arguments.socket = os.path.abspath(arguments.socket)
    if not arguments.stdio:
        _allocate_as_c_does()
    os.chdir("/")
    asyncio.run(_serve(invocation, arguments))
    return 0


def _allocate_as_c_does() -> None:
    """Begin anew with the C library's memory allocation, which gives back single pages.

    The interpreter's own gives back whole MiB only, and after every crowd of clients some object in
    each of them lives on: a daemon that had 20,000 builds held 40 MiB of nothing. Where the
    interpreter doesn't look at the environment there is no way to choose.
    """
    chosen = os.environ.pop(_ALLOCATOR, None)
    if chosen is None and sys.executable and not sys.flags.ignore_environment:
        os.execve(sys.executable, sys.orig_argv, {**os.environ, _ALLOCATOR: "malloc"})


def _forward(daemon: DaemonAddress) -> int:
    """Let the daemon that has the store talk to who is at the other ends of our pipes."""
    from executor.protocols.forward import forward
    from executor.protocols.remote_store import connect_to

    with connect_to(daemon) as connection:
        if forward(0, 1, connection):
            return 0
    raise StoreError(f"the daemon at '{daemon.socket}' has ended the connection")


async def _serve(invocation: Invocation, arguments: argparse.Namespace) -> None:
    with signals_wait():
        from executor.build.engine import Engine
        from executor.protocols.client_settings import settings_of_silent
        from executor.protocols.daemon import Daemon, serve_stdio
        from executor.protocols.nested_service import serve_nested
        from executor.protocols.session import Host
        from executor.protocols.telling import activity_ids

    def log(text: str, level: int = 1) -> None:
        invocation.say(level, one_line(text))

    listeners = [] if arguments.stdio else _listeners(invocation, arguments.socket)
    engine = Engine(
        launch_spawner(invocation.location),
        invocation.settings,
        invocation.location,
        on_notice=lambda notice: log(notice.text, notice.level),
        nested=serve_nested,
    )
    silent_settings, warnings = settings_of_silent(invocation.settings)
    for warning in warnings:
        log(f"warning: {warning}")
    host = Host(
        engine=engine,
        loop=asyncio.get_running_loop(),
        location=invocation.location,
        settings=invocation.settings,
        version=_SPOKEN,
        activity_ids=activity_ids(),
        silent_settings=silent_settings,
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
