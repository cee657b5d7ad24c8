"""Print the settings in force, one a line, or as JSON."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import fields

from executor.cli.options import Invocation
from executor.limits import LimitRule
from executor.network_rules import NetworkRule
from executor.settings import EXPERIMENTAL, SandboxPath, Settings

EXAMPLE = """\
example:
  executor show-config --json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own options."""
    parser.add_argument("--json", action="store_true", help="an object with a value each")


def run(invocation: Invocation, arguments: argparse.Namespace) -> int:
    """Print all settings, sorted."""
    values = {
        field.name.replace("_", "-"): _plain(getattr(invocation.settings, field.name))
        for field in fields(invocation.settings)
        if _is_enabled(field.name.replace("_", "-"), invocation.settings)
    }
    values = dict(sorted(values.items()))
    if arguments.json:
        print(json.dumps({name: {"value": value} for name, value in values.items()}, indent=2))
        return 0
    for name, value in values.items():
        print(f"{name} = {_text(value)}")
    return 0


def _is_enabled(name: str, settings: Settings) -> bool:
    """Settings whose feature is not enabled are not printed: reading them back warns."""
    feature = EXPERIMENTAL.get(name)
    return feature is None or feature in settings.experimental_features


def _plain(value: object) -> object:
    if isinstance(value, frozenset):
        return sorted(value)
    if value and isinstance(value, tuple) and isinstance(value[0], NetworkRule):
        return "; ".join(map(str, value))
    if isinstance(value, tuple):
        return [_item(item) for item in value]
    return dict(value) if isinstance(value, Mapping) else value


def _item(item: object) -> object:
    if isinstance(item, LimitRule):
        return f"{item};"
    return _path(item) if isinstance(item, SandboxPath) else item


def _path(path: SandboxPath) -> str:
    marks = ("?" if path.optional else "") + (":ro" if path.read_only else "")
    return f"{path.target}={path.source}{marks}"


def _text(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return " ".join(str(item) for item in value)
    if isinstance(value, dict):
        return " ".join(f"{key}={item}" for key, item in value.items())
    return str(value)
