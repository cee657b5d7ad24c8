"""Initial file systems: the ``newc`` form of cpio that the kernel unpacks at boot.

Documentation/driver-api/early-userspace/buffer-format.rst of the kernel describes it.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable

_MAGIC = b"070701"
_END = b"TRAILER!!!"


def archive(entries: Iterable[tuple[str, int, bytes]]) -> bytes:
    """The archive of (path, mode with type, contents); directories come before what is in them."""
    members = [_member(number, *entry) for number, entry in enumerate(entries, 1)]
    return b"".join([*members, _member(0, _END.decode(), 0, b"")])


def directory(path: str) -> tuple[str, int, bytes]:
    """The entry of a directory."""
    return path, stat.S_IFDIR | 0o755, b""


def program(path: str, content: bytes) -> tuple[str, int, bytes]:
    """The entry of a file that can be run."""
    return path, stat.S_IFREG | 0o755, content


def _member(inode: int, path: str, mode: int, content: bytes) -> bytes:
    name = path.encode() + b"\0"
    links = 2 if stat.S_ISDIR(mode) else 1
    # inode, mode, uid, gid, links, time, size, device, device, rdev, rdev, length of name, check
    fields = (inode, mode, 0, 0, links, 0, len(content), 0, 0, 0, 0, len(name), 0)
    head = _MAGIC + b"".join(b"%08x" % field for field in fields)
    return _padded(head + name) + _padded(content)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)
