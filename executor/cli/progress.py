"""Showing a run to people and programs: plain lines, a line on a terminal, or Nix's JSON.

A display takes events and writes to standard error. What builders print is untrusted: control
characters never reach a terminal.
"""

from __future__ import annotations

import os
import re
import sys
import time
from typing import Protocol, TextIO

from executor.build.event_texts import (
    building_text,
    machine_text,
    printable,
    user_text,
    waiting_text,
)
from executor.build.events import (
    BuildFinished,
    BuildLogLine,
    BuildPhase,
    BuildStarted,
    BuildTransfer,
    Event,
    GraphPlanned,
    Notice,
    PostBuildLine,
    PostBuildStarted,
    SubstitutionFinished,
    SubstitutionStarted,
    WaitingForLock,
    WaitingForMachine,
    WaitingForUser,
    Watched,
)
from executor.build.result import BuildResult, BuildStatus
from executor.cli.plan_text import plan_lines
from executor.formats.store_path import StoreDir, StorePath

_PREFIXES = {0: "error: ", 1: "warning: "}
_REDRAW = 0.1


class Display(Protocol):
    """Takes events until it is closed; those of ``Watched`` only where it ``watches``."""

    @property
    def watches(self) -> bool: ...

    def take(self, event: Event) -> None: ...

    def close(self) -> None: ...


def make_display(
    log_format: str | None,
    *,
    print_logs: bool,
    verbosity: int,
    store_dir: StoreDir,
    json_log_path: str = "",
    log_command: str = "executor log",
) -> Display:
    """The display that the options ask for; a status line only where there is a terminal.

    ``log_command`` is how to see a log of this store. ``json_log_path`` is a file or a unix socket
    that gets everything as JSON, too. Raises ``OSError`` if it can't be opened.
    """
    display = _on_stderr(log_format, print_logs, verbosity, store_dir, log_command)
    if not json_log_path:
        return display
    from executor.cli.json_display import JsonDisplay, open_json_log

    log = JsonDisplay(open_json_log(json_log_path), store_dir, prefix="")
    return TeeDisplay(display, log)


def _on_stderr(
    log_format: str | None, print_logs: bool, verbosity: int, store_dir: StoreDir, log_command: str
) -> Display:
    out = sys.stderr
    if log_format == "internal-json":
        from executor.cli.json_display import JsonDisplay

        return JsonDisplay(out, store_dir)
    is_terminal = out.isatty() and os.environ.get("TERM", "dumb") != "dumb"
    logs = print_logs or log_format in ("raw-with-logs", "bar-with-logs")
    plain = PlainDisplay(
        out, store_dir, verbosity=verbosity, print_logs=logs, log_command=log_command
    )
    if log_format in ("raw", "raw-with-logs") or not is_terminal:
        return plain
    return BarDisplay(plain, out)


class PlainDisplay:
    """A line when a build starts, its log if asked for, and the reason when it fails."""

    watches = False

    def __init__(
        self,
        out: TextIO,
        store_dir: StoreDir,
        *,
        verbosity: int,
        print_logs: bool,
        log_command: str = "executor log",
    ) -> None:
        self._out = out
        self._store_dir = store_dir
        self._verbosity = verbosity
        self._print_logs = print_logs
        self._log_command = log_command

    def take(self, event: Event) -> None:
        """Print what the event is worth."""
        match event:
            case GraphPlanned():
                for line in plan_lines(event, self._store_dir.render):
                    self._say(3, line)
            case SubstitutionStarted(path=path, source=source):
                self._say(3, f"copying path '{self._store_dir.render(path)}' from '{source}'...")
            case BuildStarted():
                self._say(3, f"{building_text(event, self._store_dir)}...")
            case BuildLogLine(drv_path=path, line=line) if self._print_logs:
                self._say(0, f"{_short(path)}> {printable(line)}")
            case PostBuildStarted(program=program):
                self._say(4, f"running post-build-hook '{program}'...")
            case PostBuildLine(drv_path=path, line=line) if self._print_logs:
                self._say(0, f"{_short(path)} (post)> {printable(line)}")
            case BuildPhase(drv_path=path, phase=phase) if self._print_logs:
                self._say(3, f"{_short(path)}> phase: {printable(phase.encode())}")
            case BuildTransfer(action="start", level=level, text=text) if text:
                self._say(level, printable(text.encode()))
            case WaitingForLock():
                self._say(1, waiting_text(event))
            case WaitingForMachine(drv_path=path):
                self._say(1, machine_text(self._store_dir.render(path)))
            case WaitingForUser(drv_path=path):
                self._say(1, user_text(self._store_dir.render(path)))
            case Notice(level=level, text=text):
                self._say(level, printable(notice_text(level, text).encode()))
            case BuildFinished(result=result):
                self._finished(result)
            case _:
                pass

    def close(self) -> None:
        """Nothing is left to show."""

    def _say(self, level: int, text: str) -> None:
        if level <= self._verbosity:
            # Names in it may come from another machine.
            print(printable(text.encode("utf-8", "replace")), file=self._out, flush=True)

    def _finished(self, result: BuildResult) -> None:
        if result.success or result.status is BuildStatus.CANCELLED:
            return
        self._say(0, error_text(result.message))
        if result.log_tail and not self._print_logs:
            self._say(0, f"       Last {len(result.log_tail)} log lines:")
            for line in result.log_tail:
                self._say(0, f"       > {printable(line)}")
        if result.log_path is not None:
            name = self._store_dir.render(result.drv_path)
            self._say(0, f"       For full logs, run:\n         {self._log_command} {name}")
        if result.kept_build_directory is not None:
            self._say(0, f"note: keeping build directory '{result.kept_build_directory}'")


