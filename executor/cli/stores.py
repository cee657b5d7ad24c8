"""Opening the store of an invocation."""

from __future__ import annotations

from executor.cli.options import Invocation
from executor.store.local import LocalStore
from executor.store.settings import StoreSettings


def open_store(invocation: Invocation, *, read_only: bool = False) -> LocalStore:
    """The store, as a context manager. Raises ``StoreError``."""
    return LocalStore.open(
        invocation.location,
        read_only=read_only,
        settings=StoreSettings.of(invocation.settings),
    )
