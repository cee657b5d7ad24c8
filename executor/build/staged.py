"""Outputs on their way from the scratch store into the store."""

from __future__ import annotations

from dataclasses import dataclass

from executor.store.path_info import PathInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class StagedOutput:
    """An output that is complete and canonical, in a directory that only root can enter.

    It lies at ``name`` below ``directory_fd`` and waits to be renamed to ``info.path``.
    ``occurring`` are the hash parts of the scratch paths that its contents hold, whether they
    count as references or not.
    """

    output: str
    directory_fd: int
    name: bytes
    info: PathInfo
    occurring: frozenset[str] = frozenset()
