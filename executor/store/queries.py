"""Questions to the store's database, in values instead of texts."""

from collections.abc import Collection, Iterable

from executor.errors import FormatError, InvalidPathError, StoreError
from executor.formats.hashes import parse_hash
from executor.formats.store_path import StoreDir, StorePath
from executor.store.database import Database, PathRow
from executor.store.path_info import PathInfo

_HASH_PART_LENGTH = 32


class Queries:
    """Read access to what is valid; see LocalStore for the contract of each question."""

    def __init__(self, database: Database, store_dir: StoreDir) -> None:
        self._database = database
        self._prefix = store_dir.path.rstrip("/") + "/"
        # Each path is checked once per process and one value stands for it everywhere.
        self._known: dict[str, StorePath] = {}

    def render(self, path: StorePath) -> str:
        """The complete text of a path, as in the database."""
        return self._prefix + path.base_name

    def parse(self, text: str) -> StorePath:
        """The value of a path from the database; StoreError if that holds something else."""
        path = self._known.get(text)
        if path is None:
            try:
                if not text.startswith(self._prefix):
                    raise FormatError(f"'{text}' is not in '{self._prefix}'")
                path = StorePath.parse(text[len(self._prefix) :])
            except FormatError as error:
                raise StoreError(f"the database has a bad path: {error}") from error
            self._known[text] = path
        return path

    def require_id(self, path: StorePath) -> int:
        """The row number of a path; InvalidPathError if it isn't valid."""
        path_id = self._database.path_id(self.render(path))
        if path_id is None:
            raise InvalidPathError(f"path '{self.render(path)}' is not valid")
        return path_id

    def is_valid(self, path: StorePath) -> bool:
        return self._database.path_id(self.render(path)) is not None

    def valid(self, paths: Iterable[StorePath]) -> set[StorePath]:
        listed = list(paths)
        if len(listed) <= 1:  # most questions are about none or one, and that is less work
            return {path for path in listed if self.is_valid(path)}
        return self._parse_all(self._database.valid(map(self.render, listed)))

    def all_valid(self) -> set[StorePath]:
        return self._parse_all(self._database.all_valid())

    def info(self, path: StorePath) -> PathInfo:
        row = self._database.info(self.render(path))
        if row is None:
            raise InvalidPathError(f"path '{self.render(path)}' is not valid")
        return self._to_info(row, self._database.references(row[0]))

    def infos(self, paths: Collection[StorePath]) -> dict[StorePath, PathInfo]:
        rows = self._database.infos(self.render(path) for path in paths)
        references: dict[int, list[str]] = {row[0]: [] for row in rows}
        for referrer, reference in self._database.references_of(references):
            references[referrer].append(reference)
        infos = (self._to_info(row, references[row[0]]) for row in rows)
        found = {info.path: info for info in infos}
        self._require_all(paths, found)
        return found

    def referrers(self, path: StorePath) -> set[StorePath]:
        return self._parse_all(self._database.referrers(self.render(path)))

    def derivers(self, path: StorePath) -> set[StorePath]:
        return self._parse_all(self._database.derivers(self.render(path)))

    def outputs(self, drv_path: StorePath) -> dict[str, StorePath]:
        rows = self._database.outputs(self.require_id(drv_path))
        return {name: self.parse(path) for name, path in rows}

    def from_hash_part(self, hash_part: str) -> StorePath | None:
        if len(hash_part) != _HASH_PART_LENGTH:
            raise StoreError(f"'{hash_part}' is not the hash part of a store path")
        prefix = self._prefix + hash_part
        found = self._database.first_from(prefix)
        return self.parse(found) if found is not None and found.startswith(prefix) else None

    def closure(self, paths: Iterable[StorePath], *, reverse: bool) -> set[StorePath]:
        start = set(paths)
        if not start:
            return start
        found = self._parse_all(
            self._database.closure((self.render(path) for path in start), reverse=reverse)
        )
        self._require_all(start, found)
        return found

    def _require_all(self, wanted: Iterable[StorePath], found: Collection[StorePath]) -> None:
        for path in wanted:
            if path not in found:
                raise InvalidPathError(f"path '{self.render(path)}' is not valid")

    def _parse_all(self, texts: Iterable[str]) -> set[StorePath]:
        return {self.parse(text) for text in texts}

    def _to_info(self, row: PathRow, references: Iterable[str]) -> PathInfo:
        _, path, nar_hash, time, deriver, size, ultimate, signatures, content_address = row
        try:
            parsed_hash = parse_hash(nar_hash)
        except FormatError as error:
            raise StoreError(f"the database has a bad hash for '{path}': {error}") from error
        return PathInfo(
            path=self.parse(path),
            nar_hash=parsed_hash,
            nar_size=size or 0,
            references=frozenset(map(self.parse, references)),
            deriver=self.parse(deriver) if deriver else None,
            registration_time=time,
            ultimate=ultimate == 1,
            signatures=tuple((signatures or "").split()),
            content_address=content_address or None,
        )
