"""Messages to a build hook and lines from it, without any process."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from executor.build.hook_protocol import (
    BuilderLine,
    HookReplyError,
    Reply,
    ReplyLine,
    Request,
    build_message,
    configuration_text,
    phase_log_line,
    read_line,
    read_reply,
    request_message,
    setting_values,
    settings_message,
    store_url,
)
from executor.build.lines import MAX_LINE, LineCutter
from executor.build.log import MessageLine, PhaseLine, TextLine
from executor.build.machines import has_machines
from executor.config import SandboxPath, Settings, load_settings
from executor.limits import parse_limit_rules
from executor.network_rules import parse_network_rules
from executor.store.location import parse_store_url

NOWHERE = {"NIX_CONF_DIR": "/nonexistent", "XDG_CONFIG_DIRS": "/nonexistent"}


def word(text: bytes) -> bytes:
    """A string as it is sent."""
    return len(text).to_bytes(8, "little") + text + bytes(-len(text) % 8)


ONE, ZERO, TWO = (number.to_bytes(8, "little") for number in (1, 0, 2))


def test_settings() -> None:
    message = settings_message([("name", "value"), ("empty", "")])
    assert message == ONE + word(b"name") + word(b"value") + ONE + word(b"empty") + ZERO + ZERO


def test_a_request() -> None:
    request = Request(willing=True, system="s", drv_path="/nix/x.drv", features={"kvm", "big"})
    assert request_message(request) == (
        word(b"try") + ONE + word(b"s") + word(b"/nix/x.drv") + TWO + word(b"big") + word(b"kvm")
    )
    unwilling = request_message(replace(request, willing=False, features=()))
    assert unwilling.removeprefix(word(b"try")).startswith(ZERO)
    assert unwilling.endswith(word(b"/nix/x.drv") + ZERO)


def test_what_follows_an_acceptance() -> None:
    assert build_message(["/b", "/a"], ["out"]) == (
        TWO + word(b"/a") + word(b"/b") + ONE + word(b"out")
    )
    assert build_message([], []) == ZERO + ZERO


def test_bytes_that_are_no_text() -> None:
    assert build_message(["\udcff"], []) == ONE + word(b"\xff") + ZERO


def test_values_of_settings() -> None:
    settings = Settings(
        max_jobs=3,
        system_features=frozenset({"kvm", "big-parallel"}),
        substituters=("https://a", "https://b"),
        builders_use_substitutes=True,
        sandbox_paths=(
            SandboxPath(target="/bin/sh", source="/bin/busybox", read_only=True),
            SandboxPath(target="/etc", source="/etc", optional=True),
        ),
        builders="ssh://a x86_64-linux ; ssh://b",
    )
    values = setting_values(settings, "local?root=/x")
    assert values["max-jobs"] == "3"
    assert values["system-features"] == "big-parallel kvm"
    assert values["substituters"] == "https://a https://b"
    assert values["builders-use-substitutes"] == "true"
    assert values["sandbox-paths"] == "/bin/sh=/bin/busybox /etc?"
    assert values["builders"] == "ssh://a x86_64-linux ; ssh://b"
    assert values["build-hook"] == "nix __build-remote"
    assert values["store"] == "local?root=/x"
    assert values["sandbox"] == "true"
    assert list(values) == sorted(values)


def test_settings_that_nix_does_not_know_are_told_where_they_matter() -> None:
    values = setting_values(Settings(), "local")
    for name in ("repeat", "extra-local-jobs", "build-hook-kill-timeout", "impure-env"):
        assert name not in values
    assert setting_values(Settings(repeat=2), "local")["repeat"] == "2"
    # Nix doesn't take an empty path for none.
    assert "build-dir" not in values
    assert values["post-build-hook"] == ""


def test_they_can_be_read_again() -> None:
    settings = replace(
        load_settings(environ=NOWHERE).settings,
        max_jobs=7,
        substituters=("https://a",),
        impure_env={"A": "b"},
        post_build_hook="/x y",
        sandbox_paths=(),
    )
    text = configuration_text(
        {
            name: value
            for name, value in setting_values(settings, "local").items()
            if name not in ("store", "sandbox")
        }
    )
    loaded = load_settings(environ={**NOWHERE, "NIX_CONFIG": text})
    assert loaded.settings == settings
    assert loaded.warnings == ()


@pytest.mark.parametrize(
    "text",
    [
        "local",
        "/srv/a b&c=d%",
        "local?root=/x&store=/gnu/store",
        "local?real=/a/b&state=/s&log=/l",
    ],
)
def test_the_url_of_a_store_leads_to_it(text: str) -> None:
    location = parse_store_url(text, {})
    assert replace(parse_store_url(store_url(location), {}), root_dir=None) == replace(
        location, root_dir=None
    )


@pytest.mark.parametrize("reply", list(Reply))
def test_replies(reply: Reply) -> None:
    line = read_line(f"# {reply.value}".encode())
    assert line == ReplyLine(reply.value)
    assert isinstance(line, ReplyLine)
    assert read_reply(line) is reply


@pytest.mark.parametrize("line", [b"# ", b"# Accept", b"# accept ", b"# \xff"])
def test_no_replies(line: bytes) -> None:
    reply = read_line(line)
    assert isinstance(reply, ReplyLine)
    with pytest.raises(HookReplyError, match="bad hook reply"):
        read_reply(reply)


@pytest.mark.parametrize(
    ("message", "meaning"),
    [
        ({"action": "msg", "level": 3, "msg": "hello"}, MessageLine(3, "hello")),
        ({"action": "msg", "level": 0, "msg": "\x1b[31;1merror:\x1b[0m no"}, MessageLine(0, "no")),
        ({"action": "msg", "level": 1, "msg": "warning: so"}, MessageLine(1, "so")),
        ({"action": "msg", "level": 3, "msg": "error: so"}, MessageLine(3, "error: so")),
        ({"action": "msg", "level": -5, "msg": "x"}, MessageLine(0, "x")),
        ({"action": "msg", "level": "3", "msg": "x"}, None),
        ({"action": "msg", "level": 3}, None),
        ({"action": "start", "id": 1, "level": 3, "text": "copying"}, MessageLine(3, "copying...")),
        ({"action": "start", "id": 1, "level": 4, "text": "connecting"}, None),
        ({"action": "start", "id": 1, "level": 3, "text": ""}, None),
        ({"action": "start", "id": 1, "level": 3, "text": ["x"]}, None),
        ({"action": "stop", "id": 1}, None),
        ({"action": "setPhase", "phase": "build"}, PhaseLine("build")),
        ({"action": "result", "type": 101, "fields": ["log"]}, BuilderLine(b"log")),
        ({"action": "result", "type": 101, "fields": [1]}, None),
        ({"action": "result", "type": 101, "fields": []}, None),
        ({"action": "result", "type": 101, "fields": "x"}, None),
        ({"action": "result", "type": 101}, None),
        ({"action": "result", "type": 104, "fields": ["p"]}, PhaseLine("p")),
        ({"action": "result", "type": 105, "fields": [1, 2, 3]}, None),
        ({"action": {"a": 1}}, None),
        ([], None),
        (3, None),
    ],
)
def test_messages(message: object, meaning: object) -> None:
    assert read_line(b"@nix " + json.dumps(message).encode()) == meaning


def test_lines_that_are_no_messages() -> None:
    assert read_line(b"plain") == TextLine(b"plain")
    assert read_line(b"#comment") == TextLine(b"#comment")
    assert read_line(b"@nix") == TextLine(b"@nix")
    broken = MessageLine(1, "bad JSON log message from the build hook")
    for text in (b"@nix {", b"@nix \xff", b"@nix " + b"[" * 100_000):
        assert read_line(text) == broken


@given(st.binary(max_size=200))
def test_no_line_is_too_strange(line: bytes) -> None:
    read_line(line)
    read_line(b"@nix " + line)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    ),
    st.sampled_from(["msg", "start", "stop", "result", "setPhase"]),
    st.sampled_from(["level", "msg", "text", "phase", "fields", "type"]),
)
def test_no_message_is_too_strange(value: object, action: str, key: str) -> None:
    full = {"level": 3, "msg": "m", "text": "t", "phase": "p", "type": 101, "fields": ["f"]}
    message = {**full, "action": action, key: value}
    meaning = read_line(b"@nix " + json.dumps(message).encode())
    if isinstance(meaning, MessageLine):
        meaning.text.encode()
    if isinstance(meaning, PhaseLine):
        meaning.phase.encode()


def test_a_phase_in_the_log() -> None:
    assert phase_log_line('a"b') == b'@nix {"action":"setPhase","phase":"a\\"b"}\n'


@given(st.lists(st.binary(max_size=20)))
def test_lines_are_cut_wherever_the_data_is(pieces: list[bytes]) -> None:
    cutter = LineCutter()
    lines = [line for piece in pieces for line in cutter.feed(piece)]
    rest = cutter.flush()
    assert cutter.flush() == []
    whole = b"".join(pieces)
    assert b"".join(line + b"\n" for line in lines) + b"".join(rest) == whole


def test_endless_lines_come_in_pieces() -> None:
    cutter = LineCutter()
    lines = [line for _ in range(5) for line in cutter.feed(b"x" * MAX_LINE)]
    assert lines == [b"x" * MAX_LINE] * 4
    assert cutter.flush() == [b"x" * MAX_LINE]


@pytest.mark.parametrize(
    ("builders", "expected"),
    [
        ("", False),
        (" ; \n # ssh://x", False),
        ("ssh://a", True),
        ("# no\nssh://a x86_64-linux", True),
        (";/srv/other", True),
        ("@/missing", False),
        ("@/empty", False),
        ("@/full", True),
        ("@/missing ; ssh://a", True),
        ("@/loop", False),
        ("@/two", False),
        ("@/a\0b", False),
    ],
)
def test_machines(builders: str, expected: bool) -> None:
    files = {"/empty": "# nothing\n\n", "/full": "\n@/empty\nssh://a\n", "/loop": "@/loop\n"}
    # Each of these names all, itself too.
    files |= {f"/{name}": "@/two\n@/three\n@/four\n" * 9 for name in ("two", "three", "four")}

    def read_file(path: str) -> str:
        if "\0" in path:
            raise ValueError("embedded null byte")
        if path not in files:
            raise FileNotFoundError(path)
        return files[path]

    assert has_machines(builders, read_file) is expected


def test_rules_are_told_as_they_are_written() -> None:
    text = "allow 192.0.2.0/24 tcp 80,443; deny any"
    limits = "name:chromium-* memory=16G; feature:big-parallel pids=4096"
    settings = Settings(
        fod_network_rules=parse_network_rules(text), build_limits=parse_limit_rules(limits)
    )
    told = setting_values(settings, "local")
    assert parse_network_rules(told["fod-network-rules"]) == settings.fod_network_rules
    assert parse_limit_rules(told["build-limits"]) == settings.build_limits
    assert "fod-network" not in told  # Nix has no such setting, and it is as it is by itself
