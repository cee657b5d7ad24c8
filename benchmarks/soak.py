"""Thousands of builds by hundreds of clients through one daemon, and what it holds afterwards.

    sudo .venv/bin/python -m benchmarks.soak --builds 5000 --clients 200

Memory, descriptors, processes, mounts, control groups, and what lies in the store and beside it
are looked at after a first build, in the middle and at the end, each time when nobody has been
connected for some seconds; more of anything is an error. Threads are compared with those after a
first crowd, and memory with that in the middle, from 10,000 builds on.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from executor.formats.store_path import StoreDir, StorePath
from executor.protocols.client_channel import ClientChannel
from executor.protocols.sockets import connect
from executor.protocols.worker_client import WorkerClient
from executor.protocols.worker_messages import DerivedPath
from executor.protocols.worker_protocol import BuildMode

STORE_DIR = StoreDir("/nix/store")
TIMEOUT = 600.0
# Idle again: so long after the last client has gone. Memory is given back then, too.
SETTLE = 6.0
_QUIET = 0.2
# Memory may be so much more at the end than in the middle, in KiB: a page here and there.
_NOISE = 1024
_LONG = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Holdings:
    """What a daemon and its children have at one moment. ``memory`` is PSS in KiB."""

    memory: int
    descriptors: int
    threads: int
    processes: int
    mounts: int
    groups: int
    files: int

    def table_row(self, name: str) -> str:
        """One line for people."""
        return (
            f"{name:>12}: {self.memory / 1024:6.1f} MiB, {self.descriptors} descriptors, "
            f"{self.threads} threads, {self.processes} processes, {self.mounts} mounts, "
            f"{self.groups} control groups, {self.files} files of builds"
        )


class Soak:
    """A daemon with a store of its own below ``directory``."""

    def __init__(self, directory: Path, count: int) -> None:
        self.directory = directory
        self.socket = str(directory / "socket")
        self._root = directory / "root"
        self._waiting = _instantiate(directory, self._root, count)
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "executor", "daemon", "--store", str(self._root)),
                *("--socket", self.socket),
            ],
            env=_environment(directory),
        )

    def wait_until_up(self) -> None:
        """Until somebody can connect."""
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError), connect(self.socket):
                return
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit("the daemon doesn't start")
            time.sleep(0.05)

    def run(self, builds: int, clients: int) -> float:
        """So many builds by so many clients at once, who are all connected before; the seconds."""
        ready, errors = threading.Barrier(clients + 1), list[BaseException]()
        shares = [builds // clients + (number < builds % clients) for number in range(clients)]

        def work(share: int) -> None:
            try:
                with WorkerClient(
                    ClientChannel.of_socket(connect(self.socket)), STORE_DIR
                ) as client:
                    ready.wait(TIMEOUT)
                    for _ in range(share):
                        self._build(client)
            except BaseException as error:  # noqa: BLE001 - told by the main thread
                errors.append(error)
                ready.abort()

        threads = [threading.Thread(target=work, args=(share,)) for share in shares]
        for thread in threads:
            thread.start()
        ready.wait(TIMEOUT)
        begin = time.monotonic()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]
        return time.monotonic() - begin

    def _build(self, client: WorkerClient) -> None:
        with self._lock:
            drv_path = self._waiting.pop()
        wish = DerivedPath(path=drv_path, is_built=True)
        (result,) = client.build_paths([wish], BuildMode.NORMAL)
        if result is None or not result.success:
            raise SystemExit(f"a build failed: {result}")

    def holdings(self) -> Holdings:
        """What there is once nothing happens any more."""
        deadline = time.monotonic() + 30
        while self._client_threads() and time.monotonic() < deadline:
            time.sleep(_QUIET)
        time.sleep(SETTLE)
        processes = list(family(self._process.pid))
        return Holdings(
            memory=sum(map(pss, processes)),
            descriptors=sum(_count(f"/proc/{pid}/fd") for pid in processes),
            threads=sum(_count(f"/proc/{pid}/task") for pid in processes),
            processes=len(processes),
            mounts=sum(
                len(Path(f"/proc/{pid}/mountinfo").read_bytes().splitlines()) for pid in processes
            ),
            groups=sum(map(_groups, processes)),
            files=len(list(self._leftovers())),
        )

    def _client_threads(self) -> int:
        names = Path(f"/proc/{self._process.pid}/task").glob("*/comm")
        count = 0
        for name in names:
            # A thread that ended since it was listed: nothing to open, or nothing to read.
            with suppress(FileNotFoundError, ProcessLookupError):
                count += name.read_text().startswith("client-")
        return count

    def _leftovers(self) -> Iterator[Path]:
        """Locks, scratch stores, build directories, temporary roots."""
        store, state = self._root / "nix/store", self._root / "nix/var/nix"
        for pattern in ("*.lock", "*.chroot", "*.check", ".*scratch*"):
            yield from store.glob(pattern)
        for name in ("builds", "temproots"):
            if (state / name).is_dir():
                yield from (state / name).iterdir()

    def stop(self) -> int:
        """End the daemon as systemd does; its exit code."""
        self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(90)
        finally:
            self._process.kill()


def _environment(directory: Path) -> dict[str, str]:
    (directory / "etc").mkdir()
    (directory / "etc" / "nix.conf").write_text("substituters =\n")
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(directory),
        "NIX_CONF_DIR": str(directory / "etc"),
        "PYTHONPATH": str(Path(__file__).parent.parent),
    }


def _instantiate(directory: Path, root: Path, count: int) -> list[StorePath]:
    """Trivial derivations, in the store."""
    trivial = {
        "system": "x86_64-linux",
        "builder": "/bin/sh",
        "args": ["-e", "-c", "echo $name; echo $name > $out"],
        "inputs": {"drvs": {}, "srcs": []},
    }
    source = directory / "derivations.json"
    derivations = {f"trivial-{number}": trivial for number in range(count)}
    source.write_text(json.dumps({"version": 4, "derivations": derivations}))
    command = [sys.executable, "-m", "executor", "instantiate", "--store", str(root), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=TIMEOUT)
    return [STORE_DIR.parse(line) for line in done.stdout.split() if line.endswith(".drv")]


def family(pid: int) -> Iterator[int]:
    """A process and all below it."""
    yield pid
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            for child in (task / "children").read_text().split():
                yield from family(int(child))


def _count(directory: str) -> int:
    return len(os.listdir(directory))


def pss(pid: int) -> int:
    """Proportional set size of a process, in KiB."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return int(text.split("\nPss:")[1].split()[0])


