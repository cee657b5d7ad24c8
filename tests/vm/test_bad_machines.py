"""Machines that can't start, or hang: the driver says why, kills them and shows their consoles.

What stands in here is a program in the place of qemu, which does nothing that a hanging guest of
the real one doesn't do.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from driver.catalogue import HOME

# Its monitor is a descriptor that it inherits; what the guest says on its console is its output.
QEMU = r"""#!/bin/bash
# Asked whether there is KVM: there is not.
case "$*" in *isa-debug-exit*) exit 0 ;; esac
echo $$ > "$PLACE/pid"
for word in "$@"; do
    case $word in
        socket,id=monitor,fd=*) monitor=${word##*=} ;;
        socket,id=shell,fd=*) shell=${word##*=} ;;
    esac
done
echo 'Kernel panic - not syncing: this guest hangs'
case $GUEST in
    silent-monitor) exec sleep 600 ;;
    refuses) echo 'qemu: -frobnicate: no such option'; exit 1 ;;
esac
echo '{"QMP": {}}' >&"$monitor"
read -r _ <&"$monitor"
echo '{"return": {}}' >&"$monitor"
[ "$GUEST" != hangs-later ] || echo 'Spawning backdoor root shell...' >&"$shell"
exec sleep 600
"""
QEMU_IMG = '#!/bin/sh\nfor last; do :; done\n[ "${last%M}" = "$last" ] || exit 0\n: > "$last"\n'
# One test with one machine, whose time is over soon, and without the image that it never reads.
RUN = """
import os, sys
from pathlib import Path
from driver import qemu
from driver.catalogue import Guest, Test
from driver.image import Image
from driver.kernels import Kernel
from driver.run import run
place = Path(os.environ["PLACE"])
if os.environ["GUEST"] == "silent-monitor":
    qemu._MONITOR_PATIENCE = 1.0
guest = Guest(name="machine", memory=64, processors=1, disks=(), kernel="oldest", options="")
test = Test(
    name="hangs", about="a guest that hangs", script=place / "script.py", minutes=0.05, ci=False,
    guests=(guest,),
)
outcome = run(test, Image(place / "root.img", {"oldest": Kernel(place / "kernel")}))
print("OUTCOME", outcome.error)
"""
PATIENCE = 30.0


def drive(place: Path, guest: str) -> tuple[str, int | None]:
    """What the driver prints of a machine of this kind, and qemu's process id, if it started."""
    programs = place / "programs"
    programs.mkdir()
    for name, text in (("qemu-system-x86_64", QEMU), ("qemu-img", QEMU_IMG)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    (place / "script.py").write_text('start_all()\nmachine.succeed("true")\n')
    environment = {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "PYTHONPATH": str(HOME),
        "PLACE": str(place),
        "GUEST": guest,
    }
    begun = time.monotonic()
    result = subprocess.run(
        [sys.executable, "-c", RUN],
        env=environment,
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert time.monotonic() - begun < PATIENCE
    pid = place / "pid"
    return result.stdout, int(pid.read_text()) if pid.exists() else None


@pytest.mark.parametrize(
    ("guest", "complaint"),
    [
        ("hangs-at-boot", "not finished within 0.05 minutes"),
        ("hangs-later", "not finished within 0.05 minutes"),
        ("silent-monitor", "machine: qemu's monitor is silent: timed out (line 1 of script.py)"),
        ("refuses", "machine: qemu ended (1) (line 1 of script.py)"),
    ],
)
def test_a_guest_that_hangs_is_killed_and_its_console_shown(
    guest: str, complaint: str, tmp_path: Path
) -> None:
    output, pid = drive(tmp_path, guest)
    assert f"OUTCOME {complaint}\n" in output
    assert ("machine: booted in" in output) == (guest == "hangs-later")
    assert "the end of machine's console:" in output
    assert "machine| 'Kernel panic - not syncing: this guest hangs'" in output
    assert ("-frobnicate: no such option" in output) == (guest == "refuses")
    assert pid is not None
    assert not Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize(
    ("missing", "package"),
    [
        ("qemu-system-x86_64", "qemu-system-x86"),
        ("qemu-img", "qemu-utils"),
        ("debootstrap", "debootstrap"),
    ],
)
def test_a_missing_tool_is_named_and_how_to_get_it(
    missing: str, package: str, tmp_path: Path
) -> None:
    for name in ("qemu-system-x86_64", "qemu-img", "debootstrap", "mkfs.ext4", "unshare", "gcc"):
        if name != missing:
            (tmp_path / name).symlink_to("/bin/true")
    result = subprocess.run(
        [sys.executable, "-m", "driver", "--cache", str(tmp_path / "cache"), "boot"],
        env={"PATH": str(tmp_path), "PYTHONPATH": str(HOME)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert result.returncode == 2
    assert result.stderr == (
        f"vm-tests: '{missing}' is not installed; on Debian: apt-get install {package}\n"
    )
    assert not (tmp_path / "cache").exists()
