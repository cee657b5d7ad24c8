"""Which namespaces a sandbox gets, and their names."""

from __future__ import annotations

from sandbox import syscalls
from sandbox.network import bring_loopback_up
from sandbox.spec import Network, SandboxSpec
from sandbox.step import Step

_ALWAYS = syscalls.CLONE_NEWPID | syscalls.CLONE_NEWIPC | syscalls.CLONE_NEWUTS


def clone_flags(spec: SandboxSpec, *, with_template: bool) -> int:
    """All namespaces but two, and but that of mounts where there is a template to start from.

    The user namespace comes last, see ``privileges``; and the root of a namespace of control
    groups is the group of who makes it, so that the child makes it itself.
    """
    isolated = spec.network is Network.ISOLATED
    mounts = 0 if with_template else syscalls.CLONE_NEWNS
    return _ALWAYS | mounts | (syscalls.CLONE_NEWNET if isolated else 0)


def set_up_namespaces(spec: SandboxSpec) -> None:
    """Control groups, host and domain name, and loopback in a network namespace of its own."""
    with Step("create the namespace of control groups", "unshare"):
        syscalls.unshare(syscalls.CLONE_NEWCGROUP)
    with Step("set the host name", "sethostname"):
        syscalls.sethostname(spec.hostname.encode())
        syscalls.setdomainname(spec.domainname.encode())
    if spec.network is Network.ISOLATED:
        with Step("bring up loopback", "ioctl"):
            bring_loopback_up()
