"""The children of a program and theirs, also in sessions of their own, as far as /proc tells."""

from __future__ import annotations

import os
import signal
from contextlib import suppress

# Looks for new ones while those that are known stand still. More rounds mean that others start
# processes of the same session; those end with the group.
_ROUNDS = 20
# Descriptors, one for each. What is more ends with the group, if it is still in it.
_MOST = 500


class Descendants:
    """What a living process has started; each one is held by a descriptor, also once orphaned."""

    def __init__(self, leader: int) -> None:
        self._leader = leader
        self._found: dict[int, int] = {}

    def look(self) -> bool:
        """Remember those that there are; tells whether any was new.

        The number of the leader must still be its own.
        """
        known = {pid for pid, fd in self._found.items() if _lives(fd)}
        new = False
        for pid in _members(self._leader, known) - known:
            if len(self._found) >= _MOST:
                break
            with suppress(OSError):
                fd = os.pidfd_open(pid)
                # Its number may have become a stranger's before it was opened.
                if pid in _members(self._leader, known):
                    self._forget(pid)
                    self._found[pid] = fd
                    new = True
                else:
                    os.close(fd)
        return new

    def kill(self) -> None:
        """Kill all of them, and what they start meanwhile."""
        self._signal(signal.SIGSTOP)
        for _ in range(_ROUNDS):
            if not self.look():
                break
            self._signal(signal.SIGSTOP)
        self._signal(signal.SIGKILL)

    def close(self) -> None:
        """Forget them."""
        for pid in list(self._found):
            self._forget(pid)

    def _forget(self, pid: int) -> None:
        if pid in self._found:
            os.close(self._found.pop(pid))

    def _signal(self, number: int) -> None:
        for fd in self._found.values():
            with suppress(OSError):
                signal.pidfd_send_signal(fd, number)


def _lives(fd: int) -> bool:
    try:
        signal.pidfd_send_signal(fd, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _members(leader: int, known: set[int]) -> set[int]:
    """The processes of the leader's session, and all children of these and of known ones."""
    children: dict[int, list[int]] = {}
    todo = [leader, *known]
    for name in os.listdir("/proc"):
        if name.isdigit():
            with suppress(OSError, ValueError), open(f"/proc/{name}/stat", "rb") as file:
                # The name of the program, in brackets, may hold anything.
                fields = file.read().rpartition(b")")[2].split()
                parent, session = int(fields[1]), int(fields[3])
                children.setdefault(parent, []).append(int(name))
                if session == leader:
                    todo.append(int(name))
    found: set[int] = set()
    while todo:
        pid = todo.pop()
        if pid not in found:
            found.add(pid)
            todo += children.get(pid, ())
    return found - {leader}
