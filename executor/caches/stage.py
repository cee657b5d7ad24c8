"""Unpacking what was fetched, in a place that only root can enter, and checking it there."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from executor.caches.errors import CacheError
from executor.caches.found import Staged
from executor.errors import FormatError
from executor.store.canonicalise import describe_tree
from executor.store.checked import CheckedReader
from executor.store.contents import check_contents
from executor.store.delete import delete_tree
from executor.store.errors import HashMismatchError
from executor.store.path_info import PathInfo
from executor.store.restore import Source, restore_tree
from executor.store.tree import copy_tree


def stage_archive(source: Source, info: PathInfo, directory_fd: int) -> Staged:
    """Unpack an archive. Its hash, size and content address are as ``info`` says afterwards.

    Raises ``CacheError``, ``HashMismatchError`` and what ``source`` raises; nothing is left then.
    """

    def make(name: bytes) -> None:
        reader = CheckedReader(source, info)
        try:
            restore_tree(reader, directory_fd, name)
        except FormatError as error:
            raise CacheError(
                f"the archive of '{info.path.base_name}' is broken: {error}"
            ) from error
        reader.check()

    return _stage(make, info, directory_fd)


def stage_tree(parent_fd: int, name: bytes, info: PathInfo, directory_fd: int) -> Staged:
    """Copy an object of another store, and check the copy as ``stage_archive`` does."""

    def make(target: bytes) -> None:
        copy_tree(parent_fd, name, directory_fd, target)
        described = describe_tree(directory_fd, target)
        if (described.nar_hash, described.nar_size) != (info.nar_hash, info.nar_size):
            raise HashMismatchError(
                f"hash mismatch importing path '{info.path.base_name}'; specified:"
                f" {info.nar_hash.prefixed32}, got: {described.nar_hash.prefixed32}"
            )

    return _stage(make, info, directory_fd)


def _stage(make: Callable[[bytes], None], info: PathInfo, directory_fd: int) -> Staged:
    name = f"{info.path.digest}-{os.urandom(6).hex()}".encode()
    with _removed_on_failure(directory_fd, name):
        make(name)
        check_contents(directory_fd, name, info)
    return Staged(directory_fd, name)


@contextmanager
def _removed_on_failure(directory_fd: int, name: bytes) -> Iterator[None]:
    try:
        yield
    except BaseException:
        delete_tree(directory_fd, name)
        raise
