"""Which tests there are, and what machines they need: ``vm-tests/tests.toml``.

NixOS's drivers (``vm-tests/*.nix``) read the same file.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

from driver.errors import DriverError

HOME = Path(__file__).resolve().parent.parent
_TEST_KEYS = frozenset({"about", "ci", "minutes", "machines"})
_MACHINE_KEYS = frozenset({"memory", "processors", "disks", "kernel", "options"})
KERNELS = ("oldest", "newest")


@dataclass(frozen=True, slots=True, kw_only=True)
class Guest:
    """One machine: MiB of memory and of each further disk, its kernel and what that is told."""

    name: str
    memory: int
    processors: int
    disks: tuple[int, ...]
    kernel: str
    options: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Test:
    """One script and its machines. ``ci``: run by CI. ``minutes`` is its limit of time on TCG."""

    __test__ = False

    name: str
    about: str
    script: Path
    minutes: float
    ci: bool
    guests: tuple[Guest, ...]


def load(path: Path = HOME / "tests.toml") -> dict[str, Test]:
    """All tests by name, in the file's order. Raises ``DriverError``."""
    try:
        content = tomllib.loads(path.read_text())
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise DriverError(f"{path}: {error}") from error
    return {name: _test(path, name, table) for name, table in content.items()}


def _test(path: Path, name: str, table: dict[str, object]) -> Test:
    _check(path, name, table, _TEST_KEYS)
    machines = table["machines"]
    assert isinstance(machines, dict)
    script = path.parent / "scripts" / f"{name}.py"
    if not script.is_file():
        raise DriverError(f"{path}: there is no script '{script}'")
    return Test(
        name=name,
        about=str(table["about"]),
        script=script,
        minutes=_number(table.get("minutes", 15)),
        ci=bool(table.get("ci", False)),
        # By name, because NixOS numbers its machines so.
        guests=tuple(_guest(path, key, machines[key]) for key in sorted(machines)),
    )


def _guest(path: Path, name: str, table: dict[str, object]) -> Guest:
    _check(path, name, table, _MACHINE_KEYS)
    kernel = str(table.get("kernel", KERNELS[0]))
    disks = table.get("disks", [])
    if kernel not in KERNELS or not isinstance(disks, list):
        raise DriverError(f"{path}: machine '{name}': a kernel is one of {', '.join(KERNELS)}")
    return Guest(
        name=name,
        memory=_number(table.get("memory", 1024)),
        processors=_number(table.get("processors", 2)),
        disks=tuple(_number(size) for size in disks),
        kernel=kernel,
        options=str(table.get("options", "")),
    )


def _check(path: Path, name: str, table: dict[str, object], known: frozenset[str]) -> None:
    unknown = table.keys() - known
    if unknown:
        raise DriverError(f"{path}: '{name}' has what nobody knows: {', '.join(sorted(unknown))}")


def _number(value: object) -> int:
    assert isinstance(value, int), value
    return value
