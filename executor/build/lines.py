"""Cutting what programs print into lines, at a cost that only depends on how much it is.

It may come a byte at a time, and without a line end.
"""

from __future__ import annotations

# A longer line is handed on in pieces of this size.
MAX_LINE = 1 << 20


class LineCutter:
    """Cuts a stream into lines; the same ones, in whichever pieces it comes."""

    def __init__(self) -> None:
        self._pending = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that ``data`` completes, without their ends."""
        *ends, rest = data.split(b"\n")
        lines: list[bytes] = []
        for end in ends:
            if self._pending or len(end) > MAX_LINE:
                self._append(end, lines)
                end = bytes(self._pending)
                self._pending.clear()
            lines.append(end)
        self._append(rest, lines)
        return lines

    def _append(self, data: bytes, lines: list[bytes]) -> None:
        self._pending += data
        while len(self._pending) > MAX_LINE:
            lines.append(bytes(self._pending[:MAX_LINE]))
            # From the front, this moves nothing.
            del self._pending[:MAX_LINE]

    def flush(self) -> list[bytes]:
        """What has no line end."""
        rest = bytes(self._pending)
        self._pending.clear()
        return [rest] if rest else []
