"""Contents of the files below /etc that Nix makes inside its sandbox."""

from __future__ import annotations

from dataclasses import dataclass

_HOSTS = b"127.0.0.1 localhost\n::1 localhost\n"
# Names are looked up in files and by DNS only, whatever else the host may have configured.
_NSSWITCH = b"hosts: files dns\nservices: files\n"


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

    ``build_directory`` is the path inside the sandbox, and home of root and of the build user.
    With a network that reaches the outside, /etc/hosts, resolv.conf and services come from whoever
    composes the sandbox.
    """
    passwd = (
        b"root:x:0:0:Nix build user:%b:/noshell\n"
        b"nixbld:x:%d:%d:Nix build user:%b:/noshell\n"
        b"nobody:x:65534:65534:Nobody:/:/noshell\n"
    ) % (build_directory, uid, gid, build_directory)
    group = b"root:x:0:\nnixbld:!:%d:\nnogroup:x:65534:\n" % gid
    if isolated:
        network = SandboxFile(path=b"/etc/hosts", content=_HOSTS)
    else:
        network = SandboxFile(path=b"/etc/nsswitch.conf", content=_NSSWITCH)
    return (
        SandboxFile(path=b"/etc/passwd", content=passwd),
        SandboxFile(path=b"/etc/group", content=group),
        network,
    )
