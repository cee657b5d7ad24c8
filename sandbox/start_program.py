"""What the starter performs for one sandbox: its steps as a program, which is bytes. Pure.

The same steps in the same order as ``child.run_child`` takes them for a sandbox that begins with a
template; ``starter.c`` only performs them. Tests hold the two equal.
"""

from __future__ import annotations

import os
import resource
import signal
import struct
from dataclasses import dataclass

from sandbox import syscalls
from sandbox.child import executing
from sandbox.messages import Ready, pack_report
from sandbox.mounts import mount_flags
from sandbox.namespaces import clone_flags
from sandbox.network import LOOPBACK_UP, SIOCSIFFLAGS
from sandbox.plan import BindInputs, BindPath, MountFileSystem, kind_of, split_plan
from sandbox.privileges import OOM_SCORE, PERSONALITIES, wants_scopes
from sandbox.program import Composer, Hole, Recipe, Slot
from sandbox.seccomp import filter_for
from sandbox.spec import Exec, InputPath, Network, SandboxSpec

BATCH = 256
_AT_FDCWD = -100 & 0xFFFFFFFFFFFFFFFF
_AT_EMPTY_PATH, _CLONE_TREE, _MOVE_BOTH_EMPTY = 0x1000, 1 | os.O_CLOEXEC, 0x04 | 0x40
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_POINT = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_NAMESPACE = os.O_RDONLY | os.O_CLOEXEC
_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _FILTER = 1, 22, 38, 2
_CLOSE_RANGE_CLOEXEC = 4
_SAFE = syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV
_OUTPUT, _REPORT, _LIVENESS, _USERS, _TEMPLATE = range(5)


_MOST_KINDS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What a start depends on beside its specification."""

    last_capability: int
    landlock_abi: int
    oom_score: int


class StartPrograms:
    """Makes programs. What sandboxes of a kind have in common is put together once."""

    def __init__(self, around: Surroundings) -> None:
        self._around = around
        self._recipes: dict[object, Recipe] = {}

    def make(self, spec: SandboxSpec, *, network: bool, cgroup: bool) -> bytes:
        """The program that starts ``spec`` from its template.

        The request has these descriptors: output, report, the spawner's pipe, user namespace,
        template, network and control group, the last two where they are said to be there.
        """
        batches = [spec.inputs[at : at + BATCH] for at in range(0, len(spec.inputs), BATCH)]
        kind = (kind_of(spec), network, cgroup, len(batches))
        recipe = self._recipes.get(kind)
        if recipe is None:
            if len(self._recipes) >= _MOST_KINDS:
                self._recipes.clear()
            recipe = _compose(spec, self._around, len(batches), network=network, cgroup=cgroup)
            self._recipes[kind] = recipe
        assert isinstance(spec.entry, Exec)
        environment = dict(spec.environment)
        return recipe.fill(
            (
                *(spec.scratch_store, spec.temporary_directory, spec.build_directory.source),
                *map(_input_texts, batches),
                *(spec.working_directory, spec.entry.program, *executing(spec.entry.program)),
            ),
            (spec.argv, [name + b"=" + value for name, value in environment.items()]),
        )


def _input_texts(inputs: tuple[InputPath, ...]) -> bytes:
    """Sources and names, each with a NUL, and an empty one (the last NUL comes with the text)."""
    return b"".join(b"%b\0%b\0" % (item.source, item.name) for item in inputs)


def _compose(
    spec: SandboxSpec, around: Surroundings, batches: int, *, network: bool, cgroup: bool
) -> Recipe:
    """What sandboxes of the kind of ``spec`` have in common; holes in the order of ``make``."""
    descriptors = _TEMPLATE + 1 + network + cgroup
    composer = Composer(descriptors)
    sources = [composer.hole() for _ in range(3)]
    inputs = [composer.hole() for _ in range(batches)]
    if network:
        text = "enter the network of the build"
        composer.step(text, "setns", Slot(_TEMPLATE + 1), syscalls.CLONE_NEWNET)
    _attributes(composer, spec, around)
    _namespaces(composer, spec)
    _root(composer, spec, sources, inputs)
    _privileges(composer, spec, around.last_capability)
    _die_with_spawner(composer)
    directory = composer.hole()
    composer.step("enter the build directory", "chdir", directory, path=directory)
    _confine_further(composer, spec, around)
    _execute(composer)
    flags = clone_flags(spec, with_template=True)
    return composer.finish(flags, descriptors, _REPORT, descriptors - 1 if cgroup else None)


def _attributes(composer: Composer, spec: SandboxSpec, around: Surroundings) -> None:
    composer.step("start a session", "setsid")
    composer.step("set the umask", "umask", 0o022)
    limit = composer.data(bytes(16), align=8)
    composer.step(
        "limit core dumps", "prlimit64", 0, resource.RLIMIT_CORE, limit, 0, told="setrlimit"
    )
    if around.oom_score < OOM_SCORE:
        text, value = "be the first to go when memory is short", b"%d" % OOM_SCORE
        path = composer.text(b"/proc/self/oom_score_adj")
        file = composer.opened(
            text, "openat", _AT_FDCWD, path, os.O_WRONLY | os.O_CLOEXEC, told="write"
        )
        composer.step(text, "write", file, composer.data(value), len(value))
    composer.step("set the personality", "personality", PERSONALITIES[spec.machine])


def _namespaces(composer: Composer, spec: SandboxSpec) -> None:
    text = "create the namespace of control groups"
    composer.step(text, "unshare", syscalls.CLONE_NEWCGROUP)
    text = "set the host name"
    for call, name in (("sethostname", spec.hostname), ("setdomainname", spec.domainname)):
        content = name.encode()
        composer.step(text, call, composer.data(content), len(content), told="sethostname")
    if spec.network is Network.ISOLATED:
        text, request = "bring up loopback", composer.data(LOOPBACK_UP, align=8)
        inet = composer.opened(text, "socket", 2, 2 | os.O_CLOEXEC, 0, told="ioctl")
        composer.step(text, "ioctl", inet, SIOCSIFFLAGS, request)
        composer.step(text, "close", inet, told="ioctl")


def _root(composer: Composer, spec: SandboxSpec, holes: list[Hole], batches: list[Hole]) -> None:
    """As ``template.enter_template``: what is the host's is opened before the host is left."""
    halves = split_plan(spec)
    assert halves is not None
    # As plan.py has them; the holes are in the same order.
    binds = [operation for operation in halves.own if isinstance(operation, BindPath)]
    own_paths = (spec.scratch_store, spec.temporary_directory, spec.build_directory.source)
    assert tuple(bind.source for bind in binds) == own_paths
    opened = [_source(composer, *pair) for pair in zip(binds, holes, strict=True)]
    scratch = opened[0][0]
    if batches:
        _open_inputs(composer, scratch, batches[0])
    namespaces = _enter(composer, come_back=len(batches) > 1)
    trees = iter(zip(opened, holes, strict=True))
    for operation in halves.own:
        if isinstance(operation, BindPath):
            (_directory, tree), hole = next(trees)
            _attach(composer, operation, tree, hole)
        elif isinstance(operation, MountFileSystem):
            _mount(composer, operation)
        elif isinstance(operation, BindInputs) and batches:
            _attach_inputs(composer, operation, batches, scratch, namespaces)
    composer.step("enter the prepared root", "chdir", composer.text(b"/"))
    text = "open /dev/null"
    null = composer.opened(
        text, "openat", _AT_FDCWD, composer.text(b"/dev/null"), _NAMESPACE, told="open"
    )
    composer.step(text, "dup3", null, 0, 0, told="open")


