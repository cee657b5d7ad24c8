"""The hot loop: one walk over a file tree that serialises it as NAR, and canonicalises on the way.

A builder's output is read once: each file is opened once, checked, given its canonical metadata
and read, and the NAR bytes go to the hash, the reference scanner and the size count together. The
walk follows no symbolic link, opens nothing but regular files and directories, never recurses,
and holds at most one descriptor per level (64 levels are the limit of the format).

The framing repeats what formats.nar.NarWriter knows, as precomputed pieces: one call per token
would cost more than reading a small file.
"""

from __future__ import annotations

import errno
import hashlib
import os
import queue
import stat
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from executor.formats.hashes import Hash, HashAlgorithm
from executor.native import compiled
from executor.store.descriptors import display, open_directory, open_file
from executor.store.errors import UnacceptableTreeError

# As Nix: a file at level 64 (the top is level 0) can't be dumped.
MAX_DEPTH = 64

_FLUSH = 256 * 1024
_READ = 1024 * 1024
_LOOK_AFTER = 4096
# Files that are packed in runs: the largest one, the bytes of a run, and how many names make it
# worth a try.
_SMALL = 64 * 1024
_RUN = 512 * 1024
_FEW = 4


def _word(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text + bytes(-len(text) % 8)


_length = struct.Struct("<Q").pack
_PADDING = tuple(bytes(-length % 8) for length in range(8))
_MAGIC = _word(b"nix-archive-1")
_CLOSE = _word(b")")
_ENTRY = _word(b"entry") + _word(b"(") + _word(b"name")
_NODE = _word(b"node")
_TYPE = _word(b"(") + _word(b"type")
_DIRECTORY = _TYPE + _word(b"directory")
_SYMLINK = _TYPE + _word(b"symlink") + _word(b"target")
_FILE = _TYPE + _word(b"regular") + _word(b"contents")
_EXECUTABLE = _TYPE + _word(b"regular") + _word(b"executable") + _word(b"") + _word(b"contents")


@dataclass(frozen=True, slots=True)
class Plain:
    """Files that a policy would give canonical metadata, and remember nothing of.

    They have one name, no extended attributes, and an owner in ``uids`` (None: any).
    """

    uids: range | None


class MetadataPolicy(Protocol):
    """What is checked and changed on each file before it is read; see canonicalise.py.

    Each method raises UnacceptableTreeError (without a path) for a file that may not pass.
    """

    def on_open(self, fd: int, status: os.stat_result) -> None:
        """A regular file or directory, open for reading, not read yet."""

    def on_symlink(self, directory_fd: int, name: bytes, status: os.stat_result) -> None:
        """A symbolic link."""


@dataclass(slots=True)
class _Level:
    """An open directory with the entries that are still to come (sorted, popped from the end)."""

    fd: int
    name: bytes
    entries: list[bytes]
    kinds: dict[bytes, int]


@dataclass(frozen=True, slots=True)
class _Runs:
    """How runs of small files are packed, where they can be."""

    pack_files: Callable[..., tuple[int, bytes, bool]]
    canonical: bool
    uids: range
    no_atime: bool

    @staticmethod
    def of(policy: MetadataPolicy | None, plain: Plain | None) -> _Runs | None:
        """None where a policy has to see all files, or nothing is there to pack them with."""
        if compiled is None or (policy is not None and plain is None):
            return None
        uids = None if plain is None else plain.uids
        any_owner = range(-1, -1)
        return _Runs(
            compiled.pack_files,
            policy is not None,
            any_owner if uids is None else uids,
            os.geteuid() == 0,
        )

    def pack(
        self, fd: int, names: list[bytes], others: dict[bytes, int]
    ) -> tuple[int, bytes, bool]:
        """See compiled.pyi."""
        return self.pack_files(
            fd,
            names,
            others,
            _SMALL,
            _RUN,
            self.no_atime,
            self.canonical,
            self.uids.start,
            self.uids.stop,
        )


class TreeReader:
    """Serialises one tree as NAR into `sink`, which gets pieces of up to 1 MiB.

    `progress` is called with the number of NAR bytes so far, at least once per MiB and for every
    few thousand names, and before a large file with what they will be after it; it may raise to
    stop the walk (deadline, cancelled, size limit). With `metadata_only` the policy sees every
    file, but no contents are read, and what the sink gets is no NAR. `plain` are the files that
    needn't be shown to the policy, if there are such: they are packed in runs, by compiled code.
    """

    def __init__(
        self,
        sink: Callable[[bytes], object],
        *,
        policy: MetadataPolicy | None = None,
        progress: Callable[[int], object] | None = None,
        metadata_only: bool = False,
        plain: Plain | None = None,
    ) -> None:
        self._sink = sink
        self._metadata_only = metadata_only
        self._policy = policy
        self._progress = progress
        self._pieces: list[bytes] = []
        self._pending = 0
        self._levels: list[_Level] = []
        self._runs = None if metadata_only else _Runs.of(policy, plain)
        self._no_atime = os.O_NOATIME if os.geteuid() == 0 else 0
        self.size = 0

    def read(self, parent_fd: int, name: bytes) -> None:
        """Walk the tree `name` in the directory `parent_fd`.

        Raises UnacceptableTreeError for unsupported file types, more than 64 levels, what the
        policy refuses, and files that shrink while they are read; OSError for I/O errors.
        """
        current = name
        try:
            status = os.stat(name, dir_fd=parent_fd, follow_symlinks=False)
            self._put(_MAGIC)
            self._node(parent_fd, name, stat.S_IFMT(status.st_mode))
            while self._levels:
                level = self._levels[-1]
                if not level.entries:
                    current = level.name
                    self._close_level()
                    continue
                if self._runs is not None and self._pack(self._runs, level):
                    continue
                current = level.entries.pop()
                self._put(
                    _ENTRY + _length(len(current)) + current + _PADDING[len(current) & 7] + _NODE
                )
                self._node(level.fd, current, level.kinds.get(current, stat.S_IFREG))
            self._flush()
        except UnacceptableTreeError as error:
            raise UnacceptableTreeError(f"{error}: '{self._where(name, current)}'") from None
        finally:
            for level in self._levels:
                os.close(level.fd)
            self._levels.clear()

    def _where(self, top: bytes, current: bytes) -> str:
        parts = [level.name for level in self._levels]
        if not parts or parts[-1] != current:
            parts.append(current)
        return display(b"/".join(parts or [top]))

    def _put(self, data: bytes) -> None:
        self._pieces.append(data)
        self._pending += len(data)
        if self._pending >= _FLUSH:
            self._flush()

    def _flush(self) -> None:
        data = b"".join(self._pieces)
        self._pieces.clear()
        self._pending = 0
        self._emit(data)

    def _emit(self, data: bytes) -> None:
        self.size += len(data)
        self._sink(data)
        if self._progress is not None:
            self._progress(self.size)

    def _pack(self, runs: _Runs, level: _Level) -> bool:
        """Pack what comes next, if it is a run of small files, and say whether it was."""
        entries = level.entries
        if len(entries) < _FEW or entries[-1] in level.kinds or len(self._levels) >= MAX_DEPTH:
            return False
        done, data, shrank = runs.pack(level.fd, entries, level.kinds)
        if done:
            del entries[-done:]
            self._flush()
            self._emit(data)
        if shrank:
            raise UnacceptableTreeError("file became shorter while it was read")
        return done > 0

    def _node(self, directory_fd: int, name: bytes, kind: int) -> None:
        if len(self._levels) >= MAX_DEPTH:
            raise UnacceptableTreeError(f"directories are nested more than {MAX_DEPTH} levels deep")
        try:
            if kind == stat.S_IFREG:
                self._file(directory_fd, name)
            elif kind == stat.S_IFDIR:
                self._directory(directory_fd, name)
            elif kind == stat.S_IFLNK:
                self._symlink(directory_fd, name)
            else:
                raise UnacceptableTreeError("file has an unsupported type")
        except OSError as error:
            # What a race makes of a name: a link, no directory, a FIFO or socket, no link now.
            if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.ENXIO, errno.EINVAL):
                raise UnacceptableTreeError("file changed its type while it was read") from error
            raise

    def _file(self, directory_fd: int, name: bytes) -> None:
        fd = open_file(directory_fd, name, self._no_atime)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise UnacceptableTreeError("file changed its type while it was read")
            if self._policy is not None:
                self._policy.on_open(fd, status)
            if self._metadata_only:
                return
            size = status.st_size
            head = _EXECUTABLE if status.st_mode & stat.S_IXUSR else _FILE
            if size > _FLUSH:
                self._put(head + _length(size))
                self._contents(fd, size)
            else:
                data = os.read(fd, size) if size else b""
                if len(data) != size:
                    raise UnacceptableTreeError("file became shorter while it was read")
                self._put(head + _length(size) + data + _PADDING[size & 7])
        finally:
            os.close(fd)
        self._put(_CLOSE if not self._levels else _CLOSE + _CLOSE)

    def _contents(self, fd: int, size: int) -> None:
        self._flush()
        if self._progress is not None:
            self._progress(self.size + size)
        remaining = size
        while remaining:
            data = os.read(fd, min(_READ, remaining))
            if not data:
                raise UnacceptableTreeError("file became shorter while it was read")
            remaining -= len(data)
            self._emit(data)
        self._put(_PADDING[size & 7])

    def _symlink(self, directory_fd: int, name: bytes) -> None:
        status = os.stat(name, dir_fd=directory_fd, follow_symlinks=False)
        if not stat.S_ISLNK(status.st_mode):
            raise UnacceptableTreeError("file changed its type while it was read")
        if self._policy is not None:
            self._policy.on_symlink(directory_fd, name, status)
        target = os.readlink(name, dir_fd=directory_fd)
        self._put(_SYMLINK + _length(len(target)) + target + _PADDING[len(target) & 7])
        self._put(_CLOSE if not self._levels else _CLOSE + _CLOSE)

    def _directory(self, directory_fd: int, name: bytes) -> None:
        fd = open_directory(directory_fd, name)
        try:
            if self._policy is not None:
                self._policy.on_open(fd, os.fstat(fd))
            names, kinds = list_directory(fd, self._look)
        except BaseException:
            os.close(fd)
            raise
        names.reverse()
        self._levels.append(_Level(fd=fd, name=name, entries=names, kinds=kinds))
        self._put(_DIRECTORY)

    def _look(self) -> None:
        if self._progress is not None:
            self._progress(self.size)

    def _close_level(self) -> None:
        os.close(self._levels.pop().fd)
        self._put(_CLOSE if not self._levels else _CLOSE + _CLOSE)


