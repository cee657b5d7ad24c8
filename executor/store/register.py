"""Making paths valid and invalid: the changes of the database that others rely on."""

import os
import time
from collections.abc import Collection, Iterable, Mapping, Sequence

from executor.errors import FormatError, StoreError
from executor.formats.content_address import ContentAddress, IngestionMethod
from executor.formats.hashes import HashAlgorithm
from executor.formats.store_path import (
    StoreDir,
    StorePath,
    make_fixed_output_path,
    make_text_path,
)
from executor.store.database import Database
from executor.store.derivations import DerivationFiles
from executor.store.errors import PathInUseError, UnacceptableTreeError
from executor.store.path_info import PathInfo
from executor.store.queries import Queries


class Registrar:
    """Registers and invalidates; each call is one transaction."""

    def __init__(
        self,
        database: Database,
        queries: Queries,
        derivations: DerivationFiles,
        store_dir: StoreDir,
        *,
        sync_first: bool = False,
    ) -> None:
        self._database = database
        self._queries = queries
        self._derivations = derivations
        self._store_dir = store_dir
        self._sync_first = sync_first

    def register(self, infos: Sequence[PathInfo]) -> None:
        """Make all of the paths valid, or change what is known of those that are; or nothing.

        A path may refer to itself, to valid paths and to others in `infos`. Raises
        InvalidPathError for any other reference, UnacceptableTreeError for a cycle, StoreError
        for a content address that doesn't fit and a derivation with wrong output paths.
        """
        for info in infos:
            self._check_info(info)
        outputs = self._check_derivations(infos)
        if self._sync_first:
            os.sync()
        with self._database.transaction():
            ids = {info.path: self._write_row(info) for info in infos}
            self._database.insert_references(
                (ids[info.path], ids.get(reference) or self._queries.require_id(reference))
                for info in infos
                for reference in sorted(info.references)
            )
            for path, rows in outputs.items():
                for name, output in rows.items():
                    rendered = self._queries.render(output)
                    self._database.insert_output(ids[path], name, rendered)
            check_no_cycle({info.path: info.references for info in infos})

    def _check_derivations(
        self, infos: Iterable[PathInfo]
    ) -> dict[StorePath, dict[str, StorePath]]:
        checked = {}
        for info in infos:
            if info.path.is_derivation and not self._queries.is_valid(info.path):
                self._derivations.forget(info.path)
                checked[info.path] = self._derivations.check(info.path)
        return checked

    def _check_info(self, info: PathInfo) -> None:
        if info.nar_hash.algorithm is not HashAlgorithm.SHA256:
            raise StoreError(f"the NAR hash of '{info.path.base_name}' is not SHA-256")
        if info.content_address is not None and not self._is_content_addressed(info):
            raise StoreError(
                f"cannot add path '{self._queries.render(info.path)}' to the store because it"
                " claims to be content-addressed but isn't"
            )

    def _is_content_addressed(self, info: PathInfo) -> bool:
        try:
            address = ContentAddress.parse(info.content_address or "")
            return content_addressed_path(self._store_dir, info, address) == info.path
        except FormatError:
            return False

    def _write_row(self, info: PathInfo) -> int:
        path = self._queries.render(info.path)
        path_id = self._database.path_id(path)
        size = info.nar_size or None
        ultimate = 1 if info.ultimate else None
        signatures = " ".join(sorted(set(info.signatures))) or None
        nar_hash, address = info.nar_hash.prefixed16, info.content_address
        if path_id is not None:
            self._database.update_path((size, nar_hash, ultimate, signatures, address, path))
            return path_id
        deriver = None if info.deriver is None else self._queries.render(info.deriver)
        when = info.registration_time or int(time.time())
        return self._database.insert_path(
            (path, nar_hash, when, deriver, size, ultimate, signatures, address)
        )

    def invalidate(self, path: StorePath) -> None:
        """Make a path invalid; PathInUseError if other valid paths refer to it."""
        with self._database.transaction():
            referrers = self._queries.referrers(path) - {path}
            if referrers:
                users = ", ".join(sorted(f"'{self._queries.render(user)}'" for user in referrers))
                raise PathInUseError(
                    f"cannot delete path '{self._queries.render(path)}' because it is in use by"
                    f" {users}"
                )
            self._database.delete_path(self._queries.render(path))
        self._derivations.forget(path)

    def add_signatures(self, path: StorePath, signatures: Iterable[str], most: int = 0) -> None:
        """Add signatures to those of a valid path.

        Raises ``StoreError`` where it would have more than ``most`` characters of them.
        """
        with self._database.transaction():
            info = self._queries.info(path)
            joined = " ".join(sorted({*info.signatures, *signatures}))
            if most and len(joined) > max(most, len(" ".join(info.signatures))):
                name = self._queries.render(path)
                raise StoreError(f"path '{name}' has as many signatures as it may have")
            self._database.update_path(
                (
                    info.nar_size or None,
                    info.nar_hash.prefixed16,
                    1 if info.ultimate else None,
                    joined or None,
                    info.content_address,
                    self._queries.render(path),
                )
            )


def content_addressed_path(
    store_dir: StoreDir, info: PathInfo, address: ContentAddress
) -> StorePath:
    """The path that contents of this address and references have to have.

    Raises ``FormatError`` for a combination that has none, and for Git hashes: no contents are
    hashed that way here, and stock Nix fails where it meets a path that claims one.
    """
    if address.method is IngestionMethod.GIT:
        raise FormatError("Git hashes aren't supported")
    if address.method is IngestionMethod.TEXT:
        return make_text_path(store_dir, info.path.name, address.hash, info.references)
    return make_fixed_output_path(
        store_dir,
        info.path.name,
        address.method,
        address.hash,
        references=info.references - {info.path},
        self_reference=info.path in info.references,
    )


def check_no_cycle(references: Mapping[StorePath, Collection[StorePath]]) -> None:
    """Raises UnacceptableTreeError if paths refer to each other in a circle (self is fine)."""
    graph = {
        path: {other for other in others if other in references and other != path}
        for path, others in references.items()
    }
    if not any(graph.values()):
        return
    import graphlib  # outputs that refer to each other are rare, and it is not free

    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        circle = " -> ".join(f"'{path.base_name}'" for path in error.args[1])
        raise UnacceptableTreeError(f"cycle detected in the references of {circle}") from None
