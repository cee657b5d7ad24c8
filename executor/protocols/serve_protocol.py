"""The numbers of the serve protocol (``serve-protocol.hh`` of Nix 2.34.8), which ``ssh://`` speaks.

Nix 2.8 and 2.34.8 both speak 2.7.
"""

from __future__ import annotations

from enum import IntEnum

from executor.errors import FormatError

CLIENT_MAGIC = 0x390C9DEB
SERVER_MAGIC = 0x5452EECB
MAJOR = 2
LATEST_MINOR = 7
# What older clients send is the same, but for the end of the build options.
OLDEST_MINOR = 1
# Behind each archive of an export (``export-import.cc``).
EXPORT_MAGIC = 0x4558494E


class Command(IntEnum):
    """What a client may ask for. Nix itself no longer sends 4 and 5; older clients do."""

    QUERY_VALID_PATHS = 1
    QUERY_PATH_INFOS = 2
    DUMP_STORE_PATH = 3
    IMPORT_PATHS = 4
    EXPORT_PATHS = 5
    BUILD_PATHS = 6
    QUERY_CLOSURE = 7
    BUILD_DERIVATION = 8
    ADD_TO_STORE_NAR = 9


def wire_version(minor: int) -> int:
    """A version as it is sent."""
    return MAJOR << 8 | minor


def agree(number: int) -> int:
    """The minor version that both sides speak. Raises ``FormatError`` if there is none."""
    minor = number & 0xFF
    if number > 0xFFFF or number >> 8 != MAJOR or minor < OLDEST_MINOR:
        raise FormatError(f"serve protocol version {number >> 8}.{minor} is not supported")
    return min(minor, LATEST_MINOR)
