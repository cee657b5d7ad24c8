"""How downloads go, for who has a daemon make them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.protocols.conftest import RunningDaemon, open_directory, start_daemon
from tests.web import Server
from tests.web import server as server

pytestmark = [pytest.mark.root, pytest.mark.nix]
COPY_PATH, FILE_TRANSFER, QUERY, PROGRESS = 100, 101, 109, 105
SIZE = 8 << 18
DOUBLE = "for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18; do x=$x$x; done"
LARGE = {
    "version": 4,
    "derivations": {
        "large": {
            "system": "x86_64-linux",
            "builder": "/bin/sh",
            "args": ["-c", f"x=12345678; {DOUBLE}; echo $x > $out"],
            "inputs": {"drvs": {}, "srcs": []},
        }
    },
}


def executor(daemon: RunningDaemon, *words: str) -> subprocess.CompletedProcess[str]:
    """One of our commands."""
    done = subprocess.run(
        [sys.executable, "-m", "executor", *words],
        env={**daemon.environment, "NIX_CONFIG": ""},
        cwd=daemon.directory,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done


@dataclass(frozen=True)
class Offer:
    """A path that a cache has, and a daemon that may fetch it."""

    daemon: RunningDaemon
    url: str
    path: str


@pytest.fixture
def offer(server: Server) -> Iterator[Offer]:
    with open_directory() as directory:
        server.directory = directory / "cache"
        server.directory.mkdir()
        settings = f"require-sigs = false\nextra-substituters = {server.url('')}\n"
        daemon = start_daemon(directory, settings=settings)
        try:
            (directory / "large.json").write_text(json.dumps(LARGE))
            other = str(directory / "other")
            path = executor(daemon, "build", "--store", other, "large.json").stdout.strip()
            cache = f"file://{server.directory}?compression=none"
            executor(daemon, "copy", "--store", other, "--to", cache, path)
            yield Offer(daemon, server.url(""), path)
            assert daemon.stop() == 0, daemon.log
        finally:
            daemon.process.kill()
            daemon.process.wait()


def told(output: str) -> list[dict[str, Any]]:
    """The objects of a JSON log."""
    lines = output.splitlines()
    return [json.loads(line[5:]) for line in lines if line.startswith("@nix ")]


def look_at(objects: list[dict[str, Any]], offer: Offer) -> None:
    """The download is there, inside of the copy, with its bytes, and everything ends."""
    starts = {each["id"]: each for each in objects if each["action"] == "start"}
    downloads = [each for each in starts.values() if each["type"] == FILE_TRANSFER]
    (archive,) = (each for each in downloads if each["text"].endswith(".nar'"))
    assert archive["text"].startswith(f"downloading '{offer.url}/nar/")
    (copy,) = (number for number, each in starts.items() if each["type"] == COPY_PATH)
    assert archive.get("parent", copy) == copy  # an old Nix doesn't print it
    progress = [each for each in objects if each.get("type") == PROGRESS]
    sizes = [each["fields"][:2] for each in progress if each["id"] == copy]
    assert sizes
    assert SIZE < sizes[-1][0] == sizes[-1][1]
    assert any(each["type"] == QUERY for each in starts.values())
    ended = {each["id"] for each in objects if each["action"] == "stop"}
    assert starts.keys() <= ended


def test_a_stock_client_is_told(offer: Offer) -> None:
    words = ("nix", "build", "--no-link", "--log-format", "internal-json", "-vvvv", offer.path)
    done = offer.daemon.nix(*words)
    look_at(told(done.stderr), offer)


def test_our_client_is_told(offer: Offer) -> None:
    daemon = offer.daemon
    where = f"unix://{daemon.socket_path}?root={daemon.root}"
    words = ("build", "--store", where, "--log-format", "internal-json", "large.json")
    look_at(told(executor(daemon, *words).stderr), offer)
