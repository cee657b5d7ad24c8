"""Texts with which Nix 2.34.8 refuses or fails a build, composed from facts; pure."""

from __future__ import annotations

import posixpath
from collections.abc import Collection, Sequence

from executor.build.attribute_reader import printable

# That many of the inputs that failed are named.
_MOST_INPUTS = 10


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
    """Why this machine can't build a derivation (row R6), or ``None`` if it can.

    ``drv_path`` is the full path; the other names are those of settings and options. A builtin
    builder runs on any system.
    """
    reasons = ""
    if max_jobs == 0:
        reasons += (
            "\nReason: local builds are disabled (max-jobs = 0)"
            "\nHint: set 'max-jobs' to a non-zero value to enable local builds, "
            "or configure remote builders via 'builders'"
        )
    systems = {system, *extra_platforms}
    if required_system not in systems and not is_builtin:
        reasons += (
            "\nReason: platform mismatch"
            f"\nRequired system: '{printable(required_system)}'"
            f"\nCurrent system: '{system}'"
        )
    if not set(required_features) <= set(system_features):
        reasons += (
            "\nReason: missing system features"
            f"\nRequired features: {{{_listing(required_features)}}}"
            f"\nAvailable features: {{{_listing(system_features)}}}"
        )
    return f"Cannot build '{drv_path}'.{reasons}" if reasons else None


def no_chroot_refusal(drv_path: str) -> str:
    """A derivation wants to opt out of the sandbox (row D23)."""
    return (
        f"derivation '{drv_path}' has '__noChroot' set, "
        "but that's not allowed when 'sandbox' is 'true'"
    )


def impure_host_dep_refusal(
    drv_path: str, wanted: Collection[str], allowed: Collection[str]
) -> str | None:
    """Which of the ``__impureHostDeps`` is not an allowed path or below one, or ``None``."""
    prefixes = [posixpath.normpath(prefix) for prefix in allowed]
    for path in sorted(wanted):
        if not any(_is_within(path, prefix) for prefix in prefixes):
            return (
                f"derivation '{drv_path}' requested impure path '{printable(path)}', "
                "but it was not in allowed-impure-host-deps"
            )
    return None


def id_range_refusal(
    wants_range: bool, *, allocates: bool, uses_cgroups: bool, features: Collection[str]
) -> str | None:
    """What a build lacks for ids of its own (``uid-range``), or for its control group."""
    if wants_range and not allocates:
        return "feature 'uid-range' requires the setting 'auto-allocate-uids' to be enabled"
    if (wants_range or uses_cgroups) and "cgroups" not in features:
        return (
            "experimental Nix feature 'cgroups' is disabled; "
            "add '--extra-experimental-features cgroups' to enable it"
        )
    return None


def cannot_build(
    drv_path: str,
    reason: str,
    *,
    known_outputs: Collection[str] = (),
    failed_inputs: Sequence[str] = (),
) -> str:
    """The text of a failed build (row R4).

    ``reason`` is "builder failed with exit code 1" or the like; ``known_outputs`` are the full
    paths that are known before the build, ``failed_inputs`` the derivations that are to blame.
    """
    text = f"Cannot build '{drv_path}'.\nReason: {reason}."
    if failed_inputs:
        shown, more = failed_inputs[:_MOST_INPUTS], len(failed_inputs) - _MOST_INPUTS
        text += "\nFailed:" + "".join(f"\n  {path}" for path in shown)
        text += f"\n  and {more} more" if more > 0 else ""
    if known_outputs:
        text += "\nOutput paths:" + "".join(f"\n  {path}" for path in sorted(known_outputs))
    return text


def _is_within(path: str, prefix: str) -> bool:
    """Whether an absolute path is ``prefix`` or below it, going by its letters only."""
    if not path.startswith("/"):
        return False
    canonical = "/" + posixpath.normpath(path).lstrip("/")
    return canonical == prefix or canonical.startswith(prefix.rstrip("/") + "/")


def _listing(names: Collection[str]) -> str:
    return printable(", ".join(sorted(names)))
