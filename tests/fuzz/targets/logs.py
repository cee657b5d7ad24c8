"""What builders and build hooks print."""

from __future__ import annotations

from collections.abc import Hashable

from executor.build.hook_protocol import (
    HookReplyError,
    ReplyLine,
    phase_log_line,
    read_line,
    read_reply,
)
from executor.build.lines import MAX_LINE, LineCutter
from executor.build.log import LineBuffer, LogEntry, MessageLine, PhaseLine, TransferLine
from tests.fuzz.harness import Target
from tests.fuzz.targets.names import expect

_LINES = (
    b'@nix {"action":"setPhase","phase":"unpackPhase"}\n',
    b'@nix {"action":"msg","level":0,"msg":"\\u001b[31;1merror:\\u001b[0m no","raw_msg":"no"}\n',
    b'@nix {"action":"start","fields":["https://x/y"],"id":7,"level":4,"parent":0,'
    b'"text":"downloading","type":101}\n',
    b'@nix {"action":"result","fields":[10,20,0,0],"id":7,"type":105}\n',
    b'@nix {"action":"stop","id":7}\n',
    b'@nix {"action":"result","fields":["a line"],"id":7,"type":101}\n',
    b'@nix {"action":"result","fields":["buildPhase"],"id":7,"type":104}\n',
    b"unpacking\rsources\r\n\nmore \x1b[31mred\x1b[0m \xff\xfe",
    b"# accept\n# decline\n# postpone\n# decline-permanently\n",
)
_TOKENS = (
    *(b"@nix ", b"@nix {", b"# ", b"\r", b"\n", b"\r\n", b"\x1b[", b"\x1b]0;x\x07", b"\0"),
    *(b'"action":', b'"setPhase"', b'"phase":', b'"start"', b'"stop"', b'"result"', b'"msg"'),
    *(b'"id":', b'"type":', b'"level":', b'"fields":', b'"text":', b'"\\ud800"', b"[" * 200),
    *(b"NaN", b"-Infinity", b"1e999", b"null", b"true", b"{}", b"[]", b'{"a":' * 60),
)


def _entries(data: bytes, cuts: list[int]) -> tuple[list[LogEntry], list[bytes]]:
    buffer = LineBuffer(10)
    found: list[LogEntry] = []
    start = 0
    for cut in (*cuts, len(data)):
        found += buffer.feed(data[start:cut])
        start = cut
    found += buffer.flush()
    return found, list(buffer.tail)


def _log(data: bytes) -> Hashable:
    entries, tail = _entries(data, [])
    step = 1 + len(data) // 7
    expect(_entries(data, [*range(1, len(data), step)]) == (entries, tail), "pieces matter")
    for entry in entries:
        match entry:
            case PhaseLine(text) | MessageLine(_, text):
                text.encode()
            case TransferLine(number, transfer):
                expect(0 <= transfer < 1 << 64, "a number is out of range")
                f"{number}".encode()
    return tuple(sorted({type(entry).__name__ for entry in entries})), min(len(entries), 8)


def _hook(data: bytes) -> Hashable:
    cutter = LineCutter()
    half = len(data) // 2
    lines = [*cutter.feed(data[:half]), *cutter.feed(data[half:]), *cutter.flush()]
    expect(b"\n".join(lines) == data.removesuffix(b"\n"), "lines get lost")
    kinds: list[str] = []
    for line in lines:
        expect(len(line) <= MAX_LINE, "a line is too long")
        read = read_line(line)
        kinds.append(type(read).__name__)
        match read:
            case PhaseLine(phase):
                phase_log_line(phase)
            case MessageLine(level, text):
                expect(level >= 0, "a level is negative")
                text.encode()
            case ReplyLine():
                kinds.append(read_reply(read).value)
    return tuple(sorted(set(kinds)))


TARGETS = (
    Target(name="log", run=_log, errors=(), inputs=(*_LINES, b"".join(_LINES)), tokens=_TOKENS),
    Target(
        name="hook",
        run=_hook,
        errors=(HookReplyError,),
        inputs=(*_LINES, b"".join(_LINES)),
        tokens=_TOKENS,
    ),
)
