"""The garbage collector: what no root reaches is made invalid and deleted (rows K1 to K7, K10).

What is alive is computed once, from all roots. Then each name in the store directory is looked at:
a valid path that isn't alive goes after everything that refers to it, and what isn't valid goes at
once, unless somebody is at work with it. While it runs, other processes announce new roots over
the socket (gc_server.py); right before a path is deleted they are taken into account, and whoever
asks for just that path waits until it has gone. So no answer is ever wrong: a client that got one
finds its path valid, and it stays so, or finds it missing.
"""

import os
import stat
import time
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TYPE_CHECKING

from executor.errors import FormatError, StoreError
from executor.formats.store_path import StorePath
from executor.store.auto_collect import AutoCollector
from executor.store.database import Database
from executor.store.descriptors import DIRECTORY_FLAGS, display
from executor.store.errors import PathInUseError
from executor.store.gc_roots import (
    find_runtime_roots,
    find_temporary_roots,
    hash_part,
)
from executor.store.gc_server import RootsServer, leave_name
from executor.store.link_roots import Report, find_permanent_roots
from executor.store.liveness import Liveness
from executor.store.location import StoreLocation
from executor.store.locks import open_lock_file, try_lock
from executor.store.queries import Queries
from executor.store.reserve import free_reserve
from executor.store.trash import Trash

if TYPE_CHECKING:
    from executor.store.local import LocalStore

LINKS = b".links"
# Seconds between two looks at a lock.
_POLL = 0.05


class CollectAction(Enum):
    """What a collection is to do."""

    DELETE_DEAD = auto()
    DELETE_SPECIFIC = auto()
    RETURN_DEAD = auto()
    RETURN_LIVE = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectOptions:
    """`paths` are those of DELETE_SPECIFIC; `max_freed` is in bytes, None for no limit.

    With `ignore_liveness` only temporary roots count; paths that others refer to stay all the
    same. `stop` is asked before each deletion, and ends the collection early.
    """

    action: CollectAction = CollectAction.DELETE_DEAD
    paths: frozenset[StorePath] = frozenset()
    ignore_liveness: bool = False
    max_freed: int | None = None
    stop: Callable[[], bool] = lambda: False

    @property
    def deletes(self) -> bool:
        """Whether anything is changed."""
        return self.action in (CollectAction.DELETE_DEAD, CollectAction.DELETE_SPECIFIC)


@dataclass(slots=True)
class CollectResult:
    """Full logical paths, deleted or found; and bytes of files whose last name has gone.

    It holds what was done until then also when the collection ends with an error.
    """

    paths: set[str] = field(default_factory=set)
    bytes_freed: int = 0


class _EnoughError(Exception):
    """As much as was asked for has been deleted."""


