"""Outputs whose paths follow from their contents: floating and impure ones (rows O6, O7).

They are built at a scratch path. Then, outputs before those that refer to them: the contents are
hashed with references to themselves blanked, that gives the path, and every scratch path in the
contents is replaced by the true one. Source: ``registerOutputs`` of Nix 2.34.8.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import BinaryIO

from executor.build.failure import unable
from executor.build.result import FailureCause
from executor.build.staged import StagedOutput
from executor.derivation import FloatingOutput, ImpureOutput
from executor.errors import FormatError
from executor.formats.content_address import ContentAddress, IngestionMethod
from executor.formats.hashes import Hash, HashAlgorithm
from executor.formats.store_path import (
    StoreDir,
    StorePath,
    make_fixed_output_path,
    make_store_path,
    output_path_name,
)
from executor.references import HashRewriter
from executor.store.canonicalise import canonicalise_and_describe
from executor.store.contents import BLANK, hash_contents
from executor.store.restore import restore_tree
from executor.store.tree import dump_tree

_CHUNK = 1 << 20
_SUFFIX = b".rewritten"

_Rewrites = Mapping[bytes, bytes]


def fallback_path(
    store_dir: StoreDir, drv_path: StorePath, drv_name: str, output: str
) -> StorePath:
    """Where an output is built whose path isn't known yet; nothing else can have this path."""
    kind = f"rewrite:{drv_path.base_name}:name:{output}"
    zero = Hash(HashAlgorithm.SHA256, bytes(HashAlgorithm.SHA256.digest_size))
    return make_store_path(store_dir, kind, zero, output_path_name(drv_name, output))


class Settler:
    """Finds the true paths of the outputs of one build, one after the other.

    ``target_fd`` is an empty directory that only root can enter; what has to be rewritten is
    copied there. ``progress`` may raise to stop the work.
    """

    def __init__(
        self,
        store_dir: StoreDir,
        drv_name: str,
        target_fd: int,
        progress: Callable[[int], object],
    ) -> None:
        self._store_dir = store_dir
        self._drv_name = drv_name
        self._target_fd = target_fd
        self._progress = progress
        self._final: dict[StorePath, StorePath] = {}

    def settle(
        self, staged: StagedOutput, specification: FloatingOutput | ImpureOutput
    ) -> StagedOutput:
        """The output at its true path, with the references that it has there.

        Those that it refers to were settled before. Raises ``BuildFailureError`` for references
        that its kind of hash can't express.
        """
        scratch = staged.info.path
        others = {
            _key(path): _key(final)
            for path, final in self._final.items()
            if path.digest in staged.occurring and path != final
        }
        own = scratch.digest in staged.occurring
        blanks = {**others, _key(scratch): BLANK} if own else others
        address = ContentAddress(
            specification.method, self._content_hash(staged, specification, blanks)
        )
        references = {self._final.get(path, path) for path in staged.info.references}
        final = self._path(staged, address, references)
        self._final[scratch] = final
        info = replace(
            staged.info,
            path=final,
            references=frozenset(final if path == scratch else path for path in references),
            content_address=address.render(),
        )
        rewrites = {**others, _key(scratch): _key(final)} if own and final != scratch else others
        settled = replace(staged, info=info)
        return self._rewritten(settled, rewrites) if rewrites else settled

    def _path(
        self, staged: StagedOutput, address: ContentAddress, references: set[StorePath]
    ) -> StorePath:
        scratch = staged.info.path
        try:
            if address.method is IngestionMethod.TEXT and scratch in references:
                raise FormatError("a text must not refer to itself")
            return make_fixed_output_path(
                self._store_dir,
                output_path_name(self._drv_name, staged.output),
                address.method,
                address.hash,
                references - {scratch},
                self_reference=scratch in references,
            )
        except FormatError as error:
            raise unable(
                f"output '{staged.output}' refers to other store paths, which its kind of hash "
                f"can't express: {error}",
                FailureCause.OUTPUT,
            ) from error

    def _content_hash(
        self,
        staged: StagedOutput,
        specification: FloatingOutput | ImpureOutput,
        rewrites: _Rewrites,
    ) -> Hash:
        algorithm = specification.algorithm
        recursive = specification.method is IngestionMethod.NAR
        if recursive and algorithm is HashAlgorithm.SHA256 and not rewrites:
            return staged.info.nar_hash
        return hash_contents(
            *(staged.directory_fd, staged.name, specification.method, algorithm, rewrites),
            progress=self._progress,
        )

    def _rewritten(self, staged: StagedOutput, rewrites: _Rewrites) -> StagedOutput:
        """A copy with other hash parts, and what it hashes to now."""
        name = staged.name + _SUFFIX
        try:
            copy_rewritten(
                *(staged.directory_fd, staged.name, self._target_fd, name, rewrites),
                progress=self._progress,
            )
        except FormatError as error:
            # Names of files that hold a scratch path may sort otherwise with the true one.
            text = f"output '{staged.output}' can't be rewritten to its true path: {error}"
            raise unable(text, FailureCause.OUTPUT) from error
        description = canonicalise_and_describe(self._target_fd, name, progress=self._progress)
        info = replace(staged.info, nar_hash=description.nar_hash, nar_size=description.nar_size)
        return replace(staged, directory_fd=self._target_fd, name=name, info=info)


def _key(path: StorePath) -> bytes:
    return path.digest.encode()


class _Watched:
    """A pipe that is read only as long as nobody says stop."""

    def __init__(self, pipe: BinaryIO, progress: Callable[[int], object]) -> None:
        self._pipe = pipe
        self._progress = progress

    def read(self, size: int, /) -> bytes:
        self._progress(0)
        return self._pipe.read(size)


def copy_rewritten(
    source_fd: int,
    source_name: bytes,
    target_fd: int,
    target_name: bytes,
    rewrites: _Rewrites,
    *,
    progress: Callable[[int], object],
) -> None:
    """Copy a canonical tree with some hash parts replaced, wherever they stand.

    Raises ``FormatError`` where the copy would be no valid tree; what was made until then stays.
    """
    reading, writing = os.pipe2(os.O_CLOEXEC)
    failures: list[BaseException] = []

    def dump() -> None:
        try:
            with open(writing, "wb", buffering=_CHUNK) as pipe:
                rewriter = HashRewriter(rewrites, pipe.write)
                dump_tree(source_fd, source_name, rewriter.feed)
                rewriter.finish()
        except BaseException as error:  # noqa: BLE001 - told by the thread that waits
            failures.append(error)

    thread = threading.Thread(target=dump, name="rewrite")
    thread.start()
    try:
        with open(reading, "rb", buffering=_CHUNK) as pipe:
            restore_tree(_Watched(pipe, progress), target_fd, target_name)
    finally:
        # A reader that gave up breaks the pipe, and the thread ends with it.
        thread.join()
    for failure in failures:
        raise failure
