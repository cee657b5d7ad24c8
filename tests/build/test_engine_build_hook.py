"""The build hook: what it is asked and told, what its answers and its end mean, hostile ones."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from executor.api import Executor
from executor.build.events import (
    BuildLogLine,
    BuildPhase,
    BuildStarted,
    Event,
    PostBuildLine,
    WaitingForLock,
    WaitingForMachine,
)
from executor.build.plan import Target
from executor.build.result import BuildStatus, FailureCause
from executor.derivation import FloatingOutput
from executor.formats.content_address import IngestionMethod
from executor.formats.hashes import HashAlgorithm
from executor.store.locks import PathLocks
from executor.store.log_files import log_path
from tests.build.conftest import (
    FOREVER,
    SLEEPING,
    Drv,
    Run,
    Workshop,
    fixed,
    processes_with,
    wait_until,
)

pytestmark = pytest.mark.root

ROOT = Path(__file__).parent.parent.parent
MINE, THEIRS = b"made\n", b"from afar\n"
# A hook that takes everything and does it.
GOOD = """
values = settings()
job = request()
inputs, outputs = accept()
deliver(values, job.drv_path)
"""


class Hook:
    """A hook made of Python statements; ``notes`` are what it has written down."""

    def __init__(self, workshop: Workshop) -> None:
        self._workshop = workshop
        self.path = workshop.directory / "hook"

    def install(self, body: str) -> None:
        self.path.write_text(
            f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(ROOT)!r})\n"
            f"import os, signal, time\nfrom tests.build.hook_peer import *\n"
            f"note(f'start {{os.getpid()}}')\n{body}\n"
        )
        self.path.chmod(0o755)
        self._workshop.change(build_hook=(str(self.path), "word"), build_poll_interval=1)

    @property
    def notes(self) -> list[str]:
        with suppress(FileNotFoundError):
            return self._workshop.directory.joinpath("notes").read_text().splitlines()
        return []

    @property
    def starts(self) -> int:
        return sum(note.startswith("start ") for note in self.notes)

    @property
    def said(self) -> list[str]:
        return [note for note in self.notes if not note.startswith("start ")]


@pytest.fixture
def hook(workshop: Workshop) -> Hook:
    return Hook(workshop)


def content(workshop: Workshop, drv: Drv) -> bytes:
    return workshop.real(drv.out).read_bytes()


def machines(run: Run) -> list[str]:
    return [event.machine for event in run.events if isinstance(event, BuildStarted)]


def without_leftovers(workshop: Workshop) -> bool:
    """Neither lock files nor processes of a hook."""
    return workshop.leftovers() == [] and processes_with(str(workshop.directory / "hook")) == []


# What it is told.


def test_what_a_hook_is_told(workshop: Workshop, hook: Hook) -> None:
    hook.install(
        "values = settings()\n"
        "note(f'args {sys.argv[1:]} {os.getcwd()} {os.getpgid(0) == os.getpid()}')\n"
        "note('fds ' + ' '.join(sorted(os.listdir('/proc/self/fd'))))\n"
        "note(values['system'] + ' ' + values['max-jobs'] + ' ' + values['sandbox'])\n"
        "note(values['builders-use-substitutes'])\n"
        "note(str(signal.getsignal(signal.SIGPIPE) == signal.SIG_IGN))\n"
        "job = request()\nnote(f'{job.willing} {job.system} {job.drv_path} {job.features}')\n"
        "inputs, outputs = accept()\nnote(' '.join(inputs))\nnote(' '.join(outputs))\n"
        "note(repr(os.read(0, 1)))\ndeliver(values, job.drv_path)\n"
    )
    source = workshop.source("source", b"text")
    drv = workshop.make(
        "one",
        outputs=("out", "dev"),
        sources=[source],
        env={"requiredSystemFeatures": "big parallel"},
    )
    run = workshop.build(drv, builders_use_substitutes=True, max_jobs=0)
    assert run.result.status is BuildStatus.BUILT, run.result.message
    args, descriptors, values, substitutes, _pipe, job, inputs, outputs, end = hook.said
    assert args == "args ['word', '3'] / True"
    # One of them is the directory that is listed.
    assert descriptors in ("fds 0 1 2 3 4 5", "fds 0 1 2 3 4 5 6")
    assert values == "x86_64-linux 0 true"
    assert substitutes == "true"
    assert job == f"0 x86_64-linux {drv.text} ['big', 'parallel']"
    assert inputs == workshop.render(source)
    assert outputs == "dev out"
    assert end == "b''"
    assert content(workshop, drv) == THEIRS
    assert run.result.outputs == drv.outputs
    assert machines(run) == ["some-machine"]
    assert without_leftovers(workshop)


def test_the_closure_of_the_inputs(workshop: Workshop, hook: Hook) -> None:
    """One hook for each build; inputs that were built elsewhere are there for the next."""
    hook.install(GOOD + "note(' '.join(inputs))\n")
    first = workshop.make("first")
    second = workshop.make("second", inputs=[first])
    run = workshop.build(second)
    assert run.result.success, run.result.message
    assert hook.starts == 2
    assert hook.said[1] == workshop.render(first.out)
    assert machines(run) == ["some-machine"] * 2


# Its answers.


def test_it_declines(workshop: Workshop, hook: Hook) -> None:
    """The same process is asked for each derivation, and all are built here."""
    hook.install("settings()\nwhile True: request(); say('# decline')\n")
    drvs = [workshop.make(f"drv{number}") for number in range(3)]
    run = workshop.build(*drvs, max_jobs=2)
    assert all(result.success for result in run.results)
    assert [content(workshop, drv) for drv in drvs] == [MINE] * 3
    assert hook.starts == 1
    assert machines(run) == [""] * 3
    assert without_leftovers(workshop)


def test_it_declines_for_good(workshop: Workshop, hook: Hook) -> None:
    hook.install("settings()\nrequest(); say('# decline-permanently'); time.sleep(60)\n")
    drvs = [workshop.make(f"drv{number}") for number in range(3)]
    assert all(result.success for result in workshop.build(*drvs).results)
    assert hook.starts == 1
    assert without_leftovers(workshop)


def test_it_postpones_and_takes_it_then(workshop: Workshop, hook: Hook) -> None:
    hook.install(
        "values = settings()\nfor _ in range(2): request(); say('# postpone')\n"
        "job = request(); accept(); deliver(values, job.drv_path)\n"
    )
    drv = workshop.make("one")
    run = workshop.build(drv)
    assert run.result.success
    assert content(workshop, drv) == THEIRS
    assert hook.starts == 1
    waiting = [event for event in run.events if isinstance(event, WaitingForMachine)]
    assert [event.drv_path for event in waiting] == [drv.path]


def test_the_end_of_another_build_is_the_time_to_ask_again(workshop: Workshop, hook: Hook) -> None:
    """As soon as a slot is free the hook may decline; nobody waits for the poll interval."""
    hook.install(
        "settings()\nwhile True:\n  job = request()\n"
        "  say('# decline' if job.willing else '# postpone')\n"
    )
    drvs = [workshop.make(f"drv{number}", "sleep 0.3; echo > $out") for number in range(4)]
    begun = time.monotonic()
    run = workshop.build(*drvs, max_jobs=1, build_poll_interval=100)
    assert all(result.success for result in run.results)
    assert time.monotonic() - begun < 30


def test_unwilling_and_declined(workshop: Workshop, hook: Hook) -> None:
    """Nothing is built here with ``max-jobs = 0``."""
    hook.install("settings()\nwhile True: request(); say('# decline')\n")
    result = workshop.build(workshop.make("one"), max_jobs=0).result
    assert result.status is BuildStatus.INPUT_REJECTED
    assert "local builds are disabled (max-jobs = 0)" in result.message


@pytest.mark.parametrize("jobs", [0, 1])
def test_derivations_that_prefer_this_machine(workshop: Workshop, hook: Hook, jobs: int) -> None:
    """They are offered where they can't be built here."""
    hook.install(GOOD)
    drv = workshop.make("one", env={"preferLocalBuild": "1"})
    run = workshop.build(drv, max_jobs=jobs)
    assert run.result.success
    assert content(workshop, drv) == (MINE if jobs else THEIRS)


