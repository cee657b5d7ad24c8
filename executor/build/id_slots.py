"""Slots of 65536 ids each: the setting ``auto-allocate-uids`` (rows U2 and U3).

Slots are locked in the store's ``userpool2`` as Nix does, so that both can share them, and
machine-wide as every lease is. A build that asks for ``uid-range`` gets all ids of its slot, any
other one the first. Stores in other directories begin with the last slot, because a Nix that works
on another store doesn't see the locks of this one, and begins with the first.
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Callable

from executor.build.id_locks import BLOCK, MACHINE_POOL, IdLocks, make_pool, processes_of
from executor.build.users import BuildUser, BuildUsers, UserLease, UserPool
from executor.errors import ConfigError
from executor.settings import Settings
from executor.store.location import StoreLocation

SLOT_SIZE = BLOCK
_END_OF_IDS = (1 << 32) - 1


class SlotPool:
    """Hands out slots for one store; ``backwards`` tries the last one first.

    ``on_busy`` is told of a slot that is skipped because a stray process uses one of its ids.
    Raises ``ConfigError`` for ids that can't be used.
    """

    def __init__(
        self,
        *,
        state_dir: str,
        start: int,
        count: int,
        on_busy: Callable[[str], None],
        backwards: bool = False,
        machine_pool: str = MACHINE_POOL,
    ) -> None:
        _check_ids(start, count)
        self._start = start
        slots = range(count // SLOT_SIZE)
        self._order = slots[::-1] if backwards else slots
        self._store_pool = os.path.join(state_dir, "userpool2")
        self._machine_pool = machine_pool
        self._on_busy = on_busy
        self._accounts: dict[int, str] | None = None

    def try_acquire(self, count: int = 1) -> UserLease | None:
        """Lease the first ``count`` ids of a free slot, or return ``None`` if there is none."""
        make_pool(self._machine_pool)
        make_pool(self._store_pool)
        for slot in self._order:
            lease = self._try_slot(slot, count)
            if lease is not None:
                return lease
        return None

    def _try_slot(self, slot: int, count: int) -> UserLease | None:
        first = self._start + slot * SLOT_SIZE
        ids = range(first, first + SLOT_SIZE)
        locks = IdLocks()
        lock = os.path.join(self._store_pool, f"slot-{slot}")
        if not (locks.take(lock) and locks.take_ids(self._machine_pool, ids)):
            locks.release()
            return None
        stray = next(processes_of(ids), None)
        if stray is not None:
            locks.release()
            self._on_busy(f"the ids from {first} are in use by process {stray}; skipping them")
            return None
        try:
            self._refuse_accounts(ids)
        except ConfigError:
            locks.release()
            raise
        return UserLease(BuildUser(uid=first, gid=first, count=count), locks)

    def _refuse_accounts(self, ids: range) -> None:
        """Somebody's id must not be a builder's (row 17); the words are Nix's."""
        if self._accounts is None:
            first = self._start
            last = first + len(self._order) * SLOT_SIZE
            self._accounts = {
                entry.pw_uid: entry.pw_name
                for entry in pwd.getpwall()
                if first <= entry.pw_uid < last
            }
        for uid, name in self._accounts.items():
            if uid in ids:
                raise ConfigError(
                    f"auto-allocated UID {uid} clashes with existing user account '{name}'"
                )


def _check_ids(start: int, count: int) -> None:
    if start < SLOT_SIZE:
        raise ConfigError(f"the setting 'start-id' must not be {start}: system ids are below 65536")
    if count < SLOT_SIZE or count % SLOT_SIZE:
        raise ConfigError(f"the setting 'id-count' must be a multiple of {SLOT_SIZE}, not {count}")
    if start + count > _END_OF_IDS:
        raise ConfigError("the settings 'start-id' and 'id-count' go beyond the last id")


def build_users(
    location: StoreLocation, settings: Settings, on_busy: Callable[[str], None]
) -> BuildUsers:
    """Where the builds of a store get their users from. Raises ``ConfigError``."""
    if settings.auto_allocate_uids:
        return SlotPool(
            state_dir=location.state_dir,
            start=settings.start_id,
            count=settings.id_count,
            on_busy=on_busy,
            backwards=not location.is_default_layout,
        )
    return UserPool(
        state_dir=location.state_dir,
        group=settings.build_users_group if location.is_default_layout else "",
        range_start=settings.start_id + settings.id_count,
        on_busy=on_busy,
    )