@dataclass(slots=True, kw_only=True)
class Collector:
    """One collection of one store; `invalidate` raises PathInUseError as Registrar's does."""

    location: StoreLocation
    store_fd: int
    is_valid: Callable[[StorePath], bool]
    referrers: Callable[[StorePath], set[StorePath]]
    invalidate: Callable[[StorePath], None]
    liveness: Liveness
    options: CollectOptions
    report: Report
    result: CollectResult
    _server: RootsServer = field(init=False)
    _trash: Trash = field(init=False)
    _alive: set[StorePath] = field(default_factory=set)
    _dead: set[StorePath] = field(default_factory=set)
    _kept_names: set[str] = field(default_factory=set)

    def run(self) -> None:
        """Collect. Raises StoreError, also for a path of DELETE_SPECIFIC that is alive."""
        if self.options.deletes:
            free_reserve(self.location)
        self._trash = Trash(self.store_fd)
        leave_name(self.location.state_dir)
        lock = open_lock_file(f"{self.location.state_dir}/gc.lock")
        try:
            if not self._lock(lock):
                return
            with RootsServer(self.location.state_dir, self.location.store_dir) as self._server:
                self._collect()
        finally:
            os.close(lock)

    def _lock(self, lock: int) -> bool:
        """Wait until no other collector runs and no root is being added; False for a stop."""
        told = False
        while not try_lock(lock, exclusive=True):
            if not told:
                told = True
                self.report("waiting for the big garbage collector lock...")
            if self.options.stop():
                return False
            time.sleep(_POLL)
        return True

    def _collect(self) -> None:
        self.report("finding garbage collector roots...")
        self._find_roots()
        options = self.options
        with suppress(_EnoughError):
            if options.action is CollectAction.DELETE_SPECIFIC:
                for path in sorted(options.paths):
                    self._delete_specific(path)
            elif options.max_freed is None or options.max_freed > 0:
                determining = "determining live/dead paths..."
                self.report("deleting garbage..." if options.deletes else determining)
                self._look_at_everything()
        if options.action is CollectAction.RETURN_LIVE:
            valid = {path for path in self._alive if self.is_valid(path)}
            self.result.paths.update(map(self._render, valid))
            self.result.paths.update(map(self._render, self._kept_names))
        if options.deletes:
            self._delete_unused_links()

    def _find_roots(self) -> None:
        # Nobody can add a permanent root without a temporary one, and those come to the socket by
        # now. The temporary ones first: their owner may make a link meanwhile, and end.
        temporary = find_temporary_roots(self.location, self.report)
        self._server.add_known({path.digest for path in temporary})
        roots: set[StorePath] = set()
        if not self.options.ignore_liveness:
            roots.update(find_permanent_roots(self.location, self.is_valid, self.report))
            roots.update(find_runtime_roots(self.location, self.is_valid, self.report))
        self._alive = self.liveness.closure(roots.union(temporary))

    # What is there.

    def _look_at_everything(self) -> None:
        # Of its own: others with this descriptor would move the position in the directory.
        directory_fd = os.open(".", DIRECTORY_FLAGS, dir_fd=self.store_fd)
        try:
            with os.scandir(directory_fd) as entries:
                for entry in entries:
                    name = os.fsencode(entry.name)
                    if name != LINKS:
                        self._look_at(name)
        finally:
            os.close(directory_fd)

    def _look_at(self, name: bytes) -> None:
        path = _parse(name)
        if path is not None and path in self._alive:
            self._kept_names.add(path.base_name)
            return
        part = hash_part(name)
        if part is not None and self._server.knows(part):
            # The path, its lock or its build directory belongs to somebody's temporary root.
            self._kept_names.add(display(name))
        elif path is not None and self.is_valid(path):
            self._delete_with_referrers(path)
        else:
            self._delete_invalid(name, part)

    def _delete_with_referrers(self, start: StorePath) -> None:
        """Delete a valid path that isn't alive, and first all that refers to it."""
        stack, seen = [start], set()
        while stack:
            path = stack[-1]
            if path in self._dead or path in self._alive:
                stack.pop()
            elif path not in seen:
                seen.add(path)
                referrers = self.referrers(path) - {path} - self._dead
                if referrers & self._alive:
                    # It was registered a moment ago, by somebody who needs our path.
                    self._keep([path])
                stack += sorted(referrers - self._alive)
            else:
                stack.pop()
                self._delete_valid(path)

    def _delete_valid(self, path: StorePath) -> None:
        """Delete one path that nothing refers to any more, if that is still so."""
        if not self.options.deletes:
            self._dead.add(path)
            self._found_dead(path)
            return
        if not self._claim(path.digest) or path in self._alive:
            self._server.end()
            self._keep([path])
            return
        try:
            self._check_for_stop()
            self.invalidate(path)
            self._dead.add(path)
            self._announce(path)
            moved = self._trash.take(path.base_name.encode())
        except PathInUseError:
            self._keep([path])
            return
        finally:
            self._server.end()
        self._empty_trash(moved)

    def _delete_invalid(self, name: bytes, part: str | None) -> None:
        """Delete what is no valid path, unless a lock shows that somebody works with it."""
        path = _parse(name)
        if not self.options.deletes:
            self._found_dead(display(name))
            return
        if part is not None and not self._claim(part):
            return
        try:
            if path is not None and self.is_valid(path):
                # Registered since we looked; whoever did that has a root for it.
                self._keep([path])
                return
            self._check_for_stop()
            guard = self._trash.guard(name)
            if guard is None:
                return
            with guard:
                self._announce(display(name) if path is None else path)
                moved = self._trash.take(name)
                # Not while clients wait: it may be large.
                self._server.end()
                self._empty_trash(moved)
        finally:
            self._server.end()

    def _delete_specific(self, path: StorePath) -> None:
        for each in self._all_that_goes_with(path):
            if each in self._alive or each not in self.options.paths:
                self._refuse(path)
        if self.is_valid(path):
            self._delete_with_referrers(path)
        else:
            self._delete_invalid_path(path)
        if path not in self._dead:
            self._refuse(path)

    def _delete_invalid_path(self, path: StorePath) -> None:
        name = path.base_name.encode()
        if path in self._dead or self._server.knows(path.digest):
            return
        self._delete_invalid(name, path.digest)
        if not self._trash.exists(name):
            self._dead.add(path)

    def _all_that_goes_with(self, start: StorePath) -> Collection[StorePath]:
        """What has to go before or with a path: referrers, and as keep-* say (row K7)."""
        found, todo = {start}, [start]
        while todo:
            path = todo.pop()
            if not self.is_valid(path):
                continue
            near = self.referrers(path) | self.liveness.kept_by(path)
            todo += near - found
            found |= near
        return found

    def _refuse(self, path: StorePath) -> None:
        raise StoreError(
            f"cannot delete path '{self._render(path)}' since it is still alive; to find out why,"
            " look at its roots and its referrers"
        )

    # Against those who come while we work.

    def _claim(self, part: str) -> bool:
        """Let clients that ask for a hash part wait; False if it is a temporary root by now.

        New roots are made alive with their closures, so look again afterwards. What isn't taken
        into account yet is safe all the same: nothing goes before what refers to it.
        """
        if not self._server.begin(part):
            return False
        if news := self._server.take_news():
            self._keep(self.liveness.with_hash_parts(news))
        return True

    def _keep(self, paths: Iterable[StorePath]) -> None:
        self._alive |= self.liveness.closure(set(paths))

    def _check_for_stop(self) -> None:
        if self.options.stop():
            raise _EnoughError

    # Deleting.

    def _found_dead(self, path: StorePath | str) -> None:
        if self.options.action is CollectAction.RETURN_DEAD:
            self.result.paths.add(self._render(path))

    def _announce(self, path: StorePath | str) -> None:
        text = self._render(path)
        self.report(f"deleting '{text}'")
        self.result.paths.add(text)

    def _empty_trash(self, name: bytes | None) -> None:
        try:
            if name is not None:
                self._trash.delete(name)
        finally:
            self.result.bytes_freed += self._trash.take_bytes_freed()
        limit = self.options.max_freed
        if limit is not None and self.result.bytes_freed > limit:
            self.report(f"deleted more than {limit} bytes; stopping")
            raise _EnoughError

    def _delete_unused_links(self) -> None:
        """Remove names of files in `.links` that no store path has any more.

        Should somebody link to one at this moment, their name stays, and the next optimisation
        makes the file in `.links` again.
        """
        self.report("deleting unused links...")
        try:
            links_fd = os.open(LINKS, DIRECTORY_FLAGS, dir_fd=self.store_fd)
        except OSError as error:
            raise StoreError(
                f"cannot open '{self.location.real_store_dir}/.links': {error.strerror}"
            ) from error
        saved = 0
        try:
            with os.scandir(links_fd) as entries:
                for entry in entries:
                    saved += _look_at_link(links_fd, os.fsencode(entry.name))
            overhead = os.fstat(links_fd).st_blocks * 512
        finally:
            os.close(links_fd)
        self.report(f"note: hard linking is currently saving {render_size(saved - overhead)}")

    def _render(self, path: StorePath | str) -> str:
        return f"{self.location.store_dir.path}/{path}"


