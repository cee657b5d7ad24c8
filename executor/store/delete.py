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
# How often a name may turn from file to directory and back before we say that somebody interferes.
_ATTEMPTS = 64


@dataclass(slots=True)
class _Level:
    """A directory that is being emptied."""

    name: bytes
    inode: tuple[int, int]
    fd: int
    pending: list[bytes] = field(default_factory=list)
    stubborn: int = 0


def delete_tree(parent_fd: int, name: bytes) -> None:
    """Remove `name` in the directory `parent_fd`, whatever it is; nothing happens if it is missing.

    A symbolic link is removed itself. Raises StoreError for a mount point in the tree (its
    contents stay untouched), for an immutable file, and when others keep adding files or move
    directories that are being emptied. What was outside the tree before is never touched.
    """
    levels: list[_Level] = []
    try:
        _remove_entry(parent_fd, name, levels)
        while levels:
            _work_on(parent_fd, levels)
    except OSError as error:
        raise StoreError(_explain(error, name, levels)) from error
    finally:
        for level in levels:
            if level.fd >= 0:
                os.close(level.fd)


def _explain(error: OSError, name: bytes, levels: list[_Level]) -> str:
    parts = [level.name for level in levels] or [name]
    if isinstance(error.filename, bytes) and error.filename != parts[-1]:
        parts.append(error.filename)
    reason = "it is a mount point" if error.errno == errno.EXDEV else error.strerror
    return f"cannot delete '{display(b'/'.join(parts))}': {reason}"


def _work_on(parent_fd: int, levels: list[_Level]) -> None:
    """Remove one entry of the innermost directory, or that directory when it is empty."""
    level = levels[-1]
    if not level.pending:
        level.pending = _list_some(level.fd)
    if level.pending:
        _remove_entry(level.fd, level.pending.pop(), levels)
        return
    above = parent_fd if len(levels) == 1 else _reopen(levels)
    try:
        os.rmdir(level.name, dir_fd=above)
    except FileNotFoundError:
        pass
    except OSError as error:
        # ENOTDIR: replaced by a file; EEXIST and ENOTEMPTY: somebody made a new entry.
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or level.stubborn >= _ATTEMPTS:
            raise
        level.stubborn += 1
        return
    levels.pop()
    os.close(level.fd)


def _list_some(fd: int) -> list[bytes]:
    """A bounded number of the names in a directory, in no order."""
    with os.scandir(fd) as entries:
        return [os.fsencode(entry.name) for entry in itertools.islice(entries, _BATCH)]


def _remove_entry(directory_fd: int, name: bytes, levels: list[_Level]) -> None:
    """Unlink a name, or push it as the directory to be emptied next."""
    for _ in range(_ATTEMPTS):
        try:
            os.unlink(name, dir_fd=directory_fd)
        except FileNotFoundError:
            return
        except (IsADirectoryError, PermissionError) as error:
            if not _is_directory(directory_fd, name):
                if isinstance(error, PermissionError):
                    raise
                continue
        else:
            return
        try:
            fd = open_directory_same_mount(directory_fd, name)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            if error.errno == errno.ELOOP:
                continue
            raise
        _push(levels, name, fd)
        return
    raise OSError(errno.EBUSY, "it keeps changing")


def _is_directory(directory_fd: int, name: bytes) -> bool:
    try:
        return stat.S_ISDIR(os.stat(name, dir_fd=directory_fd, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return False


def _push(levels: list[_Level], name: bytes, fd: int) -> None:
    status = os.fstat(fd)
    level = _Level(name=name, inode=identity(status), fd=fd)
    levels.append(level)
    if status.st_mode & 0o700 != 0o700 and status.st_uid == os.geteuid():
        os.fchmod(fd, 0o700)
    if len(levels) > _OPEN_LEVELS:
        distant = levels[-1 - _OPEN_LEVELS]
        if distant.fd >= 0:
            os.close(distant.fd)
            distant.fd = -1


def _reopen(levels: list[_Level]) -> int:
    """The descriptor of the directory above the innermost one, found again where it was closed."""
    above, level = levels[-2], levels[-1]
    if above.fd < 0:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        fd = os.open(b"..", flags, dir_fd=level.fd)
        # Whoever moved the directory meanwhile would lead us out of the tree with "..".
        if identity(os.fstat(fd)) != above.inode:
            os.close(fd)
            raise OSError(errno.EBUSY, "a directory was moved while it was being deleted")
        above.fd = fd
    return above.fd
