"""A store that we make is laid out as one that Nix makes, and either opens the other's."""

import fcntl
import os
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from executor.errors import StoreError
from executor.store.errors import SchemaError
from executor.store.local import LocalStore, StoreSettings
from executor.store.location import StoreLocation, parse_store_url

from .conftest import Nix

# What Nix 2.8 makes beyond, and 2.34 no longer: a link that its collector doesn't need, and
# directories of the calling user. The log of changes stays only with 2.34, which asks SQLite to.
_ONLY_OLD = {
    "nix/var/nix/gcroots/profiles",
    "nix/var/nix/gcroots/per-user/root",
    "nix/var/nix/profiles/per-user/root",
}
_ON_DEMAND = {
    "nix/var/nix/gc.lock",
    "nix/var/nix/db/db.sqlite-shm",
    "nix/var/nix/db/db.sqlite-wal",
}


def _listing(root: Path) -> dict[str, tuple[str, int, int, int]]:
    found = {}
    for directory, directories, files in os.walk(root):
        for name in (*directories, *files):
            path = os.path.join(directory, name)
            status = os.lstat(path)
            size = 0 if "sqlite" in name or stat.S_ISDIR(status.st_mode) else status.st_size
            relative = os.path.relpath(path, root)
            found[relative] = (
                stat.filemode(status.st_mode),
                status.st_uid,
                status.st_gid,
                size,
            )
    return found


@pytest.mark.root
@pytest.mark.parametrize("mask", [0o077, 0o777, 0])
def test_the_umask_of_the_caller_changes_nothing(scratch: Path, mask: int) -> None:
    """The layout of a program that uses the API is that of the command line, whose umask is 022."""
    script = (
        "import os, sys\n"
        "from executor.store.gc_server import leave_name\n"
        "from executor.store.local import LocalStore\n"
        "from executor.store.location import parse_store_url\n"
        "from executor.store.roots import make_indirect_root\n"
        "os.umask(int(sys.argv[1]))\n"
        "location = parse_store_url(sys.argv[2], {})\n"
        "with LocalStore.open(location) as store:\n"
        "    store.add_text('x', b'x')\n"
        "    make_indirect_root(location, '/nowhere')\n"
        "    leave_name(location.state_dir)\n"
        "    os.umask(0o022)\n"
        "    for suffix in ('-wal', '-shm'):\n"
        "        assert not os.path.exists(p := location.state_dir + '/db/db.sqlite' + suffix)"
        " or os.stat(p).st_mode & 0o777 == 0o644\n"
    )
    listings = []
    for each in (0o022, mask):
        root = scratch / f"{each:o}"
        subprocess.run([sys.executable, "-c", script, str(each), str(root)], check=True, timeout=60)
        listings.append(_listing(root))
    theirs, ours = listings
    assert {name: what[:3] for name, what in ours.items()} == {
        name: what[:3] for name, what in theirs.items()
    }
    assert ours["nix/var/nix/db"][0] == ours["nix/var/nix/gcroots/auto"][0] == "drwxr-xr-x"
    assert ours["nix/store"][0] in {"drwxrwxr-t", "drwxr-xr-x"}
    assert ours["nix/var/nix/db/db.sqlite"][0] == "-rw-r--r--"


@pytest.mark.root
@pytest.mark.nix
def test_new_store_is_laid_out_as_by_nix(scratch: Path, location: StoreLocation) -> None:
    theirs = Nix(scratch / "theirs")
    theirs.run("nix-store", "--verify")
    LocalStore.open(location).close()
    ours, expected = _listing(scratch / "root"), _listing(scratch / "theirs")
    for path in _ONLY_OLD | _ON_DEMAND:
        expected.pop(path, None)
        ours.pop(path, None)
    assert ours == expected


def _schema(root: Path) -> set[tuple[str, str, str]]:
    """Objects and normalised columns; comments and white space don't matter."""
    with sqlite3.connect(root / "nix/var/nix/db/db.sqlite") as connection:
        rows = connection.execute("select type, name, tbl_name from sqlite_master").fetchall()
        columns = [
            (table, "column", " ".join(map(str, column[1:])))
            for _, table, _ in rows
            for column in connection.execute(f"pragma table_info({table})")
        ]
    connection.close()
    return {*rows, *columns}


@pytest.mark.nix
def test_schema_is_that_of_nix(scratch: Path, location: StoreLocation) -> None:
    Nix(scratch / "theirs").run("nix-store", "--verify")
    LocalStore.open(location).close()
    extra = {row for row in _schema(scratch / "root") if "SchemaMigrations" not in row[:2]}
    extra = {row for row in extra if row[2] != "SchemaMigrations"}
    assert extra == {
        row
        for row in _schema(scratch / "theirs")
        if "SchemaMigrations" not in (row[0], row[1]) and row[2] != "SchemaMigrations"
    }


def test_database_is_set_up_as_by_nix(store: LocalStore, root: Path) -> None:
    database = root / "nix/var/nix/db/db.sqlite"
    connection = sqlite3.connect(database)
    assert connection.execute("pragma journal_mode").fetchone() == ("wal",)
    connection.close()
    assert (root / "nix/var/nix/db/schema").read_bytes() == b"10"


@pytest.mark.nix
def test_nix_agrees_with_an_empty_store_of_ours(store: LocalStore, nix: Nix) -> None:
    assert nix.verify() == ""


