"""The control group (cgroup v2) of one sandbox: limits, accounting, killing, removal.

Everything goes through the descriptor of the group's directory; no path of it is ever used again.
The group belongs to root: a program in it can neither change its limits nor leave it. Only a
delegated one is given to the sandbox's own root user, as the kernel's documentation has it: the
directory and the three files that move processes and make groups below, never the limits.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from dataclasses import dataclass

from sandbox import syscalls
from sandbox.spec import Cgroup

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MAGIC = 0x63677270
_PIECE = 1 << 16
# What a delegated group may make below itself: enough for systemd in a container.
_MAX_DESCENDANTS, _MAX_DEPTH = b"8192", b"256"
_DELEGATED_FILES = (b"cgroup.procs", b"cgroup.subtree_control", b"cgroup.threads")


@dataclass(frozen=True, slots=True, kw_only=True)
class CgroupUsage:
    """What a group has used: CPU in microseconds, memory in bytes; ``None`` where not counted.

    ``memory_kills`` and ``denied_forks`` say how often the limits of the group were hit.
    """

    user_us: int
    system_us: int
    memory_peak: int | None
    pids_peak: int | None
    memory_kills: int
    denied_forks: int


class BuildCgroup:
    """The group of one sandbox, made by ``CgroupHome``; ``remove`` ends it.

    ``unapplied`` names the controllers whose limits could not be applied (best effort);
    ``is_delegated`` says that there may be groups below it that a program has made.
    """

    def __init__(self, parent: int, name: bytes, unapplied: tuple[str, ...] = ()) -> None:
        os.mkdir(name, 0o755, dir_fd=parent)
        self._parent = parent
        self._name = name
        self.unapplied = unapplied
        self.is_delegated = False
        try:
            self.fd = open_group(name, parent)
        except BaseException:
            os.rmdir(name, dir_fd=parent)
            raise

    def apply(self, wanted: Cgroup, owner: tuple[int, int]) -> None:
        """Set the limits, and hand the group over if it is to be delegated.

        Raises ``OSError``. Memory counts what the programs' files in memory (tmpfs) take, and none
        of it goes to swap; what runs out of it is killed as a whole.
        """
        if wanted.memory_max and "memory" not in self.unapplied:
            write_file(self.fd, b"memory.max", b"%d" % wanted.memory_max)
            write_file(self.fd, b"memory.oom.group", b"1")
            with suppress(FileNotFoundError):  # a kernel without swap
                write_file(self.fd, b"memory.swap.max", b"0")
        if wanted.pids_max and "pids" not in self.unapplied:
            write_file(self.fd, b"pids.max", b"%d" % wanted.pids_max)
        if wanted.delegated:
            self.is_delegated = True
            write_file(self.fd, b"cgroup.max.descendants", _MAX_DESCENDANTS)
            write_file(self.fd, b"cgroup.max.depth", _MAX_DEPTH)
            for name in _DELEGATED_FILES:
                os.chown(name, *owner, dir_fd=self.fd, follow_symlinks=False)
            os.fchown(self.fd, *owner)

    def usage(self) -> CgroupUsage:
        """What has been used so far. Raises ``OSError``."""
        cpu = _table(read_file(self.fd, b"cpu.stat"))
        events = _table(_read_optional(self.fd, b"memory.events"))
        forks = _table(_read_optional(self.fd, b"pids.events"))
        return CgroupUsage(
            user_us=cpu.get(b"user_usec", 0),
            system_us=cpu.get(b"system_usec", 0),
            memory_peak=_number(_read_optional(self.fd, b"memory.peak")),
            pids_peak=_number(_read_optional(self.fd, b"pids.peak")),
            memory_kills=events.get(b"oom_kill", 0),
            denied_forks=forks.get(b"max", 0),
        )

    def kill(self) -> None:
        """Kill every process of the group and of all below it, frozen ones too."""
        if self.fd >= 0:
            write_file(self.fd, b"cgroup.kill", b"1")

    @property
    def populated(self) -> bool:
        """Whether a process is left in the group or below it."""
        return is_populated(self.fd)

    def remove(self) -> None:
        """Remove the group and all below it; no process may be left. Raises ``OSError``."""
        if self.fd < 0:
            return
        fd, self.fd = self.fd, -1
        try:
            # There can be others below it only where somebody was let in to make them.
            if not self.is_delegated:
                with suppress(OSError):
                    os.rmdir(self._name, dir_fd=self._parent)
                    return
            remove_below(fd)
        finally:
            os.close(fd)
        os.rmdir(self._name, dir_fd=self._parent)


class CgroupMembers:
    """The processes of a group and of all below it, also from another thread.

    Has a descriptor of its own, so that the group may be removed meanwhile. Calling it gives the
    ids, as far as they can be seen from here; none when the group is gone.
    """

    def __init__(self, group: int) -> None:
        self._fd = os.dup(group) if group >= 0 else -1

    def __call__(self) -> list[int]:
        if self._fd < 0:
            return []
        with suppress(OSError):
            return _members(self._fd)
        return []

    def close(self) -> None:
        """Close the descriptor; nobody may be calling."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def open_group(path: bytes | str, parent: int | None = None) -> int:
    """A descriptor of a group's directory. Raises ``OSError``, also where it isn't cgroup v2."""
    fd = os.open(path, _DIRECTORY, dir_fd=parent)
    if syscalls.file_system_type(fd) != _MAGIC:
        os.close(fd)
        raise OSError(errno.ENODEV, "not a directory of cgroup v2", path)
    return fd


