"""The settings that the store obeys, as values."""

from dataclasses import dataclass
from typing import Self

from executor.settings import Settings
from executor.store.canonicalise import DEFAULT_IGNORED_ACLS


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreSettings:
    """Named as Nix's settings, with underscores; spaces are in bytes, times in seconds.

    With `ca-derivations` among the experimental features, realisations are recorded and looked up.
    """

    fsync_metadata: bool = True
    fsync_store_paths: bool = False
    sync_before_registering: bool = False
    use_sqlite_wal: bool = True
    build_users_group: str = "nixbld"
    gc_reserved_space: int = 8 * 1024 * 1024
    ignored_acls: frozenset[str] = DEFAULT_IGNORED_ACLS
    experimental_features: frozenset[str] = frozenset()
    keep_outputs: bool = False
    keep_derivations: bool = True
    min_free: int = 0
    max_free: int = (1 << 63) - 1
    min_free_check_interval: int = 5
    auto_optimise_store: bool = False

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """What the settings of the program say of the store."""
        return cls(
            fsync_metadata=settings.fsync_metadata,
            fsync_store_paths=settings.fsync_store_paths,
            sync_before_registering=settings.sync_before_registering,
            use_sqlite_wal=settings.use_sqlite_wal,
            build_users_group=settings.build_users_group,
            gc_reserved_space=settings.gc_reserved_space,
            ignored_acls=settings.ignored_acls,
            experimental_features=settings.experimental_features,
            keep_outputs=settings.keep_outputs,
            keep_derivations=settings.keep_derivations,
            min_free=settings.min_free,
            max_free=settings.max_free,
            min_free_check_interval=settings.min_free_check_interval,
            auto_optimise_store=settings.auto_optimise_store,
        )

    @property
    def ca_derivations(self) -> bool:
        """Whether realisations are recorded and looked up."""
        return "ca-derivations" in self.experimental_features
