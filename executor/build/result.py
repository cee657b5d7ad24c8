"""What a build ends in: statuses, the result record, and exit codes.

Status numbers are those of Nix's worker protocol (``build-result.hh``), so that a later server can
send them as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import TYPE_CHECKING

from executor.formats.store_path import StorePath
from executor.limits import Exceeded

if TYPE_CHECKING:
    from sandbox import Contacts


class BuildStatus(IntEnum):
    """Result of one derivation, numbered as on Nix's wire.

    ``HASH_MISMATCH`` has no number on the wire (it is sent as ``OUTPUT_REJECTED``), nor has
    ``LIMIT_EXCEEDED`` (``MISC_FAILURE``: with another setting it could succeed), and ``CANCELLED``
    never leaves the process.
    """

    BUILT = 0
    SUBSTITUTED = 1
    ALREADY_VALID = 2
    PERMANENT_FAILURE = 3
    INPUT_REJECTED = 4
    OUTPUT_REJECTED = 5
    TRANSIENT_FAILURE = 6
    CACHED_FAILURE = 7
    TIMED_OUT = 8
    MISC_FAILURE = 9
    DEPENDENCY_FAILED = 10
    LOG_LIMIT_EXCEEDED = 11
    NOT_DETERMINISTIC = 12
    RESOLVES_TO_ALREADY_VALID = 13
    NO_SUBSTITUTERS = 14
    HASH_MISMATCH = 101
    CANCELLED = 102
    LIMIT_EXCEEDED = 103

    @property
    def success(self) -> bool:
        return self in _SUCCESSES

    @property
    def wire(self) -> int:
        """The number that the worker protocol knows for this status."""
        if self is BuildStatus.HASH_MISMATCH:
            return int(BuildStatus.OUTPUT_REJECTED)
        if self in (BuildStatus.CANCELLED, BuildStatus.LIMIT_EXCEEDED):
            return int(BuildStatus.MISC_FAILURE)
        return int(self)

    @property
    def label(self) -> str:
        """The name as Nix writes it in JSON, for example ``PermanentFailure``."""
        return "".join(part.capitalize() for part in self.name.split("_"))


_SUCCESSES = frozenset(
    {
        BuildStatus.BUILT,
        BuildStatus.SUBSTITUTED,
        BuildStatus.ALREADY_VALID,
        BuildStatus.RESOLVES_TO_ALREADY_VALID,
    }
)


class FailureCause(StrEnum):
    """What went wrong, where several causes share a status."""

    EXIT_CODE = "exit-code"
    SIGNAL = "signal"
    MEMORY = "out-of-memory"
    TIMEOUT = "timeout"
    SILENCE = "silence"
    LOG_LIMIT = "log-limit"
    LIMIT = "limit"
    EXEC = "exec"
    SETUP = "sandbox-setup"
    LIMIT_UNAVAILABLE = "limit-unavailable"
    STORE = "store"
    INPUT = "input"
    OUTPUT = "output"
    HOOK = "hook"
    DEPENDENCY = "dependency"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildResult:
    """The record of one derivation.

    Times are seconds since the epoch (0 when nothing ran), CPU times microseconds (``None`` when
    nothing ran). ``exit_code`` and ``signal`` tell how the builder ended, where it ran; ``message``
    may have several lines, but none of the derivation's log: ``log_tail`` holds the last ones of
    that, as bytes without line ends. ``kept_build_directory`` is set under ``keep-failed``.
    ``exceeded`` is the limit that stopped it, ``memory_peak`` (bytes), ``pids_peak`` and
    ``disk_peak`` (bytes) the most that it used, where that was counted.
    ``contacts`` says what a build in a network of its own sent to, and what it was kept from; None
    where there was no such network.
    """

    drv_path: StorePath
    status: BuildStatus
    message: str = ""
    cause: FailureCause | None = None
    outputs: Mapping[str, StorePath] = field(default_factory=dict)
    start_time: float = 0.0
    stop_time: float = 0.0
    cpu_user: int | None = None
    cpu_system: int | None = None
    log_path: str | None = None
    log_tail: tuple[bytes, ...] = ()
    exit_code: int | None = None
    signal: int | None = None
    exceeded: Exceeded | None = None
    memory_peak: int | None = None
    pids_peak: int | None = None
    disk_peak: int | None = None
    kept_build_directory: str | None = None
    contacts: Contacts | None = None

    @property
    def success(self) -> bool:
        return self.status.success

    @property
    def is_guilty(self) -> bool:
        """Whether it failed, and not only because others did and the run was over."""
        return not self.success and self.status is not BuildStatus.CANCELLED


def cancelled(drv_path: StorePath) -> BuildResult:
    """The result of what wasn't begun, or not ended, because something else failed."""
    return BuildResult(
        drv_path=drv_path,
        status=BuildStatus.CANCELLED,
        cause=FailureCause.CANCELLED,
        message=f"building '{drv_path.name}' was cancelled, because another build failed",
    )


# Nix's ExitStatusFlags (src/libstore/build-result.cc): 0b1100000 with flags below it.
_BASE = 0x60
_BUILD_FAILURE = 0x04
_TIMED_OUT = 0x01
_HASH_MISMATCH = 0x02
_CHECK_MISMATCH = 0x08
_FLAGS = {
    BuildStatus.PERMANENT_FAILURE: _BUILD_FAILURE,
    BuildStatus.INPUT_REJECTED: _BUILD_FAILURE,
    BuildStatus.LIMIT_EXCEEDED: _BUILD_FAILURE,
    BuildStatus.TIMED_OUT: _BUILD_FAILURE | _TIMED_OUT,
    BuildStatus.HASH_MISMATCH: _BUILD_FAILURE | _HASH_MISMATCH,
    BuildStatus.NOT_DETERMINISTIC: _CHECK_MISMATCH,
}


def exit_status(results: Iterable[BuildResult]) -> int:
    """Exit code of a command that built these: 0, 1, or Nix's bit mask from 100 on (row R3)."""
    failed = [result for result in results if not result.success]
    if not failed:
        return 0
    mask = 0
    for result in failed:
        mask |= _FLAGS.get(result.status, 0)
    return _BASE | mask if mask else 1
