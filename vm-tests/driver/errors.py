"""What the driver raises: a machine that can't be had, or a test that failed."""

from __future__ import annotations


class DriverError(Exception):
    """Something that the driver needs is missing or broken; the text says what and what to do."""


class TestFailedError(Exception):
    """What a test expected did not happen."""


class MachineDiedError(TestFailedError):
    """A guest ended or hung while a test was talking to it."""