def _enter(composer: Composer, *, come_back: bool) -> tuple[Slot, Slot]:
    """Enter a copy of the template; with ``come_back``, the namespaces of the host and the copy."""
    host = own = files = Slot(0)
    text = "open the namespaces"
    if come_back:
        path = composer.text(b"/proc/self/ns")
        files = composer.opened(
            text, "openat", _AT_FDCWD, path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        )
        host = composer.opened(text, "openat", files, composer.text(b"mnt"), _NAMESPACE)
    composer.step("enter the prepared root", "setns", Slot(_TEMPLATE), syscalls.CLONE_NEWNS)
    composer.step("enter the prepared root", "unshare", syscalls.CLONE_NEWNS, told="setns")
    if come_back:
        own = composer.opened(text, "openat", files, composer.text(b"mnt"), _NAMESPACE)
    return host, own


def _source(composer: Composer, operation: BindPath, hole: Hole) -> tuple[Slot, Slot]:
    """A source, and a copy of the mount there, as ``mounts.detached`` makes it."""
    text = "bind a path"
    source = composer.opened(
        *(text, "openat", _AT_FDCWD, hole, _DIRECTORY), told="open_tree", path=hole
    )
    flags = _CLONE_TREE | _AT_EMPTY_PATH
    tree = composer.opened(text, "open_tree", source, composer.text(b""), flags, path=hole)
    attributes = struct.pack("<QQQQ", _SAFE | operation.read_only, 0, 0, 0)
    composer.step(
        text,
        *("mount_setattr", tree, composer.text(b""), _AT_EMPTY_PATH),
        *(composer.data(attributes, align=8), len(attributes)),
        told="open_tree",
        path=hole,
    )
    return source, tree


