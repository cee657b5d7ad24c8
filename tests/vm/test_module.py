"""The module for NixOS: what its options become is evaluated, and read by the executor itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from driver.catalogue import HOME, load

pytestmark = pytest.mark.nix

HERE = Path(__file__).parent
PROMISED = {
    *("enable", "package", "settings", "maxJobs", "replaceNixDaemon"),
    *("memoryMax", "buildMemoryMax", "fodNetwork", "fodNetworkRules"),
}
# What becomes a setting: a value for the option, the setting, and what that says then.
SETTINGS: dict[str, tuple[object, str, object]] = {
    "maxJobs": (3, "max-jobs", 3),
    "cores": (2, "cores", 2),
    "buildMemoryMax": ("8G", "build-memory-max", 8 << 30),
    "buildCpuMax": (3600, "build-cpu-max", 3600),
    "buildPidsMax": (4096, "build-pids-max", 4096),
    "buildDiskMax": ("50G", "build-disk-max", 50 << 30),
    "fodNetwork": ("none", "fod-network", "none"),
    "fodNetworkRules": (
        ["deny private", "allow any tcp 443"],
        "fod-network-rules",
        "deny private; allow any tcp 443",
    ),
}
# What doesn't: it decides about units and packages.
ELSEWHERE = {"enable", "package", "settings", "memoryMax", "replaceNixDaemon"}
GIVEN: dict[str, object] = {
    "trusted-users": ["@wheel", "alice"],
    "substitute": False,
    "experimental-features": ["nix-command", "ca-derivations"],
    "build-users-group": "builders",
    "build-limits": ["name:chromium-*", "memory=16G;", "feature:big-parallel", "pids=4096"],
    "min-free": 1 << 30,
    "log-lines": 50,
}


def library() -> str:
    """A path of nixpkgs' own, if ``NIX_PATH`` has one, else what stands in for it."""
    command = ["nix-instantiate", "--find-file", "nixpkgs/lib"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return found.stdout.strip() if found.returncode == 0 else str(HERE / "lib.nix")


def instantiate(options: Mapping[str, object]) -> subprocess.CompletedProcess[str]:
    command = ["nix-instantiate", "--eval", "--strict", "--json", str(HERE / "module.nix")]
    command += ["--arg", "lib", library(), "--argstr", "options", json.dumps(options)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def evaluated(**options: object) -> Any:
    result = instantiate({"enable": True, **options})
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def as_the_executor_reads(text: str, directory: Path) -> dict[str, Any]:
    """The settings by name; a complaint of any kind is an error."""
    (directory / "nix.conf").write_text(text)
    environment = {"PATH": os.environ["PATH"], "NIX_CONF_DIR": str(directory), "HOME": "/nowhere"}
    command = [sys.executable, "-m", "executor", "show-config", "--json"]
    result = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert (result.returncode, result.stderr) == (0, ""), text
    shown = json.loads(result.stdout)
    return {name: entry["value"] for name, entry in shown.items()}


def test_the_promised_options_are_there_and_each_is_tested_here() -> None:
    options = set(evaluated()["options"])
    assert options >= PROMISED
    assert options == SETTINGS.keys() | ELSEWHERE


def test_the_defaults_are_read_without_complaint(tmp_path: Path) -> None:
    made = evaluated()
    settings = as_the_executor_reads(made["conf"], tmp_path)
    assert settings["fod-network"] == "isolated"
    assert settings["build-users-group"] == "nixbld"
    assert settings["max-jobs"] == os.cpu_count()
    assert made["packages"] == ["/pkgs/executor"]
    # What isn't set is left to the executor's own defaults.
    assert "build-memory-max" not in made["conf"]
    assert "fod-network-rules" not in made["conf"]


@pytest.mark.parametrize("option", SETTINGS)
def test_each_option_is_the_setting_that_it_says(option: str, tmp_path: Path) -> None:
    value, name, meaning = SETTINGS[option]
    settings = as_the_executor_reads(evaluated(**{option: value})["conf"], tmp_path)
    assert settings[name] == meaning
    (tmp_path / "default").mkdir()
    assert as_the_executor_reads(evaluated()["conf"], tmp_path / "default")[name] != meaning


@pytest.mark.parametrize("choice", ["isolated", "host", "none"])
def test_each_network_of_the_module_is_one_of_the_executor(choice: str, tmp_path: Path) -> None:
    settings = as_the_executor_reads(evaluated(fodNetwork=choice)["conf"], tmp_path)
    assert settings["fod-network"] == choice


def test_free_settings_are_written_as_nix_conf_has_them(tmp_path: Path) -> None:
    settings = as_the_executor_reads(evaluated(settings=GIVEN)["conf"], tmp_path)
    assert {name: settings[name] for name in GIVEN} == {
        **GIVEN,
        "experimental-features": ["ca-derivations", "nix-command"],
        "build-limits": ["name:chromium-* memory=16G;", "feature:big-parallel pids=4096;"],
    }


def test_a_setting_that_nobody_knows_is_a_complaint(tmp_path: Path) -> None:
    conf = evaluated(settings={"max-jobz": 3})["conf"]
    with pytest.raises(AssertionError, match="unknown setting 'max-jobz'"):
        as_the_executor_reads(conf, tmp_path)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"maxJobs": "fast"}, "maxJobs' is not of type"),
        ({"maxJobs": -1}, "maxJobs' is not of type"),
        ({"fodNetwork": "sometimes"}, "fodNetwork' is not of type"),
        ({"fodNetworkRules": "deny any"}, "fodNetworkRules' is not of type"),
        ({"settings": {"substitute": {"deep": True}}}, "settings.substitute' is not of type"),
        ({"maxJob": 3}, "maxJob' does not exist"),
        # It has an option of its own, and only one of the two can be meant.
        ({"settings": {"fod-network": "host"}}, "fod-network' has conflicting definition"),
    ],
    ids=str,
)
def test_wrong_options_are_refused(options: dict[str, object], complaint: str) -> None:
    result = instantiate({"enable": True, **options})
    assert result.returncode != 0
    assert complaint in result.stderr


