"""`builtin:buildenv`: one directory tree of symbolic links to the contents of many packages.

The rules are Nix's (`nix-env` profiles depend on them): a directory that only one package has
becomes one link, directories of several packages are merged, files are chosen by priority (a
smaller number wins), and packages that others propagate come last.
"""

import os
import re
import stat
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from executor.builtins.environment import attribute, output_path
from executor.builtins.errors import BuiltinError, exit_code, mark, show, warn
from executor.builtins.options import BuiltinOptions

_PROPAGATED = b"nix-support/propagated-user-env-packages"
_FIRST_PROPAGATED_PRIORITY = 1000
# Of no use in a profile, or bound to collide between packages.
_LEFT_OUT = (
    b"/propagated-build-inputs",
    b"/nix-support",
    b"/perllocal.pod",
    b"/info/dir",
    b"/log",
    b"/manifest.nix",
    b"/manifest.json",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """One output of an installed package; inactive ones are not linked."""

    path: bytes
    active: bool
    priority: int


def run(arguments: Sequence[bytes], environment: Mapping[bytes, bytes]) -> int:
    """Build the environment that `derivations` and `manifest` describe; 0, or 1 with a message."""
    return exit_code(lambda: _build(arguments, environment))


def _build(arguments: Sequence[bytes], environment: Mapping[bytes, bytes]) -> None:
    BuiltinOptions.parse(arguments)
    out = output_path(environment)
    os.makedirs(out, exist_ok=True)
    packages = parse_packages(attribute(environment, b"derivations"))
    _Forest(out).build(packages)
    os.symlink(attribute(environment, b"manifest"), out + b"/manifest.nix")


def parse_packages(text: bytes) -> list[Package]:
    """Read `active priority count path…` groups; raises BuiltinError when a group is not one."""
    words = iter(re.findall(rb"[^ \t\n\r]+", text))
    packages: list[Package] = []
    for active in words:
        priority, count = _number(next(words, b"")), _number(next(words, b""))
        for _ in range(count):
            path = next(words, None)
            if path is None:
                raise BuiltinError("attribute 'derivations' ends in the middle of a package")
            packages.append(Package(path=path, active=active != b"false", priority=priority))
    return packages


def _number(word: bytes) -> int:
    if not re.fullmatch(rb"[+-]?[0-9]{1,10}", word):
        raise BuiltinError(f"attribute 'derivations' has '{show(word)}' instead of a number")
    return int(word)


class _Forest:
    """The links made so far and the priority of each."""

    def __init__(self, out: bytes) -> None:
        self._out = out
        self._priorities: dict[bytes, int] = {}
        self._done: set[tuple[bytes, ...]] = set()
        self._postponed: dict[tuple[bytes, ...], bytes] = {}

    def build(self, packages: Sequence[Package]) -> None:
        """Link the active packages, then what they propagate, then what those propagate…"""
        for package in sorted(packages, key=lambda each: (each.priority, _order(each.path))):
            if package.active:
                self._add(package.path, package.priority)
        priority = _FIRST_PROPAGATED_PRIORITY
        while self._postponed:
            wave, self._postponed = self._postponed, {}
            for _, path in sorted(wave.items()):
                self._add(path, priority)
                priority += 1

    def _add(self, path: bytes, priority: int) -> None:
        key = _order(path)
        if key in self._done:
            return
        self._done.add(key)
        self._link(path, priority)
        for word in _propagated(path):
            if _order(word) not in self._done:
                self._postponed.setdefault(_order(word), word)

    def _link(self, package: bytes, priority: int) -> None:
        """Link one package. Merging goes by a queue, not by recursion: trees may be deep."""
        queue = deque([(package, self._out, priority)])
        while queue:
            source, target, priority = queue.popleft()
            for name in _entries(source):
                merged = self._link_entry(
                    os.path.join(source, name), os.path.join(target, name), priority
                )
                queue.extend(merged)

    def _link_entry(
        self, source: bytes, target: bytes, priority: int
    ) -> Iterator[tuple[bytes, bytes, int]]:
        """Link `source` at `target`; yields the directories to merge into `target` instead."""
        kind = _kind(source)
        if kind is None:
            warn(f"skipping dangling symlink '{show(target)}'")
            return
        if source.endswith(_LEFT_OUT):
            return
        existing = _kind(target, follow=False)
        if stat.S_ISDIR(kind) and existing is not None:
            if stat.S_ISLNK(existing):
                yield self._split(source, target)
            yield source, target, priority
            return
        if existing is not None and not self._replace(source, target, existing, priority):
            return
        os.symlink(source, target)
        self._priorities[target] = priority

    def _split(self, source: bytes, target: bytes) -> tuple[bytes, bytes, int]:
        """Make the link `target` a directory; returns the task of linking what it pointed at."""
        linked = os.path.realpath(target, strict=True)
        if not os.path.isdir(linked):
            raise BuiltinError(
                f"collision between '{show(source)}' and non-directory '{show(linked)}'"
            )
        os.unlink(target)
        os.mkdir(target, 0o755)
        return linked, target, self._priorities.get(target, 0)

    def _replace(self, source: bytes, target: bytes, existing: int, priority: int) -> bool:
        """Whether the file `source` takes the place of what `target` is; removes it then."""
        if stat.S_ISDIR(existing):
            raise BuiltinError(
                f"collision between non-directory '{show(source)}' and directory '{show(target)}'"
            )
        previous = self._priorities.get(target, 0)
        if previous == priority:
            rivals = (show(os.readlink(target)), show(source))
            raise BuiltinError(
                "Unable to build profile. There is a conflict for the following files:\n\n"
                + "\n".join("  " + mark(f'"{path}"') for path in rivals)
            )
        if previous < priority:
            return False
        os.unlink(target)
        return True


def _order(path: bytes) -> tuple[bytes, ...]:
    """Paths are equal and ordered by component; only a slash at the end makes a difference."""
    head, slash, tail = path.rpartition(b"/")
    parts = tuple(part for part in head.split(b"/") if part)
    return (*((b"/",) if path.startswith(b"/") else ()), *parts, tail if slash else path)


def _entries(directory: bytes) -> list[bytes]:
    try:
        names = os.listdir(directory)
    except NotADirectoryError:
        warn(
            f'not including "{show(directory)}" in the user environment '
            "because it's not a directory"
        )
        return []
    return sorted(name for name in names if not name.startswith(b"."))


def _kind(path: bytes, *, follow: bool = True) -> int | None:
    try:
        return os.stat(path, follow_symlinks=follow).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None


def _propagated(package: bytes) -> list[bytes]:
    try:
        with open(os.path.join(package, _PROPAGATED), "rb") as file:
            return [word for word in re.split(rb"[ \n]+", file.read()) if word]
    except (FileNotFoundError, NotADirectoryError):
        return []
