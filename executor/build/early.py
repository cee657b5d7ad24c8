"""What a program that builds can begin before it imports asyncio and the rest of the engine."""

from __future__ import annotations

import os

from executor.store.layout import make_store_writable
from executor.store.location import StoreLocation
from sandbox import Launched, launch

__all__ = ["Launched", "launch_spawner"]


def launch_spawner(location: StoreLocation) -> Launched:
    """Start the spawner of an ``Executor`` for a store.

    Before any thread exists. A store on a read-only mount is made writable in a mount namespace of
    its own first, so that the spawner shares the view.
    """
    if os.path.isdir(location.real_store_dir):
        make_store_writable(location.real_store_dir)
    return launch()
