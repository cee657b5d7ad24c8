"""Build for a stock Nix as one of its external-builders: the work is done by external-service."""

from __future__ import annotations

import argparse
import os

from executor.cli.external_service_command import DEFAULT_SOCKET
from executor.cli.options import Invocation

EXAMPLE = """\
example (nix.conf of the stock Nix):
  external-builders = [{"systems": ["x86_64-linux"], "program": "/usr/bin/executor",
                        "args": ["external-builder"]}]
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own options."""
    parser.add_argument("--socket", metavar="PATH", default=DEFAULT_SOCKET, help="the service's")
    parser.add_argument("document", metavar="build.json", help="what Nix says of the build")


def run(invocation: Invocation, arguments: argparse.Namespace) -> int:
    """Hand the build over; the exit code is the builder's."""
    from executor.formats.wire import WireReader
    from executor.protocols.external_client import failure, follow, read_job, request_of
    from executor.protocols.sockets import connect

    job = read_job(arguments.document)
    try:
        connection = connect(arguments.socket)
    except OSError as error:
        reason = f"can't reach the executor at '{arguments.socket}': {error.strerror}"
        _write(failure(f"{reason}; is 'executor external-service' running?"))
        return 1
    with connection, connection.makefile("rb") as stream:
        connection.sendall(request_of(job))
        return follow(job, WireReader(stream), _write)


def _write(data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(1, view) :]
