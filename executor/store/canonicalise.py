"""Canonical metadata of store objects, and the one pass that a builder's output gets.

Rules (as Nix): files 0444, or 0555 where the owner may execute; directories 0555; modification
time 1; owner and group of this process; no extended attributes but the ignored ones. A file that
doesn't belong to the builder is refused before anything is read or changed, so that a hard link to
a foreign file does no harm.

Why this is safe to do as root: the tree lies below a directory that only root can enter, and no
process of the builder is alive. As a second line, files and directories are changed through
descriptors; symbolic links, for which there are no descriptors to change, are changed by name
inside a directory that already belongs to root with mode 0555, so that nobody else can replace
names in it any more.
"""

import errno
import os
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from executor.formats.hashes import Hash
from executor.references import ReferenceScanner
from executor.store.describe import DescribingSink, Plain, TreeReader
from executor.store.descriptors import path_below
from executor.store.errors import UnacceptableTreeError

STORE_MTIME = 1
_STORE_MTIME_NS = STORE_MTIME * 1_000_000_000
DEFAULT_IGNORED_ACLS = frozenset({"security.selinux", "system.nfs4_acl", "security.csm"})


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeDescription:
    """What one pass over a tree found out.

    `nar_size` is in bytes; `references` are the hash parts (32 characters) that occur in it.
    """

    nar_hash: Hash
    nar_size: int
    references: frozenset[str] = frozenset()


@dataclass(slots=True, kw_only=True)
class Canonicaliser:
    """The metadata policy; one object serves all outputs of a build.

    `allowed_uids` are the owners that are accepted (None: any). `inodes_seen` remembers hard
    links within and between the outputs, which belong to us after their first visit.
    """

    allowed_uids: range | None = None
    ignored_acls: frozenset[str] = DEFAULT_IGNORED_ACLS
    inodes_seen: set[tuple[int, int]] = field(default_factory=set)
    _uid: int = field(default_factory=os.geteuid)
    _gid: int = field(default_factory=os.getegid)

    def on_open(self, fd: int, status: os.stat_result) -> None:
        """Canonicalise a file or directory by its descriptor."""
        if self._is_done(status):
            return
        if attributes := list_attributes(fd):
            self._strip(fd, attributes)
        if status.st_uid != self._uid:
            # Before the mode: a change of owner clears set-id bits and file capabilities.
            os.fchown(fd, self._uid, self._gid)
        mode = stat.S_IMODE(status.st_mode)
        is_directory = stat.S_ISDIR(status.st_mode)
        if mode != 0o555 and (mode != 0o444 or is_directory):
            executable = is_directory or mode & stat.S_IXUSR
            os.fchmod(fd, 0o555 if executable else 0o444)
        if status.st_mtime_ns != _STORE_MTIME_NS:
            os.utime(fd, ns=(status.st_atime_ns, _STORE_MTIME_NS))

    def on_symlink(self, directory_fd: int, name: bytes, status: os.stat_result) -> None:
        """Canonicalise a symbolic link; links have no mode."""
        if self._is_done(status):
            return
        path = path_below(directory_fd, name)
        if attributes := list_attributes(path):
            self._strip(path, attributes)
        if status.st_uid != self._uid:
            os.chown(name, self._uid, self._gid, dir_fd=directory_fd, follow_symlinks=False)
        if status.st_mtime_ns != _STORE_MTIME_NS:
            times = (status.st_atime_ns, _STORE_MTIME_NS)
            os.utime(name, ns=times, dir_fd=directory_fd, follow_symlinks=False)

    def _is_done(self, status: os.stat_result) -> bool:
        """Refuse foreign files; tell whether this inode was met before under another name."""
        if self.allowed_uids is None:
            return False
        inode = (status.st_dev, status.st_ino)
        if status.st_uid not in self.allowed_uids:
            if stat.S_ISDIR(status.st_mode) or inode not in self.inodes_seen:
                raise UnacceptableTreeError("invalid ownership on file")
            return True
        if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode):
            self.inodes_seen.add(inode)
        return False

    def _strip(self, target: int | bytes, attributes: Iterable[str]) -> None:
        for name in attributes:
            if name in self.ignored_acls:
                continue
            if isinstance(target, int):
                os.removexattr(target, name)
            else:
                os.removexattr(target, name, follow_symlinks=False)


def list_attributes(target: int | bytes) -> list[str]:
    """Names of the extended attributes of a descriptor, or of a path without following a link."""
    try:
        if isinstance(target, int):
            return os.listxattr(target)
        return os.listxattr(target, follow_symlinks=False)
    except OSError as error:
        # ENOTSUP: a file system without extended attributes; ENODATA: they just went.
        if error.errno in (errno.ENOTSUP, errno.ENODATA):
            return []
        raise


def canonicalise_and_describe(
    parent_fd: int,
    name: bytes,
    *,
    canonicaliser: Canonicaliser | None = None,
    candidates: Iterable[str] = (),
    progress: Callable[[int], object] | None = None,
) -> TreeDescription:
    """Canonicalise the tree `name` in `parent_fd`, and hash, size and scan its NAR on the way.

    `candidates` are the hash parts to look for. `progress` gets the NAR size so far and may raise.

    Raises UnacceptableTreeError for foreign owners, unsupported file types and too many levels;
    the tree may then be canonicalised in part, and the caller deletes it.
    """
    policy = Canonicaliser() if canonicaliser is None else canonicaliser
    return _describe(parent_fd, name, policy, candidates, progress)


def describe_tree(
    parent_fd: int,
    name: bytes,
    *,
    candidates: Iterable[str] = (),
    progress: Callable[[int], object] | None = None,
) -> TreeDescription:
    """Hash, size and scan the NAR of a tree without changing anything."""
    return _describe(parent_fd, name, None, candidates, progress)


def _describe(
    parent_fd: int,
    name: bytes,
    policy: Canonicaliser | None,
    candidates: Iterable[str],
    progress: Callable[[int], object] | None,
) -> TreeDescription:
    wanted = tuple(candidates)
    scanner = ReferenceScanner(wanted) if wanted else None
    sink = DescribingSink(scanner)
    plain = None if policy is None else Plain(policy.allowed_uids)
    reader = TreeReader(sink.write, policy=policy, progress=progress, plain=plain)
    try:
        reader.read(parent_fd, name)
        nar_hash = sink.finish()
    finally:
        sink.close()
    found = frozenset() if scanner is None else frozenset(scanner.found)
    return TreeDescription(nar_hash=nar_hash, nar_size=reader.size, references=found)


def canonicalise_tree(
    parent_fd: int, name: bytes, canonicaliser: Canonicaliser | None = None
) -> None:
    """Canonicalise without reading contents: for trees that are rewritten or copied afterwards."""
    policy = Canonicaliser() if canonicaliser is None else canonicaliser
    TreeReader(_ignore, policy=policy, metadata_only=True).read(parent_fd, name)


def _ignore(_data: bytes) -> None:
    """A sink for walks that are only after the metadata."""
