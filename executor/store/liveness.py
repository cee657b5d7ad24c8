"""What is alive when some paths are: their closures, with outputs and derivers as set (row K7)."""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from executor.errors import ExecutorError
from executor.formats.store_path import StorePath
from executor.store.database import Database
from executor.store.queries import Queries

# The output paths of a valid derivation that are known by now, valid or not.
OutputsOf = Callable[[StorePath], Collection[StorePath]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Liveness:
    """Answers from the database as it is at the moment.

    `keep_outputs`: a living derivation keeps its outputs. `keep_derivations`: a living path keeps
    the derivation that it was built from. `realised` are the outputs that derivations have by
    realisations, beside those in the database's own table.
    """

    database: Database
    queries: Queries
    keep_outputs: bool
    keep_derivations: bool
    realised: OutputsOf

    def closure(self, paths: Collection[StorePath]) -> set[StorePath]:
        """All valid paths that are alive with the given ones; these too, valid or not."""
        alive = set(paths)
        todo = {self.queries.render(path) for path in paths}
        done: set[str] = set()
        while todo:
            found = set(self.database.closure(todo, reverse=False)) - done
            done |= found
            todo = set(self.database.valid(self._further(found))) - done
        alive.update(map(self.queries.parse, done))
        return alive

    def _further(self, found: Collection[str]) -> set[str]:
        further: set[str] = set()
        if self.keep_derivations:
            further.update(self.database.derivers_among(found))
        if self.keep_outputs:
            further.update(self.database.outputs_among(found))
            for text in found:
                if text.endswith(".drv"):
                    outputs = self._realised_outputs(self.queries.parse(text))
                    further.update(map(self.queries.render, outputs))
        return further

    def kept_by(self, path: StorePath) -> set[StorePath]:
        """The valid paths that keep a valid one alive by the settings, not by references."""
        found: set[StorePath] = set()
        if self.keep_derivations and path.is_derivation:
            outputs = {*self.queries.outputs(path).values(), *self._realised_outputs(path)}
            infos = self.queries.infos(self.queries.valid(outputs))
            found.update(output for output, info in infos.items() if info.deriver == path)
        if self.keep_outputs:
            found.update(self.queries.derivers(path))
        return found

    def _realised_outputs(self, path: StorePath) -> Collection[StorePath]:
        try:
            return self.realised(path)
        except ExecutorError:
            # A derivation that can't be read has no outputs that we know of.
            return ()

    def with_hash_parts(self, parts: Iterable[str]) -> set[StorePath]:
        """The valid paths that have one of these hash parts."""
        found = (self.queries.from_hash_part(part) for part in parts)
        return {path for path in found if path is not None}
