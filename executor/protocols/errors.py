"""Errors of connections."""

from __future__ import annotations

from executor.errors import ExecutorError


class RefusedError(ExecutorError):
    """The client may not do what it asks for."""


class DisconnectedError(ExecutorError):
    """The other side is gone, or the connection was ended by us."""


class OperationError(ExecutorError):
    """An operation failed. ``status`` is the exit code that a command line should have for it."""

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.status = status
