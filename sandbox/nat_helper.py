"""What runs between clone and exec of pasta: a view with nothing in it, and two namespaces.

The network namespace is made in a user namespace that belongs to the helper's id, by a short-lived
child, so that pasta can enter it without being root; pasta itself stays in the network of whoever
started it. Its files are the C library's and its own; its own start takes even these away.
"""

from __future__ import annotations

import os
import resource
import signal
import socket
from dataclasses import dataclass
from typing import NoReturn

import prctl

from sandbox import syscalls
from sandbox.privileges import die_with_spawner
from sandbox.step import Step, StepFailedError

REPORT = 3
LIVENESS = 4
_MAX_FD = (1 << 32) - 1
_ROOT = b"/dev"  # a directory that every machine has; covered in this mount namespace only
_SYSTEM = (b"/usr", b"/lib", b"/lib32", b"/lib64", b"/nix/store")
_READ_ONLY = syscalls.MOUNT_ATTR_RDONLY | syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV
# Descriptors are flows: what a program that opens all it can may cost this machine.
_MAX_FLOWS = 16384
# At the root, so that a profile that an AppArmor machine has for its path doesn't apply.
_PROGRAM = b"/pasta"
_VARIANT = b".avx2"


@dataclass(frozen=True, slots=True, kw_only=True)
class Helper:
    """A helper to be: the program and its arguments, its ids, and its resolv.conf."""

    program: bytes
    arguments: tuple[bytes, ...]
    uid: int
    gid: int
    resolv_conf: bytes
    last_capability: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HelperDescriptors:
    """Where pasta prints, the socket that takes the namespace, and the pipe of the server."""

    output: int
    report: int
    liveness: int


CLONE_FLAGS = (
    syscalls.CLONE_NEWPID
    | syscalls.CLONE_NEWNS
    | syscalls.CLONE_NEWIPC
    | syscalls.CLONE_NEWUTS
    | syscalls.CLONE_NEWCGROUP
)


def run_helper(helper: Helper, descriptors: HelperDescriptors) -> NoReturn:
    """Become pasta. The namespace, or why there is none, goes to the report's socket."""
    try:
        _arrange(descriptors)
        _prepare(helper)
        os.execve(_PROGRAM, (b"pasta", *helper.arguments), {})
    except StepFailedError as error:
        report = error.report
        _complain(f"{report.step} failed: {report.syscall}: {os.strerror(report.error_number)}")
    except BaseException as error:  # noqa: BLE001 - whatever it is, it must be told
        _complain(f"starting pasta failed: {type(error).__name__}: {error}")
    finally:
        os._exit(1)


def _complain(text: str) -> None:
    os.write(2, text.encode() + b"\n")


def _arrange(descriptors: HelperDescriptors) -> None:
    """Nothing to read, output at 1 and 2, the report at 3, the pipe at 4, and no other."""
    high = []
    for fd in (descriptors.output, descriptors.report, descriptors.liveness):
        while fd <= LIVENESS:
            fd = os.dup(fd)
        high.append(fd)
    os.dup2(high[0], 1)
    os.dup2(high[0], 2)
    null = os.open("/dev/null", os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(high[1], REPORT, inheritable=False)
    os.dup2(high[2], LIVENESS, inheritable=False)
    syscalls.close_range(LIVENESS + 1, _MAX_FD)


def _prepare(helper: Helper) -> None:
    os.setsid()
    os.umask(0o022)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    with Step("limit the helper of the network", "setrlimit"):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_NOFILE, (_MAX_FLOWS, _MAX_FLOWS))
    with Step("make mounts private", "mount"):
        syscalls.mount(b"none", b"/", b"", syscalls.MS_REC | syscalls.MS_PRIVATE)
    userns, netns = _make_namespaces(helper)
    with Step("build the view of the network's helper", "mount"):
        _build_view(helper, userns, netns)
    with socket.socket(fileno=REPORT) as report:
        socket.send_fds(report, [b"namespace"], [netns])
    os.close(netns)
    os.close(userns)
    with Step("empty the capability bounding set", "prctl"):
        for capability in range(helper.last_capability + 1):
            prctl.capbset_drop(capability)
    _become_helper(helper)
    with Step("forbid new privileges", "prctl"):
        prctl.set_no_new_privs(1)
    die_with_spawner(LIVENESS)


