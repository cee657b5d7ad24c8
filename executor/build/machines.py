"""Whether there is anybody to offer builds to: read before a hook is thought of at all."""

from __future__ import annotations

import re
from collections.abc import Callable

from executor.config import Settings

_DEFAULT_COMMAND = Settings().build_hook


def hook_is_of_use(settings: Settings) -> bool:
    """Whether the build hook may give another answer than that there are no machines."""
    if not settings.build_hook:
        return False
    return settings.build_hook != _DEFAULT_COMMAND or has_machines(settings.builders, _read)


def has_machines(builders: str, read_file: Callable[[str], str], depth: int = 0) -> bool:
    """Whether the setting ``builders`` names any machine; ``@file`` is looked into.

    ``read_file`` raises ``OSError`` for a file that can't be read, which then names none.
    """
    for part in re.split(r"[\n;]", builders):
        line = part.partition("#")[0].strip()
        if not line:
            continue
        if not line.startswith("@"):
            return True
        if depth < 8:
            try:
                text = read_file(line[1:].strip())
            except OSError:
                continue
            if has_machines(text, read_file, depth + 1):
                return True
    return False


def _read(path: str) -> str:
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        return file.read()
