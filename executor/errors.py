"""Errors of the executor: one small tree, subclassed by what a caller does about it.

Facts travel as attributes; text for people is composed here once, so that the command line and
the protocols print the same sentence.
"""


class ExecutorError(Exception):
    """Base of every error that the executor raises on purpose.

    ``has_lines``: its text is a whole report, whose lines are shown as lines.
    """

    has_lines = False


class FormatError(ExecutorError):
    """Bytes or text are not what their format demands (ATerm, NAR, hash, store path, JSON)."""


class ConfigError(ExecutorError):
    """A setting, an option or the environment asks for something impossible or unknown."""


class StoreError(ExecutorError):
    """The store can't do what was asked: schema, locks, disk, permissions."""


class InvalidPathError(StoreError):
    """A store path was needed that is not valid (not registered) in this store."""


class UsageError(ExecutorError):
    """The command line was called in a way that can't be obeyed."""