def test_nothing_happens_unless_it_is_enabled() -> None:
    made = evaluated(enable=False)
    assert (made["conf"], made["packages"], made["sockets"], made["services"]) == (None, [], {}, {})


def test_package_and_memory_are_the_units() -> None:
    made = evaluated(package="mine", memoryMax="80%")
    service = made["services"]["executor"]["serviceConfig"]
    assert service["ExecStart"] == "/pkgs/mine/bin/mine daemon"
    assert service["MemoryMax"] == "80%"
    assert made["packages"] == ["/pkgs/mine"]
    assert "MemoryMax" not in evaluated()["services"]["executor"]["serviceConfig"]


def test_it_listens_beside_nix_daemon_or_in_its_place() -> None:
    beside = evaluated()
    assert beside["sockets"]["executor"]["socketConfig"]["ListenStream"] == "/run/executor/socket"
    assert "enable" not in beside["services"].get("nix-daemon", {})
    instead = evaluated(replaceNixDaemon=True)
    listens = instead["sockets"]["executor"]["socketConfig"]["ListenStream"]
    assert listens == "/nix/var/nix/daemon-socket/socket"
    assert instead["sockets"]["nix-daemon"]["enable"] is False
    assert instead["services"]["nix-daemon"]["enable"] is False


def test_the_scripts_have_the_same_machines_on_nixos() -> None:
    stub = (
        "{ lib }: let pkgs = { inherit lib; testers.runNixOSTest = test: test;"
        " linuxPackages_6_1 = null; linuxPackages_latest = null; };"
        " in builtins.mapAttrs (name: test: builtins.attrNames test.nodes)"
        f" (import {HOME}/default.nix {{ inherit pkgs; }})"
    )
    command = ["nix-instantiate", "--eval", "--strict", "--json", "--expr", stub]
    command += ["--arg", "lib", f"import {library()}"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    known = {test.name: [guest.name for guest in test.guests] for test in load().values()}
    # These need a root file system that isn't NixOS's.
    del known["disk-full"], known["update"]
    assert json.loads(result.stdout) == known
