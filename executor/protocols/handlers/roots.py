"""What keeps paths from the collector."""

from __future__ import annotations

import os

from executor.errors import FormatError
from executor.protocols.call import Call
from executor.protocols.handlers.offers import ensure
from executor.store.roots import make_indirect_root

_MAX_LINK = 4096


def ensure_path(call: Call) -> None:
    """Make a path valid."""
    path = call.read.path()
    call.begin()
    ensure(call, path)
    call.answer.number(1)


def add_temp_root(call: Call) -> None:
    """Keep a path for as long as this connection."""
    path = call.read.path()
    call.begin()
    call.store.add_temp_root(path)
    call.answer.number(1)


def _link(call: Call) -> str:
    """An absolute path of a client's choice, canonical by its letters."""
    text = call.read.text(_MAX_LINK)
    if not text.startswith("/") or "\0" in text:
        raise FormatError(f"'{text[:300]}' is not an absolute path")
    return "/" + os.path.normpath(text).lstrip("/")


def add_indirect_root(call: Call) -> None:
    """Register a link of a user's as a root."""
    link = _link(call)
    call.begin()
    make_indirect_root(call.store.location, link)
    call.answer.number(1)


def add_perm_root(call: Call) -> None:
    """Make a link that is a root."""
    call.require_trust(
        "you are not privileged to create perm roots\n\n"
        "hint: you can just do this client-side without special privileges, and probably want to "
        "do that instead."
    )
    path, link = call.read.path(), _link(call)
    call.begin()
    call.answer.text(call.store.add_permanent_root(link, path))


def find_roots(call: Call) -> None:
    """All roots; who isn't trusted isn't told of processes."""
    call.begin()
    roots = call.store.find_roots(censor=not call.trusted, report=call.report)
    call.answer.number(sum(map(len, roots.values())))
    for path, links in sorted(roots.items()):
        for link in sorted(links):
            call.answer.text(link)
            call.answer.path(path)
