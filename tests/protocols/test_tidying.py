"""What a daemon keeps for its next client, and when it gives that up."""

from __future__ import annotations

import asyncio

import pytest

from executor.formats import store_path
from executor.formats.store_path import StorePath
from executor.protocols import tidying
from executor.protocols.tidying import Tidying

_FEW, _SOON = 5, 0.1


def remember_paths() -> None:
    """Long-lived small objects between short-lived ones, as every build leaves them."""
    for number in range(100):
        StorePath.parse(f"{number:032d}-path")


def remembered() -> int:
    return store_path._parse_base_name.cache_info().currsize


@pytest.fixture(autouse=True)
def short_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tidying, "_REST_SECONDS", _SOON)


def test_a_daemon_without_clients_forgets_their_paths_and_what_makes_builds_faster() -> None:
    rests: list[int] = []

    async def serve() -> None:
        tidying = Tidying(lambda: rests.append(remembered()))
        tidying.count(_FEW)
        remember_paths()
        await asyncio.sleep(3 * _SOON)
        assert remembered() >= 100
        assert rests == []
        tidying.count(0)
        await asyncio.sleep(3 * _SOON)

    asyncio.run(serve())
    assert len(rests) == 1
    assert remembered() == 0


def test_a_client_that_comes_soon_finds_all_as_it_was() -> None:
    rests: list[int] = []

    async def serve() -> None:
        tidying = Tidying(lambda: rests.append(remembered()))
        remember_paths()
        for connections in (1, 0, 1):
            tidying.count(connections)
        await asyncio.sleep(3 * _SOON)

    asyncio.run(serve())
    assert rests == []
    assert remembered() >= 100
