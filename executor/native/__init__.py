"""The module in C for what is done to every byte and every small file, where it was built.

``compiled`` is None where it wasn't: without a compiler the executor is installed without it, and
does the same in Python.
"""

from __future__ import annotations

try:
    from executor.native import compiled
except ImportError:
    compiled = None  # type: ignore[assignment]

__all__ = ["compiled"]
