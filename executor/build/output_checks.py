"""Checks that a derivation asks for on its own outputs: hash, sizes, references.

Pure: paths outside the derivation's outputs are looked up through a callable. Texts are those of
Nix 2.34.8 (``derivation-check.cc``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from executor.build.options import DerivationOptions
from executor.errors import ExecutorError
from executor.formats.hashes import Hash
from executor.formats.store_path import StoreDir, StorePath
from executor.store.path_info import PathInfo


class OutputCheckError(ExecutorError):
    """An output breaks a limit that its derivation sets: Nix's ``OutputRejected``."""


class FixedOutputError(ExecutorError):
    """A fixed output is not what was promised: Nix's ``HashMismatch``."""


def check_fixed_output(drv_path: str, info: PathInfo, promised: Hash, store_dir: StoreDir) -> None:
    """Compare the hash of a fixed output (in its content address) and demand no references.

    Raises ``FixedOutputError``.
    """
    raise NotImplementedError


def check_outputs(
    drv_path: str,
    options: DerivationOptions,
    outputs: Mapping[str, PathInfo],
    lookup: Callable[[StorePath], PathInfo],
    store_dir: StoreDir,
) -> None:
    """Apply every check of ``options`` to every output, in order of output names.

    ``outputs`` holds all outputs of the derivation at their final paths, also those that were
    valid before; ``lookup`` finds any other path. ``drv_path`` is the full path, for messages.
    Raises ``OutputCheckError`` at the first breach.
    """
    raise NotImplementedError
