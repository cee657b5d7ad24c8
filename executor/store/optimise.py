"""Equal files as hard links to one: `<store>/.links/<hash of the file's NAR>` (row O13).

As Nix does it, so that both can work on one store at the same moment: files and symbolic links,
told apart by contents and executable bit. Each replacement is a rename, and whoever deletes a
link meanwhile, as collectors do, only makes us miss a file.
"""

import errno
import os
import stat
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto

from executor.errors import StoreError
from executor.formats import base32
from executor.formats.store_path import StorePath
from executor.store.canonicalise import describe_tree
from executor.store.describe import MAX_DEPTH
from executor.store.descriptors import DIRECTORY_FLAGS, display, open_directory
from executor.store.path_info import PathInfo
from executor.store.register import Registrar
from executor.store.tree import STORE_TIMES

Report = Callable[[str], object]
_TRIES = 5


@dataclass(slots=True)
class OptimiseStats:
    """How many names became links to files that were there, and how many bytes they had."""

    files_linked: int = 0
    bytes_freed: int = 0


class _Step(Enum):
    """How an attempt at one file ended."""

    DONE = auto()
    AGAIN = auto()


@dataclass(slots=True, kw_only=True)
class Optimiser:
    """Works on the store directory `store_fd`; `links_fd` is its `.links`.

    `known` are the inodes that have a name in `.links`, as far as they have been read.
    """

    store_fd: int
    links_fd: int
    report: Report
    stats: OptimiseStats = field(default_factory=OptimiseStats)
    known: set[int] = field(default_factory=set)
    _good: set[int] = field(default_factory=set)

    @classmethod
    def open(cls, store_fd: int, report: Report) -> "Optimiser":
        """Open `.links`. Raises StoreError if it isn't a directory."""
        try:
            links_fd = os.open(".links", DIRECTORY_FLAGS, dir_fd=store_fd)
        except OSError as error:
            raise StoreError(f"cannot open the store's '.links': {error.strerror}") from error
        return cls(store_fd=store_fd, links_fd=links_fd, report=report)

    def close(self) -> None:
        """Close what `open` has opened."""
        os.close(self.links_fd)

    def read_known(self) -> None:
        """Read which files are in `.links`, so that these needn't be hashed again."""
        with os.scandir(self.links_fd) as entries:
            self.known.update(entry.inode() for entry in entries)

    def optimise(self, name: bytes) -> None:
        """Link all files of one store path, which must not go meanwhile.

        Raises StoreError for what can't be linked for another reason than that the file system
        has no room for a link.
        """
        levels: list[tuple[int, list[bytes]]] = []
        current = name
        try:
            self._node(self.store_fd, name, levels)
            while levels:
                directory_fd, entries = levels[-1]
                if not entries:
                    levels.pop()
                    os.close(directory_fd)
                    continue
                current = entries.pop()
                self._node(directory_fd, current, levels)
        except OSError as error:
            raise StoreError(
                f"cannot optimise '{display(current)}' in '{display(name)}': {error.strerror}"
            ) from error
        finally:
            for directory_fd, _entries in levels:
                os.close(directory_fd)

    def _node(self, directory_fd: int, name: bytes, levels: list[tuple[int, list[bytes]]]) -> None:
        try:
            status = os.stat(name, dir_fd=directory_fd, follow_symlinks=False)
        except FileNotFoundError:
            return
        if stat.S_ISDIR(status.st_mode):
            if len(levels) >= MAX_DEPTH:
                raise StoreError(f"directories are nested more than {MAX_DEPTH} levels deep")
            fd = open_directory(directory_fd, name)
            levels.append((fd, self._unlinked(fd)))
        elif stat.S_ISREG(status.st_mode) and status.st_mode & stat.S_IWUSR:
            self.report(f"skipping suspicious writable file '{display(name)}'")
        elif stat.S_ISREG(status.st_mode) or stat.S_ISLNK(status.st_mode):
            if status.st_nlink > 1 and status.st_ino in self.known:
                return
            self._file(directory_fd, name)

    def _unlinked(self, directory_fd: int) -> list[bytes]:
        """The names that don't stand for files of `.links`; the kernel tells without a look."""
        with os.scandir(directory_fd) as entries:
            return [os.fsencode(entry.name) for entry in entries if entry.inode() not in self.known]

    def _file(self, directory_fd: int, name: bytes) -> None:
        link = base32.encode(describe_tree(directory_fd, name).nar_hash.digest).encode()
        for _ in range(_TRIES):
            if self._try_to_link(directory_fd, name, link) is _Step.DONE:
                return

    def _try_to_link(self, directory_fd: int, name: bytes, link: bytes) -> _Step:
        status = os.stat(name, dir_fd=directory_fd, follow_symlinks=False)
        try:
            there = os.stat(link, dir_fd=self.links_fd, follow_symlinks=False)
        except FileNotFoundError:
            return self._make_link(directory_fd, name, link, status.st_ino)
        if _is_other(status, there) or not self._is_good(link, there.st_ino):
            self.report(f"removing corrupted link '.links/{display(link)}'")
            _unlink(link, self.links_fd)
            return _Step.AGAIN
        if status.st_ino == there.st_ino:
            self.known.add(there.st_ino)
            return _Step.DONE
        return self._replace(directory_fd, name, link, status)

    def _is_good(self, link: bytes, inode: int) -> bool:
        """Whether a link's contents are what its name says; each is hashed once in a run."""
        if inode not in self._good:
            try:
                digest = describe_tree(self.links_fd, link).nar_hash.digest
            except FileNotFoundError:
                return True  # it has gone, and the next step will see that
            if base32.encode(digest).encode() != link:
                return False
            self._good.add(inode)
        return True

    def _make_link(self, directory_fd: int, name: bytes, link: bytes, inode: int) -> _Step:
        """The first file of its kind gets a second name in `.links`."""
        try:
            _link(directory_fd, name, self.links_fd, link)
        except FileExistsError:
            return _Step.AGAIN
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EMLINK):
                raise
            # A full directory of links: this file stays alone.
            self.report(f"cannot link '.links/{display(link)}': {error.strerror}")
            return _Step.DONE
        self.known.add(inode)
        self._good.add(inode)
        return _Step.DONE

    def _replace(
        self, directory_fd: int, name: bytes, link: bytes, status: os.stat_result
    ) -> _Step:
        """Put a link to the known file in the place of a name."""
        temporary = b".tmp-link-%d-%b" % (os.getpid(), os.urandom(6).hex().encode())
        try:
            _link(self.links_fd, link, self.store_fd, temporary)
        except FileNotFoundError:
            return _Step.AGAIN
        except OSError as error:
            if error.errno != errno.EMLINK:
                raise
            if status.st_size:
                self.report(f"'.links/{display(link)}' has maximum number of links")
            return _Step.DONE
        try:
            self._move_over(temporary, directory_fd, name)
        except FileNotFoundError:
            # A collector took it for garbage.
            return _Step.AGAIN
        except OSError as error:
            _unlink(temporary, self.store_fd)
            if error.errno != errno.EMLINK:
                raise
            return _Step.DONE
        if _unlink(temporary, self.store_fd):
            # Somebody else has linked the same file meanwhile: renaming it onto itself is nothing.
            return _Step.DONE
        self.stats.files_linked += 1
        self.stats.bytes_freed += status.st_size
        return _Step.DONE

    def _move_over(self, temporary: bytes, directory_fd: int, name: bytes) -> None:
        """Rename into a directory, which is as canonical afterwards as it was before."""

        def rename() -> None:
            os.rename(temporary, name, src_dir_fd=self.store_fd, dst_dir_fd=directory_fd)

        if directory_fd == self.store_fd:
            rename()
            return
        try:
            try:
                rename()
            except PermissionError:
                # Only root writes to a directory that nobody may write to.
                os.fchmod(directory_fd, 0o755)
                rename()
        finally:
            if os.fstat(directory_fd).st_mode & 0o7777 != 0o555:
                os.fchmod(directory_fd, 0o555)
            os.utime(directory_fd, ns=STORE_TIMES)


