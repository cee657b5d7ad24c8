"""The files of a binary cache, wherever it is: by name, small ones whole, archives as streams."""

from __future__ import annotations

import os
import stat
from typing import Protocol, Self
from urllib.parse import urljoin, urlsplit

from executor.caches.errors import CacheError
from executor.caches.web import Download, WebClient

_OPEN_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class OpenFile(Protocol):
    """A file of a cache that is being read."""

    def read(self, size: int, /) -> bytes: ...

    def close(self) -> None: ...


class Files(Protocol):
    """What a cache consists of. Names are relative, with slashes; none begins with one.

    ``None`` stands for a file that isn't there; ``attempts`` is how often to try, where that makes
    sense, and ``parent`` what a watcher is told that it is for. Raises ``CacheError``,
    ``TransferError`` or ``OSError``.
    """

    def get(
        self, name: str, limit: int, *, attempts: int | None = None, parent: int = 0
    ) -> bytes | None: ...

    def open(self, name: str, *, parent: int = 0) -> OpenFile | None: ...


class WebFiles:
    """A cache on a web server."""

    def __init__(self, base: str, client: WebClient) -> None:
        self._base = base + "/"
        self._client = client

    def get(
        self, name: str, limit: int, *, attempts: int | None = None, parent: int = 0
    ) -> bytes | None:
        return self._client.get(self._base + name, limit, attempts=attempts, parent=parent)

    def open(self, name: str, *, parent: int = 0) -> Download | None:
        """``name`` may be a whole URL, too: caches may keep archives elsewhere."""
        try:
            url = urljoin(self._base, name)
            on_the_web = urlsplit(url).scheme in ("http", "https")
        except ValueError:
            on_the_web = False
        if not on_the_web:
            raise CacheError(f"the cache '{self._base}' names the archive '{name}', not on the web")
        return self._client.open(url, parent=parent, origin=self._base)


class DirectoryFiles:
    """A cache in a directory of this machine."""

    def __init__(self, directory: str) -> None:
        self._directory = directory

    def get(
        self, name: str, limit: int, *, attempts: int | None = None, parent: int = 0
    ) -> bytes | None:
        del attempts, parent
        file = self.open(name)
        if file is None:
            return None
        with file:
            data = bytearray()
            while block := file.read(limit + 1 - len(data)):
                data += block
        if len(data) > limit:
            raise CacheError(f"'{self._directory}/{name}' is longer than {limit} bytes")
        return bytes(data)

    def open(self, name: str, *, parent: int = 0) -> LocalFile | None:
        del parent
        parts = name.split("/")
        if not all(parts) or {".", ".."} & set(parts) or "\0" in name:
            raise CacheError(f"'{name[:200]}' is no file of the cache '{self._directory}'")
        try:
            path_fd = os.open(f"{self._directory}/{name}", os.O_PATH | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            # Looked at before it is opened: a link to a device does something when it is opened.
            if not stat.S_ISREG(os.fstat(path_fd).st_mode):
                raise CacheError(f"'{self._directory}/{name}' is no regular file")
            return LocalFile(os.open(f"/proc/self/fd/{path_fd}", _OPEN_FLAGS))
        finally:
            os.close(path_fd)


class LocalFile:
    """An open file of this machine; a context manager."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def read(self, size: int, /) -> bytes:
        return os.read(self._descriptor, size)

    def close(self) -> None:
        os.close(self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
