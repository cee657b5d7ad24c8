"""``builtin:fetchurl``: one file, or one unpacked NAR, from a URL (row D27).

For a flat fixed output, each of ``hashed-mirrors`` is asked first: it knows files by their hash.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import BinaryIO, cast

from executor.builtins.compression import ERRORS, open_xz
from executor.builtins.environment import attribute, output_path
from executor.builtins.errors import BuiltinError, exit_code, say
from executor.builtins.options import BuiltinOptions
from executor.builtins.transfer import Downloader
from executor.errors import ExecutorError, FormatError
from executor.store.descriptors import DIRECTORY_FLAGS
from executor.store.restore import restore_tree

_CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def run(arguments: Sequence[bytes], environment: Mapping[bytes, bytes]) -> int:
    """Download; the exit code. Messages go to the log."""
    return exit_code(lambda: _fetch(arguments, environment))


def _fetch(arguments: Sequence[bytes], environment: Mapping[bytes, bytes]) -> None:
    options = BuiltinOptions.parse(arguments)
    if options.output_method is None and not options.impure:
        raise BuiltinError("'builtin:fetchurl' must be a fixed-output or impure derivation")
    out = output_path(environment)
    url = attribute(environment, b"url").decode("utf-8", "surrogateescape")
    unpack = environment.get(b"unpack") == b"1"
    take = _restorer(out, is_xz=url.endswith(".xz")) if unpack else _keeper(out)
    downloader = Downloader(options, environment)
    for candidate in (*mirror_urls(options), url):
        try:
            _attempt(downloader, candidate, out, take)
            break
        except ExecutorError as error:
            if candidate == url:
                raise
            say(f"mirror: {error}")
    if environment.get(b"executable") == b"1":
        os.chmod(out, 0o755)


def mirror_urls(options: BuiltinOptions) -> tuple[str, ...]:
    """Where the hashed mirrors would have the file; none unless the output is flat and fixed."""
    if options.output_method != "flat" or options.output_hash is None:
        return ()
    name = f"{options.output_hash.algorithm.value}/{options.output_hash.base16}"
    return tuple(f"{mirror.rstrip('/')}/{name}" for mirror in options.hashed_mirrors)


def _attempt(
    downloader: Downloader, url: str, out: bytes, take: Callable[[int, bytes], None]
) -> None:
    """Download into a temporary file in the build directory, then make the output of it."""
    temporary = b"download-" + os.path.basename(out)
    fd = os.open(temporary, _CREATE, 0o600)
    try:
        downloader.download(url, fd)
        os.lseek(fd, 0, os.SEEK_SET)
        take(fd, temporary)
    finally:
        os.close(fd)
        os.unlink(temporary)


def _keeper(out: bytes) -> Callable[[int, bytes], None]:
    def take(fd: int, _temporary: bytes) -> None:
        target = os.open(out, _CREATE, 0o644)
        try:
            size = os.fstat(fd).st_size
            offset = 0
            while offset < size:
                offset += os.sendfile(target, fd, offset, size - offset)
        finally:
            os.close(target)

    return take


def _restorer(out: bytes, *, is_xz: bool) -> Callable[[int, bytes], None]:
    def take(fd: int, _temporary: bytes) -> None:
        parent, name = os.path.split(out)
        parent_fd = os.open(parent, DIRECTORY_FLAGS)
        try:
            with open(fd, "rb", closefd=False) as raw:
                source = open_xz(cast(BinaryIO, raw)) if is_xz else cast(BinaryIO, raw)
                restore_tree(source, parent_fd, name)
        except (FormatError, *ERRORS) as error:
            raise BuiltinError(f"can't unpack the downloaded archive: {error}") from error
        finally:
            os.close(parent_fd)

    return take
