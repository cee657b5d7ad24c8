"""A store on this machine's file system, shared with stock Nix at the same moment.

`LocalStore` is the front of this package: it owns the database connection, the big lock and the
temporary roots of this process and hands the work to the modules beside it. It is synchronous and
belongs to one thread; it must not be used after a fork.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import BinaryIO, Self

from executor.derivation import Derivation
from executor.formats.content_address import IngestionMethod
from executor.formats.store_path import StoreDir, StorePath
from executor.store.location import StoreLocation
from executor.store.path_info import PathInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreSettings:
    """The settings that the store obeys; named as Nix's, with underscores."""

    fsync_metadata: bool = True
    fsync_store_paths: bool = False
    sync_before_registering: bool = False
    use_sqlite_wal: bool = True
    build_users_group: str = "nixbld"
    gc_reserved_space: int = 8 * 1024 * 1024
    ignored_acls: frozenset[str] = frozenset(
        {"security.selinux", "system.nfs4_acl", "security.csm"}
    )


class LocalStore:
    """SKELETON: signatures only, see the working contract."""

    location: StoreLocation
    settings: StoreSettings

    @classmethod
    def open(
        cls,
        location: StoreLocation,
        *,
        read_only: bool = False,
        settings: StoreSettings | None = None,
    ) -> Self:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def store_dir(self) -> StoreDir:
        return self.location.store_dir

    def real_path(self, path: StorePath) -> str:
        return f"{self.location.real_store_dir}/{path.base_name}"

    def is_valid(self, path: StorePath) -> bool:
        raise NotImplementedError

    def query_path_info(self, path: StorePath) -> PathInfo:
        raise NotImplementedError

    def query_path_infos(self, paths: Collection[StorePath]) -> dict[StorePath, PathInfo]:
        raise NotImplementedError

    def query_valid(self, paths: Collection[StorePath]) -> set[StorePath]:
        raise NotImplementedError

    def query_all_valid(self) -> set[StorePath]:
        raise NotImplementedError

    def query_referrers(self, path: StorePath) -> set[StorePath]:
        raise NotImplementedError

    def query_derivers(self, path: StorePath) -> set[StorePath]:
        raise NotImplementedError

    def query_deriver(self, path: StorePath) -> StorePath | None:
        raise NotImplementedError

    def query_outputs(self, drv_path: StorePath) -> dict[str, StorePath]:
        raise NotImplementedError

    def path_from_hash_part(self, hash_part: str) -> StorePath | None:
        raise NotImplementedError

    def closure(self, paths: Iterable[StorePath], *, reverse: bool = False) -> set[StorePath]:
        raise NotImplementedError

    def read_derivation(self, path: StorePath) -> Derivation:
        raise NotImplementedError

    def write_derivation(self, derivation: Derivation) -> StorePath:
        raise NotImplementedError

    def add_text(self, name: str, data: bytes, references: Collection[StorePath] = ()) -> StorePath:
        raise NotImplementedError

    def add_file_or_tree(
        self, name: str, path: str | bytes, method: IngestionMethod = IngestionMethod.NAR
    ) -> StorePath:
        raise NotImplementedError

    def add_nar(self, info: PathInfo, source: BinaryIO) -> None:
        raise NotImplementedError

    def register(self, infos: Sequence[PathInfo]) -> None:
        raise NotImplementedError

    def invalidate(self, path: StorePath) -> None:
        raise NotImplementedError

    def add_signatures(self, path: StorePath, signatures: Iterable[str]) -> None:
        raise NotImplementedError

    def add_temp_root(self, path: StorePath) -> None:
        raise NotImplementedError

    def add_temp_roots(self, paths: Iterable[StorePath]) -> None:
        raise NotImplementedError

    def verify(
        self,
        *,
        check_contents: bool = False,
        repair: bool = False,
        report: Callable[[str], None] = lambda _line: None,
    ) -> list[str]:
        raise NotImplementedError

    def move_into_store(self, parent_fd: int, name: bytes, path: StorePath) -> None:
        raise NotImplementedError