class TeeDisplay:
    """Two displays of the same events."""

    def __init__(self, *displays: Display) -> None:
        self._displays = displays
        self.watches = any(display.watches for display in displays)

    def take(self, event: Event) -> None:
        """Show it on both, if both want to see it."""
        watched = isinstance(event, Watched)
        for display in self._displays:
            if display.watches or not watched:
                display.take(event)

    def close(self) -> None:
        """End both."""
        for display in self._displays:
            display.close()


class BarDisplay:
    """A status line below the plain output: what is built, how long, how many are left."""

    watches = False

    def __init__(self, plain: PlainDisplay, out: TextIO) -> None:
        self._plain = plain
        self._out = out
        self._running: dict[StorePath, float] = {}
        self._total = self._done = self._failed = 0
        self._fetches = self._fetching = self._fetched = 0
        self._last_line = ""
        self._drawn_at = 0.0

    def take(self, event: Event) -> None:
        """Count, print above the line, draw it again."""
        match event:
            case GraphPlanned(will_build=paths, will_substitute=others):
                self._total += len(paths)
                self._fetches += len(others)
            case SubstitutionStarted():
                self._fetching += 1
            case SubstitutionFinished(success=success):
                self._fetching -= 1
                self._fetched += success
            case BuildStarted(drv_path=path, start_time=start):
                self._running[path] = start
            case BuildLogLine(line=line) | PostBuildLine(line=line):
                self._last_line = printable(line)
            case BuildFinished(result=result):
                self._running.pop(result.drv_path, None)
                self._done += result.status is BuildStatus.BUILT
                self._failed += not result.success
        self._erase()
        self._plain.take(event)
        many = isinstance(event, BuildLogLine | PostBuildLine)
        if not many or time.monotonic() - self._drawn_at > _REDRAW:
            self._draw()

    def close(self) -> None:
        """Leave no half line behind."""
        self._erase()
        self._out.flush()

    def _erase(self) -> None:
        self._out.write("\r\x1b[K")

    def _draw(self) -> None:
        self._drawn_at = time.monotonic()
        text = self.status(time.time())
        width = os.get_terminal_size(self._out.fileno()).columns
        self._out.write(re.sub("\x1b\\[[0-9;]*m", "", text)[: max(width - 1, 0)])
        self._out.flush()

    def status(self, now: float) -> str:
        """The status line at a time."""
        left = max(self._total - self._done - self._failed - len(self._running), 0)
        failed = f", {self._failed} failed" if self._failed else ""
        fetched = ""
        if self._fetches or self._fetched:
            total = max(self._fetches, self._fetched + self._fetching)
            fetched = f", {self._fetched} of {total} fetched"
        building = f"{len(self._running)} building, {self._done} built, {left} left"
        counts = f"[{building}{fetched}{failed}]"
        names = ", ".join(
            f"{_short(path)} {now - start:.0f}s" for path, start in self._running.items()
        )
        return " ".join(part for part in (counts, names, self._last_line) if part)


def _short(path: StorePath) -> str:
    return path.name.removesuffix(".drv")


def error_text(message: str) -> str:
    """An error as Nix shows it: its further lines begin below the first one's text."""
    return "error: " + printable(message.encode("utf-8", "replace")).replace("\n", "\n       ")


def notice_text(level: int, text: str) -> str:
    """What people are told of a notice: how bad it is, and what."""
    return _PREFIXES.get(level, "") + text
