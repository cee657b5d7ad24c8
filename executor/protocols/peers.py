"""Who is on the other side of a socket, and what they may do (rows P31, P32; attack row 152).

The kernel tells who connected (``SO_PEERCRED``: ids of the moment of ``connect``, in the initial
user namespace), before a byte of theirs is read. Source: ``authPeer`` in ``daemon.cc`` of Nix.
"""

from __future__ import annotations

import contextlib
import grp
import pwd
import socket
import struct
from collections.abc import Collection
from dataclasses import dataclass

from executor.config import Settings
from executor.protocols.errors import RefusedError

_credentials = struct.Struct("3i")
_SO_PEERGROUPS = 59
# As much as Python reads of a socket option: who has more groups than 256 is known by name only.
_MOST_BYTES = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A process that connected: its ids then. ``groups`` are the supplementary ones."""

    pid: int
    uid: int
    gid: int
    groups: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """Somebody who may connect. ``name`` is for messages."""

    name: str
    trusted: bool
    pid: int = 0
    uid: int = 0


def peer_of(connection: socket.socket) -> Peer:
    """Whoever connected. Raises ``OSError``."""
    data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _credentials.size)
    pid, uid, gid = (number & 0xFFFFFFFF for number in _credentials.unpack(data))
    raw = b""
    with contextlib.suppress(OSError):
        raw = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _MOST_BYTES)
    groups = frozenset(number for (number,) in struct.iter_unpack("I", raw[: len(raw) & ~3]))
    return Peer(pid=pid, uid=uid, gid=gid, groups=groups)


def admit(peer: Peer, settings: Settings, build_ids: range) -> Client:
    """What a peer may do by the settings. Raises ``RefusedError`` for one that may not connect.

    Builders may not, whatever the settings say: members of the build users' group, and ids of the
    range that is used where there is no such group (``build_ids``).
    """
    name, group = _user_name(peer.uid), _group_name(peer.gid)
    trusted = _matches(name, group, settings.trusted_users)
    allowed = trusted or _matches(name, group, settings.allowed_users)
    if not allowed or _is_builder(peer, name, group, settings.build_users_group, build_ids):
        raise RefusedError(f"user '{name}' is not allowed to connect to the Nix daemon")
    return Client(name=name, trusted=trusted, pid=peer.pid, uid=peer.uid)


def _is_builder(peer: Peer, name: str, group: str, build_group: str, build_ids: range) -> bool:
    if peer.uid in build_ids or peer.gid in build_ids:
        return True
    if not build_group:
        return False
    if group == build_group:
        return True
    try:
        entry = grp.getgrnam(build_group)
    except KeyError:
        return False
    if peer.uid == 0:
        return False  # root may be in any group, and has nothing to gain
    return entry.gr_gid in peer.groups or name in entry.gr_mem


def _matches(name: str, group: str, users: Collection[str]) -> bool:
    if "*" in users or name in users:
        return True
    return any(_in_group(name, group, user[1:]) for user in users if user.startswith("@"))


def _in_group(name: str, group: str, wanted: str) -> bool:
    if group == wanted:
        return True
    try:
        return name in grp.getgrnam(wanted).gr_mem
    except KeyError:
        return False


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _group_name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
