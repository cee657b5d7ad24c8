"""Copy store paths, with all that they refer to, into a binary cache or from a substituter."""

from __future__ import annotations

import argparse
import asyncio
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from graphlib import TopologicalSorter
from itertools import count

from executor.build.context import StoreThread
from executor.build.events import Event, Notice, SubstitutionStarted
from executor.build.substitution import Fetched, open_substitution
from executor.caches.address import CacheAddress, parse_cache_address
from executor.cli.interrupts import run_until_signal
from executor.cli.options import Invocation
from executor.cli.progress import notice_text
from executor.cli.stores import open_remote_store, open_store
from executor.cli.targets import store_path
from executor.errors import StoreError, UsageError
from executor.formats.store_path import StorePath
from executor.store.local import LocalStore
from executor.store.location import DaemonAddress, find_store, parse_store_url
from executor.store.settings import StoreSettings

EXAMPLE = """\
example:
  executor copy --to file:///srv/cache --secret-key-files /etc/nix/key /nix/store/…-hello
  sudo executor copy --from https://cache.example.org /nix/store/…-hello
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own options."""
    parser.add_argument(
        "--to", metavar="URL", help="file:///DIRECTORY?compression=zstd, or a store"
    )
    parser.add_argument("--from", metavar="URL", dest="source", help="a binary cache or a store")
    parser.add_argument("--no-recursive", action="store_true", help="only the paths themselves")
    parser.add_argument("--no-check-sigs", action="store_true", help="take what nobody signed, too")
    parser.add_argument("paths", nargs="+", metavar="PATH", help="a store path")


def run(invocation: Invocation, arguments: argparse.Namespace) -> int:
    """Copy in one direction."""
    if (arguments.to is None) == (arguments.source is None):
        raise UsageError("say where to copy to, or where from: --to URL, or --from URL")
    if arguments.to is not None:
        target = _daemon_at(arguments.to)
        if target is not None:
            return _to_daemon(invocation, arguments, target)
        address = parse_cache_address(arguments.to)
        if address.kind != "store":
            return _to_cache(invocation, arguments, address)
        there = parse_store_url(arguments.to, os.environ)
        if invocation.daemon is not None:
            raise UsageError(
                f"'{arguments.to}' can be copied to from a store of this machine, as root"
            )
        source = _url_of(invocation)
        other = replace(invocation, location=there, store=arguments.to)
        return _fetch(other, arguments, source)
    parse_cache_address(arguments.source)
    if invocation.daemon is not None:
        return _fetch_by_daemon(invocation, invocation.daemon, arguments)
    return _fetch(invocation, arguments, arguments.source)


def _daemon_at(text: str) -> DaemonAddress | None:
    """The daemon that a URL names, if it does."""
    base = text.partition("?")[0]
    if base != "daemon" and not base.startswith("unix://"):
        return None
    found = find_store(text, os.environ)
    return found if isinstance(found, DaemonAddress) else None


def _to_daemon(invocation: Invocation, arguments: argparse.Namespace, target: DaemonAddress) -> int:
    """Send archives to a daemon, references first, in one stream."""
    from executor.store.tree import dump_tree

    with open_store(invocation) as store, open_remote_store(invocation, target) as there:
        paths = {store_path(store.location, text) for text in arguments.paths}
        wanted = paths if arguments.no_recursive else store.closure(paths)
        missing = wanted - there.query_valid(wanted)
        infos = store.query_path_infos(missing)
        store.add_temp_roots(missing)
        order = TopologicalSorter(
            {path: infos[path].references & missing - {path} for path in missing}
        )
        archives = []
        for path in order.static_order():
            shown = store.store_dir.render(path)
            invocation.say(3, f"copying path '{shown}' to '{arguments.to}'...")
            dump = partial(dump_tree, store.store_fd, path.base_name.encode())
            archives.append((replace(infos[path], ultimate=False), dump))
        if archives:
            there.client.add_nars(archives, check=not arguments.no_check_sigs)
    return 0


