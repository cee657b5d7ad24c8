"""Where on this machine control groups can be made: the executor's own group, or beside it.

The rules, in their order:

1. A group that was delegated to the executor (systemd's ``Delegate=yes``, marked by an extended
   attribute), or whose child it is in (``DelegateSubgroup=``). Processes of the executor that are
   in it move to a leaf, because a group with processes can't have controllers for its children.
2. Else the executor's own group. Without controllers that is always possible; with them, if
   nobody else's processes are in it.
3. For limits alone, where the second has no controllers to give: beside the executor's own group,
   where its own controllers come from. What limits the executor's own group has are set there too.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from sandbox.cgroup import open_group, read_file, write_file

SUPERVISOR = b"executor-supervisor"
CONTROLLERS = frozenset({"memory", "pids"})
_COPIED = (b"memory.max", b"memory.high", b"memory.swap.max", b"pids.max", b"cpu.max")
_DELEGATION = ("trusted.delegate", "user.delegate")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A group below which groups can be made.

    ``beside`` is the executor's own group, if this is the one above it.
    """

    path: bytes
    delegated: bool
    beside: bytes | None = None

    def open(self) -> int:
        """A descriptor of it. Raises ``OSError``."""
        return open_group(self.path)

    def copy_limits(self, session: int) -> None:
        """Keep what is made here within the limits of the executor's own group."""
        if self.beside is None:
            return
        own = open_group(self.beside)
        try:
            for name in _COPIED:
                with suppress(FileNotFoundError):
                    value = read_file(own, name).strip()
                    if not value.startswith(b"max"):
                        write_file(session, name, value)
        finally:
            os.close(own)


def find_places(own: bytes | None = None) -> list[Place]:
    """All places, best first. Raises ``OSError`` with a reason where cgroup v2 can't be used.

    ``own`` is the path of the executor's own group, if not that of this process.
    """
    path, top = (own, b"") if own is not None else _own_group()
    above = os.path.dirname(path) if len(path) > len(top) else None
    if above is not None and (
        os.path.basename(path) == SUPERVISOR or (not _is_delegated(path) and _is_delegated(above))
    ):
        return [Place(path=above, delegated=_is_delegated(above))]
    places = [Place(path=path, delegated=_is_delegated(path))]
    if above is not None and not places[0].delegated:
        places.append(Place(path=above, delegated=False, beside=path))
    return places


def enable(group: int, controllers: frozenset[str], *, move: bool) -> frozenset[str]:
    """Give controllers to the groups below one; those that they have then. Raises ``OSError``.

    With ``move``, this process and its children leave the group for a leaf below it, if they are
    in the way and nobody else is.
    """
    missing = controllers - enabled(group)
    for name in sorted(missing & _names(read_file(group, b"cgroup.controllers"))):
        command = b"+" + name.encode()
        try:
            write_file(group, b"cgroup.subtree_control", command)
        except OSError as error:
            if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
                raise
            if error.errno != errno.EBUSY or not move or not _move_away(group):
                continue
            with suppress(OSError):
                write_file(group, b"cgroup.subtree_control", command)
    return enabled(group)


def enabled(group: int) -> frozenset[str]:
    """The controllers of the groups below one. Raises ``OSError``."""
    return _names(read_file(group, b"cgroup.subtree_control"))


def why_missing(controllers: tuple[str, ...]) -> str:
    """What keeps controllers from being used, and what to do."""
    if any(_used_by_version_1(name) for name in controllers):
        return (
            "cgroup v1 has taken it on this machine; boot with 'cgroup_no_v1=all' and "
            "'systemd.unified_cgroup_hierarchy=1'"
        )
    path = os.fsdecode(_own_group()[0])
    group = open_group(path)
    try:
        there = _names(read_file(group, b"cgroup.controllers"))
    finally:
        os.close(group)
    if not there.issuperset(controllers):
        return (
            f"the control group '{path}' is not given it by the groups above, or the kernel is "
            "started without it (cgroup_enable=memory)"
        )
    return (
        f"processes that are not the executor's are in its control group '{path}'; start it in a "
        "group of its own: as a service with Delegate=yes, or by 'systemd-run --scope "
        "--property=Delegate=yes'"
    )


def _names(content: bytes) -> frozenset[str]:
    return frozenset(content.decode("ascii").split())


def _is_delegated(path: bytes) -> bool:
    for name in _DELEGATION:
        with suppress(OSError):
            return os.getxattr(path, name, follow_symlinks=False) == b"1"
    return False


def _own_group() -> tuple[bytes, bytes]:
    """The path of this process's group, and of the highest group that can be seen."""
    own = _own_name()
    if own.startswith(b"/.."):
        raise OSError(errno.ENODEV, "the executor's control group is outside of its namespace")
    for root, point in _mounts():
        prefix = root.rstrip(b"/")
        if (own + b"/").startswith(prefix + b"/"):
            return point + own.removeprefix(prefix).rstrip(b"/"), point
    raise OSError(errno.ENODEV, "cgroup v2 is not mounted")


def _own_name() -> bytes:
    with open("/proc/self/cgroup", "rb") as file:
        for line in file.read().splitlines():
            if line.startswith(b"0::"):
                return line[3:]
    raise OSError(errno.ENODEV, "the kernel has no cgroup v2")


def _mounts() -> Iterator[tuple[bytes, bytes]]:
    """Of each mount of cgroup v2 the group that it shows, and where."""
    with open("/proc/self/mountinfo", "rb") as file:
        for line in file:
            fields, _, kind = line.partition(b" - ")
            if kind.startswith(b"cgroup2 "):
                root, point = fields.split(b" ")[3:5]
                yield _unescape(root), _unescape(point)


def _unescape(path: bytes) -> bytes:
    for code, character in ((b"\\040", b" "), (b"\\011", b"\t"), (b"\\012", b"\n")):
        path = path.replace(code, character)
    return path.replace(b"\\134", b"\\")


def _used_by_version_1(name: str) -> bool:
    with suppress(OSError), open("/proc/cgroups", encoding="ascii") as file:
        for line in file:
            fields = line.split()
            if fields[0] == name:
                return fields[1] != "0"
    return False


def _move_away(group: int) -> bool:
    """Move this process and its children out of a group into a leaf; whether that emptied it."""
    inside = [int(line) for line in read_file(group, b"cgroup.procs").split()]
    if not all(_is_ours(pid) for pid in inside):
        return False
    with suppress(FileExistsError):
        os.mkdir(SUPERVISOR, 0o755, dir_fd=group)
    leaf = open_group(SUPERVISOR, group)
    try:
        for pid in inside:
            with suppress(ProcessLookupError):
                write_file(leaf, b"cgroup.procs", b"%d" % pid)
    finally:
        os.close(leaf)
    return True


def _is_ours(pid: int) -> bool:
    """Whether a process is this one or descends from it; 0 is one that can't be seen from here."""
    own = os.getpid()
    while pid > 1 and pid != own:
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:
                pid = int(file.read().rpartition(b")")[2].split()[1])
        except FileNotFoundError:
            return True  # it has ended meanwhile
    return pid == own
