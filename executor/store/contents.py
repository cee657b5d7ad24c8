"""Hashes of contents: of a tree as a NAR or of a file, as content addresses have them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping

from executor.errors import FormatError
from executor.formats.content_address import ContentAddress, IngestionMethod
from executor.formats.hashes import Hash, HashAlgorithm
from executor.formats.store_path import DIGEST_LENGTH
from executor.references import HashRewriter
from executor.store.errors import HashMismatchError
from executor.store.path_info import PathInfo
from executor.store.tree import dump_tree

# What stands for hash parts of a path in its own contents while these are hashed.
BLANK = bytes(DIGEST_LENGTH)
_CHUNK = 1 << 20


def read_file(
    directory_fd: int,
    name: bytes,
    write: Callable[[bytes], object],
    progress: Callable[[int], object] | None = None,
) -> None:
    """Read a file piece by piece, never through a link; ``progress`` may raise to stop."""
    size = 0
    descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory_fd)
    with open(descriptor, "rb", buffering=0) as file:
        while chunk := file.read(_CHUNK):
            write(chunk)
            size += len(chunk)
            if progress is not None:
                progress(size)


def hash_contents(
    directory_fd: int,
    name: bytes,
    method: IngestionMethod,
    algorithm: HashAlgorithm,
    rewrites: Mapping[bytes, bytes] | None = None,
    progress: Callable[[int], object] | None = None,
) -> Hash:
    """The hash that a content address of these contents has.

    ``rewrites`` are hash parts that are replaced before; ``progress`` may raise to stop. Raises
    ``OSError`` where a file is expected and something else is there, and ``FormatError`` for Git
    hashes, which are of something else than the file.
    """
    if method is IngestionMethod.GIT:
        raise FormatError("Git hashes aren't supported")
    hasher = hashlib.new(algorithm.value)
    rewriter = HashRewriter(rewrites, hasher.update) if rewrites else None
    write = hasher.update if rewriter is None else rewriter.feed
    if method is IngestionMethod.NAR:
        dump_tree(directory_fd, name, write, progress)
    else:
        read_file(directory_fd, name, write, progress)
    if rewriter is not None:
        rewriter.finish()
    return Hash(algorithm, hasher.digest())


def check_contents(directory_fd: int, name: bytes, info: PathInfo) -> None:
    """Compare a tree, whose NAR hash is good, with the content address that is claimed for it.

    Raises ``HashMismatchError``; nothing where no address is claimed.
    """
    if info.content_address is None:
        return
    claimed = ContentAddress.parse(info.content_address)
    own = {info.path.digest.encode(): BLANK} if info.path in info.references else None
    if claimed.method is IngestionMethod.NAR and own is None and claimed.hash == info.nar_hash:
        return
    try:
        found = hash_contents(directory_fd, name, claimed.method, claimed.hash.algorithm, own)
    except OSError as error:
        raise HashMismatchError(
            f"'{info.path.base_name}' is not the file that its content address says: "
            f"{error.strerror}"
        ) from error
    except FormatError as error:
        raise HashMismatchError(f"'{info.path.base_name}' can't be hashed: {error}") from error
    if found != claimed.hash:
        raise HashMismatchError(
            f"ca hash mismatch importing path '{info.path.base_name}'; specified: "
            f"{claimed.hash.prefixed32}, got: {found.prefixed32}"
        )