def test_extra_slots_for_them(workshop: Workshop) -> None:
    """With one slot taken by a build that waits for the other."""
    both = workshop.directory / "both"
    both.mkdir()
    paths = (*workshop.settings.sandbox_paths, workshop.shown(both, "/both"))
    waiting = workshop.make(
        "a-waiting",
        "for i in $(busybox seq 100); do test -e /both/x && echo > $out && exit; sleep 0.1; done",
    )
    touching = workshop.make("b-touching", "echo > $out", env={"preferLocalBuild": "1"})

    async def go(executor: Executor) -> list[BuildStatus]:
        def listen(event: Event) -> None:
            if isinstance(event, BuildStarted) and event.drv_path == touching.path:
                (both / "x").touch()

        executor.subscribe(listen)
        results = await executor.build_all(
            [Target(drv_path=drv.path) for drv in (waiting, touching)]
        )
        return [result.status for result in results]

    statuses = workshop.run(go, max_jobs=1, extra_local_jobs=1, sandbox_paths=paths)
    assert statuses == [BuildStatus.BUILT] * 2


def test_what_has_to_be_done_here_is_not_offered(workshop: Workshop, hook: Hook) -> None:
    drv = workshop.make("one")
    workshop.build(drv)
    hook.install(GOOD)
    assert workshop.build_targets(Target(drv_path=drv.path, check=True)).result.success
    assert hook.starts == 0


