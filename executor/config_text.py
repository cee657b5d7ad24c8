"""Settings as they are written in ``nix.conf``, so that they can be read back. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from executor.limits import LimitRule
from executor.network_rules import NetworkRule
from executor.setting_names import EXPERIMENTAL
from executor.settings import SandboxPath, Settings


def is_enabled(name: str, settings: Settings) -> bool:
    """Settings whose feature is not enabled are not printed: reading them back warns."""
    feature = EXPERIMENTAL.get(name)
    return feature is None or feature in settings.experimental_features


def plain_setting(value: object) -> object:
    """A value as JSON has it: words and numbers."""
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


def setting_text(value: object) -> str:
    """The text of what ``plain_setting`` has."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return " ".join(str(item) for item in value)
    if isinstance(value, dict):
        return " ".join(f"{key}={item}" for key, item in value.items())
    return str(value)
