"""The Python API: build derivations from a program, as the command line does.

::

    async with Executor(store="/srv/store", max_jobs=4) as executor:
        result = await executor.build("/nix/store/…-hello.drv", outputs=["out"])
        print(result.status, result.outputs["out"])
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from types import TracebackType

from executor.build.events import Event, Listener
from executor.build.result import BuildResult, BuildStatus
from executor.config import Settings
from executor.derivation import Derivation
from executor.formats.store_path import StorePath
from executor.store.local import LocalStore

__all__ = ["BuildRequest", "BuildResult", "BuildStatus", "Event", "Executor"]


class Executor:
    """Builds derivations in one store. Use as an asynchronous context manager.

    ``store`` is a store URL as ``--store`` takes (``None``: the system's). ``settings`` default to
    what nix.conf and the environment say; ``max_jobs`` overrides one of them. Cancelling a task
    that awaits ``build`` kills its builder and leaves the store clean.
    """
