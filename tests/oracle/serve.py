"""Asks stock Nix for the status of a build, which its command line doesn't tell.

``nix-store --serve`` answers a BuildDerivation request with the number of the status
(src/libstore/serve-protocol.hh); the derivation is sent with its inputs already built.
"""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Collection, Mapping, Sequence
from typing import Any, BinaryIO, cast

from executor.build.result import BuildStatus
from executor.formats.aterm import parse_term

_CLIENT_MAGIC, _SERVER_MAGIC = 0x390C9DEB, 0x5452EECB
_VERSION = 0x205
_BUILD_DERIVATION = 8


def build_status(
    command: Sequence[str],
    environment: Mapping[str, str],
    drv_path: str,
    drv: bytes,
    inputs: Collection[str],
    limits: tuple[int, int, int],
) -> str | None:
    """The status of building ``drv``; None when Nix refused to answer.

    ``inputs`` are all paths that the build may see, ``limits`` the seconds of silence, the seconds
    in all, and the bytes of log that it may take (0: no limit).
    """
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=dict(environment),
    ) as process:
        source = cast(BinaryIO, process.stdout)
        sink = cast(BinaryIO, process.stdin)
        try:
            sink.write(struct.pack("<QQ", _CLIENT_MAGIC, _VERSION))
            sink.flush()
            if _number(source) != _SERVER_MAGIC:
                raise AssertionError("nix-store --serve doesn't speak its protocol")
            _number(source)
            sink.write(_request(drv_path, drv, inputs, limits))
            sink.flush()
            return BuildStatus(_number(source)).label
        except EOFError:
            return None
        finally:
            process.kill()


def status_on_the_wire(record: Mapping[str, Any]) -> str:
    """The status as Nix tells it: one success for all, and no number for a hash mismatch."""
    if record["success"]:
        return BuildStatus.BUILT.label
    mismatch = BuildStatus.HASH_MISMATCH
    is_mismatch = record["status"] == mismatch.label
    return BuildStatus(mismatch.wire).label if is_mismatch else str(record["status"])


def _request(
    drv_path: str, drv: bytes, inputs: Collection[str], limits: tuple[int, int, int]
) -> bytes:
    term = parse_term(drv)
    texts = [drv_path.encode()]
    data = struct.pack("<Q", _BUILD_DERIVATION) + _strings(texts)
    data += struct.pack("<Q", len(term.outputs))
    for output in term.outputs:
        data += _strings([bytes(part) for part in output])
    data += _list([path.encode() for path in sorted(inputs)])
    data += _strings([term.platform, term.builder]) + _list(term.args)
    data += struct.pack("<Q", len(term.env))
    for name, value in term.env:
        data += _strings([name, value])
    silence, timeout, log_size = limits
    return data + struct.pack("<QQQQQ", silence, timeout, log_size, 0, 0)


def _strings(texts: Sequence[bytes]) -> bytes:
    return b"".join(struct.pack("<Q", len(text)) + text + bytes(-len(text) % 8) for text in texts)


def _list(texts: Sequence[bytes]) -> bytes:
    return struct.pack("<Q", len(texts)) + _strings(texts)


def _number(source: BinaryIO) -> int:
    data = source.read(8)
    if len(data) < 8:
        raise EOFError
    return int(struct.unpack("<Q", data)[0])