def test_the_default_hook_without_machines_is_not_started(workshop: Workshop) -> None:
    drv = workshop.make("one")
    run = workshop.build(drv, build_hook=("nix", "__build-remote"), builders="@/nonexistent ; ")
    assert run.result.success
    assert run.notices == []


def test_a_hook_that_is_not_there(workshop: Workshop) -> None:
    result = workshop.build(workshop.make("one"), build_hook=("no-such-hook",)).result
    assert result.status is BuildStatus.MISC_FAILURE
    assert result.message == "can't find the build hook 'no-such-hook'"


# What it says.


def test_its_messages(workshop: Workshop, hook: Hook) -> None:
    hook.install(
        "values = settings()\nsay('plain words')\n"
        """say('@nix {"action":"msg","level":1,"msg":"warning: beware"}')\n"""
        """say('@nix {"action":"start","id":1,"level":3,"text":"copying","type":100}')\n"""
        "say('@nix {broken'); say('@nix []'); say('@nix 3')\n"
        "job = request(); accept('ssh://far')\n"
        "log('from the builder'); os.write(4, b'unended')\ntime.sleep(0.3)\n"
        """say('@nix {"action":"result","fields":["by message"],"id":1,"type":101}')\n"""
        """say('@nix {"action":"result","fields":["install"],"id":1,"type":104}')\n"""
        "deliver(values, job.drv_path)\n"
    )
    drv = workshop.make("one")
    run = workshop.build(drv, compress_build_log=False)
    assert run.result.success, run.result.message
    assert run.notices[:3] == ["plain words", "beware", "copying..."]
    assert "bad JSON log message from the build hook" in run.notices[3]
    assert [e.phase for e in run.events if isinstance(e, BuildPhase)] == ["install"]
    assert machines(run) == ["ssh://far"]
    assert run.log[0] == b"from the builder"
    log = log_path(workshop.location.log_dir, drv.path, compress=False)
    assert run.result.log_path == log
    text = Path(log).read_bytes()
    assert b"from the builder\n" in text
    assert b"by message\n" in text
    assert b'@nix {"action":"setPhase","phase":"install"}\n' in text


# Its end.


@pytest.mark.parametrize(
    ("ending", "status", "text"),
    [
        ("sys.exit(1)", BuildStatus.MISC_FAILURE, "failed with exit code 1"),
        ("sys.exit(100)", BuildStatus.PERMANENT_FAILURE, "failed with exit code 100"),
        ("sys.exit(101)", BuildStatus.TIMED_OUT, "failed with exit code 101"),
        ("os.kill(0, 9)", BuildStatus.MISC_FAILURE, "failed due to signal 9 (Killed)"),
        ("pass", BuildStatus.MISC_FAILURE, "unexpectedly invalid"),
    ],
)
def test_how_it_ends(
    workshop: Workshop, hook: Hook, ending: str, status: BuildStatus, text: str
) -> None:
    hook.install(f"settings(); request(); accept()\nlog('last words')\n{ending}")
    drv = workshop.make("one")
    run = workshop.build(drv)
    assert run.result.status is status
    assert text in run.result.message
    assert run.result.log_tail == (b"last words",)
    assert not workshop.is_valid(drv.out)
    assert without_leftovers(workshop)


