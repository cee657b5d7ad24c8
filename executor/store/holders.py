"""Who holds a lock (flock) on something in the store.

Whoever may read a directory may lock it, so that a lock on what everybody can read says nothing
about who works with it. The kernel tells the process that has taken each lock.
"""

import os
import stat
from contextlib import suppress


def held_only_by_strangers(fd: int, ours: frozenset[int]) -> bool:
    """Whether all who hold a lock on an open file are processes of users not among `ours`.

    False where that can't be told: in another namespace of processes, on a file system of another
    machine, or on one whose locks have numbers of their own.
    """
    status = os.fstat(fd)
    if status.st_uid in ours and not status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        return False  # nobody else could have opened it
    holders = _holders(status.st_ino)
    return bool(holders) and not any(_holds(pid, status.st_ino, ours) for pid in holders)


def _holders(inode: int) -> set[int]:
    """The processes that took locks on files with this number, on any file system."""
    found = set()
    with suppress(OSError), open("/proc/locks", "rb") as file:
        for line in file:
            if (lock := _parse(line.split()[1:])) is not None and lock[1] == inode:
                found.add(lock[0])
    return found


def _parse(words: list[bytes]) -> tuple[int, int] | None:
    """Process and inode of a lock that is held; "FLOCK ADVISORY WRITE 123 08:01:456 0 EOF"."""
    if len(words) < 5 or words[0] != b"FLOCK":
        return None  # of another kind, or ("->") somebody who waits for one
    with suppress(ValueError):
        return int(words[3]), int(words[4].rpartition(b":")[2])
    return None


def _holds(pid: int, inode: int, ours: frozenset[int]) -> bool:
    """Whether a process of ours has such a lock; the number of one that ended may be used again."""
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            user = next(int(line.split()[1]) for line in file if line.startswith(b"Uid:"))
    except (FileNotFoundError, ProcessLookupError, StopIteration):
        return False
    except OSError:
        return True  # nobody lets us look
    if user not in ours:
        return False
    try:
        names = os.listdir(f"/proc/{pid}/fdinfo")
    except (FileNotFoundError, ProcessLookupError):
        return False
    except OSError:
        return True
    for name in names:
        with suppress(OSError), open(f"/proc/{pid}/fdinfo/{name}", "rb") as file:
            for line in file:
                words = line.split()
                if words and words[0] == b"lock:":
                    lock = _parse(words[2:])
                    if lock is not None and lock[1] == inode:
                        return True
    return False
