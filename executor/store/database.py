"""The SQLite database of a store: connection, transactions, and every query.

The file is Nix's (schema version 10), used by both programs at the same moment. Connections are
set up as Nix does: write-ahead log, foreign keys, `synchronous` by the setting fsync-metadata.
Paths are texts as in the database; turning them into values is the business of queries.py.
"""

import _sqlite3 as sqlite3  # what sqlite3 wraps in dates
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from executor.errors import StoreError

SCHEMA_VERSION = 10

# How long we wait for the write lock in all, as Nix; and in one call, after which Python gets a
# chance to see a signal.
_BUSY_SECONDS = 3600.0
_BUSY_SLICE = 2.0

# "Locking protocol": too many processes opened the log at once; also worth another try.
_SQLITE_PROTOCOL = 15

_T = TypeVar("_T")
PathRow = tuple[int, str, str, int, str | None, int | None, int | None, str | None, str | None]
InsertValues = tuple[str, str, int, str | None, int | None, int | None, str | None, str | None]
UpdateValues = tuple[int | None, str, int | None, str | None, str | None, str]

_INFO_COLUMNS = "id, path, hash, registrationTime, deriver, narSize, ultimate, sigs, ca"
_QUERY_INFO = f"select {_INFO_COLUMNS} from ValidPaths where path = ?"
_QUERY_INFOS = (
    f"select {_INFO_COLUMNS} from ValidPaths where path in (select value from json_each(?))"
)
_QUERY_VALID = "select path from ValidPaths where path in (select value from json_each(?))"
_QUERY_ALL = "select path from ValidPaths"
_QUERY_REFERENCES = "select path from Refs join ValidPaths on reference = id where referrer = ?"
_QUERY_ALL_REFERENCES = (
    "select r.referrer, v.path from Refs r join ValidPaths v on r.reference = v.id"
    " where r.referrer in (select value from json_each(?))"
)
_QUERY_REFERRERS = (
    "select path from Refs join ValidPaths on referrer = id"
    " where reference = (select id from ValidPaths where path = ?)"
)
_QUERY_DERIVERS = (
    "select v.path from DerivationOutputs d join ValidPaths v on d.drv = v.id where d.path = ?"
)
_QUERY_OUTPUTS = "select id, path from DerivationOutputs where drv = ?"
_QUERY_DERIVERS_AMONG = (
    "select distinct deriver from ValidPaths"
    " where path in (select value from json_each(?)) and deriver is not null"
)
_QUERY_OUTPUTS_AMONG = (
    "select distinct d.path from DerivationOutputs d join ValidPaths v on d.drv = v.id"
    " where v.path in (select value from json_each(?))"
)
# ">=" with a limit uses the index, which "like" would not.
_QUERY_HASH_PART = "select path from ValidPaths where path >= ? limit 1"
_QUERY_CLOSURE = (
    "with recursive closure(id) as ("
    " select id from ValidPaths where path in (select value from json_each(?))"
    " union select {reached} from Refs r join closure c on r.{from_column} = c.id)"
    " select v.path from closure c join ValidPaths v on v.id = c.id"
)
_FORWARD = _QUERY_CLOSURE.format(reached="r.reference", from_column="referrer")
_REVERSE = _QUERY_CLOSURE.format(reached="r.referrer", from_column="reference")
_INSERT = (
    "insert into ValidPaths (path, hash, registrationTime, deriver, narSize, ultimate, sigs, ca)"
    " values (?, ?, ?, ?, ?, ?, ?, ?)"
)
_UPDATE = (
    "update ValidPaths set narSize = ?, hash = ?, ultimate = ?, sigs = ?, ca = ? where path = ?"
)
_INSERT_REFERENCE = "insert or replace into Refs (referrer, reference) values (?, ?)"
_INSERT_OUTPUT = "insert or replace into DerivationOutputs (drv, id, path) values (?, ?, ?)"
_DELETE = "delete from ValidPaths where path = ?"
_QUERY_REALISATION = (
    "select v.path, r.signatures from Realisations r join ValidPaths v on v.id = r.outputPath"
    " where r.drvPath = ? and r.outputName = ?"
)
_REALISATIONS_OF = (
    "select r.drvPath, r.outputName, r.signatures from Realisations r"
    " join ValidPaths v on v.id = r.outputPath where v.path = ? order by r.drvPath, r.outputName"
)
_INSERT_REALISATION = (
    "insert into Realisations (drvPath, outputName, outputPath, signatures)"
    " values (?, ?, (select id from ValidPaths where path = ?), ?)"
)
_SIGN_REALISATION = "update Realisations set signatures = ? where drvPath = ? and outputName = ?"
# Under this name Nix remembers that the tables of realisations are there.
_REALISATIONS = "20220326-ca-derivations"


_SCHEMA_FILE = os.path.join(os.path.dirname(__file__), "schema.sql")
_REALISATIONS_FILE = os.path.join(os.path.dirname(__file__), "realisations.sql")


