"""The collector: what it deletes and spares, the same as stock Nix, and who comes in between."""

import os
import random
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from executor.derivation import DeferredOutput, Derivation
from executor.derivation_hash import fill_outputs
from executor.errors import StoreError
from executor.formats.store_path import StorePath
from executor.store.auto_collect import AutoCollector
from executor.store.canonicalise import describe_tree
from executor.store.collect import CollectAction, CollectOptions, CollectResult, render_size
from executor.store.local import LocalStore
from executor.store.location import StoreLocation
from executor.store.locks import lock_paths, open_lock_file, wait_lock
from executor.store.path_info import PathInfo
from executor.store.settings import StoreSettings

from .conftest import Nix

ZERO = "0c5b4rqqbwqhhp30jhjlh2bjzrpz1v2k"
DEAD = CollectOptions(action=CollectAction.RETURN_DEAD)
LIVE = CollectOptions(action=CollectAction.RETURN_LIVE)


class Garden:
    """A store whose paths have no temporary roots: each is made by a store that is closed."""

    def __init__(self, location: StoreLocation) -> None:
        self.location = location
        self.settings = StoreSettings(fsync_metadata=False)
        self.directory = Path(location.real_store_dir)

    def open(self) -> LocalStore:
        return LocalStore.open(self.location, settings=self.settings)

    def text(self, name: str, *references: StorePath, data: bytes = b"x") -> StorePath:
        with self.open() as store:
            return store.add_text(name, data, references)

    def derivation(self, name: str, *inputs: StorePath, outputs: str = "out") -> StorePath:
        names = outputs.split()
        with self.open() as store:
            derivation = Derivation(
                name=name,
                outputs=dict.fromkeys(names, DeferredOutput()),
                input_drvs={path: frozenset({"out"}) for path in inputs},
                input_srcs=frozenset(),
                platform="x86_64-linux",
                builder=b"/bin/sh",
                args=(),
                env={output.encode(): b"" for output in names},
            )
            return store.write_derivation(fill_outputs(derivation, store.modulo_hasher))

    def build(self, drv: StorePath, *references: StorePath, output: str = "out") -> StorePath:
        """Register an output as if it had been built."""
        with self.open() as store:
            path = store.query_outputs(drv)[output]
            (self.directory / path.base_name).write_bytes(b"built")
            os.chmod(self.directory / path.base_name, 0o444)
            os.utime(self.directory / path.base_name, (1, 1))
            found = describe_tree(store.store_fd, path.base_name.encode())
            info = PathInfo(
                path=path,
                nar_hash=found.nar_hash,
                nar_size=found.nar_size,
                references=frozenset(references),
                deriver=drv,
            )
            store.register([info])
        return path

    def root(self, *paths: StorePath) -> None:
        for path in paths:
            link = Path(self.location.state_dir, "gcroots", path.base_name)
            link.symlink_to(self.location.store_dir.render(path))

    def collect(self, options: CollectOptions | None = None) -> CollectResult:
        with self.open() as store:
            return store.collect_garbage(options or CollectOptions())

    def paths(self, options: CollectOptions) -> set[StorePath]:
        with self.open() as store:
            found = store.collect_garbage(options).paths
            return {store.store_dir.parse(text) for text in found}

    @property
    def valid(self) -> set[StorePath]:
        with self.open() as store:
            return store.query_all_valid()

    @property
    def names(self) -> set[str]:
        return set(os.listdir(self.directory)) - {".links"}


@pytest.fixture
def garden(location: StoreLocation) -> Garden:
    garden = Garden(location)
    garden.open().close()
    return garden


def test_what_roots_reach_stays(garden: Garden) -> None:
    bottom = garden.text("bottom")
    middle = garden.text("middle", bottom)
    top = garden.text("top", middle)
    other = garden.text("other", bottom)
    garden.root(middle)
    assert garden.paths(DEAD) == {top, other}
    assert garden.paths(LIVE) == {middle, bottom}
    result = garden.collect()
    assert {text.rpartition("/")[2] for text in result.paths} == {top.base_name, other.base_name}
    assert garden.valid == {middle, bottom}
    assert garden.names == {middle.base_name, bottom.base_name}


