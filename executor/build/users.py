"""Build users: leases of ids that no other running build on this machine has.

Members of ``build-users-group`` are used where that group exists (and locked in the store's
``userpool`` as Nix does, so that both can share them); elsewhere ids come from a range of their
own, so that a fresh machine needs no set-up. Because two stores on one machine must not use one id
at once, every lease also holds a machine-wide lock below ``/run``.

Stores in other directories (chroot stores) take the range, too: a Nix that works on another store
doesn't see the locks of this one, and kills every process of the member that it picks.
"""

from __future__ import annotations

import errno
import fcntl
import grp
import os
import pwd
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from executor.errors import ConfigError, StoreError
from executor.store.descriptors import make_directories

MACHINE_POOL = "/run/executor/userpool"
_RANGE_SIZE = 1024
_LOCK_FLAGS = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildUser:
    """Host ids under which a builder runs. Never 0, never the executor's own."""

    uid: int
    gid: int


class UserLease:
    """A held build user. ``release`` gives it back; leaving the context does so, too."""

    def __init__(self, user: BuildUser, descriptors: tuple[int, ...]) -> None:
        self.user = user
        self._descriptors = descriptors

    def release(self) -> None:
        descriptors, self._descriptors = self._descriptors, ()
        for descriptor in descriptors:
            os.close(descriptor)


class UserPool:
    """Hands out build users for one store.

    ``group`` is the setting ``build-users-group``; ``range_start`` the first id to use where that
    group doesn't exist. ``on_busy`` is told of an id that is skipped because a stray process uses
    it. Raises ``ConfigError`` for a group that can't be used.
    """

    def __init__(
        self,
        *,
        state_dir: str,
        group: str,
        range_start: int,
        on_busy: Callable[[str], None],
        machine_pool: str = MACHINE_POOL,
    ) -> None:
        members = _group_members(group)
        self._from_group = members is not None
        self._users = members or _range_users(range_start)
        self._store_pool = os.path.join(state_dir, "userpool")
        self._machine_pool = machine_pool
        self._on_busy = on_busy
        self._checked: set[int] = set()

    def try_acquire(self) -> UserLease | None:
        """Lease a free build user, or return ``None`` when all are in use."""
        _make_pool(self._machine_pool)
        if self._from_group:
            _make_pool(self._store_pool)
        for user in self._users:
            lease = self._try_user(user)
            if lease is not None:
                return lease
        return None

    def _try_user(self, user: BuildUser) -> UserLease | None:
        pools = [self._machine_pool, *([self._store_pool] if self._from_group else [])]
        held: list[int] = []
        for pool in pools:
            descriptor = _try_lock(os.path.join(pool, str(user.uid)))
            if descriptor is None:
                break
            held.append(descriptor)
        lease = UserLease(user, tuple(held))
        if len(held) < len(pools):
            lease.release()
            return None
        if user.uid not in self._checked:
            stray = next(_processes_of(user.uid), None)
            if stray is not None:
                lease.release()
                self._on_busy(f"build user {user.uid} is in use by process {stray}; skipping it")
                return None
            self._checked.add(user.uid)
        return lease


@contextmanager
def leased(lease: UserLease) -> Iterator[BuildUser]:
    """Give ``lease`` back when the block ends."""
    try:
        yield lease.user
    finally:
        lease.release()


def _group_members(group: str) -> tuple[BuildUser, ...] | None:
    """Members of the build users group, or ``None`` where the group is unset or doesn't exist."""
    if not group:
        return None
    try:
        entry = grp.getgrnam(group)
    except KeyError:
        return None
    if not entry.gr_mem:
        raise ConfigError(
            f"the build users group '{group}' has no members; add users to it or set "
            "'build-users-group' to the empty string to use ids from a range"
        )
    return tuple(_member(name, group, entry.gr_gid) for name in entry.gr_mem)


def _member(name: str, group: str, gid: int) -> BuildUser:
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        raise ConfigError(f"the user '{name}' in the group '{group}' does not exist") from None
    if entry.pw_uid in (0, os.getuid(), os.geteuid()) or gid == 0:
        raise ConfigError(f"the user '{name}' must not be a member of the group '{group}'")
    return BuildUser(uid=entry.pw_uid, gid=gid)


def _range_users(start: int) -> tuple[BuildUser, ...]:
    if start < 1000:
        raise ConfigError(f"the range of build ids must not start at {start}: it holds system ids")
    return tuple(BuildUser(uid=uid, gid=uid) for uid in range(start, start + _RANGE_SIZE))


def _make_pool(directory: str) -> None:
    make_directories(directory)


def _try_lock(path: str) -> int | None:
    """Open and lock ``path`` without waiting; the descriptor, or ``None`` where it is locked."""
    try:
        descriptor = os.open(path, _LOCK_FLAGS, 0o600)
    except OSError as error:
        raise StoreError(f"can't open the user lock '{path}': {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return None
        raise
    return descriptor


def _processes_of(uid: int) -> Iterator[int]:
    """Process ids on this machine that run under ``uid``."""
    with os.scandir("/proc") as entries:
        for entry in entries:
            if not entry.name.isdigit():
                continue
            try:
                owner = entry.stat(follow_symlinks=False).st_uid
            except OSError:
                continue  # it ended meanwhile
            if owner == uid and not _is_zombie(entry.path):
                yield int(entry.name)


def _is_zombie(process: str) -> bool:
    """Whether a process has ended, or is gone: it can't touch anything any more."""
    try:
        with open(os.path.join(process, "stat"), "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] in (b"Z", b"X")
    except OSError:
        return True
