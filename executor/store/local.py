"""A store on this machine's file system, shared with stock Nix at the same moment.

`LocalStore` is the front of this package: it owns the database connection, the big lock and the
temporary roots of this process and hands the work to the modules beside it. It is synchronous and
belongs to one thread at a time; it must not be used after a fork.
"""

import os
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import AbstractContextManager, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Self

from executor.derivation import Derivation, unparse_derivation
from executor.derivation_hash import ModuloHasher
from executor.errors import StoreError
from executor.formats.content_address import IngestionMethod
from executor.formats.realisation import DrvOutput
from executor.formats.store_path import StoreDir, StorePath
from executor.store.derivations import DerivationFiles
from executor.store.errors import UnacceptableTreeError
from executor.store.layout import OpenStore, open_existing, open_or_make
from executor.store.location import StoreLocation
from executor.store.path_info import PathInfo
from executor.store.queries import Queries
from executor.store.realisations import Realisations
from executor.store.register import Registrar
from executor.store.roots import TempRoots, make_root_link
from executor.store.settings import StoreSettings
from executor.store.tree import delete_tree, move_tree, sync_tree

# Adding and verifying are imported when they are needed: a command that only builds does neither,
# and a cold start has a budget.
if TYPE_CHECKING:
    from executor.store.add import Adder
    from executor.store.auto_collect import AutoCollector
    from executor.store.collect import CollectOptions, CollectResult
    from executor.store.link_roots import Roots
    from executor.store.optimise import OptimiseStats
    from executor.store.restore import Source

__all__ = ["LocalStore", "StoreSettings"]


def _ignore(_: object) -> None:
    """The listener of those who don't listen."""


