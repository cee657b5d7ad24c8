"""Where the log of a build lives, writing it as it comes, and reading it again.

Layout (as Nix): `<log dir>/drvs/<first two characters>/<rest of the derivation's base name>`, with
".bz2" behind it when compressed.
"""

import bz2
import os
from collections.abc import Iterator
from contextlib import suppress
from io import FileIO
from types import TracebackType
from typing import Self

from executor.errors import StoreError
from executor.formats.store_path import StorePath
from executor.store.descriptors import make_directories

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_BUFFER = 64 * 1024
# The longest log that is read as a whole, in bytes.
_MOST = 256 * 1024 * 1024
# A compressed log without a byte in it.
_NOTHING = b"BZh9\x17rE8P\x90" + bytes(4)
# A block of Nix's level, 9, takes 7.6 MB to compress, one of level 1 takes 1.2. Most logs are
# small, and what fits into a block of level 1 is the same at either, but for the level it names.
_SMALL = 64 * 1024
_LEVEL_AT = len(b"BZh")


def log_path(log_dir: str, drv_path: StorePath, *, compress: bool) -> str:
    """The file that the log of a build of this derivation is written to."""
    base = drv_path.base_name
    return f"{log_dir}/drvs/{base[:2]}/{base[2:]}{'.bz2' if compress else ''}"


class LogFile:
    """A log that is being written; its directories are made, and an older log is replaced.

    With `compress` the file is a bzip2 stream, compressed as it comes (in blocks of 900 kB, so
    the file grows in jumps); otherwise each write is visible at once. A context manager. Raises
    StoreError when the file can't be opened; a symbolic link in its place is not followed.
    """

    def __init__(self, path: str, compress: bool) -> None:
        self.path = path
        self._stream = _Stream() if compress else None
        self._fd = _open_for_writing(path)
        self.size = 0
        self.error: OSError | None = None

    def write(self, data: bytes) -> None:
        """Append bytes as they came from the builder.

        A log that can't be written any more, on a full disk, ends there: the build goes on, as in
        Nix, and `error` tells why.
        """
        self.size += len(data)
        self._write(data if self._stream is None else self._stream.compress(data))

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        try:
            while view and self.error is None:
                view = view[os.write(self._fd, view) :]
        except OSError as error:
            self.error = error

    def close(self) -> None:
        """Complete the file; doing it twice is harmless."""
        if self._fd < 0:
            return
        try:
            if self._stream is not None:
                self._write(self._stream.finish())
        finally:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class _Stream:
    """A bzip2 stream as Nix writes it, which needs its memory only where the content is large."""

    def __init__(self) -> None:
        self._small = bytearray()
        self._compressor: bz2.BZ2Compressor | None = None

    def compress(self, data: bytes) -> bytes:
        """Take more; what of the stream is ready."""
        if self._compressor is not None:
            return self._compressor.compress(data)
        self._small += data
        if len(self._small) <= _SMALL:
            return b""
        self._compressor = bz2.BZ2Compressor()
        data, self._small = bytes(self._small), bytearray()
        return self._compressor.compress(data)

    def finish(self) -> bytes:
        """The rest of the stream."""
        if self._compressor is not None:
            return self._compressor.flush()
        if not self._small:
            return _NOTHING
        stream = bytearray(bz2.compress(self._small, 1))
        stream[_LEVEL_AT : _LEVEL_AT + 1] = b"9"
        return bytes(stream)


def _open_for_writing(path: str) -> int:
    directory, name = os.path.split(path)
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        make_directories(directory)
        directory_fd = os.open(directory, _DIRECTORY | os.O_NOFOLLOW)
        try:
            with suppress(FileNotFoundError):
                # A new inode: readers of the old log keep it, and nobody else has the new one.
                os.unlink(name, dir_fd=directory_fd)
            _remove_twin(directory_fd, name)
            fd = os.open(name, flags, 0o644, dir_fd=directory_fd)
            # Whoever may look at the store may read its logs, whatever the umask is.
            os.fchmod(fd, 0o644)
            return fd
        finally:
            os.close(directory_fd)
    except OSError as error:
        raise StoreError(f"cannot open log file '{path}': {error.strerror}") from error


def _remove_twin(directory_fd: int, name: str) -> None:
    """Remove a plain log beside a new compressed one: it is the one that readers look for first."""
    if name.endswith(".bz2"):
        with suppress(FileNotFoundError):
            os.unlink(name.removesuffix(".bz2"), dir_fd=directory_fd)


def log_pieces(log_dir: str, drv_path: StorePath) -> Iterator[bytes] | None:
    """The log of the last build piece by piece, or None if there is none; looks where Nix looks.

    A builder that has printed one letter for an hour has left a small file: a log may be larger
    than the memory. Of one whose writer was killed, what can be read. Raises StoreError for one
    that was damaged.
    """
    base = drv_path.base_name
    for plain in (f"{log_dir}/drvs/{base[:2]}/{base[2:]}", f"{log_dir}/drvs/{base}"):
        with suppress(FileNotFoundError):
            return _pieces(FileIO(plain))
        with suppress(FileNotFoundError):
            return _unpacked(FileIO(f"{plain}.bz2"), f"{plain}.bz2")
    return None


def read_log(log_dir: str, drv_path: StorePath) -> bytes | None:
    """The whole log, as `log_pieces` finds it. Raises StoreError for one that is too long, too."""
    pieces = log_pieces(log_dir, drv_path)
    if pieces is None:
        return None
    log = bytearray()
    for piece in pieces:
        log += piece
        if len(log) > _MOST:
            raise StoreError(f"the log of '{drv_path.base_name}' is longer than {_MOST} bytes")
    return bytes(log)


def _pieces(file: FileIO) -> Iterator[bytes]:
    with file:
        while data := file.read(_BUFFER):
            yield data


def _unpacked(file: FileIO, origin: str) -> Iterator[bytes]:
    decoder = bz2.BZ2Decompressor()
    with file:
        try:
            while not decoder.eof:
                wanting = decoder.needs_input
                data = file.read(_BUFFER) if wanting else b""
                if wanting and not data:
                    return
                if piece := decoder.decompress(data, _BUFFER):
                    yield piece
        except OSError as error:
            raise StoreError(f"the log '{origin}' is damaged: {error}") from error
