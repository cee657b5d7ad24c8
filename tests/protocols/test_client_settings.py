"""What holds for clients that send no options, and for those that do."""

from __future__ import annotations

import os

from executor.config import load_settings
from executor.protocols.client_settings import ClientOptions, apply_options, settings_of_silent
from executor.settings import Settings

OPTIONS = ClientOptions(
    keep_failed=False,
    keep_going=False,
    fallback=False,
    verbosity=3,
    max_jobs=2,
    max_silent_time=0,
    cores=0,
    substitute=True,
)


def test_limits_for_clients_that_send_no_options() -> None:
    line = "silent-client-options = timeout=60 cores=2 keep-failed=true max-silent-time=9\n"
    ours = load_settings(environ={"NIX_CONFIG": f"timeout = 5\n{line}"}).settings
    settings, warnings = settings_of_silent(ours)
    assert not warnings
    assert (settings.timeout, settings.cores, settings.max_silent_time) == (60, 2, 9)
    assert settings.keep_failed
    assert ours.timeout == 5
    # Whoever sends options is not one of them.
    applied, _ = apply_options(ours, OPTIONS, trusted=False)
    assert (applied.timeout, applied.cores, applied.keep_failed) == (5, 0, False)


def test_what_can_not_hold_is_told_and_weakens_nothing() -> None:
    ours = Settings(silent_client_options={"sandbox": "false", "nonsense": "1", "timeout": "x"})
    settings, warnings = settings_of_silent(ours)
    assert settings == ours
    assert len(warnings) == 3
    assert any("weaken the sandbox" in text for text in warnings)


def test_without_the_setting_nothing_is_different() -> None:
    ours = load_settings(environ=dict(os.environ)).settings
    assert settings_of_silent(ours) == (ours, ())
