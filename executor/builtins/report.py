"""How a download goes, as lines in the log that whoever reads the log takes for what they are.

Stock Nix's builtins write the same lines (row G8); they are shown as a transfer inside the build.
"""

import json
import time
from itertools import count

from executor.builtins.errors import say
from executor.transfers.endpoints import display

_FILE_TRANSFER, _PROGRESS = 101, 105
_TALKATIVE = 4
# Seconds; each line is kept in the log.
_INTERVAL = 0.25
_NUMBERS = count(1)


class TransferReport:
    """One download: begun when this is made, over with ``end``."""

    def __init__(self, url: str) -> None:
        self._number = next(_NUMBERS)
        self._due = 0.0
        self._done = self._expected = self._told = 0
        shown = display(url)
        _line(
            action="start",
            fields=[shown],
            id=self._number,
            level=_TALKATIVE,
            parent=0,
            text=f"downloading '{shown}'",
            type=_FILE_TRANSFER,
        )

    def reach(self, done: int, expected: int) -> None:
        """So many bytes have come, of so many (0: unknown)."""
        self._done, self._expected = done, expected
        now = time.monotonic()
        if now >= self._due:
            self._due = now + _INTERVAL
            self._say()

    def end(self) -> None:
        """The download is over, well or not."""
        if self._told != self._done:
            self._say()
        _line(action="stop", id=self._number)

    def _say(self) -> None:
        self._told = self._done
        fields = [self._done, self._expected, 0, 0]
        _line(action="result", fields=fields, id=self._number, type=_PROGRESS)


def _line(**message: object) -> None:
    say("@nix " + json.dumps(message, separators=(",", ":")))
