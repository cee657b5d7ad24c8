"""What a client wants to be done differently for it."""

from __future__ import annotations

from executor.protocols.call import Call
from executor.protocols.client_settings import MAX_VERBOSITY, ClientOptions, apply_options

_MAX_INT = (1 << 31) - 1
_MAX_NAME = 1 << 10
_MAX_VALUE = 1 << 20


def set_options(call: Call) -> None:
    """Settings for this connection."""
    read = call.read
    keep_failed, keep_going, fallback = read.boolean(), read.boolean(), read.boolean()
    verbosity = read.number(_MAX_INT)
    max_jobs, max_silent_time = read.number(_MAX_INT), read.number(_MAX_INT)
    for _obsolete in ("use build hook", "verbose build", "log type", "build trace"):
        read.number(_MAX_INT)
    cores, substitute = read.number(_MAX_INT), read.boolean()
    overrides = {read.text(_MAX_NAME): read.text(_MAX_VALUE) for _ in range(read.count())}
    call.begin()
    options = ClientOptions(
        keep_failed=keep_failed,
        keep_going=keep_going,
        fallback=fallback,
        verbosity=min(verbosity, MAX_VERBOSITY),
        max_jobs=max_jobs,
        max_silent_time=max_silent_time,
        cores=cores,
        substitute=substitute,
        overrides=tuple(overrides.items()),
    )
    session = call.session
    session.verbosity = options.verbosity
    settings, warnings = apply_options(session.host.settings, options, trusted=call.trusted)
    for warning in warnings:
        call.tell(1, warning)
    session.change_settings(settings)


def sync_with_gc(call: Call) -> None:
    """Nothing any more."""
    call.begin()
    call.answer.number(1)
