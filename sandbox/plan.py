"""From a specification to the ordered list of what has to be mounted and made. Pure.

Targets are paths inside, without the leading slash, so that they can only be used below a
directory descriptor of the new root.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from operator import attrgetter

from sandbox.spec import Bind, File, SandboxSpec

DEVICES = {
    b"full": (1, 7),
    b"null": (1, 3),
    b"random": (1, 8),
    b"tty": (5, 0),
    b"urandom": (1, 9),
    b"zero": (1, 5),
}
KVM = (10, 232)
DEVICE_LINKS = (
    (b"dev/fd", b"/proc/self/fd"),
    (b"dev/stdin", b"/proc/self/fd/0"),
    (b"dev/stdout", b"/proc/self/fd/1"),
    (b"dev/stderr", b"/proc/self/fd/2"),
    (b"dev/ptmx", b"/dev/pts/ptmx"),
)


@dataclass(frozen=True, slots=True)
class MakeDirectory:
    """A directory of the new root's own file system, unless it is there."""

    target: bytes
    mode: int = 0o755


@dataclass(frozen=True, slots=True)
class BindPath:
    """A host path at a target; the mount point is made. Links are made anew, not followed."""

    source: bytes
    target: bytes
    read_only: bool
    optional: bool = False
    recursive: bool = True


@dataclass(frozen=True, slots=True)
class BindInputs:
    """All inputs, read-only, below the store directory."""

    store: bytes
    inputs: tuple[tuple[bytes, bytes], ...]


@dataclass(frozen=True, slots=True)
class BindDevice:
    """A device node of the host, after a look at its numbers."""

    name: bytes
    major: int
    minor: int
    optional: bool = False


@dataclass(frozen=True, slots=True)
class MountFileSystem:
    """A new file system of the kernel's."""

    kind: bytes
    target: bytes
    data: bytes = b""
    no_exec: bool = False


@dataclass(frozen=True, slots=True)
class MakeFile:
    """A file with given contents."""

    target: bytes
    content: bytes
    mode: int


@dataclass(frozen=True, slots=True)
class MakeLink:
    """A symbolic link."""

    target: bytes
    points_to: bytes


@dataclass(frozen=True, slots=True)
class Seal:
    """Take the write permission of a directory away, now that it is complete."""

    target: bytes


@dataclass(frozen=True, slots=True)
class Give:
    """Give a directory to the builder."""

    target: bytes
    uid: int
    gid: int


Operation = (
    MakeDirectory
    | BindPath
    | BindInputs
    | BindDevice
    | MountFileSystem
    | MakeFile
    | MakeLink
    | Seal
    | Give
)


# What differs between sandboxes of one kind; the kind, which can be a key, decides about all else.
_OWN = frozenset(
    {
        *("name", "entry", "argv", "environment", "working_directory", "root_directory"),
        *("scratch_store", "build_directory", "temporary_directory", "host_uid", "inputs"),
        "cgroup",
    }
)
kind_of = attrgetter(
    *(field.name for field in fields(SandboxSpec) if field.name not in _OWN),
    "build_directory.target",
    "build_directory.read_only",
)


def make_plan(spec: SandboxSpec) -> tuple[Operation, ...]:
    """Everything to do in the fresh root, in order; parents come before what is in them."""
    return tuple(_operations(spec))


@dataclass(frozen=True, slots=True)
class Halves:
    """A plan in two: what many sandboxes can have in common, and what is each one's own."""

    shared: tuple[Operation, ...]
    own: tuple[Operation, ...]


def split_plan(spec: SandboxSpec) -> Halves | None:
    """The halves of a plan; None where something shared would lie in what is not.

    What can be written, and whatever the kernel makes for one sandbox alone, is its own; the
    mount points for it are shared.
    """
    plan = make_plan(spec)
    own = tuple(operation for operation in plan if _is_own(operation))
    targets = [
        operation.target for operation in own if isinstance(operation, BindPath | MountFileSystem)
    ]
    shared = tuple(operation for operation in plan if not _is_own(operation))
    for operation in shared:
        if isinstance(operation, BindPath | MakeFile | MakeLink) and any(
            operation.target.startswith(target + b"/") for target in targets
        ):
            return None
    return Halves((*(MakeDirectory(target) for target in targets), *shared), own)


def _is_own(operation: Operation) -> bool:
    # The binds that the sandbox itself needs are of one mount; those of the settings are of trees.
    if isinstance(operation, BindPath):
        return not operation.recursive
    return isinstance(operation, BindInputs | MountFileSystem)


def _operations(spec: SandboxSpec) -> Iterator[Operation]:
    for name in (b"build", b"etc", b"proc", b"tmp"):
        if name != b"build" or _inside(spec.build_directory.target) == b"build":
            yield MakeDirectory(name)
    store = _inside(spec.store_directory)
    yield BindPath(spec.scratch_store, store, read_only=False, recursive=False)
    yield BindInputs(store, tuple((item.source, item.name) for item in spec.inputs))
    yield BindPath(spec.temporary_directory, b"tmp", read_only=False, recursive=False)
    yield _bind(spec.build_directory, recursive=False)
    if not any(bind.target == b"/dev" for bind in spec.binds):
        yield from _devices(spec)
    for file in spec.files:
        yield _file(file)
    for bind in sorted(spec.binds, key=lambda bind: bind.target):
        yield _bind(bind)
    if spec.id_count > 1:
        # As in Nix, root of a range may add to /etc. What shows the kernel comes later: id_range.
        yield Give(b"etc", spec.host_uid, spec.host_gid)
        yield MakeDirectory(b"sys")
        return
    yield Seal(b"etc")
    yield MountFileSystem(b"proc", b"proc", no_exec=True)


def _devices(spec: SandboxSpec) -> Iterator[Operation]:
    yield MakeDirectory(b"dev")
    for name, (major, minor) in DEVICES.items():
        yield BindDevice(name, major, minor)
    if spec.kvm:
        yield BindDevice(b"kvm", *KVM, optional=True)
    for target, points_to in DEVICE_LINKS:
        yield MakeLink(target, points_to)
    size = spec.dev_shm_size.encode()
    yield MakeDirectory(b"dev/shm")
    yield MountFileSystem(b"tmpfs", b"dev/shm", b"mode=1777,size=" + size)
    yield MakeDirectory(b"dev/pts")
    yield MountFileSystem(b"devpts", b"dev/pts", b"newinstance,mode=0620,ptmxmode=0666")


def _bind(bind: Bind, *, recursive: bool = True) -> BindPath:
    return BindPath(
        bind.source, _inside(bind.target), bind.read_only, bind.optional, recursive=recursive
    )


def _file(file: File) -> MakeFile:
    return MakeFile(_inside(file.path), file.content, file.mode)


def _inside(path: bytes) -> bytes:
    return path[1:]
