"""The build hook: a program that may take builds away, to other machines (rows H4, P1 to P8).

One process answers until it accepts something; from then on it belongs to that build, and the next
request is for a new one. Its descriptors: 0 requests, 1 and 2 answers and messages, 4 what builders
print, 5 the other end of the same pipe.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass

from executor.build.context import BuildContext, finish
from executor.build.events import Notice
from executor.build.failure import unable
from executor.build.hook_protocol import (
    VERBOSITY,
    HookReplyError,
    Reply,
    ReplyLine,
    Request,
    read_line,
    read_reply,
    request_message,
    setting_values,
    settings_message,
    store_url,
)
from executor.build.lines import LineCutter
from executor.build.log import MessageLine, TextLine
from executor.build.program import Program, read_some, rest_of_pipe, write_all

# Seconds that a hook may take to read what it has answered already.
_READING_PATIENCE = 5.0
# Seconds without an answer after which we say that we wait, and after which it has declined. It
# may have to reach several machines, one after the other.
_TELL_SECONDS = 60.0
_ANSWER_SECONDS = 1800.0
# Above the descriptors that the hook gets by number.
_FIRST_FREE = 10
# How many of its last lines are told when a hook dies.
_LAST_LINES = 10
# Runs instead of a fork of ours: puts the pipes where a hook looks for them, with the environment
# as it was given (the interpreter may have added to its own).
_TRAMPOLINE = """
import os, signal, sys
ends = [int(word) for word in sys.argv[1:3]]
with open("/proc/self/environ", "rb") as file:
    env = dict(item.split(b"=", 1) for item in file.read().split(b"\\0") if b"=" in item)
for end, number in zip(ends, (4, 5)):
    os.dup2(end, number)
    os.close(end)
for number in (signal.SIGPIPE, signal.SIGXFSZ):
    signal.signal(number, signal.SIG_DFL)
os.execve(sys.argv[3], sys.argv[4:], env)
"""


class HookDiedError(Exception):
    """The hook ended, or closed its streams, where it owed an answer."""


@dataclass(slots=True)
class HookPipes:
    """Our ends of a hook's pipes; -1 for one that is closed."""

    requests: int
    answers: int
    log: int

    def close(self) -> None:
        """Close what is still open."""
        self.close_requests()
        for fd in (self.answers, self.log):
            if fd >= 0:
                os.close(fd)
        self.answers = self.log = -1

    def close_requests(self) -> None:
        """Tell the hook that nothing more will come."""
        requests, self.requests = self.requests, -1
        if requests >= 0:
            os.close(requests)


class HookProcess:
    """A running hook and the lines that it has said and nobody has read yet."""

    def __init__(self, program: Program, pipes: HookPipes, grace: float) -> None:
        self.program = program
        self.pipes = pipes
        self.grace = grace
        self.cutter = LineCutter()
        self.lines: deque[bytes] = deque()

    @classmethod
    def start(cls, command: Sequence[str], env: Mapping[bytes, bytes], grace: float) -> HookProcess:
        """Start a hook. Raises ``BuildFailureError`` where its program isn't found."""
        path = shutil.which(command[0])
        if path is None:
            raise unable(f"can't find the build hook '{command[0]}'")
        with ExitStack() as theirs, ExitStack() as ours:
            (stdin, requests), (answers, output), (back, log) = (
                _high_pipe(theirs, ours),
                _high_pipe(ours, theirs),
                _high_pipe(ours, theirs),
            )
            ends = (str(log), str(back))
            words = (path, os.path.basename(path), *command[1:], str(VERBOSITY))
            try:
                program = Program.start(
                    (sys.executable, "-I", "-S", "-c", _TRAMPOLINE, *ends, *words),
                    env=env,
                    stdin=stdin,
                    output=output,
                    directory="/",
                    pass_fds=(log, back),
                )
            except OSError as error:
                raise unable(f"can't start the build hook '{path}': {error.strerror}") from error
            ours.pop_all()
        # The pipe of the log is the hook's too, until it has accepted something.
        os.set_blocking(requests, False)
        os.set_blocking(answers, False)
        return cls(program, HookPipes(requests, answers, back), grace)

    async def send(self, message: bytes) -> None:
        """Raises ``BrokenPipeError`` if the hook doesn't read any more."""
        await write_all(self.pipes.requests, message)

    async def next_line(self) -> bytes:
        """The next line. Raises ``HookDiedError`` at the end of the stream."""
        while not self.lines:
            data = await read_some(self.pipes.answers)
            if not data:
                raise HookDiedError
            self.lines.extend(self.cutter.feed(data))
        return self.lines.popleft()

    async def last_words(self) -> str:
        """End the hook and collect what it said and nobody has read."""
        await self.program.stop(self.grace)
        for data in rest_of_pipe(self.pipes.answers):
            self.lines.extend(self.cutter.feed(data))
        words = [*self.lines, *self.cutter.flush()][-_LAST_LINES:]
        return b"\n".join(words).decode("utf-8", "replace")

    async def close(self) -> int:
        """End the hook, whatever it does; returns its status, below 0 for a signal."""
        self.pipes.close_requests()
        try:
            return await finish(asyncio.ensure_future(self.program.close(self.grace)))
        finally:
            self.pipes.close()


@dataclass(frozen=True, slots=True)
class Accepted:
    """A hook that takes a build, and the machine that it has chosen for it."""

    process: HookProcess
    machine: str


