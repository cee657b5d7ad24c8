"""All substituters of one run, in the order of their priorities (rows B1, B2, B8).

Synchronous; any number of threads may use it at once. A substituter that can't be used costs a
warning, never the run: the others go on.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

from executor.caches.address import CacheAddress, parse_cache_address
from executor.caches.cache import BinaryCache, Cache, Clients
from executor.caches.found import Found, Staged
from executor.caches.internet import has_internet, is_loopback
from executor.caches.trust import Trust
from executor.caches.watching import Meter, Watcher
from executor.errors import ConfigError, ExecutorError
from executor.formats.realisation import DrvOutput, Realisation
from executor.formats.store_path import StoreDir, StorePath
from executor.settings import Settings

__all__ = ["Found", "Staged", "Substituters", "open_substituters"]


class Substituters:
    """Where paths come from. Made by ``open_substituters``."""

    def __init__(self, caches: list[Cache], trust: Trust, warn: Callable[[str], object]) -> None:
        self._caches = caches
        self._trust = trust
        self._warn: Callable[[str], object] = _once(warn)
        self._lock = threading.Lock()
        self._ordered: tuple[Cache, ...] | None = None

    def query(self, path: StorePath, content_address: str | None = None) -> Found | None:
        """The best offer of a path."""
        return next(self.query_all(path, content_address), None)

    def query_all(self, path: StorePath, content_address: str | None = None) -> Iterator[Found]:
        """Those who have a path, the best one first; asks the next one when it is needed.

        With ``content_address`` (rendered) a path without references is also found in caches for
        other store directories, under the path that it has there. Raises nothing: what is wrong
        with a cache is a warning.
        """
        for cache in self._in_order():
            try:
                found = cache.query(path, content_address)
                if found is not None:
                    found = self._trust.accept(found, path, self._warn)
            except (ExecutorError, OSError) as error:
                self._warn(str(error))
                continue
            if found is not None:
                yield found

    def query_realisation(self, id: DrvOutput) -> Realisation | None:
        """What an output came to be, as the best cache says that knows it and may be believed."""
        return next(self.query_realisations(id), None)

    def query_realisations(self, id: DrvOutput) -> Iterator[Realisation]:
        """What each cache says that an output came to be, as far as it may be believed."""
        for cache in self._in_order():
            try:
                realisation = cache.query_realisation(id)
                believed = realisation is not None and self._trust.believes(
                    realisation, cache, self._warn
                )
            except (ExecutorError, OSError) as error:
                self._warn(str(error))
                continue
            if realisation is not None and believed:
                yield realisation

    def log(self, drv_path: StorePath) -> bytes | None:
        """The log of a build, from the first that has it. Logs are signed by nobody."""
        for cache in self._in_order():
            try:
                log = cache.log(drv_path)
            except (ExecutorError, OSError) as error:
                self._warn(str(error))
                continue
            if log is not None:
                return log
        return None

    def stage(self, found: Found, directory_fd: int, meter: Meter | None = None) -> Staged | None:
        """Unpack an offered path below a directory that only root can enter, and check it.

        Its hash, its size, and its content address if it has one, are as promised afterwards.
        ``None`` if it isn't there any more; raises ``ExecutorError`` or ``OSError`` for anything
        that is wrong, and leaves nothing behind then. ``meter`` counts the bytes that are unpacked.
        """
        return found.cache.stage(found, directory_fd, meter)

    def interrupt(self) -> None:
        """Make what other threads ask for here fail soon, and without a word, for a quick end."""
        self._warn = _ignore
        for cache in self._caches:
            cache.interrupt()

    def close(self) -> None:
        """Give up connections and stores."""
        for cache in self._caches:
            cache.close()

    def _in_order(self) -> tuple[Cache, ...]:
        with self._lock:
            if self._ordered is None:
                self._ordered = self._prepare()
            return self._ordered

    def _prepare(self) -> tuple[Cache, ...]:
        """Ask all caches who they are, at once, and sort them; the sort keeps ties in order."""
        with ThreadPoolExecutor(max(len(self._caches), 1)) as pool:
            usable = list(pool.map(self._is_usable, self._caches))
        chosen = [cache for cache, good in zip(self._caches, usable, strict=True) if good]
        return tuple(sorted(chosen, key=lambda cache: cache.priority))

    def _is_usable(self, cache: Cache) -> bool:
        try:
            cache.prepare()
        except (ExecutorError, OSError) as error:
            self._warn(f"the substituter '{cache.shown}' is not used: {error}")
            return False
        return True


def _once(warn: Callable[[str], object]) -> Callable[[str], object]:
    """Says each thing once: a plan and a fetch ask the same questions."""
    said: set[str] = set()

    def say(text: str) -> None:
        if text not in said:
            said.add(text)
            warn(text)

    return say


def _ignore(_text: str) -> None:
    """The listener of those who leave."""


def open_substituters(
    settings: Settings,
    store_dir: StoreDir,
    *,
    warn: Callable[[str], object],
    environ: Mapping[str, str] | None = None,
    watcher: Watcher | None = None,
) -> Substituters | None:
    """The substituters of the settings; ``None`` if there are none that could be used.

    ``warn`` may be called from any thread. ``environ`` is searched for proxies (default: this
    process's). ``watcher`` is told of questions and downloads. Nothing is asked of the network
    before the first query.
    """
    addresses = _with_internet(_addresses(settings, warn), environ, warn)
    if not addresses:
        return None
    trust = Trust.of(
        store_dir, settings.trusted_public_keys, required=settings.require_sigs, warn=warn
    )
    clients = Clients(settings, environ, warn, watcher)
    caches = [_open(address, store_dir, clients) for address in addresses]
    return Substituters(caches, trust, warn)


def _open(address: CacheAddress, store_dir: StoreDir, clients: Clients) -> Cache:
    if address.kind == "store":
        from executor.caches.store_cache import StoreCache

        return StoreCache(address, store_dir)
    return BinaryCache(address, store_dir, clients)


def _addresses(settings: Settings, warn: Callable[[str], object]) -> list[CacheAddress]:
    """Each substituter once; those that can't be are a warning, as in Nix."""
    found: dict[str, CacheAddress] = {}
    for text in settings.substituters:
        try:
            address = parse_cache_address(text)
        except ConfigError as error:
            warn(str(error))
            continue
        for warning in address.warnings:
            warn(warning)
        found.setdefault(address.text.rstrip("/"), address)
    return list(found.values())


def _with_internet(
    addresses: list[CacheAddress],
    environ: Mapping[str, str] | None,
    warn: Callable[[str], object],
) -> list[CacheAddress]:
    """Without a network only what is on this machine is worth a try."""
    far = [address for address in addresses if address.kind == "http" and not is_loopback(address)]
    if not far or has_internet(environ):
        return addresses
    warn("you don't have Internet access; substituters on other machines are not used")
    return [address for address in addresses if address not in far]
