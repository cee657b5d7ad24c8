"""Linux isolation for one program: namespaces, a private root, an unprivileged user, a filter.

Knows paths, ids and mounts; nothing of derivations or stores. A program is described by a
``SandboxSpec`` and started by a ``Spawner``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sandbox.cgroup import CgroupMembers, CgroupUsage
    from sandbox.errors import (
        CgroupError,
        NetworkLostError,
        NetworkUnavailableError,
        SandboxError,
        SetupFailedError,
        SpawnerLostError,
        SpecError,
    )
    from sandbox.launcher import Launched, launch
    from sandbox.live import add_inputs
    from sandbox.nat import NatNetwork, NetworkServer, find_programs
    from sandbox.nat_spec import LOCAL_RESOLVER, Contact, Contacts, NatSpec, NetworkRule
    from sandbox.process import Exit, Exited, ResourceUsage, SandboxProcess, Signaled, Spawner
    from sandbox.spec import Bind, Call, Cgroup, Exec, File, InputPath, Network, SandboxSpec

__all__ = [
    "LOCAL_RESOLVER",
    "Bind",
    "Call",
    "Cgroup",
    "CgroupError",
    "CgroupMembers",
    "CgroupUsage",
    "Contact",
    "Contacts",
    "Exec",
    "Exit",
    "Exited",
    "File",
    "InputPath",
    "Launched",
    "NatNetwork",
    "NatSpec",
    "Network",
    "NetworkLostError",
    "NetworkRule",
    "NetworkServer",
    "NetworkUnavailableError",
    "ResourceUsage",
    "SandboxError",
    "SandboxProcess",
    "SandboxSpec",
    "SetupFailedError",
    "Signaled",
    "Spawner",
    "SpawnerLostError",
    "SpecError",
    "add_inputs",
    "find_programs",
    "launch",
]

_MODULES = {
    "cgroup": ("CgroupMembers", "CgroupUsage"),
    "errors": (
        *("CgroupError", "NetworkLostError", "NetworkUnavailableError"),
        *("SandboxError", "SetupFailedError"),
        *("SpawnerLostError", "SpecError"),
    ),
    "launcher": ("Launched", "launch"),
    "live": ("add_inputs",),
    "nat": ("NatNetwork", "NetworkServer", "find_programs"),
    "nat_spec": ("LOCAL_RESOLVER", "Contact", "Contacts", "NatSpec", "NetworkRule"),
    "process": ("Exit", "Exited", "ResourceUsage", "SandboxProcess", "Signaled", "Spawner"),
    "spec": ("Bind", "Call", "Cgroup", "Exec", "File", "InputPath", "Network", "SandboxSpec"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> object:
    """Import what is asked for and no more: the spawner must start without asyncio (PEP 562)."""
    module = _MODULE_OF.get(name)
    if module is None:
        raise AttributeError(f"module 'sandbox' has no attribute '{name}'")
    return getattr(import_module(f"sandbox.{module}"), name)
