"""What all builds of one process share, whoever asked for them: spawners, threads, ids.

Beside it every run has a store of its own, with temporary roots that end with it, settings, slots
and listeners: an ``Executor`` of the API has one such run, a daemon one for each client.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count

from executor.build.context import BuildContext, Networks, Spawners, StoreThread
from executor.build.events import Event, Notice
from executor.build.id_slots import build_users
from executor.build.spares import SpareDirectories
from executor.build.users import RANGE_SIZE, BuildUsers, UserPool
from executor.config import Settings
from executor.store.location import StoreLocation
from executor.store.signing import load_secret_keys
from sandbox import Launched, Spawner


class Engine:
    """Made in the main thread, used in the event loop; ``close`` ends it."""

    def __init__(
        self,
        launched: Launched,
        settings: Settings,
        location: StoreLocation,
        *,
        on_notice: Callable[[Notice], None],
    ) -> None:
        self._spawners = Spawners(Spawner(launched))
        self._workers = ThreadPoolExecutor(
            max_workers=os.cpu_count() or 1, thread_name_prefix="output"
        )
        self._location = location
        self._build_root = (
            settings.build_dir or location.build_dir or f"{location.state_dir}/builds"
        )
        self._spares = SpareDirectories(self._build_root)
        self._settings = settings
        self._on_notice = on_notice
        self._users: BuildUsers | None = None
        self._network_users: UserPool | None = None
        self._networks = Networks(self._network_user_pool)

    def context(
        self,
        store: StoreThread,
        settings: Settings,
        emit: Callable[[Event], None],
        ids: Iterator[int] | None = None,
    ) -> BuildContext:
        """The context of one run. Raises ``ConfigError``."""
        return BuildContext(
            settings=settings,
            store=store,
            users=self._user_pool(),
            spawners=self._spawners,
            networks=self._networks,
            slots=asyncio.Semaphore(max(settings.max_jobs, 1)),
            workers=self._workers,
            emit=emit,
            keys=load_secret_keys(settings.secret_key_files),
            build_root=self._build_root,
            spares=self._spares,
            environ=os.environb,
            ids=ids if ids is not None else count(1),
        )

    def _user_pool(self) -> BuildUsers:
        """One for all, so that each id is looked at once; made when there is somebody to build."""
        if self._users is None:
            self._users = build_users(
                self._location,
                self._settings,
                lambda text: self._on_notice(Notice(level=1, text=text)),
            )
        return self._users

    def _network_user_pool(self) -> UserPool:
        """Ids of those who run networks, beside those of builds."""
        if self._network_users is None:
            settings = self._settings
            self._network_users = UserPool(
                state_dir=self._location.state_dir,
                group="",
                range_start=settings.start_id + settings.id_count + RANGE_SIZE,
                on_busy=lambda text: self._on_notice(Notice(level=1, text=text)),
            )
        return self._network_users

    async def close(self) -> None:
        """End the spawners and networks, and the threads once they are done."""
        await self._spawners.close()
        await self._networks.close()
        self._spares.close()
        self._workers.shutdown()
