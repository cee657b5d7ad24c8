"""What a run looks like: plain lines, a status line on a terminal, Nix's JSON."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import socket
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from executor.build.event_texts import printable
from executor.build.events import (
    BuildFinished,
    BuildLogLine,
    BuildPhase,
    BuildStarted,
    BuildTransfer,
    BytesDone,
    Event,
    GraphPlanned,
    Notice,
    QueryStarted,
    SubstitutionFinished,
    SubstitutionStarted,
    TransferStarted,
    WaitingForLock,
    WaitingForMachine,
    WaitingForUser,
    WatchEnded,
)
from executor.build.result import BuildResult, BuildStatus
from executor.cli.json_display import JsonDisplay
from executor.cli.progress import BarDisplay, Display, PlainDisplay, TeeDisplay, make_display
from executor.formats.store_path import StoreDir, StorePath
from tests.build.conftest import Workshop
from tests.build.conftest import workshop as workshop

STORE = StoreDir("/nix/store")
DRV = StorePath("0" * 32, "hello.drv")
OTHER = StorePath("1" * 32, "other.drv")
NAME = f"/nix/store/{'0' * 32}-hello.drv"
OUT = StorePath("2" * 32, "hello")

STARTED = BuildStarted(build_id=1, drv_path=DRV, start_time=100.0)
LINE = BuildLogLine(build_id=1, drv_path=DRV, line=b"compiling")
PHASE = BuildPhase(build_id=1, drv_path=DRV, phase="installPhase")
DONE = BuildFinished(
    result=BuildResult(drv_path=DRV, status=BuildStatus.BUILT, outputs={"out": OUT})
)
FAILED = BuildFinished(
    result=BuildResult(
        drv_path=DRV,
        status=BuildStatus.PERMANENT_FAILURE,
        message="builder failed\x1b[2J",
        log_tail=(b"one", b"two\x07"),
        log_path="/log",
        kept_build_directory="/kept",
    )
)
CANCELLED = BuildFinished(result=BuildResult(drv_path=DRV, status=BuildStatus.CANCELLED))


def plain(*events: Event, verbosity: int = 3, print_logs: bool = False) -> str:
    out = io.StringIO()
    feed(PlainDisplay(out, STORE, verbosity=verbosity, print_logs=print_logs), events)
    return out.getvalue()


def feed(display: Display, events: Iterable[Event]) -> None:
    for event in events:
        display.take(event)
    display.close()


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (GraphPlanned(will_build=(DRV,)), f"this derivation will be built:\n  {NAME}\n"),
        (STARTED, f"building '{NAME}'...\n"),
        (replace(STARTED, purpose="checking outputs of"), f"checking outputs of '{NAME}'...\n"),
        (LINE, ""),
        (PHASE, ""),
        (DONE, ""),
        (CANCELLED, ""),
        (
            FAILED,
            "error: builder failed\ufffd[2J\n       Last 2 log lines:\n"
            "       > one\n       > two\ufffd\n"
            f"       For full logs, run:\n         executor log {NAME}\n"
            "note: keeping build directory '/kept'\n",
        ),
        (
            WaitingForLock(drv_path=DRV, paths=("/a", "/b")),
            "waiting for lock on '/a', '/b'\n",
        ),
        (
            WaitingForLock(drv_path=DRV, paths=("/a",), holders=(7,)),
            "waiting for lock on '/a', held by process 7\n",
        ),
        (
            WaitingForLock(drv_path=DRV, paths=("/a",), holders=(7, 8)),
            "waiting for lock on '/a', held by processes 7, 8\n",
        ),
        (
            WaitingForUser(drv_path=DRV),
            f"waiting for a free build user ID for '{NAME}'\n",
        ),
        (Notice(level=0, text="bad\x07"), "error: bad\ufffd\n"),
        (Notice(level=1, text="careful"), "warning: careful\n"),
        (Notice(level=3, text="by the way"), "by the way\n"),
        (Notice(level=4, text="talk"), ""),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else "",
)
def test_an_event_in_plain_lines(event: Event, expected: str) -> None:
    assert plain(event) == expected


def test_logs_are_shown_with_the_name_of_their_build() -> None:
    assert plain(LINE, PHASE, print_logs=True) == "hello> compiling\nhello> phase: installPhase\n"


def test_two_derivations_are_these() -> None:
    text = plain(GraphPlanned(will_build=(DRV, OTHER)))
    assert text.startswith("these 2 derivations will be built:\n")


def test_quiet_leaves_errors() -> None:
    assert plain(STARTED, Notice(level=1, text="x"), verbosity=0) == ""
    assert plain(FAILED, verbosity=0).startswith("error: ")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"plain \xc3\xa9 \tx", "plain é \tx"),
        (b"\x1b[31mred\x1b[0m\x1b[1;4m", "\x1b[31mred\x1b[0m\x1b[1;4m"),
        (b"\x1b[2J\x1b]0;title\x07", "\ufffd[2J\ufffd]0;title\ufffd"),
        (b"\x9b31m \x7f \x00", "\ufffd31m \ufffd \ufffd"),
        ("\x9b2J\x85".encode(), "\ufffd2J\ufffd"),
        (b"\xff\xfe", "\ufffd\ufffd"),
        (b"\x1b", "\ufffd"),
        (b"a\x08b\rc", "a\ufffdb\ufffdc"),
    ],
)
def test_what_could_drive_a_terminal_is_replaced(line: bytes, expected: str) -> None:
    assert printable(line) == expected


def objects(text: str) -> list[dict[str, Any]]:
    lines = text.splitlines()
    assert all(line.startswith("@nix ") for line in lines)
    return [json.loads(line.removeprefix("@nix ")) for line in lines]


def as_json(*events: Event) -> list[dict[str, Any]]:
    out = io.StringIO()
    feed(JsonDisplay(out, STORE), events)
    return objects(out.getvalue())


BEGINNING = [
    {"action": "start", "id": number, "level": 0, "parent": 0, "text": "", "type": kind}
    for number, kind in ((1, 102), (2, 104), (3, 103))
]
END = [{"action": "stop", "id": number} for number in (3, 2, 1)]


def result(number: int, kind: int, *fields: str | int) -> dict[str, Any]:
    return {"action": "result", "id": number, "type": kind, "fields": list(fields)}


def test_json_tells_of_a_build_as_nix_does() -> None:
    told = as_json(GraphPlanned(will_build=(DRV,)), STARTED, LINE, PHASE, DONE)
    assert told == [
        *BEGINNING,
        {"action": "msg", "level": 3, "msg": "this derivation will be built:"},
        {"action": "msg", "level": 3, "msg": f"  {NAME}"},
        result(1, 106, 101, 0),
        result(1, 106, 100, 0),
        result(2, 105, 0, 1, 0, 0),
        {
            "action": "start",
            "id": 6,
            "level": 3,
            "type": 105,
            "text": f"building '{NAME}'",
            "fields": [NAME, "", 1, 1],
            "parent": 0,
        },
        result(2, 105, 0, 1, 1, 0),
        result(6, 101, "compiling"),
        result(6, 104, "installPhase"),
        {"action": "stop", "id": 6},
        result(2, 105, 1, 1, 0, 0),
        *END,
    ]


def test_json_tells_of_a_fetch_as_nix_does() -> None:
    name, source = STORE.render(OUT), "https://cache.example"
    told = as_json(
        GraphPlanned(will_build=(), will_substitute=(OUT,), download_size=7, nar_size=9),
        SubstitutionStarted(number=1, path=OUT, source=source),
        SubstitutionFinished(number=1, path=OUT, success=True, nar_size=9),
    )
    activity = {"action": "start", "level": 3}
    fetched = "this path will be fetched (0.0 KiB download, 0.0 KiB unpacked):"
    assert told[3:-3] == [
        {"action": "msg", "level": 3, "msg": fetched},
        {"action": "msg", "level": 3, "msg": f"  {name}"},
        result(1, 106, 101, 7),
        result(1, 106, 100, 9),
        result(2, 105, 0, 0, 0, 0),
        result(3, 105, 0, 1, 0, 0),
        {**activity, "id": 6, "parent": 0, "text": "", "type": 108, "fields": [name, source]},
        {
            **activity,
            "id": 7,
            "parent": 6,
            "text": f"copying path '{name}' from '{source}'",
            "type": 100,
            "fields": [name, source, "local"],
        },
        result(2, 105, 0, 0, 0, 0),
        result(3, 105, 0, 1, 1, 0),
        {"action": "stop", "id": 7},
        {"action": "stop", "id": 6},
        result(2, 105, 0, 0, 0, 0),
        result(3, 105, 1, 1, 0, 0),
    ]


def test_json_tells_of_what_caches_are_asked_and_send() -> None:
    name, source, url = STORE.render(OUT), "https://cache.example", "https://cache.example/x"
    told = as_json(
        QueryStarted(number=1, path=OUT, source=source),
        TransferStarted(number=2, parent=1, url=url),
        BytesDone(number=2, done=3, expected=4),
        WatchEnded(number=2),
        WatchEnded(number=1),
        SubstitutionStarted(number=3, path=OUT, source=source),
        TransferStarted(number=4, parent=3, url=url),
        BytesDone(number=3, done=5, expected=6),
    )
    starts = [each for each in told[3:] if each["action"] == "start"]
    kinds = [(each["type"], each["id"], each["parent"], each["level"]) for each in starts]
    # What is downloaded for a path is inside of its copying, which is where its bytes are, too.
    assert kinds == [
        (109, 6, 0, 4),
        (101, 8, 6, 4),
        (108, 10, 0, 3),
        (100, 11, 10, 3),
        (101, 12, 11, 4),
    ]
    assert starts[0]["text"] == f"querying info about '{name}' on '{source}'"
    assert starts[0]["fields"] == [name, source]
    assert starts[1]["text"] == f"downloading '{url}'"
    assert starts[1]["fields"] == [url]
    assert result(8, 105, 3, 4, 0, 0) in told
    assert result(11, 105, 5, 6, 0, 0) in told
    assert told.index({"action": "stop", "id": 8}) < told.index({"action": "stop", "id": 6})
    # Broken off: nothing is left open.
    assert told[-4:] == [{"action": "stop", "id": 12}, *END]


def test_displays_for_people_hear_nothing_of_bytes() -> None:
    heard = BytesDone(number=1, done=3, expected=4)
    people, out = io.StringIO(), io.StringIO()
    display = PlainDisplay(people, STORE, verbosity=7, print_logs=True)
    both = TeeDisplay(display, JsonDisplay(out, STORE))
    assert both.watches
    assert not display.watches
    assert not bar().watches
    feed(both, [heard])
    assert people.getvalue() == ""
    assert '"fields": [3, 4, 0, 0]' in out.getvalue()


def test_json_tells_of_a_download_that_a_builder_makes() -> None:
    def transfer(action: str, **more: Any) -> BuildTransfer:
        return BuildTransfer(build_id=1, drv_path=DRV, transfer=7, action=action, **more)

    told = as_json(
        STARTED,
        transfer("start", level=3, text="get", fields=("url",)),
        transfer("result", kind=105, fields=(1, 2, 0, 0)),
        DONE,
    )
    (start,) = (each for each in told if each.get("type") == 101 and each["action"] == "start")
    assert (start["parent"], start["text"], start["fields"]) == (6, "get", ["url"])
    assert result(start["id"], 105, 1, 2, 0, 0) in told
    assert told.index({"action": "stop", "id": start["id"]}) < told.index(
        {"action": "stop", "id": 6}
    )
    assert plain(transfer("start", level=3, text="get it")) == "get it\n"


def test_json_counts_what_came_up_on_the_way() -> None:
    other = StorePath("1" * 32, "resolved.drv")
    more = BuildStarted(build_id=2, drv_path=other, start_time=100.0)
    told = as_json(GraphPlanned(will_build=(DRV,)), STARTED, more)
    assert result(2, 105, 0, 2, 2, 0) in told
    # Both still run at the end, which a signal brought.
    assert told[-5:] == [{"action": "stop", "id": 6}, {"action": "stop", "id": 8}, *END]


def test_json_tells_of_a_failure() -> None:
    told = as_json(STARTED, FAILED)
    reason = "builder failed\x1b[2J"
    assert {
        "action": "msg",
        "level": 0,
        "msg": f"\x1b[31;1merror:\x1b[0m {reason}",
        "raw_msg": reason,
        "file": None,
        "line": None,
        "column": None,
    } in told
    assert result(2, 105, 0, 1, 0, 1) in told


@pytest.mark.parametrize(
    ("level", "text"),
    [
        (0, "\x1b[31;1merror:\x1b[0m careful"),
        (1, "\x1b[35;1mwarning:\x1b[0m careful"),
        (3, "careful"),
    ],
)
def test_json_tells_of_what_people_should_know(level: int, text: str) -> None:
    told = as_json(Notice(level=level, text="careful"))
    (message,) = [each for each in told if each["action"] == "msg"]
    assert (message["level"], message["msg"]) == (level, text)
    assert message.get("raw_msg") == ("careful" if level == 0 else None)


@pytest.mark.parametrize(
    ("event", "text"),
    [
        (WaitingForLock(drv_path=DRV, paths=("/a",)), "waiting for lock on '/a'"),
        (WaitingForUser(drv_path=DRV), f"waiting for a free build user ID for '{NAME}'"),
        (WaitingForMachine(drv_path=DRV), f"waiting for a machine to build '{NAME}'"),
    ],
)
@pytest.mark.parametrize("following", [STARTED, DONE, None])
def test_json_tells_of_a_wait_and_of_its_end(
    event: Event, text: str, following: Event | None
) -> None:
    told = as_json(event, *(() if following is None else (following,)))
    start = told[3]
    assert (start["type"], start["level"], start["text"]) == (111, 1, text)
    assert told[4] == {"action": "stop", "id": start["id"]}
    assert not [each for each in told if each["action"] == "msg"]


def test_json_tells_of_waits_one_after_the_other() -> None:
    told = as_json(WaitingForLock(drv_path=DRV, paths=("/a",)), WaitingForUser(drv_path=DRV))
    first, second = (each["id"] for each in told if each.get("type") == 111)
    assert [each.get("id") for each in told[3:-3]] == [first, first, second, second]


def test_json_says_the_plan() -> None:
    told = as_json(GraphPlanned(will_build=(DRV,)))
    said = [each["msg"] for each in told if each["action"] == "msg" and each["level"] == 3]
    assert said == ["this derivation will be built:", f"  {NAME}"]


def test_json_takes_bytes_that_are_no_text() -> None:
    line = BuildLogLine(build_id=1, drv_path=DRV, line=b"\xff\x00\n")
    assert as_json(line)[3]["fields"] == ["\ufffd\x00\n"]


def bar() -> BarDisplay:
    out = io.StringIO()
    return BarDisplay(PlainDisplay(out, STORE, verbosity=0, print_logs=False), Terminal())


class Terminal(io.StringIO):
    """Looks like a terminal to the display: the width of file 0 or 1 isn't asked for."""

    def fileno(self) -> int:
        return TERMINAL


