"""An executor that is killed again and again in the middle of a graph: the store stays sound."""

from __future__ import annotations

import os
import random
import signal
import stat
import subprocess
import time
from pathlib import Path

import pytest

from tests.build.conftest import Drv, Workshop
from tests.build.conftest import workshop as workshop

pytestmark = [pytest.mark.root, pytest.mark.nix]

SIZE = 50
KILLS = 30


def graph(workshop: Workshop) -> Drv:
    """Ten layers of five; everything depends on two of the layer below."""
    layer: list[Drv] = []
    for depth in range(SIZE // 5):
        layer = [
            workshop.make(
                f"node-{depth}-{number}",
                "mkdir $out; echo one > $out/a; echo two > $out/b; ln -s a $out/c",
                inputs=[layer[number], layer[(number + 1) % 5]] if layer else [],
            )
            for number in range(5)
        ]
    return workshop.make("top", "echo > $out", inputs=layer)


def kill(process: subprocess.Popen[str]) -> None:
    """The executor alone: its spawner and builders have to notice by themselves."""
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=20)


def test_thirty_kills_leave_a_store_that_is_sound_and_can_go_on(workshop: Workshop) -> None:
    top = graph(workshop)
    seed = int.from_bytes(os.urandom(4))
    chance = random.Random(seed)
    killed = 0
    for _ in range(KILLS):
        process = workshop.start_cli("build", "-j2", top.text)
        try:
            process.wait(chance.uniform(0.05, 0.5))
            break  # it was done before
        except subprocess.TimeoutExpired:
            killed += 1
        finally:
            kill(process)
    assert killed > 0, f"seed {seed}"
    time.sleep(0.2)
    done = workshop.cli("build", "-j2", top.text)
    assert done.returncode == 0, f"seed {seed}: {done.stderr}"
    verify = ["nix-store", "--store", str(workshop.root), "--verify", "--check-contents"]
    checked = subprocess.run(
        verify, env=workshop.environment(), capture_output=True, text=True, timeout=120, check=True
    )
    said = [line for line in checked.stderr.splitlines() if not line.startswith("warning: ")]
    assert [line for line in said if "..." not in line] == [], f"seed {seed}"
    # Whoever was killed between registering and cleaning up leaves its directory and its lock
    # files, as Nix does; a collection takes them. Nobody but root can use them.
    for name in workshop.leftovers():
        status = Path(workshop.location.real_store_dir, name).stat()
        mode = 0o600 if name.endswith(".lock") else 0o700
        assert name.endswith((".drv.chroot", ".lock")), f"seed {seed}: {name}"
        assert (status.st_uid, stat.S_IMODE(status.st_mode)) == (0, mode), f"seed {seed}: {name}"
