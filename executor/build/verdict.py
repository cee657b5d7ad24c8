"""What the end of a builder means for its derivation (rows R2, R4, C4-C6)."""

from __future__ import annotations

import signal
from collections.abc import Collection, Sequence

from executor.build.failure import BuildFailureError
from executor.build.messages import cannot_build
from executor.build.network import contact_lines
from executor.build.result import BuildStatus, FailureCause
from executor.build.runner import Ending, Limits, Outcome
from executor.store.file_systems import FullFileSystem, notes_on
from sandbox import Contacts


def builder_failure(
    name: str,
    outcome: Outcome,
    limits: Limits,
    *,
    has_network: bool,
    full: Sequence[FullFileSystem] = (),
    contacts: Contacts | None = None,
    known_outputs: Collection[str] = (),
    machine: str = "",
) -> BuildFailureError:
    """What an outcome without success means (rows R2, R4, C4-C6).

    ``name`` and ``known_outputs`` are full paths; ``machine`` is where a hook built, if one did,
    and ``full`` the file systems that it may have filled.
    """
    how, status, cause = _how_it_ended(outcome, limits)
    if status is BuildStatus.PERMANENT_FAILURE and (has_network or full):
        status = BuildStatus.TRANSIENT_FAILURE
    where = f" on '{machine}'" if machine else ""
    text = cannot_build(name, f"builder{where} {how}", known_outputs=known_outputs)
    if full and cause not in _STOPPED:
        text += "\nnote: build failure may have been caused by lack of free disk space"
        text += notes_on(full)
    if contacts is not None and any(not contact.allowed for contact in contacts.contacts):
        kept = contact_lines(contacts)[-1]
        text += f"\nnote: it {kept}, by the setting 'fod-network-rules'"
    return BuildFailureError(status, text, cause, exceeded=outcome.exceeded)


_STOPPED = frozenset(
    {FailureCause.TIMEOUT, FailureCause.SILENCE, FailureCause.LOG_LIMIT, FailureCause.LIMIT}
)


def _how_it_ended(outcome: Outcome, limits: Limits) -> tuple[str, BuildStatus, FailureCause]:
    match outcome.ending:
        case Ending.TIMED_OUT:
            text = f"timed out after {limits.timeout} seconds"
            return text, BuildStatus.TIMED_OUT, FailureCause.TIMEOUT
        case Ending.SILENT:
            text = f"timed out after {limits.max_silent_time} seconds of silence"
            return text, BuildStatus.TIMED_OUT, FailureCause.SILENCE
        case Ending.LOG_LIMIT:
            text = f"killed after writing more than {limits.max_log_size} bytes of log output"
            return text, BuildStatus.LOG_LIMIT_EXCEEDED, FailureCause.LOG_LIMIT
        case Ending.RESOURCE_LIMIT if outcome.exceeded is not None:
            text = f"was stopped by {outcome.exceeded.reason}"
            return text, BuildStatus.LIMIT_EXCEEDED, FailureCause.LIMIT
    text, cause = _how_it_exited(outcome)
    return text, BuildStatus.PERMANENT_FAILURE, cause


def _how_it_exited(outcome: Outcome) -> tuple[str, FailureCause]:
    if outcome.exec_error is not None:
        return f"could not be executed: {outcome.exec_error}", FailureCause.EXEC
    if outcome.signal is None:
        return f"failed with exit code {outcome.exit_code}", FailureCause.EXIT_CODE
    name = signal.strsignal(outcome.signal) or "unknown"
    text = f"failed due to signal {outcome.signal} ({name})"
    if outcome.signal == signal.SIGKILL and outcome.memory_exhausted:
        return f"{text}: the machine ran out of memory", FailureCause.MEMORY
    return text, FailureCause.SIGNAL