@pytest.mark.nix
@pytest.mark.parametrize("keep_outputs", [False, True])
@pytest.mark.parametrize("keep_derivations", [False, True])
def test_the_same_sets_as_nix(
    garden: Garden, nix: Nix, keep_outputs: bool, keep_derivations: bool
) -> None:
    choose = random.Random(5)
    for _ in range(3):
        drvs: list[StorePath] = []
        outs: list[StorePath] = []
        for number in range(12):
            name = f"d{choose.getrandbits(40):x}"
            drvs.append(garden.derivation(name, *choose.sample(drvs, min(number, 2))))
            if choose.random() < 0.7:
                outs.append(garden.build(drvs[-1], *choose.sample(outs, min(len(outs), 2))))
        garden.root(choose.choice(outs), choose.choice(drvs))
    garden.settings = replace(
        garden.settings, keep_outputs=keep_outputs, keep_derivations=keep_derivations
    )
    options = [
        *("--option", "keep-outputs", str(keep_outputs).lower()),
        *("--option", "keep-derivations", str(keep_derivations).lower()),
    ]
    for action, word in ((DEAD, "--print-dead"), (LIVE, "--print-live")):
        theirs = nix.run("nix-store", "--gc", word, *options).splitlines()
        assert {f"/nix/store/{path}" for path in garden.paths(action)} == set(theirs)
        assert theirs
    live = garden.paths(LIVE)
    garden.collect()
    assert garden.valid == live
    assert nix.run("nix-store", "--gc", "--print-dead", *options) == ""
    assert nix.verify() == ""


def test_keep_outputs_and_derivations(garden: Garden) -> None:
    drv = garden.derivation("x", outputs="out dev")
    out, dev = garden.build(drv), garden.build(drv, output="dev")
    garden.root(out)
    assert garden.paths(LIVE) == {out, drv}
    garden.settings = replace(garden.settings, keep_outputs=True)
    assert garden.paths(LIVE) == {out, drv, dev}
    garden.settings = replace(garden.settings, keep_derivations=False)
    assert garden.paths(LIVE) == {out}


def test_limit(garden: Garden) -> None:
    for number in range(5):
        garden.text(f"p{number}", data=b"x" * 1000)
    result = garden.collect(CollectOptions(max_freed=1500))
    assert (len(result.paths), result.bytes_freed) == (2, 2000)
    assert len(garden.valid) == 3
    assert garden.collect(CollectOptions(max_freed=0)).paths == set()
    assert len(garden.valid) == 3


def test_asking_to_stop(garden: Garden) -> None:
    for number in range(3):
        garden.text(f"p{number}")
    asked = iter([False, True])
    assert len(garden.collect(CollectOptions(stop=lambda: next(asked))).paths) == 1
    assert len(garden.valid) == 2


def test_garbage_of_every_kind(garden: Garden, scratch: Path) -> None:
    """What is no valid path goes, whatever it is called; what is outside stays."""
    victim = scratch / "victim"
    victim.mkdir()
    (victim / "file").write_text("mine")
    kept = garden.text("kept")
    garden.root(kept)
    names = [
        b"junk",
        b"\xff\xfe\n\x1b[31m",
        b"-rf",
        f"{ZERO}-x.lock".encode(),
        b".executor-trash-1",
    ]
    for name in names:
        Path(os.fsdecode(os.fsencode(garden.directory) + b"/" + name)).write_bytes(b"12345")
    (garden.directory / "link").symlink_to(victim)
    deep = garden.directory / f"{ZERO}-deep"
    deep.mkdir()
    fd = os.open(deep, os.O_RDONLY)
    for _ in range(200):
        os.mkdir("d", dir_fd=fd)
        os.symlink(victim, "out", dir_fd=fd)
        inner = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.fchmod(fd, 0)
    os.close(fd)
    with garden.open() as store:
        before = store.collect_garbage(DEAD)
        assert len(before.paths) == len(names) + 2
        assert len(garden.names) == len(before.paths) + 1
        result = store.collect_garbage(CollectOptions())
    assert result.paths == before.paths
    assert all(text.isprintable() for text in result.paths)
    assert garden.names == {kept.base_name}
    assert (victim / "file").read_text() == "mine"


