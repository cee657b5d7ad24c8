"""Statuses of several targets, as Nix's worker protocol tells them.

``nix-daemon --stdio`` answers BuildPathsWithResults with a result for every target
(src/libstore/worker-protocol.hh). It is the one way to the status of a floating derivation.
"""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Mapping, Sequence
from typing import BinaryIO, cast

from executor.build.result import BuildStatus

_CLIENT_MAGIC, _SERVER_MAGIC = 0x6E697863, 0x6478696F
# The newest form without times of the processor in results, which both versions know.
_VERSION = 0x122
_BUILD_PATHS_WITH_RESULTS = 46
_LAST, _NEXT = 0x616C7473, 0x6F6C6D67
_START, _STOP, _RESULT = 0x53545254, 0x53544F50, 0x52534C54


def build_statuses(
    command: Sequence[str], environment: Mapping[str, str], targets: Sequence[str], *, check: bool
) -> dict[str, str] | None:
    """The status of every target (``x.drv!out``); None when Nix answered with an error."""
    request = struct.pack("<QQQ", _CLIENT_MAGIC, _VERSION, 0) + bytes(8)
    request += struct.pack("<Q", _BUILD_PATHS_WITH_RESULTS)
    request += struct.pack("<Q", len(targets)) + b"".join(_string(item) for item in targets)
    request += struct.pack("<Q", 2 if check else 0)
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=dict(environment),
    ) as process:
        source, sink = cast(BinaryIO, process.stdout), cast(BinaryIO, process.stdin)
        try:
            sink.write(request)
            sink.flush()
            return _answer(_Reader(source))
        except EOFError:
            return None
        finally:
            process.kill()


class _Reader:
    """Numbers and strings of the protocol; raises EOFError where it ends."""

    def __init__(self, source: BinaryIO) -> None:
        self._source = source

    def number(self) -> int:
        return int(struct.unpack("<Q", self._bytes(8))[0])

    def string(self) -> str:
        size = self.number()
        data = self._bytes(size)
        self._bytes(-size % 8)
        return data.decode(errors="replace")

    def fields(self) -> None:
        """Values that belong to a message of progress."""
        for _ in range(self.number()):
            if self.number() == 0:
                self.number()
            else:
                self.string()

    def _bytes(self, size: int) -> bytes:
        data = self._source.read(size)
        if len(data) < size:
            raise EOFError
        return data


def _answer(reader: _Reader) -> dict[str, str] | None:
    if reader.number() != _SERVER_MAGIC:
        raise AssertionError("nix-daemon --stdio doesn't speak its protocol")
    reader.number()  # its version of the protocol
    reader.string()  # its version
    if not _to_the_end_of_messages(reader) or not _to_the_end_of_messages(reader):
        return None
    found = {}
    for _ in range(reader.number()):
        target, status = reader.string(), BuildStatus(reader.number())
        reader.string()  # its message
        for _ in range(4):  # how often it was built, whether it differed, start, stop
            reader.number()
        for _ in range(reader.number()):  # its realisations
            reader.string(), reader.string()
        found[target] = BuildStatus.BUILT.label if status.success else status.label
    return found


def _to_the_end_of_messages(reader: _Reader) -> bool:
    """Skip messages of progress; whether they ended well."""
    while (kind := reader.number()) != _LAST:
        if kind == _NEXT:
            reader.string()
        elif kind == _START:
            for _ in range(3):
                reader.number()
            reader.string()
            reader.fields()
            reader.number()
        elif kind == _STOP:
            reader.number()
        elif kind == _RESULT:
            reader.number(), reader.number()
            reader.fields()
        else:
            return False
    return True


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data + bytes(-len(data) % 8)
