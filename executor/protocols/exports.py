"""Exports: objects as archives with what is known of them behind each (``export-import.cc``).

Old clients of the serve protocol send and ask for them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from graphlib import TopologicalSorter

from executor.caches.found import Staged
from executor.errors import FormatError, InvalidPathError
from executor.formats.hashes import Hash, HashAlgorithm, new_hasher
from executor.formats.store_path import StorePath
from executor.formats.wire import Source
from executor.protocols.imports import Tell, move_in, require_references
from executor.protocols.serve_messages import SPELLING
from executor.protocols.serve_protocol import EXPORT_MAGIC
from executor.protocols.worker_messages import MessageReader, MessageWriter
from executor.store.local import LocalStore
from executor.store.path_info import PathInfo
from executor.store.restore import restore_tree
from executor.store.tree import dump_tree

_NAME = b"x"
_MAX_SIGNATURE = 1 << 16


def import_objects(store: LocalStore, reader: MessageReader, on_wait: Tell) -> None:
    """Make valid what an export has. Raises ``FormatError`` and ``StoreError``."""
    while reader.number(1):
        _import_object(store, reader, on_wait)


class _Measured:
    """Hashes and counts what is read."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._hasher = new_hasher(HashAlgorithm.SHA256)
        self.size = 0

    def read(self, size: int, /) -> bytes:
        data = self._source.read(size)
        self._hasher.update(data)
        self.size += len(data)
        return data

    @property
    def hash(self) -> Hash:
        return Hash(HashAlgorithm.SHA256, self._hasher.digest())


def _import_object(store: LocalStore, reader: MessageReader, on_wait: Tell) -> None:
    """One object: what it is comes behind its archive, so that it is unpacked aside first."""
    with store.scratch_directory() as scratch_fd:
        measured = _Measured(reader)
        restore_tree(measured, scratch_fd, _NAME)
        if reader.number() != EXPORT_MAGIC:
            raise FormatError("Nix archive cannot be imported; wrong format")
        path, references, deriver = reader.path(), reader.paths(), reader.optional_path()
        if reader.boolean():
            reader.data(_MAX_SIGNATURE)  # of a kind that nobody has believed since long
        info = PathInfo(
            path=path,
            nar_hash=measured.hash,
            nar_size=measured.size,
            references=references,
            deriver=deriver,
        )
        store.add_temp_root(path)
        if not store.is_valid(path):
            require_references(store, info)
            move_in(store, info, Staged(scratch_fd, _NAME), on_wait)


def export_objects(
    store: LocalStore, paths: Collection[StorePath], write: Callable[[bytes], object]
) -> None:
    """Write valid objects, each behind those of them that it refers to."""
    infos = store.query_path_infos(paths)
    missing = sorted(set(paths) - infos.keys())
    if missing:
        raise InvalidPathError(f"path '{store.store_dir.render(missing[0])}' is not valid")
    writer = MessageWriter(store.store_dir, SPELLING)
    graph = {path: (info.references & infos.keys()) - {path} for path, info in infos.items()}
    for path in TopologicalSorter(graph).static_order():
        writer.number(1)
        write(writer.take())
        dump_tree(store.store_fd, path.base_name.encode(), write)
        writer.number(EXPORT_MAGIC)
        writer.path(path)
        writer.paths(infos[path].references)
        writer.optional_path(infos[path].deriver)
        writer.number(0)
        write(writer.take())
    writer.number(0)
    write(writer.take())
