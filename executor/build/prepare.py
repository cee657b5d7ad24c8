"""What a build needs to know from the store, looked up under the locks of its outputs.

Runs in the store's thread: one visit collects everything, so that the event loop is asked once.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

from executor.build.environment import BuildEnvironment, build_environment
from executor.build.failure import BuildFailure, platform_mismatch, rejected_input, unable
from executor.build.options import DerivationOptions
from executor.build.plan import Node, static_outputs
from executor.build.result import FailureCause
from executor.config import Settings
from executor.derivation import Derivation
from executor.formats.store_path import StorePath
from executor.store.local import LocalStore
from executor.store.tree import delete_tree


@dataclass(frozen=True, slots=True, kw_only=True)
class Preparation:
    """Everything about one build that depends on the store.

    ``wanted`` are the outputs to register (those that aren't valid), ``inputs`` the whole closure
    that the builder may see, ``sandbox_closure`` what sandbox paths in the store add to it.
    """

    drv_path: StorePath
    derivation: Derivation
    options: DerivationOptions
    outputs: dict[str, StorePath]
    wanted: frozenset[str]
    inputs: frozenset[StorePath]
    sandbox_closure: frozenset[StorePath]
    environment: BuildEnvironment
"""

"""
