"""Build users: nobody gets one that somebody else has."""

from __future__ import annotations

import grp
import os
import subprocess
from pathlib import Path

import pytest

from executor.build.users import UserPool
from executor.errors import ConfigError, StoreError

pytestmark = pytest.mark.root

START = 880_900_000


def pool(directory: Path, group: str = "", start: int = START) -> UserPool:
    return UserPool(
        state_dir=str(directory / "state"),
        group=group,
        range_start=start,
        on_busy=lambda _text: None,
        machine_pool=str(directory / "machine"),
    )


def test_ids_of_a_range_are_different_for_every_lease(tmp_path: Path) -> None:
    leases = [lease for _ in range(5) if (lease := pool(tmp_path).try_acquire())]
    assert len({lease.user.uid for lease in leases}) == 5
    for lease in leases:
        lease.release()


def test_a_released_id_is_free_again(tmp_path: Path) -> None:
    first = pool(tmp_path).try_acquire()
    assert first is not None
    first.release()
    again = pool(tmp_path).try_acquire()
    assert again is not None
    assert again.user == first.user
    again.release()


def test_two_stores_share_one_machine(tmp_path: Path) -> None:
    one = UserPool(
        state_dir=str(tmp_path / "one"),
        group="nixbld",
        range_start=START,
        on_busy=lambda _text: None,
        machine_pool=str(tmp_path / "machine"),
    ).try_acquire()
    two = UserPool(
        state_dir=str(tmp_path / "two"),
        group="nixbld",
        range_start=START,
        on_busy=lambda _text: None,
        machine_pool=str(tmp_path / "machine"),
    ).try_acquire()
    assert one is not None
    assert two is not None
    assert one.user.uid != two.user.uid
    one.release()
    two.release()


def test_members_of_the_group_are_used_and_run_out(tmp_path: Path) -> None:
    members = grp.getgrnam("nixbld").gr_mem
    users = pool(tmp_path, group="nixbld")
    leases = [users.try_acquire() for _ in members]
    assert all(lease is not None and lease.user.gid != 0 for lease in leases)
    assert users.try_acquire() is None
    for lease in leases:
        assert lease is not None
        lease.release()


def test_an_id_with_a_stray_process_is_skipped(tmp_path: Path) -> None:
    told: list[str] = []
    users = UserPool(
        state_dir=str(tmp_path / "state"),
        group="",
        range_start=START + 5000,
        on_busy=told.append,
        machine_pool=str(tmp_path / "machine"),
    )
    stray = subprocess.Popen(["sleep", "60"], user=START + 5000)
    try:
        lease = users.try_acquire()
        assert lease is not None
        assert lease.user.uid == START + 5001
        assert str(stray.pid) in told[0]
        lease.release()
    finally:
        stray.kill()
        stray.wait()


def test_a_planted_link_as_lock_is_refused(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "machine").mkdir()
    os.symlink(victim, tmp_path / "machine" / str(START))
    with pytest.raises(StoreError):
        pool(tmp_path).try_acquire()
    assert victim.read_text() == "precious"


@pytest.mark.parametrize("start", [0, 1, 999])
def test_system_ids_are_refused(tmp_path: Path, start: int) -> None:
    with pytest.raises(ConfigError):
        pool(tmp_path, start=start)