def _quote(path: str) -> str:
    """Percent-encoding for SQLite; urllib would cost a command line two milliseconds."""
    safe = b"/-._~"
    return "".join(
        chr(byte) if (chr(byte).isalnum() and byte < 128) or byte in safe else f"%{byte:02X}"
        for byte in os.fsencode(path)
    )


class Database:
    """One connection; for one thread at a time, and never across a fork.

    Every method raises StoreError when SQLite reports an error. With `immutable` (and `read_only`)
    the file is on a medium that nobody can change, and no lock is taken.
    """

    def __init__(
        self,
        path: str,
        *,
        create: bool = False,
        read_only: bool = False,
        immutable: bool = False,
        fsync_metadata: bool = True,
        use_wal: bool = True,
    ) -> None:
        self._path = path
        self._pid = os.getpid()
        mode = "rwc" if create else "rw"
        if read_only:
            mode = "ro&immutable=1" if immutable else "ro"
        vfs = "" if use_wal else "&vfs=unix-dotfile"
        with self._translated("cannot open"):
            self._connection = sqlite3.connect(
                f"file:{_quote(path)}?mode={mode}{vfs}",
                uri=True,
                isolation_level=None,
                timeout=_BUSY_SLICE,
                cached_statements=64,
                check_same_thread=False,
            )
            try:
                self._set_up(read_only, fsync_metadata, use_wal)
            except BaseException:
                self._connection.close()
                raise
        if create:
            self._create_schema()

    def _set_up(self, read_only: bool, fsync_metadata: bool, use_wal: bool) -> None:
        execute = self._connection.execute
        execute("pragma foreign_keys = 1")
        if read_only:
            return
        execute(f"pragma synchronous = {'normal' if fsync_metadata else 'off'}")
        wanted = "wal" if use_wal else "truncate"
        if self._retry(lambda: execute("pragma main.journal_mode").fetchone())[0] != wanted:
            self._retry(lambda: execute(f"pragma main.journal_mode = {wanted}").fetchone())
        if use_wal:
            execute("pragma main.journal_size_limit = 1099511627776")
            execute("pragma wal_autocheckpoint = 40000")

    def _create_schema(self) -> None:
        with open(_SCHEMA_FILE, encoding="utf-8") as file:
            script = file.read()
        with self._translated("cannot make the tables of"):
            self._retry(
                lambda: self._connection.executescript(f"begin immediate;\n{script}commit;")
            )

    def close(self) -> None:
        """Close the connection; the log of changes is folded into the file by the last one."""
        with self._translated("cannot close"):
            self._connection.close()

    def has_table(self, name: str) -> bool:
        """Whether a table exists."""
        query = "select 1 from sqlite_master where type = 'table' and name = ?"
        return bool(self._all(query, name))

    def create_migrations_table(self) -> None:
        """Add what newer versions of Nix look for, in a database made by an older one."""
        self._run(
            "create table if not exists SchemaMigrations (migration text primary key not null)"
        )

    def create_realisations_tables(self) -> None:
        """Add the tables of content-addressed derivations, as Nix does with that feature."""
        with open(_REALISATIONS_FILE, encoding="utf-8") as file:
            script = file.read()
        note = f"insert or ignore into SchemaMigrations values ('{_REALISATIONS}');\n"
        with self._translated("cannot make the tables of"):
            self._retry(
                lambda: self._connection.executescript(f"begin immediate;\n{script}{note}commit;")
            )

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All changes inside happen together, or none of them, if the block raises."""
        with self._translated("cannot change"):
            self._retry(lambda: self._connection.execute("begin immediate"))
            try:
                yield
                self._retry(lambda: self._connection.execute("commit"))
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("rollback")
                raise

    @contextmanager
    def _translated(self, action: str) -> Iterator[None]:
        if os.getpid() != self._pid:
            raise StoreError("the database connection was used after a fork")
        try:
            yield
        except sqlite3.Error as error:
            text = f"{action} database '{self._path}': {error}"
            raise _told(text, self._path, error) from error

    def _retry(self, action: Callable[[], _T]) -> _T:
        """Repeat while another process holds the write lock."""
        deadline = time.monotonic() + _BUSY_SECONDS
        while True:
            try:
                return action()
            except sqlite3.OperationalError as error:
                busy = error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_BUSY, _SQLITE_PROTOCOL)
                if not busy or time.monotonic() > deadline:
                    raise

    def _all(self, query: str, *values: object) -> list[Any]:
        with self._translated("cannot read"):
            return self._retry(lambda: self._connection.execute(query, values).fetchall())

    def _run(self, query: str, *values: object) -> int:
        with self._translated("cannot change"):
            cursor = self._retry(lambda: self._connection.execute(query, values))
            return cursor.lastrowid or 0

    # Queries. Paths are complete, such as "/nix/store/<hash>-name".

    def path_id(self, path: str) -> int | None:
        """The row number of a valid path."""
        rows = self._all("select id from ValidPaths where path = ?", path)
        return None if not rows else int(rows[0][0])

    def info(self, path: str) -> PathRow | None:
        """The row of one valid path."""
        rows: list[PathRow] = self._all(_QUERY_INFO, path)
        return rows[0] if rows else None

    def infos(self, paths: Iterable[str]) -> list[PathRow]:
        """The rows of those paths that are valid, in no order."""
        return self._all(_QUERY_INFOS, json.dumps(list(paths)))

    def valid(self, paths: Iterable[str]) -> list[str]:
        """Those of the paths that are valid."""
        return [row[0] for row in self._all(_QUERY_VALID, json.dumps(list(paths)))]

    def all_valid(self) -> list[str]:
        """Every valid path."""
        return [row[0] for row in self._all(_QUERY_ALL)]

    def references(self, path_id: int) -> list[str]:
        """What a path refers to, by its row number."""
        return [row[0] for row in self._all(_QUERY_REFERENCES, path_id)]

    def references_of(self, path_ids: Iterable[int]) -> list[tuple[int, str]]:
        """Pairs of row number and one reference, for many row numbers."""
        return self._all(_QUERY_ALL_REFERENCES, json.dumps(list(path_ids)))

    def referrers(self, path: str) -> list[str]:
        """The valid paths that refer to a path."""
        return [row[0] for row in self._all(_QUERY_REFERRERS, path)]

    def derivers(self, path: str) -> list[str]:
        """The valid derivations that have a path as an output."""
        return [row[0] for row in self._all(_QUERY_DERIVERS, path)]

    def outputs(self, drv_id: int) -> list[tuple[str, str]]:
        """Names and paths of a derivation's outputs, by its row number."""
        return self._all(_QUERY_OUTPUTS, drv_id)

    def derivers_among(self, paths: Iterable[str]) -> list[str]:
        """What the valid ones of some paths were built from, valid or not."""
        return [row[0] for row in self._all(_QUERY_DERIVERS_AMONG, json.dumps(list(paths)))]

    def outputs_among(self, paths: Iterable[str]) -> list[str]:
        """The output paths of the valid derivations among some paths, valid or not."""
        return [row[0] for row in self._all(_QUERY_OUTPUTS_AMONG, json.dumps(list(paths)))]

    def first_from(self, prefix: str) -> str | None:
        """The first valid path in the order of texts that isn't before `prefix`."""
        rows = self._all(_QUERY_HASH_PART, prefix)
        return str(rows[0][0]) if rows else None

    def closure(self, paths: Iterable[str], *, reverse: bool) -> list[str]:
        """All valid paths that are reached from the valid ones among `paths`, these included."""
        return [
            row[0] for row in self._all(_REVERSE if reverse else _FORWARD, json.dumps(list(paths)))
        ]

    def realisation(self, drv_hash: str, output: str) -> tuple[str, str | None] | None:
        """Path and signatures of one realisation."""
        rows = self._all(_QUERY_REALISATION, drv_hash, output)
        return rows[0] if rows else None

    def realisations_of(self, path: str) -> list[tuple[str, str, str | None]]:
        """Derivation, output and signatures of the realisations that a path is."""
        return self._all(_REALISATIONS_OF, path)

    # Changes, to be made inside of transaction().

    def insert_realisation(self, drv_hash: str, output: str, path: str, signatures: str) -> None:
        """Add a realisation; the path is valid."""
        self._run(_INSERT_REALISATION, drv_hash, output, path, signatures)

    def sign_realisation(self, drv_hash: str, output: str, signatures: str) -> None:
        """Change the signatures of a realisation."""
        self._run(_SIGN_REALISATION, signatures, drv_hash, output)

    def insert_path(self, values: InsertValues) -> int:
        """Add a row (path, hash, time, deriver, size, ultimate, signatures, ca); its number."""
        return self._run(_INSERT, *values)

    def update_path(self, values: UpdateValues) -> None:
        """Change size, hash, ultimate, signatures and ca of the row with a path."""
        self._run(_UPDATE, *values)

    def insert_references(self, pairs: Iterable[tuple[int, int]]) -> None:
        """Add references: pairs of the row numbers of referrer and reference."""
        with self._translated("cannot change"):
            self._connection.executemany(_INSERT_REFERENCE, pairs)

    def insert_output(self, drv_id: int, name: str, path: str) -> None:
        """Add an output of a derivation."""
        self._run(_INSERT_OUTPUT, drv_id, name, path)

    def delete_path(self, path: str) -> None:
        """Remove a row with its references; StoreError if others refer to it."""
        self._run(_DELETE, path)


def _told(text: str, path: str, error: sqlite3.Error) -> StoreError:
    """SQLite says "disk I/O error" where there is no room for its files."""
    from executor.store import errors, file_systems

    if not file_systems.tells_of_no_room(error):
        return StoreError(text)
    place = file_systems.database_place(os.path.dirname(path))
    return errors.NoRoomError(text + file_systems.notes_on(file_systems.full_file_systems([place])))
