"""Facts that the executor hands to a builtin builder besides the derivation's environment.

They travel as argument words `key=value` after the builder's name, because a builtin runs in its
own process. This module is light: the executor renders with it, the builtin parses with it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields

from executor.errors import UsageError
from executor.formats.hashes import Hash, HashAlgorithm


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltinOptions:
    """What a builtin may need to know; durations are in the unit that their name or Nix's gives.

    `output_method` ("flat", "nar", "text", "git") and `output_hash` describe a fixed output, and
    are None for every other kind of derivation. `impure` marks an impure derivation. File names
    are names inside the sandbox. `connect_timeout` and `stalled_timeout` are seconds, 0 means no
    limit; `attempts` counts the first try too. Defaults are those of Nix 2.34.
    """

    output_method: str | None = None
    output_hash: Hash | None = None
    impure: bool = False
    hashed_mirrors: tuple[str, ...] = ()
    netrc_file: bytes | None = None
    ca_file: bytes | None = None
    connect_timeout: int = 15
    stalled_timeout: int = 300
    attempts: int = 5
    retry_delay_ms: int = 100
    retry_delay_rate_limited_ms: int = 5000
    retry_max_delay_ms: int = 60_000
    retry_jitter: bool = True
    user_agent_suffix: str = field(default="")

    def render(self) -> tuple[bytes, ...]:
        """The argument words of these options; what has its default value is left out."""
        words: list[bytes] = []
        for name, default in _DEFAULTS.items():
            value = getattr(self, name)
            if value == default:
                continue
            values = value if isinstance(value, tuple) else (value,)
            words += [name.replace("_", "-").encode() + b"=" + _render(each) for each in values]
        return tuple(words)

    @classmethod
    def parse(cls, words: Sequence[bytes]) -> "BuiltinOptions":
        """Read the argument words; raises UsageError for an unknown or ill-formed one."""
        values: dict[str, object] = {}
        mirrors: list[str] = []
        for word in words:
            key, equals, value = word.partition(b"=")
            name = key.decode("ascii", "replace").replace("-", "_")
            if not equals or name not in _DEFAULTS:
                raise UsageError(f"unknown option of a builtin builder: {word!r}")
            if name == "hashed_mirrors":
                mirrors.append(_text(value))
            else:
                values[name] = _READERS[name](value)
        return cls(**values, hashed_mirrors=tuple(mirrors))  # type: ignore[arg-type]


_DEFAULTS: Mapping[str, object] = {each.name: each.default for each in fields(BuiltinOptions)}


def _render(value: object) -> bytes:
    match value:
        case bool():
            return b"1" if value else b"0"
        case bytes():
            return value
        case Hash():
            return f"{value.algorithm.value}:{value.base16}".encode()
        case _:
            return str(value).encode("utf-8", "surrogateescape")


def _text(value: bytes) -> str:
    return value.decode("utf-8", "surrogateescape")


def _flag(value: bytes) -> bool:
    if value not in (b"0", b"1"):
        raise UsageError(f"option of a builtin builder is neither 0 nor 1: {value!r}")
    return value == b"1"


def _number(value: bytes) -> int:
    if not value.isdigit():
        raise UsageError(f"option of a builtin builder is not a number: {value!r}")
    return int(value)


def _hash(value: bytes) -> Hash:
    algorithm, _, digits = value.partition(b":")
    try:
        return Hash(HashAlgorithm(algorithm.decode()), bytes.fromhex(digits.decode()))
    except ValueError as error:
        raise UsageError(f"option of a builtin builder is not a hash: {value!r}") from error


_READERS: Mapping[str, Callable[[bytes], object]] = {
    "output_method": _text,
    "output_hash": _hash,
    "impure": _flag,
    "netrc_file": bytes,
    "ca_file": bytes,
    "connect_timeout": _number,
    "stalled_timeout": _number,
    "attempts": _number,
    "retry_delay_ms": _number,
    "retry_delay_rate_limited_ms": _number,
    "retry_max_delay_ms": _number,
    "retry_jitter": _flag,
    "user_agent_suffix": _text,
}