def _look_at_link(links_fd: int, name: bytes) -> int:
    """Remove a link that is the last one; bytes that are saved by one that isn't."""
    try:
        status = os.stat(name, dir_fd=links_fd, follow_symlinks=False)
        if stat.S_ISDIR(status.st_mode):
            return 0
        if status.st_nlink > 1:
            return (status.st_nlink - 2) * status.st_size
        os.unlink(name, dir_fd=links_fd)
    except FileNotFoundError:
        pass
    return 0


def _parse(name: bytes) -> StorePath | None:
    try:
        return StorePath.parse(name.decode("ascii"))
    except (FormatError, UnicodeDecodeError):
        return None


def render_size(size: int) -> str:
    """A number of bytes as Nix writes it: "0.5 KiB", "12.3 MiB"."""
    value, unit = size / 1024, 0
    while abs(value) > 1024 and unit < 7:
        value, unit = value / 1024, unit + 1
    return f"{value:.1f} {'KMGTPEZY'[unit]}iB"


def collect(
    store: "LocalStore",
    database: Database,
    queries: Queries,
    options: CollectOptions,
    report: Report,
    result: CollectResult,
) -> None:
    """Collect in an open store; `database` and `queries` are its own."""
    # With liveness ignored, outputs and derivers shall not go along with the paths that are meant.
    settings, ignore = store.settings, options.ignore_liveness
    liveness = Liveness(
        database=database,
        queries=queries,
        keep_outputs=settings.keep_outputs and not ignore,
        keep_derivations=settings.keep_derivations and not ignore,
        realised=store.query_realised_outputs,
    )
    Collector(
        location=store.location,
        store_fd=store.store_fd,
        is_valid=store.is_valid,
        referrers=store.query_referrers,
        invalidate=store.invalidate,
        liveness=liveness,
        options=options,
        report=report,
        result=result,
    ).run()


def make_auto_collector(store: "LocalStore") -> AutoCollector:
    """What collects beside a store, with a connection of its own."""

    def collect_until(bytes_wanted: int, stop: Callable[[], bool]) -> None:
        with type(store).open(store.location, settings=store.settings) as other:
            other.collect_garbage(CollectOptions(max_freed=bytes_wanted, stop=stop))

    return AutoCollector(store.location.real_store_dir, store.settings, collect_until)