TERMINAL = -1


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterable[None]:
    """A real pseudo-terminal of 40 columns behind ``Terminal``."""
    master, slave = pty.openpty()
    subprocess.run(["stty", "cols", "40", "rows", "10"], stdin=slave, check=True)
    monkeypatch.setattr(sys.modules[__name__], "TERMINAL", slave)
    yield
    os.close(master)
    os.close(slave)


@pytest.mark.usefixtures("terminal")
@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ([GraphPlanned(will_build=(DRV, OTHER))], "[0 building, 0 built, 2 left]"),
        (
            [GraphPlanned(will_build=(DRV, OTHER)), STARTED],
            "[1 building, 0 built, 1 left] hello 5s",
        ),
        ([GraphPlanned(will_build=(DRV,)), STARTED, DONE], "[0 building, 1 built, 0 left]"),
        (
            [GraphPlanned(will_build=(DRV, OTHER)), STARTED, FAILED],
            "[0 building, 0 built, 1 left, 1 failed]",
        ),
        (
            [GraphPlanned(will_build=(DRV,)), STARTED, LINE],
            "[1 building, 0 built, 0 left] hello 5s compiling",
        ),
    ],
)
def test_the_status_line_counts(events: list[Event], expected: str) -> None:
    display = bar()
    for event in events:
        display.take(event)
    assert display.status(105.2) == expected


