"""Machines that can't start, or hang: the driver says why, kills them and shows their consoles.

What stands in here is a program in the place of qemu, which does nothing that a hanging guest of
the real one doesn't do.
"""

from __future__ import annotations

import os
import signal
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
from driver.run import end_in_order, run
end_in_order()
place = Path(os.environ["PLACE"])
if os.environ["GUEST"] == "silent-monitor":
    qemu._MONITOR_PATIENCE = 1.0
guest = Guest(name="machine", memory=64, processors=1, disks=(), kernel="oldest", options="")
test = Test(
    name="hangs", about="a guest that hangs", script=place / "script.py",
    minutes=float(os.environ["MINUTES"]), ci=False, guests=(guest,),
)
outcome = run(test, Image(place / "root.img", {"oldest": Kernel(place / "kernel")}))
print("OUTCOME", outcome.error)
"""
PATIENCE = 30.0


def start(place: Path, guest: str, minutes: float) -> subprocess.Popen[str]:
    """The driver, with one machine of this kind."""
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
        "MINUTES": str(minutes),
        "TMPDIR": str(place),
    }
    return subprocess.Popen(
        [sys.executable, "-c", RUN], env=environment, stdout=subprocess.PIPE, text=True
    )


def wait_for_qemu(place: Path) -> int:
    """Its process id, once it runs."""
    deadline = time.monotonic() + PATIENCE
    path = place / "pid"
    while not (path.exists() and path.read_text().endswith("\n")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return int(path.read_text())


def is_gone(pid: int) -> bool:
    """Whether a process ends within a moment."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


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
    begun = time.monotonic()
    driver = start(tmp_path, guest, 0.05)
    output, _ = driver.communicate(timeout=2 * PATIENCE)
    assert driver.returncode == 0
    assert time.monotonic() - begun < PATIENCE
    assert f"OUTCOME {complaint}\n" in output
    assert ("machine: booted in" in output) == (guest == "hangs-later")
    assert "the end of machine's console:" in output
    assert "machine| 'Kernel panic - not syncing: this guest hangs'" in output
    assert ("-frobnicate: no such option" in output) == (guest == "refuses")
    assert is_gone(wait_for_qemu(tmp_path))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_driver_that_is_ended_takes_its_machines_with_it(
    number: signal.Signals, tmp_path: Path
) -> None:
    driver = start(tmp_path, "hangs-at-boot", 10)
    try:
        pid = wait_for_qemu(tmp_path)
        driver.send_signal(number)
        driver.communicate(timeout=PATIENCE)
    finally:
        driver.kill()
    assert driver.returncode == (128 + number if number == signal.SIGTERM else -number)
    assert is_gone(pid)
    # Nor its disks, where there was time for that.
    assert bool(list(tmp_path.glob("vm-*"))) == (number == signal.SIGKILL)


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
