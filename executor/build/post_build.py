"""The post-build hook: a program of the settings that hears of every build (row H2).

It runs as root after the outputs are registered, with ``DRV_PATH`` and ``OUT_PATHS`` in its
environment. What depends on the derivation waits for it; its failure is the derivation's.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

from executor.build.context import BuildContext, finish
from executor.build.events import PostBuildFinished, PostBuildLine, PostBuildStarted
from executor.build.hook_protocol import configuration_text, setting_values, store_url
from executor.build.lines import LineCutter
from executor.build.program import Program, chunks, status_text
from executor.build.result import BuildResult, BuildStatus, FailureCause
from executor.formats.store_path import StorePath

_GRACE = 0.5


async def after_build(
    context: BuildContext, result: BuildResult, new: Collection[StorePath]
) -> BuildResult:
    """Tell the hook, if there is one, of outputs that were built; returns what the result is then.

    As in Nix there is no limit of time: what the hook holds open it still uses.
    """
    program = context.settings.post_build_hook
    if not program or result.status is not BuildStatus.BUILT:
        return result
    hook_id, drv_path = context.new_build_id(), result.drv_path
    context.emit(PostBuildStarted(hook_id=hook_id, drv_path=drv_path, program=program))

    def take(line: bytes) -> None:
        context.emit(PostBuildLine(hook_id=hook_id, drv_path=drv_path, line=line))

    try:
        failure = await _run(program, _environment(context, drv_path, new), take)
    finally:
        context.emit(PostBuildFinished(hook_id=hook_id, drv_path=drv_path))
    if not failure:
        return result
    return replace(
        result,
        status=BuildStatus.MISC_FAILURE,
        message=failure,
        cause=FailureCause.HOOK,
        outputs={},
        log_tail=(),
    )


async def _run(
    command: str, env: Mapping[bytes, bytes], take: Callable[[bytes], None]
) -> str | None:
    """Run the hook to its end; tells what went wrong, if anything did."""
    reading, writing = os.pipe()
    try:
        os.set_blocking(reading, False)
        try:
            program = Program.start([command], env=env, output=writing)
        except OSError as error:
            return f"can't run the post-build hook '{command}': {error.strerror}"
        finally:
            os.close(writing)
        spare = False
        try:
            cutter = LineCutter()
            async for data in chunks(reading):
                for line in cutter.feed(data):
                    take(line)
            for line in cutter.flush():
                take(line)
            await program.ended()
            spare = True
        finally:
            closing = program.close(_GRACE, spare_rest=spare)
            status = await finish(asyncio.ensure_future(closing))
    finally:
        os.close(reading)
    return f'program "{command}" {status_text(status)}' if status else None


def _environment(
    context: BuildContext, drv_path: StorePath, new: Collection[StorePath]
) -> dict[bytes, bytes]:
    """Ours, what was built, and a configuration in which the same store is found."""
    store = context.store.store
    render = store.store_dir.render
    values = setting_values(context.settings, store_url(store.location))
    text = os.fsencode(configuration_text(values))
    inherited = context.environ.get(b"NIX_CONFIG", b"")
    return {
        **context.environ,
        b"DRV_PATH": os.fsencode(render(drv_path)),
        b"OUT_PATHS": os.fsencode(" ".join(map(render, sorted(new)))),
        # Ours is the last word, but what only Nix understands stays.
        b"NIX_CONFIG": inherited + b"\n" + text if inherited else text,
    }
