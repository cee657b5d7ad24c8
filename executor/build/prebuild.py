"""The pre-build hook: a program of the settings that may add sandbox paths (row H1).

It runs as root before the sandbox exists, with the derivation and the sandbox's directory as
arguments, and prints ``extra-sandbox-paths`` followed by one ``target[=source]`` a line.
"""

from __future__ import annotations

import os

from executor.build.failure import unable
from executor.build.program import Program, output_of, status_text
from executor.config import SandboxPath

_GRACE = 0.5
_COMMANDS = ("extra-sandbox-paths", "extra-chroot-dirs")


async def run_pre_build_hook(program: str, drv_path: str, root: str) -> tuple[SandboxPath, ...]:
    """Run the hook, if there is one, and parse what it says. Raises ``BuildFailureError``."""
    if not program:
        return ()
    reading, writing = os.pipe()
    try:
        os.set_blocking(reading, False)
        try:
            command = [program, drv_path, root]
            hook = Program.start(command, env=os.environb, output=writing, merge=False)
        except OSError as error:
            raise unable(f"can't run the pre-build hook '{program}': {error.strerror}") from error
        finally:
            os.close(writing)
        status, output = await output_of(hook, reading, grace=_GRACE)
    finally:
        os.close(reading)
    if status != 0:
        raise unable(f"the pre-build hook '{program}' {status_text(status)}")
    return parse_hook_output(output.decode("utf-8", "surrogateescape"))


def parse_hook_output(text: str) -> tuple[SandboxPath, ...]:
    """Sandbox paths that a hook asks for. Raises ``BuildFailureError`` for an unknown command."""
    paths: list[SandboxPath] = []
    in_paths = False
    # What has no line end is not complete, and not read, as in Nix.
    for line in text.split("\n")[:-1]:
        if not in_paths:
            if line not in _COMMANDS:
                raise unable(f"unknown pre-build hook command '{line}'")
            in_paths = True
        elif not line:
            in_paths = False
        else:
            target, _, source = line.partition("=")
            paths.append(
                SandboxPath(target=target, source=source or target, optional=False, read_only=False)
            )
    return tuple(paths)
