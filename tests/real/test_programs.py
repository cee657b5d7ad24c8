"""Programs that others wrote, built from their published sources in the executor's sandbox.

The toolchain is the host's, shown read-only; everything else is as in any build. Hello, zlib and
Lua stand alone, libpng is linked with zlib, and a last derivation uses all four.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.real.sources import fetch

pytestmark = [pytest.mark.root, pytest.mark.nix, pytest.mark.timeout(900)]

_PROGRAMS = Path(__file__).parent / "programs"
_PACKAGES = ("hello", "zlib", "libpng1.6", "lua5.4")
# Where a merged /usr is, all but the first are links; what they lead to is shown.
_TOOLCHAIN = " ".join(f"{path}={path}:ro" for path in ("/usr", "/bin", "/lib", "/lib64"))
# Nothing of the machine's configuration is read.
_SETTINGS = """\
sandbox = true
substituters =
build-users-group =
max-jobs = 2
cores = 2
"""
_BUILD_SECONDS = 600
_SECONDS = 120


@dataclass(frozen=True, slots=True)
class Programs:
    """All programs, built once in the store below ``root``. ``outputs`` are store paths by name."""

    root: Path
    file: Path
    environment: dict[str, str]
    records: list[dict[str, Any]]
    log: str
    outputs: dict[str, str]

    def executor(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command of the executor that must succeed."""
        return _executor(self.root, self.environment, *words)

    def nix_store(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run stock Nix on the same store; it must succeed."""
        command = ["nix-store", "--store", str(self.root), *words]
        return _run(command, self.environment | {"NIX_REMOTE": "local"}, _SECONDS)

    def real(self, name: str) -> Path:
        """Where a program lies on disk."""
        return self.root / self.outputs[name].lstrip("/")


def _executor(
    root: Path, environment: dict[str, str], name: str, *words: str
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "executor", name, "--store", str(root), *words]
    return _run(command, environment, _BUILD_SECONDS)


def _run(
    command: list[str], environment: dict[str, str], seconds: int
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=seconds, check=False
    )
    assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stderr[-8000:]}"
    return done


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Programs:
    """Fetch the sources, add them to a new store, and build everything."""
    archives = fetch(_PACKAGES)
    directory = tmp_path_factory.mktemp("real")
    root, file = directory / "store", directory / "programs" / "programs.json"
    (directory / "conf").mkdir()
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(directory),
        "NIX_CONF_DIR": str(directory / "conf"),
        "NIX_CONFIG": _SETTINGS,
    }
    shutil.copytree(_PROGRAMS, file.parent)
    text = file.read_text()
    for package, archive in archives.items():
        added = _executor(root, environment, "add", "--name", f"{package}.tar", str(archive))
        text = text.replace(f"@{package}@", added.stdout.strip())
    file.write_text(text)
    words = ("--json", "-L", "--option", "sandbox-paths", _TOOLCHAIN, str(file))
    done = _executor(root, environment, "build", *words)
    outputs = _outputs(root, environment, file)
    return Programs(root, file, environment, json.loads(done.stdout), done.stderr, outputs)


def _outputs(root: Path, environment: dict[str, str], file: Path) -> dict[str, str]:
    """The output of every derivation of the file, by name."""
    (top,) = _executor(root, environment, "instantiate", str(file)).stdout.split()
    needed = _executor(root, environment, "query", "--requisites", top).stdout.split()
    drvs = [path for path in needed if path.endswith(".drv")]
    paths = _executor(root, environment, "query", "--outputs", *drvs).stdout.split()
    return {_name(path): path for path in paths}


def _name(path: str) -> str:
    """The name in a store path."""
    return path.partition("-")[2]


def test_all_programs_were_built_in_sandboxes(programs: Programs) -> None:
    assert [record["success"] for record in programs.records] == [True] * len(programs.records)
    built = [line for line in programs.log.splitlines() if line.startswith("building '")]
    assert len(built) == 5


@pytest.mark.parametrize(
    "words",
    [
        pytest.param("PASS: tests/greeting-1", id="hello"),
        pytest.param("*** zlib test OK ***", id="zlib-static"),
        pytest.param("*** zlib shared test OK ***", id="zlib-shared"),
        pytest.param("PASS: tests/pngtest-all", id="libpng"),
        pytest.param("Lua 5.4", id="lua"),
    ],
)
def test_their_own_tests_passed(programs: Programs, words: str) -> None:
    assert words in programs.log


def test_they_run_outside(programs: Programs) -> None:
    def run(*words: str | Path, **variables: str) -> str:
        command = [str(word) for word in words]
        return _run(command, {"LC_ALL": "C", **variables}, _SECONDS).stdout

    assert run(programs.real("hello") / "bin/hello") == "Hello, world!\n"
    assert run(programs.real("lua") / "bin/lua", "-e", "print(6 * 7, 2^10)") == "42\t1024.0\n"
    # Its zlib is found by a store path, and the store is elsewhere for programs of the host.
    libraries = f"{programs.real('zlib')}/lib"
    linked = run(
        "/usr/bin/ldd", programs.real("libpng") / "lib/libpng16.so", LD_LIBRARY_PATH=libraries
    )
    assert f"libz.so.1 => {libraries}/libz.so.1" in linked


def test_a_dependent_derivation_used_them(programs: Programs) -> None:
    results = programs.real("use")
    assert (results / "hello.txt").read_text() == "built and run in sandboxes\n"
    assert (results / "lua.txt").read_text() == "Lua 5.4\t42\n"
    assert (results / "versions.txt").read_text().startswith("libpng 1.6.")
    # The sandbox shows the host's libraries, too: the built ones must have been preferred.
    linked = (results / "libraries.txt").read_text()
    assert f"libpng16.so.16 => {programs.outputs['libpng']}/lib/libpng16.so.16" in linked
    assert f"libz.so.1 => {programs.outputs['zlib']}/lib/libz.so.1" in linked


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("hello", {"hello"}),  # where its translations are
        ("zlib", {"zlib"}),  # what it tells pkg-config
        ("libpng", {"libpng", "zlib"}),
        ("lua", set()),
        ("use", {"libpng", "zlib"}),  # in what it recorded
    ],
)
def test_references_are_exactly_as_expected(
    programs: Programs, name: str, expected: set[str]
) -> None:
    path = programs.outputs[name]
    references = programs.executor("query", "--references", path).stdout.split()
    assert sorted(references) == sorted(programs.outputs[name] for name in expected)
    theirs = programs.nix_store("--query", "--references", path).stdout.split()
    assert sorted(theirs) == sorted(references)


def test_stock_nix_finds_no_fault(programs: Programs) -> None:
    done = programs.nix_store("--verify", "--check-contents")
    working = ("reading the Nix store", "checking ")
    assert [line for line in done.stderr.splitlines() if not line.startswith(working)] == []
    assert done.stdout == ""


def test_a_second_run_finds_everything_valid(programs: Programs) -> None:
    done = programs.executor("build", "--option", "sandbox-paths", _TOOLCHAIN, str(programs.file))
    assert "already valid" in done.stderr
    assert "building" not in done.stderr
