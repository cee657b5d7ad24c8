"""Steps of setting up a sandbox: each names itself, so that a failure says what was being done."""

from __future__ import annotations

import os
from types import TracebackType

from sandbox.messages import Failed


class StepFailedError(Exception):
    """A step failed; carries what the report tells."""

    def __init__(self, report: Failed) -> None:
        super().__init__(report.step)
        self.report = report


class Step:
    """Turns an ``OSError`` in its block into a ``StepFailedError`` with the step's name.

    A plain class with two methods: contextlib's generators would cost microseconds a step.
    """

    __slots__ = ("_name", "_path", "_syscall")

    def __init__(self, name: str, syscall: str, path: bytes = b"") -> None:
        self._name = name
        self._syscall = syscall
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, OSError):
            path = os.fsdecode(self._path)
            report = Failed(self._name, self._syscall, error.errno or 0, path)
            raise StepFailedError(report) from error
