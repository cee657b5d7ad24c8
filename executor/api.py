"""The Python API: build derivations from a program, as the command line does.

::

    async with Executor(store="/srv/store", max_jobs=4) as executor:
        result = await executor.build("/nix/store/…-hello.drv", outputs=["out"])
        print(result.status, result.outputs["out"])
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from functools import partial
from itertools import count
from types import TracebackType

from executor.build.asking import make_asking_plan
from executor.build.context import BuildContext, StoreThread
from executor.build.early import launch_spawner
from executor.build.engine import Engine
from executor.build.events import Event, GraphPlanned, Listener, Watched
from executor.build.graph import plan_targets, planned, run_graph
from executor.build.plan import Plan, Target, make_plan
from executor.build.result import BuildResult, BuildStatus, FailureCause
from executor.build.substitution import Fetched, open_substitution
from executor.config import Settings, load_settings
from executor.derivation import Derivation, derivation_path
from executor.errors import UsageError
from executor.formats.store_path import StorePath
from executor.protocols.nested_service import serve_nested
from executor.store.local import LocalStore
from executor.store.location import StoreLocation, parse_store_url
from executor.store.settings import StoreSettings
from sandbox import Launched

__all__ = [
    "BuildResult",
    "BuildStatus",
    "Derivation",
    "Event",
    "Executor",
    "FailureCause",
    "StorePath",
    "Target",
]


class Executor:
    """Builds derivations in one store. Use it as an asynchronous context manager.

    ``store`` is a store URL as ``--store`` takes it (``None``: the system's). ``settings`` default
    to what nix.conf and the environment say; ``max_jobs`` overrides one of them. ``spawner`` is one
    that ``early.launch_spawner`` began before. Cancelling a task
    that awaits ``build`` kills its builder and leaves the store clean.

    Must be entered as root. Raises ``ConfigError`` and ``StoreError`` on entering.
    """

    def __init__(
        self,
        *,
        store: str | None = None,
        settings: Settings | None = None,
        max_jobs: int | None = None,
        spawner: Launched | None = None,
    ) -> None:
        if settings is None:
            settings = load_settings(environ=os.environ).settings
        if max_jobs is not None:
            settings = replace(settings, max_jobs=max_jobs)
        self.settings = settings
        self.location: StoreLocation = parse_store_url(store, os.environ)
        self._listeners: list[Listener] = []
        self._watchers: list[Listener] = []
        self._launched = spawner
        self._context: BuildContext | None = None
        self._engine: Engine

    async def __aenter__(self) -> Executor:
        if os.geteuid() != 0:
            raise UsageError("building needs root; run this as root, for example with sudo")
        launched, self._launched = self._launched, None
        self._engine = Engine(
            launched or launch_spawner(self.location),
            self.settings,
            self.location,
            on_notice=self._emit,
            nested=serve_nested,
        )
        store = StoreThread(self._open_store)
        try:
            await store.start()
            self._context = self._engine.context(store, self.settings, self._emit)
            self._context.substitution = open_substitution(
                self.settings,
                store,
                emit=self._emit,
                number=self._context.new_build_id,
                watch=self._watch if self._watchers else None,
            )
        except BaseException:
            await store.close()
            await self._engine.close()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        context, self._context = self._context, None
        if context is None:
            return
        if context.substitution is not None:
            await context.substitution.close()
        await context.store.close()
        await self._engine.close()

    def subscribe(self, listener: Listener, *, watch: bool = False) -> None:
        """Call ``listener`` with every event from now on, in the event loop's thread.

        With ``watch``, which must be asked for before the executor is entered, it is also told
        how questions to caches and downloads go (``Watched``).

        An exception of a listener ends the run and reaches the caller: it is a bug, and hiding it
        would hide what the listener was to show.
        """
        self._listeners.append(listener)
        if watch:
            self._watchers.append(listener)

    async def build(
        self,
        derivation: str | StorePath | Derivation,
        outputs: Collection[str] | None = None,
        *,
        check: bool = False,
        store_derivation: bool = True,
    ) -> BuildResult:
        """Build one derivation and what it needs.

        ``derivation`` is a store path, or a value, which is written to the store first, or not:
        without ``store_derivation`` only its inputs have to be there, and the output paths in it
        are believed.
        ``outputs`` default to all of them. ``check`` builds them once more although they are
        valid, and compares: an output that differs is ``NOT_DETERMINISTIC``.

        The verdict is in the result; raises ``StoreError`` when the store fails, and
        ``FormatError`` for a path that is none.
        """
        given = derivation if isinstance(derivation, Derivation) else None
        if given is not None and not store_derivation:
            drv_path = derivation_path(given, self.location.store_dir)
        else:
            given, drv_path = None, await self._drv_path(derivation)
        target = Target(
            drv_path=drv_path,
            outputs=None if outputs is None else frozenset(outputs),
            check=check,
            derivation=given,
        )
        return (await self.build_all([target]))[0]

    async def build_all(
        self, targets: Sequence[Target], *, keep_going: bool | None = None, repair: bool = False
    ) -> list[BuildResult]:
        """Build several targets, ``max_jobs`` at a time; one result a target, in their order.

        ``repair``: outputs with bad contents, and bad paths that they refer to, are fetched or
        built again and put in their place.
        """
        keep = self.settings.keep_going if keep_going is None else keep_going
        return await run_graph(self._running, targets, keep_going=keep, repair=repair)

    async def repair_path(self, path: StorePath) -> bool:
        """Put good contents in the place of a valid path's: fetched, or built by its deriver.

        Tells whether its contents are good now.
        """
        context = self._running
        store, substitution = context.store, context.substitution
        if (
            substitution is not None
            and await substitution.fetch(path, repair=True) is Fetched.VALID
        ):
            return True
        deriver = await store.call(store.store.query_deriver, path)
        if deriver is None or not await store.call(store.store.is_valid, deriver):
            return False
        await self.build_all([Target(drv_path=deriver)], repair=True)
        return await store.call(store.store.has_good_contents, path)

    async def plan(self, targets: Iterable[Target]) -> Plan:
        """What ``build_all`` would do."""
        context = self._running
        return await plan_targets(
            context.store,
            context.substitution,
            list(targets),
            always_allowed=self.settings.always_allow_substitutes,
        )

    async def preview(self, targets: Sequence[Target]) -> GraphPlanned:
        """What ``build_all`` would build and fetch, without the way there."""
        return planned(await self.plan(targets))

    async def write_derivation(self, derivation: Derivation) -> StorePath:
        """Put a derivation into the store and say where it is."""
        store = self._running.store
        return await store.call(store.store.write_derivation, derivation)

    @property
    def _running(self) -> BuildContext:
        if self._context is None:
            raise RuntimeError("this Executor is not entered: use 'async with'")
        return self._context

    async def _drv_path(self, derivation: str | StorePath | Derivation) -> StorePath:
        if isinstance(derivation, Derivation):
            return await self.write_derivation(derivation)
        if isinstance(derivation, StorePath):
            return derivation
        return self.location.store_dir.parse(derivation)

    def _open_store(self) -> LocalStore:
        return LocalStore.open(self.location, settings=StoreSettings.of(self.settings))

    def _emit(self, event: Event) -> None:
        for listener in self._listeners:
            listener(event)

    def _watch(self, event: Watched) -> None:
        for watcher in self._watchers:
            watcher(event)


async def plan_only(
    targets: Sequence[Target],
    *,
    location: StoreLocation,
    settings: Settings,
    listener: Listener = lambda _event: None,
) -> Plan:
    """What building the targets would do, without anything that building needs."""
    store = StoreThread(lambda: LocalStore.open(location, settings=StoreSettings.of(settings)))
    await store.start()
    try:
        numbers = count(1)
        substitution = open_substitution(
            settings, store, emit=listener, number=lambda: next(numbers)
        )
        try:
            if substitution is None:
                return await store.call(partial(make_plan, store.store, targets, lenient=True))
            always = settings.always_allow_substitutes
            return await make_asking_plan(store, substitution, targets, always_allowed=always)
        finally:
            if substitution is not None:
                await substitution.close()
    finally:
        await store.close()