class BuildHooks:
    """The hook of one run: started when it is needed, asked by one build at a time.

    ``turn`` is held by whoever looks for somebody to build: locks and asks.
    """

    def __init__(self, context: BuildContext) -> None:
        self.turn = asyncio.Lock()
        self._context = context
        self._settings = context.settings
        self._process: HookProcess | None = None
        self._given_up = False
        self._changed = asyncio.Event()

    @property
    def given_up(self) -> bool:
        """Nothing will be accepted any more."""
        return self._given_up

    async def ask(self, system: str, drv_path: str, features: frozenset[str]) -> Accepted | Reply:
        """Offer a derivation; ``POSTPONE`` means to ask again later. One caller at a time.

        A hook that dies before it answers has declined. Raises ``BuildFailureError`` for an
        answer that is none, and where the hook can't be started.
        """
        if self._given_up:
            return Reply.DECLINE
        slots, jobs = self._context.slots, self._settings.max_jobs
        request = Request(
            willing=jobs > 0 and not slots.locked(),
            system=system,
            drv_path=drv_path,
            features=features,
        )
        message = request_message(request)
        if self._process is None:
            message = settings_message(self._values().items()) + message
            self._process = HookProcess.start(
                self._settings.build_hook,
                self._environment(),
                self._settings.build_hook_kill_timeout / 1000,
            )
        process = self._process
        hook = self._settings.build_hook[0]
        telling = asyncio.get_running_loop().call_later(
            _TELL_SECONDS,
            self._context.emit,
            Notice(level=0, text=f"still waiting for an answer from the build hook '{hook}'"),
        )
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                answer = await self._answer(process, message)
        except TimeoutError:
            text = f"build hook '{hook}' has not answered for {_ANSWER_SECONDS:g} seconds"
            self._context.emit(Notice(level=0, text=text))
            answer = Reply.DECLINE
            await self._drop()
        except HookDiedError:
            words = await process.last_words()
            text = "build hook died unexpectedly" + (f": {words}" if words else "")
            self._context.emit(Notice(level=0, text=text))
            answer = Reply.DECLINE
            await self._drop()
        except HookReplyError as error:
            await self._drop()
            raise unable(f"{error} from '{hook}', which was asked to build '{drv_path}'") from error
        except BaseException:
            # Nobody knows any more what this hook would answer next.
            await self._drop()
            raise
        finally:
            telling.cancel()
        if isinstance(answer, Accepted):
            self._process = None
        elif answer is Reply.DECLINE_PERMANENTLY:
            self._given_up = True
            await self._drop()
        return answer

    def child_ended(self) -> None:
        """A build has ended, here or elsewhere: those that were postponed may ask again."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def wait_a_while(self) -> None:
        """Wait until a build ends, at most as long as Nix waits."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), self._settings.build_poll_interval or 1)

    async def close(self) -> None:
        """End the hook that nobody uses."""
        await self._drop()

    async def _drop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            await process.close()

    async def _answer(self, process: HookProcess, message: bytes) -> Accepted | Reply:
        sending = asyncio.ensure_future(process.send(message))
        reading = asyncio.ensure_future(self._read_answer(process))
        try:
            await asyncio.wait((sending, reading), return_when=asyncio.FIRST_COMPLETED)
            if sending.done() and sending.exception() is not None and not reading.done():
                raise HookDiedError
            answer = await reading
            # An answer may come before all is read, but who never reads is no hook.
            with suppress(BrokenPipeError):
                await asyncio.wait_for(sending, _READING_PATIENCE)
            return answer
        except TimeoutError:
            raise HookDiedError from None
        finally:
            for task in (sending, reading):
                task.cancel()
            await asyncio.gather(sending, reading, return_exceptions=True)

    async def _read_answer(self, process: HookProcess) -> Accepted | Reply:
        while True:
            match read_line(await process.next_line()):
                case ReplyLine() as line:
                    reply = read_reply(line)
                    break
                case MessageLine(level, text):
                    self._context.emit(Notice(level=level, text=text))
                case TextLine(data):
                    text = data.decode("utf-8", "replace")
                    self._context.emit(Notice(level=2, text=text))
                case _:
                    pass
        if reply is not Reply.ACCEPT:
            return reply
        machine = (await process.next_line()).decode("utf-8", "replace")
        return Accepted(process, machine)

    def _values(self) -> dict[str, str]:
        return setting_values(self._settings, store_url(self._context.store.store.location))

    def _environment(self) -> dict[bytes, bytes]:
        """Ours; experimental features aren't among the settings that Nix's hook takes from us."""
        environ = dict(self._context.environ)
        if features := sorted(self._settings.experimental_features):
            text = environ.get(b"NIX_CONFIG", b"") + b"\nextra-experimental-features = "
            environ[b"NIX_CONFIG"] = text + " ".join(features).encode() + b"\n"
        return environ


def _high_pipe(reading: ExitStack, writing: ExitStack) -> tuple[int, int]:
    """A pipe whose descriptors are out of the way of those that the hook gets.

    Each end is closed by the stack of its owner.
    """
    low = os.pipe()
    try:
        first = fcntl.fcntl(low[0], fcntl.F_DUPFD_CLOEXEC, _FIRST_FREE)
        reading.callback(os.close, first)
        second = fcntl.fcntl(low[1], fcntl.F_DUPFD_CLOEXEC, _FIRST_FREE)
        writing.callback(os.close, second)
        return first, second
    finally:
        os.close(low[0])
        os.close(low[1])
