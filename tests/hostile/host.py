"""What of the host a hostile builder could have changed, as a value: taken before and after.

A developer's machine does other things meanwhile, so what anybody may change (mounts, processes,
control groups, names in the real store) counts only if it bears the mark of this suite: its
temporary directory, or an owner among the build ids. In CI, where nothing else runs, all of it
counts.
"""

from __future__ import annotations

import hashlib
import os
import stat
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

# Nix's range for automatic ids, and ours above it, begin here; no account of a system lies there.
BUILD_IDS = 872_415_232
_SETTINGS = (
    "kernel/core_pattern",
    "kernel/modprobe",
    "kernel/poweroff_cmd",
    "kernel/hostname",
    "kernel/domainname",
    "kernel/randomize_va_space",
    "kernel/sysrq",
    "fs/protected_hardlinks",
    "fs/protected_symlinks",
    "vm/overcommit_memory",
)
_FILES = ("/etc/passwd", "/etc/shadow", "/etc/group", "/etc/hosts", "/bin/busybox")
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty", "ptmx")
_REAL_STORE = ("/nix/store", "/nix/var/nix/builds", "/nix/var/nix/temproots")

Facts = dict[str, object]


@dataclass(frozen=True, slots=True)
class Watch:
    """What to look at: ``marks`` are texts that tell what is this suite's, ``alone`` counts all."""

    marks: tuple[str, ...]
    canaries: tuple[Path, ...]
    alone: bool

    def look(self) -> Facts:
        """Everything that must be the same before and after."""
        return {
            "mounts": frozenset(self._ours(_mounts())),
            "processes": frozenset(self._processes()),
            "control groups": frozenset(self._ours(_control_groups())),
            "ipc": _ipc(),
            "shared memory": frozenset(_owned_by_builds("/dev/shm", "/dev/mqueue", "/tmp")),
            "settings": {name: _setting(name) for name in _SETTINGS},
            "files": {path: facts_of(Path(path)) for path in (*_FILES, sys.executable)},
            "devices": {name: _device(f"/dev/{name}") for name in _DEVICES},
            "canaries": {str(path): tree(path) for path in self.canaries},
            "real store": frozenset(_owned_by_builds(*_REAL_STORE)),
            "names in the real store": frozenset(_names(_REAL_STORE) if self.alone else ()),
        }

    def _ours(self, lines: Iterable[str]) -> Iterator[str]:
        return (line for line in lines if self.alone or any(mark in line for mark in self.marks))

    def _processes(self) -> Iterator[str]:
        """Living processes under a build id, or that see one of our directories mounted."""
        for entry in os.listdir("/proc"):
            if not entry.isdigit() or int(entry) == os.getpid():
                continue
            with suppress(OSError):
                uid = os.stat(f"/proc/{entry}").st_uid
                state = _read(f"/proc/{entry}/stat").rpartition(")")[2].split()[0]
                mounts = _read(f"/proc/{entry}/mountinfo")
                is_ours = any(mark in mounts for mark in self.marks)
                if state not in "ZX" and (is_ours or (self.alone and uid >= BUILD_IDS)):
                    yield f"{entry} of {uid}: {_read(f'/proc/{entry}/cmdline')!r}"


def differences(before: Facts, after: Facts) -> list[str]:
    """What is not the same, in words."""
    return [
        f"{what}: {before[what]!r} became {after[what]!r}"
        for what in before
        if before[what] != after[what]
    ]


def facts_of(path: Path) -> tuple[object, ...]:
    """Type, mode, owner, times and contents of one file; links aren't followed."""
    status = path.lstat()
    content = b""
    if stat.S_ISREG(status.st_mode):
        content = hashlib.sha256(path.read_bytes()).digest()
    elif stat.S_ISLNK(status.st_mode):
        content = os.fsencode(os.readlink(path))
    return (
        *(status.st_mode, status.st_uid, status.st_gid, status.st_nlink, status.st_size),
        *(status.st_mtime_ns, status.st_ctime_ns, content),
    )


def tree(top: Path) -> dict[str, tuple[object, ...]]:
    """The facts of everything below a directory, and of itself."""
    paths = [top, *sorted(top.rglob("*"))]
    return {str(path.relative_to(top)): facts_of(path) for path in paths}


def owned_by_builds(top: Path) -> list[str]:
    """Files below a directory that belong to a build id."""
    found = []
    for directory, directories, files in os.walk(top):
        for name in (*directories, *files):
            path = os.path.join(directory, name)
            if os.lstat(path).st_uid >= BUILD_IDS:
                found.append(path)
    return found


def _owned_by_builds(*directories: str) -> Iterator[str]:
    for directory in directories:
        for name in _names([directory]):
            with suppress(OSError):
                if os.lstat(name).st_uid >= BUILD_IDS:
                    yield name


def _names(directories: Iterable[str]) -> Iterator[str]:
    for directory in directories:
        with suppress(FileNotFoundError):
            yield from (os.path.join(directory, name) for name in os.listdir(directory))


def _mounts() -> Iterator[str]:
    """Mounts without their numbers, which a remount by somebody else may change."""
    for line in _read("/proc/self/mountinfo").splitlines():
        yield line.split(" ", 2)[2]


def _control_groups() -> Iterator[str]:
    return (directory for directory, _names, _files in os.walk("/sys/fs/cgroup"))


def _ipc() -> dict[str, str]:
    """SysV objects without the columns that change when somebody looks at them."""
    return {
        kind: "\n".join(sorted(" ".join(line.split()[:4]) for line in _ipc_lines(kind)))
        for kind in ("shm", "sem", "msg")
    }


def _ipc_lines(kind: str) -> list[str]:
    return _read(f"/proc/sysvipc/{kind}").splitlines()[1:]


def _setting(name: str) -> str | None:
    """A kernel's setting, or None where this kernel doesn't have it."""
    with suppress(FileNotFoundError):
        return _read(f"/proc/sys/{name}")
    return None


def _device(path: str) -> tuple[int, int, int, int]:
    status = os.stat(path)
    return status.st_mode, status.st_uid, status.st_gid, status.st_rdev


def _read(path: str) -> str:
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        return file.read()
