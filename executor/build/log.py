"""The builder's output: lines for listeners, the tail for error messages, ``@nix`` lines.

What a builder prints is untrusted. Everything here is bounded, and no input makes it raise.
"""

from __future__ import annotations

import json
from collections import deque
from dataclasses import dataclass
from typing import TypeGuard

from executor.build.lines import LineCutter
from executor.errors import FormatError

# A structured line longer than this is treated as text (Nix's own are a few hundred bytes).
_MAX_STRUCTURED = 1 << 16
_PREFIX = b"@nix "
_SOURCE = "the derivation builder"
_FILE_TRANSFER, _SET_PHASE = 101, 104
# Nix's own have two or four; numbers are what 64 bits hold.
_MAX_FIELDS = 16
_MAX_NUMBER = 1 << 64
# Downloads that a builder may have under way; Nix's own have 25.
_MAX_TRANSFERS = 256


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


@dataclass(frozen=True, slots=True)
class TransferLine:
    """The builder tells how a download goes: it began, something came of it, it ended."""

    action: str
    transfer: int
    level: int = 0
    text: str = ""
    kind: int = 0
    fields: tuple[int | str, ...] = ()


LogEntry = TextLine | PhaseLine | MessageLine | TransferLine


class LineBuffer:
    """Cuts output into lines as Nix's ``BuildLog`` does and keeps the last ``tail_length``.

    A carriage return puts the cursor at the start of the line; what follows overwrites. A line that
    is too long comes in pieces; the log file always has the exact bytes.
    """

    def __init__(self, tail_length: int) -> None:
        self.tail: deque[bytes] = deque(maxlen=tail_length)
        self._cutter = LineCutter()
        self._transfers: set[int] = set()

    def feed(self, data: bytes) -> list[LogEntry]:
        """Entries that ``data`` completes."""
        return [entry for line in self._cutter.feed(data) for entry in self._entries(line)]

    def flush(self) -> list[LogEntry]:
        """The last line, where it has no line end."""
        return [entry for line in self._cutter.flush() for entry in self._entries(line)]

    def _entries(self, raw: bytes) -> list[LogEntry]:
        line = _overwrite(raw) if b"\r" in raw else raw
        found: list[LogEntry] = []
        if line.startswith(_PREFIX):
            complaint, entry = _structured(line)
            if isinstance(entry, TransferLine):
                entry = self._transfer(entry)
            if complaint is None:
                return [] if entry is None else [entry]
            if complaint:
                found.append(MessageLine(1, complaint))
        self.tail.append(line)
        return [*found, TextLine(line)]

    def _transfer(self, entry: TransferLine) -> LogEntry | None:
        """Only what was begun can go on; and nothing begins twice."""
        known = entry.transfer in self._transfers
        if entry.action == "start":
            if known or len(self._transfers) >= _MAX_TRANSFERS:
                return None
            self._transfers.add(entry.transfer)
            return entry
        if known and entry.action == "stop":
            self._transfers.remove(entry.transfer)
        return entry if known else None


def _overwrite(line: bytes) -> bytes:
    """What a terminal without erasing would show of a line with carriage returns."""
    shown = bytearray()
    for part in line.split(b"\r"):
        shown[: len(part)] = part
    return bytes(shown)


def _structured(line: bytes) -> tuple[str | None, LogEntry | None]:
    """What of an ``@nix`` line is honoured (row G8).

    If it is not well-formed, there is a complaint, which is empty for what isn't worth a word.
    """
    if len(line) > _MAX_STRUCTURED:
        return "", None
    try:
        message = json.loads(line[len(_PREFIX) :])
    except ValueError as error:
        return f"bad JSON log message from {_SOURCE}: {error}", None
    except RecursionError:
        return "", None
    try:
        return None, _honoured(message)
    except FormatError as error:
        return f"Unable to handle a JSON message from {_SOURCE}: {error}", None


def _honoured(message: object) -> LogEntry | None:
    """Raises ``FormatError`` for what Nix can't make sense of."""
    if not isinstance(message, dict):
        raise FormatError("it is no object")
    match message.get("action"):
        case "setPhase":
            return PhaseLine(_text(message, "phase"))
        case "msg":
            level, text = message.get("level"), _text(message, "msg")
            return MessageLine(level, text) if isinstance(level, int) else None
        case "start" if message.get("type") == _FILE_TRANSFER:
            return _transfer_start(message)
        case "stop":
            number = message.get("id")
            return TransferLine("stop", number) if _is_number(number) else None
        case "result":
            return _result(message)
        case str():
            return None
    raise FormatError("'action' is no text")


def _text(message: dict[str, object], name: str) -> str:
    value = message.get(name)
    if not isinstance(value, str):
        raise FormatError(f"'{name}' is no text")
    return _encodable(value)


def _result(message: dict[str, object]) -> LogEntry | None:
    fields, kind, number = message.get("fields"), message.get("type"), message.get("id")
    if not isinstance(fields, list):
        return None
    if kind == _SET_PHASE:
        is_text = bool(fields) and isinstance(fields[0], str)
        return PhaseLine(_encodable(fields[0])) if is_text else None
    checked = _fields(fields)
    if checked is None or not (_is_number(kind) and _is_number(number)):
        return None
    return TransferLine("result", number, kind=kind, fields=checked)


def _transfer_start(message: dict[str, object]) -> LogEntry | None:
    number, level, text = message.get("id"), message.get("level"), message.get("text")
    fields = _fields(message.get("fields", []))
    if fields is None or not (
        _is_number(number) and isinstance(level, int) and isinstance(text, str)
    ):
        return None
    return TransferLine("start", number, level=level, text=_encodable(text), fields=fields)


def _fields(values: object) -> tuple[int | str, ...] | None:
    """Numbers and texts, a few; None for anything else."""
    if not isinstance(values, list) or len(values) > _MAX_FIELDS:
        return None
    if not all(isinstance(value, str) or _is_number(value) for value in values):
        return None
    return tuple(_encodable(value) if isinstance(value, str) else value for value in values)


def _is_number(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MAX_NUMBER


def _encodable(text: str) -> str:
    """Without the halves of surrogate pairs that JSON can hold and no terminal can be sent."""
    return text.encode("utf-8", "replace").decode()
