"""The one exception that ends a derivation."""

from __future__ import annotations

from executor.build.result import BuildStatus, FailureCause
from executor.errors import ExecutorError
from executor.limits import Exceeded


class BuildFailureError(ExecutorError):
    """A derivation can't be built, or was built wrongly. The graph goes on without it.

    ``status`` is the verdict as Nix names it, ``cause`` tells apart what shares a status, and
    ``exceeded`` is the limit that was passed, if it was one.
    """

    def __init__(
        self,
        status: BuildStatus,
        message: str,
        cause: FailureCause,
        *,
        exceeded: Exceeded | None = None,
    ) -> None:
        super().__init__(message)
        self.exceeded = exceeded
        self.status = status
        self.message = message
        self.cause = cause


def rejected_input(message: str) -> BuildFailureError:
    """The derivation can't be built here: for another system, or with an input it doesn't have."""
    return BuildFailureError(BuildStatus.INPUT_REJECTED, message, FailureCause.INPUT)


def unusable(message: str) -> BuildFailureError:
    """The derivation itself is wrong: malformed, or with attributes that mean nothing."""
    return unable(message, FailureCause.INPUT)


def rejected_output(message: str) -> BuildFailureError:
    """The builder ended well, but what it made may not enter the store."""
    return BuildFailureError(BuildStatus.OUTPUT_REJECTED, message, FailureCause.OUTPUT)


def unable(message: str, cause: FailureCause = FailureCause.SETUP) -> BuildFailureError:
    """Not the derivation's fault: a setting, the machine, the store."""
    return BuildFailureError(BuildStatus.MISC_FAILURE, message, cause)
