"""What the client and the service of external builds say to each other; pure (rows P12 to P17).

A request: magic, version, Nix's ``build.json`` as it is, and the files of the build directory. The
answer: frames, the last of which tells how the builder ended. Whoever sends the request may be
hostile; every value of it is checked here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from enum import IntEnum

from executor.build.foreign_build import ForeignRequest
from executor.errors import FormatError
from executor.formats.store_path import StoreDir, StorePath, check_name
from executor.formats.wire import WireReader, WireWriter, json_cost

MAGIC = 0x6578746275696C64
VERSION = 1
BUILD_DIRECTORY = "/build"
MAX_JSON = 64 << 20
MAX_FILES = 1 << 14
MAX_FILE_NAME = 255
# A fixed output is built with this variable, the one sign of it that the caller gets.
_CHECKED = "NIX_OUTPUT_CHECKED"


class Frame(IntEnum):
    """What the service says."""

    LOG = 1  # bytes that the builder printed
    STARTED = 2  # the sandbox is there, and the builder runs in it
    REFUSED = 3  # text: no builder has run
    OUTPUT = 4  # name; its archive follows as a framed stream
    EXITED = 5  # exit code
    KILLED = 6  # signal
    STOPPED = 7  # text: a limit, or an output that isn't acceptable


def write_request(document: bytes, files: Mapping[bytes, bytes]) -> bytes:
    """A whole request."""
    writer = WireWriter()
    writer.number(MAGIC)
    writer.number(VERSION)
    writer.data(document)
    writer.number(len(files))
    for name, content in files.items():
        writer.data(name)
        writer.data(content)
    return writer.take()


def read_request(reader: WireReader, store_dir: StoreDir) -> ForeignRequest:
    """What a caller wants. Raises ``FormatError``."""
    if reader.number() != MAGIC or reader.number() != VERSION:
        raise FormatError("this is no request of an external builder of this version")
    document = reader.data(MAX_JSON)
    reader.pay(json_cost(document))
    files: dict[bytes, bytes] = {}
    for _ in range(reader.number(MAX_FILES)):
        name = _file_name(reader.data(MAX_FILE_NAME))
        files[name] = reader.data()
    return _request(_Document(document), store_dir, files)


def _file_name(name: bytes) -> bytes:
    if not name or b"/" in name or b"\0" in name or name in (b".", b".."):
        raise FormatError("a file of the build directory has a name that is none")
    return name


def _request(
    document: _Document, store_dir: StoreDir, files: Mapping[bytes, bytes]
) -> ForeignRequest:
    document.require("version", 1)
    document.require("storeDir", store_dir.path)
    document.require("tmpDirInSandbox", BUILD_DIRECTORY)
    environment = document.texts_by_name("env")
    outputs: dict[str, StorePath] = {}
    for name, path in document.texts_by_name("outputs").items():
        check_name(name)
        outputs[name] = store_dir.parse(path)
    if not outputs or len(set(outputs.values())) != len(outputs):
        raise FormatError("the outputs of the request are none, or not different")
    return ForeignRequest(
        builder=_bytes(document.text("builder")),
        arguments=tuple(map(_bytes, document.texts("args"))),
        environment={_variable(name): _bytes(value) for name, value in environment.items()},
        platform=document.text("system"),
        inputs=frozenset(map(store_dir.parse, document.texts("inputPaths"))),
        outputs=outputs,
        files=tuple(files.items()),
        has_network=environment.get(_CHECKED) == "1",
    )


def _bytes(text: str) -> bytes:
    if "\0" in text:
        raise FormatError("a string of the request has a zero byte in it")
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise FormatError("a string of the request is no text") from error


def _variable(name: str) -> bytes:
    if not name or "=" in name:
        raise FormatError("a variable of the request has a name that is none")
    return _bytes(name)


class _Document:
    """``build.json``: a value of another type than it should have is a ``FormatError``."""

    def __init__(self, data: bytes) -> None:
        try:
            values = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise FormatError("the request is not JSON") from error
        if not isinstance(values, dict):
            raise FormatError("the request is not an object")
        self._values: dict[str, object] = values

    def require(self, name: str, expected: object) -> None:
        value = self._values.get(name)
        if type(value) is not type(expected) or value != expected:
            raise FormatError(f"'{name}' of the request is not {expected!r}")

    def text(self, name: str) -> str:
        value = self._values.get(name)
        if not isinstance(value, str):
            raise FormatError(f"'{name}' of the request is not a string")
        return value

    def texts(self, name: str) -> list[str]:
        value = self._values.get(name)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise FormatError(f"'{name}' of the request is not a list of strings")
        return value

    def texts_by_name(self, name: str) -> dict[str, str]:
        value = self._values.get(name)
        if not isinstance(value, dict):
            raise FormatError(f"'{name}' of the request is not an object")
        if not all(isinstance(item, str) for item in value.values()):
            raise FormatError(f"'{name}' of the request has a value that is not a string")
        return value


def log_frame(data: bytes) -> bytes:
    """Something that the builder printed."""
    return _frame(Frame.LOG, data)


def started_frame() -> bytes:
    """The builder runs."""
    return _frame(Frame.STARTED)


def refused_frame(text: str) -> bytes:
    """Nothing has run, and why."""
    return _frame(Frame.REFUSED, text.encode("utf-8", "replace"))


def output_frame(name: str) -> bytes:
    """The archive of an output comes."""
    return _frame(Frame.OUTPUT, name.encode())


def stopped_frame(text: str) -> bytes:
    """The builder was stopped, or its work is of no use, and why."""
    return _frame(Frame.STOPPED, text.encode("utf-8", "replace"))


def ended_frame(exit_code: int | None, signal: int | None) -> bytes:
    """How the builder ended by itself."""
    writer = WireWriter()
    writer.number(Frame.EXITED if signal is None else Frame.KILLED)
    writer.number((exit_code or 0) if signal is None else signal)
    return writer.take()


def _frame(kind: Frame, data: bytes | None = None) -> bytes:
    writer = WireWriter()
    writer.number(kind)
    if data is not None:
        writer.data(data)
    return writer.take()
