"""Builds whose network goes away under them, and builds of a range of ids in one."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from executor.api import Executor
from executor.build.plan import Target
from executor.build.result import BuildResult, FailureCause
from tests.build.conftest import (
    FOREVER,
    SLEEPING,
    Drv,
    Workshop,
    fixed,
    processes_with,
    wait_until,
)
from tests.hostile.inside import answers, log_of
from tests.hostile.netted import contacts, helpers
from tests.hostile.netted import workshop as workshop
from tests.hostile.test_id_ranges import RANGE
from tests.hostile.test_id_ranges import ranges as ranges
from tests.world import SERVER, World
from tests.world import world as world

pytestmark = pytest.mark.root


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def _server_of(helper: int) -> int:
    return _parent(helper)


def _itself(helper: int) -> int:
    return helper


def _endless(workshop: Workshop, name: str) -> Drv:
    return workshop.make(name, FOREVER, outputs={"out": fixed(b"")})


@pytest.mark.parametrize("victim", [_itself, _server_of])
def test_row_050_whatever_of_a_network_is_lost_the_next_build_has_one(
    workshop: Workshop, world: World, victim: Callable[[int], int]
) -> None:
    """Builders that were in it are killed, and their builds fail; the executor goes on."""
    second = workshop.make("second", outputs={"out": fixed(b"made\n")})

    async def go(executor: Executor) -> list[BuildResult]:
        target = Target(drv_path=_endless(workshop, "first").path)
        first = asyncio.ensure_future(executor.build_all((target,)))
        waiting = asyncio.to_thread(
            wait_until, lambda: bool(processes_with(SLEEPING)), "the builder"
        )
        await waiting
        (helper,) = helpers()
        os.kill(victim(helper), signal.SIGKILL)
        results = await first
        assert processes_with(SLEEPING) == []
        return [*results, *await executor.build_all((Target(drv_path=second.path),))]

    lost, good = workshop.run(go)
    assert lost.cause is FailureCause.SETUP
    assert "its network was lost" in lost.message
    assert good.success, good.message
    assert helpers() == []
    assert workshop.leftovers() == []


def test_row_050_a_lost_server_takes_all_its_networks_with_it(
    workshop: Workshop, world: World
) -> None:
    drvs = [_endless(workshop, f"endless-{number}") for number in range(3)]

    async def go(executor: Executor) -> list[BuildResult]:
        targets = [Target(drv_path=drv.path) for drv in drvs]
        building = asyncio.ensure_future(executor.build_all(targets))
        await asyncio.to_thread(
            wait_until, lambda: len(processes_with(SLEEPING)) == len(drvs), "the builders"
        )
        (server,) = {_parent(helper) for helper in helpers()}
        os.kill(server, signal.SIGKILL)
        return await building

    results = workshop.run(go, max_jobs=len(drvs), keep_going=True)
    assert {result.cause for result in results} == {FailureCause.SETUP}
    assert all("its network was lost" in result.message for result in results)
    assert processes_with(SLEEPING) == []


def test_row_047_a_range_of_ids_is_not_root_of_its_network(ranges: Workshop, world: World) -> None:
    """It reaches what the rules allow, is seen in them, and changes nothing of it."""
    port = world.listen_outside()
    script = f"""
    say() {{ what=$1; shift; if why=$("$@" 2>&1); then echo "$what ok"; else echo "$what no"; fi; }}
    echo "id $(id -u)"
    echo "links $(ls /sys/class/net | tr '\\n' ' ')"
    echo "reached $(sleep 1 | nc -w 5 {SERVER} {port})"
    say kept nc -w 5 169.254.169.254 {port}
    say down ip link set eth0 down
    say address ip addr add 127.0.0.9/8 dev eth0
    say route ip route add 10.9.9.9 dev eth0
    say sysctl sh -c 'echo 1 > /proc/sys/net/ipv4/ip_forward'
    say own unshare -n ip link set lo up
    echo "again $(sleep 1 | nc -w 5 {SERVER} {port})"
    echo made > $out
    """
    drv = ranges.make("ranged", script, outputs={"out": fixed(b"made\n")}, env=RANGE)
    run = ranges.build(drv, timeout=20)
    assert run.result.success, (run.result.message, run.text)
    found = answers(run.text.splitlines())
    assert found == {
        "id": "0",
        "links": "eth0 lo ",
        "reached": "reached",
        "again": "reached",
        **dict.fromkeys(("kept", "down", "address", "route", "sysctl"), "no"),
        "own": "ok",
    }
    assert contacts(run.result, allowed=True) == {f"{SERVER}/{port}"}
    assert contacts(run.result, allowed=False) == {f"169.254.169.254/{port}"}
    assert helpers() == []
    assert log_of(ranges, "id -u", "ordinary") != []
