"""The pre-build hook: what it says, how it fails, and that it ends with the run."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from pathlib import Path

import pytest

from executor.build.failure import BuildFailureError
from executor.build.prebuild import run_pre_build_hook
from tests.build.conftest import FOREVER, SLEEPING, processes_with, wait_until


def _hook(directory: Path, script: str) -> str:
    path = directory / "pre-build"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def test_what_it_adds(tmp_path: Path) -> None:
    hook = _hook(tmp_path, 'echo "to stderr" >&2; echo extra-sandbox-paths; echo "$1=$2"; echo /b')
    paths = asyncio.run(run_pre_build_hook(hook, "/drv", "/root"))
    assert [(path.target, path.source) for path in paths] == [("/drv", "/root"), ("/b", "/b")]


@pytest.mark.parametrize(
    ("script", "text"),
    [
        ("exit 3", "failed with exit code 3"),
        ("kill -9 $$", "signal 9"),
        ("echo what", "unknown pre-build hook command 'what'"),
    ],
)
def test_how_it_fails(tmp_path: Path, script: str, text: str) -> None:
    with pytest.raises(BuildFailureError, match=text):
        asyncio.run(run_pre_build_hook(_hook(tmp_path, script), "/drv", "/root"))


def test_a_hook_that_is_not_there() -> None:
    with pytest.raises(BuildFailureError, match="No such file"):
        asyncio.run(run_pre_build_hook("/nowhere", "/drv", "/root"))


def test_it_dies_with_the_run(tmp_path: Path) -> None:
    script = f"trap '' TERM; setsid {FOREVER} & touch {tmp_path}/begun; {FOREVER}; {FOREVER}"
    hook = _hook(tmp_path, script)

    async def go() -> None:
        running = asyncio.ensure_future(run_pre_build_hook(hook, "/drv", "/root"))
        while not (tmp_path / "begun").exists():
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.2)
        running.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.wait_for(running, 20)

    descriptors = len(os.listdir("/proc/self/fd"))
    asyncio.run(asyncio.wait_for(go(), 40))
    wait_until(lambda: processes_with(SLEEPING) == [], "the hook's end")
    assert len(os.listdir("/proc/self/fd")) == descriptors
