"""Nix's ``internal-json`` log: a line ``@nix {…}`` for each thing that happens (rows G4 to G7).

Tools such as nix-output-monitor read it. What happens is told as ``build.activities`` has it.
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Mapping, Sequence
from typing import TextIO

from executor.build.activities import Activities, Field
from executor.build.events import Event, GraphPlanned
from executor.cli.nix_messages import PREFIX, message, render
from executor.cli.plan_text import plan_lines
from executor.formats.store_path import StoreDir

_INFO = 3


class JsonDisplay:
    """Writes the lines to ``out``, each behind ``prefix``."""

    watches = True

    def __init__(
        self,
        out: TextIO,
        store_dir: StoreDir,
        *,
        prefix: str = PREFIX,
    ) -> None:
        self._out = out
        self._prefix = prefix
        self._store_dir = store_dir
        self._activities = Activities(self, store_dir, log_seen=True)

    def take(self, event: Event) -> None:
        """Write the event's lines."""
        if isinstance(event, GraphPlanned):
            for line in plan_lines(event, self._store_dir.render):
                self.message(_INFO, line)
        self._activities.take(event)

    def close(self) -> None:
        """End all activities: of what still ran when a signal came, and of the run."""
        self._activities.close()

    def start(
        self, number: int, level: int, kind: int, text: str, fields: Sequence[Field], parent: int
    ) -> None:
        """An activity begins."""
        more = {"fields": fields} if fields else {}
        self._put(
            {
                "action": "start",
                "id": number,
                "level": level,
                "parent": parent,
                "text": text,
                "type": kind,
                **more,
            }
        )

    def stop(self, number: int) -> None:
        """An activity ends."""
        self._put({"action": "stop", "id": number})

    def message(self, level: int, text: str) -> None:
        """A message for people."""
        self._put(message(level, text))

    def result(self, number: int, kind: int, fields: Sequence[Field]) -> None:
        """An activity tells something."""
        self._put({"action": "result", "fields": fields, "id": number, "type": kind})

    def _put(self, told: Mapping[str, object]) -> None:
        print(render(told, self._prefix), file=self._out, flush=True)


def open_json_log(path: str) -> TextIO:
    """A file that is appended to, or a unix socket (row G5). Raises ``OSError``."""
    if os.path.exists(path) and stat.S_ISSOCK(os.stat(path).st_mode):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.connect(path)
            return connection.makefile("w", encoding="utf-8")
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
    return open(os.open(path, flags, 0o644), "w", encoding="utf-8")
