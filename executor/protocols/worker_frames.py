"""Frames that a server sends while it works on an operation: messages, activities, errors. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from executor.formats.wire import WireReader, WireWriter
from executor.protocols.worker_protocol import EVENT_KIND, Frame, Version

Field = int | str
# From here on errors are structured.
STRUCTURED_ERRORS = 26
_MAX_FIELDS = 64


def message(text: str) -> bytes:
    """A line for people."""
    writer = WireWriter()
    writer.number(Frame.NEXT)
    writer.text(text + "\n")
    return writer.take()


def last() -> bytes:
    """The work is done; what follows is the answer."""
    writer = WireWriter()
    writer.number(Frame.LAST)
    return writer.take()


def error(version: Version, text: str, *, status: int = 1) -> bytes:
    """The work has failed."""
    writer = WireWriter()
    writer.number(Frame.ERROR)
    if version.minor >= STRUCTURED_ERRORS:
        writer.text("Error")
        writer.number(0)  # level
        writer.text("Error")
        writer.text(text)
        writer.number(0)  # no position
        writer.number(0)  # no traces
    else:
        writer.text(text)
        writer.number(status)
    return writer.take()


def start_activity(
    number: int, level: int, kind: int, text: str, fields: Sequence[Field], parent: int
) -> bytes:
    """An activity begins."""
    writer = WireWriter()
    writer.number(Frame.START_ACTIVITY)
    writer.number(number)
    writer.number(level)
    writer.number(kind)
    writer.text(text)
    _write_fields(writer, fields)
    writer.number(parent)
    return writer.take()


def stop_activity(number: int) -> bytes:
    """An activity ends."""
    writer = WireWriter()
    writer.number(Frame.STOP_ACTIVITY)
    writer.number(number)
    return writer.take()


def activity_result(number: int, kind: int, fields: Sequence[Field]) -> bytes:
    """An activity tells something."""
    writer = WireWriter()
    writer.number(Frame.RESULT)
    writer.number(number)
    writer.number(kind)
    _write_fields(writer, fields)
    return writer.take()


def event(text: str) -> bytes:
    """Something that happened, as JSON, for who speaks ``EVENTS``."""
    return activity_result(0, EVENT_KIND, [text])


def ask_for_data(size: int) -> bytes:
    """The client is to send up to ``size`` bytes of what it adds (versions below 1.23)."""
    writer = WireWriter()
    writer.number(Frame.READ)
    writer.number(size)
    return writer.take()


def _write_fields(writer: WireWriter, fields: Sequence[Field]) -> None:
    writer.number(len(fields))
    for field in fields:
        if isinstance(field, int):
            writer.number(0)
            writer.number(field)
        else:
            writer.number(1)
            writer.text(field)


def read_fields(reader: WireReader) -> list[Field]:
    """What belongs to an activity. Raises ``FormatError``."""
    fields: list[Field] = []
    for _ in range(reader.number(_MAX_FIELDS)):
        kind = reader.number(1)
        fields.append(reader.text() if kind else reader.number())
    return fields
