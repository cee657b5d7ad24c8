"""Lines of a builder's output: ends, overwriting, structured lines, bounds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from executor.build.lines import MAX_LINE
from executor.build.log import LineBuffer, MessageLine, PhaseLine, TextLine, TransferLine


def entries(*pieces: bytes) -> list[object]:
    buffer = LineBuffer(25)
    found: list[object] = []
    for piece in pieces:
        found += buffer.feed(piece)
    return found + list(buffer.flush())


def test_lines_may_come_in_pieces() -> None:
    assert entries(b"one\ntw", b"o\nthree") == [
        TextLine(b"one"),
        TextLine(b"two"),
        TextLine(b"three"),
    ]


def test_a_carriage_return_overwrites_and_does_not_erase() -> None:
    assert entries(b"100%\r5\n") == [TextLine(b"500%")]
    assert entries(b"a\r\n") == [TextLine(b"a")]


def test_the_tail_keeps_the_last_lines_only() -> None:
    buffer = LineBuffer(2)
    buffer.feed(b"1\n2\n3\n")
    assert list(buffer.tail) == [b"2", b"3"]


@pytest.mark.parametrize(
    ("line", "entry"),
    [
        (b'@nix {"action":"setPhase","phase":"build"}', PhaseLine("build")),
        (b'@nix {"action":"result","type":104,"fields":["check"]}', PhaseLine("check")),
        (b'@nix {"action":"msg","level":3,"msg":"hello"}', MessageLine(3, "hello")),
    ],
)
def test_structured_lines_are_honoured(line: bytes, entry: object) -> None:
    assert entries(line + b"\n") == [entry]


@pytest.mark.parametrize(
    "line",
    [
        b'@nix {"action":"stop","id":1}',
        b'@nix {"action":"result","type":105,"fields":[1,2,3]}',
        b'@nix {"action":"start","id":1,"type":105,"text":"x"}',
        b'@nix {"action":"nothing that is known"}',
    ],
)
def test_what_could_forge_the_state_of_others_is_dropped(line: bytes) -> None:
    assert entries(line + b"\n") == []


@pytest.mark.parametrize(
    "line",
    [
        b"@nix " + b"[" * 200_000,
        b"@nix " + b"[" * 60_000,
        b'@nix {"a":"' + b"x" * 70_000 + b'"}',
    ],
)
def test_excessive_structured_lines_are_text(line: bytes) -> None:
    assert entries(line + b"\n") == [TextLine(line)]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (b'@nix {"action":', "bad JSON log message from the derivation builder: "),
        (b"@nix ][", "bad JSON log message from the derivation builder: "),
        (b"@nix " + b"9" * 5000, "bad JSON log message from the derivation builder: "),
        (b"@nix 1", "Unable to handle a JSON message from the derivation builder: "),
        (b"@nix [1]", "Unable to handle a JSON message from the derivation builder: "),
        (b"@nix {}", "Unable to handle a JSON message from the derivation builder: "),
        (b'@nix {"action": null}', "Unable to handle a JSON message from the derivation builder: "),
        (b'@nix {"action":"setPhase","phase":7}', "Unable to handle a JSON message from the "),
        (b'@nix {"action":"msg","level":1}', "Unable to handle a JSON message from the "),
    ],
)
def test_malformed_structured_lines_are_text_and_told(line: bytes, complaint: str) -> None:
    told, shown = entries(line + b"\n")
    assert isinstance(told, MessageLine)
    assert told.level == 1
    assert told.text.startswith(complaint)
    assert shown == TextLine(line)


def test_an_endless_line_is_handed_on_in_pieces() -> None:
    found = entries(b"x" * (2 * MAX_LINE + 5))
    assert [len(entry.line) for entry in found if isinstance(entry, TextLine)] == [
        MAX_LINE,
        MAX_LINE,
        5,
    ]


@given(st.lists(st.binary(max_size=40)))
def test_no_output_makes_it_raise(pieces: list[bytes]) -> None:
    entries(*pieces)


@pytest.mark.parametrize(
    "message",
    [
        rb'{"action": "setPhase", "phase": "a\ud800b"}',
        rb'{"action": "msg", "level": 0, "msg": "a\ud800b"}',
        rb'{"action": "result", "type": 104, "fields": ["a\ud800b"]}',
    ],
)
def test_half_a_character_can_be_shown(message: bytes) -> None:
    (entry,) = entries(b"@nix " + message + b"\n")
    assert entry in (PhaseLine("a?b"), MessageLine(0, "a?b"))


START = b'@nix {"action":"start","id":7,"level":3,"type":101,"text":"get it","fields":["url",1]}\n'


def test_downloads_of_a_builder_are_told_from_start_to_end() -> None:
    progress = b'@nix {"action":"result","id":7,"type":105,"fields":[1,2,0,0]}\n'
    stop = b'@nix {"action":"stop","id":7}\n'
    assert entries(progress + stop + START + START + progress + stop + progress) == [
        TransferLine("start", 7, level=3, text="get it", fields=("url", 1)),
        TransferLine("result", 7, kind=105, fields=(1, 2, 0, 0)),
        TransferLine("stop", 7),
    ]


def test_a_builder_can_not_begin_downloads_without_end() -> None:
    lines = b"".join(START.replace(b"7", b"%d" % (number + 1000)) for number in range(5000))
    assert len(entries(lines)) == 256


@pytest.mark.parametrize(
    "changed",
    [
        START.replace(b'"id":7', b'"id":-7'),
        START.replace(b'"id":7', b'"id":true'),
        START.replace(b'"id":7', b'"id":18446744073709551616'),
        START.replace(b'["url",1]', b'["url",[1]]'),
        START.replace(b'["url",1]', b"[" + b",".join([b"1"] * 17) + b"]"),
        START.replace(b'"get it"', b"1"),
        START.replace(b"101", b"105"),
    ],
)
def test_downloads_that_make_no_sense_are_dropped(changed: bytes) -> None:
    assert entries(changed) == []
