"""Running things inside: scripts as builders, and builders that wait while the test looks on."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from executor.config import SandboxPath
from tests.build.conftest import Drv, Run, Workshop, processes_with, wait_until


def log_of(workshop: Workshop, script: str, name: str = "attacker", **changes: Any) -> list[str]:
    """Build a derivation, which has to succeed, and return the lines that it printed."""
    drv = workshop.make(name, f"{script}\n[ -e $out ] || [ -L $out ] || echo > $out", **changes)
    run = workshop.build(drv)
    assert run.result.success, (run.result.message, run.log)
    return [line.decode(errors="surrogateescape") for line in run.log]


def answers(lines: list[str]) -> dict[str, str]:
    """``what errno`` lines by what; the last one counts."""
    return dict(line.split(" ", 1) for line in lines)


@dataclass(slots=True)
class Waiting:
    """A builder that waits: its first process as the host sees it, and its result later."""

    drv: Drv
    pid: int
    directory: Path
    run: Run | None = None

    @property
    def status(self) -> dict[str, str]:
        text = Path(f"/proc/{self.pid}/status").read_text()
        return dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)

    @property
    def uid(self) -> int:
        return int(self.status["Uid"].split()[0])

    @property
    def root(self) -> Path:
        """The root of the sandbox, as root of the host may enter it."""
        return Path(f"/proc/{self.pid}/root")


@contextmanager
def waiting(workshop: Workshop, drv: Drv, marker: str, **settings: Any) -> Iterator[Waiting]:
    """Build ``drv`` in a thread; the block runs when a process with ``marker`` is there.

    The builder is let go by ending that process: it must go on by itself then.
    """
    run: list[Run] = []
    thread = threading.Thread(target=lambda: run.append(workshop.build(drv, **settings)))
    thread.start()
    try:
        wait_until(lambda: bool(processes_with(marker)), "the builder")
        (pid,) = processes_with(marker)
        found = Waiting(drv, pid, workshop.directory)
        yield found
    finally:
        for pid in processes_with(marker):
            os.kill(pid, 15)
        thread.join(60)
    found.run = run[0]


def pause() -> tuple[str, str]:
    """A command for a script that waits to be ended, and how its process is found."""
    seconds = 10**8 + int.from_bytes(os.urandom(4), "big")
    return f"busybox sleep {seconds} || true", f"sleep\0{seconds}\0"


def as_user(uid: int, *command: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a command outside, as somebody."""
    return subprocess.run(
        [str(word) for word in command],
        user=uid,
        group=uid,
        extra_groups=[],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )


def share(workshop: Workshop, directory: Path, target: str, *, read_only: bool = False) -> None:
    """Show a directory of the host to the builders of a workshop."""
    shown = SandboxPath(target=target, source=str(directory), read_only=read_only)
    workshop.change(sandbox_paths=(*workshop.settings.sandbox_paths, shown))


def show_programs(workshop: Workshop) -> None:
    """Show the host's programs and libraries, for builders that are written in Python."""
    paths = [
        SandboxPath(target=path, source=path, read_only=True) for path in ("/usr", "/lib", "/lib64")
    ]
    workshop.change(sandbox_paths=(*workshop.settings.sandbox_paths, *paths))