def test_a_part_of_the_outputs_is_not_enough(workshop: Workshop, hook: Hook) -> None:
    hook.install("values = settings(); job = request(); accept()\ndeliver(values, job.drv_path)")
    run = workshop.build(workshop.make("one", outputs=("out", "dev")))
    assert run.result.success
    hook.install("settings(); request(); accept()")
    drv = workshop.make("two", outputs=("out", "dev"))
    result = workshop.build(drv).result
    assert "unexpectedly invalid" in result.message
    assert "dev, out" in result.message


def test_fixed_outputs(workshop: Workshop, hook: Hook) -> None:
    hook.install(GOOD)
    drv = workshop.make("one", "exit 1", outputs={"out": fixed(THEIRS)})
    assert workshop.build(drv).result.status is BuildStatus.BUILT
    assert content(workshop, drv) == THEIRS


def test_floating_outputs_and_what_depends_on_them(workshop: Workshop, hook: Hook) -> None:
    """The hook says by realisations where outputs are; what is resolved is offered, too."""
    workshop.change(experimental_features=frozenset({"ca-derivations"}))
    floating = FloatingOutput(IngestionMethod.NAR, HashAlgorithm.SHA256)
    first = workshop.make("first", "exit 1", outputs={"out": floating})
    second = workshop.make("second", "exit $first_out", inputs=[first])
    hook.install(
        "values = settings(); job = request(); accept()\n"
        "what = deliver_floating if 'first' in job.drv_path else deliver\n"
        "what(values, job.drv_path)"
    )
    run = workshop.build(second)
    assert run.result.status is BuildStatus.BUILT, run.result.message
    (made,) = run.finished[first.path].outputs.values()
    assert workshop.real(made).read_bytes() == THEIRS
    hook.install("settings(); request(); accept()")
    again = workshop.make("third", "exit 3", outputs={"out": floating})
    assert "unexpectedly invalid" in workshop.build(again).result.message


# Hostile ones.


@pytest.mark.parametrize(
    "body",
    [
        "sys.exit(0)",
        "settings(); sys.exit(1)",
        "settings(); request(); say('goodbye'); sys.exit(1)",
        "settings(); request(); say('# accept'); sys.exit(0)",
        "os.close(0); say('deaf'); time.sleep(0.2)",
        "os.kill(os.getpid(), 9)",
        "settings(); request(); os.close(2); os.close(1); time.sleep(60)",
    ],
)
def test_a_hook_that_dies_has_declined(workshop: Workshop, hook: Hook, body: str) -> None:
    hook.install(body)
    drvs = [workshop.make(f"drv{number}") for number in range(2)]
    run = workshop.build(*drvs)
    assert [result.status for result in run.results] == [BuildStatus.BUILT] * 2
    assert [content(workshop, drv) for drv in drvs] == [MINE] * 2
    assert hook.starts == 2
    assert sum("build hook died unexpectedly" in text for text in run.notices) == 2
    assert without_leftovers(workshop)


def test_its_last_words_are_told(workshop: Workshop, hook: Hook) -> None:
    hook.install("sys.exit('no idea')")
    run = workshop.build(workshop.make("one"))
    assert " ".join(run.notices).count("no idea") == 1
    assert run.notices[-1].startswith("build hook died unexpectedly")


@pytest.mark.parametrize("word", ["perhaps", "", "accept please", "\\x00\\xff" * 1000])
def test_an_answer_that_is_none(workshop: Workshop, hook: Hook, word: str) -> None:
    hook.install(f"settings(); request(); say('# {word}'); time.sleep(60)")
    drv = workshop.make("one")
    run = workshop.build(drv)
    assert run.result.status is BuildStatus.MISC_FAILURE
    assert run.result.message.startswith("bad hook reply '")
    assert len(run.result.message) < 400
    assert without_leftovers(workshop)


