"""What the engine and a build hook say to each other (rows P1 to P8); pure.

The engine writes binary messages: integers are 64 bits, little endian; strings have their length
before them and zeros behind, up to a multiple of 8; lists have their number before them. The hook
answers with lines. What a hook says is bounded and never makes anything here raise but
``HookReplyError``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, fields
from enum import Enum
from urllib.parse import quote

from executor.build.log import MessageLine, PhaseLine, TextLine
from executor.config import SandboxPath, Settings
from executor.errors import ExecutorError
from executor.store.location import StoreLocation

# What a hook is asked to tell: as Nix does without options. Displays may show less.
VERBOSITY = 3
_WORD = 8
_JSON = b"@nix "
_REPLY = b"# "
_LOG_LINE, _SET_PHASE = 101, 104
_COLOURS = re.compile("\x1b\\[[0-9;]*m")
_KIND = re.compile(r"\s*(?:error|warning): *")
# Settings that Nix 2.34 doesn't know or that need a feature; told only where they are not default.
_OURS = frozenset(
    {
        "repeat",
        "enforce_determinism",
        "impure_env",
        "build_hook_kill_timeout",
        "extra_local_jobs",
        "silent_client_options",
        "fod_network",
        "fod_network_rules",
        "build_limits",
        "build_limits_mode",
        "build_memory_max",
        "build_cpu_max",
        "build_pids_max",
        "build_disk_max",
        # Known to Nix, which warns of them where their features are not enabled.
        "auto_allocate_uids",
        "use_cgroups",
    }
)
# Paths: Nix doesn't take an empty one for "none".
_PATHS = frozenset({"build_dir", "ssl_cert_file", "netrc_file", "json_log_path", "diff_hook"})


class HookReplyError(ExecutorError):
    """A hook answered with a word that is no answer."""


class Reply(Enum):
    """The words that a hook answers with."""

    ACCEPT = "accept"
    DECLINE = "decline"
    DECLINE_PERMANENTLY = "decline-permanently"
    POSTPONE = "postpone"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One derivation that is offered; ``willing`` says that it could be built here at once."""

    willing: bool
    system: str
    drv_path: str
    features: Collection[str]


@dataclass(frozen=True, slots=True)
class ReplyLine:
    """The answer to a request, not yet looked at."""

    word: str


@dataclass(frozen=True, slots=True)
class BuilderLine:
    """A line that the builder printed on the other machine."""

    line: bytes


HookLine = ReplyLine | BuilderLine | PhaseLine | MessageLine | TextLine


# From the engine.


def settings_message(pairs: Iterable[tuple[str, str]]) -> bytes:
    """The beginning of the conversation: all settings."""
    told = b"".join(_integer(1) + _string(name) + _string(value) for name, value in pairs)
    return told + _integer(0)


def request_message(request: Request) -> bytes:
    """The question whether the hook takes a derivation."""
    return (
        _string("try")
        + _integer(request.willing)
        + _string(request.system)
        + _string(request.drv_path)
        + _strings(request.features)
    )


def build_message(inputs: Collection[str], outputs: Collection[str]) -> bytes:
    """What follows an acceptance: paths of all inputs, names of the outputs that are missing."""
    return _strings(inputs) + _strings(outputs)


def setting_values(settings: Settings, store_url: str) -> dict[str, str]:
    """All settings as nix.conf writes them, for programs that read Nix's configuration."""
    default = Settings()
    values = {"sandbox": "true", "store": store_url}
    for field in fields(Settings):
        value = getattr(settings, field.name)
        if field.name in _OURS and value == getattr(default, field.name):
            continue
        text = _value(value)
        if text or field.name not in _PATHS:
            values[field.name.replace("_", "-")] = text
    return dict(sorted(values.items()))


def store_url(location: StoreLocation) -> str:
    """How Nix is told where a local store is."""
    parameters = {
        "root": location.root_dir,
        "store": location.store_dir.path,
        "real": location.real_store_dir,
        "state": location.state_dir,
        "log": location.log_dir,
    }
    return "local?" + "&".join(
        f"{name}={quote(path)}" for name, path in parameters.items() if path is not None
    )


