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


class ClientError(ExecutorError):
    """A client couldn't have from a server what it asked for: the only error that it raises."""


class UnreachableError(ClientError):
    """Nobody answers at an address."""


class BrokenConnectionError(ClientError):
    """The server went away, was silent for too long, or sent what can't be understood.

    The connection is of no more use.
    """


class RemoteError(ClientError):
    """The server says that it can't. ``status`` is the exit code that it proposes.

    ``traces`` say what it was doing, the outermost first; ``message`` is the error without them.
    """

    has_lines = True

    def __init__(self, message: str, status: int = 1, traces: tuple[str, ...] = ()) -> None:
        self.message = message
        self.status = status
        self.traces = traces
        super().__init__("".join(f"… {trace}\n\n" for trace in traces) + message)
