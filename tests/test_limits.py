"""Limits of one build: how they are written, and which of them hold for a derivation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from executor.config import load_settings
from executor.errors import ConfigError
from executor.host import Host
from executor.limits import (
    BuildLimits,
    Exceeded,
    Limit,
    Resource,
    build_limits,
    parse_limit,
    parse_limit_rules,
)
from executor.settings import Settings

HOST = Host(system="x86_64-linux", extra_platforms=frozenset(), features=frozenset(), shell="",
            certificates="")  # fmt: skip
RULES = "name:chromium-* memory=16G cpu=none; feature:big-parallel pids=4096; name:*-1 disk=1K"
BASE = [(Resource.MEMORY, 1 << 30), (Resource.CPU, 3600), (Resource.PIDS, 0)]


def settings(tmp_path: Path, text: str) -> Settings:
    (tmp_path / "nix.conf").write_text(text)
    environ = {"NIX_CONF_DIR": str(tmp_path), "NIX_USER_CONF_FILES": ""}
    loaded = load_settings(environ=environ, host=HOST)
    assert loaded.warnings == ()
    return loaded.settings


def values(name: str, *features: str, rules: str = RULES) -> dict[str, int]:
    limits = build_limits(BASE, parse_limit_rules(rules), name, features)
    return {each.value: limits.value(each) for each in Resource if limits[each]}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0),
        ("none", 0),
        ("7", 7),
        ("2K", 2048),
        ("2k", 2048),
        ("3M", 3 << 20),
        ("4G", 4 << 30),
        ("1T", 1 << 40),
    ],
)
def test_limits_are_numbers_with_a_unit_or_none(text: str, value: int) -> None:
    assert parse_limit(text) == value


@pytest.mark.parametrize(
    "text", ["", "-1", "1.5", "K", "1KB", "1 K", "²", "nothing", "1" * 19, "0x10", "1P"]
)
def test_other_limits_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a limit"):
        parse_limit(text)


@pytest.mark.parametrize(
    ("name", "features", "expected"),
    [
        ("hello", [], {"memory": 1 << 30, "cpu": 3600}),
        ("chromium-120", [], {"memory": 16 << 30}),
        ("Chromium-120", [], {"memory": 1 << 30, "cpu": 3600}),
        ("x", ["big-parallel", "kvm"], {"memory": 1 << 30, "cpu": 3600, "pids": 4096}),
        ("chromium-1", ["big-parallel"], {"memory": 16 << 30, "pids": 4096, "disk": 1024}),
    ],
)
def test_rules_hold_for_names_and_features(
    name: str, features: list[str], expected: dict[str, int]
) -> None:
    assert values(name, *features) == expected


def test_the_last_rule_that_holds_decides_and_conditions_add_up() -> None:
    rules = "name:* memory=1; name:a* feature:f memory=2; name:a* pids=5"
    assert values("ab", "f", rules=rules) == {"memory": 2, "cpu": 3600, "pids": 5}
    assert values("ab", rules=rules) == {"memory": 1, "cpu": 3600, "pids": 5}
    assert values("b", "f", rules=rules) == {"memory": 1, "cpu": 3600}


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("memory=1G", "has no condition"),
        ("name:x", "limits nothing"),
        ("name:x memory", "neither a condition"),
        ("name: memory=1", "neither a condition"),
        ("name:x size=1", "neither a condition"),
        ("os:x memory=1", "neither a condition"),
        ("name:x memory=much", "'much' is not a limit"),
        ("name:x memory=1 memory=2", "limits 'memory' twice"),
    ],
)
def test_malformed_rules_say_what_is_wrong(tmp_path: Path, rule: str, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"nix.conf:2: setting 'build-limits': .*{message}"):
        settings(tmp_path, f"cores = 1\nbuild-limits = {rule}")


def test_settings_are_read_from_the_configuration(tmp_path: Path) -> None:
    text = """build-memory-max = 2G
build-cpu-max = 100
build-pids-max = none
build-limits = name:a memory=1
extra-build-limits = name:b memory=2;
build-limits-mode = best-effort
"""
    found = settings(tmp_path, text)
    assert (found.build_memory_max, found.build_cpu_max, found.build_pids_max) == (2 << 30, 100, 0)
    assert [str(rule) for rule in found.build_limits] == ["name:a memory=1", "name:b memory=2"]
    assert found.build_limits_mode == "best-effort"


def test_an_unknown_mode_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'often' is not one of enforce, best-effort"):
        settings(tmp_path, "build-limits-mode = often")


def test_what_is_shown_can_be_read_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from executor.cli.main import main

    option = ["--option", "build-limits", RULES]
    assert main(["show-config", *option]) == 0
    line = next(
        line for line in capsys.readouterr().out.splitlines() if line.startswith("build-limits =")
    )
    again = settings(tmp_path, line)
    assert again.build_limits == parse_limit_rules(RULES)
    assert main(["show-config", "--json", *option]) == 0
    shown = json.loads(capsys.readouterr().out)["build-limits"]["value"]
    assert shown == [f"{rule};" for rule in parse_limit_rules(RULES)]


def test_build_limits_nothing_are_none() -> None:
    assert not BuildLimits([Limit(resource=Resource.CPU, value=0, setting="build-cpu-max")])


def test_the_reason_names_limit_peak_and_setting() -> None:
    limit = build_limits([], parse_limit_rules("name:* disk=1K"), "x", ())[Resource.DISK]
    assert limit is not None
    assert Exceeded(limit=limit, peak=2000).reason == (
        "its limit of disk space (bytes): it used 2000, and build-limits 'name:* disk=1K' allows "
        "1024"
    )
