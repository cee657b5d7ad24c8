"""The sandboxed start alone: a static program in a full sandbox, and the floor beside it."""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from pathlib import Path
from statistics import median

from benchmarks.builders import BUSYBOX, TIMEOUT
from sandbox import Bind, Exec, Exited, File, SandboxSpec, Spawner

_UID = 880_930_000


class Floor:
    """The C program that does as little as a sandboxed start can."""

    def __init__(self, directory: Path) -> None:
        self._program = str(directory / "floor")
        source = str(Path(__file__).with_name("floor.c"))
        command = ["gcc", "-O2", "-Wall", "-o", self._program, source]
        subprocess.run(command, check=True, timeout=TIMEOUT)

    def one(self, count: int) -> float:
        """Seconds of one start: the median of ``count``."""
        command = [self._program, str(count), BUSYBOX, "true"]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=TIMEOUT)
        return median(int(line) for line in done.stdout.split()) / 1e9


def sandboxed(directory: Path, count: int) -> float:
    """Seconds of one start and end in a sandbox: the median of ``count`` by one spawner."""
    return asyncio.run(_sandboxed(directory, count))


async def _sandboxed(directory: Path, count: int) -> float:
    spawner = Spawner.start()
    try:
        seconds = [
            await run_one(spawner, start_spec(directory / str(number))) for number in range(count)
        ]
    finally:
        await spawner.close()
    return median(seconds)


async def run_one(spawner: Spawner, spec: SandboxSpec) -> float:
    """Seconds of one start and end."""
    with open(os.devnull, "wb") as output:
        start = time.perf_counter()
        process = await spawner.spawn(spec, output.fileno())
        end = await process.wait()
        seconds = time.perf_counter() - start
    if not isinstance(end, Exited) or end.code != 0:
        raise RuntimeError(f"the sandboxed program ended with {end} ({process.exec_error})")
    return seconds


def start_spec(base: Path) -> SandboxSpec:
    """A sandbox for a program that does nothing, with directories of its own below ``base``."""
    for name in ("root", "store", "tmp", "build"):
        (base / name).mkdir(parents=True, mode=0o700, exist_ok=True)
    os.chown(base / "build", _UID, _UID)
    build = Bind(source=os.fsencode(base / "build"), target=b"/build", read_only=False)
    return SandboxSpec(
        name="start",
        entry=Exec(b"/bin/sh"),
        argv=(b"sh", b"-c", b":"),
        environment=((b"PATH", b"/bin"),),
        working_directory=b"/build",
        root_directory=os.fsencode(base / "root"),
        store_directory=b"/nix/store",
        scratch_store=os.fsencode(base / "store"),
        build_directory=build,
        temporary_directory=os.fsencode(base / "tmp"),
        host_uid=_UID,
        host_gid=_UID,
        binds=(Bind(source=os.fsencode(BUSYBOX), target=b"/bin/sh"),),
        files=(File(path=b"/etc/hosts", content=b"127.0.0.1 localhost\n"),),
    )
