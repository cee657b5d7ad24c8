"""The directories and files of a store: made where they are missing, exactly as Nix makes them."""

import errno
import grp
import os
import stat
from contextlib import suppress
from dataclasses import dataclass

from executor.errors import StoreError
from executor.store.database import SCHEMA_VERSION, Database
from executor.store.descriptors import make_directories
from executor.store.errors import SchemaError
from executor.store.location import StoreLocation
from executor.store.locks import open_lock_file, try_lock, unlock, wait_lock
from executor.store.settings import StoreSettings
from executor.store.syscalls import remount_writable, unshare_mounts

_STORE_MODE = 0o1775
_FILE_MODE = 0o644


@dataclass(slots=True)
class OpenStore:
    """The open database of a store, and the big lock (-1 where there is none)."""

    database: Database
    big_lock: int

    def close(self) -> None:
        """Undo the opening, where nobody took it over."""
        self.database.close()
        if self.big_lock >= 0:
            os.close(self.big_lock)


def open_existing(location: StoreLocation, settings: StoreSettings) -> OpenStore:
    """Open for queries only: makes nothing, takes no lock.

    Raises StoreError where there is no store, SchemaError for one that we don't know.
    """
    schema = _read_schema(f"{location.state_dir}/db/schema")
    if schema == 0:
        raise StoreError(
            f"there is no store database in '{location.state_dir}/db', and it cannot be created"
            " in read-only mode"
        )
    _check_schema(schema)
    return OpenStore(_open_database(location, settings, read_only=True), -1)


def open_or_make(location: StoreLocation, settings: StoreSettings) -> OpenStore:
    """Open for changes, and make what is missing.

    Takes the big lock shared, so that no other program changes the schema meanwhile. Where the
    store is mounted read-only and we are root, the calling thread gets a mount namespace with a
    writable view of it: call before other threads and processes start that shall write there.
    """
    try:
        _make_directories(location, settings)
    except OSError as error:
        raise StoreError(
            f"cannot make the store's directory '{error.filename}': {error.strerror}"
        ) from error
    _refuse_symlinks(location)
    _make_reserve(f"{location.state_dir}/db/reserved", settings.gc_reserved_space)
    big_lock = open_lock_file(f"{location.state_dir}/db/big-lock")
    try:
        wait_lock(big_lock, exclusive=False)
        database = _open_locked(location, settings, big_lock)
    except BaseException:
        os.close(big_lock)
        raise
    return OpenStore(database, big_lock)


def _open_locked(location: StoreLocation, settings: StoreSettings, big_lock: int) -> Database:
    schema_path = f"{location.state_dir}/db/schema"
    schema = _read_schema(schema_path)
    if schema == 0:
        try:
            _make_file(f"{location.state_dir}/db/db.sqlite")
        except OSError as error:
            raise StoreError(f"cannot make '{error.filename}': {error.strerror}") from error
        database = _open_database(location, settings, create=True)
        _write_schema(schema_path)
        return database
    _check_schema(schema)
    database = _open_database(location, settings)
    if not database.has_table("SchemaMigrations"):
        _add_migrations_table(database, big_lock)
    return database


