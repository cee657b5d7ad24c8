"""Where a store is: store references ("auto", "local?root=/x", "/abs/dir") and NIX_* variables.

Stores on a file system of this machine and those behind a daemon's socket are located here.
References to other kinds (ssh, http) are recognised and refused with a message that says so.
"""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from executor.errors import ConfigError, FormatError
from executor.formats.store_path import StoreDir

DEFAULT_STORE_DIR = "/nix/store"
DEFAULT_STATE_DIR = "/nix/var/nix"
DEFAULT_LOG_DIR = "/nix/var/log/nix"
DEFAULT_CONF_DIR = "/etc/nix"

_AUTOMATIC = ("", "auto", "local", "local://")
_REMOTE_SCHEMES = frozenset(
    {
        "unix",
        "ssh",
        "ssh-ng",
        "http",
        "https",
        "s3",
        "file",
        "dummy",
        "local-overlay",
        "mounted-ssh-ng",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreLocation:
    """The directories of one store; all paths are absolute and canonical (no "." or "..").

    `store_dir` is the logical directory that stands in store paths; `real_store_dir` is where the
    files are. They differ in a chroot store. `warnings` are messages for the user about ignored
    parameters; they don't take part in comparisons.
    """

    store_dir: StoreDir
    real_store_dir: str
    state_dir: str
    log_dir: str
    conf_dir: str
    root_dir: str | None = None
    read_only: bool = False
    build_dir: str | None = None
    require_signatures: bool | None = None
    allow_symlinked_store: bool = False
    warnings: tuple[str, ...] = ()

    @property
    def is_default_layout(self) -> bool:
        """Whether logical and real store directory are the same."""
        return self.real_store_dir == self.store_dir.path


@dataclass(frozen=True, slots=True, kw_only=True)
class DaemonAddress:
    """A store behind a daemon that listens on a unix socket.

    `location` is where its files are on this machine, by what the reference and the environment
    say; `shown` is the reference as it was written.
    """

    socket: str
    location: StoreLocation
    shown: str


def find_store(
    text: str | None,
    environ: Mapping[str, str],
    *,
    working_directory: str | None = None,
) -> StoreLocation | DaemonAddress:
    """What `text` names, as `parse_store_url` has it, and stores of daemons beside that.

    "daemon" and "unix://" are the default socket (NIX_DAEMON_SOCKET_PATH, or below the state
    directory), "unix:///path" another one. "auto" is the local store for whoever may change it, and
    for others the daemon's where its socket is there. As in Nix, but for its chroot store in the
    home directory, in which nobody but root could build here.
    """
    spec = environ.get("NIX_REMOTE", "auto") if text is None else text
    base, _, query = spec.partition("?")
    if base in ("", "auto"):
        location = parse_store_url(spec, environ, working_directory=working_directory)
        socket = default_socket(environ)
        if os.access(location.state_dir, os.R_OK | os.W_OK) or not os.path.exists(socket):
            return location
        return DaemonAddress(socket=socket, location=location, shown="daemon")
    if base != "daemon" and not base.startswith("unix://"):
        return parse_store_url(spec, environ, working_directory=working_directory)
    path = _percent_decode(spec, base.removeprefix("unix://")) if base != "daemon" else ""
    parameters, warnings = _parse_query(spec, query)
    for name in _OF_REMOTE_STORES & parameters.keys():
        _integer(name, parameters.pop(name))
    return DaemonAddress(
        socket=_absolute("socket", path) if path else default_socket(environ),
        location=_locate(None, parameters, warnings, environ),
        shown=spec,
    )


def default_socket(environ: Mapping[str, str]) -> str:
    """Where the machine's daemon listens."""
    socket = environ.get("NIX_DAEMON_SOCKET_PATH")
    if socket:
        return _absolute("NIX_DAEMON_SOCKET_PATH", socket)
    return f"{_default_dir(environ, 'NIX_STATE_DIR', DEFAULT_STATE_DIR)}/daemon-socket/socket"


def parse_store_url(
    text: str | None, environ: Mapping[str, str], *, working_directory: str | None = None
) -> StoreLocation:
    """Locate the store that `text` names.

    `None` means the value of NIX_REMOTE, and without that "auto". Accepted: "", "auto", "local",
    an absolute path or a relative one with a "/" in it (a chroot store below that directory), and
    each of them followed by "?key=value&…" with percent-encoding in keys and values.

    Raises ConfigError for other stores, malformed values and malformed percent-encoding. An
    unknown parameter is ignored with a warning, as Nix does.
    """
    spec = environ.get("NIX_REMOTE", "auto") if text is None else text
    base, _, query = spec.partition("?")
    root = _root_of_base(spec, base, working_directory)
    parameters, warnings = _parse_query(spec, query)
    return _locate(root, parameters, warnings, environ)


def _root_of_base(spec: str, base: str, working_directory: str | None) -> str | None:
    """The directory of a chroot store that the part before "?" names, or None for the default."""
    if base in _AUTOMATIC:
        return None
    scheme, separator, rest = base.partition("://")
    if separator and scheme == "local":
        return _absolute("root", _percent_decode(spec, rest))
    if base == "daemon" or (separator and scheme in _REMOTE_SCHEMES):
        raise ConfigError(
            f"store '{spec}' is not a local store, which is needed here: one in a directory of this"
            " machine (for example 'auto', 'local?root=/dir' or '/dir')"
        )
    if separator or "/" not in base:
        raise ConfigError(
            f"cannot parse store '{spec}'; a directory is written with a slash, as './{spec}'"
        )
    return _absolute("root", os.path.join(working_directory or os.getcwd(), base))


def _parse_query(spec: str, query: str) -> tuple[dict[str, str], list[str]]:
    parameters: dict[str, str] = {}
    warnings: list[str] = []
    for part in query.split("&"):
        if not part:
            continue
        key, equal, value = part.partition("=")
        if not equal:
            warnings.append(f"store '{spec}': ignoring parameter '{key}', which has no '='")
            continue
        parameters.setdefault(_percent_decode(spec, key), _percent_decode(spec, value))
    return parameters, warnings


def _locate(
    root: str | None, parameters: dict[str, str], warnings: list[str], environ: Mapping[str, str]
) -> StoreLocation:
    take = parameters.pop
    if "root" in parameters:
        root = _absolute("root", take("root"))
    store_dir = _store_dir(take("store", None), environ)
    state = _default_dir(environ, "NIX_STATE_DIR", DEFAULT_STATE_DIR)
    log = _default_dir(environ, "NIX_LOG_DIR", DEFAULT_LOG_DIR)
    real = store_dir
    if root is not None:
        base = root.rstrip("/")
        real, state, log = f"{base}/nix/store", f"{base}/nix/var/nix", f"{base}/nix/var/log/nix"
    require_signatures = take("require-sigs", None)
    build_dir = take("build-dir", None)
    return StoreLocation(
        store_dir=_to_store_dir(store_dir),
        real_store_dir=_absolute("real", take("real", real)),
        state_dir=_absolute("state", take("state", state)),
        log_dir=_absolute("log", take("log", log)),
        conf_dir=_default_dir(environ, "NIX_CONF_DIR", DEFAULT_CONF_DIR),
        root_dir=root,
        read_only=_boolean("read-only", take("read-only", "false")),
        build_dir=None if build_dir is None else _absolute("build-dir", build_dir),
        require_signatures=(
            None if require_signatures is None else _boolean("require-sigs", require_signatures)
        ),
        allow_symlinked_store=environ.get("NIX_IGNORE_SYMLINK_STORE") == "1",
        warnings=tuple(warnings) + _ignored(parameters),
    )


# How many connections there may be to a remote store, and for how long: we have as few as need be.
_OF_REMOTE_STORES = frozenset({"max-connections", "max-connection-age"})
# Parameters of Nix's local store that have no meaning for an executor: they are checked for their
# type and otherwise ignored without a word, so that one reference serves both programs.
_WITHOUT_EFFECT: dict[str, Callable[[str, str], object]] = {
    "priority": lambda key, value: _integer(key, value),
    "path-info-cache-size": lambda key, value: _integer(key, value),
    "want-mass-query": lambda key, value: _boolean(key, value),
    "trusted": lambda key, value: _boolean(key, value),
    "use-roots-daemon": lambda key, value: _boolean(key, value),
    "ignore-gc-delete-failure": lambda key, value: _boolean(key, value),
    "system-features": lambda _key, value: value.split(),
}


def _ignored(parameters: Mapping[str, str]) -> tuple[str, ...]:
    warnings = []
    for key, value in parameters.items():
        check = _WITHOUT_EFFECT.get(key)
        if check is None:
            warnings.append(f"unknown setting '{key}'")
        else:
            check(key, value)
    return tuple(warnings)


def _store_dir(parameter: str | None, environ: Mapping[str, str]) -> str:
    if parameter is not None:
        return _absolute("store", parameter)
    for variable in ("NIX_STORE_DIR", "NIX_STORE"):
        if variable in environ:
            return _absolute(variable, environ[variable])
    return DEFAULT_STORE_DIR


def _to_store_dir(path: str) -> StoreDir:
    try:
        return StoreDir(path)
    except FormatError as error:
        raise ConfigError(str(error)) from error


def _default_dir(environ: Mapping[str, str], variable: str, default: str) -> str:
    return _absolute(variable, environ.get(variable, default))


def _absolute(name: str, path: str) -> str:
    if not path.startswith("/") or "\0" in path:
        raise ConfigError(f"store setting '{name}' needs an absolute path, not '{path}'")
    # normpath keeps two leading slashes, which POSIX gives a meaning that Linux doesn't have.
    return os.path.normpath("/" + path.lstrip("/"))


def _boolean(name: str, value: str) -> bool:
    if value in ("true", "yes", "1"):
        return True
    if value in ("false", "no", "0"):
        return False
    raise ConfigError(f"store setting '{name}' needs a Boolean value, not '{value}'")


def _integer(name: str, value: str) -> int:
    if re.fullmatch(r"-?[0-9]{1,18}", value) is None:
        raise ConfigError(f"store setting '{name}' needs an integer, not '{value}'")
    return int(value)


def _percent_decode(spec: str, text: str) -> str:
    if re.search(r"%(?![0-9A-Fa-f]{2})", text):
        raise ConfigError(f"store '{spec}' has a malformed percent-encoding in '{text}'")
    raw = re.sub(
        rb"%([0-9A-Fa-f]{2})",
        lambda match: bytes([int(match[1], 16)]),
        text.encode("utf-8", "surrogateescape"),
    )
    return raw.decode("utf-8", "surrogateescape")
