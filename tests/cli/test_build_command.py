"""``executor build`` as people run it: targets, output, exit codes, JSON, logs, errors."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from signal import Signals
from typing import Any

import pytest

from executor.build.result import BuildResult, BuildStatus, exit_status
from executor.formats.store_path import StorePath
from tests.build.conftest import SYSTEM, Drv, Workshop, fixed
from tests.build.conftest import workshop as workshop

pytestmark = pytest.mark.root


def lines(*texts: str) -> str:
    return "".join(f"{text}\n" for text in texts)


def simple(script: str = "echo made > $out", **more: Any) -> dict[str, Any]:
    """A hand-written derivation."""
    return {
        "system": SYSTEM,
        "builder": "/bin/sh",
        "args": ["-c", script],
        "env": {"PATH": "/bin"},
        **more,
    }


@pytest.fixture
def several(workshop: Workshop) -> Drv:
    script = "echo > $out; echo > $dev; echo > $doc"
    return workshop.make("several", script, outputs=("out", "dev", "doc"))


def test_it_says_what_it_builds_and_prints_the_outputs(workshop: Workshop) -> None:
    base = workshop.make("base")
    top = workshop.make("top", inputs=[base])
    done = workshop.cli("build", top.text)
    assert done.returncode == 0
    assert done.stdout == lines(workshop.render(top.out))
    assert done.stderr == lines(
        "these 2 derivations will be built:",
        *sorted(f"  {drv.text}" for drv in (base, top)),
        f"building '{base.text}'...",
        f"building '{top.text}'...",
    )
    assert workshop.leftovers() == []


def test_a_second_run_says_that_all_is_valid(workshop: Workshop) -> None:
    drv = workshop.make("plain")
    first, second = workshop.cli("build", drv.text), workshop.cli("build", drv.text)
    assert second.returncode == 0
    assert second.stdout == first.stdout == lines(workshop.render(drv.out))
    assert second.stderr == lines("all outputs are already valid")


@pytest.mark.parametrize(
    ("suffix", "names"),
    [
        ("", ["dev", "doc", "out"]),
        ("^*", ["dev", "doc", "out"]),
        ("!*", ["dev", "doc", "out"]),
        ("^out", ["out"]),
        ("!out", ["out"]),
        ("^out,dev", ["dev", "out"]),
        ("!doc,dev", ["dev", "doc"]),
    ],
)
def test_outputs_are_chosen_behind_the_path(
    workshop: Workshop, several: Drv, suffix: str, names: list[str]
) -> None:
    for _ in range(2):  # built, and already valid
        done = workshop.cli("build", several.text + suffix)
        assert done.returncode == 0
        # By path, as nix-store --realise has them.
        expected = sorted(workshop.render(several.outputs[name]) for name in names)
        assert done.stdout.split() == expected


def test_a_real_path_of_the_store_is_understood(workshop: Workshop) -> None:
    drv = workshop.make("plain")
    done = workshop.cli("build", str(workshop.real(drv.path)))
    assert done.stdout == lines(workshop.render(drv.out))


def test_several_targets_are_printed_in_their_order(workshop: Workshop, several: Drv) -> None:
    drv = workshop.make("plain")
    done = workshop.cli("build", several.text + "^dev", drv.text, several.text + "^out", "-j2")
    paths = (several.outputs["dev"], drv.out, several.out)
    assert done.stdout == lines(*(workshop.render(path) for path in paths))


@pytest.mark.parametrize(
    ("target", "text"),
    [
        ("/nix/store", "path '/nix/store' is not in the store directory"),
        ("/elsewhere/x.drv", "/elsewhere/x.drv"),
        ("missing.json", "can't read 'missing.json': No such file or directory"),
        ("{drv}^", "names no outputs; write ^out, ^out,dev or ^*"),
        ("{drv}^out,", "names no outputs"),
        ("{drv}^lib", "does not have wanted outputs 'lib'"),
        ("{out}", "is not a derivation: give a .drv path of the store or a JSON file"),
        ("/nix/store/00000000000000000000000000000000-x.drv", "it is not in the store"),
    ],
)
def test_a_target_that_is_none_is_an_error_of_one_line(
    workshop: Workshop, target: str, text: str
) -> None:
    drv = workshop.make("plain")
    done = workshop.cli("build", target.format(drv=drv.text, out=workshop.render(drv.out)))
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert text in done.stderr


def test_a_hand_written_file_is_built(workshop: Workshop) -> None:
    """Keys refer to each other, sources lie beside the file, placeholders become paths."""
    (workshop.directory / "greeting").write_text("hello\n")
    file = workshop.json_file(
        {
            "base": simple("cat {{./greeting}} > $out", inputs={"srcs": ["./greeting"]}),
            "top": simple("cat {{base}} {{base}} > $out", inputs={"drvs": {"base": ["out"]}}),
            "apart": simple(),
        }
    )
    done = workshop.cli("build", str(file))
    assert done.returncode == 0, done.stderr
    top, apart = (Path(path).name for path in done.stdout.split())
    store = Path(workshop.location.real_store_dir)
    assert (store / top).read_text() == "hello\nhello\n"
    assert (store / apart).read_text() == "made\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "JSON"),
        ("[]", "the file's top level in the JSON is not an object"),
        ('{"derivations": {"a": {}}}', "no key 'system'"),
        ('{"version": 3, "derivations": {}}', "version 3 is not supported"),
    ],
)
def test_a_malformed_file_is_an_error_of_one_line(
    workshop: Workshop, text: str, message: str
) -> None:
    file = workshop.directory / "bad.json"
    file.write_text(text)
    done = workshop.cli("build", str(file))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith(f"error: '{file}': ")
    assert message in done.stderr


def test_derivations_in_a_circle_are_an_error(workshop: Workshop) -> None:
    inputs = [{"drvs": {"b": ["out"]}}, {"drvs": {"a": ["out"]}}]
    file = workshop.json_file({"a": simple(inputs=inputs[0]), "b": simple(inputs=inputs[1])})
    done = workshop.cli("build", str(file))
    assert done.returncode == 1
    assert "derivations depend on each other: " in done.stderr


FAILURES: list[tuple[str, dict[str, Any], list[str], int, str]] = [
    ("exit 3", {}, [], 100, "failed with exit code 3"),
    ("sleep 1000", {}, ["--timeout", "1"], 101, "timed out after 1 seconds"),
    ("sleep 1000", {}, ["--max-silent-time", "1"], 101, "seconds of silence"),
    ("echo other > $out", {"outputs": {"out": fixed(b"x")}}, [], 102, "hash mismatch in"),
    ("true", {}, [], 1, "failed to produce output path for output 'out'"),
    ("yes", {}, ["--max-build-log-size", "1000"], 1, "killed after writing more than 1000 bytes"),
    ("true", {"builder": b"/bin/missing"}, [], 100, "No such file or directory"),
]


@pytest.mark.parametrize(("script", "changes", "options", "code", "text"), FAILURES)
def test_the_exit_code_tells_how_it_failed(
    workshop: Workshop,
    script: str,
    changes: dict[str, Any],
    options: Sequence[str],
    code: int,
    text: str,
) -> None:
    drv = workshop.make("failing", script, **changes)
    done = workshop.cli("build", drv.text, *options)
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert text in done.stderr
    assert workshop.leftovers() == []


def test_another_system_is_refused_with_the_code_of_its_status(workshop: Workshop) -> None:
    drv = workshop.make("foreign", platform="vax-openbsd")
    done = workshop.cli("build", drv.text)
    refusal = BuildResult(drv_path=drv.path, status=BuildStatus.INPUT_REJECTED)
    assert done.returncode == exit_status([refusal])
    assert f"error: Cannot build '{drv.text}'.\n       Reason: platform mismatch\n" in done.stderr


def test_exit_codes_of_several_failures_are_joined(workshop: Workshop) -> None:
    drvs = [
        workshop.make("fails", "exit 1"),
        workshop.make("wrong", "echo > $out", outputs={"out": fixed(b"x")}),
        workshop.make("slow", "sleep 1000"),
    ]
    options = ["--keep-going", "--timeout", "1", "-j3"]
    done = workshop.cli("build", *(drv.text for drv in drvs), *options)
    assert done.returncode == 100 | 1 | 2


def test_a_failure_shows_the_last_25_lines_of_the_log(workshop: Workshop) -> None:
    drv = workshop.make("failing", "seq 40; exit 1")
    done = workshop.cli("build", drv.text)
    assert done.returncode == 100
    shown = [line for line in done.stderr.splitlines() if line.startswith("       > ")]
    assert shown == [f"       > {number}" for number in range(16, 41)]
    told = [line for line in done.stderr.splitlines() if line not in shown]
    assert told[-7:-2] == [
        f"error: Cannot build '{drv.text}'.",
        "       Reason: builder failed with exit code 1.",
        "       Output paths:",
        f"         {workshop.render(drv.out)}",
        "       Last 25 log lines:",
    ]
    command = f"executor log --store {workshop.root} {drv.text}"
    assert done.stderr.endswith(f"For full logs, run:\n         {command}\n")
    done = workshop.cli("build", drv.text, "--log-lines", "2")
    assert "Last 2 log lines:" in done.stderr


def test_keep_going_builds_what_can_be_built(workshop: Workshop) -> None:
    bad = workshop.make("bad", "exit 1")
    top = workshop.make("top", inputs=[bad])
    good = workshop.make("good", "sleep 0.3; echo > $out")
    done = workshop.cli("build", top.text, good.text, "-k", "-j2")
    assert done.returncode == 100
    assert done.stdout == lines(workshop.render(good.out))
    assert (
        f"error: Cannot build '{top.text}'.\n       Reason: 1 dependency failed.\n"
        f"       Failed:\n         {bad.text}\n       Output paths:\n"
        f"         {workshop.render(top.out)}\n"
    ) in done.stderr


def test_keep_failed_says_where_the_directory_is(workshop: Workshop) -> None:
    done = workshop.cli("build", workshop.make("bad", "echo x > file; exit 1").text, "-K")
    (note,) = [line for line in done.stderr.splitlines() if line.startswith("note: keeping")]
    directory = Path(note.split("'")[1])
    assert (directory / "file").read_text() == "x\n"
    assert directory.stat().st_uid == os.getuid()


def test_logs_are_shown_as_they_come_with_l(workshop: Workshop) -> None:
    script = r"echo plain; printf '\033[31mred\033[0m \033]0;evil\007\n'; echo > $out"
    done = workshop.cli("build", workshop.make("talker", script).text, "-L")
    assert "talker> plain\n" in done.stderr
    assert "talker> \x1b[31mred\x1b[0m \ufffd]0;evil\ufffd\n" in done.stderr


def test_without_l_the_log_is_not_shown(workshop: Workshop) -> None:
    done = workshop.cli("build", workshop.make("talker", "echo spoken; echo > $out").text)
    assert "spoken" not in done.stderr


def test_the_log_command_prints_the_bytes(workshop: Workshop) -> None:
    drv = workshop.make("talker", r"printf 'a\033[1mb\nend'; echo > $out")
    workshop.cli("build", drv.text)
    for path in (drv.text, workshop.render(drv.out)):
        done = workshop.cli("log", path)
        assert (done.returncode, done.stdout, done.stderr) == (0, "a\x1b[1mb\nend", "")


def test_the_log_of_a_failure_can_be_read_too(workshop: Workshop) -> None:
    drv = workshop.make("failing", "seq 100; exit 1")
    workshop.cli("build", drv.text)
    assert workshop.cli("log", drv.text).stdout.split() == [str(n) for n in range(1, 101)]


def test_a_log_that_is_not_there_is_an_error(workshop: Workshop) -> None:
    drv = workshop.make("never-built")
    done = workshop.cli("log", drv.text)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == lines(f"error: build log of '{drv.text}' is not available")


def record(done: Any) -> dict[str, Any]:
    (found,) = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


def test_the_json_record_of_a_success(workshop: Workshop, several: Drv) -> None:
    found = record(workshop.cli("build", several.text, "--json"))
    times = [found.pop(name) for name in ("startTime", "stopTime", "cpuUser", "cpuSystem")]
    assert 0 < times[0] <= times[1]
    assert times[2] >= 0
    assert times[3] >= 0
    assert Path(found.pop("logPath")).exists()
    # Counted where the machine has the controllers.
    for name in ("memoryPeak", "pidsPeak"):
        peak = found.pop(name)
        assert peak is None or peak > 0
    assert found == {
        "diskPeak": None,
        "limit": None,
        "network": None,
        "drvPath": several.text,
        "outputs": {name: workshop.render(path) for name, path in several.outputs.items()},
        "status": "Built",
        "success": True,
        "cause": None,
        "error": None,
        "exitCode": 0,
        "signal": None,
        "keptBuildDirectory": None,
    }


def test_the_json_record_of_a_failure(workshop: Workshop) -> None:
    drv = workshop.make("bad", "exit 7")
    done = workshop.cli("build", drv.text, "--json", "--keep-failed")
    assert done.returncode == 100
    found = record(done)
    assert {
        name: found[name] for name in ("status", "success", "cause", "exitCode", "outputs")
    } == {
        "status": "PermanentFailure",
        "success": False,
        "cause": "exit-code",
        "exitCode": 7,
        "outputs": {},
    }
    assert found["error"] == (
        f"Cannot build '{drv.text}'.\nReason: builder failed with exit code 7.\n"
        f"Output paths:\n  {workshop.render(drv.out)}"
    )
    assert Path(found["keptBuildDirectory"]).is_dir()


def test_the_json_record_of_what_is_valid(workshop: Workshop) -> None:
    drv = workshop.make("plain")
    workshop.cli("build", drv.text)
    found = record(workshop.cli("build", drv.text, "--json"))
    assert (found["status"], found["success"], found["startTime"]) == ("AlreadyValid", True, 0)
    assert found["outputs"] == {"out": workshop.render(drv.out)}


def test_a_dry_run_builds_nothing(workshop: Workshop) -> None:
    base = workshop.make("base")
    top = workshop.make("top", inputs=[base])
    done = workshop.cli("build", top.text, "--dry-run")
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == lines(
        "these 2 derivations will be built:", *sorted(f"  {drv.text}" for drv in (base, top))
    )
    assert not workshop.is_valid(base.out)


def test_each_target_has_roots_of_its_own(workshop: Workshop) -> None:
    """Named and numbered as ``nix-store --realise --add-root`` does."""
    first, second = workshop.make("first"), workshop.make("second")
    third = workshop.make("third", "echo > $dev", outputs=("dev",))
    link = workshop.directory / "root-link"
    workshop.cli("build", first.text, second.text, third.text, "--add-root", str(link))
    links = {path.name: path.readlink().name for path in workshop.directory.glob("root-link*")}
    assert links == {
        "root-link": first.out.base_name,
        "root-link-2": second.out.base_name,
        "root-link-3-dev": third.outputs["dev"].base_name,
    }


def test_a_root_keeps_each_output(workshop: Workshop, several: Drv) -> None:
    link = workshop.directory / "result"
    assert workshop.cli("build", several.text, "--add-root", str(link)).returncode == 0
    for name, path in several.outputs.items():
        target = os.readlink(link if name == "out" else f"{link}-{name}")
        assert Path(target).name == path.base_name


def test_quiet_says_nothing_but_errors(workshop: Workshop) -> None:
    quiet = ["--quiet"] * 3
    done = workshop.cli("build", workshop.make("plain").text, *quiet)
    assert (done.returncode, done.stderr) == (0, "")
    done = workshop.cli("build", workshop.make("bad", "exit 1").text, *quiet)
    assert done.stderr.startswith("error: ")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--timeout"], "option '--timeout' needs a value"),
        (["--timeout", "soon"], "'soon' is not a number"),
        (["--option", "sandbox", "false"], "would weaken the sandbox"),
        (["--no-sandbox"], "would weaken the sandbox"),
    ],
)
def test_an_option_that_makes_no_sense_is_an_error(
    workshop: Workshop, options: list[str], text: str
) -> None:
    done = workshop.cli("build", workshop.make("plain").text, *options)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert text in done.stderr


def test_a_weak_configuration_is_ignored_with_a_warning(workshop: Workshop) -> None:
    drv = workshop.make("plain", "busybox id > $out")
    workshop.environment()
    (workshop.directory / "conf/nix.conf").write_text("sandbox = false\n")
    done = workshop.cli("build", drv.text)
    assert done.returncode == 0
    assert done.stderr.startswith("warning: setting 'sandbox = false' would weaken the sandbox")
    assert "uid=1000(nixbld)" in workshop.real(drv.out).read_text()


# Another user, who may read the interpreter and the code wherever they are installed.
READ = "+dac_read_search"
NOBODY = [
    *("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"),
    *(f"--inh-caps={READ}", f"--ambient-caps={READ}"),
]


def test_somebody_else_than_root_gets_a_clear_error(workshop: Workshop) -> None:
    done = subprocess.run(
        [*NOBODY, *workshop.command("build", workshop.make("plain").text)],
        env=workshop.environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == lines(
        "error: building needs root: namespaces, mounts and build users; try sudo"
    )


def test_output_that_can_not_be_written_is_an_error(workshop: Workshop, several: Drv) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            workshop.command("build", several.text),
            env=workshop.environment(),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=60,
        )
    assert done.returncode == 1
    assert done.stderr.endswith("error: No space left on device\n")


def test_a_reader_that_goes_away_is_no_crash(workshop: Workshop, several: Drv) -> None:
    process = workshop.start_cli("build", several.text)
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    said = process.stderr.read()
    process.stderr.close()
    assert process.wait(30) == 1
    assert said.endswith(f"building '{several.text}'...\n")


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("number", [Signals.SIGINT, Signals.SIGTERM, Signals.SIGHUP])
def test_a_signal_ends_the_build_and_leaves_nothing(
    workshop: Workshop, number: Signals, times: int
) -> None:
    drv = workshop.make("sleeper", "echo asleep; sleep 100")
    process = subprocess.Popen(
        workshop.command("build", "-L", drv.text),
        env=workshop.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stderr is not None
        while "asleep" not in (line := process.stderr.readline()):
            assert line, "the builder was not heard of"
        # More of them, while it cleans up, must not make it worse.
        for _ in range(times):
            process.send_signal(number)
            time.sleep(0.002)
        _, shown = process.communicate(timeout=20)
    assert process.returncode == 128 + number
    assert shown.startswith("error: ")
    assert shown.count("\n") == 1
    assert workshop.leftovers() == []


def test_a_dry_run_lists_what_nobody_has_and_plans_the_rest(workshop: Workshop) -> None:
    """As Nix does: it isn't an error until something is to be built."""
    source = workshop.source("lost", b"text")
    needy = workshop.make("needy", sources=[source])
    with closing(sqlite3.connect(workshop.database)) as database, database:
        database.execute("delete from Refs where reference in (select id from ValidPaths)")
        database.execute("delete from ValidPaths where path = ?", (workshop.render(source),))
    gone = workshop.render(StorePath("1" * 32, "gone.drv"))
    good = workshop.make("good")
    done = workshop.cli("build", gone, good.text, needy.text, "--dry-run")
    assert done.returncode == 0
    assert done.stderr == (
        "these 2 derivations will be built:\n"
        f"  {min(needy.text, good.text)}\n  {max(needy.text, good.text)}\n"
        "don't know how to build these paths:\n"
        + lines(*sorted(f"  {path}" for path in (workshop.render(source), gone)))
    )
    done = workshop.cli("build", gone)
    assert done.returncode == 1
    assert f"error: don't know how to build '{gone}': it is not in the store\n" in done.stderr
