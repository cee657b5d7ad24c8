"""Copy store paths, with all that they refer to, into a binary cache or from a substituter."""

from __future__ import annotations

import argparse
import asyncio
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import count

from executor.build.context import StoreThread
from executor.build.events import Event, Notice, SubstitutionStarted
from executor.build.substitution import Fetched, open_substitution
from executor.caches.address import CacheAddress, parse_cache_address
from executor.cli.interrupts import run_until_signal
from executor.cli.options import Invocation
from executor.cli.progress import notice_text
from executor.cli.stores import open_store
from executor.cli.targets import store_path
from executor.errors import StoreError, UsageError
from executor.formats.store_path import StorePath
from executor.store.local import LocalStore
from executor.store.location import parse_store_url
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
        address = parse_cache_address(arguments.to)
        if address.kind != "store":
            return _to_cache(invocation, arguments, address)
        there = parse_store_url(arguments.to, os.environ)
        source = _url_of(invocation)
        other = replace(invocation, location=there, store=arguments.to)
        return _fetch(other, arguments, source)
    parse_cache_address(arguments.source)
    return _fetch(invocation, arguments, arguments.source)


def _url_of(invocation: Invocation) -> str:
    """The invocation's store as a substituter."""
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
