"""Real sandboxes for tests: a spawner, and one call that runs a shell script in one."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import pytest

from sandbox import Bind, Exec, Exit, File, SandboxProcess, SandboxSpec, SetupFailedError, Spawner

UID = 880_920_001
BUSYBOX = b"/bin/busybox"
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Finished:
    """How a script ended and what it printed."""

    exit: Exit
    output: str
    process: SandboxProcess


class Bench:
    """Makes specifications in a directory of the test, and runs them."""

    def __init__(self, directory: Path, *, from_template: bool = False) -> None:
        self.directory = directory
        self._from_template = from_template
        self._count = 0

    def spec(self, script: str, **changes: Any) -> SandboxSpec:
        self._count += 1
        base = self.directory / str(self._count)
        for name in ("root", "store", "tmp", "build"):
            (base / name).mkdir(parents=True, mode=0o700)
        os.chown(base / "store", 0, UID)
        os.chmod(base / "store", 0o1775)
        os.chmod(base / "tmp", 0o1777)
        os.chown(base / "build", UID, UID)
        spec = SandboxSpec(
            name="test",
            entry=Exec(b"/bin/sh"),
            argv=(b"sh", b"-c", script.encode()),
            environment=((b"PATH", b"/bin"),),
            working_directory=b"/build",
            root_directory=os.fsencode(base / "root"),
            store_directory=b"/nix/store",
            scratch_store=os.fsencode(base / "store"),
            build_directory=Bind(
                source=os.fsencode(base / "build"), target=b"/build", read_only=False
            ),
            temporary_directory=os.fsencode(base / "tmp"),
            host_uid=UID,
            host_gid=UID,
            binds=(
                Bind(source=BUSYBOX, target=b"/bin/sh"),
                Bind(source=BUSYBOX, target=b"/bin/busybox"),
            ),
            files=(File(path=b"/etc/passwd", content=b"me:x:1000:100::/build:/noshell\n"),),
        )
        return replace(spec, **changes)

    async def start(self, spawner: Spawner, spec: SandboxSpec) -> tuple[SandboxProcess, int]:
        """Start; the process and the read end of its output."""
        read_end, write_end = os.pipe()
        try:
            return await spawner.spawn(spec, write_end), read_end
        except BaseException:
            os.close(read_end)
            raise
        finally:
            os.close(write_end)

    async def finish(self, process: SandboxProcess, read_end: int) -> Finished:
        loop = asyncio.get_running_loop()
        with open(read_end, "rb") as pipe:
            reading = loop.run_in_executor(None, pipe.read)
            exit_ = await asyncio.wait_for(process.wait(), 60)
            output = await reading
        return Finished(exit_, output.decode(errors="replace"), process)

    def run(self, script: str, **changes: Any) -> Finished:
        return self.run_spec(self.spec(script, **changes))

    def run_spec(self, spec: SandboxSpec) -> Finished:
        async def go(spawner: Spawner) -> Finished:
            if self._from_template:
                await self._prepare(spawner, spec)
            return await self.finish(*await self.start(spawner, spec))

        return with_spawner(go)

    async def _prepare(self, spawner: Spawner, spec: SandboxSpec) -> None:
        """Two sandboxes of the same kind before, so that the spawner keeps a root for a third."""
        kept = (*("host_uid", "host_gid", "inputs", "binds", "files", "kvm"), "store_directory")
        for _ in range(2):
            fresh = self.spec("true", **{name: getattr(spec, name) for name in kept})
            with suppress(SetupFailedError):
                await self.finish(*await self.start(spawner, fresh))


def with_spawner(
    function: Callable[[Spawner], Coroutine[None, None, T]], preload: tuple[str, ...] = ()
) -> T:
    """Run a coroutine with a spawner of its own."""

    async def go() -> T:
        spawner = Spawner.start(preload)
        try:
            return await asyncio.wait_for(function(spawner), 120)
        finally:
            await spawner.close()

    return asyncio.run(go())


@pytest.fixture(params=["alone", "template"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Bench:
    """Every promise holds for a root that is made for one sandbox, and for a prepared one."""
    os.chmod(tmp_path, 0o700)
    return Bench(tmp_path, from_template=request.param == "template")