def test_a_flood_instead_of_an_answer(workshop: Workshop, hook: Hook) -> None:
    """Lines without end come in pieces."""
    hook.install(
        "settings(); request(); os.write(2, b'x' * 3_000_000 + b'\\n'); say('# decline')\n"
        "time.sleep(60)"
    )
    run = workshop.build(workshop.make("one"))
    assert run.result.success
    assert max(map(len, run.notices)) <= 1 << 20


def test_a_hook_that_never_answers(
    workshop: Workshop, hook: Hook, monkeypatch: pytest.MonkeyPatch
) -> None:
    """We say that we wait, and in the end build here, and nothing of it stays."""
    monkeypatch.setattr("executor.build.hook._TELL_SECONDS", 0.5)
    monkeypatch.setattr("executor.build.hook._ANSWER_SECONDS", 2.0)
    hook.install(
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "if os.fork() == 0:\n    os.setsid()\n    time.sleep(100)\n"
        "settings(); request(); time.sleep(100)"
    )
    run = workshop.build(workshop.make("one"))
    assert run.result.success
    assert run.notices == [
        f"still waiting for an answer from the build hook '{hook.path}'",
        f"build hook '{hook.path}' has not answered for 2 seconds",
    ]
    assert without_leftovers(workshop)


def test_a_hook_that_neither_reads_nor_ends(workshop: Workshop, hook: Hook) -> None:
    """It has accepted, doesn't read the inputs, closes what it could speak with, and ignores us."""
    hook.install(
        "settings(); request(); say('# accept'); say('m')\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN); os.close(1); os.close(2)\ntime.sleep(100)"
    )
    sources = [workshop.source(f"s{number}-{'x' * 150}", b"") for number in range(500)]
    begun = time.monotonic()
    result = workshop.build(workshop.make("one", sources=sources)).result
    assert result.status is BuildStatus.MISC_FAILURE
    assert "signal 9" in result.message
    assert time.monotonic() - begun < 30
    assert without_leftovers(workshop)


@pytest.mark.parametrize(
    ("limit", "body", "status", "cause"),
    [
        (
            {"max_silent_time": 1},
            "log('one'); time.sleep(100)",
            BuildStatus.TIMED_OUT,
            FailureCause.SILENCE,
        ),
        (
            {"timeout": 1},
            "while True: log('again'); time.sleep(0.1)",
            BuildStatus.TIMED_OUT,
            FailureCause.TIMEOUT,
        ),
        (
            {"max_build_log_size": 1000},
            "while True: log('x' * 99)",
            BuildStatus.LOG_LIMIT_EXCEEDED,
            FailureCause.LOG_LIMIT,
        ),
    ],
)
def test_limits(
    workshop: Workshop,
    hook: Hook,
    limit: dict[str, int],
    body: str,
    status: BuildStatus,
    cause: FailureCause,
) -> None:
    hook.install(f"settings(); request(); accept()\n{body}")
    run = workshop.build(workshop.make("one"), **limit)
    assert (run.result.status, run.result.cause) == (status, cause)
    assert without_leftovers(workshop)


def test_signs_of_life(workshop: Workshop, hook: Hook) -> None:
    """What the hook tells of copying is one."""
    hook.install(
        "values = settings(); job = request(); accept()\n"
        """for _ in range(15): say('@nix {"action":"stop","id":1}'); time.sleep(0.2)\n"""
        "deliver(values, job.drv_path)"
    )
    assert workshop.build(workshop.make("one"), max_silent_time=1).result.success


def is_waiting(event: Event) -> bool:
    return isinstance(event, WaitingForMachine)


def is_log_line(event: Event) -> bool:
    return isinstance(event, BuildLogLine)


