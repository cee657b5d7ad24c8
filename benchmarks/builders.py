"""The executor and the installed Nix, on stores that are made for one run each."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.measure import Cost, children_cpu

BUSYBOX = "/bin/busybox"
EXECUTOR = str(Path(sys.executable).with_name("executor"))
TIMEOUT = 900
# A builder prints this as the last thing it does.
ENDED = "the builder has ended"
# The same for both, and nothing of the machine's configuration. Nix runs builders as root then,
# which is the least work for it.
_SETTINGS = f"""\
sandbox = true
sandbox-fallback = false
sandbox-paths = /bin/sh={BUSYBOX}
substituters =
build-users-group =
max-jobs = 2
"""


class Builder(ABC):
    """A program that builds a derivation in a store below a directory."""

    def __init__(self, directory: Path) -> None:
        """``directory`` gets the stores, and nothing stays in it."""
        self._directory = directory
        self._conf = directory / "conf"
        self._conf.mkdir(exist_ok=True)

    @abstractmethod
    def command(self, root: Path, drv: str) -> list[str]:
        """The command line that builds ``drv``, showing its log."""

    @property
    def environment(self) -> Mapping[str, str]:
        """What the command line is started with."""
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self._conf),
            "NIX_CONF_DIR": str(self._conf),
            "NIX_CONFIG": _SETTINGS,
            "NIX_REMOTE": "local",
        }

    @contextmanager
    def store(self, template: Path) -> Iterator[Path]:
        """A store that nothing was built in: a copy of a prepared one."""
        with TemporaryDirectory(dir=self._directory) as name:
            root = Path(name, "root")
            subprocess.run(["cp", "-a", template, root], check=True, timeout=TIMEOUT)
            yield root

    def build(self, root: Path, drv: str) -> Cost:
        """Build, and say what the command took."""
        cpu, start = children_cpu(), time.perf_counter()
        self._run(root, drv)
        return Cost(time.perf_counter() - start, children_cpu() - cpu)

    def build_fresh(self, template: Path, drv: str) -> Cost:
        """Build in a store of its own."""
        with self.store(template) as root:
            return self.build(root, drv)

    def finish_fresh(self, template: Path, drv: str) -> float:
        """Build, and say how long the command took after the builder said that it had ended."""
        with self.store(template) as root:
            return self._time_since_end(root, drv)

    def output(self, root: Path, drv: str) -> str:
        """Build, and say which store path came of it."""
        return self._run(root, drv).split()[-1]

    def _run(self, root: Path, drv: str) -> str:
        done = subprocess.run(
            self.command(root, drv),
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )
        self._check(done.returncode, done.stderr)
        return done.stdout

    def _time_since_end(self, root: Path, drv: str) -> float:
        process = subprocess.Popen(
            self.command(root, drv),
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        ended, lines = 0.0, []
        with process:
            assert process.stderr is not None
            for line in process.stderr:
                if line.rstrip().endswith(ENDED):
                    ended = time.perf_counter()
                lines.append(line)
        stop = time.perf_counter()
        self._check(process.returncode, "".join(lines))
        if not ended:
            raise RuntimeError(f"the builder was not heard to end:\n{''.join(lines)}")
        return stop - ended

    def _check(self, code: int, log: str) -> None:
        if code != 0:
            raise RuntimeError(f"{type(self).__name__} ended with {code}:\n{log}")


class ExecutorBuilder(Builder):
    """The executor's command line."""

    def command(self, root: Path, drv: str) -> list[str]:
        return [EXECUTOR, "build", "--store", str(root), "-L", drv]


class NixBuilder(Builder):
    """A Nix, without its daemon: the installed one, or that of a directory with its programs."""

    def __init__(self, directory: Path, programs: Path | None = None) -> None:
        super().__init__(directory)
        self._program = "nix-store" if programs is None else str(programs / "nix-store")

    def command(self, root: Path, drv: str) -> list[str]:
        return [self._program, "--store", str(root), "--realise", drv]

    @property
    def version(self) -> str:
        """Its version. Raises ``RuntimeError`` where there is none."""
        if shutil.which(self._program) is None:
            raise RuntimeError(
                f"there is no stock Nix at '{self._program}'; 'sudo make setup-test' installs one"
            )
        command = [self._program, "--version"]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=TIMEOUT)
        return done.stdout.split()[-1]
