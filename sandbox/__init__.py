"""Linux isolation for one program: namespaces, a private root, an unprivileged user, a filter.

Knows paths, ids and mounts; nothing of derivations or stores. A program is described by a
``SandboxSpec`` and started by a ``Spawner``.
"""

from sandbox.errors import SandboxError, SetupFailedError, SpawnerLostError, SpecError
from sandbox.process import Exit, Exited, ResourceUsage, SandboxProcess, Signaled, Spawner
from sandbox.spec import Bind, Call, Exec, File, InputPath, Network, SandboxSpec

__all__ = [
    "Bind",
    "Call",
    "Exec",
    "Exit",
    "Exited",
    "File",
    "InputPath",
    "Network",
    "ResourceUsage",
    "SandboxError",
    "SandboxProcess",
    "SandboxSpec",
    "SetupFailedError",
    "Signaled",
    "Spawner",
    "SpawnerLostError",
    "SpecError",
]