@pytest.mark.usefixtures("terminal")
def test_the_status_line_fits_and_is_erased() -> None:
    out = Terminal()
    display = BarDisplay(PlainDisplay(out, STORE, verbosity=3, print_logs=False), out)
    wide = BuildLogLine(build_id=1, drv_path=DRV, line=b"\x1b[31m" + b"x" * 200)
    feed(display, [GraphPlanned(will_build=(DRV,)), wide, STARTED])
    for piece in out.getvalue().split("\r\x1b[K"):
        assert max(map(len, piece.split("\n"))) < 120
        assert len(piece.rpartition("\n")[2]) <= 39
    assert out.getvalue().endswith("\r\x1b[K")
    assert f"building '{NAME}'...\n" in out.getvalue()


@pytest.mark.parametrize(
    ("log_format", "kind"),
    [
        (None, PlainDisplay),
        ("raw", PlainDisplay),
        ("raw-with-logs", PlainDisplay),
        ("internal-json", JsonDisplay),
        ("bar", PlainDisplay),
        ("bar-with-logs", PlainDisplay),
    ],
)
def test_the_format_chooses_the_display(
    log_format: str | None, kind: type[Display], capsys: pytest.CaptureFixture[str]
) -> None:
    """There is no terminal here, so no status line either."""
    display = make_display(log_format, print_logs=False, verbosity=3, store_dir=STORE)
    assert type(display) is kind
    capsys.readouterr()


