"""Errors of binary caches."""

from executor.errors import ExecutorError


class CacheError(ExecutorError):
    """A binary cache can't be used, or holds something that it must not hold."""
