"""Errors of the sandbox. None of them is ever a failure of the program that was to run."""

from __future__ import annotations

import errno
import os


class SandboxError(Exception):
    """Base of every error of this package."""


class SpecError(SandboxError):
    """A specification can't be obeyed as it stands: bad path, bad id, bad environment."""


class SetupFailedError(SandboxError):
    """A step of setting a sandbox up failed; the program was not started.

    ``step`` says what was being done, ``syscall`` which call failed with ``error_number``, and
    ``path`` on what, where there is one.
    """

    def __init__(self, step: str, syscall: str, error_number: int, path: str = "") -> None:
        self.step = step
        self.syscall = syscall
        self.error_number = error_number
        self.path = path
        where = f" ('{path}')" if path else ""
        reason = os.strerror(error_number) if error_number else "refused"
        remedy = _remedy(step, error_number)
        super().__init__(
            f"{step}{where} failed: {syscall}: {reason}" + (f"; {remedy}" if remedy else "")
        )


class CgroupError(SandboxError):
    """A control group that was asked for can't be had; the program was not started.

    ``missing`` names the controllers that its limits need and that can't be used here, ``reason``
    says why, and what to do.
    """

    def __init__(self, missing: tuple[str, ...], reason: str) -> None:
        self.missing = missing
        self.reason = reason
        if not missing:
            what = "can't make the control group of the sandbox"
        else:
            noun = "controller" if len(missing) == 1 else "controllers"
            names = ", ".join(f"'{name}'" for name in missing)
            what = f"cgroup v2 lacks the {noun} {names}"
        super().__init__(f"{what}: {reason}")


class NetworkUnavailableError(SandboxError):
    """A network that is joined to the outside can't be had on this machine, or not now."""


class NetworkLostError(SandboxError):
    """The helper of a network ended while the network was in use; nothing went on without it."""


class SpawnerLostError(SandboxError):
    """The spawner process is gone; what it was running is dead."""


_REMEDIES = {
    ("create namespaces", errno.EPERM): (
        "the executor needs CAP_SYS_ADMIN: run it as root, and in a container with all "
        "capabilities (docker run --privileged)"
    ),
    ("create the user namespace", errno.EPERM): (
        "unprivileged user namespaces are switched off: set the sysctl "
        "kernel.unprivileged_userns_clone=1 or kernel.apparmor_restrict_unprivileged_userns=0"
    ),
    ("mount /proc", errno.EPERM): (
        "the container hides parts of /proc: run it with an unmasked /proc"
    ),
    ("load the system call filter", errno.EINVAL): (
        "the kernel lacks CONFIG_SECCOMP_FILTER; build on a kernel that has it"
    ),
}


_NAMESPACE_STEPS = ("create namespaces", "create the user namespace")
_LIMITS = "/proc/sys/user"


def _remedy(step: str, error_number: int) -> str:
    """What a person can do about a failed step, as far as known."""
    known = _REMEDIES.get((step, error_number))
    if known is not None:
        return known
    if error_number == errno.ENOSPC and step in _NAMESPACE_STEPS:
        return _remedy_of_limits()
    if error_number == errno.ENOENT and step.startswith("bind"):
        return (
            "the path does not exist here: one of the store can be made again by a repair; one "
            "that a setting names is to be corrected there, or to end in '?'"
        )
    if error_number == errno.ENOSYS:
        return "the kernel is too old: Linux 6.1 is the oldest that is supported"
    return "run 'executor doctor' to see what this machine lacks" if error_number else ""


def _remedy_of_limits() -> str:
    """The kernel doesn't say which limit on namespaces it is; one of zero lets nobody through."""
    names = [name for name in _names_of_limits() if _limit(name) == "0"]
    if not names:
        return "a limit on namespaces is reached: raise the sysctls user.max_*_namespaces"
    if len(names) == 1:
        return f"the sysctl user.{names[0]} is 0: raise it"
    return f"the sysctls {', '.join(f'user.{name}' for name in names)} are 0: raise them"


def _names_of_limits() -> list[str]:
    try:
        return sorted(name for name in os.listdir(_LIMITS) if name.endswith("_namespaces"))
    except OSError:
        return []


def _limit(name: str) -> str:
    try:
        with open(f"{_LIMITS}/{name}") as file:
            return file.read().strip()
    except OSError:
        return ""
