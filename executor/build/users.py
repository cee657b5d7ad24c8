"""Build users: leases of ids that no other running build on this machine has.

Members of ``build-users-group`` are used where that group exists (and locked in the store's
``userpool`` as Nix does, so that both can share them); elsewhere ids come from a range of their
own, so that a fresh machine needs no set-up. Because two stores on one machine must not use one id
at once, every lease also holds a machine-wide lock below ``/run``.

Stores in other directories (chroot stores) take the range, too: a Nix that works on another store
doesn't see the locks of this one, and kills every process of the member that it picks.
"""

from __future__ import annotations

import grp
import os
import pwd
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from executor.build.id_locks import MACHINE_POOL, IdLocks, make_pool, processes_of
from executor.errors import ConfigError

RANGE_SIZE = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildUser:
    """Host ids under which a builder runs: ``count`` from ``uid``, and as many from ``gid``.

    Never 0, never the executor's own.
    """

    uid: int
    gid: int
    count: int = 1

    @property
    def uids(self) -> range:
        """All user ids of the build."""
        return range(self.uid, self.uid + self.count)


class UserLease:
    """A held build user. ``release`` gives it back; leaving the context does so, too."""

    def __init__(self, user: BuildUser, locks: IdLocks) -> None:
        self.user = user
        self._locks = locks

    def release(self) -> None:
        self._locks.release()


class BuildUsers(Protocol):
    """Where build users come from."""

    def try_acquire(self, count: int = 1) -> UserLease | None:
        """Lease a free build user with ``count`` ids; ``None`` when all are in use."""


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

    def try_acquire(self, count: int = 1) -> UserLease | None:
        """Lease a free build user, or return ``None`` when all are in use.

        Here each has one id; who needs more must not ask.
        """
        if count != 1:
            raise ConfigError("more than one id for a build is for 'auto-allocate-uids' alone")
        make_pool(self._machine_pool)
        if self._from_group:
            make_pool(self._store_pool)
        for user in self._users:
            lease = self._try_user(user)
            if lease is not None:
                return lease
        return None

    def _try_user(self, user: BuildUser) -> UserLease | None:
        locks = IdLocks()
        taken = locks.take_ids(self._machine_pool, user.uids)
        if taken and self._from_group:
            taken = locks.take(os.path.join(self._store_pool, str(user.uid)))
        if not taken:
            locks.release()
            return None
        if user.uid not in self._checked:
            stray = next(processes_of(user.uids), None)
            if stray is not None:
                locks.release()
                self._on_busy(f"build user {user.uid} is in use by process {stray}; skipping it")
                return None
            self._checked.add(user.uid)
        return UserLease(user, locks)


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
    return tuple(BuildUser(uid=uid, gid=uid) for uid in range(start, start + RANGE_SIZE))