def configuration_text(values: Mapping[str, str]) -> str:
    """The same as the text of a configuration file."""
    return "".join(f"{name} = {value}\n" for name, value in values.items())


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return " ".join(f"{key}={item}" for key, item in sorted(value.items()))
    if isinstance(value, frozenset):
        return " ".join(sorted(value))
    if isinstance(value, tuple):
        return " ".join(_sandbox_path(x) if isinstance(x, SandboxPath) else _word(x) for x in value)
    return str(value)


def _word(item: object) -> str:
    # Rules have spaces in them and semicolons between them.
    return item if isinstance(item, str) else f"{str(item).rstrip(';')};"


def _sandbox_path(path: SandboxPath) -> str:
    # Nix has no word for read-only; store paths are so for a build user anyway.
    source = "" if path.source == path.target else f"={path.source}"
    return f"{path.target}{source}{'?' if path.optional else ''}"


def _integer(number: int) -> bytes:
    return number.to_bytes(_WORD, "little")


def _string(text: str) -> bytes:
    data = text.encode("utf-8", "surrogateescape")
    return _integer(len(data)) + data + bytes(-len(data) % _WORD)


def _strings(texts: Collection[str]) -> bytes:
    return _integer(len(texts)) + b"".join(map(_string, sorted(texts)))


# From the hook.


def read_line(line: bytes) -> HookLine | None:
    """What a line of the hook means; nothing for messages that don't matter to us."""
    if line.startswith(_REPLY):
        return ReplyLine(line[len(_REPLY) :].decode("utf-8", "replace"))
    if not line.startswith(_JSON):
        return TextLine(line)
    try:
        message = json.loads(line[len(_JSON) :])
    except (ValueError, RecursionError):
        return MessageLine(1, "bad JSON log message from the build hook")
    return _message(message) if isinstance(message, dict) else None


def read_reply(line: ReplyLine) -> Reply:
    """The answer. Raises ``HookReplyError``."""
    try:
        return Reply(line.word)
    except ValueError:
        raise HookReplyError(f"bad hook reply '{line.word[:60]}'") from None


def phase_log_line(phase: str) -> bytes:
    """How the log file of a build shows that the other machine announced a phase."""
    text = json.dumps({"action": "setPhase", "phase": phase}, separators=(",", ":"))
    return f"@nix {text}\n".encode()


def _message(message: dict[str, object]) -> HookLine | None:
    action = message.get("action")
    if action == "msg":
        return _notice(message.get("level"), message.get("msg"))
    if action == "start" and message.get("text"):
        # Activities are told whatever the verbosity is.
        notice = _notice(message.get("level"), message["text"])
        if notice is None or notice.level > VERBOSITY:
            return None
        return MessageLine(notice.level, f"{notice.text}...")
    if action == "setPhase":
        return _phase(message.get("phase"))
    if action == "result":
        items = message.get("fields")
        first = items[0] if isinstance(items, list) and items else None
        if message.get("type") == _SET_PHASE:
            return _phase(first)
        if message.get("type") == _LOG_LINE and isinstance(first, str):
            return BuilderLine(first.encode("utf-8", "replace"))
    return None


def _notice(level: object, text: object) -> MessageLine | None:
    if not (isinstance(level, int) and isinstance(text, str)):
        return None
    # Displays put the kind of a message before it themselves.
    plain = _COLOURS.sub("", text)
    kind = _KIND.match(plain) if level <= 1 else None
    return MessageLine(max(level, 0), _encodable(plain[kind.end() :] if kind else plain))


def _phase(phase: object) -> PhaseLine | None:
    return PhaseLine(_encodable(phase)) if isinstance(phase, str) else None


def _encodable(text: str) -> str:
    """Without the halves of surrogate pairs that JSON can hold and no terminal can be sent."""
    return text.encode("utf-8", "replace").decode()