def _is_other(status: os.stat_result, there: os.stat_result) -> bool:
    """Whether a link can't be what its name says: another size or type, or open to others."""
    return (
        status.st_size != there.st_size
        or stat.S_IFMT(status.st_mode) != stat.S_IFMT(there.st_mode)
        or status.st_uid != there.st_uid
        or (stat.S_ISREG(there.st_mode) and bool(there.st_mode & 0o222))
    )


def _link(source_fd: int, source: bytes, target_fd: int, target: bytes) -> None:
    os.link(source, target, src_dir_fd=source_fd, dst_dir_fd=target_fd, follow_symlinks=False)


def _unlink(name: bytes, directory_fd: int) -> bool:
    """Remove a name; tells whether it was there."""
    try:
        os.unlink(name, dir_fd=directory_fd)
    except FileNotFoundError:
        return False
    return True


def optimising_registrar(store_fd: int) -> type[Registrar]:
    """A Registrar for the setting `auto-optimise-store`: links files before it registers them.

    At that moment the paths are complete, canonical and locked by who made them.
    """

    class OptimisingRegistrar(Registrar):
        """Links what isn't valid yet; the rest has been seen to before."""

        def register(self, infos: Sequence[PathInfo]) -> None:
            new = [info.path for info in infos if not self._queries.is_valid(info.path)]
            if new:
                optimise_paths(store_fd, new)
            super().register(infos)

    return OptimisingRegistrar


def optimise_paths(store_fd: int, paths: Iterable[StorePath]) -> None:
    """Link the files of paths that nobody can delete meanwhile."""
    optimiser = Optimiser.open(store_fd, lambda _text: None)
    try:
        for path in paths:
            optimiser.optimise(path.base_name.encode())
    finally:
        optimiser.close()
