"""The house's walls: which package may import which."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Lower layers first; a module imports its own layer and those before it.
LAYERS = (
    ("executor.errors", "executor.native"),
    ("executor.formats", "executor.transfers"),
    (
        "executor.derivation",
        "executor.derivation_hash",
        "executor.derivation_json",
        "executor.resolution",
    ),
    (
        *("executor.references", "executor.host", "executor.limits"),
        *("executor.loop_signals", "executor.network_rules"),
        "executor.setting_names",
        *("executor.settings", "executor.config", "executor.config_text"),
    ),
    ("executor.store",),
    ("executor.caches",),
    ("executor.instantiate",),
    ("executor.build",),
    ("executor.protocols",),
    ("executor.api", "executor.remote"),
    ("executor.cli",),
    ("executor.__main__",),
)
# What a command that has nothing to do must not pay for; imported inside functions, if at all.
HEAVY = frozenset({"pyroute2", "prctl", "cryptography", "zstandard", "ssl", "brotli", "urllib3"})
# Run in processes of their own, which import everything before the first build, or only imported
# by who talks to a server.
HEAVY_AT_HOME = (
    *("sandbox.clean_parent", "sandbox.nat_helper", "sandbox.netlink"),
    *("sandbox.privileges", "sandbox.socket_maker", "sandbox.spawner", "executor.builtins."),
    *("executor.transfers.", "executor.caches.web", "executor.caches.connections"),
)


def modules(package: str) -> list[Path]:
    """All modules of one package."""
    return sorted((ROOT / package).rglob("*.py"))


def imports(path: Path, *, top_level_only: bool = False) -> Iterator[str]:
    """The absolute names of what a module imports."""
    tree = ast.parse(path.read_text())
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            yield from (f"{node.module}.{name.name}" for name in node.names)


def layer(name: str) -> int | None:
    """The layer that an imported name lies in; None outside ``executor``."""
    for number, prefixes in enumerate(LAYERS):
        if any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes):
            return number
    return None


def dotted(path: Path) -> str:
    """``executor/build/goal.py`` as ``executor.build.goal``."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


@pytest.mark.parametrize("path", modules("executor"), ids=dotted)
def test_imports_point_down(path: Path) -> None:
    own = layer(dotted(path).removesuffix(".__init__"))
    if own is None:
        assert path.name == "__init__.py" or path.parts[-2] == "builtins"
        return
    higher = [name for name in imports(path) if (layer(name) or 0) > own]
    assert not higher


@pytest.mark.parametrize("path", modules("sandbox"), ids=dotted)
def test_the_sandbox_knows_nothing_of_derivations(path: Path) -> None:
    assert not [name for name in imports(path) if name.split(".")[0] == "executor"]


@pytest.mark.parametrize("path", modules("executor"), ids=dotted)
def test_only_build_and_its_api_use_the_sandbox_and_only_its_public_names(path: Path) -> None:
    used = [name for name in imports(path) if name.split(".")[0] == "sandbox"]
    inside = dotted(path).startswith(("executor.build.", "executor.api"))
    assert inside or not used
    public = {"probe", *ast.literal_eval(_public_names())}
    assert {name.split(".")[1] for name in used} <= public


@pytest.mark.parametrize("path", modules("executor"), ids=dotted)
def test_builtins_stand_alone(path: Path) -> None:
    if path.parent.name != "builtins":
        used = [name for name in imports(path) if name.startswith("executor.builtins")]
        assert all(name.startswith("executor.builtins.options.") for name in used)


@pytest.mark.parametrize("path", modules("executor") + modules("sandbox"), ids=dotted)
def test_heavy_packages_are_imported_where_they_are_used(path: Path) -> None:
    if not dotted(path).startswith(HEAVY_AT_HOME):
        top = {name.split(".")[0] for name in imports(path, top_level_only=True)}
        assert not top & HEAVY


@pytest.mark.parametrize("path", modules("executor") + modules("sandbox"), ids=dotted)
def test_every_import_is_declared(path: Path) -> None:
    declared = {"pyroute2", "prctl", "cryptography", "zstandard", "brotli", "urllib3"}
    known = declared | {"sandbox", "executor"} | sys.stdlib_module_names
    assert {name.split(".")[0] for name in imports(path)} <= known


def _public_names() -> str:
    tree = ast.parse((ROOT / "sandbox" / "__init__.py").read_text())
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return ast.unparse(node.value)
    raise AssertionError("sandbox has no __all__")
