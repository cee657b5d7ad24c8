"""Opening the store of an invocation."""

from __future__ import annotations

from executor.cli.options import Invocation
from executor.store.local import LocalStore
from executor.store.settings import StoreSettings


def open_store(invocation: Invocation, *, read_only: bool = False) -> LocalStore:
    """The store, as a context manager. Raises ``StoreError``."""
    settings = invocation.settings
    return LocalStore.open(
        invocation.location,
        read_only=read_only,
        settings=StoreSettings(
            fsync_metadata=settings.fsync_metadata,
            fsync_store_paths=settings.fsync_store_paths,
            build_users_group=settings.build_users_group,
            ignored_acls=settings.ignored_acls,
        ),
    )