class LocalStore:
    """An open store; a context manager. `realisations` are those in its database.

    Methods raise InvalidPathError for a path that has to be valid and isn't, and StoreError for
    everything that the store, its database or its files can't do.
    """

    def __init__(
        self, location: StoreLocation, settings: StoreSettings, opened: OpenStore, read_only: bool
    ) -> None:
        self.location = location
        self.settings = settings
        self.read_only = read_only
        self._database = opened.database
        self._big_lock = opened.big_lock
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        self._store_fd = os.open(location.real_store_dir, flags)
        self._queries = Queries(self._database, location.store_dir)
        self.derivations = DerivationFiles(
            location.real_store_dir, location.store_dir, self._queries
        )
        self._registrar = self._registrar_class()(
            self._database,
            self._queries,
            self.derivations,
            location.store_dir,
            sync_first=settings.sync_before_registering,
        )
        self.temp_roots = TempRoots(location)
        self._good: set[StorePath] = set()
        self._auto_collector = self._make_auto_collector()
        enabled = settings.ca_derivations and self._has_realisations()
        self.realisations = Realisations(self._database, self._queries, enabled=enabled)

    def _registrar_class(self) -> type[Registrar]:
        if self.read_only or not self.settings.auto_optimise_store:
            return Registrar
        from executor.store.optimise import optimising_registrar

        return optimising_registrar(self._store_fd)

    def _has_realisations(self) -> bool:
        """Whether the tables are there, by now: where we may, they are made."""
        if self._database.has_table("Realisations"):
            return True
        if not self.read_only:
            self._database.create_realisations_tables()
        return not self.read_only

    @classmethod
    def open(
        cls,
        location: StoreLocation,
        *,
        read_only: bool = False,
        settings: StoreSettings | None = None,
    ) -> Self:
        """Open a store, and make it where there is none, as Nix would.

        With `read_only`, or where the location says so, nothing is made or changed, and a missing
        store is an error. Raises SchemaError for a database of another version.
        """
        read_only = read_only or location.read_only
        settings = settings or StoreSettings()
        opened = (open_existing if read_only else open_or_make)(location, settings)
        try:
            return cls(location, settings, opened, read_only)
        except OSError as error:
            opened.close()
            raise StoreError(
                f"cannot open '{location.real_store_dir}': {error.strerror}"
            ) from error

    def close(self) -> None:
        """Give up locks, temporary roots and the database; doing it twice is harmless."""
        if self._store_fd < 0:
            return
        if self._auto_collector is not None:
            self._auto_collector.close()
        os.close(self._store_fd)
        self._store_fd = -1
        self.temp_roots.close()
        self._database.close()
        if self._big_lock >= 0:
            os.close(self._big_lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def store_dir(self) -> StoreDir:
        """The logical store directory, for rendering and parsing paths."""
        return self.location.store_dir

    @property
    def store_fd(self) -> int:
        """A descriptor of the real store directory, open as long as the store."""
        return self._store_fd

    def real_path(self, path: StorePath) -> str:
        """Where the files of a path are on this machine."""
        return f"{self.location.real_store_dir}/{path.base_name}"

    # What is valid, and what is known of it.

    def is_valid(self, path: StorePath) -> bool:
        """Whether a path is registered."""
        return self._queries.is_valid(path)

    def query_path_info(self, path: StorePath) -> PathInfo:
        """What is known of a valid path."""
        return self._queries.info(path)

    def query_path_infos(self, paths: Collection[StorePath]) -> dict[StorePath, PathInfo]:
        """What is known of many valid paths, by two queries in all."""
        return self._queries.infos(paths)

    def query_valid(self, paths: Collection[StorePath]) -> set[StorePath]:
        """Those of the paths that are valid."""
        return self._queries.valid(paths)

    def query_all_valid(self) -> set[StorePath]:
        """Every valid path."""
        return self._queries.all_valid()

    def query_referrers(self, path: StorePath) -> set[StorePath]:
        """The valid paths that refer to a path directly, itself included if it does."""
        return self._queries.referrers(path)

    def query_derivers(self, path: StorePath) -> set[StorePath]:
        """The valid derivations that have the path as an output."""
        return self._queries.derivers(path)

    def query_deriver(self, path: StorePath) -> StorePath | None:
        """The derivation that a valid path was built from, if that is known."""
        return self._queries.info(path).deriver

    def query_outputs(self, drv_path: StorePath) -> dict[str, StorePath]:
        """The outputs of a valid derivation whose paths are known before it is built, by name."""
        return self._queries.outputs(drv_path)

    def query_realised_outputs(self, drv_path: StorePath) -> set[StorePath]:
        """What outputs of a valid derivation came to be whose paths don't follow from it."""
        if not self.realisations.enabled:
            return set()
        derivation = self.read_derivation(drv_path)
        if derivation.outputs.keys() == self.query_outputs(drv_path).keys():
            return set()
        found = (
            self.realisations.query(DrvOutput.of(digest, name))
            for name, digest in self.modulo_hasher.output_hashes(derivation).items()
        )
        return {realisation.path for realisation in found if realisation is not None}

    def path_from_hash_part(self, hash_part: str) -> StorePath | None:
        """The valid path with these 32 characters, if there is one."""
        return self._queries.from_hash_part(hash_part)

    def closure(self, paths: Iterable[StorePath], *, reverse: bool = False) -> set[StorePath]:
        """The paths and all that they refer to, over any number of steps.

        With `reverse`, all that refers to them instead. The given paths have to be valid.
        """
        return self._queries.closure(paths, reverse=reverse)

    # Derivations.

    def read_derivation(self, path: StorePath) -> Derivation:
        """A valid derivation; its output paths are known to be right. Kept for the next time."""
        return self.derivations.read_valid(path)

    @property
    def modulo_hasher(self) -> ModuloHasher:
        """Computes output paths of derivations whose inputs are in this store."""
        return self.derivations.hasher

    def write_derivation(
        self, derivation: Derivation, *, on_wait: Callable[[str], object] = _ignore
    ) -> StorePath:
        """Add a derivation; its inputs have to be valid, and its output paths the right ones."""
        inputs = {*derivation.input_srcs, *derivation.input_drvs}
        data = unparse_derivation(derivation, self.store_dir)
        return self.add_text(f"{derivation.name}.drv", data, inputs, on_wait=on_wait)

    def _adder(self) -> "Adder":
        from executor.store.add import Adder

        self._require_writable()
        return Adder(
            store_fd=self._store_fd,
            store_dir=self.location.store_dir,
            real_store_dir=self.location.real_store_dir,
            settings=self.settings,
            queries=self._queries,
            registrar=self._registrar,
            temp_roots=self.temp_roots,
        )

    # Adding objects. `on_wait` is called with a real path whose lock somebody else holds.

    def add_text(
        self,
        name: str,
        data: bytes,
        references: Collection[StorePath] = (),
        *,
        on_wait: Callable[[str], object] = _ignore,
    ) -> StorePath:
        """Add a file from memory; its path comes from name, contents and references."""
        return self._adder().add_text(name, data, references, on_wait)

    def add_file_or_tree(
        self,
        name: str,
        path: str | bytes,
        method: IngestionMethod = IngestionMethod.NAR,
        *,
        on_wait: Callable[[str], object] = _ignore,
    ) -> StorePath:
        """Copy a file or tree into the store, as `nix-store --add` (NAR) and `--add-fixed`."""
        self._require_writable()
        if method not in (IngestionMethod.NAR, IngestionMethod.FLAT):
            raise StoreError(f"files cannot be added with the method {method.name}")
        self._make_room()
        return self._adder().add_path(name, os.fsencode(path), method, on_wait)

    def add_nar(
        self, info: PathInfo, source: "Source", *, on_wait: Callable[[str], object] = _ignore
    ) -> None:
        """Unpack a NAR and register it; the archive is read to its end also if it is valid already.

        Raises HashMismatchError and leaves nothing behind if hash or size aren't as declared.
        Signatures are not checked here.
        """
        adder = self._adder()
        self._make_room()
        adder.add_nar(info, source, on_wait)

    def move_into_store(self, parent_fd: int, name: bytes, path: StorePath) -> None:
        """Rename a complete, canonical tree on the same file system to its place in the store.

        What is invalid there already must have been deleted. Flushes it to disk if the settings
        say so. The caller holds the lock of the path and registers it afterwards.
        """
        self._require_writable()
        if self.settings.fsync_store_paths:
            sync_tree(parent_fd, name)
        try:
            move_tree(parent_fd, name, self._store_fd, path.base_name.encode())
        except OSError as error:
            raise StoreError(
                f"cannot move '{os.fsdecode(name)}' to '{self.real_path(path)}': {error.strerror}"
            ) from error
        if self.settings.fsync_store_paths:
            os.fsync(self._store_fd)

    def delete_invalid(self, path: StorePath) -> None:
        """Remove what lies at an invalid path: a killed build, or an attacker, left it there.

        The caller holds the lock of the path.
        """
        self._require_writable()
        with suppress(FileNotFoundError):
            os.lstat(path.base_name, dir_fd=self._store_fd)
            delete_tree(self._store_fd, os.fsencode(path.base_name))

    def replace_in_store(self, parent_fd: int, name: bytes, path: StorePath) -> None:
        """Put a complete, canonical tree in the place of a path with bad contents.

        Where something is there, the two change places, so that whoever uses the path sees one or
        the other at any moment; then what was bad is deleted.
        """
        from executor.store.syscalls import exchange

        self._require_writable()
        target = os.fsencode(path.base_name)
        try:
            exchange(parent_fd, name, self._store_fd, target)
        except FileNotFoundError:
            self.move_into_store(parent_fd, name, path)
            return
        delete_tree(parent_fd, name)

    def has_good_contents(self, path: StorePath) -> bool:
        """Whether the files of a valid path are what they were when it was registered."""
        from executor.store.canonicalise import describe_tree

        if path in self._good:
            return True
        try:
            found = describe_tree(self._store_fd, os.fsencode(path.base_name))
        except (UnacceptableTreeError, OSError):
            return False
        good = found.nar_hash == self.query_path_info(path).nar_hash
        if good:
            self._good.add(path)
        return good

    def scratch_directory(self) -> AbstractContextManager[int]:
        """A new directory in the store that only root can enter, as a descriptor.

        Collectors leave it alone, and it is deleted at the end.
        """
        return self._adder().scratch_directory()

    def keep_beside(self, parent_fd: int, name: bytes, path: StorePath, suffix: str) -> str:
        """Move a tree to where a valid path is, with a suffix, for people; says where it is.

        It is no store path: the collector removes it. An older one is replaced.
        """
        self._require_writable()
        target = os.fsencode(path.base_name + suffix)
        with suppress(FileNotFoundError):
            os.lstat(target, dir_fd=self._store_fd)
            delete_tree(self._store_fd, target)
        move_tree(parent_fd, name, self._store_fd, target)
        return self.real_path(path) + suffix

    # Changing what is valid.

    def register(self, infos: Sequence[PathInfo]) -> None:
        """Make paths valid in one transaction; see Registrar.register for what is refused."""
        self._require_writable()
        self._registrar.register(infos)

    def invalidate(self, path: StorePath) -> None:
        """Make a path invalid; its files stay. PathInUseError if valid paths refer to it."""
        self._require_writable()
        self._registrar.invalidate(path)

    def add_signatures(self, path: StorePath, signatures: Iterable[str], most: int = 0) -> None:
        """Add signatures to a valid path; ``most`` limits the characters of all (0: it doesn't)."""
        self._require_writable()
        self._registrar.add_signatures(path, signatures, most)

    # Garbage collector roots and checks.

    def add_temp_root(self, path: StorePath) -> None:
        """Keep the collector away from a path, valid or not, until this store is closed."""
        self.add_temp_roots((path,), again=True)

    def add_temp_roots(self, paths: Iterable[StorePath], *, again: bool = False) -> None:
        """As add_temp_root, all at once. Links may be made after `again`, see TempRoots.add."""
        if not self.read_only:
            self.temp_roots.add(paths, again=again)

    def add_permanent_root(self, link: str, path: StorePath) -> str:
        """Make a symbolic link outside of the store that keeps `path`; returns its full path."""
        self._require_writable()
        self.add_temp_root(path)
        return make_root_link(self.location, link, path)

    def verify(
        self,
        *,
        check_contents: bool = False,
        repair_links: bool = False,
        report: Callable[[str], object] = _ignore,
        on_bad: Callable[[StorePath], object] = _ignore,
    ) -> list[str]:
        """Returns the problems, see Verifier. `on_bad` gets paths to repair."""
        self._require_writable()
        from executor.store.verify import Verifier

        verifier = Verifier(
            store_fd=self._store_fd,
            state_dir=self.location.state_dir,
            queries=self._queries,
            database=self._database,
            ignored_acls=self.settings.ignored_acls,
            report=report,
            on_bad=on_bad,
            real_store_dir=self.location.real_store_dir,
        )
        return verifier.run(check_contents=check_contents, repair_links=repair_links)

    # Collecting garbage and saving space.

    def find_roots(
        self, *, censor: bool = False, report: Callable[[str], object] = _ignore
    ) -> "Roots":
        """What keeps paths alive, and by which links; `censor` hides which processes do."""
        from executor.store.gc_roots import find_roots

        self._require_writable()
        return find_roots(self.location, self.is_valid, report, censor=censor)

    def collect_garbage(
        self,
        options: "CollectOptions",
        *,
        report: Callable[[str], object] = _ignore,
        result: "CollectResult | None" = None,
    ) -> "CollectResult":
        """Find or delete what no root reaches; waits for the end of another collection.

        `result` is filled on the way, for whoever wants to know it after an error, too.
        """
        from executor.store.collect import CollectResult, collect

        self._require_writable()
        result = CollectResult() if result is None else result
        collect(self, self._database, self._queries, options, report, result)
        return result

    def auto_collect(self) -> str | None:
        """Collect on the side if the disk is nearly full (`min-free`); says so when it starts.

        May be called from any thread, and often.
        """
        return None if self._auto_collector is None else self._auto_collector.check()

    def _make_auto_collector(self) -> "AutoCollector | None":
        if not self.settings.min_free or self.read_only:
            return None
        from executor.store.collect import make_auto_collector

        return make_auto_collector(self)

    def _make_room(self) -> None:
        """Before something large is added: collect if need be, and wait for it, as Nix does."""
        self.auto_collect()
        if self._auto_collector is not None:
            self._auto_collector.wait()

    def optimise(self, *, report: Callable[[str], object] = _ignore) -> "OptimiseStats":
        """Replace equal files in all valid paths by hard links to one."""
        from executor.store.optimise import Optimiser

        self._require_writable()
        optimiser = Optimiser.open(self._store_fd, report)
        try:
            optimiser.read_known()
            for path in sorted(self.query_all_valid()):
                self.add_temp_root(path)
                if self.is_valid(path):
                    optimiser.optimise(path.base_name.encode())
        finally:
            optimiser.close()
        return optimiser.stats

    def _require_writable(self) -> None:
        if self.read_only:
            raise StoreError(f"the store '{self.location.real_store_dir}' is open read-only")