def _groups(pid: int) -> int:
    """Control groups of builds: below the one that the daemon holds the record of."""
    found = 0
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/{pid}/fd/{name}").startswith("/run/executor/cgroups/"):
                group = Path(Path(f"/proc/{pid}/fd/{name}").read_text())
                found += sum(each.is_dir() for each in group.iterdir())
    return found


def grown(first: Holdings, last: Holdings, names: Sequence[str]) -> list[str]:
    """What there is more of at the end."""
    return [
        f"{name}: {before}, and {after} at the end"
        for name in names
        if (after := getattr(last, name)) > (before := getattr(first, name))
    ]


def _soak(soak: Soak, builds: int, clients: int, memory_limit: int) -> list[str]:
    """All rounds, told as they end; what is left after them."""

    def look(name: str) -> Holdings:
        found = soak.holdings()
        print(found.table_row(name), flush=True)
        return found

    look("idle")
    soak.run(1, 1)
    first = look("first build")
    soak.run(clients, clients)
    crowd = look("first crowd")
    clients = min(clients, builds // 2)
    seconds = soak.run(builds // 2, clients)
    middle = look("in the middle")
    seconds += soak.run(builds - builds // 2, clients)
    last = look("at the end")
    print(f"{builds} builds in {seconds:.1f} s", flush=True)
    found = grown(first, last, ("descriptors", "processes", "mounts", "groups", "files"))
    found += grown(crowd, last, ("threads",))
    if last.memory > memory_limit << 10:
        found.append(f"memory: {last.memory >> 10} MiB of {memory_limit}")
    if builds >= _LONG and last.memory > middle.memory + _NOISE:
        found.append(f"memory: {middle.memory} KiB in the middle, and {last.memory} at the end")
    return found


def main(words: Sequence[str] | None = None) -> int:
    """The command line; 1 if something is left."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--builds", type=int, default=5000)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--memory", type=int, default=60, help="MiB that may be held at the end")
    arguments = parser.parse_args(words)
    with tempfile.TemporaryDirectory(prefix="executor-soak-") as name:
        directory = Path(name)
        directory.chmod(0o755)
        soak = Soak(directory, arguments.builds + arguments.clients + 1)
        try:
            soak.wait_until_up()
            bad = _soak(soak, arguments.builds, arguments.clients, arguments.memory)
        finally:
            code = soak.stop()
    bad += [f"exit code {code}"] if code else []
    for text in bad:
        print(f"LEFT {text}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
