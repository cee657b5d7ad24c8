"""What all builds of one process share, whoever asked for them: spawners, threads, ids.

Beside it every run has a store of its own, with temporary roots that end with it, settings, slots
and listeners: an ``Executor`` of the API has one such run, a daemon one for each client.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from itertools import count
from typing import TYPE_CHECKING

from executor.build.context import BuildContext, Networks, Spawners, StoreThread
from executor.build.events import Event, Notice
from executor.build.id_slots import build_users
from executor.build.spares import SpareDirectories
from executor.build.users import RANGE_SIZE, BuildUsers, UserPool
from executor.build.work_threads import WorkThreads
from executor.config import Settings
from executor.errors import StoreError
from executor.store.location import StoreLocation
from executor.store.signing import load_secret_keys
from sandbox import Launched, Spawner

if TYPE_CHECKING:
    from executor.build.nested import NestedService, Restriction


class Engine:
    """Made in the main thread, used in the event loop; ``close`` ends it.

    ``nested`` serves builders that build themselves (``recursive-nix``).
    """

    def __init__(
        self,
        launched: Launched,
        settings: Settings,
        location: StoreLocation,
        *,
        on_notice: Callable[[Notice], None],
        nested: Callable[[Engine, Settings, Restriction], NestedService] | None = None,
    ) -> None:
        self._spawners = Spawners(Spawner(launched))
        self._workers = WorkThreads(os.cpu_count() or 1, "output")
        self.location = location
        self._nested = nested
        self._build_root = (
            settings.build_dir or location.build_dir or f"{location.state_dir}/builds"
        )
        self._spares = SpareDirectories(self._build_root)
        self._settings = settings
        self._on_notice = on_notice
        self._users: BuildUsers | None = None
        self._network_users: UserPool | None = None
        self._resting: asyncio.Future[None] | None = None
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
            nested=None if self._nested is None else partial(self._nested, self, settings),
        )

    def _user_pool(self) -> BuildUsers:
        """One for all, so that each id is looked at once; made when there is somebody to build."""
        if self._users is None:
            self._users = build_users(
                self.location,
                self._settings,
                lambda text: self._on_notice(Notice(level=1, text=text)),
            )
        return self._users

    def _network_user_pool(self) -> UserPool:
        """Ids of those who run networks, beside those of builds."""
        if self._network_users is None:
            settings = self._settings
            self._network_users = UserPool(
                state_dir=self.location.state_dir,
                group="",
                range_start=settings.start_id + settings.id_count + RANGE_SIZE,
                on_busy=lambda text: self._on_notice(Notice(level=1, text=text)),
            )
        return self._network_users

    def tell(self, notice: Notice) -> None:
        """Something for whoever runs us, in the event loop."""
        self._on_notice(notice)

    def rest(self) -> None:
        """Give up what is kept for the next build, when none runs and none is expected soon."""
        self._resting = asyncio.ensure_future(self._workers.run(self._drop_spares))

    def _drop_spares(self) -> None:
        """In a thread; what can't be deleted is deleted by who starts next."""
        with suppress(StoreError, OSError):
            self._spares.drop()

    async def close(self) -> None:
        """End the spawners and networks, and the threads once they are done."""
        await self._spawners.close()
        await self._networks.close()
        self._spares.close()
        self._workers.close()
