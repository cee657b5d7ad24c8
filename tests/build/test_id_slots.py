"""Slots of ids: Nix's locks, and never two owners of one id on a machine."""

from __future__ import annotations

import fcntl
import os
import pwd
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from executor.build.id_slots import SLOT_SIZE, SlotPool, build_users
from executor.build.users import UserLease, UserPool
from executor.config import load_settings
from executor.errors import ConfigError
from executor.store.location import parse_store_url

pytestmark = pytest.mark.root

START = 13_500 * SLOT_SIZE


def pool(directory: Path, state: str = "state", **changes: Any) -> SlotPool:
    values: dict[str, Any] = {
        "start": START,
        "count": 3 * SLOT_SIZE,
        "on_busy": lambda _text: None,
        "machine_pool": str(directory / "machine"),
        **changes,
    }
    return SlotPool(state_dir=str(directory / state), **values)


def single(directory: Path, start: int) -> UserPool:
    return UserPool(
        state_dir=str(directory / "state"),
        group="",
        range_start=start,
        on_busy=lambda _text: None,
        machine_pool=str(directory / "machine"),
    )


def firsts(*leases: UserLease | None) -> list[int | None]:
    found = [lease.user.uid if lease is not None else None for lease in leases]
    for lease in leases:
        if lease is not None:
            lease.release()
    return found


def test_slots_are_apart_and_run_out(tmp_path: Path) -> None:
    leases = [pool(tmp_path).try_acquire(SLOT_SIZE) for _ in range(4)]
    assert all(lease is None or len(lease.user.uids) == SLOT_SIZE for lease in leases)
    assert firsts(*leases) == [START, START + SLOT_SIZE, START + 2 * SLOT_SIZE, None]


def test_an_ordinary_build_has_the_first_id_of_a_slot_for_itself(tmp_path: Path) -> None:
    one, two = pool(tmp_path).try_acquire(), pool(tmp_path).try_acquire()
    assert one is not None
    assert (one.user.uid, one.user.gid, one.user.uids) == (START, START, range(START, START + 1))
    assert firsts(one, two) == [START, START + SLOT_SIZE]


def test_the_locks_are_nixs(tmp_path: Path) -> None:
    lock = tmp_path / "state/userpool2/slot-0"
    lock.parent.mkdir(parents=True)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert firsts(pool(tmp_path).try_acquire()) == [START + SLOT_SIZE]
    lease = pool(tmp_path).try_acquire()
    with lock.open("w") as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert firsts(lease) == [START]


def test_stores_elsewhere_begin_with_the_last_slot(tmp_path: Path) -> None:
    assert firsts(pool(tmp_path, backwards=True).try_acquire()) == [START + 2 * SLOT_SIZE]
    chroot = parse_store_url(str(tmp_path / "store"), {})
    settings = load_settings(environ={"NIX_CONF_DIR": "/nonexistent"}, overrides=XP).settings
    lease = build_users(chroot, settings, lambda _text: None).try_acquire()
    assert firsts(lease) == [0x34000000 + 127 * SLOT_SIZE]


XP = [
    ("experimental-features", "auto-allocate-uids cgroups"),
    ("auto-allocate-uids", "true"),
]


def test_two_stores_never_share_a_slot(tmp_path: Path) -> None:
    one = pool(tmp_path, "one").try_acquire()
    two = pool(tmp_path, "two").try_acquire()
    assert firsts(one, two) == [START, START + SLOT_SIZE]


def test_slots_that_overlap_by_other_settings_exclude_each_other(tmp_path: Path) -> None:
    one = pool(tmp_path, "one").try_acquire()
    two = pool(tmp_path, "two", start=START + 5).try_acquire()
    assert firsts(one, two) == [START, START + 5 + SLOT_SIZE]


@pytest.mark.parametrize("slot_first", [True, False])
def test_a_single_id_in_a_slot_excludes_the_slot(tmp_path: Path, slot_first: bool) -> None:
    def takes(start: int) -> Callable[[], UserLease | None]:
        return single(tmp_path, start).try_acquire

    if slot_first:
        assert firsts(pool(tmp_path).try_acquire(), takes(START + 70)()) == [START, None]
    else:
        one, two, slot = takes(START + 70)(), takes(START + 71)(), pool(tmp_path).try_acquire()
        assert firsts(one, two, slot) == [START + 70, START + 71, START + SLOT_SIZE]


def test_a_slot_is_not_leased_while_a_process_has_any_of_its_ids(tmp_path: Path) -> None:
    told: list[str] = []
    stray = subprocess.Popen(["sleep", "60"], user=START + 4321)
    try:
        assert firsts(pool(tmp_path, on_busy=told.append).try_acquire()) == [START + SLOT_SIZE]
        assert str(stray.pid) in told[0]
    finally:
        stray.kill()
        stray.wait()


def test_somebodys_id_is_never_leased(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    somebody = pwd.struct_passwd(("eve", "x", START + 7, 1, "", "/", "/bin/sh"))
    monkeypatch.setattr(pwd, "getpwall", lambda: [somebody])
    text = f"auto-allocated UID {START + 7} clashes with existing user account 'eve'"
    with pytest.raises(ConfigError, match=text):
        pool(tmp_path).try_acquire()
    monkeypatch.undo()
    assert firsts(pool(tmp_path).try_acquire()) == [START]


def test_a_planted_link_as_lock_is_refused(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "machine").mkdir()
    os.symlink(victim, tmp_path / "machine" / f"block-{START // SLOT_SIZE}")
    with pytest.raises(Exception, match="can't open the user lock"):
        pool(tmp_path).try_acquire()
    assert victim.read_text() == "precious"


@pytest.mark.parametrize(
    ("start", "count"),
    [
        (0, SLOT_SIZE),
        (1000, SLOT_SIZE),
        (65535, SLOT_SIZE),
        (START, 0),
        (START, SLOT_SIZE + 1),
        ((1 << 32) - SLOT_SIZE, SLOT_SIZE),
    ],
)
def test_ids_that_are_not_for_builds_are_refused(tmp_path: Path, start: int, count: int) -> None:
    with pytest.raises(ConfigError):
        pool(tmp_path, start=start, count=count)


def test_who_has_no_slots_gives_one_id_a_build(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        single(tmp_path, START).try_acquire(SLOT_SIZE)
