"""What the kernel counts by users: a build can't take it from anybody else (row 164)."""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
from pathlib import Path

import pytest

from executor.build.id_slots import SLOT_SIZE
from tests.build.conftest import Workshop
from tests.hostile.host import BUILD_IDS
from tests.hostile.inside import Waiting, answers, pause, waiting

pytestmark = pytest.mark.root

_GET_OWNER = 0xB704  # NS_GET_OWNER_UID of linux/nsfs.h
_NOBODYS = 1 << 31


def owner_of(found: Waiting) -> int:
    """The user whose the user namespace of a builder is."""
    with open(f"/proc/{found.pid}/ns/user", "rb") as namespace:
        return int(struct.unpack("I", fcntl.ioctl(namespace, _GET_OWNER, bytes(4)))[0])


def taken(workshop: Workshop, attack: Path, *, env: dict[str, str]) -> dict[str, str]:
    """What root of the host gets while a build has all that it can have."""
    seconds = pause()[1].split("\0")[1]
    drv = workshop.make("greedy", f"attack counters 99999999 {seconds} || echo > $out", env=env)
    # Keeping its process id, the attacker becomes a program that waits, with all that it has.
    with waiting(workshop, drv, f"sleep\0{seconds}\0") as found:
        done = subprocess.run(
            [attack, "counters", "1"], capture_output=True, text=True, check=True, timeout=30
        )
        assert owner_of(found) == _NOBODYS + found.uid
    assert found.run is not None
    assert found.run.result.success
    inside = answers([line.decode() for line in found.run.log[:3]])
    assert inside == {"inotify": "EMFILE", "queues": "EMFILE", "signals": "EAGAIN"}
    return answers(done.stdout.splitlines())


def test_row_164_a_build_takes_nothing_that_root_is_allowed(
    workshop: Workshop, attack: Path
) -> None:
    """Counted are a user namespace's things for its owner, too: that is nobody else."""
    found = taken(workshop, attack, env={})
    assert found == dict.fromkeys(("inotify", "queues", "signals"), "OK")


def test_row_164_nor_does_a_build_with_a_range_of_ids(workshop: Workshop, attack: Path) -> None:
    workshop.change(
        auto_allocate_uids=True, experimental_features=frozenset({"auto-allocate-uids", "cgroups"})
    )
    found = taken(workshop, attack, env={"requiredSystemFeatures": "uid-range"})
    assert found == dict.fromkeys(("inotify", "queues", "signals"), "OK")


def test_row_164_an_owner_is_no_account_and_no_build_id() -> None:
    """Not of the ids that builds may have, nor of what containers and accounts are given."""
    assert BUILD_IDS + 128 * SLOT_SIZE < _NOBODYS
    accounts = Path("/etc/passwd").read_text().splitlines()
    assert all(int(line.split(":")[2]) < _NOBODYS for line in accounts)
    assert os.getuid() == 0
