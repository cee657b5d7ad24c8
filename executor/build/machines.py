"""Whether there is anybody to offer builds to: read before a hook is thought of at all."""

from __future__ import annotations

import re
from collections.abc import Callable

from executor.config import Settings

_DEFAULT_COMMAND = Settings().build_hook
_MOST_FILES = 64


def hook_is_of_use(settings: Settings) -> bool:
    """Whether the build hook may give another answer than that there are no machines."""
    if not settings.build_hook:
        return False
    return settings.build_hook != _DEFAULT_COMMAND or has_machines(settings.builders, _read)


def has_machines(
    builders: str, read_file: Callable[[str], str], seen: set[str] | None = None
) -> bool:
    """Whether the setting ``builders`` names any machine; ``@file`` is looked into, once.

    ``read_file`` raises ``OSError`` for a file that can't be read, which then names none, and
    ``ValueError`` for a name that no file can have.
    """
    seen = set() if seen is None else seen
    for part in re.split(r"[\n;]", builders):
        line = part.partition("#")[0].strip()
        if not line:
            continue
        if not line.startswith("@"):
            return True
        path = line[1:].strip()
        if path not in seen and len(seen) < _MOST_FILES:
            seen.add(path)
            try:
                text = read_file(path)
            except (OSError, ValueError):
                continue
            if has_machines(text, read_file, seen):
                return True
    return False


def _read(path: str) -> str:
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        return file.read()
