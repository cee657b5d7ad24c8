"""One substituter: a binary cache, on a web server or in a directory (rows B1 to B7).

``nix-cache-info`` says who it is, ``<hash part>.narinfo`` what it has, ``realisations/`` what
outputs came to be. Source: ``binary-cache-store.cc`` of Nix 2.34.8.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from executor.caches.address import CacheAddress
from executor.caches.decompress import decompressed
from executor.caches.errors import CacheError
from executor.caches.files import DirectoryFiles, Files, WebFiles
from executor.caches.found import Found, Staged
from executor.caches.stage import stage_archive
from executor.caches.watching import Meter, MeteredSource, Watcher
from executor.caches.web import WebClient, WebOptions
from executor.errors import FormatError
from executor.formats.content_address import ContentAddress
from executor.formats.narinfo import NarInfo, parse_narinfo
from executor.formats.realisation import DrvOutput, Realisation
from executor.formats.store_path import StoreDir, StorePath, make_fixed_output_path
from executor.settings import Settings
from executor.store.path_info import PathInfo
from executor.transfers.errors import TransferError

INFO_NAME = "nix-cache-info"
_INFO_LIMIT = 1 << 16
_PRIORITY = re.compile(r"-?[0-9]{1,9}")
_NARINFO_LIMIT = 16 << 20
_REALISATION_LIMIT = 1 << 20
_LOG_LIMIT = 256 << 20
_DISABLED_SECONDS = 60.0
# Who can't be reached at all is given up sooner than who was there a moment ago.
_FIRST_ATTEMPTS = 3

Warn = Callable[[str], object]


class Cache(Protocol):
    """A substituter. Any number of threads may use it at once.

    ``interrupt`` makes what they do fail soon. Methods raise ``ExecutorError`` or ``OSError``.
    ``query`` answers for the path as the cache names it; whether it may be believed is for others
    to say.
    """

    @property
    def shown(self) -> str: ...

    @property
    def store_dir(self) -> StoreDir: ...

    @property
    def trusted(self) -> bool: ...

    @property
    def priority(self) -> int: ...

    def prepare(self) -> None: ...

    def query(self, path: StorePath, content_address: str | None) -> Found | None: ...

    def query_realisation(self, id: DrvOutput) -> Realisation | None: ...

    def log(self, drv_path: StorePath) -> bytes | None: ...

    def stage(
        self, found: Found, directory_fd: int, meter: Meter | None = None
    ) -> Staged | None: ...

    def interrupt(self) -> None: ...

    def close(self) -> None: ...


class Clients:
    """The web client of one run, made when it is needed.

    ``fallback`` and ``negative_ttl`` (seconds) are settings.
    """

    def __init__(
        self,
        settings: Settings,
        environ: Mapping[str, str] | None,
        warn: Warn,
        watcher: Watcher | None = None,
    ) -> None:
        self.fallback = settings.fallback
        self.negative_ttl = settings.narinfo_cache_negative_ttl
        self.watcher = watcher
        self._settings = settings
        self._environ = os.environ if environ is None else environ
        self._warn = warn
        self._client: WebClient | None = None

    def web(self) -> WebClient:
        """Raises ``TransferError`` for a malformed netrc file."""
        if self._client is None:
            options = WebOptions.of(self._settings)
            self._client = WebClient(options, self._environ, self._warn, self.watcher)
        return self._client

    def interrupt(self) -> None:
        if self._client is not None:
            self._client.interrupt()

    def close(self) -> None:
        if self._client is not None:
            self._client.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheInfo:
    """What ``nix-cache-info`` says; ``None`` where it doesn't."""

    store_dir: str | None = None
    priority: int | None = None


def parse_cache_info(data: bytes) -> CacheInfo:
    """Read ``nix-cache-info``: lines ``Name: value``; unknown ones are ignored.

    Raises ``FormatError`` for a priority that isn't a number.
    """
    store_dir: str | None = None
    priority: int | None = None
    for line in data.decode("utf-8", "replace").splitlines():
        name, _, value = line.partition(":")
        value = value.strip()
        if name == "StoreDir":
            store_dir = value
        elif name == "Priority":
            if _PRIORITY.fullmatch(value) is None:
                raise FormatError(f"the priority '{value[:40]}' in {INFO_NAME} is not a number")
            priority = int(value)
    return CacheInfo(store_dir=store_dir, priority=priority)


