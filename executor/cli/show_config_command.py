"""Print the settings in force, one a line, or as JSON."""

from __future__ import annotations

import argparse
import json
from dataclasses import fields

from executor.cli.options import Invocation
from executor.config_text import is_enabled, plain_setting, setting_text

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
        field.name.replace("_", "-"): plain_setting(getattr(invocation.settings, field.name))
        for field in fields(invocation.settings)
        if is_enabled(field.name.replace("_", "-"), invocation.settings)
    }
    values = dict(sorted(values.items()))
    if arguments.json:
        print(json.dumps({name: {"value": value} for name, value in values.items()}, indent=2))
        return 0
    for name, value in values.items():
        print(f"{name} = {setting_text(value)}")
    return 0