def test_companions_of_temporary_roots(garden: Garden) -> None:
    path = StorePath(ZERO, "x" * 207)
    # With its suffix, the last is no store path any more.
    mine = {f"{path}", f"{ZERO}-x.lock", f"{ZERO}-x.drv.chroot", f"{path}.lock"}
    other = "1c5b4rqqbwqhhp30jhjlh2bjzrpz1v2k-x.lock"
    for name in (*mine, other):
        (garden.directory / name).write_bytes(b"")
    with garden.open() as holder:
        holder.add_temp_root(path)
        assert garden.collect().paths == {f"/nix/store/{other}"}
    assert garden.names == mine
    garden.collect()
    assert garden.names == set()


def test_locked_files_and_directories_stay(garden: Garden) -> None:
    directory = garden.directory / "tmp-1-1"
    directory.mkdir()
    held = os.open(directory, os.O_RDONLY)
    wait_lock(held, exclusive=True)
    with lock_paths([str(garden.directory / f"{ZERO}-x")]):
        garden.collect()
        assert garden.names == {"tmp-1-1", f"{ZERO}-x.lock"}
    os.close(held)
    garden.collect()
    assert garden.names == set()


@contextmanager
def _locked_by(user: int, path: Path, *, orphaned: bool = False) -> Iterator[None]:
    """A process of a user that has locked what it may only read."""
    fd = os.open(path, os.O_RDONLY)
    script = (
        "import fcntl, os, sys\n"
        f"os.setuid({user})\n"
        f"fd = os.open('/proc/self/fd/{fd}', os.O_RDONLY)\n"
        f"os.close({fd})\n"
        "fcntl.flock(fd, fcntl.LOCK_SH)\n"
        f"if {orphaned} and os.fork(): os._exit(0)\n"
        "print('ready', flush=True)\ninput()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pass_fds=[fd],
        cwd="/",
        text=True,
    )
    os.close(fd)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield
    finally:
        process.communicate("\n", timeout=20)


@pytest.mark.root
@pytest.mark.parametrize("orphaned", [False, True])
def test_a_lock_of_a_user_keeps_nothing(garden: Garden, orphaned: bool) -> None:
    """Everybody may read a directory in the store, and so lock it."""
    directory = garden.directory / f"{ZERO}-x"
    directory.mkdir(mode=0o755)
    with _locked_by(61234, directory, orphaned=orphaned):
        garden.collect()
        assert garden.names == set()


@pytest.mark.root
@pytest.mark.parametrize("mode", [0o755, 0o700])
def test_a_lock_of_root_keeps_it(garden: Garden, mode: int) -> None:
    """Also where a user has locked it, too; Nix locks its directories of either mode."""
    directory = garden.directory / "tmp-1-1"
    directory.mkdir(mode=mode)
    with _locked_by(0, directory):
        garden.collect()
        assert garden.names == {"tmp-1-1"}
        if mode == 0o755:
            with _locked_by(61234, directory):
                garden.collect()
                assert garden.names == {"tmp-1-1"}
    garden.collect()
    assert garden.names == set()


def test_a_deleted_lock_file_is_marked(garden: Garden) -> None:
    """Whoever has opened it meanwhile sees that it must make another one."""
    fd = open_lock_file(str(garden.directory / f"{ZERO}-x.lock"))
    garden.collect()
    assert os.pread(fd, 10, 0) == b"d"
    os.close(fd)


def test_scratch_directory_of_a_living_process(garden: Garden) -> None:
    with garden.open() as store, store.scratch_directory() as fd:
        os.mkdir("x", dir_fd=fd)
        garden.collect()
        os.stat("x", dir_fd=fd)
        assert len(garden.names) == 1


def test_young_links_of_an_optimiser(garden: Garden) -> None:
    (garden.directory / ".tmp-link-1-2").write_bytes(b"")
    garden.collect()
    assert garden.names == {".tmp-link-1-2"}


def test_unused_links(garden: Garden) -> None:
    path = garden.text("x", data=b"y" * 100)
    with garden.open() as store:
        store.optimise()
    links = garden.directory / ".links"
    (links / "directory").mkdir()
    (links / "alone").write_bytes(b"")
    assert len(os.listdir(links)) == 3
    garden.root(path)
    garden.collect()
    assert len(os.listdir(links)) == 2
    Path(garden.location.state_dir, "gcroots", path.base_name).unlink()
    assert garden.collect().bytes_freed == 100
    assert os.listdir(links) == ["directory"]


