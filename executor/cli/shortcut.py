"""``executor build`` of what is valid already, found before anything of weight is imported.

Only the plainest command lines and configurations are looked at here, and only where the answer is
what ``build_command`` would say; wherever there is the least doubt, that one does the work. So this
module raises nothing, prints nothing and changes nothing.
"""

from __future__ import annotations

import _sqlite3  # what sqlite3 wraps in dates and collections
import os

from executor.setting_names import (
    HARMLESS,
    NIX_ONLY,
    SIMPLE_BOOLEANS,
    SIMPLE_NUMBERS,
    SIMPLE_TEXTS,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_FLAGS = frozenset({"-L", "--print-build-logs"})
_SETTINGS = frozenset({"-k", "--keep-going"})
_BOOLEANS = frozenset({"true", "false", "yes", "no", "1", "0"})
# Any of these may move what is looked for, or what is read.
_VARIABLES = ("NIX_STATE_DIR", "NIX_STORE_DIR", "NIX_STORE", "NIX_LOG_DIR")
_STORE_DIR = "/nix/store"
_SCHEMA = b"10"
_LARGEST_CONFIGURATION = 1 << 16
_DIGITS = frozenset("0123456789abcdfghijklmnpqrsvwxyz")
_PATH_CHARACTERS = frozenset(
    "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789+-._?=/"
)
_OUTPUTS = (
    "select d.path, v.id from DerivationOutputs d left join ValidPaths v on v.path = d.path"
    " where d.drv = (select id from ValidPaths where path = ?)"
)


def valid_outputs(words: Sequence[str], environ: Mapping[str, str]) -> list[str] | None:
    """The lines to print if this command line asks for valid outputs; ``None`` for who knows."""
    try:
        return _valid_outputs(words, environ)
    except (OSError, ValueError, _sqlite3.Error):
        return None


def _valid_outputs(words: Sequence[str], environ: Mapping[str, str]) -> list[str] | None:
    parsed = _parse(words)
    if parsed is None or os.geteuid() != 0 or any(name in environ for name in _VARIABLES):
        return None
    store, targets = parsed
    root = _root(store if store is not None else environ.get("NIX_REMOTE") or "")
    if root is None or not _is_plain_store(root):
        return None
    if not all(map(_is_plain_configuration, _configurations(environ))):
        return None
    return _query(f"{root}/nix/var/nix/db/db.sqlite", targets)


def _parse(words: Sequence[str]) -> tuple[str | None, list[str]] | None:
    """The store and the derivations of a plain ``build``."""
    if not words or words[0] != "build":
        return None
    store: str | None = None
    targets: list[str] = []
    ended = False  # argparse takes targets from one place only
    rest = iter(words[1:])
    for word in rest:
        if word in _SETTINGS:
            continue
        if _is_derivation(word) and not ended:
            targets.append(word)
            continue
        ended = bool(targets)
        if word == "--store":
            store = next(rest, "-")
            if store.startswith("-"):
                return None
        elif word not in _FLAGS:
            return None
    return (store, targets) if targets else None


def _is_derivation(word: str) -> bool:
    """Whether a word is the path of a derivation, all of whose outputs are wanted."""
    name = word.removeprefix(_STORE_DIR + "/")
    return (
        len(name) + len(_STORE_DIR) + 1 == len(word)
        and name.endswith(".drv")
        and name[32:33] == "-"
        and _DIGITS.issuperset(name[:32])
        and _PATH_CHARACTERS.issuperset(name)
        and "/" not in name
    )


def _root(store: str) -> str | None:
    """The directory that a chroot store lies below, empty for the system's; ``None``: ask Nix's
    rules."""
    if store in ("", "auto", "local"):
        return ""
    if not store.startswith("/") or any(char in store for char in "?%:\0"):
        return None
    return os.path.normpath("/" + store.lstrip("/")).rstrip("/")


def _is_plain_store(root: str) -> bool:
    """Whether it is no daemon's, has the schema that we know, and no link leads to it."""
    if not os.access(f"{root}/nix/var/nix", os.R_OK | os.W_OK):
        return False
    with open(f"{root}/nix/var/nix/db/schema", "rb") as file:
        if file.read(32).strip() != _SCHEMA:
            return False
    path = f"{root}{_STORE_DIR}"
    while path != "/":
        if os.path.islink(path):
            return False
        path = os.path.dirname(path)
    return True


def _configurations(environ: Mapping[str, str]) -> Iterator[str]:
    """The texts that ``config`` reads. Raises ``OSError`` for one that can't be read."""
    if "NIX_USER_CONF_FILES" in environ:
        raise ValueError
    home = environ.get("HOME", "")
    config_home = environ.get("XDG_CONFIG_HOME") or (f"{home}/.config" if home else "")
    directories = [config_home, *environ.get("XDG_CONFIG_DIRS", "/etc/xdg").split(":")]
    files = [f"{directory}/nix/nix.conf" for directory in directories if directory]
    for path in (f"{environ.get('NIX_CONF_DIR') or '/etc/nix'}/nix.conf", *files):
        try:
            with open(path, "rb") as file:
                text = file.read(_LARGEST_CONFIGURATION)
        except (FileNotFoundError, NotADirectoryError):
            continue
        if len(text) == _LARGEST_CONFIGURATION:
            raise ValueError
        yield text.decode()
    yield environ.get("NIX_CONFIG", "")


def _is_plain_configuration(text: str) -> bool:
    """Whether there is nothing in it to warn of, to complain about, or to do otherwise for."""
    for line in text.split("\n"):
        words = line.partition("#")[0].split()
        if words and not (
            len(words) >= 2 and words[1] == "=" and _is_plain_setting(words[0], words[2:])
        ):
            return False
    return True


def _is_plain_setting(name: str, values: list[str]) -> bool:
    value = " ".join(values)
    if name in SIMPLE_TEXTS or name in NIX_ONLY:
        return True
    if name in SIMPLE_BOOLEANS:
        return value in _BOOLEANS
    if name in SIMPLE_NUMBERS:
        return value.isascii() and value.isdigit()
    if name in HARMLESS:
        return value in HARMLESS[name]
    return name == "sandbox-paths" and all(map(_is_plain_sandbox_path, values))


def _is_plain_sandbox_path(word: str) -> bool:
    """An absolute path, or two; nothing that could climb or mean something else."""
    paths = word.removesuffix("?").split("=")
    return len(paths) <= 2 and all(
        len(path) > 1
        and path.startswith("/")
        and _PATH_CHARACTERS.issuperset(path)
        and not any(odd in path for odd in ("//", "/.", "?"))
        and not path.endswith("/")
        for path in paths
    )


def _query(database: str, targets: Sequence[str]) -> list[str] | None:
    found: list[str] = []
    # Without "rw" it would be made; quoting is left to who knows how, for all but plain names.
    if not _PATH_CHARACTERS.issuperset(database) or "?" in database:
        return None
    connection = _sqlite3.connect(f"file:{database}?mode=rw", uri=True, timeout=1)
    try:
        for target in targets:
            rows = connection.execute(_OUTPUTS, (target,)).fetchall()
            if not rows or any(number is None for _path, number in rows):
                return None
            found += sorted(str(path) for path, _number in rows)
    finally:
        connection.close()
    return found
