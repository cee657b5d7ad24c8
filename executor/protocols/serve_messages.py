"""Values of the serve protocol as bytes. Pure. Source: ``serve-protocol.cc`` of Nix.

What the worker protocol writes in the same way is read and written by its codec.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from executor.build.result import BuildResult, BuildStatus
from executor.config import Settings
from executor.errors import FormatError
from executor.formats.hashes import HashAlgorithm, parse_hash
from executor.formats.realisation import Realisation
from executor.protocols.worker_messages import MessageReader, MessageWriter
from executor.protocols.worker_protocol import Version
from executor.store.path_info import PathInfo

# Derivations and their outputs are spelled as the worker protocol did before 1.30.
SPELLING = Version(29)
_MAX_INT = (1 << 31) - 1
_MAX_SIZE = (1 << 63) - 1
_MAX_WORD = 1 << 12
_MOST_REPEATS = 1 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildOptions:
    """What a client wants of one build; None is what its version doesn't send."""

    max_silent_time: int
    timeout: int
    max_log_size: int | None = None
    repeat: int | None = None
    enforce_determinism: bool | None = None
    keep_failed: bool | None = None


def read_build_options(reader: MessageReader, minor: int) -> BuildOptions:
    """What follows a wish to build. Raises ``FormatError``."""
    silence, timeout = reader.number(_MAX_INT), reader.number(_MAX_INT)
    options = BuildOptions(max_silent_time=silence, timeout=timeout)
    if minor >= 2:
        options = replace(options, max_log_size=min(reader.number(), _MAX_SIZE))
    if minor >= 3:
        repeat = reader.number(_MOST_REPEATS)
        options = replace(options, repeat=repeat, enforce_determinism=reader.boolean())
    if minor >= 7:
        options = replace(options, keep_failed=reader.boolean())
    return options


def settings_for(ours: Settings, options: BuildOptions) -> Settings:
    """The settings of a build for this client (row P44).

    It keeps the log that it is told, and has fetched what can be fetched. Repeating, which Nix
    2.34 refuses, is done.
    """
    settings = replace(
        ours,
        max_silent_time=options.max_silent_time,
        timeout=options.timeout,
        keep_build_log=False,
        substitute=False,
    )
    if options.max_log_size is not None:
        settings = replace(settings, max_build_log_size=options.max_log_size)
    if options.repeat is not None:
        enforced = options.repeat == 0 or bool(options.enforce_determinism)
        settings = replace(
            settings, repeat=options.repeat, enforce_determinism=enforced, run_diff_hook=True
        )
    if options.keep_failed is not None:
        settings = replace(settings, keep_failed=options.keep_failed)
    return settings


def write_path_info(writer: MessageWriter, info: PathInfo, minor: int) -> None:
    """What is known of a path, behind the path itself."""
    writer.optional_path(info.deriver)
    writer.paths(info.references)
    writer.number(info.nar_size)  # the size of the download: it isn't compressed
    writer.number(info.nar_size)
    if minor >= 4:
        writer.text(info.nar_hash.prefixed32)
        writer.text(info.content_address or "")
        writer.texts(sorted(info.signatures))


def read_new_object(reader: MessageReader) -> PathInfo:
    """What is said of an object that is to be added; its archive follows. Raises ``FormatError``.

    That it was built here (``ultimate``) is not for a client to say.
    """
    path, deriver = reader.path(), reader.optional_path()
    nar_hash = parse_hash(reader.text(_MAX_WORD), HashAlgorithm.SHA256)
    references = reader.paths()
    registration_time, nar_size = reader.number(_MAX_SIZE), reader.number(_MAX_SIZE)
    reader.boolean()
    signatures, address = reader.signatures(), reader.text(_MAX_WORD)
    if not nar_size:
        raise FormatError("narInfo is too old and missing the narSize field")
    return PathInfo(
        path=path,
        nar_hash=nar_hash,
        nar_size=nar_size,
        references=references,
        deriver=deriver,
        registration_time=registration_time,
        signatures=signatures,
        content_address=address or None,
    )


def write_build_result(
    writer: MessageWriter,
    result: BuildResult,
    message: str,
    realisations: Mapping[str, Realisation],
    minor: int,
) -> None:
    """How a build went, with what it made (row P43); ``message`` is empty for a success."""
    writer.number(result.status.wire)
    writer.text("" if result.success else message)
    if minor >= 3:
        writer.number(1 if result.start_time else 0)
        writer.boolean(result.status is BuildStatus.NOT_DETERMINISTIC)
        writer.number(int(result.start_time))
        writer.number(int(result.stop_time))
    if minor >= 6:
        built = realisations if result.success else {}
        writer.number(len(built))
        for realisation in sorted(built.values(), key=lambda each: each.id):
            writer.text(str(realisation.id))
            writer.data(realisation.to_json())
