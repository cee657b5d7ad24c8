"""With ``--log-format internal-json`` a reader gets nothing but Nix's lines, whatever happens."""

from __future__ import annotations

import json
import signal
from typing import Any

import pytest

from executor.cli.parser import wants_json
from tests.build.conftest import FOREVER, Workshop
from tests.build.conftest import workshop as workshop

FORMAT = ("--log-format", "internal-json")
RED, MAGENTA, END = "\x1b[31;1m", "\x1b[35;1m", "\x1b[0m"


def objects(text: str) -> list[dict[str, Any]]:
    lines = text.splitlines()
    assert [line for line in lines if not line.startswith("@nix ")] == []
    return [json.loads(line.removeprefix("@nix ")) for line in lines]


def messages(text: str) -> list[tuple[int, str]]:
    return [(each["level"], each["msg"]) for each in objects(text) if each["action"] == "msg"]


def the_error(text: str) -> str:
    """The one error, which is the last thing said."""
    errors = [each for each in objects(text) if each.get("level") == 0 and "msg" in each]
    assert errors == objects(text)[-1:]
    (error,) = errors
    assert error["msg"].startswith(f"{RED}error:{END} ")
    assert set(error) == {"action", "column", "file", "level", "line", "msg", "raw_msg"}
    return str(error["raw_msg"])


@pytest.mark.root
def test_warnings_of_settings(workshop: Workshop) -> None:
    drv = workshop.make("made")
    done = workshop.cli("build", drv.text, "--option", "no-such-setting", "1", *FORMAT)
    assert done.returncode == 0
    first = messages(done.stderr)[0]
    assert first == (1, f"{MAGENTA}warning:{END} unknown setting 'no-such-setting'")


@pytest.mark.root
def test_what_is_valid_already(workshop: Workshop) -> None:
    drv = workshop.make("made")
    assert workshop.cli("build", drv.text).returncode == 0
    done = workshop.cli("build", drv.text, *FORMAT)
    assert messages(done.stderr) == [(2, "all outputs are already valid")]


@pytest.mark.root
def test_a_dry_run(workshop: Workshop) -> None:
    drv = workshop.make("made")
    done = workshop.cli("build", drv.text, "--dry-run", *FORMAT)
    assert messages(done.stderr) == [(3, "this derivation will be built:"), (3, f"  {drv.text}")]


@pytest.mark.root
@pytest.mark.parametrize("words", [("--log-format=internal-json",), ("--log-form", FORMAT[1])])
def test_a_target_that_is_none(workshop: Workshop, words: tuple[str, ...]) -> None:
    done = workshop.cli("build", "/nowhere/x.drv", *words)
    assert done.returncode == 1
    assert "/nowhere/x.drv" in the_error(done.stderr)


@pytest.mark.parametrize("words", [("--bogus", "x.drv"), ("--option", "cores"), ()])
def test_a_wrong_use(workshop: Workshop, words: tuple[str, ...]) -> None:
    done = workshop.cli("build", *FORMAT, *words)
    assert done.returncode in (1, 2)
    assert the_error(done.stderr)


@pytest.mark.root
def test_a_failed_build(workshop: Workshop) -> None:
    drv = workshop.make("broken", "echo one; echo two; exit 3")
    done = workshop.cli("build", drv.text, *FORMAT)
    assert done.returncode == 100
    error = the_error("".join(done.stderr.splitlines(keepends=True)[:-4]))
    # Readers have had the log; as in Nix the error doesn't repeat it.
    assert error == (
        f"Cannot build '{drv.text}'.\nReason: builder failed with exit code 3.\n"
        f"Output paths:\n  {workshop.render(drv.out)}"
    )


@pytest.mark.root
def test_the_end_by_the_user(workshop: Workshop) -> None:
    drv = workshop.make("slow", f"echo started; {FOREVER}")
    with workshop.start_cli("build", drv.text, *FORMAT) as run:
        assert run.stderr is not None
        told = ""
        for line in run.stderr:
            told += line
            if '"started"' in line:
                run.send_signal(signal.SIGINT)
        assert run.wait(30) == 130
    assert the_error(told).startswith("interrupted by the user")
    (build,) = (each["id"] for each in objects(told) if each.get("type") == 105 and "text" in each)
    assert {"action": "stop", "id": build} in objects(told)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("build x --log-format internal-json", True),
        ("build x --log-format=internal-json", True),
        ("build x --log-f internal-json", True),
        ("build x --log-format raw", False),
        ("build x --log-format", False),
        ("build x --log-lines internal-json", False),
        ("build -- --log-format internal-json", False),
        ("build x", False),
    ],
)
def test_the_format_is_known_early(line: str, expected: bool) -> None:
    assert wants_json(line.split()) is expected
