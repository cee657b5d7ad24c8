"""Writing a binary cache into a directory, as ``nix copy --to file://…`` does.

Archives come first, descriptions after them, those of references before those of referrers: who
reads the cache meanwhile, or after a crash, finds complete closures only. Every file is made under
another name and renamed.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from executor.caches.address import CacheAddress
from executor.caches.cache import INFO_NAME, parse_cache_info
from executor.caches.compress import SUFFIXES, make_compressor
from executor.caches.errors import CacheError
from executor.caches.files import DirectoryFiles
from executor.formats.hashes import Hash, HashAlgorithm
from executor.formats.narinfo import NarInfo
from executor.formats.realisation import Realisation
from executor.formats.store_path import StoreDir, StorePath
from executor.store.descriptors import write_all
from executor.store.errors import HashMismatchError
from executor.store.path_info import PathInfo
from executor.store.signing import SecretKey, sign, sign_realisation
from executor.store.tree import dump_tree

_FILE_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_LIMIT = 1 << 16


@dataclass(frozen=True, slots=True)
class Archive:
    """A compressed NAR in the cache: its name there, hash and size in bytes."""

    url: str
    file_hash: Hash
    file_size: int


class CacheWriter:
    """A cache that is being written; a context manager. Any number of threads may add archives.

    ``keys`` sign what is written, besides those that the address names. Raises ``CacheError`` and
    ``OSError``.
    """

    def __init__(
        self, address: CacheAddress, store_dir: StoreDir, keys: Sequence[SecretKey]
    ) -> None:
        if address.kind != "file":
            raise CacheError(f"'{address.shown}' can't be written to; use file:///DIRECTORY")
        make_compressor(address.compression, address.level)
        self.shown = address.shown
        self._address = address
        self._store_dir = store_dir
        self._keys = keys
        self._files = DirectoryFiles(address.base)
        self._stopped = False
        os.makedirs(address.base, exist_ok=True)
        self._directory_fd = os.open(address.base, _DIRECTORY_FLAGS)
        self._below: dict[str, int] = {}
        try:
            self._prepare()
        except BaseException:
            self.close()
            raise

    def _prepare(self) -> None:
        for name in ("nar", "realisations", "log"):
            with suppress(FileExistsError):
                os.mkdir(name, 0o755, dir_fd=self._directory_fd)
            self._below[name] = self._open_below(name)
        data = self._files.get(INFO_NAME, _LIMIT)
        if data is None:
            self._write(INFO_NAME, f"StoreDir: {self._store_dir.path}\n".encode())
            return
        there = parse_cache_info(data).store_dir
        if there not in (None, self._store_dir.path):
            raise CacheError(
                f"binary cache '{self.shown}' is for Nix stores with prefix '{there}', "
                f"not '{self._store_dir.path}'"
            )

    def _open_below(self, name: str) -> int:
        """A directory of the cache. It may be on another disk by a link of ours, or of root's.

        Anybody else's link in a directory that others may write could lead what root writes
        anywhere.
        """
        path_fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._directory_fd)
        try:
            status = os.fstat(path_fd)
            if not stat.S_ISLNK(status.st_mode):
                return os.open(name, _DIRECTORY_FLAGS | os.O_NOFOLLOW, dir_fd=self._directory_fd)
            if status.st_uid not in (0, os.geteuid()):
                raise CacheError(f"'{name}' in '{self.shown}' is another user's link")
            target = os.readlink("", dir_fd=path_fd)
            return os.open(target, _DIRECTORY_FLAGS, dir_fd=self._directory_fd)
        finally:
            os.close(path_fd)

    def stop(self) -> None:
        """Make the threads that write archives raise ``CacheError`` soon."""
        self._stopped = True

    def has(self, path: StorePath) -> bool:
        """Whether the cache has a path already."""
        return self._files.get(f"{path.digest}.narinfo", 1 << 24) is not None

    def require(self, path: StorePath, references: Iterable[StorePath]) -> None:
        """Raises ``CacheError`` unless all that ``path`` refers to is in the cache."""
        for reference in sorted(references):
            if not self.has(reference):
                render = self._store_dir.render
                raise CacheError(
                    f"cannot add '{render(path)}' to the binary cache because the reference "
                    f"'{render(reference)}' is not valid"
                )

    def add_archive(self, store_fd: int, info: PathInfo) -> Archive:
        """Write the archive of an object of a store.

        Raises ``HashMismatchError`` if its contents are not what they were.
        """
        directory_fd = self._below["nar"]
        temporary = f".tmp-{os.getpid()}-{os.urandom(8).hex()}"
        file = os.open(temporary, _FILE_FLAGS, 0o644, dir_fd=directory_fd)
        try:
            try:
                file_hash, size = self._pack(store_fd, info, file)
            finally:
                os.close(file)
            suffix = SUFFIXES.get(self._address.compression, "")
            name = f"{file_hash.base32}.nar{suffix}"
            os.rename(temporary, name, src_dir_fd=directory_fd, dst_dir_fd=directory_fd)
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(temporary, dir_fd=directory_fd)
            raise
        return Archive(f"nar/{name}", file_hash, size)

    def _pack(self, store_fd: int, info: PathInfo, file: int) -> tuple[Hash, int]:
        """Dump, hash, compress, hash and write in one pass."""
        compressor = make_compressor(self._address.compression, self._address.level)
        plain, packed = hashlib.sha256(), hashlib.sha256()
        size = 0

        def put(data: bytes) -> None:
            nonlocal size
            if data:
                packed.update(data)
                write_all(file, data)
                size += len(data)

        def take(data: bytes) -> None:
            if self._stopped:
                raise CacheError(f"copying to '{self.shown}' was broken off")
            plain.update(data)
            put(compressor.compress(data))

        dump_tree(store_fd, info.path.base_name.encode(), take)
        put(compressor.flush())
        if plain.digest() != info.nar_hash.digest:
            raise HashMismatchError(
                f"path '{self._store_dir.render(info.path)}' was modified; it is not copied. "
                "'executor verify --check-contents' finds all such paths"
            )
        return Hash(HashAlgorithm.SHA256, packed.digest()), size

    def add_info(self, info: PathInfo, archive: Archive) -> None:
        """Describe an object whose archive and whose references are in the cache."""
        signatures = {*info.signatures, *sign(info, self._store_dir, self._keys)}
        narinfo = NarInfo(
            path=info.path,
            url=archive.url,
            compression=self._address.compression,
            nar_hash=info.nar_hash,
            nar_size=info.nar_size,
            file_hash=archive.file_hash,
            file_size=archive.file_size,
            references=info.references,
            deriver=info.deriver,
            signatures=tuple(signatures),
            content_address=info.content_address,
        )
        self._write(f"{info.path.digest}.narinfo", narinfo.render(self._store_dir).encode())

    def add_realisations(self, realisations: Iterable[Realisation]) -> None:
        """Say what outputs came to be; their paths are in the cache."""
        for realisation in realisations:
            signed = sign_realisation(realisation, self._keys)
            self._write(f"{realisation.id}.doi", signed.to_json(), self._below["realisations"])

    def _write(self, name: str, data: bytes, directory_fd: int | None = None) -> None:
        if directory_fd is None:
            directory_fd = self._directory_fd
        temporary = f".tmp-{os.getpid()}-{os.urandom(8).hex()}"
        file = os.open(temporary, _FILE_FLAGS, 0o644, dir_fd=directory_fd)
        try:
            try:
                write_all(file, data)
            finally:
                os.close(file)
            os.rename(temporary, name, src_dir_fd=directory_fd, dst_dir_fd=directory_fd)
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(temporary, dir_fd=directory_fd)
            raise

    def close(self) -> None:
        for descriptor in self._below.values():
            os.close(descriptor)
        self._below.clear()
        os.close(self._directory_fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