def _fetch_by_daemon(
    invocation: Invocation, daemon: DaemonAddress, arguments: argparse.Namespace
) -> int:
    """Have a daemon fetch, with that one substituter, as far as it trusts us."""
    settings = replace(invocation.settings, substitute=True, substituters=(arguments.source,))
    chosen = {*invocation.chosen, "substituters"}
    if arguments.no_check_sigs:
        settings = replace(settings, require_sigs=False)
        chosen.add("require-sigs")
    asking = replace(invocation, settings=settings, chosen=frozenset(chosen))
    with open_remote_store(asking, daemon) as store:
        for text in arguments.paths:
            store.client.ensure_path(store_path(store.location, text))
    return 0


def _url_of(invocation: Invocation) -> str:
    """The invocation's store as a substituter: one of this machine."""
    return invocation.store or "local"


def _to_cache(invocation: Invocation, arguments: argparse.Namespace, address: CacheAddress) -> int:
    from executor.caches.copy import copy_to_cache
    from executor.caches.writer import CacheWriter
    from executor.store.signing import load_secret_keys

    for warning in address.warnings:
        invocation.say(1, f"warning: {warning}")
    keys = load_secret_keys([*invocation.settings.secret_key_files, *address.secret_keys])

    def progress(path: StorePath) -> None:
        shown = invocation.location.store_dir.render(path)
        invocation.say(3, f"copying path '{shown}' to '{address.shown}'...")

    with (
        open_store(invocation) as store,
        CacheWriter(address, store.store_dir, keys) as writer,
    ):
        paths = [store_path(store.location, text) for text in arguments.paths]
        number = copy_to_cache(
            store,
            writer,
            paths,
            jobs=os.cpu_count() or 1,
            progress=progress,
            recursive=not arguments.no_recursive,
        )
    invocation.say(3, f"{number} paths copied")
    return 0


def _fetch(invocation: Invocation, arguments: argparse.Namespace, source: str) -> int:
    if arguments.no_recursive:
        raise UsageError("--no-recursive is for binary caches; a store holds closures only")
    return run_until_signal(_fetch_all(invocation, arguments, source))


async def _fetch_all(invocation: Invocation, arguments: argparse.Namespace, source: str) -> int:
    """Fetch every path; what can't be had is an error after all the others."""
    settings = replace(invocation.settings, substitute=True, substituters=(source,))
    if arguments.no_check_sigs:
        settings = replace(settings, require_sigs=False)
    location = invocation.location
    render = location.store_dir.render

    def tell(event: Event) -> None:
        if isinstance(event, Notice):
            invocation.say(event.level, notice_text(event.level, event.text))
        elif isinstance(event, SubstitutionStarted):
            invocation.say(3, f"copying path '{render(event.path)}' from '{event.source}'...")

    paths = [store_path(location, text) for text in arguments.paths]
    store = StoreThread(lambda: LocalStore.open(location, settings=StoreSettings.of(settings)))
    await store.start()
    try:
        numbers = count(1)
        substitution = open_substitution(settings, store, emit=tell, number=lambda: next(numbers))
        if substitution is None:
            raise UsageError(f"'{source}' can't be used; see the warnings above")
        try:
            outcomes = await asyncio.gather(*map(substitution.fetch, paths))
        finally:
            await substitution.close()
    finally:
        await store.close()
    _require_all(paths, outcomes, source, render)
    return 0


def _require_all(
    paths: Sequence[StorePath],
    outcomes: Sequence[Fetched],
    source: str,
    render: Callable[[StorePath], str],
) -> None:
    reasons = {
        Fetched.ABSENT: "it is not there, or nobody trusted signed it",
        Fetched.INCOMPLETE: "something that it refers to is not there",
        Fetched.FAILED: "it can't be had; see the errors above",
    }
    for path, outcome in zip(paths, outcomes, strict=True):
        if outcome is not Fetched.VALID:
            raise StoreError(f"can't copy '{render(path)}' from '{source}': {reasons[outcome]}")