def test_a_planted_links_directory(garden: Garden, scratch: Path) -> None:
    (scratch / "victim").mkdir()
    (scratch / "victim/file").write_text("mine")
    (garden.directory / ".links").rmdir()
    (garden.directory / ".links").symlink_to(scratch / "victim")
    with garden.open() as store, pytest.raises(StoreError, match="links"):
        store.collect_garbage(CollectOptions())
    assert (scratch / "victim/file").read_text() == "mine"


def test_the_reserve_is_freed(garden: Garden) -> None:
    reserve = Path(garden.location.state_dir, "db/reserved")
    assert reserve.stat().st_size == 8 << 20
    garden.collect(DEAD)
    assert reserve.exists()
    garden.collect()
    assert not reserve.exists()
    garden.open().close()
    assert reserve.stat().st_size == 8 << 20


# Deleting what is named.


def _specific(*paths: StorePath, ignore_liveness: bool = False) -> CollectOptions:
    return CollectOptions(
        action=CollectAction.DELETE_SPECIFIC,
        paths=frozenset(paths),
        ignore_liveness=ignore_liveness,
    )


def test_delete_named_paths(garden: Garden) -> None:
    bottom = garden.text("bottom")
    top = garden.text("top", bottom)
    other = garden.text("other")
    with pytest.raises(StoreError, match="still alive"):
        garden.collect(_specific(bottom))
    assert garden.valid == {bottom, top, other}
    assert len(garden.collect(_specific(bottom, top)).paths) == 2
    assert garden.valid == {other}
    garden.collect(_specific(StorePath(ZERO, "never-there")))


def test_delete_what_is_rooted(garden: Garden) -> None:
    bottom = garden.text("bottom")
    top = garden.text("top", bottom)
    garden.root(top)
    with pytest.raises(StoreError, match="still alive"):
        garden.collect(_specific(top))
    # What others refer to stays, whatever is ignored; and so do temporary roots.
    with pytest.raises(StoreError, match="still alive"):
        garden.collect(_specific(bottom, ignore_liveness=True))
    with garden.open() as holder:
        holder.add_temp_root(top)
        with pytest.raises(StoreError, match="still alive"):
            garden.collect(_specific(top, ignore_liveness=True))
    garden.collect(_specific(top, ignore_liveness=True))
    assert garden.valid == {bottom}


@pytest.mark.nix
def test_delete_with_kept_derivations_as_nix(garden: Garden, nix: Nix) -> None:
    drv = garden.derivation("x")
    out = garden.build(drv)
    with pytest.raises(StoreError, match="still alive"):
        garden.collect(_specific(drv))
    theirs = subprocess.run(
        nix.command("nix-store", "--delete", f"/nix/store/{drv}"),
        env=nix.environment(),
        capture_output=True,
        check=False,
    )
    assert theirs.returncode == 1
    assert b"still alive" in theirs.stderr
    garden.collect(_specific(drv, ignore_liveness=True))
    assert garden.valid == {out}


# Who comes while it runs. The report is called in the middle of the collection.


def _collect_and(garden: Garden, text: str, act: Callable[[], object]) -> CollectResult:
    """Collect, and call `act` when something is reported."""

    def report(message: str) -> None:
        if text in message:
            act()

    with garden.open() as store:
        return store.collect_garbage(CollectOptions(), report=report)


def test_roots_that_arrive_after_the_others(garden: Garden) -> None:
    bottom = garden.text("bottom")
    top = garden.text("top", bottom)
    dead = garden.text("dead")
    with garden.open() as client:
        _collect_and(garden, "deleting garbage", lambda: client.add_temp_roots([top]))
        assert client.query_all_valid() == {top, bottom}
        # It stands in the file, too, for the next collector.
        assert garden.collect().paths == set()
    assert f"/nix/store/{dead}" in garden.collect().paths or garden.valid == set()


@pytest.mark.nix
def test_roots_that_stock_nix_sends(garden: Garden, nix: Nix) -> None:
    bottom = garden.text("bottom")
    top = garden.text("top", bottom)
    dead = garden.text("dead")
    done = []

    def realise() -> None:
        done.append(nix.run("nix-store", "--realise", f"/nix/store/{top}"))

    result = _collect_and(garden, "deleting garbage", realise)
    assert done == [f"/nix/store/{top}"]
    assert result.paths == {f"/nix/store/{dead}"}
    assert garden.valid == {top, bottom}


