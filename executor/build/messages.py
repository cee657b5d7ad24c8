"""Texts with which Nix 2.34.8 refuses or fails a build, composed from facts; pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def local_build_refusal(
    drv_path: str,
    *,
    required_system: str,
    required_features: Collection[str],
    system: str,
    extra_platforms: Collection[str],
    system_features: Collection[str],
    is_builtin: bool,
    max_jobs: int,
) -> str | None:
    """Why this machine can't build a derivation (row R6), or ``None`` if it can."""
    raise NotImplementedError


def no_chroot_refusal(drv_path: str) -> str:
    """A derivation wants to opt out of the sandbox."""
    raise NotImplementedError


def impure_host_dep_refusal(
    drv_path: str, wanted: Collection[str], allowed: Collection[str]
) -> str | None:
    """Which of the ``__impureHostDeps`` is not below an allowed directory, or ``None``."""
    raise NotImplementedError


def builder_failure(
    drv_path: str, how: str, known_outputs: Sequence[str], log_tail: Sequence[str]
) -> str:
    """The text of a failed build (row R4). ``how`` is "failed with exit code 1" or the like."""
    raise NotImplementedError
