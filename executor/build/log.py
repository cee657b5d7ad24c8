"""The builder's output: lines for listeners, the tail for error messages, ``@nix`` lines.

What a builder prints is untrusted. Everything here is bounded, and no input makes it raise.
"""

from __future__ import annotations

import json
from collections import deque
from dataclasses import dataclass

# A line longer than this is handed on in pieces; the log file always has the exact bytes.
MAX_LINE = 1 << 20
# A structured line longer than this is treated as text (Nix's own are a few hundred bytes).
_MAX_STRUCTURED = 1 << 16
_PREFIX = b"@nix "
_SET_PHASE = 104


@dataclass(frozen=True, slots=True)
class TextLine:
    """A line of ordinary output, without its line end."""

    line: bytes


@dataclass(frozen=True, slots=True)
class PhaseLine:
    """The builder announced a phase."""

    phase: str


@dataclass(frozen=True, slots=True)
class MessageLine:
    """The builder sent a message for people, with a verbosity level as Nix numbers them."""

    level: int
    text: str


LogEntry = TextLine | PhaseLine | MessageLine


class LineBuffer:
    """Cuts output into lines as Nix's ``BuildLog`` does and keeps the last ``tail_length``.

    A carriage return puts the cursor at the start of the line; what follows overwrites.
    """

    def __init__(self, tail_length: int) -> None:
        self.tail: deque[bytes] = deque(maxlen=tail_length)
        self._pending = b""

    def feed(self, data: bytes) -> list[LogEntry]:
        """Entries that ``data`` completes."""
        *complete, rest = (self._pending + data).split(b"\n")
        while len(rest) > MAX_LINE:
            complete.append(rest[:MAX_LINE])
            rest = rest[MAX_LINE:]
        self._pending = rest
        return [entry for line in complete if (entry := self._entry(line)) is not None]

    def flush(self) -> list[LogEntry]:
        """The last line, where it has no line end."""
        line, self._pending = self._pending, b""
        entry = self._entry(line) if line else None
        return [] if entry is None else [entry]

    def _entry(self, raw: bytes) -> LogEntry | None:
        line = _overwrite(raw) if b"\r" in raw else raw
        if line.startswith(_PREFIX):
            known, entry = _structured(line)
            if known:
                return entry
        self.tail.append(line)
        return TextLine(line)


def _overwrite(line: bytes) -> bytes:
    """What a terminal without erasing would show of a line with carriage returns."""
    shown = bytearray()
    for part in line.split(b"\r"):
        shown[: len(part)] = part
    return bytes(shown)


def _structured(line: bytes) -> tuple[bool, LogEntry | None]:
    """Whether ``line`` is a well-formed ``@nix`` line, and what of it is honoured (row G8)."""
    if len(line) > _MAX_STRUCTURED:
        return False, None
    try:
        message = json.loads(line[len(_PREFIX) :])
    except (ValueError, RecursionError):
        return False, None
    if not isinstance(message, dict):
        return False, None
    return True, _honoured(message)


def _honoured(message: dict[str, object]) -> LogEntry | None:
    action = message.get("action")
    if action == "setPhase":
        phase = message.get("phase")
        return PhaseLine(_encodable(phase)) if isinstance(phase, str) else None
    if action == "result" and message.get("type") == _SET_PHASE:
        fields = message.get("fields")
        if isinstance(fields, list) and fields and isinstance(fields[0], str):
            return PhaseLine(_encodable(fields[0]))
        return None
    if action == "msg":
        level, text = message.get("level"), message.get("msg")
        if isinstance(level, int) and isinstance(text, str):
            return MessageLine(level, _encodable(text))
    return None


def _encodable(text: str) -> str:
    """Without the halves of surrogate pairs that JSON can hold and no terminal can be sent."""
    return text.encode("utf-8", "replace").decode()
