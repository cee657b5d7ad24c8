"""Two machines in one: a stock client at our daemon, and the same client at its own daemon.

Each side is a directory that lies at ``/nix`` for all that runs there, with the store, the socket
at its place, and a working directory. So both sides name everything alike, and what the client
prints can be compared byte for byte.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from executor.protocols.sockets import connect
from tests.protocols.client_commands import FILES, PUBLIC_KEY, Step

PROJECT = Path(__file__).parents[2]
CURRENT = PROJECT / ".cache/current-nix/bin"
CLIENTS = ("installed", "current")
SETTINGS = """\
experimental-features = nix-command ca-derivations flakes
substituters =
sandbox = true
sandbox-paths = /bin/sh=/bin/busybox
build-users-group = nixbld
build-poll-interval = 1
secret-key-files = /nix/w/key
trusted-public-keys = {public}
"""


def path_of(client: str) -> str:
    """What PATH is where that Nix is the first."""
    if client == "installed":
        return os.environ["PATH"]
    if not (CURRENT / "nix").exists():
        why = "this test needs a current Nix: run 'sudo scripts/current-nix.sh'"
        pytest.fail(why, pytrace=False)
    return f"{CURRENT}:{os.environ['PATH']}"


def version_of(client: str) -> tuple[int, ...]:
    """Such as 2, 34, 8."""
    environment = {"PATH": path_of(client)}
    words = ["nix", "--version"]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    found = re.search(r"\d+(\.\d+)+", done.stdout)
    assert found, done.stdout
    return tuple(map(int, found[0].split(".")))


@dataclass(frozen=True)
class Said:
    """What a command answered."""

    code: int
    stdout: bytes
    stderr: str


@dataclass(frozen=True)
class Side:
    """A directory that is ``/nix`` for whoever is started here."""

    directory: Path
    client: str
    ours: bool

    @property
    def environment(self) -> dict[str, str]:
        return {
            "PATH": path_of(self.client),
            "HOME": "/nix/w/home",
            "NIX_CONF_DIR": "/nix/etc",
            "PYTHONPATH": str(PROJECT),
        }

    def start(self, words: list[str], **options: object) -> subprocess.Popen[bytes]:
        """Start a program here."""
        script = 'mount --bind "$0/nix" /nix && cd /nix/w && exec "$@"'
        return subprocess.Popen(  # type: ignore[call-overload, no-any-return]
            ["unshare", "-m", "sh", "-c", script, str(self.directory), *words], **options
        )

    def run(self, words: list[str], more: Mapping[str, str] | None = None) -> Said:
        """What a client of the daemon says."""
        pipe = subprocess.PIPE
        environment = {**self.environment, "NIX_REMOTE": "daemon", **(more or {})}
        with self.start(words, env=environment, stdout=pipe, stderr=pipe) as process:
            try:
                out, err = process.communicate(timeout=60)
            finally:
                process.kill()
        return Said(process.returncode, out, err.decode())

    @contextlib.contextmanager
    def daemon(self) -> Iterator[None]:
        """The daemon runs meanwhile, and ends in peace."""
        entry = "from executor.cli.entry import start\nstart()"
        ours = [sys.executable, "-W", "error", "-c", entry, "daemon"]
        socket = self.directory / "nix/var/nix/daemon-socket/socket"
        with (self.directory / "log").open("wb") as log:
            process = self.start(
                ours if self.ours else ["nix-daemon"],
                env=self.environment,
                stdout=log,
                stderr=log,
            )
        try:
            deadline = time.monotonic() + 30
            while not self._answers(socket):
                assert process.poll() is None, (self.directory / "log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.02)
            yield
            process.terminate()
            code = process.wait(60)
            assert code == 0 or not self.ours, (self.directory / "log").read_text()
        finally:
            process.kill()
            process.wait()

    def _answers(self, socket: Path) -> bool:
        with contextlib.suppress(OSError), connect(str(socket)):
            return True
        return False


@contextlib.contextmanager
def make_side(directory: Path, client: str, *, ours: bool) -> Iterator[Side]:
    """A side with the files that commands name; its daemon runs."""
    Path("/nix").mkdir(exist_ok=True)
    work = directory / "nix/w"
    (work / "home").mkdir(parents=True)
    (directory / "nix/etc").mkdir()
    (directory / "nix/etc/nix.conf").write_text(SETTINGS.format(public=PUBLIC_KEY))
    for name, content in FILES.items():
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        (work / name).write_text(content)
    (work / "tree/program").chmod(0o755)
    (work / "tree/link").symlink_to("program")
    side = Side(directory, client, ours)
    with side.daemon():
        yield side


def play(side: Side, steps: list[Step]) -> dict[str, Said]:
    """What each step says; later ones may name what earlier ones have printed, as ``@NAME``."""
    said: dict[str, Said] = {}
    printed: dict[str, str] = {}
    for step in steps:
        words = [_filled(word, printed) for word in step.words]
        said[step.name] = side.run(words)
        lines = said[step.name].stdout.decode(errors="replace").split("\n")
        printed[step.name] = next((line for line in reversed(lines) if line), "")
    return said


def _filled(word: str, printed: Mapping[str, str]) -> str:
    return re.sub(r"@([a-z-]+)@", lambda match: printed[match[1]], word)


@contextlib.contextmanager
def scratch(prefix: str) -> Iterator[Path]:
    """A directory that build users can enter."""
    directory = Path(f"/var/tmp/{prefix}-{os.getpid()}")
    directory.mkdir(mode=0o755)
    try:
        yield directory
    finally:
        shutil.rmtree(directory)