class BinaryCache:
    """A binary cache; see ``Cache``."""

    def __init__(self, address: CacheAddress, store_dir: StoreDir, clients: Clients) -> None:
        self._address = address
        self._clients = clients
        self._known: dict[str, NarInfo] = {}
        # What wasn't there, by hash part, and until when that is believed.
        self._absent: dict[str, float] = {}
        self._lock = threading.Lock()
        self._disabled_until = 0.0
        self._opened: Files | None = None
        self.shown = address.shown
        self.store_dir = store_dir if address.store_dir is None else StoreDir(address.store_dir)
        self.trusted = address.trusted
        self.priority = address.priority or 0

    @property
    def _files(self) -> Files:
        if self._opened is None:
            if self._address.kind == "file":
                self._opened = DirectoryFiles(self._address.base)
            else:
                self._opened = WebFiles(self._address.base, self._clients.web())
        return self._opened

    def prepare(self) -> None:
        """Ask the cache who it is."""
        data = self._files.get(INFO_NAME, _INFO_LIMIT, attempts=_FIRST_ATTEMPTS)
        if data is None:
            # Stock Nix makes this file in a directory that lacks it.
            if self._address.kind == "file" and os.path.isdir(self._address.base):
                return
            raise CacheError(f"'{self.shown}' does not appear to be a binary cache")
        info = parse_cache_info(data)
        if info.store_dir is not None and info.store_dir != self.store_dir.path:
            raise CacheError(
                f"binary cache '{self.shown}' is for Nix stores with prefix '{info.store_dir}', "
                f"not '{self.store_dir.path}'"
            )
        if self._address.priority is None and info.priority is not None:
            self.priority = info.priority

    def query(self, path: StorePath, content_address: str | None) -> Found | None:
        """What the cache has under the hash part of ``path``."""
        wanted = path_there(path, content_address, self.store_dir)
        known = self._known.get(wanted.digest)
        if known is None:
            if time.monotonic() < self._absent.get(wanted.digest, 0):
                return None
            name = f"{wanted.digest}.narinfo"
            data = self._describe(wanted, name)
            if data is None:
                self._remember_absence(wanted.digest)
                return None
            known = parse_narinfo(data, self.store_dir, f"{self.shown}/{name}")
            if known.path != wanted:
                there = self.store_dir.render(known.path)
                raise CacheError(
                    f"asked '{self.shown}' for '{self.store_dir.render(wanted)}' but got '{there}'"
                )
            self._known[wanted.digest] = known
        return Found(
            info=_path_info(known),
            source=self.shown,
            cache=self,
            url=known.url,
            compression=known.compression,
            file_size=known.file_size or None,
        )

    def _remember_absence(self, digest: str) -> None:
        """A plan and then a goal ask for the same; over the web that costs time."""
        if self._address.kind != "file":
            self._absent[digest] = time.monotonic() + self._clients.negative_ttl

    def _describe(self, path: StorePath, name: str) -> bytes | None:
        watcher = self._clients.watcher
        if watcher is None:
            return self._get(name, _NARINFO_LIMIT)
        number = watcher.query(path, self.shown)
        try:
            return self._get(name, _NARINFO_LIMIT, parent=number)
        finally:
            watcher.end(number)

    def query_realisation(self, id: DrvOutput) -> Realisation | None:
        """What the cache says that an output came to be."""
        data = self._get(f"realisations/{id}.doi", _REALISATION_LIMIT)
        if data is None:
            return None
        try:
            realisation = Realisation.from_json(data)
        except FormatError as error:
            raise CacheError(f"the realisation of '{id}' in '{self.shown}': {error}") from error
        if realisation.id != id:
            raise CacheError(f"asked '{self.shown}' for '{id}' but got '{realisation.id}'")
        return realisation

    def log(self, drv_path: StorePath) -> bytes | None:
        """The log of a build, if the cache has it."""
        return self._get(f"log/{drv_path.base_name}", _LOG_LIMIT)

    def stage(self, found: Found, directory_fd: int, meter: Meter | None = None) -> Staged | None:
        """Fetch an archive and unpack it; ``meter`` counts what is unpacked."""
        self._check_enabled()
        what = f"'{found.url}' of '{self.shown}'"
        try:
            file = self._files.open(found.url, parent=0 if meter is None else meter.number)
            if file is None:
                return None
            try:
                source = decompressed(file, found.compression, what)
                if meter is not None:
                    source = MeteredSource(source, meter)
                return stage_archive(source, found.info, directory_fd)
            finally:
                file.close()
        except TransferError:
            self._disable()
            raise

    def _get(self, name: str, limit: int, *, parent: int = 0) -> bytes | None:
        self._check_enabled()
        try:
            return self._files.get(name, limit, parent=parent)
        except TransferError:
            self._disable()
            raise

    def _check_enabled(self) -> None:
        if time.monotonic() < self._disabled_until:
            raise CacheError(f"substituter '{self.shown}' is disabled")

    def _disable(self) -> None:
        """With ``fallback``, who fails is left alone for a while, as in Nix."""
        with self._lock:
            if self._clients.fallback and time.monotonic() >= self._disabled_until:
                self._disabled_until = time.monotonic() + _DISABLED_SECONDS

    def interrupt(self) -> None:
        """End transfers that other threads wait for."""
        self._clients.interrupt()

    def close(self) -> None:
        """Give up connections."""
        self._clients.close()


def path_there(path: StorePath, content_address: str | None, store_dir: StoreDir) -> StorePath:
    """The name in a cache for another store directory, of a path that its contents determine."""
    if content_address is None:
        return path
    address = ContentAddress.parse(content_address)
    return make_fixed_output_path(store_dir, path.name, address.method, address.hash)


def _path_info(narinfo: NarInfo) -> PathInfo:
    return PathInfo(
        path=narinfo.path,
        nar_hash=narinfo.nar_hash,
        nar_size=narinfo.nar_size,
        references=narinfo.references,
        deriver=narinfo.deriver,
        signatures=narinfo.signatures,
        content_address=narinfo.content_address,
    )
