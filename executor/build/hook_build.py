"""One derivation that a build hook takes: offered under its locks, followed, looked at in the end.

Read ``build_by_hook`` and ``_Offer.settle`` first. The hook brings the outputs into the store
itself; a build elsewhere takes no slot here.

Nix leaves limits of time to the other machine. That one may be out of reach, so they hold here,
too; whatever comes from the hook is a sign of life.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from signal import SIGKILL

from executor.build.context import BuildContext
from executor.build.events import (
    BuildStarted,
    Notice,
    WaitingForLock,
    WaitingForMachine,
)
from executor.build.failure import BuildFailureError, unable, unusable
from executor.build.hook import Accepted, BuildHooks
from executor.build.hook_protocol import (
    BuilderLine,
    Reply,
    build_message,
    phase_log_line,
    read_line,
)
from executor.build.log import LineBuffer, LogEntry, MessageLine, PhaseLine, TextLine
from executor.build.messages import cannot_build
from executor.build.options import DerivationOptions, InvalidAttributeError
from executor.build.plan import Node, known_outputs
from executor.build.prepare import (
    Present,
    input_closure,
    missing_outputs,
    refuse_unbuildable,
)
from executor.build.program import chunks, rest_of_pipe, status_text
from executor.build.realised import record_realisations
from executor.build.result import BuildResult, BuildStatus, FailureCause
from executor.build.runner import Ending, Outcome
from executor.build.shared import emit_entry, known_paths, limits_of, lock_paths, open_log
from executor.build.verdict import builder_failure
from executor.config import Settings
from executor.derivation import Derivation, DerivationKind
from executor.errors import ExecutorError, FormatError
from executor.formats.store_path import StorePath
from executor.store.local import LocalStore
from executor.store.locks import PathLocks, lock_holders

# Waiting for a lock: seconds between two tries, growing up to the longest.
_POLL, _POLL_LONGEST = 0.05, 1.0
# What the other exit codes of a hook mean; Nix's own hook knows only 0 and 1 by now.
_MEANINGS = {
    100: (BuildStatus.PERMANENT_FAILURE, FailureCause.EXIT_CODE),
    101: (BuildStatus.TIMED_OUT, FailureCause.TIMEOUT),
}


async def build_by_hook(context: BuildContext, node: Node, hooks: BuildHooks) -> BuildResult | None:
    """Offer a derivation whose inputs are valid to the hook; nothing if it is to be built here.

    As ``build_node`` it never raises for what the derivation or the hook did.
    """
    if hooks.given_up or node.check or node.repair:
        return None
    offer = _Offer(context, node, hooks)
    try:
        return await offer.settle()
    except BuildFailureError as failure:
        return offer.failed(failure)
    except ExecutorError as error:
        return offer.failed(unable(f"can't build '{offer.name}': {error}", FailureCause.STORE))
    except OSError as error:
        text = f"can't build '{offer.name}': {error.strerror}: {error.filename or 'input/output'}"
        return offer.failed(unable(text, FailureCause.STORE))


@dataclass(frozen=True, slots=True)
class Shipment:
    """What the other machine needs: the closure of the inputs, names of the outputs to build."""

    inputs: tuple[str, ...]
    outputs: frozenset[str]


def offered_features(store: LocalStore, node: Node, settings: Settings) -> frozenset[str] | None:
    """What a machine needs for this derivation, or nothing if it isn't for other machines.

    Raises ``BuildFailureError``. Runs in the store's thread, as the next ones do.
    """
    derivation = node.derivation
    assert derivation is not None
    name = store.store_dir.render(node.drv_path)
    try:
        options = DerivationOptions.from_derivation(derivation, store.store_dir)
    except (InvalidAttributeError, FormatError) as error:
        raise unusable(f"can't build '{name}': {error}") from error
    if derivation.kind is DerivationKind.IMPURE:
        # A hook has no way to say where the outputs of this build are.
        return None
    if options.prefer_local_build and _can_build_here(name, derivation, options, settings):
        return None
    if node.store_derivation:
        store.write_derivation(derivation)
    return options.required_system_features if store.is_valid(node.drv_path) else None


def _can_build_here(
    name: str, derivation: Derivation, options: DerivationOptions, settings: Settings
) -> bool:
    try:
        refuse_unbuildable(name, derivation, options, settings)
    except BuildFailureError:
        return False
    return True


def make_shipment(store: LocalStore, node: Node) -> Shipment | Present:
    """What there is to send, looked up under the locks of the outputs."""
    derivation = node.derivation
    assert derivation is not None
    known = known_outputs(store, derivation)
    missing = missing_outputs(store, node, known)
    if not missing:
        return Present(known)
    for output in missing & known.keys():
        store.delete_invalid(known[output])
    render = store.store_dir.render
    inputs = input_closure(store, render(node.drv_path), derivation)
    return Shipment(tuple(sorted(map(render, inputs))), missing)


def arrived(store: LocalStore, node: Node) -> Mapping[str, StorePath]:
    """Where the outputs are that a hook has brought. Raises ``BuildFailureError``."""
    derivation = node.derivation
    assert derivation is not None
    known = known_outputs(store, derivation)
    valid = store.query_valid(known.values())
    missing = sorted(name for name in derivation.outputs if known.get(name) not in valid)
    if missing:
        raise unable(
            f"some outputs of '{store.store_dir.render(node.drv_path)}' are unexpectedly invalid: "
            f"the build hook succeeded without them: {', '.join(missing)}",
            FailureCause.HOOK,
        )
    return known


class _Offer:
    """One derivation on its way to another machine."""

    def __init__(self, context: BuildContext, node: Node, hooks: BuildHooks) -> None:
        assert node.derivation is not None
        self._context = context
        self._node = node
        self._hooks = hooks
        self._store = context.store.store
        self._platform = node.derivation.platform
        self._paths = lock_paths(self._store, node)
        self._told: set[type] = set()
        self._pause = _POLL
        self._build: HookBuild | None = None
        self.name = self._store.store_dir.render(node.drv_path)

    async def settle(self) -> BuildResult | None:
        """Ask until there is an answer; build if it is yes."""
        call, node = self._context.store.call, self._node
        features = await call(offered_features, self._store, node, self._context.settings)
        if features is None:
            return None
        while True:
            async with self._in_turn() as turn:
                if turn.locked:
                    shipment = await call(make_shipment, self._store, node)
                    if isinstance(shipment, Present):
                        return self._succeeded(BuildStatus.ALREADY_VALID, shipment.outputs)
                    answer = await self._hooks.ask(self._platform, self.name, features)
                    turn.end()
                    if isinstance(answer, Accepted):
                        outputs = await self._follow(answer, shipment)
                        return self._succeeded(BuildStatus.BUILT, outputs)
                    if answer is not Reply.POSTPONE:
                        return None
            await (self._wait_for_machine() if turn.locked else self._wait_for_lock())

    @asynccontextmanager
    async def _in_turn(self) -> AsyncIterator[_Turn]:
        """The turn to ask, and the locks if nobody else has them.

        Locks are taken by one derivation at a time: thousands may wait for an answer.
        """
        await self._hooks.turn.acquire()
        locks, turn = PathLocks(), _Turn(self._hooks.turn)
        try:
            turn.locked = locks.try_acquire(self._paths)
            yield turn
        finally:
            locks.release()
            turn.end()

    async def _wait_for_machine(self) -> None:
        self._tell(WaitingForMachine(drv_path=self._node.drv_path))
        await self._hooks.wait_a_while()

    async def _wait_for_lock(self) -> None:
        paths = self._paths
        self._tell(
            WaitingForLock(
                drv_path=self._node.drv_path, paths=tuple(paths), holders=lock_holders(paths)
            )
        )
        await asyncio.sleep(self._pause)
        self._pause = min(2 * self._pause, _POLL_LONGEST)

    def _tell(self, event: WaitingForMachine | WaitingForLock) -> None:
        if type(event) not in self._told:
            self._told.add(type(event))
            self._context.emit(event)

    async def _follow(self, accepted: Accepted, shipment: Shipment) -> Mapping[str, StorePath]:
        """The build elsewhere, to its end. Raises ``BuildFailureError``."""
        context = self._context
        try:
            self._build = HookBuild(context, self._node, accepted)
            await self._build.run(shipment)
        finally:
            status = await accepted.process.close()
            self._hooks.child_ended()
        self._build.judge(self.name, status)
        outputs = await context.store.call(arrived, self._store, self._node)
        if self._store.realisations.enabled:
            await context.store.call(
                record_realisations, self._store, self._node, outputs, context.keys
            )
        return outputs

    def _succeeded(self, status: BuildStatus, outputs: Mapping[str, StorePath]) -> BuildResult:
        return self._result(status, outputs=dict(outputs))

    def failed(self, failure: BuildFailureError) -> BuildResult:
        return self._result(failure.status, message=failure.message, cause=failure.cause)

    def _result(self, status: BuildStatus, **more: object) -> BuildResult:
        facts = {} if self._build is None else self._build.facts
        return BuildResult(
            drv_path=self._node.drv_path,
            status=status,
            **facts,  # type: ignore[arg-type]
            **more,  # type: ignore[arg-type]
        )


class _Turn:
    """The right to ask the hook; ``locked`` says whether the locks are there, too."""

    def __init__(self, lock: asyncio.Lock) -> None:
        self._lock: asyncio.Lock | None = lock
        self.locked = False

    def end(self) -> None:
        """Let the next one ask; doing it twice is harmless."""
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.release()


class HookBuild:
    """A build that a hook has accepted: what it says, how long it takes, how it ends."""

    def __init__(self, context: BuildContext, node: Node, accepted: Accepted) -> None:
        self._context = context
        self._limits = limits_of(context.settings)
        self._drv_path = node.drv_path
        self._known = known_paths(node, context.store.store.store_dir)
        self._process = accepted.process
        self._machine = accepted.machine
        self._build_id = context.new_build_id()
        self._log_path, self._log = open_log(context, node.drv_path)
        self._lines = LineBuffer(self._limits.log_tail)
        self._size = 0
        self._start = self._stop = time.time()
        self._last_sign = time.monotonic()
        self._ending: Ending | None = None
        self._status: int | None = None

    async def run(self, shipment: Shipment) -> None:
        """Send what the hook needs and follow it until it has ended or was stopped."""
        started = BuildStarted(
            build_id=self._build_id,
            drv_path=self._drv_path,
            start_time=self._start,
            machine=self._machine,
        )
        try:
            self._context.emit(started)
            os.set_blocking(self._process.pipes.log, False)
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(task)
                    for task in (
                        self._send(shipment),
                        self._read_messages(),
                        self._read_log(),
                        self._watch(),
                    )
                ]
                await self._process.program.ended()
                for task in tasks:
                    task.cancel()
            self._drain()
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None
        finally:
            self._stop = time.time()
            if self._log is not None:
                self._log.close()

    def judge(self, name: str, status: int) -> None:
        """What the end means. Raises ``BuildFailureError`` unless it was a success."""
        self._status = status
        if self._ending is not None:
            raise builder_failure(
                name,
                self._outcome,
                self._limits,
                has_network=False,
                known_outputs=self._known,
                machine=self._machine,
            )
        if status != 0:
            verdict, cause = _MEANINGS.get(status, (BuildStatus.MISC_FAILURE, FailureCause.HOOK))
            reason = f"builder on '{self._machine}' {status_text(status)}"
            text = cannot_build(name, reason, known_outputs=self._known)
            raise BuildFailureError(verdict, text, cause)

    @property
    def facts(self) -> dict[str, object]:
        """What there is to tell in a result. The status is the hook's, not the builder's."""
        return {
            "start_time": self._start,
            "stop_time": self._stop,
            "log_path": self._log_path,
            "log_tail": tuple(self._lines.tail),
        }

    @property
    def _outcome(self) -> Outcome:
        return Outcome(
            ending=self._ending or Ending.EXITED,
            exit_code=self._status,
            signal=None,
            cpu_user=0,
            cpu_system=0,
            exec_error=None,
            start_time=self._start,
            stop_time=self._stop,
            log_tail=tuple(self._lines.tail),
            memory_exhausted=False,
        )

    # Beside each other, while the hook runs.

    async def _send(self, shipment: Shipment) -> None:
        # A hook that doesn't want to know has to explain that by its status.
        with suppress(BrokenPipeError):
            await self._process.send(build_message(shipment.inputs, shipment.outputs))
        self._process.pipes.close_requests()

    async def _read_messages(self) -> None:
        self._take_messages(b"")
        async for data in chunks(self._process.pipes.answers):
            self._take_messages(data)
            if self._is_too_long:
                await self._end(Ending.LOG_LIMIT)
        # A hook that has nothing more to say is expected to end.
        with suppress(TimeoutError):
            await asyncio.wait_for(self._process.program.ended(), self._process.grace)
        await self._process.program.stop(self._process.grace)

    async def _read_log(self) -> None:
        async for data in chunks(self._process.pipes.log):
            if not self._take_log(data):
                await self._end(Ending.LOG_LIMIT)

    async def _watch(self) -> None:
        """Hold the limits of time."""
        timeout, silence = self._limits.timeout, self._limits.max_silent_time
        began = time.monotonic()
        while timeout or silence:
            now = time.monotonic()
            left = {
                ending: since + limit - now
                for ending, since, limit in (
                    (Ending.TIMED_OUT, began, timeout),
                    (Ending.SILENT, self._last_sign, silence),
                )
                if limit
            }
            ending = min(left, key=lambda key: left[key])
            if left[ending] <= 0:
                await self._end(ending)
                return
            await asyncio.sleep(left[ending])

    async def _end(self, ending: Ending) -> None:
        if self._ending is None:
            self._ending = ending
            await self._process.program.stop(self._process.grace)

    # What comes.

    def _drain(self) -> None:
        """Take what is left in the pipes of a hook that has ended."""
        self._process.program.signal(SIGKILL)
        for fd, take in (
            (self._process.pipes.answers, self._take_messages),
            (self._process.pipes.log, self._take_log),
        ):
            for data in rest_of_pipe(fd):
                take(data)
        for line in self._process.cutter.flush():
            self._take_message(line)
        for entry in self._lines.flush():
            self._take_entry(entry)

    def _take_log(self, data: bytes) -> bool:
        """Take output of the builder; tells whether there may be more."""
        self._last_sign = time.monotonic()
        self._size += len(data)
        if self._is_too_long:
            return False
        self._take_output(data)
        return True

    @property
    def _is_too_long(self) -> bool:
        return 0 < self._limits.max_log_size < self._size

    def _take_output(self, data: bytes) -> None:
        self._write(data)
        for entry in self._lines.feed(data):
            self._take_entry(entry)

    def _take_messages(self, data: bytes) -> None:
        self._last_sign = time.monotonic()
        process = self._process
        process.lines.extend(process.cutter.feed(data))
        while process.lines:
            self._take_message(process.lines.popleft())

    def _take_message(self, line: bytes) -> None:
        match read_line(line):
            case BuilderLine(text):
                self._take_log(text + b"\n")
            case PhaseLine(phase) as entry:
                self._write(phase_log_line(phase))
                self._take_entry(entry)
            case MessageLine(level, text):
                self._context.emit(Notice(level=level, text=text))
            case TextLine(data):
                text = data.decode("utf-8", "replace")
                self._context.emit(Notice(level=2, text=text))
            case _:
                pass

    def _take_entry(self, entry: LogEntry) -> None:
        emit_entry(self._context, self._build_id, self._drv_path, entry)

    def _write(self, data: bytes) -> None:
        if self._log is not None:
            self._log.write(data)
