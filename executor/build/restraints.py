"""The limits of one build, brought together: what the sandbox, the watch and the outputs get."""

from __future__ import annotations

import time
from dataclasses import replace

from executor.build.disk import DiskMeter
from executor.build.failure import BuildFailureError, unable
from executor.build.messages import cannot_build
from executor.build.prepare import Preparation
from executor.build.result import BuildStatus, FailureCause
from executor.build.runner import Limits, Outcome
from executor.build.users import BuildUser
from executor.build.workspace import Workspace
from executor.config import Settings
from executor.limits import BuildLimits, Exceeded, Resource, build_limits
from executor.store.progress import OutOfTimeError, Progress, StoppedError, TooLargeError
from sandbox import CgroupError, SandboxSpec

_BEST_EFFORT = "best-effort"
# Resources whose limits a control group holds, and the controllers that some need for it.
_COUNTED = {Resource.MEMORY: "memory", Resource.PIDS: "pids", Resource.CPU: ""}


def resources_of(settings: Settings, preparation: Preparation) -> BuildLimits:
    """What the settings let this derivation use."""
    values = [
        (Resource.MEMORY, settings.build_memory_max),
        (Resource.CPU, settings.build_cpu_max),
        (Resource.PIDS, settings.build_pids_max),
        (Resource.DISK, settings.build_disk_max),
    ]
    name = preparation.drv_path.name.removesuffix(".drv")
    features = preparation.options.required_system_features
    return build_limits(values, settings.build_limits, name, features)


def restrained(spec: SandboxSpec, limits: BuildLimits, mode: str) -> SandboxSpec:
    """The sandbox with the limits that it has to hold itself.

    Where disk is limited there is no ``fallocate``: by that a build could take all that is free
    before anybody looks.
    """
    best_effort = mode == _BEST_EFFORT
    if not (best_effort or any(limits[resource] for resource in Resource)):
        return spec
    cgroup = replace(
        spec.cgroup,
        memory_max=limits.value(Resource.MEMORY),
        pids_max=limits.value(Resource.PIDS),
        required=spec.cgroup.required or (limits[Resource.CPU] is not None and not best_effort),
        best_effort=best_effort,
    )
    return replace(spec, cgroup=cgroup, preallocation=limits[Resource.DISK] is None)


def disk_meter(limits: BuildLimits, workspace: Workspace, user: BuildUser) -> DiskMeter | None:
    """What counts the build's files, where they are limited."""
    limit = limits[Resource.DISK]
    if limit is None:
        return None
    places = (workspace.build_fd, workspace.scratch_fd, workspace.temporary_directory)
    return DiskMeter(places, limit, user.uids)


def not_applied(limits: BuildLimits, outcome: Outcome) -> list[str]:
    """Sentences about limits that this machine couldn't apply, where best effort is enough."""
    return [
        f"{limit.setting} = {limit.value} is not applied: this machine lacks "
        + (f"the controller '{controller}' of cgroup v2" if controller else "cgroup v2")
        for resource, controller in _COUNTED.items()
        if (limit := limits[resource]) and (not outcome.counted or controller in outcome.unapplied)
    ]


def unavailable(name: str, error: CgroupError, limits: BuildLimits) -> BuildFailureError:
    """A build whose limits this machine can't apply isn't begun."""
    settings = [
        limit.setting
        for resource, controller in _COUNTED.items()
        if (limit := limits[resource]) and (not error.missing or controller in error.missing)
    ]
    if not settings:
        return unable(f"can't set up the sandbox for '{name}': {error}")
    text = (
        f"can't build '{name}' within {' and '.join(settings)}: {error}; or set "
        "'build-limits-mode = best-effort' to build without what can't be limited here"
    )
    return unable(text, FailureCause.LIMIT_UNAVAILABLE)


def output_progress(outcome: Outcome, limits: Limits) -> Progress:
    """What stops the work on a build's outputs: the rest of its time, and its limit of disk."""
    left = limits.timeout - (outcome.stop_time - outcome.start_time)
    return Progress(
        deadline=time.monotonic() + max(left, 0) if limits.timeout else 0,
        max_size=limits.resources.value(Resource.DISK),
    )


def stopped(name: str, error: StoppedError, limits: Limits) -> BuildFailureError:
    """The verdict on a build whose outputs took too long, or are too large."""
    disk = limits.resources[Resource.DISK]
    if isinstance(error, TooLargeError) and disk is not None:
        note = "what counts of outputs is their length, with holes"
        exceeded = Exceeded(limit=disk, peak=error.size, note=note)
        text = cannot_build(name, f"builder was stopped by {exceeded.reason}")
        return BuildFailureError(
            BuildStatus.LIMIT_EXCEEDED, text, FailureCause.LIMIT, exceeded=exceeded
        )
    if isinstance(error, OutOfTimeError):
        reason = f"timed out after {limits.timeout} seconds, while its outputs were read"
        text = cannot_build(name, f"builder {reason}")
        return BuildFailureError(BuildStatus.TIMED_OUT, text, FailureCause.TIMEOUT)
    return unable(f"can't build '{name}': {error}", FailureCause.STORE)
