"""Reading an archive that somebody promised: its hash and its size have to be right."""

from __future__ import annotations

from executor.formats.hashes import Hash, HashAlgorithm, new_hasher
from executor.formats.nar import read_events
from executor.store.errors import HashMismatchError
from executor.store.path_info import PathInfo
from executor.store.restore import Source


class CheckedReader:
    """Hashes and counts what is read through it, which is exactly the NAR of ``info``.

    Never reads more than was promised: an archive can't fill the disk.
    """

    def __init__(self, source: Source, info: PathInfo) -> None:
        self._source = source
        self._info = info
        self._hasher = new_hasher(HashAlgorithm.SHA256)
        self.size = 0

    def read(self, size: int, /) -> bytes:
        data = self._source.read(size)
        self._hasher.update(data)
        self.size += len(data)
        if 0 < self._info.nar_size < self.size:
            raise self._wrong_size(f"at least {self.size}")
        return data

    def check(self) -> None:
        """Compare with what was promised; raises HashMismatchError."""
        info = self._info
        if info.nar_size and self.size != info.nar_size:
            raise self._wrong_size(str(self.size))
        found = Hash(HashAlgorithm.SHA256, self._hasher.digest())
        if found != info.nar_hash:
            raise HashMismatchError(
                f"hash mismatch importing path '{info.path.base_name}'; specified:"
                f" {info.nar_hash.prefixed32}, got: {found.prefixed32}"
            )

    def _wrong_size(self, got: str) -> HashMismatchError:
        return HashMismatchError(
            f"size mismatch importing path '{self._info.path.base_name}'; specified:"
            f" {self._info.nar_size}, got: {got}"
        )

    def skip(self) -> None:
        """Read to the end of the archive and throw it away; FormatError if it is malformed."""
        for _event in read_events(self._source):
            pass