@pytest.mark.root
def test_json_of_a_real_build(workshop: Workshop) -> None:
    drv = workshop.make("talker", "echo said; echo > $out")
    done = workshop.cli("build", drv.text, "--log-format", "internal-json")
    told = objects(done.stderr)
    (start,) = (each for each in told if each.get("type") == 105 and each["action"] == "start")
    actions = [each["action"] for each in told if each.get("id") == start["id"]]
    assert actions == ["start", "result", "stop"]
    assert told[-3:] == END
    assert done.stdout == f"{workshop.render(drv.out)}\n"


@pytest.mark.root
@pytest.mark.parametrize("kind", ["file", "socket"])
def test_a_json_log_beside_the_display(workshop: Workshop, tmp_path: Path, kind: str) -> None:
    drv, log = workshop.make("talker", "echo said; echo > $out"), tmp_path / "log"
    with socket.socket(socket.AF_UNIX) as server:
        if kind == "socket":
            server.bind(str(log))
            server.listen()
        done = workshop.cli("build", drv.text, "--json-log-path", str(log))
        if kind == "socket":
            connection, _ = server.accept()
            with connection, connection.makefile() as stream:
                text = stream.read()
        else:
            text = log.read_text()
    assert "building '" in done.stderr
    told = [json.loads(line) for line in text.splitlines()]
    assert told[0]["action"] == "start"
    assert any(each.get("fields") == ["said"] for each in told)


