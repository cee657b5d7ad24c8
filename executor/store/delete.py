"""Removing a file tree of any shape, safely as root against whoever still changes it.

Every step is relative to a descriptor of the directory that it works in, follows no symbolic link
and doesn't leave the mount that it started on. The number of open descriptors and the memory are
bounded for any depth and any number of entries, and nothing recurses.
"""

import errno
import itertools
import os
import stat
from dataclasses import dataclass, field

from executor.errors import StoreError
from executor.store.descriptors import display, identity, open_directory_same_mount

# Directories that are kept open at once; those above them are found again through "..".
_OPEN_LEVELS = 64
_BATCH = 4096
# How many changes by others we put up with before we say that somebody interferes.
_PATIENCE = 10_000


@dataclass(slots=True)
class _Level:
    """A directory that is being emptied."""

    name: bytes
    inode: tuple[int, int]
    fd: int
    pending: list[bytes] = field(default_factory=list)


def delete_tree(parent_fd: int, name: bytes) -> int:
    """Remove `name` in the directory `parent_fd`, whatever it is; nothing happens if it is missing.

    Returns how many names were removed.

    A symbolic link is removed itself. Raises StoreError for a mount point in the tree (its
    contents stay untouched), for an immutable file, and when others keep adding files or move
    directories that are being emptied. What was outside the tree before is never touched.
    """
    deleter = TreeDeleter(parent_fd, name)
    try:
        deleter.run()
    except OSError as error:
        raise StoreError(deleter.explain(error)) from error
    finally:
        deleter.close()
    return deleter.removed


class TreeDeleter:
    """The directories that are being emptied, outermost first."""

    def __init__(self, parent_fd: int, name: bytes) -> None:
        self._parent_fd = parent_fd
        self._name = name
        self._levels: list[_Level] = []
        self._patience = _PATIENCE
        self.removed = 0

    def run(self) -> None:
        """Remove everything; raises OSError."""
        # The top comes back here when its name has meanwhile become something else.
        while _exists(self._parent_fd, self._name):
            self._remove_entry(self._parent_fd, self._name)
            while self._levels:
                self._work()

    def explain(self, error: OSError) -> str:
        """What went wrong, and where."""
        parts = [level.name for level in self._levels] or [self._name]
        if isinstance(error.filename, bytes) and error.filename != parts[-1]:
            parts.append(error.filename)
        reason = "it is a mount point" if error.errno == errno.EXDEV else error.strerror
        return f"cannot delete '{display(b'/'.join(parts))}': {reason}"

    def close(self) -> None:
        """Close what is open after an error."""
        for level in self._levels:
            if level.fd >= 0:
                os.close(level.fd)

    def _interfered(self) -> None:
        self._patience -= 1
        if self._patience < 0:
            raise OSError(errno.EBUSY, "somebody keeps changing it")

    def _work(self) -> None:
        """Remove some of the innermost directory, or that directory when it is empty."""
        level = self._levels[-1]
        if not level.pending:
            level.pending = _list_some(level.fd)
        if level.pending:
            self._remove_entry(level.fd, level.pending.pop())
            return
        above = self._parent_fd if len(self._levels) == 1 else self._reopen()
        try:
            os.rmdir(level.name, dir_fd=above)
        except FileNotFoundError:
            pass
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
            self._interfered()
            if _same(above, level):
                # Somebody made a new entry: list it again.
                return
            # The name stands for another thing now, which the level above will meet again.
        else:
            self.removed += 1
        self._levels.pop()
        os.close(level.fd)

    def _remove_entry(self, directory_fd: int, name: bytes) -> None:
        """Unlink a name, or push it as the directory to be emptied next."""
        while True:
            try:
                os.unlink(name, dir_fd=directory_fd)
            except FileNotFoundError:
                return
            except (IsADirectoryError, PermissionError):
                # Some file systems answer EPERM for a directory.
                if not _is_directory(directory_fd, name):
                    self._unlink_again(directory_fd, name)
                    return
                if self._remove_empty(directory_fd, name):
                    return
            else:
                self.removed += 1
                return
            try:
                fd = open_directory_same_mount(directory_fd, name)
            except FileNotFoundError:
                return
            except OSError as error:
                if error.errno not in (errno.ELOOP, errno.ENOTDIR):
                    raise
                self._interfered()
                continue
            self._push(name, fd)
            return

    def _remove_empty(self, directory_fd: int, name: bytes) -> bool:
        """Remove a directory with nothing in it, as mount points are; False for any other."""
        try:
            os.rmdir(name, dir_fd=directory_fd)
        except OSError:
            return False  # why not is found out when it is opened
        self.removed += 1
        return True

    def _unlink_again(self, directory_fd: int, name: bytes) -> None:
        """Unlink what was no directory a moment ago; its level meets it again if it is one now."""
        try:
            os.unlink(name, dir_fd=directory_fd)
        except FileNotFoundError:
            pass
        except IsADirectoryError:
            self._interfered()
        else:
            self.removed += 1

    def _push(self, name: bytes, fd: int) -> None:
        status = os.fstat(fd)
        levels = self._levels
        levels.append(_Level(name=name, inode=identity(status), fd=fd))
        if status.st_mode & 0o700 != 0o700 and status.st_uid == os.geteuid():
            os.fchmod(fd, 0o700)
        if len(levels) > _OPEN_LEVELS:
            distant = levels[-1 - _OPEN_LEVELS]
            # Listed again when we are back: with each level, memory would grow by a whole list.
            distant.pending.clear()
            if distant.fd >= 0:
                os.close(distant.fd)
                distant.fd = -1

    def _reopen(self) -> int:
        """The descriptor of the directory above the innermost, found again if it was closed."""
        above, level = self._levels[-2:]
        if above.fd < 0:
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
            fd = os.open(b"..", flags, dir_fd=level.fd)
            # Whoever moved the directory meanwhile would lead us out of the tree with "..".
            if identity(os.fstat(fd)) != above.inode:
                os.close(fd)
                raise OSError(errno.EBUSY, "a directory was moved while it was being deleted")
            above.fd = fd
        return above.fd


def _list_some(fd: int) -> list[bytes]:
    """A bounded number of the names in a directory, in no order."""
    with os.scandir(fd) as entries:
        return [os.fsencode(entry.name) for entry in itertools.islice(entries, _BATCH)]


def _exists(directory_fd: int, name: bytes) -> bool:
    try:
        os.stat(name, dir_fd=directory_fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _is_directory(directory_fd: int, name: bytes) -> bool:
    try:
        return stat.S_ISDIR(os.stat(name, dir_fd=directory_fd, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return False


def _same(directory_fd: int, level: _Level) -> bool:
    """Whether a name still stands for the directory that was emptied."""
    try:
        status = os.stat(level.name, dir_fd=directory_fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return identity(status) == level.inode
