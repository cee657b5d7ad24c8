"""The client of external builds: runs as a build user of stock Nix, and restores what is built.

It trusts the service, which is root's, and checks what it gets all the same: outputs are archives,
unpacked at the paths that Nix gave to this very process.
"""

from __future__ import annotations

import json
import os
import signal
import stat
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import NoReturn

from executor.errors import FormatError
from executor.formats.store_path import StoreDir
from executor.formats.wire import FramedReader, WireReader
from executor.protocols import worker_frames as frames
from executor.protocols.external_messages import MAX_FILES, Frame, write_request
from executor.protocols.worker_protocol import LATEST
from executor.store.restore import restore_tree

_READ_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
# How Nix is told that a sandbox is there, or can't be.
_READY, _FAILED = b"\2\n", b"\1\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What Nix's ``build.json`` says to this side."""

    document: bytes
    build_directory: str
    real_store: str
    outputs: dict[str, str]


def read_job(path: str) -> Job:
    """Read ``build.json``. Raises ``FormatError`` and ``OSError``."""
    with open(path, "rb") as file:
        document = file.read()
    try:
        values = json.loads(document)
        store_dir = StoreDir(str(values["storeDir"]))
        outputs = {
            str(name): store_dir.parse(str(output)).base_name
            for name, output in values["outputs"].items()
        }
        directory, real_store = str(values["tmpDir"]), str(values["realStoreDir"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FormatError(f"'{path}' is not what Nix writes for external builders") from error
    return Job(document=document, build_directory=directory, real_store=real_store, outputs=outputs)


def request_of(job: Job) -> bytes:
    """What is sent: the document and the files that Nix has put into the build directory."""
    files: dict[bytes, bytes] = {}
    directory = os.open(job.build_directory, _DIRECTORY)
    try:
        for name in os.listdir(directory)[:MAX_FILES]:
            descriptor = os.open(name, _READ_FLAGS, dir_fd=directory)
            with open(descriptor, "rb") as file:
                if stat.S_ISREG(os.fstat(descriptor).st_mode):
                    files[os.fsencode(name)] = file.read()
    finally:
        os.close(directory)
    return write_request(job.document, files)


def follow(
    job: Job,
    reader: WireReader,
    write: Callable[[bytes], object],
    die_by: Callable[[int], NoReturn] | None = None,
) -> int:
    """Take what the service says until the end; the exit code. Kills itself as the builder was.

    Raises ``FormatError`` for what it shouldn't say.
    """
    while True:
        match reader.number():
            case Frame.LOG:
                write(reader.data())
            case Frame.STARTED:
                write(_READY)
            case Frame.REFUSED:
                write(failure(reader.data().decode("utf-8", "replace")))
                return 1
            case Frame.OUTPUT:
                _restore(job, reader.text(), FramedReader(reader))
            case Frame.EXITED:
                return reader.number(255)
            case Frame.KILLED:
                (die_by or _die_by)(reader.number(64))
            case Frame.STOPPED:
                write(b"error: " + reader.data() + b"\n")
                return 1
            case other:
                raise FormatError(f"the executor sent a frame {other}, which there is none")


def failure(text: str) -> bytes:
    """How Nix is told that no builder can run: an error of its protocol, without frame number."""
    return _FAILED + frames.error(LATEST, text)[8:]


def _restore(job: Job, name: str, source: FramedReader) -> None:
    base = job.outputs.get(name)
    if base is None:
        raise FormatError(f"the executor sent an output '{name}' that nobody wants")
    directory = os.open(job.real_store, _DIRECTORY)
    try:
        restore_tree(source, directory, os.fsencode(base))
        source.drain()
    finally:
        os.close(directory)


def _die_by(number: int) -> NoReturn:
    """End as the builder did: Nix tells its user which signal that was."""
    with suppress(OSError, ValueError):  # some can't be caught anyway
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    os._exit(128 + number)
