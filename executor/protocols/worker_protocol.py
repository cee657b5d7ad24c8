"""The numbers of the worker protocol (``worker-protocol.hh`` of Nix 2.34.8)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from executor.errors import FormatError

CLIENT_MAGIC = 0x6E697863
SERVER_MAGIC = 0x6478696F
MAJOR = 1


@dataclass(frozen=True, slots=True, order=True)
class Version:
    """What both sides of a connection speak: the minor number and the features they share."""

    minor: int
    features: frozenset[str] = frozenset()

    @property
    def wire(self) -> int:
        return MAJOR << 8 | self.minor


# A feature of ours: who asks for it is told events and results as they are (``event_json``), not
# only what Nix's activities and results can say. Nix's clients don't ask, and hear nothing of it.
EVENTS = "executor-events-1"
# The result (of no activity) that carries an event.
EVENT_KIND = 0x65786563

# What Nix 2.34.8 speaks, and the oldest that we serve. Nix goes down to 1.18, but what 1.18 to
# 1.20 send of archives hasn't been sent by anybody since 2018.
LATEST = Version(38, frozenset({EVENTS}))
OLDEST_MINOR = 21


def parse_version(number: int) -> int:
    """The minor number that the other side has sent. Raises ``FormatError``."""
    if number > 0xFFFF or number >> 8 != MAJOR:
        raise FormatError(f"worker protocol version {number >> 8}.{number & 0xFF} is not supported")
    return number & 0xFF


def agree(ours: Version, minor: int, features: frozenset[str]) -> Version:
    """What is spoken between us and somebody else. Raises ``FormatError`` if that is too old."""
    if minor < OLDEST_MINOR:
        raise FormatError("the Nix client version is too old")
    return Version(min(ours.minor, minor), ours.features & features)


class Op(IntEnum):
    """The operations."""

    IS_VALID_PATH = 1
    QUERY_REFERRERS = 6
    ADD_TO_STORE = 7
    ADD_TEXT_TO_STORE = 8
    BUILD_PATHS = 9
    ENSURE_PATH = 10
    ADD_TEMP_ROOT = 11
    ADD_INDIRECT_ROOT = 12
    SYNC_WITH_GC = 13
    FIND_ROOTS = 14
    QUERY_DERIVER = 18
    SET_OPTIONS = 19
    COLLECT_GARBAGE = 20
    QUERY_SUBSTITUTABLE_PATH_INFO = 21
    QUERY_DERIVATION_OUTPUTS = 22
    QUERY_ALL_VALID_PATHS = 23
    QUERY_PATH_INFO = 26
    QUERY_DERIVATION_OUTPUT_NAMES = 28
    QUERY_PATH_FROM_HASH_PART = 29
    QUERY_SUBSTITUTABLE_PATH_INFOS = 30
    QUERY_VALID_PATHS = 31
    QUERY_SUBSTITUTABLE_PATHS = 32
    QUERY_VALID_DERIVERS = 33
    OPTIMISE_STORE = 34
    VERIFY_STORE = 35
    BUILD_DERIVATION = 36
    ADD_SIGNATURES = 37
    NAR_FROM_PATH = 38
    ADD_TO_STORE_NAR = 39
    QUERY_MISSING = 40
    QUERY_DERIVATION_OUTPUT_MAP = 41
    REGISTER_DRV_OUTPUT = 42
    QUERY_REALISATION = 43
    ADD_MULTIPLE_TO_STORE = 44
    ADD_BUILD_LOG = 45
    BUILD_PATHS_WITH_RESULTS = 46
    ADD_PERM_ROOT = 47


class Frame(IntEnum):
    """What the server sends while it works on an operation."""

    NEXT = 0x6F6C6D67
    READ = 0x64617461
    WRITE = 0x64617416
    LAST = 0x616C7473
    ERROR = 0x63787470
    START_ACTIVITY = 0x53545254
    STOP_ACTIVITY = 0x53544F50
    RESULT = 0x52534C54


class BuildMode(IntEnum):
    """What a build is for."""

    NORMAL = 0
    REPAIR = 1
    CHECK = 2


class Trust(IntEnum):
    """What the server thinks of the client (from 1.35 on)."""

    UNKNOWN = 0
    TRUSTED = 1
    NOT_TRUSTED = 2
