"""Roots that many sandboxes start from: made once, kept as mount namespaces, copied for each.

Devices, links, files and mount points are the same for all builds with the same settings and
group. A template is a mount namespace in which they are the root, which is read-only; each child
enters it, takes a copy of the namespace for itself, and mounts there what is its own. Nothing that
anybody can write is ever part of a template.

Made at the second sandbox of a kind, because one alone is set up faster without.
"""

from __future__ import annotations

import os
import stat
from collections import OrderedDict
from dataclasses import dataclass

from sandbox import syscalls
from sandbox.mounts import (
    Builder,
    FilePoints,
    attach_input,
    detached,
    enter_shared_root,
    prepare_input,
)
from sandbox.plan import BindInputs, BindPath, Operation, kind_of, split_plan
from sandbox.spec import SandboxSpec
from sandbox.step import Step, StepFailedError

_MOST = 16
_MOST_PLANS = 64
_NAMESPACE = os.O_RDONLY | os.O_CLOEXEC
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# Mounts of inputs that are open at once, far below the usual limit of descriptors.
_BATCH = 256

# What a template depends on: the group that may enter the root, and what is in it.
_Key = tuple[int, tuple[Operation, ...], tuple[object, ...]]


@dataclass(frozen=True, slots=True)
class Template:
    """A prepared root: its mount namespace as a descriptor."""

    descriptor: int


class Templates:
    """The templates of one spawner, the least recently used first. They end with it."""

    def __init__(self) -> None:
        self._templates: OrderedDict[_Key, int | None] = OrderedDict()
        self._plans: dict[object, tuple[Operation, ...] | None] = {}

    def find(self, spec: SandboxSpec) -> Template | None:
        """What to start from; None if it has to be done without.

        A template that can't be made is none: setting up the sandbox alone will tell why.
        """
        shared = self._shared(spec)
        key = _key(spec, shared) if shared is not None else None
        if shared is None or key is None:
            return None
        if key not in self._templates:
            self._remember(key, None)
            return None
        if self._templates[key] is None:
            self._remember(key, _make(spec, shared))
        self._templates.move_to_end(key)
        descriptor = self._templates[key]
        return None if descriptor is None else Template(descriptor)

    def _shared(self, spec: SandboxSpec) -> tuple[Operation, ...] | None:
        """What sandboxes of this kind have in common, planned once."""
        kind = kind_of(spec)
        if kind not in self._plans:
            if len(self._plans) >= _MOST_PLANS:
                self._plans.clear()
            halves = split_plan(spec)
            self._plans[kind] = None if halves is None else halves.shared
        return self._plans[kind]

    def _remember(self, key: _Key, template: int | None) -> None:
        self._templates[key] = template
        self._drop_to(_MOST)

    def drop(self) -> None:
        """Keep none."""
        self._drop_to(0)

    def _drop_to(self, count: int) -> None:
        while len(self._templates) > count:
            _key, oldest = self._templates.popitem(last=False)
            if oldest is not None:
                os.close(oldest)


def _key(spec: SandboxSpec, shared: tuple[Operation, ...]) -> _Key | None:
    """Everything that decides about a template, the identity of host files in it too."""
    sources: list[object] = []
    for operation in shared:
        if isinstance(operation, BindPath):
            try:
                status = os.lstat(operation.source)
            except OSError:
                return None
            # Directories of the host may have mounts that come and go.
            if not stat.S_ISREG(status.st_mode):
                return None
            sources.append((status.st_dev, status.st_ino))
    return spec.host_gid, shared, tuple(sources)


def _make(spec: SandboxSpec, operations: tuple[Operation, ...]) -> int | None:
    """Make a template in a process of its own, and keep its mount namespace."""
    ready, ready_end = os.pipe()
    done_end, done = os.pipe()
    pid, pidfd = syscalls.clone3(syscalls.CLONE_NEWNS)
    if pid == 0:
        os.close(done)
        _hold_template(spec, operations, ready_end, done_end)
    os.close(ready_end)
    os.close(done_end)
    try:
        if os.read(ready, 1) != b"+":
            return None
        return os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    finally:
        os.close(done)
        os.close(ready)
        os.waitpid(pid, 0)
        os.close(pidfd)


def _hold_template(
    spec: SandboxSpec, operations: tuple[Operation, ...], ready: int, done: int
) -> None:
    """Make the template the root of this process, say so, and stay until it has been taken."""
    try:
        enter_shared_root(spec, operations)
        os.write(ready, b"+")
        os.read(done, 1)
    except (OSError, StepFailedError):
        os._exit(1)
    finally:
        os._exit(0)


def enter_template(spec: SandboxSpec, template: int, namespaces: int) -> None:
    """Enter a copy of the template, and mount there what is this sandbox's own.

    Begins in the spawner's mount namespace, where the host's paths are. ``namespaces`` is this
    process's directory of namespaces in a procfs. What is opened here is the caller's to close.
    """
    halves = split_plan(spec)
    assert halves is not None  # or there would be no template
    operations = halves.own
    host = os.open("mnt", _NAMESPACE, dir_fd=namespaces)
    scratch = os.open(spec.scratch_store, _DIRECTORY)
    sources = {}
    for operation in operations:
        if isinstance(operation, BindPath):
            with Step("bind a path", "open_tree", operation.source):
                source = os.open(operation.source, _DIRECTORY)
                sources[operation.source] = detached(operation, source)
    inputs = next(item.inputs for item in operations if isinstance(item, BindInputs))
    points = FilePoints()
    first = _open_inputs(scratch, inputs[:_BATCH], points)
    with Step("enter the prepared root", "setns"):
        syscalls.setns(template, syscalls.CLONE_NEWNS)
        syscalls.unshare(syscalls.CLONE_NEWNS)
    own = os.open("mnt", _NAMESPACE, dir_fd=namespaces)
    builder = Builder(os.open("/", _DIRECTORY))
    for operation in operations:
        if isinstance(operation, BindPath):
            with Step("bind a path", "move_mount", operation.source):
                builder.attach(sources[operation.source], operation.target, is_directory=True)
        elif isinstance(operation, BindInputs):
            store = b"/" + operation.store
            _attach_inputs(store, first)
            for at in range(_BATCH, len(inputs), _BATCH):
                with Step("go back for more inputs", "setns"):
                    syscalls.setns(host, syscalls.CLONE_NEWNS)
                batch = _open_inputs(scratch, inputs[at : at + _BATCH], points)
                with Step("enter the prepared root", "setns"):
                    syscalls.setns(own, syscalls.CLONE_NEWNS)
                _attach_inputs(store, batch)
        else:
            builder.perform(operation)
    points.close()
    os.chdir("/")


def _open_inputs(
    scratch: int, inputs: tuple[tuple[bytes, bytes], ...], points: FilePoints
) -> list[tuple[bytes, bytes, int]]:
    """Sources, names and copies of mounts, whose mount points are there now; links are done."""
    opened = []
    for source, name in inputs:
        with Step("bind an input", "open_tree", source):
            mount = prepare_input(scratch, source, name, points)
            if mount is not None:
                opened.append((source, name, mount))
    return opened


def _attach_inputs(store_path: bytes, mounts: list[tuple[bytes, bytes, int]]) -> None:
    if not mounts:
        return
    store = os.open(store_path, _DIRECTORY)
    for source, name, mount in mounts:
        with Step("bind an input", "move_mount", source):
            attach_input(store, name, mount)
    os.close(store)
