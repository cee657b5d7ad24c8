"""Contents of the files below /etc that Nix makes inside its sandbox."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxFile:
    """``path`` is absolute inside the sandbox, ``mode`` the permission bits."""

    path: bytes
    content: bytes
    mode: int = 0o644


def sandbox_files(
    *, build_directory: bytes, isolated: bool, uid: int = 1000, gid: int = 100
) -> tuple[SandboxFile, ...]:
    """/etc/passwd and /etc/group, and /etc/hosts if the network is isolated, else nsswitch.conf.

    ``build_directory`` is the path inside the sandbox (home of the build user).
    """
    raise NotImplementedError
