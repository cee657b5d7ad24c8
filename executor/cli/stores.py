"""Opening the store of an invocation: itself, or through a daemon."""

from __future__ import annotations

from typing import TYPE_CHECKING

from executor.cli.options import Invocation
from executor.store.local import LocalStore
from executor.store.location import DaemonAddress
from executor.store.settings import StoreSettings

if TYPE_CHECKING:
    from executor.protocols.remote_store import RemoteStore

    Store = LocalStore | RemoteStore


def open_store(invocation: Invocation, *, read_only: bool = False) -> Store:
    """The store, as a context manager. Raises ``StoreError`` and ``ClientError``."""
    if invocation.daemon is not None:
        return open_remote_store(invocation, invocation.daemon)
    return open_local_store(invocation, read_only=read_only)


def open_local_store(invocation: Invocation, *, read_only: bool = False) -> LocalStore:
    """The store itself. Raises ``StoreError``, and ``UsageError`` where a daemon has it."""
    return LocalStore.open(
        invocation.require_local(),
        read_only=read_only,
        settings=StoreSettings.of(invocation.settings),
    )


def open_remote_store(invocation: Invocation, daemon: DaemonAddress) -> RemoteStore:
    """A daemon's store; what it says is said. Raises ``ClientError``."""
    from executor.cli.progress import notice_text
    from executor.protocols.client_settings import options_of
    from executor.protocols.remote_store import RemoteStore

    def say(level: int, text: str) -> None:
        invocation.say(level, notice_text(level, text))

    options = options_of(invocation.settings, invocation.verbosity, invocation.chosen)
    return RemoteStore.open(daemon, options, say)