def _point(composer: Composer, text: str, call: str, target: bytes) -> Slot:
    """A directory of the template, to which no link leads."""
    how = composer.data(struct.pack("<QQQ", _POINT, 0, syscalls.RESOLVE_NO_SYMLINKS), align=8)
    arguments = (_AT_FDCWD, composer.text(target), how, 24)
    return composer.opened(text, "openat2", *arguments, told=call, path=target)


def _attach(composer: Composer, operation: BindPath, tree: Slot, hole: Hole) -> None:
    text = "bind a path"
    point, empty = _point(composer, text, "move_mount", operation.target), composer.text(b"")
    arguments = (tree, empty, point, empty, _MOVE_BOTH_EMPTY)
    composer.step(text, "move_mount", *arguments, path=hole)


def _mount(composer: Composer, operation: MountFileSystem) -> None:
    text, target = f"mount /{os.fsdecode(operation.target)}", operation.target
    composer.step(
        text, "fchdir", _point(composer, text, "mount", target), told="mount", path=target
    )
    kind = composer.text(operation.kind)
    content = composer.text(operation.data) if operation.data else 0
    arguments = (kind, composer.text(b"."), kind, mount_flags(operation), content)
    composer.step(text, "mount", *arguments, path=target)
    composer.step(text, "chdir", composer.text(b"/"), told="mount", path=target)


def _open_inputs(composer: Composer, scratch: Slot, batch: Hole) -> None:
    composer.step("bind an input", "open_inputs", scratch, batch, told="open_tree")


def _attach_inputs(
    composer: Composer,
    operation: BindInputs,
    batches: list[Hole],
    scratch: Slot,
    namespaces: tuple[Slot, Slot],
) -> None:
    host, own = namespaces
    text = "bind an input"
    store = _point(composer, text, "move_mount", operation.store)
    composer.step(text, "attach_inputs", store, told="move_mount")
    for batch in batches[1:]:
        composer.step("go back for more inputs", "setns", host, syscalls.CLONE_NEWNS)
        _open_inputs(composer, scratch, batch)
        composer.step("enter the prepared root", "setns", own, syscalls.CLONE_NEWNS)
        composer.step(text, "attach_inputs", store, told="move_mount")


def _privileges(composer: Composer, spec: SandboxSpec, last_capability: int) -> None:
    composer.step("drop supplementary groups", "setgroups", 0, 0)
    text = "enter the user namespace"
    composer.step(text, "setns", Slot(_USERS), syscalls.CLONE_NEWUSER)
    for call, number in (("setresgid", spec.inside_gid), ("setresuid", spec.inside_uid)):
        composer.step("take the ids inside", call, number, number, number, told="setresuid")
    text = "empty the capability bounding set"
    composer.step(text, "drop_bounding_set", last_capability, told="prctl")
    header = composer.data(struct.pack("<Ii", 0x20080522, 0), align=8)
    composer.step("drop all capabilities", "capset", header, composer.data(bytes(24), align=8))


def _die_with_spawner(composer: Composer) -> None:
    """As ``privileges.die_with_spawner``; the pipe never blocks."""
    text = "die with the spawner"
    composer.step(text, "prctl", _PR_SET_PDEATHSIG, signal.SIGKILL)
    buffer = composer.data(bytes(8), align=8)
    composer.step(text, "read", Slot(_LIVENESS), buffer, 1, only_again=True)


def _confine_further(composer: Composer, spec: SandboxSpec, around: Surroundings) -> None:
    composer.step("forbid new privileges", "prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if wants_scopes(spec, around.landlock_abi):
        text, told = "confine abstract sockets", "landlock_restrict_self"
        scopes = syscalls.LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET | syscalls.LANDLOCK_SCOPE_SIGNAL
        attributes = composer.data(struct.pack("<QQQ", 0, 0, scopes), align=8)
        rules = composer.opened(text, "landlock_create_ruleset", attributes, 24, 0, told=told)
        composer.step(text, told, rules, 0)
    filter_program = filter_for(spec)
    program = composer.data(filter_program, align=8)
    header = composer.fields(struct.Struct("<Hxxxxxx Q"), len(filter_program) // 8, program)
    composer.step("load the system call filter", "prctl", _PR_SET_SECCOMP, _FILTER, header)


def _execute(composer: Composer) -> None:
    """Descriptors last: until then a step's failure doesn't depend on what is open."""
    text = "arrange descriptors"
    for number in (1, 2):
        composer.step(text, "dup3", Slot(_OUTPUT), number, 0)
    composer.step(text, "close_range", 3, 0xFFFFFFFF, _CLOSE_RANGE_CLOEXEC)
    ready = pack_report(Ready())
    composer.step("report", "write", Slot(_REPORT), composer.data(ready), len(ready))
    program, before, after = (composer.hole() for _ in range(3))
    lists = (composer.list_hole(), composer.list_hole())
    arguments = (program, *lists, before, after)
    composer.step("execute", "execute", *arguments, told="execve", path=program)
