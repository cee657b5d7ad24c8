"""Derivations as files of the store: reading them once, and trusting them for a reason."""

import os
from collections.abc import Callable

from executor.derivation import Derivation, FixedOutput, InputAddressed, parse_derivation
from executor.derivation_hash import ModuloHasher, check_output_paths
from executor.errors import FormatError, StoreError
from executor.formats.store_path import StoreDir, StorePath
from executor.store.queries import Queries

_MAX_DRV_BYTES = 256 * 1024 * 1024
# What the values of one may take as objects: hundreds of times what real ones do.
_MAX_COST = 256 * 1024 * 1024
# From here on one is paid for; graphs have many small ones, which are many files of the store too.
_LARGE = 1024 * 1024
# Has no room for as many values.
_SMALL = 4096


class DerivationFiles:
    """Parses `.drv` files of one store and keeps what it has parsed.

    `pay` is told what a large one costs before it is parsed, and raises where that is too much.
    """

    def __init__(self, real_store_dir: str, store_dir: StoreDir, queries: Queries) -> None:
        self._real_store_dir = real_store_dir
        self._store_dir = store_dir
        self._queries = queries
        self.pay: Callable[[int], object] = lambda _size: None
        self._parsed: dict[StorePath, Derivation] = {}
        self._trusted: set[StorePath] = set()
        # One for all, so that a chain of derivations is hashed once and not once per link.
        self.hasher = ModuloHasher(self.parse, store_dir)

    def parse(self, path: StorePath) -> Derivation:
        """The derivation in a file, valid or not; StoreError if it is missing or malformed."""
        derivation = self._parsed.get(path)
        if derivation is None:
            derivation = self._parse(path)
            self._parsed[path] = derivation
        return derivation

    def _parse(self, path: StorePath) -> Derivation:
        if not path.is_derivation:
            raise StoreError(f"'{self._store_dir.render(path)}' is not a derivation")
        try:
            data = _read_file(f"{self._real_store_dir}/{path.base_name}")
            self._pay_for(data)
            return parse_derivation(data, path.name.removesuffix(".drv"), self._store_dir)
        except OSError as error:
            raise StoreError(
                f"cannot read derivation '{self._store_dir.render(path)}': {error.strerror}"
            ) from error
        except FormatError as error:
            raise StoreError(
                f"error parsing derivation '{self._store_dir.render(path)}': {error}"
            ) from error

    def _pay_for(self, data: bytes) -> None:
        if len(data) < _SMALL:
            return
        from executor.formats.wire import ITEM_COST  # a cold build has no need of it

        cost = len(data) + ITEM_COST * data.count(b",")
        if cost > _MAX_COST:
            raise FormatError("it has too many values")
        if cost >= _LARGE:
            self.pay(cost)

    def read_valid(self, path: StorePath) -> Derivation:
        """A valid derivation whose output paths are the right ones.

        That was proved when it was registered, and the table of outputs has what was proved; so
        it is enough to compare with that. Raises InvalidPathError, and StoreError for a forgery.
        """
        derivation = self.parse(path)
        if path not in self._trusted:
            registered = self._queries.outputs(path)
            if registered != static_outputs(derivation, self._store_dir):
                self.check(path)
            self._trusted.add(path)
        return derivation

    def check(self, path: StorePath) -> dict[str, StorePath]:
        """Compute what the output paths have to be; returns those that are known before a build.

        Input derivations are read as files and needn't be valid yet. Raises StoreError if the
        derivation claims another path.
        """
        derivation = self.parse(path)
        try:
            check_output_paths(derivation, path, self.hasher)
        except FormatError as error:
            raise StoreError(
                f"derivation '{self._store_dir.render(path)}' has wrong output paths: {error}"
            ) from error
        return static_outputs(derivation, self._store_dir)

    def forget(self, path: StorePath) -> None:
        """The file changed or went away."""
        self._parsed.pop(path, None)
        self._trusted.discard(path)
        if self.hasher.knows(path):
            self.hasher = ModuloHasher(self.parse, self._store_dir)


def static_outputs(derivation: Derivation, store_dir: StoreDir) -> dict[str, StorePath]:
    """The output paths that follow from the derivation alone, before it is built."""
    known = {}
    for name, output in derivation.outputs.items():
        if isinstance(output, InputAddressed):
            known[name] = output.path
        elif isinstance(output, FixedOutput):
            known[name] = output.path(store_dir, derivation.name, name)
    return known


def _read_file(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(fd, "rb") as file:
        data = file.read(_MAX_DRV_BYTES + 1)
    if len(data) > _MAX_DRV_BYTES:
        raise FormatError("the file is too large")
    return data