def _make_file(path: str) -> None:
    """An empty file with the mode of those that users read; SQLite gives its others the same."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, _FILE_MODE)
    try:
        os.fchmod(fd, _FILE_MODE)
    finally:
        os.close(fd)


def _add_migrations_table(database: Database, big_lock: int) -> None:
    # Newer versions of Nix wait for the exclusive lock to add this table, so that they would wait
    # until we end. If somebody else is at work now, another day is as good.
    if try_lock(big_lock, exclusive=True):
        database.create_migrations_table()
    else:
        # A failed conversion may have released the shared lock.
        unlock(big_lock)
    wait_lock(big_lock, exclusive=False)


def _open_database(
    location: StoreLocation,
    settings: StoreSettings,
    *,
    create: bool = False,
    read_only: bool = False,
) -> Database:
    return Database(
        f"{location.state_dir}/db/db.sqlite",
        create=create,
        read_only=read_only,
        immutable=location.read_only,
        fsync_metadata=settings.fsync_metadata,
        use_wal=settings.use_sqlite_wal,
    )


def _make_directories(location: StoreLocation, settings: StoreSettings) -> None:
    state = location.state_dir
    make_directories(location.real_store_dir)
    make_store_writable(location.real_store_dir)
    make_directories(f"{location.real_store_dir}/.links")
    for name in ("profiles", "temproots", "db", "gcroots"):
        make_directories(f"{state}/{name}")
    for name in ("profiles/per-user", "gcroots/per-user"):
        make_directories(f"{state}/{name}")
        if stat.S_IMODE(os.stat(f"{state}/{name}").st_mode) != 0o755:
            os.chmod(f"{state}/{name}", 0o755)
    if os.geteuid() == 0 and settings.build_users_group:
        _give_to_group(location.real_store_dir, settings.build_users_group)


def _give_to_group(real_store_dir: str, group: str) -> None:
    """Mode and group that let build users of an unsandboxed Nix write; it is the norm of Nix."""
    try:
        gid = grp.getgrnam(group).gr_gid
    except KeyError:
        return
    status = os.stat(real_store_dir)
    if (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) != (0, gid, _STORE_MODE):
        os.chown(real_store_dir, 0, gid)
        os.chmod(real_store_dir, _STORE_MODE)


def _refuse_symlinks(location: StoreLocation) -> None:
    path = location.real_store_dir
    while path != "/" and not location.allow_symlinked_store:
        if os.path.islink(path):
            raise StoreError(
                f"the path '{path}' is a symlink; this is not allowed for the store and its parent"
                " directories (NIX_IGNORE_SYMLINK_STORE=1 allows it)"
            )
        path = os.path.dirname(path)


def _make_reserve(path: str, size: int) -> None:
    """Disk space that a collector can free when the disk is full; its lack is no error."""
    with suppress(OSError):
        with suppress(FileNotFoundError):
            if os.stat(path).st_size == size:
                return
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            os.fchmod(fd, 0o600)
            if size:
                os.posix_fallocate(fd, 0, size)
            os.ftruncate(fd, size)
        finally:
            os.close(fd)


def _read_schema(path: str) -> int:
    try:
        with open(path, "rb") as file:
            text = file.read(32)
    except FileNotFoundError:
        return 0
    if not text.strip().isdigit():
        raise SchemaError(f"'{path}' is corrupt")
    return int(text)


def _check_schema(schema: int) -> None:
    if schema > SCHEMA_VERSION:
        raise SchemaError(
            f"the store has schema version {schema}, made by a newer Nix; only version"
            f" {SCHEMA_VERSION} is supported"
        )
    if schema < SCHEMA_VERSION:
        raise SchemaError(
            f"the store has the old schema version {schema}; run any command of Nix 2.0 or later"
            f" on it, which migrates it to version {SCHEMA_VERSION}"
        )


def _write_schema(path: str) -> None:
    """Whole or not at all: who opens the store at this moment, or after a crash, reads it."""
    temporary = f"{path}.tmp-{os.getpid()}-{os.urandom(4).hex()}"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _FILE_MODE)
    try:
        os.write(fd, str(SCHEMA_VERSION).encode())
        os.fchmod(fd, _FILE_MODE)
        os.fsync(fd)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
    finally:
        os.close(fd)


def make_store_writable(real_store_dir: str) -> bool:
    """Give this thread a writable view of a store that is mounted read-only, as on NixOS.

    Tells whether anything had to be done. The calling thread, and what it starts later, move to a
    mount namespace of their own; nobody else sees a difference. Without root nothing happens.
    """
    if os.geteuid() != 0 or not os.statvfs(real_store_dir).f_flag & os.ST_RDONLY:
        return False
    try:
        unshare_mounts()
        remount_writable(real_store_dir)
    except OSError as error:
        hint = " (it is not a mount point)" if error.errno == errno.EINVAL else ""
        raise StoreError(
            f"cannot remount '{real_store_dir}' writable: {error.strerror}{hint}"
        ) from error
    return True