@pytest.mark.parametrize(
    ("body", "moment"),
    [
        ("settings(); request(); note('asked'); time.sleep(100)", None),
        ("settings()\nwhile True: request(); say('# postpone')", is_waiting),
        (f"settings(); request(); accept(); log('x'); os.system('{FOREVER}')", is_log_line),
    ],
    ids=["asked", "postponed", "building"],
)
def test_it_dies_with_the_run(
    workshop: Workshop, hook: Hook, body: str, moment: Callable[[Event], bool] | None
) -> None:
    hook.install("signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + body)
    drv = workshop.make("one")

    async def go(executor: Executor) -> None:
        reached = asyncio.Event()

        def listen(event: Event) -> None:
            if moment is not None and moment(event):
                reached.set()

        executor.subscribe(listen)
        building = asyncio.create_task(executor.build(drv.path))
        if moment is None:
            while hook.said != ["asked"]:
                await asyncio.sleep(0.02)
        else:
            await asyncio.wait_for(reached.wait(), 20)
        building.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.wait_for(building, 20)
        assert building.cancelled()

    descriptors = len(os.listdir("/proc/self/fd"))
    workshop.run(go)
    assert len(os.listdir("/proc/self/fd")) == descriptors
    wait_until(lambda: processes_with(SLEEPING) == [], "the end of the hook's children")
    assert without_leftovers(workshop)


def test_another_failure_ends_it(workshop: Workshop, hook: Hook) -> None:
    hook.install(
        "values = settings()\nwhile True:\n  job = request()\n"
        "  if 'bad' in job.drv_path: say('# decline')\n"
        f"  else: accept(); os.system('{FOREVER}')\n"
    )
    drvs = [workshop.make("a-endless"), workshop.make("bad", "sleep 0.5; exit 1")]
    run = workshop.build(*drvs)
    assert {result.status for result in run.results} == {
        BuildStatus.CANCELLED,
        BuildStatus.PERMANENT_FAILURE,
    }
    wait_until(lambda: processes_with(SLEEPING) == [], "the end of the hook's children")


# Locks.


def test_locks_are_held_and_waited_for(workshop: Workshop, hook: Hook) -> None:
    """While somebody else builds it nothing is offered, and what he made is taken."""
    hook.install(GOOD)
    drv, other = workshop.make("one"), workshop.make("other")
    locks = PathLocks()
    assert locks.try_acquire([str(workshop.real(drv.out))])

    async def go(executor: Executor) -> None:
        waiting = asyncio.Event()

        def listen(event: Event) -> None:
            if isinstance(event, WaitingForLock):
                waiting.set()

        executor.subscribe(listen)
        building = asyncio.create_task(executor.build(drv.path))
        await asyncio.wait_for(waiting.wait(), 20)
        # The turn isn't lost to others.
        assert (await executor.build(other.path)).success
        assert hook.starts == 1
        locks.release()
        assert (await building).success

    workshop.run(go)
    assert hook.starts == 2


def test_nobody_else_builds_it_meanwhile(workshop: Workshop, hook: Hook) -> None:
    hook.install(
        "values = settings(); job = request(); accept(); log('x'); time.sleep(1)\n"
        "deliver(values, job.drv_path)"
    )
    drv = workshop.make("one")

    async def go(executor: Executor) -> None:
        begun = asyncio.Event()

        def listen(event: Event) -> None:
            if isinstance(event, BuildLogLine):
                begun.set()

        executor.subscribe(listen)
        building = asyncio.create_task(executor.build(drv.path))
        await asyncio.wait_for(begun.wait(), 20)
        locks = PathLocks()
        assert not locks.try_acquire([str(workshop.real(drv.out))])
        assert (await building).success

    workshop.run(go)
    assert without_leftovers(workshop)


def test_many(workshop: Workshop, hook: Hook) -> None:
    """More at once than there are slots here; a third of them is declined."""
    hook.install(
        "values = settings()\nwhile True:\n  job = request()\n"
        "  if hash(job.drv_path) % 3 == 0: say('# decline'); continue\n"
        "  accept(); deliver(values, job.drv_path); break\n"
    )
    drvs = [workshop.make(f"drv{number}") for number in range(20)]
    top = workshop.make("top", inputs=drvs)
    run = workshop.build(top, max_jobs=2)
    assert run.result.success, run.result.message
    assert without_leftovers(workshop)


# Nix's own hook, with another store in the place of another machine.


@pytest.fixture
def stock(workshop: Workshop) -> Workshop:
    """A workshop that builds nothing itself, and whose hook is that of the Nix on PATH."""
    shown = subprocess.run(
        ["nix", "--extra-experimental-features", "nix-command", "show-config"],
        env={"PATH": os.environ["PATH"], "HOME": str(workshop.directory), **NO_CONFIGURATION},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    values = dict(line.partition(" = ")[::2] for line in shown.stdout.splitlines())
    workshop.change(build_hook=tuple(values["build-hook"].split()))
    far(workshop, "- 2")
    return workshop


NO_CONFIGURATION = {"NIX_CONF_DIR": "/nonexistent", "NIX_REMOTE": "local"}


def far(workshop: Workshop, words: str, jobs: int = 0) -> None:
    """The other machine: keys, jobs, speed, features and mandatory features of it."""
    machine = f"{workshop.directory}/far x86_64-linux {words}"
    workshop.change(builders=machine, max_jobs=jobs, build_poll_interval=1)


@pytest.mark.nix
def test_stock_nix_builds_elsewhere(stock: Workshop) -> None:
    source = stock.source("source", b"text")
    phase = """echo '@nix {"action":"setPhase","phase":"one"}'"""
    first = stock.make(
        "first",
        f"echo a log; {phase}; cat $source > $out; echo $out > $dev",
        sources=[source],
        outputs=("out", "dev"),
        env={"source": stock.render(source)},
    )
    second = stock.make("second", "cat $first_out $first_dev > $out", inputs=[first])
    run = stock.build(second, compress_build_log=False)
    assert run.result.status is BuildStatus.BUILT, run.notices
    assert content(stock, second) == f"text{stock.render(first.out)}\n".encode()
    assert stock.info(first.outputs["dev"]).references == {first.out}
    assert [Path(machine).name for machine in machines(run)] == ["far"] * 2
    assert run.log == [b"a log"]
    assert [event.phase for event in run.events if isinstance(event, BuildPhase)] == ["one"]
    log = Path(log_path(stock.location.log_dir, first.path, compress=False)).read_text()
    assert log.splitlines()[0] == "a log"
    assert Path(f"{stock.directory}/far/nix/store/{second.out.base_name}").exists()
    assert stock.leftovers() == []


@pytest.mark.nix
def test_stock_nix_fails_elsewhere(stock: Workshop) -> None:
    drv = stock.make("bad", "echo the reason; exit 7")
    run = stock.build(drv)
    assert run.result.status is BuildStatus.MISC_FAILURE
    assert run.result.log_tail == (b"the reason",)
    assert any("failed with exit code 7" in text for text in run.notices)
    assert stock.leftovers() == []


@pytest.mark.nix
def test_stock_nix_has_one_slot(stock: Workshop) -> None:
    far(stock, "- 1")
    drvs = [stock.make(f"drv{number}", "sleep 0.5; echo > $out") for number in range(3)]
    run = stock.build(*drvs)
    assert all(result.success for result in run.results), run.notices
    waiting = {e.drv_path for e in run.events if isinstance(e, WaitingForMachine)}
    assert len(waiting) == 2
    assert len(machines(run)) == 3
    assert "" not in machines(run)


@pytest.mark.nix
def test_features_that_stock_nix_insists_on(stock: Workshop) -> None:
    far(stock, "- 1 1 kvm,special special", jobs=1)
    plain = stock.make("plain")
    special = stock.make("special", env={"requiredSystemFeatures": "kvm special"})
    other = stock.make("other", env={"requiredSystemFeatures": "special nonexistent"})
    run = stock.build(plain, special, other, keep_going=True, system_features=frozenset())
    results = [result.status for result in run.results]
    assert results == [BuildStatus.BUILT, BuildStatus.BUILT, BuildStatus.INPUT_REJECTED]
    assert [bool(machine) for machine in machines(run)].count(True) == 1
    assert "missing system features" in run.results[2].message


@pytest.mark.nix
def test_stock_nix_without_machines(stock: Workshop) -> None:
    run = stock.build(stock.make("one"), builders="", max_jobs=1)
    assert run.result.success
    assert machines(run) == [""]


@pytest.mark.nix
def test_stock_nix_and_the_post_build_hook(stock: Workshop) -> None:
    told = stock.directory / "post-build"
    told.write_text("#!/bin/sh\necho $OUT_PATHS\n")
    told.chmod(0o755)
    drv = stock.make("one", "echo > $out; echo > $dev", outputs=("out", "dev"))
    run = stock.build(drv, post_build_hook=str(told))
    assert run.result.success
    (line,) = (event.line for event in run.events if isinstance(event, PostBuildLine))
    assert sorted(line.decode().split()) == sorted(map(stock.render, drv.outputs.values()))