def test_a_root_for_the_path_that_is_being_deleted(garden: Garden) -> None:
    """The client waits, and is told only when the path has gone."""
    path = garden.text("x")
    with garden.open() as client:
        thread = threading.Thread(target=client.add_temp_root, args=(path,))

        def act() -> None:
            thread.start()
            thread.join(0.4)
            assert thread.is_alive()
            assert (garden.directory / path.base_name).exists()

        _collect_and(garden, "deleting '/nix/store", act)
        thread.join(5)
        assert not thread.is_alive()
        assert not client.is_valid(path)
        assert not (garden.directory / path.base_name).exists()
        # And it may be made again at once.
        assert client.add_text("x", b"x") == path
        garden.collect()
        assert client.is_valid(path)


def test_a_path_that_is_registered_meanwhile(garden: Garden) -> None:
    """Its references stay with it: it has a root, and they have it."""
    bottom = garden.text("bottom")
    with garden.open() as client:
        made: list[StorePath] = []

        def act() -> None:
            client.add_temp_root(bottom)
            made.append(client.add_text("new", b"new", [bottom]))

        _collect_and(garden, "deleting garbage", act)
        assert client.query_all_valid() == {bottom, *made}


def test_clients_that_misbehave(garden: Garden) -> None:
    """Garbage is answered, endless lines are cut, silence and hanging up hold up nobody."""
    path = garden.text("x")
    connections: list[socket.socket] = []

    def connect() -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        directory = os.open(f"{garden.location.state_dir}/gc-socket", os.O_RDONLY)
        # Blocking: with a time limit, a full backlog would be an error.
        connection.connect(f"/proc/self/fd/{directory}/socket")
        connection.settimeout(5)
        os.close(directory)
        connections.append(connection)
        return connection

    def act() -> None:
        garbage = connect()
        garbage.sendall(b"\xff../..\n\n/nix/store/../x\n")
        answers = b""
        while len(answers) < 3:
            answers += garbage.recv(10)
        assert answers == b"111"
        endless = connect()
        endless.sendall(b"x" * 20_000)
        with pytest.raises((ConnectionError, AssertionError)):
            assert endless.recv(1)
        for _ in range(300):
            connect()
        connect().sendall(b"/nix/store/unfinished")
        pieces = connect()
        for byte in f"/nix/store/{path}\n".encode():
            pieces.sendall(bytes([byte]))
        assert pieces.recv(1) == b"1"

    _collect_and(garden, "deleting garbage", act)
    for connection in connections:
        connection.close()
    assert garden.valid == {path}


def test_a_flood_of_invented_roots_stops_nobody(garden: Garden) -> None:
    for number in range(30):
        garden.text(f"dead-{number}")
    done = threading.Event()

    def flood() -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            directory = os.open(f"{garden.location.state_dir}/gc-socket", os.O_RDONLY)
            connection.connect(f"/proc/self/fd/{directory}/socket")
            os.close(directory)
            connection.settimeout(0.1)
            number = 0
            while not done.is_set():
                number += 1
                lines = f"/nix/store/{number:032d}-x\n" * 50
                with suppress(OSError):
                    connection.sendall(lines.encode())
                    connection.recv(1 << 16)

    threads: list[threading.Thread] = []

    def begin() -> None:
        threads.append(threading.Thread(target=flood))
        threads[0].start()
        time.sleep(0.2)

    start = time.monotonic()
    try:
        _collect_and(garden, "deleting garbage", begin)
    finally:
        done.set()
        threads[0].join(10)
    assert garden.valid == set()
    assert time.monotonic() - start < 10


def test_two_collectors_wait_for_each_other(garden: Garden) -> None:
    garden.text("x")
    heard: list[str] = []

    def second() -> None:
        with garden.open() as store:
            store.collect_garbage(CollectOptions(), report=heard.append)

    thread = threading.Thread(target=second)

    def act() -> None:
        thread.start()
        time.sleep(0.3)

    _collect_and(garden, "deleting garbage", act)
    thread.join(10)
    assert not thread.is_alive()
    assert heard[0] == "waiting for the big garbage collector lock..."
    assert garden.names == set()


