"""Lines that the house keeps: sizes, one place for ctypes, nothing half done."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PRODUCT = sorted((*ROOT.glob("sandbox/**/*.py"), *ROOT.glob("executor/**/*.py")))
LONGEST_MODULE = 500
LONGEST_FUNCTION = 60
product_module = pytest.mark.parametrize(
    "path", PRODUCT, ids=lambda path: str(path.relative_to(ROOT))
)


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Every function, methods and inner ones too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


@product_module
def test_modules_and_functions_stay_small(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= LONGEST_MODULE
    for function in functions(ast.parse(text)):
        length = (function.end_lineno or 0) - function.lineno + 1
        assert length <= LONGEST_FUNCTION, f"{function.name} has {length} lines"


@product_module
def test_every_module_and_public_name_says_what_it_is(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert not tree.body or ast.get_docstring(tree)
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            assert node.name.startswith("_") or ast.get_docstring(node), node.name


@product_module
def test_raw_system_calls_have_their_own_modules(path: Path) -> None:
    assert path.name == "syscalls.py" or not re.search(
        r"import ctypes|from ctypes", path.read_text()
    )


@product_module
def test_nothing_is_left_half_done(path: Path) -> None:
    text = path.read_text()
    assert not re.search(r"\b(TODO|FIXME|XXX|NotImplementedError)\b", text)
    handlers = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.ExceptHandler)]
    assert all(handler.type is not None for handler in handlers)
