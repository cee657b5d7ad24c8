"""A build hook of stock Nix that builds here: in the caller's store, in our sandbox.

The caller holds the locks of the outputs while it waits for us, and expects them to be valid at a
successful end. It enforces no limits on a hook, so that all of them are enforced here.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from executor.build.context import StoreThread
from executor.build.early import Launched
from executor.build.engine import Engine
from executor.build.events import BuildLogLine, BuildPhase, Event, Notice
from executor.build.failure import BuildFailureError
from executor.build.graph import run_graph
from executor.build.hook_protocol import phase_log_line
from executor.build.options import DerivationOptions, InvalidAttributeError
from executor.build.plan import Target, known_outputs
from executor.build.prepare import refuse_unbuildable
from executor.build.result import BuildResult
from executor.config import Settings
from executor.errors import ExecutorError, FormatError
from executor.formats.store_path import StorePath
from executor.formats.wire import EndOfStreamError, WireReader
from executor.protocols.hook_requests import (
    Answer,
    Try,
    message,
    read_settings,
    read_try,
    read_wanted,
    settings_for_caller,
)
from executor.protocols.hook_slots import take_slot
from executor.protocols.nested_service import serve_nested
from executor.protocols.outlet import Outlet
from executor.protocols.worker_messages import MessageReader
from executor.protocols.worker_protocol import LATEST
from executor.store.local import LocalStore
from executor.store.location import StoreLocation
from executor.store.settings import StoreSettings

_MAX_MEMORY = 256 << 20
_MACHINE = b"executor"
# How much is said of what is declined: only who wants to see much sees it.
_CHATTY = 5

Locate = Callable[[str | None], StoreLocation]


class DescriptorSource:
    """Blocking reads of a descriptor, in pieces that waste no call."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._buffer = b""

    def read(self, size: int, /) -> bytes:
        """Up to ``size`` bytes; none at the end."""
        if not self._buffer:
            self._buffer = os.read(self._descriptor, 1 << 16)
        data, self._buffer = self._buffer[:size], self._buffer[size:]
        return data


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What was accepted, and how it is to be built."""

    location: StoreLocation
    settings: Settings
    target: Target


class HookServer:
    """Answers one caller until something is accepted. ``say`` takes lines for it."""

    def __init__(
        self,
        ours: Settings,
        locate: Locate,
        *,
        slots: int,
        source: DescriptorSource,
        say: Callable[[bytes], object],
    ) -> None:
        self._ours = ours
        self._locate = locate
        self._slots = slots
        self._source = source
        self._say = say
        self._paid = 0

    def next_job(self) -> Job | None:
        """Answer until one is accepted; None if the caller wants nothing more.

        Raises ``FormatError`` for what is no request.
        """
        told = read_settings(WireReader(self._source, self._pay))
        try:
            location = self._locate(told.get("store"))
            settings = settings_for_caller(self._ours, told)
            store = LocalStore.open(location, settings=StoreSettings.of(settings))
        except (ExecutorError, OSError) as error:
            self._say(message(0, f"the executor can't build for this store: {error}"))
            self._say(Answer.DECLINE_PERMANENTLY.encode())
            return None
        reader = MessageReader(self._source, location.store_dir, LATEST, self._pay)
        with store:
            while (offer := self._next_offer(reader)) is not None:
                answer = self._answer(store, settings, offer)
                self._say(answer.encode())
                self._paid = 0
                if answer is Answer.ACCEPT:
                    self._say(_MACHINE)
                    target = _target(store, offer.drv_path, read_wanted(reader))
                    return Job(location=location, settings=settings, target=target)
        return None

    def _pay(self, size: int) -> None:
        self._paid += size
        if self._paid > _MAX_MEMORY:
            raise FormatError("what the caller of the build hook says is too long")

    def _next_offer(self, reader: MessageReader) -> Try | None:
        try:
            return read_try(reader)
        except EndOfStreamError:
            return None

    def _answer(self, store: LocalStore, settings: Settings, offer: Try) -> Answer:
        name = store.store_dir.render(offer.drv_path)
        try:
            store.add_temp_root(offer.drv_path)
            derivation = store.read_derivation(offer.drv_path)
            options = DerivationOptions.from_derivation(derivation, store.store_dir)
            refuse_unbuildable(name, derivation, options, settings)
        except (BuildFailureError, InvalidAttributeError, ExecutorError) as error:
            self._say(message(_CHATTY, f"the executor declines '{name}': {error}"))
            return Answer.DECLINE
        unknown = offer.features - settings.available_features
        if unknown or derivation.platform != offer.system:
            self._say(message(_CHATTY, f"the executor declines '{name}': not as it was offered"))
            return Answer.DECLINE
        return Answer.ACCEPT if take_slot(self._slots) else Answer.POSTPONE


def _target(store: LocalStore, drv_path: StorePath, wanted: frozenset[str]) -> Target:
    """What to build. Only who checks (old versions of Nix) asks for what is valid already."""
    known = known_outputs(store, store.read_derivation(drv_path))
    paths = [known[name] for name in wanted if name in known]
    is_check = bool(wanted) and len(store.query_valid(paths)) == len(wanted)
    return Target(drv_path=drv_path, outputs=wanted or None, check=is_check)


async def build_job(launched: Launched, job: Job, texts: Outlet, output: Outlet) -> BuildResult:
    """Build what was accepted: messages go to ``texts``, what the builder prints to ``output``."""

    def hear(event: Event) -> None:
        match event:
            case BuildLogLine(line=line):
                output.put(line + b"\n")
            case BuildPhase(phase=phase):
                output.put(phase_log_line(phase))
            case Notice(level=level, text=text):
                texts.put(message(level, text) + b"\n")

    engine = Engine(launched, job.settings, job.location, on_notice=hear, nested=serve_nested)
    store = StoreThread(
        lambda: LocalStore.open(job.location, settings=StoreSettings.of(job.settings))
    )
    try:
        await store.start()
        context = engine.context(store, job.settings, hear)
        context.caller = os.getppid()
        (result,) = await run_graph(context, [job.target], keep_going=False)
        return result
    finally:
        await store.close()
        await engine.close()
