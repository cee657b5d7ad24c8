"""What tests of a build's network have in common: builders that try it, and that wait in it."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

import pytest

from executor.build.result import BuildResult
from executor.config import SandboxPath
from executor.network_rules import parse_network_rules
from tests.build.conftest import HOST_PROGRAMS, Drv, Run, Workshop, fixed, wait_until

ANYTHING = parse_network_rules("allow any")
REFUSED = "ECONNREFUSED"
_NUMBERS = count()
# Connects to each address that is named, and says how that went.
TRY = """
import errno, os, socket
for word in os.environ["targets"].split():
    host, _, port = word.rpartition("/")
    made = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    made.settimeout(float(os.environ.get("patience", 5)))
    try:
        made.connect((host, int(port)))
        print(word, made.recv(99).decode().strip())
    except OSError as error:
        print(word, errno.errorcode.get(error.errno, "silence"))
"""


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    """One whose builds have a network of their own."""
    workshop = Workshop(tmp_path)
    workshop.change(fod_network="isolated")
    return workshop


@pytest.fixture
def python(workshop: Workshop) -> Workshop:
    """Builders that can run Python."""
    workshop.change(sandbox_paths=(*workshop.settings.sandbox_paths, *HOST_PROGRAMS))
    return workshop


def program(workshop: Workshop, text: str, **environment: str) -> Drv:
    """A fixed output whose builder runs a Python program first."""
    return workshop.make(
        f"netted-{next(_NUMBERS)}",
        '/usr/bin/python3 -c "$program"; echo made > $out',
        outputs={"out": fixed(b"made\n")},
        env={"program": text, **environment},
    )


def outcomes(run: Run) -> dict[str, str]:
    """What the program said of each target."""
    assert run.result.success, (run.result.message, run.text)
    return dict(line.split(" ", 1) for line in run.text.splitlines())


def attempt(workshop: Workshop, *targets: str, **settings: object) -> Run:
    """A build that tries to connect to some targets, each ``address/port``."""
    return workshop.build(program(workshop, TRY, targets=" ".join(targets)), **settings)


def contacts(result: BuildResult, *, allowed: bool) -> set[str]:
    """What a result lists, as targets."""
    assert result.contacts is not None
    assert result.contacts.complete
    return {
        f"{contact.address}/{contact.port}"
        for contact in result.contacts.contacts
        if contact.allowed is allowed
    }


class Running:
    """A build that waits until it is told to go on, and the helper of its network."""

    def __init__(self, workshop: Workshop, directory: Path) -> None:
        self.go_on = directory / "go-on"
        self.ready = directory / "ready"
        self.helper = 0
        self._results: list[BuildResult] = []
        drv = workshop.make(
            "waiting",
            "readlink /proc/self/ns/net > /meet/ready; "
            "while [ ! -e /meet/go-on ]; do sleep 0.1; done; echo made > $out",
            outputs={"out": fixed(b"made\n")},
        )
        self._thread = threading.Thread(
            target=lambda: self._results.append(workshop.build(drv).result)
        )

    def begin(self) -> None:
        before = set(helpers())
        self._thread.start()
        wait_until(
            lambda: (self.ready.exists() and self.ready.read_text() != "") or bool(self._results),
            "the builder",
        )
        assert not self._results, self._results[0].message
        (self.helper,) = set(helpers()) - before

    def end(self) -> BuildResult:
        self._thread.join(60)
        return self._results[0]


@contextmanager
def running_build(workshop: Workshop, directory: Path) -> Iterator[Running]:
    """A build that runs in the block, and has ended after it, whatever happens."""
    running = Running(workshop, directory)
    try:
        running.begin()
        yield running
    finally:
        running.go_on.touch()
        running.end()


def helpers() -> list[int]:
    """Processes of pasta that this one is an ancestor of; other tests may run beside."""
    everybody = map(int, filter(str.isdigit, os.listdir("/proc")))
    return [pid for pid in everybody if is_pasta(pid) and _is_ours(pid)]


def is_pasta(pid: int) -> bool:
    """Whether a process is there, and runs pasta."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().startswith("pasta")
    return False


def _is_ours(pid: int) -> bool:
    with suppress(OSError):
        while pid > 1 and pid != os.getpid():
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return pid == os.getpid()


@pytest.fixture
def meeting(workshop: Workshop, tmp_path: Path) -> Path:
    """A directory that builders see as ``/meet``, and may write to."""
    directory = tmp_path / "meet"
    directory.mkdir()
    directory.chmod(0o777)
    paths = (
        *workshop.settings.sandbox_paths,
        SandboxPath(target="/meet", source=str(directory)),
        SandboxPath(target="/bin/readlink", source="/bin/busybox", read_only=True),
    )
    workshop.change(sandbox_paths=paths)
    return directory
