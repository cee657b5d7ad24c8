"""Ask what the store knows of its paths."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from executor.cli.options import Invocation
from executor.cli.stores import open_store
from executor.cli.targets import store_path
from executor.formats.store_path import StorePath

if TYPE_CHECKING:
    from executor.cli.stores import Store

EXAMPLE = """\
example:
  executor query --references /nix/store/…-hello
  executor query --requisites $(executor query --deriver /nix/store/…-hello)
"""


def _references(store: Store, path: StorePath) -> Iterable[StorePath]:
    return store.query_path_info(path).references


def _outputs(store: Store, path: StorePath) -> Iterable[StorePath]:
    return store.query_outputs(path).values()


def _referrers(store: Store, path: StorePath) -> Iterable[StorePath]:
    store.query_path_info(path)
    return store.query_referrers(path)


def _requisites(store: Store, path: StorePath) -> Iterable[StorePath]:
    store.query_path_info(path)
    return store.closure([path])


_SETS: dict[str, tuple[str, Callable[[Store, StorePath], Iterable[StorePath]]]] = {
    "references": ("what each path refers to", _references),
    "referrers": ("what refers to it", _referrers),
    "requisites": ("its closure", _requisites),
    "outputs": ("the outputs of a derivation", _outputs),
}
_FACTS = {
    "deriver": "the derivation that made it",
    "hash": "SHA-256 of its NAR",
    "size": "size of its NAR in bytes",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own options."""
    group = parser.add_mutually_exclusive_group(required=True)
    for name, (text, _function) in _SETS.items():
        names = ("-R", f"--{name}") if name == "requisites" else (f"--{name}",)
        group.add_argument(*names, dest="question", action="store_const", const=name, help=text)
    for name, text in _FACTS.items():
        group.add_argument(
            f"--{name}", dest="question", action="store_const", const=name, help=text
        )
    parser.add_argument("paths", nargs="+", metavar="PATH", help="a store path")


def run(invocation: Invocation, arguments: argparse.Namespace) -> int:
    """Answer for all paths; sets are joined."""
    with open_store(invocation, read_only=True) as store:
        paths = [store_path(store.location, text) for text in arguments.paths]
        if arguments.question in _SETS:
            answer = _SETS[arguments.question][1]
            found = {item for path in paths for item in answer(store, path)}
            for item in sorted(found):
                print(store.store_dir.render(item))
        else:
            for path in paths:
                print(_fact(store, arguments.question, path))
    return 0


def _fact(store: Store, question: str, path: StorePath) -> str:
    info = store.query_path_info(path)
    if question == "hash":
        return info.nar_hash.prefixed32
    if question == "size":
        return str(info.nar_size)
    return "unknown-deriver" if info.deriver is None else store.store_dir.render(info.deriver)
