"""What the end of a builder means for its derivation (rows R2, R4, C4-C6)."""

from __future__ import annotations

import signal

from executor.build.failure import BuildFailureError
from executor.build.result import BuildStatus, FailureCause
from executor.build.runner import Ending, Limits, Outcome


def builder_failure(
    name: str, outcome: Outcome, limits: Limits, *, has_network: bool, disk_full: bool
) -> BuildFailureError:
    """What an outcome without success means (rows R2, C4-C6)."""
    if outcome.ending is Ending.TIMED_OUT:
        text = f"building '{name}' timed out after {limits.timeout} seconds"
        return BuildFailureError(BuildStatus.TIMED_OUT, text, FailureCause.TIMEOUT)
    if outcome.ending is Ending.SILENT:
        text = f"building '{name}' timed out after {limits.max_silent_time} seconds of silence"
        return BuildFailureError(BuildStatus.TIMED_OUT, text, FailureCause.SILENCE)
    if outcome.ending is Ending.LOG_LIMIT:
        text = f"builder for '{name}' printed more than {limits.max_log_size} bytes; killed"
        return BuildFailureError(BuildStatus.LOG_LIMIT_EXCEEDED, text, FailureCause.LOG_LIMIT)
    status = (
        BuildStatus.TRANSIENT_FAILURE if has_network or disk_full else BuildStatus.PERMANENT_FAILURE
    )
    how, cause = _how_it_ended(outcome)
    note = "; the disk is nearly full, which may be the reason" if disk_full else ""
    return BuildFailureError(status, f"builder for '{name}' {how}{note}", cause)


def _how_it_ended(outcome: Outcome) -> tuple[str, FailureCause]:
    if outcome.exec_error is not None:
        return f"could not be executed: {outcome.exec_error}", FailureCause.EXEC
    if outcome.signal is None:
        return f"failed with exit code {outcome.exit_code}", FailureCause.EXIT_CODE
    name = signal.strsignal(outcome.signal) or "unknown"
    text = f"failed due to signal {outcome.signal} ({name})"
    if outcome.signal == signal.SIGKILL and outcome.memory_exhausted:
        return f"{text}: the machine ran out of memory", FailureCause.MEMORY
    return text, FailureCause.SIGNAL
