"""Configuration: nix.conf, NIX_CONFIG and the command line, read as Nix reads them.

Values only: what is read here is passed down, and nothing below asks for it again. Later sources
win over earlier ones: ``nix.conf``, the user's files, ``NIX_CONFIG``, the command line.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import count

from executor.errors import ConfigError
from executor.host import Host, detect_host
from executor.limits import MODES as LIMITS_MODES
from executor.limits import Resource, parse_limit, parse_limit_rules
from executor.network_rules import MODES as NETWORK_MODES
from executor.network_rules import parse_network_rules
from executor.setting_names import ALIASES, EXPERIMENTAL, HARMLESS, NIX_ONLY
from executor.settings import SandboxPath, Settings

__all__ = ["LoadedSettings", "SandboxPath", "Settings", "load_settings"]

# How deep files may include each other, and how many may be read in all.
_MAX_INCLUDES = 32
_MAX_FILES = 1000
_DEFAULT_CONF_DIR = "/etc/nix"
_EXTRA = "extra-"
_TRUE, _FALSE = ("true", "yes", "1"), ("false", "no", "0")
# Settings that have one of a few words.
_CHOICES = {"build-limits-mode": LIMITS_MODES, "fod-network": NETWORK_MODES}
# Of a list where the first match decides, what is added comes first.
_FIRST_WINS = frozenset({"fod-network-rules"})
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}

_LIMITS = frozenset(resource.setting for resource in Resource)

ReadFile = Callable[[str], str]


@dataclass(frozen=True, slots=True)
class LoadedSettings:
    """The settings, and sentences for the user about what was ignored.

    ``chosen`` are the names of those that somebody else than this machine's ``nix.conf`` has set.
    ``store`` is the reference of the store to use, if a file names one.
    """

    settings: Settings
    warnings: tuple[str, ...]
    chosen: frozenset[str] = frozenset()
    store: str | None = None


@dataclass(frozen=True, slots=True)
class _Assignment:
    """One ``name = value``, and where it stands."""

    name: str
    value: str
    origin: str
    from_command_line: bool = False
    from_system: bool = False


def load_settings(
    *,
    environ: Mapping[str, str],
    overrides: Iterable[tuple[str, str]] = (),
    host: Host | None = None,
    read_file: ReadFile | None = None,
) -> LoadedSettings:
    """Read everything. ``overrides`` are the options of the command line, in order.

    Raises ``ConfigError`` for a value that a setting can't have, naming where it stands, and for
    an option of the command line that would weaken the sandbox.
    """
    reader = _limited(read_file or _read_file)
    machine = host or detect_host()
    resolver = _Resolver(_defaults(environ, machine))
    for assignment in _assignments(environ, reader):
        resolver.assign(assignment)
    for name, value in overrides:
        resolver.assign(_Assignment(name, value, f"option '{name}'", from_command_line=True))
    return LoadedSettings(
        resolver.settings(), resolver.warnings, frozenset(resolver.chosen), resolver.store
    )


def _limited(read_file: ReadFile) -> ReadFile:
    """Two files that include each other twice would be read for ever, as deep as that may go."""
    numbers = count(1)

    def read(path: str) -> str:
        if next(numbers) > _MAX_FILES:
            raise ConfigError(f"more than {_MAX_FILES} configuration files, '{path}' is the last")
        return read_file(path)

    return read


def override_settings(
    settings: Settings, overrides: Iterable[tuple[str, str]], origin: str
) -> LoadedSettings:
    """Other settings, as somebody asks for who is not our command line: a client of the daemon.

    What would weaken the sandbox, is unknown or can't be is ignored with a warning.
    """
    resolver = _Resolver({field.name: getattr(settings, field.name) for field in fields(settings)})
    warnings: list[str] = []
    for name, value in overrides:
        try:
            resolver.assign(_Assignment(name, value, origin))
        except ConfigError as error:
            warnings.append(str(error))
    return LoadedSettings(resolver.settings(), (*warnings, *resolver.warnings))


def _read_file(path: str) -> str:
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        return file.read()


def _defaults(environ: Mapping[str, str], host: Host) -> dict[str, object]:
    """Field values that depend on the machine or the environment."""
    shell = (
        (SandboxPath(target="/bin/sh", source=host.shell, read_only=True),) if host.shell else ()
    )
    certificates = environ.get("NIX_SSL_CERT_FILE") or environ.get("SSL_CERT_FILE")
    conf_dir = environ.get("NIX_CONF_DIR") or _DEFAULT_CONF_DIR
    return {
        "system": host.system,
        "extra_platforms": host.extra_platforms,
        "system_features": host.features,
        "sandbox_paths": shell,
        "ssl_cert_file": certificates or host.certificates,
        "netrc_file": f"{conf_dir}/netrc",
    }


def _assignments(environ: Mapping[str, str], read_file: ReadFile) -> Iterator[_Assignment]:
    """All assignments outside the command line, earlier sources first."""
    conf_dir = environ.get("NIX_CONF_DIR") or _DEFAULT_CONF_DIR
    system = f"{conf_dir}/nix.conf"
    for path in (system, *_user_files(environ)):
        try:
            text = read_file(path)
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            continue
        for assignment in parse_configuration(text, path, read_file):
            yield replace(assignment, from_system=path == system)
    if "NIX_CONFIG" in environ:
        yield from parse_configuration(environ["NIX_CONFIG"], "NIX_CONFIG", read_file)


def _user_files(environ: Mapping[str, str]) -> list[str]:
    """The user's configuration files, least important first."""
    listed = environ.get("NIX_USER_CONF_FILES")
    if listed is not None:
        return [path for path in reversed(listed.split(":")) if path]
    home = environ.get("HOME", "")
    config_home = environ.get("XDG_CONFIG_HOME") or (f"{home}/.config" if home else "")
    directories = [config_home, *environ.get("XDG_CONFIG_DIRS", "/etc/xdg").split(":")]
    return [f"{directory}/nix/nix.conf" for directory in reversed(directories) if directory]


