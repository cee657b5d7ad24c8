"""Tries each facility that a sandbox needs, for real, and says what to do where one is missing.

Each probe runs in a process of its own, so that what it changes ends with it.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass

from sandbox import syscalls
from sandbox.cgroup_home import CgroupHome
from sandbox.errors import CgroupError, SandboxError
from sandbox.seccomp import compile_filter
from sandbox.spec import Cgroup

_NOBODY = 65534


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeResult:
    """One facility. ``required`` ones must work for any build; the others serve some."""

    name: str
    works: bool
    required: bool
    detail: str
    remedy: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Probe:
    name: str
    attempt: Callable[[], str]
    remedy: str
    required: bool = True


def _namespace(flag: int) -> Callable[[], str]:
    def attempt() -> str:
        syscalls.unshare(flag)
        return "created"

    return attempt


def _user_namespace() -> str:
    os.setgroups([])
    os.setresgid(_NOBODY, _NOBODY, _NOBODY)
    os.setresuid(_NOBODY, _NOBODY, _NOBODY)
    syscalls.unshare(syscalls.CLONE_NEWUSER)
    return "created by an unprivileged user"


def _private_mounts() -> None:
    syscalls.unshare(syscalls.CLONE_NEWNS)
    syscalls.mount(b"none", b"/", b"", syscalls.MS_REC | syscalls.MS_PRIVATE)


def _mount_api() -> str:
    _private_mounts()
    tree = syscalls.open_tree(b"/usr", recursive=False)
    syscalls.mount_setattr(tree, syscalls.MOUNT_ATTR_RDONLY, recursive=True)
    return "open_tree, mount_setattr"


def _tmpfs() -> str:
    _private_mounts()
    syscalls.mount(b"probe", b"/tmp", b"tmpfs", syscalls.MS_NOSUID | syscalls.MS_NODEV)
    return "mounted"


def _proc() -> str:
    _private_mounts()
    syscalls.unshare(syscalls.CLONE_NEWPID)
    child = os.fork()
    if child == 0:
        try:
            syscalls.mount(b"proc", b"/proc", b"proc", syscalls.MS_NOSUID)
        except OSError as error:
            os._exit(error.errno or 1)
        os._exit(0)
    number = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if number:
        raise OSError(number, os.strerror(number))
    return "a fresh procfs"


def _seccomp() -> str:
    program = compile_filter()
    syscalls.load_seccomp_filter(program)
    return f"{len(program) // 8} instructions loaded"


def _clone3() -> str:
    pid, pidfd = syscalls.clone3(0)
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return "clone3 and pidfd" if pidfd >= 0 else "clone3"


def _devices() -> str:
    for name in ("null", "zero", "full", "random", "urandom", "tty"):
        if not os.path.exists(f"/dev/{name}"):
            raise OSError(errno.ENOENT, f"/dev/{name} is missing")
    return "all there"


def _pseudo_terminal() -> str:
    master, slave = os.openpty()
    os.close(master)
    os.close(slave)
    return "opened"


def _shell() -> str:
    for path in ("/bin/busybox", "/usr/bin/busybox"):
        if os.path.exists(path):
            return path
    raise OSError(errno.ENOENT, "no busybox on this machine")


def _outside_network() -> str:
    """A network as builds have it, from its start to its end."""
    import asyncio

    from sandbox.nat import NetworkServer, find_programs
    from sandbox.nat_spec import NatSpec

    programs = find_programs(f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")
    spec = NatSpec(
        host_uid=_NOBODY,
        host_gid=_NOBODY,
        rules=(),
        resolvers=(),
        local_resolver=None,
        pasta=programs.pasta,
        nft=programs.nft,
    )

    async def attempt() -> None:
        server = NetworkServer.start()
        try:
            await (await server.open(spec)).close()
        finally:
            await server.stop()

    asyncio.run(attempt())
    return f"{programs.pasta}, {programs.nft}"


def _kvm() -> str:
    os.close(os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC))
    return "opened"


def _landlock() -> str:
    abi = syscalls.landlock_abi()
    if abi < 6:
        raise OSError(errno.ENOSYS, f"version {abi}, scopes need 6")
    return f"version {abi}"


def _limit(wanted: Cgroup) -> Callable[[], str]:
    """Make a group with a limit, as a build with that setting has it."""

    def attempt() -> str:
        home = CgroupHome()
        try:
            group = home.create(wanted, (0, 0))
            return "applied" if group is not None else "without a control group"
        except CgroupError as error:
            raise OSError(errno.ENODEV, str(error)) from error
        finally:
            home.close()

    return attempt


_CONTAINER = "run as root, and in a container with all capabilities (docker run --privileged)"
_PROBES = (
    _Probe(name="clone3 and pidfd", attempt=_clone3, remedy="use Linux 6.1 or newer"),
    _Probe(name="mount namespace", attempt=_namespace(syscalls.CLONE_NEWNS), remedy=_CONTAINER),
    _Probe(name="process namespace", attempt=_namespace(syscalls.CLONE_NEWPID), remedy=_CONTAINER),
    _Probe(name="IPC namespace", attempt=_namespace(syscalls.CLONE_NEWIPC), remedy=_CONTAINER),
    _Probe(
        name="host name namespace", attempt=_namespace(syscalls.CLONE_NEWUTS), remedy=_CONTAINER
    ),
    _Probe(name="network namespace", attempt=_namespace(syscalls.CLONE_NEWNET), remedy=_CONTAINER),
    _Probe(
        name="cgroup namespace", attempt=_namespace(syscalls.CLONE_NEWCGROUP), remedy=_CONTAINER
    ),
    _Probe(
        name="user namespace",
        attempt=_user_namespace,
        remedy=(
            "set the sysctls kernel.unprivileged_userns_clone=1, "
            "kernel.apparmor_restrict_unprivileged_userns=0 and user.max_user_namespaces above 0"
        ),
    ),
    _Probe(name="mount interface", attempt=_mount_api, remedy="use Linux 6.1 or newer"),
    _Probe(name="tmpfs", attempt=_tmpfs, remedy=_CONTAINER),
    _Probe(
        name="procfs",
        attempt=_proc,
        remedy="run the container with an unmasked /proc (--security-opt systempaths=unconfined)",
    ),
    _Probe(
        name="system call filter",
        attempt=_seccomp,
        remedy="use a kernel with CONFIG_SECCOMP_FILTER, on x86-64 or 64-bit ARM",
    ),
    _Probe(name="device nodes", attempt=_devices, remedy="mount devtmpfs at /dev"),
    _Probe(name="pseudo-terminals", attempt=_pseudo_terminal, remedy="mount devpts at /dev/pts"),
    _Probe(
        name="shell for /bin/sh",
        attempt=_shell,
        required=False,
        remedy="install busybox-static, or set 'sandbox-paths' to expose another shell",
    ),
    _Probe(
        name="network of fixed outputs",
        attempt=_outside_network,
        required=False,
        remedy=(
            "fixed outputs and impure derivations fail without it, unless 'fod-network' is 'host' "
            "or 'none': install the Debian packages passt and nftables, on a kernel with "
            "CONFIG_NF_TABLES, CONFIG_TUN and a device /dev/net/tun that may be used"
        ),
    ),
    _Probe(
        name="KVM",
        attempt=_kvm,
        required=False,
        remedy="only for builds that require the feature 'kvm': load the module kvm",
    ),
    _Probe(
        name="Landlock scopes",
        attempt=_landlock,
        required=False,
        remedy="only a second line of defence for fixed-output builds: Linux 6.12 has it",
    ),
    _Probe(
        name="control groups",
        attempt=_limit(Cgroup(required=True)),
        required=False,
        remedy="only for 'build-cpu-max' and exact CPU times: mount cgroup v2 writable",
    ),
    _Probe(
        name="limit of memory",
        attempt=_limit(Cgroup(memory_max=1 << 30)),
        required=False,
        remedy="only for 'build-memory-max', and builds without it run as ever",
    ),
    _Probe(
        name="limit of processes",
        attempt=_limit(Cgroup(pids_max=1000)),
        required=False,
        remedy="only for 'build-pids-max', and builds without it run as ever",
    ),
)


def run_probes() -> list[ProbeResult]:
    """Try everything, in order. Must run as root; raises ``SandboxError`` otherwise."""
    if os.geteuid() != 0:
        raise SandboxError("the probes need root, as building does")
    return [_run(probe) for probe in _PROBES]


def _run(probe: _Probe) -> ProbeResult:
    """Attempt one facility in a child; its text comes back through a pipe."""
    sys.stdout.flush()
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        works, detail = _attempt(probe)
        os.write(write_end, detail.encode()[:4000])
        os._exit(0 if works else 1)
    os.close(write_end)
    with open(read_end, "rb") as pipe:
        detail = pipe.read().decode()
    works = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    return ProbeResult(
        name=probe.name,
        works=works,
        required=probe.required,
        detail=detail,
        remedy="" if works else probe.remedy,
    )


def _attempt(probe: _Probe) -> tuple[bool, str]:
    try:
        return True, probe.attempt()
    except OSError as error:
        return False, error.strerror or str(error)
    except SandboxError as error:
        return False, str(error)
    except Exception as error:  # noqa: BLE001 - a probe must not end the whole table
        return False, f"{type(error).__name__}: {error}"
