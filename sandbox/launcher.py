"""Starting the spawner process, apart from what talks to it.

The process needs tens of milliseconds to get ready; whoever launches it before importing asyncio
and the rest has both at once. It must be launched from the main thread, before there are others.
"""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

# Imports make no garbage; ``serve_executor`` collects again.
_START = """\
import gc, sys
gc.disable()
sys.path[:] = {paths!r}
from sandbox.{module} import main
main({arguments})
"""


@dataclass(frozen=True, slots=True)
class Launched:
    """A process on its way, and our end of its socket. ``Spawner`` or its like takes it over."""

    process: subprocess.Popen[bytes]
    control: socket.socket


def launch(preload: Sequence[str] = ()) -> Launched:
    """Start the process; it gets ready while the caller goes on.

    ``preload`` names the functions that ``Call`` entries may use, as ``module:function``.
    """
    return _launch("spawner", repr(list(preload)))


def launch_network_server() -> Launched:
    """Start the process that makes networks; ``NetworkServer`` takes it over."""
    return _launch("nat_server")


def _launch(module: str, *arguments: str) -> Launched:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    # Only absolute paths: the isolated interpreter must not look in the current directory.
    paths = [path for path in sys.path if os.path.isabs(path)]
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    code = _START.format(
        paths=list(dict.fromkeys([package, *paths])),
        module=module,
        arguments=", ".join((str(theirs.fileno()), *arguments)),
    )
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", code],
            stdin=subprocess.DEVNULL,
            env={},
            cwd="/",
            pass_fds=[theirs.fileno()],
            start_new_session=True,
        )
    os.set_blocking(ours.fileno(), False)
    return Launched(process, ours)


def end(process: subprocess.Popen[bytes], seconds: float) -> None:
    """Wait for the end of a process whose socket is closed, and don't wait for ever.

    ``Popen.wait`` with a timeout looks again and again, and sleeps between.
    """
    pidfd = os.pidfd_open(process.pid)
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        if not poll.poll(seconds * 1000):
            process.kill()
    finally:
        os.close(pidfd)
    process.wait()
