"""What a client's options change (SetOptions): all that a trusted one wants, little for others.

Source: ``ClientSettings`` in ``daemon.cc`` of Nix. Pure.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

from executor.config import Settings, override_settings
from executor.config_text import plain_setting, setting_text

MAX_VERBOSITY = 7
# More than this and a client's wish is not worth an object for each job.
_MOST_JOBS = 1 << 12
# What clients who aren't trusted may set.
_FREE = frozenset({"timeout", "max-silent-time", "build-poll-interval", "connect-timeout"})
_SUBSTITUTERS = frozenset({"substituters", "binary-caches"})
# Never taken from a client, trusted or not: what the program is, and whose it is.
_OURS = frozenset({"ssh-auth-sock", "experimental-features", "extra-experimental-features"})
_ORIGIN = "the client's options"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientOptions:
    """What SetOptions carries, as far as anybody looks at it."""

    keep_failed: bool
    keep_going: bool
    fallback: bool
    verbosity: int
    max_jobs: int
    max_silent_time: int
    cores: int
    substitute: bool
    overrides: tuple[tuple[str, str], ...] = ()


def settings_of_silent(ours: Settings) -> tuple[Settings, tuple[str, ...]]:
    """What holds for clients that send no options, until they do, and warnings for the log.

    ``ssh-ng://`` never sends any: limits of builds, and whether directories are kept, are lost on
    that way, and ``silent-client-options`` says what they are.
    """
    loaded = override_settings(
        ours, ours.silent_client_options.items(), "setting 'silent-client-options'"
    )
    return loaded.settings, loaded.warnings


# What the message has places for, and what a server knows better.
_IN_PLACES = frozenset({"keep-failed", "keep-going", "fallback", "max-jobs", "max-silent-time"}) | {
    *("cores", "substitute", "experimental-features", "plugin-files"),
}


def options_of(settings: Settings, verbosity: int, chosen: Collection[str]) -> ClientOptions:
    """What to tell a server of our settings: the usual ones, and those that somebody chose."""
    overrides = {
        name: setting_text(plain_setting(getattr(settings, name.replace("-", "_"))))
        for name in sorted(set(chosen) - _IN_PLACES)
    }
    return ClientOptions(
        keep_failed=settings.keep_failed,
        keep_going=settings.keep_going,
        fallback=settings.fallback,
        verbosity=verbosity,
        max_jobs=settings.max_jobs,
        max_silent_time=settings.max_silent_time,
        cores=settings.cores,
        substitute=settings.substitute,
        overrides=tuple(overrides.items()),
    )


def apply_options(
    ours: Settings, options: ClientOptions, *, trusted: bool
) -> tuple[Settings, tuple[str, ...]]:
    """The settings for one client, from the daemon's own, and warnings for that client."""
    settings = replace(
        ours,
        keep_failed=options.keep_failed,
        keep_going=options.keep_going,
        fallback=options.fallback,
        max_jobs=min(options.max_jobs, _MOST_JOBS),
        max_silent_time=options.max_silent_time,
        cores=options.cores,
        substitute=options.substitute,
    )
    accepted: list[tuple[str, str]] = []
    warnings: list[str] = []
    for name, value in options.overrides:
        if name in _OURS:
            continue
        if name == "plugin-files":
            warnings.append("Ignoring the client-specified plugin-files.")
        elif trusted or name in _FREE or (name == "builders" and not value):
            accepted.append((name, value))
        elif name in _SUBSTITUTERS:
            chosen, refused = _trusted_substituters(ours, value.split())
            accepted.append((name, " ".join(chosen)))
            warnings += map(_untrusted_substituter, refused)
        else:
            warnings.append(
                f"ignoring the client-specified setting '{name}', because it is a restricted "
                "setting and you are not a trusted user"
            )
    loaded = override_settings(settings, accepted, _ORIGIN)
    # Clients send all that their files say; what we don't know is not worth a word each time.
    told = [text for text in loaded.warnings if not text.startswith("unknown setting")]
    return loaded.settings, (*warnings, *told)


def _trusted_substituters(ours: Settings, wanted: Iterable[str]) -> tuple[list[str], list[str]]:
    """Those that one may ask for who isn't trusted, and the others."""
    trusted = {*ours.trusted_substituters, *ours.substituters}
    chosen: list[str] = []
    refused: list[str] = []
    for text in wanted:
        (chosen if _is_among(text, trusted) else refused).append(text)
    return chosen, refused


def _is_among(text: str, trusted: Collection[str]) -> bool:
    return text in trusted or f"{text}/" in trusted or text.removesuffix("/") in trusted


def _untrusted_substituter(text: str) -> str:
    return (
        f"ignoring untrusted substituter '{text}', you are not a trusted user.\n"
        "Run `man nix.conf` for more information on the `substituters` configuration option."
    )
