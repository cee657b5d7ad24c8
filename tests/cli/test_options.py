"""Options that every command takes: settings, the store, verbosity."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from executor.cli.options import Invocation, add_common, extract_settings, open_invocation
from executor.errors import ConfigError, UsageError


@pytest.mark.parametrize(
    ("words", "rest", "found"),
    [
        pytest.param([], [], [], id="nothing"),
        pytest.param(["x", "-v"], ["x", "-v"], [], id="no settings"),
        pytest.param(["--cores", "4"], [], [("cores", "4")], id="setting"),
        pytest.param(["a", "--cores", "4", "b"], ["a", "b"], [("cores", "4")], id="in between"),
        pytest.param(["--option", "cores", "4"], [], [("cores", "4")], id="by --option"),
        pytest.param(["--option", "x", "--y"], [], [("x", "--y")], id="any name by --option"),
        pytest.param(["--keep-going"], [], [("keep-going", "true")], id="Boolean"),
        pytest.param(["--no-keep-going"], [], [("keep-going", "false")], id="Boolean, negated"),
        pytest.param(["--keep-going", "x"], ["x"], [("keep-going", "true")], id="takes no value"),
        pytest.param(["-k"], [], [("keep-going", "true")], id="-k"),
        pytest.param(["-K"], [], [("keep-failed", "true")], id="-K"),
        pytest.param(["-j", "4"], [], [("max-jobs", "4")], id="-j"),
        pytest.param(["-j", "auto"], [], [("max-jobs", "auto")], id="-j auto"),
        pytest.param(["-j4"], [], [("max-jobs", "4")], id="-j4"),
        pytest.param(["--build-cores", "4"], [], [("build-cores", "4")], id="old name"),
        pytest.param(
            ["--extra-system-features", "a b"], [], [("extra-system-features", "a b")], id="extra"
        ),
        pytest.param(["--no-sandbox"], [], [("sandbox", "false")], id="weakening"),
        pytest.param(["--sandbox"], [], [("sandbox", "true")], id="harmless"),
        pytest.param(
            ["--cores", "1", "--option", "cores", "2", "--cores", "3"],
            [],
            [("cores", "1"), ("cores", "2"), ("cores", "3")],
            id="in their order",
        ),
        pytest.param(["--", "--cores", "4"], ["--", "--cores", "4"], [], id="behind two dashes"),
        pytest.param(
            ["--no-cores", "--nonsense", "-x", "-J4", "-jx"],
            ["--no-cores", "--nonsense", "-x", "-J4", "-jx"],
            [],
            id="unknown words",
        ),
    ],
)
def test_settings_are_taken_off_the_command_line(
    words: list[str], rest: list[str], found: list[tuple[str, str]]
) -> None:
    assert extract_settings(words) == (rest, found)


@pytest.mark.parametrize(
    "words", [["--cores"], ["-j"], ["--option"], ["--option", "cores"], ["--build-dir"]]
)
def test_an_option_without_its_value_is_refused(words: list[str]) -> None:
    with pytest.raises(UsageError, match=rf"^option '{words[0]}' needs a value$"):
        extract_settings(words)


@pytest.fixture
def clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An environment without any configuration."""
    for name in ("NIX_REMOTE", "NIX_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NIX_CONF_DIR", str(tmp_path))
    monkeypatch.setenv("NIX_USER_CONF_FILES", "")
    return tmp_path


def invoke(*words: str) -> Invocation:
    parser = argparse.ArgumentParser()
    add_common(parser)
    rest, overrides = extract_settings(words)
    return open_invocation(parser.parse_args(rest), overrides)


def test_the_store_comes_from_the_option_or_the_environment(
    clean: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert invoke().location.real_store_dir == "/nix/store"
    monkeypatch.setenv("NIX_REMOTE", f"{clean}/a")
    assert invoke().location.real_store_dir == f"{clean}/a/nix/store"
    assert invoke("--store", f"{clean}/b").location.real_store_dir == f"{clean}/b/nix/store"
    assert invoke("--store", "local").location.real_store_dir == "/nix/store"
    monkeypatch.setenv("NIX_REMOTE", "")
    assert invoke().location.real_store_dir == "/nix/store"


def test_options_win_over_files(clean: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (clean / "nix.conf").write_text("cores = 1\ntimeout = 1\n")
    monkeypatch.setenv("NIX_CONFIG", "timeout = 2")
    settings = invoke("-j3", "--timeout", "3", "--no-keep-build-log").settings
    assert (settings.cores, settings.timeout, settings.max_jobs) == (1, 3, 3)
    assert not settings.keep_build_log


@pytest.mark.parametrize(
    ("words", "verbosity"),
    [([], 3), (["-v"], 4), (["-vv", "--verbose"], 6), (["--quiet"], 2), (["--quiet", "-v"], 3)],
)
@pytest.mark.usefixtures("clean")
def test_verbosity_starts_at_that_of_nix(words: list[str], verbosity: int) -> None:
    assert invoke(*words).verbosity == verbosity


def test_warnings_are_printed_unless_quiet(clean: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (clean / "nix.conf").write_text("colour = red\nsandbox = false\n")
    invoke("--store", f"{clean}?colour=red")
    assert capsys.readouterr().err.splitlines() == [
        "warning: unknown setting 'colour'",
        "warning: setting 'sandbox = false' would weaken the sandbox, which the executor never "
        "does; it is ignored",
        "warning: unknown setting 'colour'",
    ]
    invoke("--quiet", "--quiet", "--quiet")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "words",
    [
        ["--no-sandbox"],
        ["--sandbox-fallback"],
        ["--no-filter-syscalls"],
        ["--allow-new-privileges"],
        ["--option", "sandbox", "relaxed"],
        ["--option", "build-use-chroot", "false"],
    ],
)
@pytest.mark.usefixtures("clean")
def test_the_sandbox_can_t_be_weakened(words: list[str]) -> None:
    with pytest.raises(ConfigError, match="would weaken the sandbox"):
        invoke(*words)
