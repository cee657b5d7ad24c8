"""Errors of the store that a caller treats differently from a plain StoreError."""

from executor.errors import StoreError


class UnacceptableTreeError(StoreError):
    """A file tree must not enter the store: foreign owner, unsupported file type, too deep.

    The caller turns it into a rejected output; nothing was changed on the offending file.
    """


class SchemaError(StoreError):
    """The database has a schema that this program doesn't know (newer, or too old to migrate)."""


class LockBusyError(StoreError):
    """A lock that was asked for without waiting is held by somebody else."""


class PathInUseError(StoreError):
    """A store path can't be invalidated, because other valid paths refer to it."""


class HashMismatchError(StoreError):
    """Imported contents don't have the hash or the size that was declared."""


class NoRoomError(StoreError):
    """There may have been no room for it; lines below the first say which file system is full."""

    has_lines = True
