"""Bringing in what clients send: made ready in a place of root's, then moved in under a lock.

A client may send as slowly as it likes: no lock is held, and nothing that others look at is
changed, before all of an object is there and is what it was said to be.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace

from executor.caches.found import Staged
from executor.caches.stage import stage_archive
from executor.caches.trust import is_content_addressed
from executor.errors import FormatError, InvalidPathError
from executor.formats.content_address import ContentAddress, IngestionMethod
from executor.formats.hashes import HashAlgorithm
from executor.formats.nar import read_events
from executor.formats.store_path import (
    StorePath,
    check_name,
    make_fixed_output_path,
    make_text_path,
)
from executor.formats.wire import Source
from executor.protocols.errors import RefusedError
from executor.store.canonicalise import describe_tree
from executor.store.checked import CheckedReader
from executor.store.contents import hash_contents
from executor.store.delete import delete_tree
from executor.store.descriptors import CREATE_FLAGS, write_all
from executor.store.local import LocalStore
from executor.store.locks import PathLocks
from executor.store.path_info import PathInfo
from executor.store.restore import restore_tree
from executor.store.signing import parse_public_keys, verify
from executor.store.tree import STORE_TIMES

_PIECE = 1 << 18
_NAME = b"x"
_POLL = 0.05

# Called again and again with the path whose lock somebody else holds; may raise, to give up.
Tell = Callable[[str], object]


def require_signature(store: LocalStore, info: PathInfo, keys: frozenset[str]) -> None:
    """Raises ``RefusedError`` unless a trusted key, or the path itself, vouches for an object."""
    if is_content_addressed(info, store.store_dir):
        return
    if not verify(info, store.store_dir, parse_public_keys(keys)):
        name = store.store_dir.render(info.path)
        raise RefusedError(
            f"cannot add path '{name}' because it lacks a signature by a trusted key"
        )


def add_archive(
    store: LocalStore,
    info: PathInfo,
    source: Source,
    on_wait: Tell,
    *,
    repair: bool = False,
    prove: bool = False,
) -> None:
    """Make a path valid from its archive, which is read to its end whatever comes of it.

    With ``prove`` the archive of a path that is valid already is compared with that. Raises
    ``StoreError`` and ``FormatError`` for an archive that isn't what ``info`` says.
    """
    store.add_temp_root(info.path)
    if store.is_valid(info.path) and not repair:
        _skip(store, info, source, prove=prove)
        return
    require_references(store, info)
    with store.scratch_directory() as scratch_fd:
        staged = stage_archive(source, info, scratch_fd)
        move_in(store, info, staged, on_wait, repair=repair)


def _skip(store: LocalStore, info: PathInfo, source: Source, *, prove: bool) -> None:
    if not prove:
        for _event in read_events(source):
            pass
        return
    known = store.query_path_info(info.path)
    checked = CheckedReader(source, replace(known, nar_size=info.nar_size))
    for _event in read_events(checked):
        pass
    checked.check()


def add_contents(
    store: LocalStore,
    name: str,
    source: Source,
    method: IngestionMethod,
    algorithm: HashAlgorithm,
    references: frozenset[StorePath],
    on_wait: Tell,
    *,
    as_archive: bool | None = None,
    repair: bool = False,
) -> StorePath:
    """Add an object whose path follows from what ``source`` has: an archive, or the file itself.

    ``as_archive`` says that it is an archive although the method hashes a file (old clients).
    """
    check_name(name)
    archive = method is IngestionMethod.NAR if as_archive is None else as_archive
    with store.scratch_directory() as scratch_fd:
        if archive:
            restore_tree(source, scratch_fd, _NAME)
        else:
            _write_file(source, scratch_fd)
        info = _describe(store, scratch_fd, name, method, algorithm, references)
        store.add_temp_root(info.path)
        if not store.is_valid(info.path) or repair:
            require_references(store, info)
            move_in(store, info, Staged(scratch_fd, _NAME), on_wait, repair=repair)
    return info.path


def _write_file(source: Source, directory_fd: int) -> None:
    fd = os.open(_NAME, CREATE_FLAGS, 0o600, dir_fd=directory_fd)
    try:
        while data := source.read(_PIECE):
            write_all(fd, data)
        os.fchmod(fd, 0o444)
        os.utime(fd, ns=STORE_TIMES)
    finally:
        os.close(fd)


def _describe(
    store: LocalStore,
    directory_fd: int,
    name: str,
    method: IngestionMethod,
    algorithm: HashAlgorithm,
    references: frozenset[StorePath],
) -> PathInfo:
    described = describe_tree(directory_fd, _NAME)
    try:
        found = hash_contents(directory_fd, _NAME, method, algorithm)
    except OSError as error:
        raise FormatError(f"'{name}' is not a regular file") from error
    if method is IngestionMethod.TEXT:
        path = make_text_path(store.store_dir, name, found, references)
    else:
        path = make_fixed_output_path(store.store_dir, name, method, found, references=references)
    return PathInfo(
        path=path,
        nar_hash=described.nar_hash,
        nar_size=described.nar_size,
        references=references,
        content_address=ContentAddress(method, found).render(),
    )


def require_references(store: LocalStore, info: PathInfo) -> None:
    """Raises ``InvalidPathError`` unless all is valid that an object refers to."""
    others = info.references - {info.path}
    store.add_temp_roots(others)
    missing = sorted(others - store.query_valid(others))
    if missing:
        raise InvalidPathError(f"path '{store.store_dir.render(missing[0])}' is not valid")


def move_in(
    store: LocalStore, info: PathInfo, staged: Staged, on_wait: Tell, *, repair: bool = False
) -> None:
    """Register a complete object at its path, unless somebody else was faster."""
    with _locked(store.real_path(info.path), on_wait):
        if store.is_valid(info.path):
            if repair:
                store.replace_in_store(staged.directory_fd, staged.name, info.path)
            return
        store.delete_invalid(info.path)
        store.move_into_store(staged.directory_fd, staged.name, info.path)
        try:
            store.register([info])
        except BaseException:
            delete_tree(store.store_fd, info.path.base_name.encode())
            raise


def _locked(path: str, on_wait: Tell) -> PathLocks:
    """The lock of a path. Whoever holds it may do so for as long as a build takes.

    It may even wait for us: a build whose builder adds what it is to build.
    """
    locks = PathLocks()
    while not locks.try_acquire([path]):
        on_wait(path)
        time.sleep(_POLL)
    return locks