def list_directory(
    fd: int, look: Callable[[], object] | None = None
) -> tuple[list[bytes], dict[bytes, int]]:
    """The names in an open directory, sorted by bytes, and the type of those that aren't files.

    Types are S_IFDIR, S_IFLNK or 0 for anything else; names that aren't in the mapping are
    regular files. `look` is called now and then, and may raise to stop.
    """
    names: list[bytes] = []
    kinds: dict[bytes, int] = {}
    with os.scandir(fd) as entries:
        for entry in entries:
            name = os.fsencode(entry.name)
            names.append(name)
            if look is not None and not len(names) % _LOOK_AFTER:
                look()
            if not entry.is_file(follow_symlinks=False):
                kinds[name] = _kind(entry)
    names.sort()
    return names, kinds


def _kind(entry: os.DirEntry[str]) -> int:
    if entry.is_dir(follow_symlinks=False):
        return stat.S_IFDIR
    return stat.S_IFLNK if entry.is_symlink() else 0


class Scanner(Protocol):
    """What references.ReferenceScanner offers."""

    def feed(self, data: bytes) -> None:
        """Look at the next piece."""


class DescribingSink:
    """Hashes a NAR on a second thread, while the caller's thread scans it and reads on.

    hashlib lets go of the interpreter's lock, so that on two cores reading and scanning cost
    nothing beside SHA-256. Small trees never start the thread.
    """

    _IN_FLIGHT = 4

    def __init__(self, scanner: Scanner | None) -> None:
        self._scanner = scanner
        self._hasher = hashlib.sha256()
        self._queue: queue.Queue[bytes | None] | None = None
        self._thread: threading.Thread | None = None

    def write(self, data: bytes) -> None:
        """Take the next piece of the NAR."""
        if self._thread is None and len(data) < _FLUSH:
            self._hasher.update(data)
        else:
            self._start_thread().put(data)
        if self._scanner is not None:
            self._scanner.feed(data)

    def _start_thread(self) -> queue.Queue[bytes | None]:
        if self._queue is None:
            self._queue = queue.Queue(self._IN_FLIGHT)
            self._thread = threading.Thread(
                target=_hash_pieces, args=(self._queue, self._hasher.update), daemon=True
            )
            self._thread.start()
        return self._queue

    def finish(self) -> Hash:
        """The SHA-256 of everything; no write may follow."""
        self.close()
        return Hash(HashAlgorithm.SHA256, self._hasher.digest())

    def close(self) -> None:
        """End the thread, also after an error."""
        if self._thread is not None and self._queue is not None:
            self._queue.put(None)
            self._thread.join()
            self._thread = self._queue = None


def _hash_pieces(pieces: queue.Queue[bytes | None], update: Callable[[bytes], object]) -> None:
    for data in _until_none(pieces):
        update(data)


def _until_none(pieces: queue.Queue[bytes | None]) -> Iterator[bytes]:
    while (data := pieces.get()) is not None:
        yield data