@pytest.mark.root
@pytest.mark.parametrize("log_format", ["bar", "bar-with-logs"])
def test_a_bar_is_asked_for_where_there_is_no_terminal(workshop: Workshop, log_format: str) -> None:
    drv = workshop.make("talker", "echo said; echo > $out")
    done = workshop.cli("build", drv.text, "--log-format", log_format)
    assert done.returncode == 0, done.stderr
    assert ("talker> said" in done.stderr) is (log_format == "bar-with-logs")


@pytest.mark.root
def test_a_status_line_on_a_real_terminal(workshop: Workshop) -> None:
    """Narrow: nothing that is drawn may wrap, because a wrapped line can't be erased."""
    drv = workshop.make("talker", "for i in 1 2 3; do echo line $i; sleep 0.15; done; echo > $out")
    master, slave = pty.openpty()
    subprocess.run(["stty", "cols", "60", "rows", "10"], stdin=slave, check=True)
    process = subprocess.Popen(
        workshop.command("build", drv.text),
        env={**workshop.environment(), "TERM": "xterm"},
        stdout=subprocess.PIPE,
        stderr=slave,
        text=True,
    )
    os.close(slave)
    shown = b""
    try:
        while piece := os.read(master, 4096):
            shown += piece
    except OSError:
        pass  # Linux says so when the last one closes the other side
    finally:
        os.close(master)
    stdout, _stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout) == (0, f"{workshop.render(drv.out)}\n")
    text = shown.decode()
    assert "[1 building, 0 built, 0 left] talker 0s" in text
    assert re.search(r"line [123]", text)
    drawn = [piece.rpartition("\n")[2] for piece in text.split("\r\x1b[K")]
    assert max(map(len, drawn)) < 60
    assert text.endswith("\r\x1b[K")
