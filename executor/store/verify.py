"""Comparing the database of a store with its files, as `nix-store --verify` does."""

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, field

from executor.errors import ExecutorError, FormatError, InvalidPathError
from executor.formats import base32
from executor.formats.store_path import StorePath
from executor.store.canonicalise import STORE_MTIME, describe_tree, list_attributes
from executor.store.database import Database
from executor.store.describe import TreeReader
from executor.store.descriptors import DIRECTORY_FLAGS, display, path_below
from executor.store.errors import UnacceptableTreeError
from executor.store.locks import open_lock_file, wait_lock
from executor.store.queries import Queries


@dataclass(slots=True, kw_only=True)
class Verifier:
    """One run over a store; `problems` collects what can't be put right by itself."""

    store_fd: int
    state_dir: str
    queries: Queries
    database: Database
    ignored_acls: frozenset[str]
    report: Callable[[str], object]
    on_bad: Callable[[StorePath], object]
    real_store_dir: str
    problems: list[str] = field(default_factory=list)

    def run(self, *, check_contents: bool, repair_links: bool) -> list[str]:
        """Check existence, and with `check_contents` hashes and metadata too.

        Valid paths that disappeared are made invalid where nothing refers to them, as in Nix;
        that is reported, but is no problem. Nor are bad files in `.links`, which are removed with
        `repair_links`: no path needs them. Returns the problems.
        """
        self.report("reading the Nix store...")
        lock = open_lock_file(f"{self.state_dir}/gc.lock")
        try:
            # Shared: no collector runs meanwhile, so that what is valid also exists.
            wait_lock(lock, exclusive=False)
            self.report("checking path existence...")
            valid = self._check_existence()
            if check_contents:
                self.report("checking link hashes...")
                self._check_links(repair=repair_links)
                self.report("checking store hashes...")
                for path in sorted(valid):
                    self._check_contents(path)
        finally:
            os.close(lock)
        return self.problems

    @property
    def _links(self) -> str:
        return f"{self.real_store_dir}/.links"

    def _problem(self, text: str) -> None:
        self.problems.append(text)
        self.report(text)

    def _check_existence(self) -> set[StorePath]:
        valid = self.queries.all_valid()
        missing = valid - self._present()
        # A missing path can go once nothing refers to it any more; what referred to it may be
        # missing too and has gone in an earlier round.
        while removable := {path for path in missing if not self.queries.referrers(path) - {path}}:
            for path in sorted(removable):
                text = self.queries.render(path)
                self.report(f"path '{text}' disappeared, removing from database...")
                self.database.delete_path(text)
            missing -= removable
            valid -= removable
        for path in sorted(missing):
            self.on_bad(path)
            self._problem(
                f"path '{self.queries.render(path)}' disappeared, but it still has valid referrers!"
            )
        return valid - missing

    def _present(self) -> set[StorePath]:
        present = set()
        with os.scandir(self.store_fd) as entries:
            for entry in entries:
                try:
                    present.add(StorePath.parse(entry.name))
                except FormatError:
                    continue
        return present

    def _check_links(self, *, repair: bool) -> None:
        """Compare what is in `.links` with its names: what gets linked next would be as bad."""
        try:
            links_fd = os.open(".links", DIRECTORY_FLAGS, dir_fd=self.store_fd)
        except FileNotFoundError:
            return
        except OSError as error:
            self._problem(f"'{self._links}' cannot be read: {error.strerror}")
            return
        try:
            with os.scandir(links_fd) as entries:
                for entry in entries:
                    self._check_link(links_fd, os.fsencode(entry.name), repair=repair)
        except OSError as error:
            self._problem(f"'{self._links}' cannot be read: {error.strerror}")
        finally:
            os.close(links_fd)

    def _check_link(self, links_fd: int, name: bytes, *, repair: bool) -> None:
        shown = f'"{self._links}/{display(name)}"'
        try:
            found = base32.encode(describe_tree(links_fd, name).nar_hash.digest)
        except FileNotFoundError:
            return  # an optimiser has put it away
        except (ExecutorError, OSError) as error:
            self._problem(f"link {shown} cannot be read: {error}")
            return
        if found.encode() == name:
            return
        text = f"link {shown} was modified! expected hash {display(name)}, got '{found}'"
        if not repair:
            self._problem(text)
            return
        self.report(text)
        try:
            os.unlink(name, dir_fd=links_fd)
        except FileNotFoundError:
            pass
        except OSError as error:
            self._problem(f"link {shown} cannot be removed: {error.strerror}")
            return
        self.report(f"removed link {shown}")

    def _check_contents(self, path: StorePath) -> None:
        name = path.base_name.encode()
        text = self.queries.render(path)
        try:
            info = self.queries.info(path)
            found = describe_tree(self.store_fd, name)
        except InvalidPathError:
            return
        except (ExecutorError, OSError) as error:
            self.on_bad(path)
            self._problem(f"path '{text}' cannot be read: {error}")
            return
        if found.nar_hash != info.nar_hash:
            self._problem(
                f"path '{text}' was modified! expected hash '{info.nar_hash.prefixed32}', got"
                f" '{found.nar_hash.prefixed32}'"
            )
        elif info.nar_size and found.nar_size != info.nar_size:
            self._problem(f"path '{text}' has size {found.nar_size}, not {info.nar_size}")
        else:
            self._check_metadata(name, text)
            return
        self.on_bad(path)

    def _check_metadata(self, name: bytes, text: str) -> None:
        try:
            checker = _MetadataChecker(
                self.ignored_acls, frozenset({0, os.fstat(self.store_fd).st_uid})
            )
            TreeReader(_ignore, policy=checker, metadata_only=True).read(self.store_fd, name)
        except UnacceptableTreeError as error:
            self._problem(f"path '{text}': {error}")
        except OSError as error:
            self._problem(f"path '{text}' cannot be read: {error.strerror}")


@dataclass(frozen=True, slots=True)
class _MetadataChecker:
    """A policy that changes nothing and refuses what isn't canonical."""

    ignored_acls: frozenset[str]
    owners: frozenset[int]

    def on_open(self, fd: int, status: os.stat_result, /) -> None:
        mode = stat.S_IMODE(status.st_mode)
        # Nix 2.8 leaves directories that the builder made unreadable as 0444.
        if mode not in (0o444, 0o555):
            raise UnacceptableTreeError(f"file has mode {mode:04o}")
        self._check(status, list_attributes(fd))

    def on_symlink(self, directory_fd: int, name: bytes, status: os.stat_result, /) -> None:
        self._check(status, list_attributes(path_below(directory_fd, name)))

    def _check(self, status: os.stat_result, attributes: list[str]) -> None:
        if status.st_uid not in self.owners:
            raise UnacceptableTreeError(f"file belongs to user {status.st_uid}")
        if int(status.st_mtime) != STORE_MTIME:
            raise UnacceptableTreeError("file has another modification time than 1")
        if extra := set(attributes) - self.ignored_acls:
            raise UnacceptableTreeError(
                f"file has extended attributes ({', '.join(sorted(extra))})"
            )


def _ignore(_data: bytes) -> None:
    """A sink for walks that are only after the metadata."""
