"""``builtin:unpack-channel``: a tarball with one top-level entry, under another name (row D28).

Members are made through directory descriptors that follow no link; names that lead out of the
output, devices and FIFOs end the builder (row 135 of the attack catalogue).
"""

import os
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import BinaryIO, cast

from executor.builtins.compression import ERRORS, open_decompressed
from executor.builtins.environment import attribute, output_path
from executor.builtins.errors import BuiltinError, exit_code, mark, show
from executor.store.delete import delete_tree
from executor.store.descriptors import CREATE_FLAGS, DIRECTORY_FLAGS

_BLOCK = 1 << 20
_MAX_PARTS = 64


def run(arguments: Sequence[bytes], environment: Mapping[bytes, bytes]) -> int:
    """Unpack; the exit code. Messages go to the log."""
    del arguments
    return exit_code(lambda: _unpack(environment))


def _unpack(environment: Mapping[bytes, bytes]) -> None:
    out = output_path(environment)
    channel = attribute(environment, b"channelName")
    source = attribute(environment, b"src")
    if not channel or b"/" in channel or channel in (b".", b".."):
        raise BuiltinError(
            f"channelName is not allowed to contain filesystem separators, got '{show(channel)}'"
        )
    os.mkdir(out, 0o755)
    out_fd = os.open(out, DIRECTORY_FLAGS)
    try:
        with open(source, "rb") as raw:
            extract(cast(BinaryIO, raw), out_fd)
        entries = os.listdir(out_fd)
        if len(entries) != 1:
            raise BuiltinError(f"channel tarball '{show(source)}' contains more than one file")
        os.rename(entries[0], channel, src_dir_fd=out_fd, dst_dir_fd=out_fd)
    finally:
        os.close(out_fd)


def extract(raw: BinaryIO, destination_fd: int) -> None:
    """Unpack a tarball, compressed or not. Raises ``BuiltinError``."""
    try:
        stream = cast(BinaryIO, open_decompressed(raw))
        with tarfile.open(
            fileobj=stream, mode="r|", encoding="utf-8", errors="surrogateescape"
        ) as archive:
            for member in archive:
                _extract_member(archive, member, destination_fd)
    except tarfile.ReadError as error:
        reason = mark("Unrecognized archive format")
        raise BuiltinError(f"failed to open archive: {reason}") from error
    except (tarfile.TarError, *ERRORS) as error:
        if isinstance(error, OSError) and error.errno:
            raise
        raise BuiltinError(f"can't unpack the tarball: {error}") from error


def _extract_member(archive: tarfile.TarFile, member: tarfile.TarInfo, destination_fd: int) -> None:
    parts = _parts(member.name)
    if not parts:
        return
    with _parent(destination_fd, parts) as parent_fd:
        name = parts[-1]
        if member.isdir():
            _make_directory(parent_fd, name, member.mode)
            return
        with suppress(FileNotFoundError):
            delete_tree(parent_fd, name)  # a later member replaces an earlier one
        if member.issym():
            os.symlink(os.fsencode(member.linkname), name, dir_fd=parent_fd)
        elif member.islnk():
            _hard_link(destination_fd, _parts(member.linkname), parent_fd, name)
        elif member.isreg():
            _write_file(archive, member, parent_fd, name)
        else:
            raise BuiltinError(f"the tarball has a special file: '{show(b'/'.join(parts))}'")


def _parts(name: str) -> list[bytes]:
    """A member's name as components. Raises ``BuiltinError`` where it leads out."""
    path = os.fsencode(name)
    parts = [part for part in path.split(b"/") if part not in (b"", b".")]
    if path.startswith(b"/") or b".." in parts or len(parts) > _MAX_PARTS:
        raise BuiltinError(f"the tarball has an unsafe file name: '{show(path)}'")
    return parts


@contextmanager
def _parent(destination_fd: int, parts: Sequence[bytes]) -> Iterator[int]:
    """The directory that a member belongs to; missing ones are made, links not followed."""
    current = os.dup(destination_fd)
    try:
        for part in parts[:-1]:
            with suppress(FileExistsError):
                os.mkdir(part, 0o755, dir_fd=current)
            following = os.open(part, DIRECTORY_FLAGS, dir_fd=current)
            os.close(current)
            current = following
        yield current
    finally:
        os.close(current)


def _make_directory(parent_fd: int, name: bytes, mode: int) -> None:
    try:
        os.mkdir(name, 0o700 | mode & 0o755, dir_fd=parent_fd)
    except FileExistsError:
        os.close(os.open(name, DIRECTORY_FLAGS, dir_fd=parent_fd))


def _hard_link(destination_fd: int, source: Sequence[bytes], parent_fd: int, name: bytes) -> None:
    if not source:
        raise BuiltinError("the tarball has a hard link to nothing")
    with _parent(destination_fd, source) as source_fd:
        os.link(source[-1], name, src_dir_fd=source_fd, dst_dir_fd=parent_fd, follow_symlinks=False)


def _write_file(
    archive: tarfile.TarFile, member: tarfile.TarInfo, parent_fd: int, name: bytes
) -> None:
    fd = os.open(name, CREATE_FLAGS, member.mode & 0o755 | 0o600, dir_fd=parent_fd)
    with open(fd, "wb") as target:
        contents = archive.extractfile(member)
        while contents is not None and (data := contents.read(_BLOCK)):
            target.write(data)
