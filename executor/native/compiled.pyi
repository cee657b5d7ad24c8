"""What compiled.c offers."""

from collections.abc import Iterable

from typing_extensions import Buffer

class Searcher:
    """Looks for many texts of 32 digits of Nix's base 32 at once.

    Raises ValueError for texts of other lengths.
    """

    def __init__(self, texts: Iterable[bytes], /) -> None: ...
    def search(self, data: Buffer, /) -> list[bytes]:
        """The texts that occur in ``data`` and in nothing that was searched before.

        The interpreter's lock is let go of meanwhile. Raises RuntimeError when another thread
        searches with the same object.
        """

def pack_files(
    directory_fd: int,
    names: list[bytes],
    others: dict[bytes, int],
    largest: int,
    room: int,
    no_atime: bool,
    canonical: bool,
    first_uid: int,
    end_uid: int,
    /,
) -> tuple[int, bytes, bool]:
    """Small files at the end of a list of names, last first, as entries of a NAR.

    Taken are regular files of up to ``largest`` bytes, as long as what they make fits into
    ``room`` bytes, up to the first name in ``others`` and the first file with anything unusual; of
    that one nothing was changed. With ``canonical`` files get the metadata of store objects;
    unusual is then also one with extended attributes, several names, or an owner not in
    ``first_uid`` (below 0: any) to ``end_uid`` - 1.

    Returns how many were taken, their bytes, and whether the one that follows became shorter while
    it was read. Raises OSError for what failed after a file's metadata was changed.
    """