def read_file(group: int, name: bytes) -> bytes:
    """The content of one of a group's files. Raises ``OSError``."""
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=group)
    try:
        pieces = []
        while piece := os.read(fd, _PIECE):
            pieces.append(piece)
        return b"".join(pieces)
    finally:
        os.close(fd)


def write_file(group: int, name: bytes, content: bytes) -> None:
    """Write to one of a group's files, which takes it whole or not. Raises ``OSError``."""
    fd = os.open(name, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=group)
    try:
        os.write(fd, content)
    finally:
        os.close(fd)


def is_populated(group: int) -> bool:
    """Whether a process lives in a group or below it. Raises ``OSError``."""
    return _table(read_file(group, b"cgroup.events")).get(b"populated") != 0


def remove_below(group: int) -> None:
    """Remove all groups below one, however deep. Raises ``OSError``.

    One descriptor is open at a time. ``..`` is safe here: groups can't be moved.
    """
    current = os.dup(group)
    try:
        # Each group is listed once: nobody is left who could make others.
        pending, entered = [_children(current)], list[bytes]()
        while pending:
            if pending[-1]:
                name = pending[-1].pop()
                current = _step(current, name)
                entered.append(name)
                pending.append(_children(current))
                continue
            pending.pop()
            if entered:
                current = _step(current, b"..")
                os.rmdir(entered.pop(), dir_fd=current)
    finally:
        os.close(current)


def _members(group: int) -> list[int]:
    """Processes, of threaded groups threads; one descriptor is open at a time, as in removing."""
    found: list[int] = []
    current = os.dup(group)
    try:
        found += _own_members(current)
        pending = [_children(current)]
        while pending:
            if pending[-1]:
                current = _step(current, pending[-1].pop())
                found += _own_members(current)
                pending.append(_children(current))
            else:
                pending.pop()
                current = _step(current, b"..") if pending else current
        return found
    finally:
        os.close(current)


def _own_members(group: int) -> list[int]:
    try:
        content = read_file(group, b"cgroup.procs")
    except OSError:  # a threaded group doesn't say
        content = read_file(group, b"cgroup.threads")
    return [int(line) for line in content.split() if line != b"0"]


def _step(current: int, name: bytes) -> int:
    following = os.open(name, _DIRECTORY, dir_fd=current)
    os.close(current)
    return following


def _children(group: int) -> list[bytes]:
    with os.scandir(group) as entries:
        return [os.fsencode(entry.name) for entry in entries if entry.is_dir(follow_symlinks=False)]


def _read_optional(group: int, name: bytes) -> bytes:
    """A file of a controller that may be absent, or too new for this kernel."""
    try:
        return read_file(group, name)
    except FileNotFoundError:
        return b""


def _table(content: bytes) -> dict[bytes, int]:
    pairs = (line.split() for line in content.splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}


def _number(content: bytes) -> int | None:
    text = content.strip()
    return int(text) if text.isdigit() else None
