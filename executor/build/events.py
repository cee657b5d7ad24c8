"""What happens while a graph is built, as values that listeners receive.

Listeners are called in the event loop, in order, and must return at once. An exception that a
listener raises is not swallowed: it ends the run, because a broken display must not hide.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from executor.build.result import BuildResult
from executor.caches.watching import BytesDone, QueryStarted, TransferStarted, Watched, WatchEnded
from executor.formats.store_path import StorePath

__all__ = ["BytesDone", "QueryStarted", "TransferStarted", "WatchEnded", "Watched"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphPlanned:
    """What has to be built, and what can be fetched, before the first of it starts.

    ``download_size`` and ``nar_size`` are the bytes to fetch, as transferred and unpacked.
    ``unknown`` are paths that nobody offers and nothing builds.
    """

    will_build: tuple[StorePath, ...]
    will_substitute: tuple[StorePath, ...] = ()
    download_size: int = 0
    nar_size: int = 0
    unknown: tuple[StorePath, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SubstitutionStarted:
    """A path is about to be fetched; ``number`` is unique among builds and fetches of one run."""

    number: int
    path: StorePath
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SubstitutionFinished:
    """A fetch has ended; ``nar_size`` are the bytes of the path in the store."""

    number: int
    path: StorePath
    success: bool
    nar_size: int


Purpose = Literal["building", "checking outputs of", "repairing outputs of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildStarted:
    """The builder of ``drv_path`` is about to run; ``build_id`` numbers the builds of one run.

    ``machine`` is where a build hook lets it run; empty for this machine. ``purpose`` is what the
    build is for, in Nix's words.
    """

    build_id: int
    drv_path: StorePath
    start_time: float
    machine: str = ""
    purpose: Purpose = "building"


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildLogLine:
    """One line that the builder printed, without its line end; bytes, untrusted."""

    build_id: int
    drv_path: StorePath
    line: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildPhase:
    """The builder said (by an ``@nix`` line) that it entered a phase."""

    build_id: int
    drv_path: StorePath
    phase: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildTransfer:
    """The builder said (by an ``@nix`` line) how a download goes that it makes (row G8).

    ``transfer`` is the builder's own number for it; ``action`` is "start" (with ``level`` and
    ``text``), "result" (of a ``kind``, as Nix numbers results), or "stop".
    """

    build_id: int
    drv_path: StorePath
    transfer: int
    action: str
    level: int = 0
    text: str = ""
    kind: int = 0
    fields: tuple[int | str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PostBuildStarted:
    """The post-build hook is about to run; ``hook_id`` is unique among builds of one run."""

    hook_id: int
    drv_path: StorePath
    program: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PostBuildLine:
    """One line that the post-build hook printed, without its line end; bytes, untrusted."""

    hook_id: int
    drv_path: StorePath
    line: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class PostBuildFinished:
    """The post-build hook has ended, or couldn't be run."""

    hook_id: int
    drv_path: StorePath


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildFinished:
    """The derivation is done, whether a builder ran for it or not."""

    result: BuildResult


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitingForLock:
    """Somebody else builds the same outputs; ``paths`` are the store's real paths.

    ``holders`` are the processes that hold the locks, where the kernel tells.
    """

    drv_path: StorePath
    paths: tuple[str, ...]
    holders: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitingForMachine:
    """The build hook knows machines for ``drv_path``, but none is free."""

    drv_path: StorePath


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitingForUser:
    """All build users are in use."""

    drv_path: StorePath


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """A message for people: ``level`` as Nix's verbosity (0 error, 1 warning, 2 notice, 3 info)."""

    level: int
    text: str


Event = (
    GraphPlanned
    | SubstitutionStarted
    | SubstitutionFinished
    | BuildStarted
    | BuildLogLine
    | BuildPhase
    | BuildTransfer
    | PostBuildStarted
    | PostBuildLine
    | PostBuildFinished
    | BuildFinished
    | WaitingForLock
    | WaitingForMachine
    | WaitingForUser
    | Notice
    | Watched
)
Listener = Callable[[Event], None]
