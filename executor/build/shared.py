"""What builds on this machine and builds elsewhere have in common."""

from __future__ import annotations

from collections.abc import Sequence

from executor.build.context import BuildContext
from executor.build.disk_space import log_notes
from executor.build.events import BuildLogLine, BuildPhase, BuildTransfer, Notice
from executor.build.log import LogEntry, MessageLine, PhaseLine, TextLine, TransferLine
from executor.build.messages import cannot_build
from executor.build.options import DerivationOptions, InvalidAttributeError
from executor.build.plan import Node
from executor.build.result import BuildResult, BuildStatus, FailureCause
from executor.build.runner import Limits
from executor.config import Settings
from executor.errors import FormatError
from executor.formats.store_path import StoreDir, StorePath
from executor.store.derivations import static_outputs
from executor.store.local import LocalStore
from executor.store.log_files import LogFile, log_path


def lock_paths(store: LocalStore, node: Node) -> list[str]:
    """What is locked: the outputs, or names of them where their paths aren't known (row C9)."""
    derivation = node.derivation
    assert derivation is not None
    known = static_outputs(derivation, store.store_dir)
    drv_path = store.real_path(node.drv_path)
    return sorted(
        store.real_path(known[name]) if name in known else f"{drv_path}.{name}"
        for name in derivation.outputs
    )


def known_paths(node: Node, store_dir: StoreDir) -> list[str]:
    """The full paths that a derivation's outputs have before it is built, where they have any."""
    if node.derivation is None:
        return []
    return [store_dir.render(path) for path in static_outputs(node.derivation, store_dir).values()]


def dependency_failed(
    context: BuildContext, node: Node, failures: Sequence[BuildResult]
) -> BuildResult:
    """The result of a derivation that can't be built because of these others."""
    store_dir = context.store.store.store_dir
    noun = "dependency" if len(failures) == 1 else "dependencies"
    text = cannot_build(
        store_dir.render(node.drv_path),
        f"{len(failures)} {noun} failed",
        known_outputs=known_paths(node, store_dir),
        failed_inputs=[store_dir.render(result.drv_path) for result in failures],
    )
    return BuildResult(
        drv_path=node.drv_path,
        status=BuildStatus.DEPENDENCY_FAILED,
        cause=FailureCause.DEPENDENCY,
        message=text,
    )


def prefers_local(store: LocalStore, node: Node) -> bool:
    """Whether a derivation asks to be built on this machine; one that is malformed doesn't."""
    assert node.derivation is not None
    try:
        options = DerivationOptions.from_derivation(node.derivation, store.store_dir)
    except (InvalidAttributeError, FormatError):
        return False
    return options.prefer_local_build


def open_log(context: BuildContext, drv_path: StorePath) -> tuple[str | None, LogFile | None]:
    """The log file of a build, where logs are kept, and its path."""
    settings = context.settings
    if not settings.keep_build_log:
        return None, None
    compress = settings.compress_build_log
    path = log_path(context.store.store.location.log_dir, drv_path, compress=compress)
    return path, LogFile(path, compress)


def incomplete_log(context: BuildContext, name: str, log: LogFile) -> str:
    """What is told of a log that could not be written to its end."""
    assert log.error is not None
    text = f"the log of '{name}' is not complete: {log.error.strerror}: '{log.path}'"
    return text + log_notes(context, log.error)


def limits_of(settings: Settings) -> Limits:
    """The limits that the settings put on one build."""
    return Limits(
        timeout=settings.timeout,
        max_silent_time=settings.max_silent_time,
        max_log_size=settings.max_build_log_size,
        log_tail=settings.log_lines,
    )


def emit_entry(context: BuildContext, build_id: int, drv_path: StorePath, entry: LogEntry) -> None:
    """Tell listeners what a builder printed."""
    match entry:
        case TextLine(line):
            context.emit(BuildLogLine(build_id=build_id, drv_path=drv_path, line=line))
        case PhaseLine(phase):
            context.emit(BuildPhase(build_id=build_id, drv_path=drv_path, phase=phase))
        case MessageLine(level, text):
            context.emit(Notice(level=_builder_level(level), text=text))
        case TransferLine():
            context.emit(
                BuildTransfer(
                    build_id=build_id,
                    drv_path=drv_path,
                    transfer=entry.transfer,
                    action=entry.action,
                    level=_builder_level(entry.level),
                    text=entry.text,
                    kind=entry.kind,
                    fields=entry.fields,
                )
            )


def _builder_level(level: int) -> int:
    """A builder's messages are no errors of ours."""
    return min(max(level, 1), 7)
