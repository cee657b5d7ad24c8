"""The probe in real builds: each system call is answered as the golden table of its kind says.

A call that no table names fails a test, and so does a line that no call stands for.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from executor.config import SandboxPath
from sandbox import Bind, Exec, Exited
from tests.build.conftest import Workshop, fixed
from tests.hostile.golden_files import CONVENTIONS, numbers, profile
from tests.hostile.probes import PROBES, answers, compile_probe
from tests.sandbox.conftest import Bench

pytestmark = pytest.mark.root

_SECONDS = 120
# sync(2) takes as long as the machine's disks need.
_NOT_ISSUED = {"x86-64": 162, "i386": 36}
# What the filter says to a call whose arguments are all -1, where it looks at them.
_NONSENSE = {
    **dict.fromkeys(("mode1", "mode2", "open1", "open2"), "EPERM"),
    "family": "EAFNOSUPPORT",
    "socketcall": "allow",
    "ioctl": "allow",
}


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The probe for 64 and for 32 bits."""
    directory = tmp_path_factory.mktemp("probe")
    return {bits: compile_probe(directory, bits) for bits in PROBES}


def differences(found: Mapping[tuple[str, str], str], name: str, bits: str) -> list[str]:
    """What a run of the probe and the golden table of a profile don't agree on."""
    conventions = CONVENTIONS if bits == "64" else ("i386",)
    expected = {}
    for call, line in profile(name).items():
        for convention, allowed in zip(CONVENTIONS, line.answers, strict=True):
            if convention in conventions and allowed:
                expected[call, convention] = allowed
    if bits == "32":
        # What goes through the C library has one column.
        library = {call: line for call, line in profile(name).items() if not any(line.answers[1:])}
        expected |= {(call, "i386"): line.answers[0] for call, line in library.items()}
    return [
        f"{call} {convention}: {found.get((call, convention), 'not tried')}, "
        f"expected {'|'.join(sorted(expected.get((call, convention), ['no such line'])))}"
        for call, convention in sorted(found.keys() | expected.keys())
        if found.get((call, convention)) not in expected.get((call, convention), ())
    ]


def run_inside(bench: Bench, program: Path, *words: str, **changes: object) -> list[str]:
    """The probe as the program of a sandbox."""
    binds = (
        Bind(source=b"/bin/busybox", target=b"/bin/sh"),
        Bind(source=os.fsencode(program), target=b"/bin/probe"),
    )
    argv = (b"probe", *(word.encode() for word in words))
    spec = bench.spec("", entry=Exec(b"/bin/probe"), argv=argv, binds=binds, **changes)
    finished = bench.run_spec(spec)
    assert isinstance(finished.exit, Exited), finished.output
    assert finished.exit.code == 0, finished.output
    return finished.output.splitlines()


@pytest.mark.parametrize("bits", PROBES)
@pytest.mark.parametrize("kind", ["ordinary", "fixed-output", "uid-range"])
def test_every_call_is_answered_as_the_table_says(
    workshop: Workshop, programs: dict[str, Path], kind: str, bits: str
) -> None:
    shown = SandboxPath(target="/bin/probe", source=str(programs[bits]), read_only=True)
    workshop.change(sandbox_paths=(*workshop.settings.sandbox_paths, shown))
    outputs = {"out": fixed(b"")} if kind == "fixed-output" else ("out",)
    env = {}
    if kind == "uid-range":
        features = frozenset({"auto-allocate-uids", "cgroups"})
        workshop.change(auto_allocate_uids=True, experimental_features=features)
        env = {"requiredSystemFeatures": "uid-range"}
    run = workshop.build(workshop.make("probe", "exec /bin/probe calls", outputs=outputs, env=env))
    assert run.result.success, (run.result.message, run.log)
    assert differences(answers(line.decode() for line in run.log), kind, bits) == []


@pytest.mark.parametrize("bits", PROBES)
@pytest.mark.parametrize(("machine", "kind"), [(None, "ordinary"), ("i686", "i686")])
def test_an_i686_build_has_the_sockets_of_its_c_library_and_nothing_else(
    bench: Bench, programs: dict[str, Path], machine: str | None, kind: str, bits: str
) -> None:
    """In roots of both makes: one for this sandbox alone, and one that was prepared."""
    found = answers(run_inside(bench, programs[bits], "calls", machine=machine))
    assert differences(found, kind, bits) == []


@pytest.mark.parametrize("convention", ["x86-64", "i386"])
def test_row_030_every_number_reaches_the_kernel_or_does_not(
    bench: Bench, programs: dict[str, Path], convention: str
) -> None:
    """In the real sandbox; what the kernel itself lacks is seen without a filter."""
    found = dict(line.split() for line in run_inside(bench, programs["64"], "sweep", convention))
    unfiltered = _sweep_without_filter(programs["64"], convention)
    wrong = []
    for entry in numbers(convention.replace("-", "_")):
        if entry.number == _NOT_ISSUED[convention]:
            continue
        answer, expected = found[str(entry.number)], _NONSENSE.get(entry.answer, entry.answer)
        missing = unfiltered[str(entry.number)] == "ENOSYS"
        allowed = answer != "ENOSYS" or missing
        if not (allowed if expected == "allow" else answer == expected):
            wrong.append((entry, answer))
    assert wrong == []


def test_row_032_no_number_of_x32_is_there(bench: Bench, programs: dict[str, Path]) -> None:
    found = [line.split()[1] for line in run_inside(bench, programs["64"], "sweep", "x32")]
    assert found == ["ENOSYS"] * 1001


def _sweep_without_filter(program: Path, convention: str) -> dict[str, str]:
    """Outside of a sandbox, but as nobody and in namespaces of its own."""
    spaces = ("--ipc", "--net", "--uts", "--mount", "--pid", "--fork", "--kill-child")
    nobody = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    # Nobody can enter the directory that the program lies in.
    with open(program, "rb") as file:
        reachable = f"/proc/self/fd/{file.fileno()}"
        done = subprocess.run(
            ["unshare", *spaces, *nobody, reachable, "sweep", convention],
            pass_fds=(file.fileno(),),
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=True,
        )
    return dict(line.split() for line in done.stdout.splitlines())


def test_a_difference_in_either_direction_is_found() -> None:
    table = profile("ordinary")
    found = {
        (call, convention): min(allowed)
        for call, line in table.items()
        for convention, allowed in zip(CONVENTIONS, line.answers, strict=True)
        if allowed
    }
    assert differences(found, "ordinary", "64") == []
    found["chmod_suid", "i386"] = "OK"
    del found["bpf", "x86-64"]
    found["unheard_of", "x32"] = "ENOSYS"
    assert differences(found, "ordinary", "64") == [
        "bpf x86-64: not tried, expected ENOSYS",
        "chmod_suid i386: OK, expected EPERM",
        "unheard_of x32: ENOSYS, expected no such line",
    ]