def _make_namespaces(helper: Helper) -> tuple[int, int]:
    """Descriptors of a user namespace of the helper's id, and of a network namespace in it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    child = os.fork()
    if child == 0:
        try:
            _unshare(helper)
            fds = [os.open(f"/proc/self/ns/{name}", os.O_RDONLY) for name in ("user", "net")]
            socket.send_fds(theirs, [b"namespaces"], fds)
            os._exit(0)
        except StepFailedError as error:
            report = error.report
            text = f"{report.step} failed: {report.syscall}: {os.strerror(report.error_number)}"
            _complain(text)
        finally:
            os._exit(1)
    theirs.close()
    with ours:
        _data, fds, _flags, _address = socket.recv_fds(ours, 64, 2)
    os.waitpid(child, 0)
    if len(fds) != 2:
        os._exit(1)  # the child has said why
    return fds[0], fds[1]


def _become_helper(helper: Helper) -> None:
    """Change to the helper's ids for good; with root's go all capabilities."""
    with Step("change to the id of the network's helper", "setresuid"):
        os.setgroups([])
        os.setresgid(helper.gid, helper.gid, helper.gid)
        os.setresuid(helper.uid, helper.uid, helper.uid)


def _unshare(helper: Helper) -> None:
    _become_helper(helper)
    prctl.set_dumpable(1)
    with Step("create the user namespace", "unshare"):
        syscalls.unshare(syscalls.CLONE_NEWUSER)
    with Step("map the ids", "write"):
        for name, content in (
            ("setgroups", b"deny"),
            ("uid_map", b"0 %d 1" % helper.uid),
            ("gid_map", b"0 %d 1" % helper.gid),
        ):
            fd = os.open(f"/proc/self/{name}", os.O_WRONLY | os.O_CLOEXEC)
            os.write(fd, content)
            os.close(fd)
    with Step("create the network namespace", "unshare"):
        syscalls.unshare(syscalls.CLONE_NEWNET)


def _build_view(helper: Helper, userns: int, netns: int) -> None:
    """A root with pasta, what it loads, the two namespaces, and the device of tap interfaces."""
    program = os.path.realpath(helper.program)
    trees = {path: _tree(path) for path in _system_directories(program)}
    files = {_PROGRAM: syscalls.open_tree(program, recursive=False)}
    if os.path.exists(program + _VARIANT):
        files[_PROGRAM + _VARIANT] = syscalls.open_tree(program + _VARIANT, recursive=False)
    syscalls.mount(b"helper", _ROOT, b"tmpfs", syscalls.MS_NOSUID, b"mode=0755,size=64k")
    os.chdir(_ROOT)
    for name in (b"dev", b"dev/net", b"proc", b"tmp", b"etc", b"ns"):
        os.mkdir(name, 0o755)
    for path, tree in trees.items():
        _place(path, tree)
    for path, tree in files.items():
        syscalls.mount_setattr(tree, _READ_ONLY, recursive=False)
        _attach_file(path[1:], tree)
    for name, fd in ((b"ns/user", userns), (b"ns/net", netns)):
        os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o444))
        syscalls.mount(b"/proc/self/fd/%d" % fd, name, b"", syscalls.MS_BIND)
    _make_files(helper)
    flags = syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC
    syscalls.mount(b"proc", b"proc", b"proc", flags)
    syscalls.pivot_root(b".", b".")
    syscalls.umount2(b".", syscalls.MNT_DETACH)
    os.chdir("/")


def _make_files(helper: Helper) -> None:
    with open(b"etc/resolv.conf", "wb") as file:
        file.write(helper.resolv_conf)
    for name, numbers in ((b"dev/null", (1, 3)), (b"dev/net/tun", (10, 200))):
        os.mknod(name, 0o600 | 0o020000, os.makedev(*numbers))
        os.chown(name, helper.uid, helper.gid)


def _system_directories(program: bytes) -> list[bytes]:
    """Where the program and its libraries may lie, but nobody's data."""
    wanted = [path for path in _SYSTEM if os.path.lexists(path)]
    if not program.startswith(b"/nix/store/"):
        wanted = [path for path in wanted if path != b"/nix/store"]
    return wanted


def _tree(path: bytes) -> int | bytes:
    """A detached mount, or where a link points."""
    if os.path.islink(path):
        return os.readlink(path)
    tree = syscalls.open_tree(path, recursive=False)
    syscalls.mount_setattr(tree, _READ_ONLY, recursive=False)
    return tree


def _place(path: bytes, tree: int | bytes) -> None:
    name = path[1:]
    os.makedirs(os.path.dirname(name) or b".", exist_ok=True)
    if isinstance(tree, bytes):
        os.symlink(tree, name)
        return
    os.mkdir(name)
    point = os.open(name, os.O_PATH | os.O_DIRECTORY)
    syscalls.move_mount(tree, point)
    os.close(point)
    os.close(tree)


def _attach_file(name: bytes, tree: int) -> None:
    os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o444))
    point = os.open(name, os.O_PATH)
    syscalls.move_mount(tree, point)
    os.close(point)
    os.close(tree)
