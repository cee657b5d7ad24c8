"""Reading an archive that somebody promised: its hash and its size have to be right."""

from __future__ import annotations

from executor.formats.hashes import Hash, HashAlgorithm, new_hasher
from executor.formats.nar import read_events
from executor.store.errors import HashMismatchError
from executor.store.path_info import PathInfo
from executor.store.restore import Source

# An archive of small files is read in many small pieces, which are taken from one of this size.
_AHEAD = 1 << 16


class CheckedReader:
    """Hashes and counts what is read through it, which is exactly the NAR of ``info``.

    Never reads more than was promised: an archive can't fill the disk. Up to that it reads ahead,
    so that of one that is shorter than promised, which is an error, what follows is lost.
    """

    def __init__(self, source: Source, info: PathInfo) -> None:
        self._source = source
        self._info = info
        self._hasher = new_hasher(HashAlgorithm.SHA256)
        self._promised = info.nar_size
        self._ahead = b""
        self._position = 0
        self.size = 0

    def read(self, size: int, /) -> bytes:
        start = self._position
        data = self._ahead[start : start + size]
        if not data:
            data = self._more(size)
        else:
            self._position = start + len(data)
        self.size += len(data)
        if 0 < self._info.nar_size < self.size:
            raise self._wrong_size(f"at least {self.size}")
        return data

    def _more(self, size: int) -> bytes:
        """Up to ``size`` bytes from the source; what else comes with them is kept."""
        data = self._source.read(max(size, min(_AHEAD, self._promised)))
        self._hasher.update(data)
        self._promised = max(self._promised - len(data), 0)
        self._ahead, self._position = data, size
        return data[:size]

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
