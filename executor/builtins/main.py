"""Entry of the builtin builders: what the spawner calls in the finished sandbox.

``run_builtin`` gets the builder's name (``builtin:fetchurl``) and the words of ``BuiltinOptions``
as arguments, and the derivation's environment; the current directory is the build directory.
Everything is imported when this module is: later there is nothing to import from.
"""

import encodings.idna
import encodings.latin_1
import encodings.utf_8  # noqa: F401
import os
import socket
import ssl
from collections.abc import Callable, Mapping
from contextlib import suppress

from executor.builtins import buildenv, fetchurl, unpack_channel
from executor.builtins.errors import error_text, say, show

_BUILTINS: Mapping[bytes, Callable[[list[bytes], dict[bytes, bytes]], int]] = {
    b"builtin:buildenv": buildenv.run,
    b"builtin:fetchurl": fetchurl.run,
    b"builtin:unpack-channel": unpack_channel.run,
}


def preload() -> None:
    """Load what the C library would load late: name service modules, certificates' code.

    Called once, before any sandbox; a failing look-up is as good as any.
    """
    ssl.create_default_context()
    with suppress(OSError):
        socket.getaddrinfo("localhost", 80)
    with suppress(OSError):
        socket.getaddrinfo("this.name.does.not.exist.invalid", 80)


def run_builtin(argv: list[bytes], environment: dict[bytes, bytes]) -> int:
    """Run the builtin that ``argv[0]`` names; its exit code."""
    name = os.path.basename(argv[0])
    builtin = _BUILTINS.get(name)
    if builtin is None:
        shown = show(name.removeprefix(b"builtin:"))
        say(error_text(f"unsupported builtin builder '{shown}'"))
        return 1
    return builtin(argv[1:], environment)
