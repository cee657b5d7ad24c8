"""Serve a store on standard input and output as nix-store --serve does: for ssh:// behind sshd."""

from __future__ import annotations

import argparse
import asyncio
import os
from typing import TYPE_CHECKING

from executor.build.early import launch_spawner
from executor.cli.interrupts import signals_wait
from executor.cli.options import Invocation
from executor.errors import UsageError

if TYPE_CHECKING:
    from executor.protocols.channel import Channel
    from executor.protocols.outlet import Outlet

EXAMPLE = """\
example:
  nix copy --to 'ssh://root@builder?remote-program=executor%20serve' ./result
  command="executor serve",restrict ssh-ed25519 AAAA…     (authorized_keys: for reading only)
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own options."""
    parser.add_argument("--write", action="store_true", help="let the client add and build")
    # What clients call is REMOTE-PROGRAM --serve --write.
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)


def run(invocation: Invocation, arguments: argparse.Namespace) -> int:
    """Serve until the client goes."""
    behind_daemon = invocation.daemon is not None and (arguments.write or arguments.store)
    if arguments.write and not behind_daemon and os.geteuid() != 0:
        raise UsageError("building and adding need root; without --write anybody can serve")
    with signals_wait():
        from executor.protocols.channel import Channel
        from executor.protocols.errors import DisconnectedError
        from executor.protocols.outlet import Outlet
    os.chdir("/")
    channel, texts = Channel(0, 1), Outlet(2)
    try:
        if behind_daemon:
            _serve_daemons(invocation, channel, texts, writable=arguments.write)
        elif arguments.write:
            asyncio.run(_serve_writing(invocation, channel, texts))
        else:
            _serve_reading(invocation, channel, texts)
    except DisconnectedError:
        return 1
    finally:
        texts.close()
    return 0


def _serve_reading(invocation: Invocation, channel: Channel, texts: Outlet) -> None:
    from executor.protocols.serve_connection import ServeConnection, reading_backend

    location = invocation.location
    with reading_backend(location, invocation.settings) as backend:
        ServeConnection(channel, location.store_dir, backend, texts).serve()
        channel.flush()


def _serve_daemons(
    invocation: Invocation, channel: Channel, texts: Outlet, *, writable: bool
) -> None:
    """What a daemon has, for who isn't root: it knows what this user may do."""
    from executor.protocols.serve_connection import ServeConnection
    from executor.protocols.serve_remote import remote_backend

    assert invocation.daemon is not None
    store_dir = invocation.daemon.location.store_dir
    opened = remote_backend(
        invocation.daemon, invocation.settings, texts, reader=0, writable=writable
    )
    with opened as backend:
        ServeConnection(channel, store_dir, backend, texts).serve()
        channel.flush()


async def _serve_writing(invocation: Invocation, channel: Channel, texts: Outlet) -> None:
    with signals_wait():
        from executor.build.engine import Engine
        from executor.protocols.nested_service import serve_nested
        from executor.protocols.serve_connection import ServeConnection, writing_backend
        from executor.protocols.session import Host
        from executor.protocols.stdio import serve_in_thread

    location, settings = invocation.location, invocation.settings
    engine = Engine(
        launch_spawner(location),
        settings,
        location,
        on_notice=lambda notice: texts.put(f"{notice.text}\n".encode("utf-8", "replace")),
        nested=serve_nested,
    )
    host = Host(
        engine=engine,
        loop=asyncio.get_running_loop(),
        location=location,
        settings=settings,
        version="",
        activity_ids=iter(()),
    )

    def serve() -> None:
        with writing_backend(host, channel, texts) as backend:
            ServeConnection(channel, location.store_dir, backend, texts).serve()

    try:
        await serve_in_thread(serve, channel)
    finally:
        await engine.close()
