"""Realisations in the database: what outputs of derivations came to be (rows O12, D9).

The tables exist where the feature ``ca-derivations`` was on once, ours or Nix's.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace

from executor.errors import StoreError
from executor.formats.realisation import DrvOutput, Realisation
from executor.formats.store_path import StorePath
from executor.store.database import Database
from executor.store.queries import Queries

# A realisation with signatures of ours.
Sign = Callable[[Realisation], Realisation]


class Realisations:
    """Reads and writes them; `enabled` is the feature."""

    def __init__(self, database: Database, queries: Queries, *, enabled: bool) -> None:
        self._database = database
        self._queries = queries
        self.enabled = enabled

    def query(self, id: DrvOutput) -> Realisation | None:
        """What is known of an output; None without the feature."""
        if not self.enabled:
            return None
        row = self._database.realisation(id.drv_hash, id.output)
        if row is None:
            return None
        path, signatures = row
        return Realisation(id, self._queries.parse(path), frozenset((signatures or "").split()))

    def of_paths(self, paths: Iterable[StorePath]) -> list[Realisation]:
        """Of which outputs some paths are the realisations; none without the feature."""
        if not self.enabled:
            return []
        found = []
        for path in sorted(paths):
            for drv_hash, output, signatures in self._database.realisations_of(
                self._queries.render(path)
            ):
                texts = frozenset((signatures or "").split())
                found.append(Realisation(DrvOutput(drv_hash, output), path, texts))
        return found

    def register(self, realisations: Iterable[Realisation]) -> None:
        """Record what outputs came to be; their paths are valid.

        Signatures are added to those of a realisation that is known. Raises StoreError for one
        that contradicts it, and records nothing then.
        """
        with self._database.transaction():
            for realisation in realisations:
                self._register(realisation)

    def _register(self, new: Realisation) -> None:
        drv_hash, output = new.id.drv_hash, new.id.output
        known = self.query(new.id)
        if known is None:
            self._queries.require_id(new.path)
            signatures = " ".join(sorted(new.signatures))
            path = self._queries.render(new.path)
            self._database.insert_realisation(drv_hash, output, path, signatures)
        elif known.path != new.path:
            raise StoreError(
                f"cannot record that '{new.id}' is '{self._queries.render(new.path)}': here it is"
                f" '{self._queries.render(known.path)}' already"
            )
        elif not new.signatures <= known.signatures:
            merged = replace(known, signatures=known.signatures | new.signatures)
            text = " ".join(sorted(merged.signatures))
            self._database.sign_realisation(drv_hash, output, text)