def test_killed_in_the_middle(garden: Garden) -> None:
    """The next one finds a store in order, and takes what is left."""
    directory = garden.directory / f"{ZERO}-x"
    directory.mkdir()
    (directory / "file").write_bytes(b"x")

    class KilledError(Exception):
        pass

    def report(message: str) -> None:
        if "deleting '" in message:
            raise KilledError

    with garden.open() as store, pytest.raises(KilledError):
        store.collect_garbage(CollectOptions(), report=report)
    garden.collect()
    assert garden.names == set()


def test_realisations_go_with_their_paths(garden: Garden) -> None:
    garden.settings = replace(garden.settings, experimental_features=frozenset({"ca-derivations"}))
    path = garden.text("x")
    with garden.open() as store:
        from executor.formats.realisation import DrvOutput, Realisation

        realisation = Realisation(DrvOutput("sha256:" + "0" * 64, "out"), path)
        store.realisations.register([realisation])
    garden.collect()
    with sqlite3.connect(f"{garden.location.state_dir}/db/db.sqlite") as database:
        assert database.execute("select count(*) from Realisations").fetchone() == (0,)
    database.close()


# Collecting on the side.


def test_auto_collect(garden: Garden) -> None:
    garden.text("x")
    garden.settings = replace(garden.settings, min_free=1 << 62, min_free_check_interval=0)
    kept = garden.text("kept")
    with garden.open() as store:
        store.add_temp_root(kept)
        said = store.auto_collect()
        assert said is not None
        assert said.startswith("running auto-GC to free ")
        collector = store._auto_collector
        assert collector is not None
        collector.wait(30)
        assert collector.error is None
        assert store.query_all_valid() == {kept}
        # That changed next to nothing, so it isn't tried again.
        assert store.auto_collect() is None


@pytest.mark.parametrize("error", [OSError(5, "Input/output"), ValueError(), MemoryError("x")])
def test_a_collection_on_the_side_that_breaks_is_a_warning(
    garden: Garden, error: Exception
) -> None:
    def broken(wanted: int, stop: Callable[[], bool]) -> None:
        raise error

    settings = replace(garden.settings, min_free=1 << 62, min_free_check_interval=0)
    collector = AutoCollector("/", settings, broken)
    said = collector.check()
    assert said is not None
    assert said.startswith("running auto-GC")
    collector.wait(30)
    said = collector.check()
    assert said == f"auto-GC failed: {error if str(error) else 'ValueError'}"
    assert collector.check() is None
    collector.close()


def test_no_auto_collect_where_there_is_space(garden: Garden) -> None:
    path = garden.text("x")
    for changes in ({"min_free": 0}, {"min_free": 1}, {"min_free": 1 << 62, "max_free": 1}):
        garden.settings = replace(garden.settings, **changes)  # type: ignore[arg-type]
        with garden.open() as store:
            assert store.auto_collect() is None
    assert garden.valid == {path}


def test_sizes_for_people() -> None:
    sizes = (0, 100, 1 << 10, 1 << 20, (1 << 20) + 1, -5 << 20, 3 << 30)
    assert [render_size(size) for size in sizes] == [
        *("0.0 KiB", "0.1 KiB", "1.0 KiB", "1024.0 KiB", "1.0 MiB", "-5.0 MiB", "3.0 GiB"),
    ]


def test_the_socket_when_the_collector_has_gone(garden: Garden) -> None:
    """Nix 2.8 goes on as if it were safe after any error but these two."""
    connections: list[socket.socket] = []

    def act() -> None:
        for _ in range(3):
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            directory = os.open(f"{garden.location.state_dir}/gc-socket", os.O_RDONLY)
            connection.connect(f"/proc/self/fd/{directory}/socket")
            os.close(directory)
            connections.append(connection)
        # Of a line without an end, some stays unread.
        connections[0].sendall(b"/nix/store/unfinished")

    garden.text("x")
    _collect_and(garden, "note: hard linking", act)
    for connection in connections:
        connection.settimeout(5)
        assert connection.recv(1) == b""
        connection.close()
    assert os.listdir(f"{garden.location.state_dir}/gc-socket") == ["socket"]
    late = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    directory = os.open(f"{garden.location.state_dir}/gc-socket", os.O_RDONLY)
    with pytest.raises(ConnectionRefusedError):
        late.connect(f"/proc/self/fd/{directory}/socket")
    os.close(directory)
    late.close()
