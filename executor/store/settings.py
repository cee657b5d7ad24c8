"""The settings that the store obeys, as values."""

from dataclasses import dataclass

from executor.store.canonicalise import DEFAULT_IGNORED_ACLS


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreSettings:
    """Named as Nix's settings, with underscores; `gc_reserved_space` is in bytes."""

    fsync_metadata: bool = True
    fsync_store_paths: bool = False
    sync_before_registering: bool = False
    use_sqlite_wal: bool = True
    build_users_group: str = "nixbld"
    gc_reserved_space: int = 8 * 1024 * 1024
    ignored_acls: frozenset[str] = DEFAULT_IGNORED_ACLS
