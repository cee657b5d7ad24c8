"""What a server says while it works on an operation, read. Pure, and bounded in every length."""

from __future__ import annotations

import re
from dataclasses import dataclass

from executor.build.activities import Field
from executor.errors import FormatError
from executor.formats.wire import WireReader
from executor.protocols.errors import RemoteError
from executor.protocols.worker_frames import STRUCTURED_ERRORS, read_fields
from executor.protocols.worker_protocol import Frame, Version

_MAX_TEXT = 16 << 20
_MAX_TRACES = 1 << 12
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True, slots=True)
class Said:
    """A line for people, as the server words it."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivityStarted:
    """An activity begins, inside of ``parent`` if that isn't 0."""

    number: int
    level: int
    kind: int
    text: str
    fields: tuple[Field, ...]
    parent: int


@dataclass(frozen=True, slots=True)
class ActivityStopped:
    """An activity ends."""

    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivityTold:
    """An activity tells something."""

    number: int
    kind: int
    fields: tuple[Field, ...]


@dataclass(frozen=True, slots=True)
class Answered:
    """The work is done; the answer follows."""


Told = Said | ActivityStarted | ActivityStopped | ActivityTold
ServerFrame = Told | Answered | RemoteError


def read_frame(reader: WireReader, version: Version) -> ServerFrame:
    """The next frame; an error as a value. Raises ``FormatError``."""
    kind = reader.number()
    match kind:
        case Frame.NEXT:
            return Said(reader.text(_MAX_TEXT))
        case Frame.START_ACTIVITY:
            # Each is read before the next: the order of keywords is that of the protocol.
            return ActivityStarted(
                number=reader.number(),
                level=reader.number(),
                kind=reader.number(),
                text=reader.text(_MAX_TEXT),
                fields=tuple(read_fields(reader)),
                parent=reader.number(),
            )
        case Frame.STOP_ACTIVITY:
            return ActivityStopped(reader.number())
        case Frame.RESULT:
            return ActivityTold(
                number=reader.number(), kind=reader.number(), fields=tuple(read_fields(reader))
            )
        case Frame.LAST:
            return Answered()
        case Frame.ERROR:
            return read_error(reader, version)
        case _:
            raise FormatError(f"got unknown message type {kind:x} from the server")


def read_error(reader: WireReader, version: Version) -> RemoteError:
    """An error, behind its frame's number (row P25). Raises ``FormatError``."""
    if version.minor < STRUCTURED_ERRORS:
        return RemoteError(without_colours(reader.text(_MAX_TEXT)), reader.number(0xFF) or 1)
    if reader.text(_MAX_TEXT) != "Error":
        raise FormatError("the server sent an error of an unknown type")
    reader.number()  # its level: of no use, an error is one
    reader.text(_MAX_TEXT)
    text = reader.text(_MAX_TEXT)
    _no_position(reader)
    traces = []
    size = len(text)
    for _ in range(reader.number(_MAX_TRACES)):
        _no_position(reader)
        traces.append(reader.text(_MAX_TEXT))
        size += len(traces[-1])
        if size > _MAX_TEXT:
            raise FormatError("the server's error is too long")
    shown = tuple(without_colours(trace) for trace in traces if trace)
    return RemoteError(without_colours(text), traces=shown)


def without_colours(text: str) -> str:
    """A server doesn't know where we write."""
    return _COLOUR.sub("", text)


def _no_position(reader: WireReader) -> None:
    """No version says where in a file an error is; Nix takes no other number either."""
    if reader.number():
        raise FormatError("the server sent a position in a form that is not known")