def parse_configuration(
    text: str, origin: str, read_file: ReadFile, depth: int = 0
) -> Iterator[_Assignment]:
    """The assignments of one configuration text, with what it includes in their places."""
    for number, line in enumerate(text.split("\n"), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        where = f"{origin}:{number}"
        if words[0] in ("include", "!include"):
            yield from _include(words, where, origin, read_file, depth)
        elif len(words) < 2 or words[1] != "=":
            raise ConfigError(f"{where}: syntax error: expected 'name = value'")
        else:
            yield _Assignment(words[0], " ".join(words[2:]), where)


def _include(
    words: Sequence[str], where: str, origin: str, read_file: ReadFile, depth: int
) -> Iterator[_Assignment]:
    if len(words) != 2:
        raise ConfigError(f"{where}: '{words[0]}' needs one file name")
    if depth >= _MAX_INCLUDES:
        raise ConfigError(f"{where}: files include each other too deeply")
    path = os.path.join(os.path.dirname(origin), words[1])
    try:
        text = read_file(path)
    except (OSError, ValueError) as error:
        # The other one is what a name with a NUL gets.
        if words[0] == "include":
            reason = error.strerror if isinstance(error, OSError) else error
            raise ConfigError(f"{where}: can't read '{path}': {reason}") from error
        return
    yield from parse_configuration(text, path, read_file, depth + 1)


class _Resolver:
    """Applies assignments one by one."""

    def __init__(self, defaults: Mapping[str, object]) -> None:
        self._types = {field.name: field.type for field in fields(Settings)}
        base = Settings(**defaults)  # type: ignore[arg-type]
        self._values = {name: getattr(base, name) for name in self._types}
        self._unknown: dict[str, str] = {}
        self._weak: dict[str, str] = {}
        self._gated: dict[str, None] = {}
        self.chosen: set[str] = set()
        self.store: str | None = None

    def settings(self) -> Settings:
        """The result so far."""
        ignored = {name.replace("-", "_"): False for name in self._disabled()}
        return Settings(**{**self._values, **ignored})

    @property
    def warnings(self) -> tuple[str, ...]:
        """What was ignored: once for each setting, and only if the last word on it is weak."""
        disabled = (
            f"Ignoring setting '{name}' because experimental feature '{EXPERIMENTAL[name]}' is not "
            "enabled"
            for name in self._disabled()
        )
        return (*self._unknown.values(), *self._weak.values(), *disabled)

    def _disabled(self) -> list[str]:
        """Settings that were set without the experimental feature that they need."""
        features = self._values["experimental_features"]
        assert isinstance(features, frozenset)
        return [name for name in self._gated if EXPERIMENTAL[name] not in features]

    def assign(self, assignment: _Assignment) -> None:
        name, appending = self._canonical(assignment.name)
        if name in HARMLESS:
            self._weakening(name, assignment)
            return
        if name == "store":
            self.store = assignment.value
            return
        attribute = name.replace("-", "_")
        if attribute not in self._types or "_" in name:
            if name not in NIX_ONLY:
                self._unknown[name] = f"unknown setting '{assignment.name}'"
            return
        kind = str(self._types[attribute])
        try:
            value = _parse(name, kind, assignment.value)
        except ValueError as error:
            raise ConfigError(f"{assignment.origin}: setting '{name}': {error}") from None
        if name in EXPERIMENTAL:
            self._gated[name] = None
        if not assignment.from_system:
            self.chosen.add(name)
        if appending:
            old = self._values[attribute]
            value = _append(value, old) if name in _FIRST_WINS else _append(old, value)
        self._values[attribute] = value

    def _canonical(self, name: str) -> tuple[str, bool]:
        """The setting that a name means, and whether it adds to it."""
        name = ALIASES.get(name, name)
        if name.replace("-", "_") in self._types or not name.startswith(_EXTRA):
            return name, False
        inner = name.removeprefix(_EXTRA)
        inner = ALIASES.get(inner, inner)
        kind = str(self._types.get(inner.replace("-", "_"), ""))
        if kind.startswith(("tuple", "frozenset", "Mapping")):
            return inner, True
        return (inner, True) if inner in NIX_ONLY else (name, False)

    def _weakening(self, name: str, assignment: _Assignment) -> None:
        if assignment.value in HARMLESS[name]:
            self._weak.pop(name, None)
            return
        text = (
            f"setting '{name} = {assignment.value}' would weaken the sandbox, which the executor "
            "never does"
        )
        if assignment.from_command_line:
            raise ConfigError(f"{text}; leave it out")
        self._weak[name] = f"{text}; it is ignored"


def _append(old: object, new: object) -> object:
    if isinstance(old, tuple) and isinstance(new, tuple):
        return old + new
    if isinstance(old, frozenset) and isinstance(new, frozenset):
        return old | new
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        return {**old, **new}
    raise TypeError(f"can't append to {type(old).__name__}")


def _parse(name: str, kind: str, text: str) -> object:
    """A value of a setting's type. Raises ``ValueError`` with what is wrong."""
    if kind == "bool":
        return _boolean(text)
    if kind == "int":
        if name in _LIMITS:
            return parse_limit(text)
        if name == "max-jobs" and text == "auto":
            return len(os.sched_getaffinity(0))
        return _integer(text)
    if kind.startswith("tuple[SandboxPath"):
        return tuple(parse_sandbox_path(word) for word in text.split())
    if kind.startswith("tuple[LimitRule"):
        return parse_limit_rules(text)
    if kind.startswith("tuple[NetworkRule"):
        return parse_network_rules(text)
    if kind.startswith("tuple"):
        return tuple(text.split())
    if kind.startswith("frozenset"):
        return frozenset(text.split())
    if kind.startswith("Mapping"):
        return dict(_pair(word) for word in text.split())
    if name in _CHOICES and text not in _CHOICES[name]:
        raise ValueError(f"'{text}' is not one of {', '.join(_CHOICES[name])}")
    return text


def _pair(word: str) -> tuple[str, str]:
    key, equals, value = word.partition("=")
    if not equals:
        raise ValueError(f"'{word}' is not of the form name=value")
    return key, value


def _boolean(text: str) -> bool:
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    raise ValueError(f"'{text}' is not a Boolean (true or false)")


def _integer(text: str) -> int:
    unit = _UNITS.get(text[-1:].upper(), 1) if text[-1:].isalpha() else 1
    digits = text[:-1] if unit > 1 else text
    if not (digits.isascii() and digits.isdigit()):
        raise ValueError(f"'{text}' is not a number")
    return int(digits) * unit


def parse_sandbox_path(word: str) -> SandboxPath:
    """Read ``target=source``, with ``?`` or ``:ro`` behind it. Raises ``ValueError``."""
    optional = read_only = False
    while word.endswith(("?", ":ro")):
        if word.endswith("?"):
            optional, word = True, word.removesuffix("?")
        else:
            read_only, word = True, word.removesuffix(":ro")
    target, _, source = word.partition("=")
    source = source or target
    for path in (target, source):
        if not path.startswith("/"):
            raise ValueError(f"sandbox path '{path}' is not absolute")
    parts = target.rstrip("/").split("/")[1:]
    if not parts or any(part in ("", ".", "..") for part in parts):
        raise ValueError(f"sandbox path '{target}' is not canonical, or escapes the sandbox")
    return SandboxPath(
        target=target.rstrip("/"), source=source, optional=optional, read_only=read_only
    )
