"""What a distribution ships: the units, the installation, and the module and package for NixOS."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
MODULE = ROOT / "nixos/module.nix"


@pytest.mark.nix
@pytest.mark.parametrize(
    "path",
    sorted([*ROOT.glob("nixos/*.nix"), *ROOT.glob("vm-tests/*.nix")]),
    ids=lambda path: path.name,
)
def test_nix_parses_it(path: Path) -> None:
    command = ["nix-instantiate", "--parse", str(path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr


def test_module_and_unit_are_the_same_service() -> None:
    unit = (ROOT / "systemd/executor.service.in").read_text()
    module = MODULE.read_text()
    for name in ("KillMode", "TimeoutStopSec", "Restart", "OOMPolicy", "LimitNOFILE", "UMask"):
        value = re.search(rf"^{name}=(.*)$", unit, re.M)
        assert value is not None, name
        assert re.search(rf'\b{name} = "?{value[1]}"?;', module), (name, value[1])
    bounding = re.search(r"^CapabilityBoundingSet=(.*)$", unit, re.M)
    assert bounding is not None
    assert bounding[1] in module


def test_systemd_knows_every_line_of_the_units(tmp_path: Path) -> None:
    for name in ("executor.socket", "executor.service"):
        text = (ROOT / f"systemd/{name}.in").read_text()
        text = text.replace("@executor@", "/bin/true").replace("@socket@", "/run/executor/socket")
        (tmp_path / name).write_text(text.replace("@documentation@", "man:executor(1)"))
    command = ["systemd-analyze", "verify", "--man=no", str(tmp_path / "executor.service")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    # systemd before 254 doesn't know DelegateSubgroup, and ignores it.
    told = [line for line in result.stderr.splitlines() if "executor" in line]
    assert [line for line in told if "DelegateSubgroup" not in line] == []


@pytest.mark.root
def test_installation_under_a_prefix(tmp_path: Path) -> None:
    source, wheels, destination = (tmp_path / name for name in ("source", "wheels", "destination"))
    # What a checkout is without what it made: links in the demo's store lead nowhere from here.
    ignored = shutil.ignore_patterns(".*", "build", "demo-store", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, source, ignore=ignored, symlinks=True)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    run = partial(subprocess.run, check=True, timeout=200, capture_output=True)
    run([*pip, "wheel", "-w", str(wheels), str(source)])
    install = [str(source / "scripts/install.sh"), "--destdir", str(destination)]
    base = {**os.environ, "PYTHON": getattr(sys, "_base_executable", sys.executable)}
    run([*install, "--wheels", str(wheels), "--replace-nix-daemon"], env=base)
    prefix = destination / "usr/local"
    shown = run([str(prefix / "lib/executor/bin/python"), "-m", "executor", "--help"], text=True)
    assert "build" in shown.stdout
    assert (prefix / "bin/executor").resolve() == prefix / "lib/executor/bin/executor"
    # Nothing names the place where it was only packed.
    first = (prefix / "lib/executor/bin/executor").read_text().splitlines()[0]
    assert first.startswith("#!/usr/local/lib/executor/bin/python")
    units = prefix / "lib/systemd/system"
    service = (units / "executor.service").read_text()
    assert "ExecStart=/usr/local/bin/executor daemon\n" in service
    assert "@" not in service + (units / "executor.socket").read_text()
    assert "/nix/var/nix/daemon-socket/socket" in (units / "executor.socket").read_text()
    conflict = (units / "executor.socket.d/replace-nix-daemon.conf").read_text()
    assert "Conflicts=nix-daemon.socket nix-daemon.service" in conflict
