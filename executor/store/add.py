"""Bringing new objects into a store: texts, files, trees, NARs.

Each object is made under a name that the garbage collector leaves alone, completed, moved to its
path under the lock of that path, and registered. Killed in between, it leaves at most an invalid
path, which the next attempt or the collector removes.
"""

import os
import stat
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from executor.errors import StoreError
from executor.formats import base32
from executor.formats.content_address import ContentAddress, IngestionMethod
from executor.formats.hashes import HashAlgorithm, hash_bytes
from executor.formats.store_path import (
    StoreDir,
    StorePath,
    make_fixed_output_path,
    make_text_path,
)
from executor.store.canonicalise import TreeDescription, describe_tree
from executor.store.checked import CheckedReader
from executor.store.contents import check_contents, hash_contents
from executor.store.delete import delete_tree
from executor.store.descriptors import CREATE_FLAGS, open_file, write_all
from executor.store.locks import lock_paths, try_lock
from executor.store.path_info import PathInfo
from executor.store.queries import Queries
from executor.store.register import Registrar
from executor.store.restore import Source, restore_tree
from executor.store.roots import TempRoots
from executor.store.settings import StoreSettings
from executor.store.tree import copy_tree, move_tree, sync_tree


@dataclass(frozen=True, slots=True, kw_only=True)
class Adder:
    """Adds objects to one store."""

    store_fd: int
    store_dir: StoreDir
    real_store_dir: str
    settings: StoreSettings
    queries: Queries
    registrar: Registrar
    temp_roots: TempRoots

    def add_text(
        self,
        name: str,
        data: bytes,
        references: Collection[StorePath],
        on_wait: Callable[[str], object],
    ) -> StorePath:
        """Add a file whose path comes from its text and references."""
        text_hash = hash_bytes(HashAlgorithm.SHA256, data)
        path = make_text_path(self.store_dir, name, text_hash, references)
        address = ContentAddress(IngestionMethod.TEXT, text_hash).render()

        def make() -> PathInfo:
            self._write_file(path.base_name.encode(), data)
            described = describe_tree(self.store_fd, path.base_name.encode())
            return _info(path, described, frozenset(references), address)

        self._make_valid(path, make, on_wait)
        return path

    def _write_file(self, name: bytes, data: bytes) -> None:
        fd = os.open(name, CREATE_FLAGS, 0o600, dir_fd=self.store_fd)
        try:
            write_all(fd, data)
            os.fchmod(fd, 0o444)
            os.utime(fd, ns=(1_000_000_000, 1_000_000_000))
        finally:
            os.close(fd)

    def add_path(
        self, name: str, source: bytes, method: IngestionMethod, on_wait: Callable[[str], object]
    ) -> StorePath:
        """Copy a file or tree from outside; its path comes from its contents."""
        with self.scratch_directory() as scratch_fd:
            _copy_in(source, scratch_fd, method)
            described = describe_tree(scratch_fd, b"x")
            content_hash = described.nar_hash
            if method is IngestionMethod.FLAT:
                content_hash = hash_contents(scratch_fd, b"x", method, HashAlgorithm.SHA256)
            path = make_fixed_output_path(self.store_dir, name, method, content_hash)
            address = ContentAddress(method, content_hash).render()

            def make() -> PathInfo:
                move_tree(scratch_fd, b"x", self.store_fd, path.base_name.encode())
                return _info(path, described, frozenset(), address)

            self._make_valid(path, make, on_wait)
        return path

    def add_nar(self, info: PathInfo, source: Source, on_wait: Callable[[str], object]) -> None:
        """Unpack a NAR whose hash and size `info` declares, and register it with that."""
        reader = CheckedReader(source, info)

        def make() -> PathInfo:
            base_name = info.path.base_name.encode()
            try:
                restore_tree(reader, self.store_fd, base_name)
                reader.check()
                check_contents(self.store_fd, base_name, info)
            except BaseException:
                delete_tree(self.store_fd, base_name)
                raise
            return replace(info, nar_size=reader.size)

        if not self._make_valid(info.path, make, on_wait):
            # The archive stands in a stream that goes on after it.
            reader.skip()

    def _make_valid(
        self, path: StorePath, make: Callable[[], PathInfo], on_wait: Callable[[str], object]
    ) -> bool:
        """Run `make` and register its result, unless the path is valid; tells which."""
        self.temp_roots.add((path,))
        if self.queries.is_valid(path):
            return False
        with lock_paths([f"{self.real_store_dir}/{path.base_name}"], on_wait=on_wait):
            # Another process may have been faster while we waited.
            if self.queries.is_valid(path):
                return False
            delete_tree(self.store_fd, path.base_name.encode())
            info = make()
            if self.settings.fsync_store_paths:
                sync_tree(self.store_fd, path.base_name.encode())
            self.registrar.register([info])
        return True

    @contextmanager
    def scratch_directory(self) -> Iterator[int]:
        """The descriptor of a new directory (0700) in the store, deleted at the end.

        It has the name of a store path with a temporary root, which keeps the collectors of all
        versions of Nix away, and goes with the garbage after a crash.
        """
        digest = base32.encode(os.urandom(20))
        path = StorePath(digest, "executor-scratch")
        self.temp_roots.add((path,))
        name = path.base_name.encode()
        os.mkdir(name, 0o700, dir_fd=self.store_fd)
        try:
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            fd = os.open(name, flags, dir_fd=self.store_fd)
            try:
                try_lock(fd, exclusive=True)
                yield fd
            finally:
                os.close(fd)
        finally:
            delete_tree(self.store_fd, name)


def _info(
    path: StorePath, described: TreeDescription, references: frozenset[StorePath], address: str
) -> PathInfo:
    return PathInfo(
        path=path,
        nar_hash=described.nar_hash,
        nar_size=described.nar_size,
        references=references,
        content_address=address,
    )


def _copy_in(source: bytes, scratch_fd: int, method: IngestionMethod) -> None:
    """Copy what is at a path of the user's choice, whose parents may be links, to "x"."""
    directory, name = os.path.split(os.path.abspath(source))
    if not name:
        raise StoreError("the root directory cannot be added to a store")
    try:
        parent_fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if method is IngestionMethod.FLAT:
                _copy_flat(parent_fd, name, scratch_fd)
            else:
                copy_tree(parent_fd, name, scratch_fd, b"x")
        finally:
            os.close(parent_fd)
    except OSError as error:
        raise StoreError(f"cannot read '{os.fsdecode(source)}': {error.strerror}") from error


def _copy_flat(parent_fd: int, name: bytes, scratch_fd: int) -> None:
    _require_file(parent_fd, name, name)
    copy_tree(parent_fd, name, scratch_fd, b"x")
    _require_file(scratch_fd, b"x", name)
    # Flat hashing doesn't know the executable bit, so such objects never have it.
    fd = open_file(scratch_fd, b"x")
    os.fchmod(fd, 0o444)
    os.close(fd)


def _require_file(directory_fd: int, name: bytes, shown: bytes) -> None:
    if not stat.S_ISREG(os.stat(name, dir_fd=directory_fd, follow_symlinks=False).st_mode):
        raise StoreError(f"'{os.fsdecode(shown)}' is not a regular file")
