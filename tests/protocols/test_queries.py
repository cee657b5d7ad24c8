"""What clients ask, answered by the daemon as Nix's does: by stock Nix, and by hand."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from executor.protocols.worker_protocol import Op
from executor.store.local import LocalStore
from executor.store.location import parse_store_url
from tests.protocols.conftest import RawClient, RunningDaemon, number, text

pytestmark = [pytest.mark.root, pytest.mark.nix]
ZERO = "/nix/store/" + "0" * 32


@pytest.fixture(scope="module")
def paths(daemon: RunningDaemon) -> tuple[str, str]:
    """A path, and one that refers to it."""
    location = parse_store_url(str(daemon.root), {})
    with LocalStore.open(location) as store:
        below = store.add_text("below", b"contents")
        above = store.add_text("above", b"more", [below])
        return store.store_dir.render(below), store.store_dir.render(above)


@pytest.mark.parametrize("minor", [21, 22, 25, 30, 32, 33, 34, 35, 36, 37, 38, 39, 99])
def test_every_version_is_served(daemon: RunningDaemon, paths: tuple[str, str], minor: int) -> None:
    client = RawClient(daemon.connect(), minor)
    assert client.greet() == (1 if minor >= 35 else 0)
    client.send(number(Op.IS_VALID_PATH), text(paths[0]))
    client.last()
    assert client.number() == 1
    client.send(number(Op.IS_VALID_PATH), text(ZERO + "-x"))
    client.last()
    assert client.number() == 0


def test_stock_nix_asks_the_store(daemon: RunningDaemon, paths: tuple[str, str]) -> None:
    below, above = paths

    def ask(*words: str) -> list[str]:
        return daemon.nix("nix-store", *words).stdout.split()

    assert ask("-q", "--references", above) == [below]
    assert ask("-q", "--referrers", below) == [above]
    assert sorted(ask("-qR", above)) == sorted(paths)
    assert ask("-q", "--size", below) == ["120"]
    assert ask("-q", "--hash", below)[0].startswith("sha256:")
    assert ask("--check-validity", below) == []
    done = daemon.nix("nix-store", "--check-validity", ZERO + "-x", check=False)
    assert f"path '{ZERO}-x' is not valid" in done.stderr
    assert sorted(daemon.nix("nix", "path-info", "--all").stdout.split()) == sorted(paths)
    # Stock Nix looks at files itself; by hand, then.
    client = RawClient(daemon.connect())
    client.greet()
    client.send(number(Op.NAR_FROM_PATH), text(below))
    client.last()
    dump = subprocess.run(
        ["nix-store", "--dump", daemon.real(below)], capture_output=True, check=True
    )
    assert client.exactly(120) == dump.stdout
    client.send(number(Op.NAR_FROM_PATH), text(ZERO + "-x"))
    assert "is not valid" in client.error()


def test_roots_are_made_and_found(daemon: RunningDaemon, paths: tuple[str, str]) -> None:
    link = daemon.directory / "link"
    daemon.nix("nix-store", "--add-root", str(link), "--realise", paths[0])
    assert link.readlink() == Path(paths[0])
    found = daemon.nix("nix-store", "--gc", "--print-roots").stdout
    assert f"{link} -> {paths[0]}" in found


def test_an_error_leaves_the_connection_as_it_was(
    daemon: RunningDaemon, paths: tuple[str, str]
) -> None:
    client = RawClient(daemon.connect())
    client.greet()
    client.send(number(Op.QUERY_DERIVER), text(ZERO + "-x"))
    assert client.error() == f"path '{ZERO}-x' is not valid"
    for part in ("%" * 32, "a", "e" * 32, "../" + "0" * 29):
        client.send(number(Op.QUERY_PATH_FROM_HASH_PART), text(part))
        assert client.error() == "invalid hash part"
    client.send(number(Op.QUERY_PATH_FROM_HASH_PART), text(paths[0][11:43]))
    client.last()
    assert client.data().decode() == paths[0]
