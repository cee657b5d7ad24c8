"""What a sandbox is to be: frozen values, checked when they are made.

A specification speaks of paths, ids and mounts only. Paths are bytes. "Inside" means as the
program in the sandbox sees it, "source" means on the host.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from sandbox.errors import SpecError

MAX_PATH = 4095
_END_OF_IDS = (1 << 32) - 1


class Network(Enum):
    """Which network the program sees."""

    ISOLATED = "isolated"  # a namespace of its own with nothing but loopback
    HOST = "host"
    NAT = "nat"  # one that a network server has made; it is entered by its descriptor


@dataclass(frozen=True, slots=True)
class Exec:
    """Run a program: a path inside, from the working directory if it is relative."""

    program: bytes


@dataclass(frozen=True, slots=True)
class Call:
    """Run a function of a module that the spawner has preloaded: ``module:function``.

    It is called with the arguments and the environment and returns an exit code.
    """

    function: str


@dataclass(frozen=True, slots=True, kw_only=True)
class InputPath:
    """A file tree shown read-only at ``name`` below the store directory."""

    source: bytes
    name: bytes

    def __post_init__(self) -> None:
        _absolute("source of an input", self.source)
        if not self.name or b"/" in self.name or self.name in (b".", b"..") or b"\0" in self.name:
            raise SpecError(f"input name {self.name!r} is not a file name")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bind:
    """A host path shown inside. A missing source is an error unless ``optional``."""

    source: bytes
    target: bytes
    read_only: bool = True
    optional: bool = False

    def __post_init__(self) -> None:
        _absolute("source of a sandbox path", self.source)
        _inside("target of a sandbox path", self.target)


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """A file that is made for the sandbox."""

    path: bytes
    content: bytes
    mode: int = 0o644

    def __post_init__(self) -> None:
        _inside("path of a file", self.path)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cgroup:
    """What the control group of a sandbox is to do; 0 means no limit, sizes are bytes.

    Without limits there is a group where the machine lets us make one, and no error where not;
    ``required`` makes that an error. ``best_effort`` takes what limits can be applied. A
    ``delegated`` group may be used by the sandbox's own root user, who can make groups below it.
    """

    memory_max: int = 0
    pids_max: int = 0
    required: bool = False
    best_effort: bool = False
    delegated: bool = False

    def __post_init__(self) -> None:
        if self.memory_max < 0 or self.pids_max < 0:
            raise SpecError("a limit of a control group can't be negative")

    @property
    def controllers(self) -> frozenset[str]:
        """The controllers that the limits need."""
        limits = {"memory": self.memory_max, "pids": self.pids_max}
        return frozenset(name for name, limit in limits.items() if limit)


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxSpec:
    """One sandbox and the program in it.

    ``root_directory`` is an empty directory on the host that only root can enter; the sandbox's
    root is mounted there, in a mount namespace of its own. ``scratch_store`` is a directory of the
    same kind that appears, writable by ``host_gid``, as ``store_directory``; mount points for the
    inputs are made in it. ``temporary_directory`` appears as ``/tmp``. ``files`` are made below
    ``/etc``. ``machine`` is ``i686`` for a 32-bit personality. ``dev_shm_size`` is as tmpfs takes
    it. Without ``preallocation`` no space on disk can be had but by writing. ``name`` is for
    messages. With ``id_count`` above 1, that many ids from ``host_uid`` and ``host_gid`` are mapped
    to those from 0, and the program is root in its own namespaces; see ``id_range``. Raises
    ``SpecError`` for what can't be obeyed.
    """

    name: str
    entry: Exec | Call
    argv: tuple[bytes, ...]
    environment: tuple[tuple[bytes, bytes], ...]
    working_directory: bytes
    root_directory: bytes
    store_directory: bytes
    scratch_store: bytes
    build_directory: Bind
    temporary_directory: bytes
    host_uid: int
    host_gid: int
    inputs: tuple[InputPath, ...] = ()
    binds: tuple[Bind, ...] = ()
    files: tuple[File, ...] = ()
    id_count: int = 1
    inside_uid: int = 1000
    inside_gid: int = 100
    hostname: str = "localhost"
    domainname: str = "(none)"
    network: Network = Network.ISOLATED
    kvm: bool = False
    dev_shm_size: str = "50%"
    machine: str | None = None
    cgroup: Cgroup = Cgroup()
    preallocation: bool = True

    def __post_init__(self) -> None:
        for what, path in (
            ("root directory", self.root_directory),
            ("scratch store", self.scratch_store),
            ("temporary directory", self.temporary_directory),
        ):
            _absolute(what, path)
        _inside("store directory", self.store_directory)
        _inside("working directory", self.working_directory)
        _check_ids(self)
        _check_program(self)
        if self.machine not in (None, "i686"):
            raise SpecError(f"unknown machine '{self.machine}'")
        if not self.dev_shm_size.rstrip("%kmgKMG").isdigit():
            raise SpecError(f"'{self.dev_shm_size}' is not a size of a tmpfs")
        target = self.build_directory.target
        if (self.store_directory + b"/").startswith(target + b"/"):
            raise SpecError("the build directory inside must not contain the store directory")


def _check_ids(spec: SandboxSpec) -> None:
    if spec.host_uid < 1 or spec.host_gid < 1:
        raise SpecError("a sandbox never runs under the host's root ids")
    if not (0 <= spec.inside_uid < 1 << 32 and 0 <= spec.inside_gid < 1 << 32):
        raise SpecError("ids inside are out of range")
    if spec.id_count < 1 or max(spec.host_uid, spec.host_gid) + spec.id_count > _END_OF_IDS:
        raise SpecError("the range of ids is empty or goes beyond the last one")
    if spec.id_count > 1 and (spec.inside_uid, spec.inside_gid) != (0, 0):
        raise SpecError("the program of a range of ids starts with the first of them")


def _check_program(spec: SandboxSpec) -> None:
    """Refuse what ``execve`` would refuse in the child, where it could not be told from a bug."""
    if not spec.argv:
        raise SpecError("argv must not be empty")
    program = spec.entry.program if isinstance(spec.entry, Exec) else b""
    if any(b"\0" in text for text in (*spec.argv, program)):
        raise SpecError("the builder or its arguments contain a NUL byte")
    for name, value in spec.environment:
        if not name or b"=" in name or b"\0" in name or b"\0" in value:
            raise SpecError(f"environment variable {name!r} can't be passed to a program")


def _absolute(what: str, path: bytes) -> None:
    if not path.startswith(b"/") or b"\0" in path or len(path) > MAX_PATH:
        raise SpecError(f"{what} {path[:200]!r} is not an absolute path")


def _inside(what: str, path: bytes) -> None:
    """A path inside must be canonical, so that it can't climb out, and must not be the root."""
    _absolute(what, path)
    parts = path.split(b"/")[1:]
    if any(part in (b"", b".", b"..") for part in parts):
        raise SpecError(f"{what} {path!r} is not canonical or escapes the sandbox")