@pytest.mark.parametrize(
    ("text", "message"), [("11", "newer"), ("9", "old"), ("x", "corrupt"), ("", "corrupt")]
)
def test_other_schemas_are_refused(
    location: StoreLocation, root: Path, text: str, message: str
) -> None:
    LocalStore.open(location).close()
    (root / "nix/var/nix/db/schema").write_text(text)
    before = (root / "nix/var/nix/db/db.sqlite").read_bytes()
    with pytest.raises(SchemaError, match=message):
        LocalStore.open(location)
    assert (root / "nix/var/nix/db/db.sqlite").read_bytes() == before
    assert (root / "nix/var/nix/db/schema").read_text() == text


def test_missing_migrations_table_is_added(location: StoreLocation, root: Path) -> None:
    LocalStore.open(location).close()
    connection = sqlite3.connect(root / "nix/var/nix/db/db.sqlite")
    connection.execute("drop table SchemaMigrations")
    connection.close()
    with LocalStore.open(location):
        assert any("SchemaMigrations" in row for row in _schema(root))


def test_migrations_table_can_wait(location: StoreLocation, root: Path) -> None:
    """While somebody else works with the store, we neither add the table nor wait."""
    LocalStore.open(location).close()
    connection = sqlite3.connect(root / "nix/var/nix/db/db.sqlite")
    connection.execute("drop table SchemaMigrations")
    connection.close()
    with open(root / "nix/var/nix/db/big-lock", "rb") as other:
        fcntl.flock(other, fcntl.LOCK_SH)
        with LocalStore.open(location) as store:
            assert store.query_all_valid() == set()
    assert not any("SchemaMigrations" in row for row in _schema(root))


def test_big_lock_is_held_shared(store: LocalStore, root: Path) -> None:
    with open(root / "nix/var/nix/db/big-lock", "rb") as other:
        fcntl.flock(other, fcntl.LOCK_SH | fcntl.LOCK_NB)
        fcntl.flock(other, fcntl.LOCK_UN)
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_reserve_has_its_size(location: StoreLocation, root: Path) -> None:
    reserve = root / "nix/var/nix/db/reserved"
    LocalStore.open(location).close()
    assert reserve.stat().st_size == 8 * 2**20
    assert reserve.stat().st_blocks * 512 >= 8 * 2**20
    LocalStore.open(location, settings=StoreSettings(gc_reserved_space=4096)).close()
    assert reserve.stat().st_size == 4096


def test_symlinked_store_is_refused(scratch: Path) -> None:
    (scratch / "real").mkdir()
    (scratch / "link").symlink_to("real")
    with pytest.raises(StoreError, match="is a symlink"):
        LocalStore.open(parse_store_url(str(scratch / "link/sub"), {}))
    allowed = parse_store_url(str(scratch / "link/sub"), {"NIX_IGNORE_SYMLINK_STORE": "1"})
    LocalStore.open(allowed).close()


def test_read_only_makes_nothing(location: StoreLocation, root: Path) -> None:
    with pytest.raises(StoreError, match="read-only"):
        LocalStore.open(location, read_only=True)
    assert not root.exists()
    with LocalStore.open(location) as store:
        path = store.add_text("x", b"x")
        with LocalStore.open(location, read_only=True) as reader:
            assert reader.is_valid(path)
            reader.add_temp_root(path)
            with pytest.raises(StoreError, match="read-only"):
                reader.add_text("y", b"y")
    with LocalStore.open(parse_store_url(f"{root}?read-only=true", {})) as frozen:
        assert frozen.is_valid(path)
    assert os.listdir(root / "nix/var/nix/temproots") == []


_UNSHARE = ("unshare", "--mount", "--propagation", "private")
_READ_ONLY_MOUNT = """
import subprocess, sys
from executor.store.local import LocalStore
from executor.store.location import parse_store_url
real = sys.argv[1] + "/nix/store"
subprocess.run(["mount", "--bind", real, real], check=True)
subprocess.run(["mount", "-o", "remount,ro,bind", real], check=True)
with LocalStore.open(parse_store_url(sys.argv[1], {})) as store:
    print(store.is_valid(store.add_text("x", b"x")))
"""


@pytest.mark.root
def test_store_mounted_read_only_is_made_writable_for_us(
    location: StoreLocation, root: Path
) -> None:
    LocalStore.open(location).close()
    done = subprocess.run(
        [*_UNSHARE, sys.executable, "-c", _READ_ONLY_MOUNT, str(root)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.returncode) == ("True\n", 0), done.stderr


def test_use_after_fork_is_refused(store: LocalStore) -> None:
    path = store.add_text("x", b"x")
    child = os.fork()
    if child == 0:
        try:
            store.is_valid(path)
        except StoreError:
            os._exit(7)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert store.is_valid(path)


_ONLOOKER = """
import sys
for number in range(25):
    path = f"{sys.argv[1]}/new{number}/nix/var/nix/db/schema"
    while True:
        try:
            with open(path, "rb", buffering=0) as file:
                data = file.read()
        except FileNotFoundError:
            continue
        if data == b"10":
            break
        print("saw", data, flush=True)
"""


def test_a_new_store_may_be_opened_by_others_at_any_moment(scratch: Path) -> None:
    """The first makes it while others look: nobody sees a file that is half written."""
    words = [sys.executable, "-c", _ONLOOKER, str(scratch)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as onlooker:
        for number in range(25):
            LocalStore.open(parse_store_url(str(scratch / f"new{number}"), {})).close()
        seen, _errors = onlooker.communicate(timeout=60)
    assert seen == ""
    assert os.listdir(scratch / "new0/nix/var/nix/db").count("schema") == 1
