"""``executor gc`` and ``executor optimise`` as programs: words, exit codes, and what Nix says."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from executor.formats.store_path import StorePath
from executor.store.local import LocalStore
from executor.store.location import StoreLocation, parse_store_url


@dataclass(frozen=True)
class Programs:
    """Ours and Nix's on one store."""

    directory: Path

    @property
    def location(self) -> StoreLocation:
        return parse_store_url(str(self.directory / "root"), {})

    def _run(self, words: list[str], remote: str) -> subprocess.CompletedProcess[str]:
        environ = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.directory),
            "NIX_CONF_DIR": str(self.directory),
            "NIX_CONFIG": "substituters =\nbuild-users-group =\n",
            "NIX_REMOTE": remote,
        }
        done = subprocess.run(
            words, env=environ, capture_output=True, text=True, check=False, timeout=60
        )
        assert "Traceback" not in done.stderr, done.stderr
        assert "internal error" not in done.stderr, done.stderr
        return done

    def ours(self, *words: str) -> subprocess.CompletedProcess[str]:
        store = str(self.directory / "root")
        return self._run([sys.executable, "-m", "executor", *words], store)

    def theirs(self, *words: str) -> subprocess.CompletedProcess[str]:
        store = str(self.directory / "root")
        return self._run(["nix-store", "--store", store, *words], "local")

    def add(self, name: str, *references: StorePath, data: bytes = b"x") -> str:
        with LocalStore.open(self.location) as store:
            return store.store_dir.render(store.add_text(name, data, references))

    def root(self, path: str) -> str:
        link = f"{self.location.state_dir}/gcroots/{os.path.basename(path)}"
        os.symlink(path, link)
        return link


@pytest.fixture
def programs(tmp_path: Path) -> Programs:
    return Programs(tmp_path)


def test_collect(programs: Programs) -> None:
    kept, dead = programs.add("kept"), programs.add("dead", data=b"x" * 2048)
    programs.root(kept)
    done = programs.ours("gc")
    assert done.returncode == 0
    assert done.stdout == "1 store paths deleted, 2.0 KiB freed\n"
    assert done.stderr.splitlines() == [
        "finding garbage collector roots...",
        "deleting garbage...",
        f"deleting '{dead}'",
        "deleting unused links...",
        "note: hard linking is currently saving -4.0 KiB",
    ]
    assert programs.ours("gc", "--quiet").stdout == "0 store paths deleted, 0.0 KiB freed\n"


@pytest.mark.nix
def test_what_is_printed_is_what_nix_prints(programs: Programs) -> None:
    kept = programs.add("kept")
    for number in range(3):
        programs.add(f"dead{number}")
    link = programs.root(kept)
    for option in ("--print-live", "--print-dead", "--print-roots"):
        done, theirs = programs.ours("gc", option), programs.theirs("--gc", option)
        assert done.returncode == 0
        assert sorted(done.stdout.splitlines()) == sorted(theirs.stdout.splitlines())
    assert programs.ours("gc", "--print-roots").stdout == f"{link} -> {kept}\n"
    assert programs.ours("gc", "--print-live").stdout == f"{kept}\n"
    done = programs.ours("gc", "--dry-run")
    assert done.stdout == "3 store paths would be deleted\n"
    assert "determining live/dead paths..." in done.stderr
    assert len(programs.theirs("--gc", "--print-dead").stdout.splitlines()) == 3


def test_limits(programs: Programs) -> None:
    for number in range(4):
        programs.add(f"p{number}", data=b"x" * 1024)
    assert programs.ours("gc", "--max-freed", "0").stdout.startswith("0 store paths deleted")
    done = programs.ours("gc", "--max-freed", "1K")
    assert done.stdout == "2 store paths deleted, 2.0 KiB freed\n"
    assert "deleted more than 1024 bytes; stopping" in done.stderr
    assert programs.ours("gc", "--max-freed", "-5").stdout.startswith("0 store paths deleted")
    assert programs.ours("gc", "--max-freed", "1t").stdout.startswith("2 store paths deleted")


def test_delete(programs: Programs) -> None:
    bottom = programs.add("bottom")
    top = programs.add("top", StorePath.parse(os.path.basename(bottom)))
    programs.root(top)
    for options in ([bottom], [bottom, top], ["--ignore-liveness", bottom]):
        done = programs.ours("gc", "--delete", *options)
        assert done.returncode == 1
        assert done.stdout == "0 store paths deleted, 0.0 KiB freed\n"
        assert done.stderr.splitlines()[-1].startswith("error: cannot delete path '")
    real = programs.location.real_store_dir + "/" + os.path.basename(top)
    done = programs.ours("gc", "--ignore-liveness", "--delete", real)
    assert done.stdout == "1 store paths deleted, 0.0 KiB freed\n"
    assert programs.ours("gc", "--delete", bottom).returncode == 0
    assert programs.ours("gc", "--delete", "/elsewhere/x").returncode == 1


@pytest.mark.parametrize(
    "words",
    [
        ["--max-freed", "x"],
        ["--max-freed", ""],
        ["--max-freed", "1K", "--print-dead"],
        ["--max-freed", "1K", "--print-roots"],
        ["--ignore-liveness"],
        ["/nix/store/0c5b4rqqbwqhhp30jhjlh2bjzrpz1v2k-x"],
        ["--delete"],
    ],
)
def test_options_that_make_no_sense(programs: Programs, words: list[str]) -> None:
    programs.add("x")
    done = programs.ours("gc", *words)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1].startswith("error: ")


@pytest.mark.nix
def test_settings_count(programs: Programs) -> None:
    """The collector obeys keep-outputs and keep-derivations; adding obeys auto-optimise-store."""
    (programs.directory / "a").write_bytes(b"x" * 100)
    for name in ("one", "two"):
        words = ("--auto-optimise-store", str(programs.directory / "a"), "--name", name)
        assert programs.ours("add", *words).returncode == 0
    done = programs.ours("optimise")
    assert done.stderr.splitlines()[-1] == "0.0 KiB freed by hard-linking 0 files"
    assert "0 files" in programs.theirs("--optimise").stderr
    first, second = (
        os.stat(f"{programs.location.real_store_dir}/{name}").st_ino
        for name in os.listdir(programs.location.real_store_dir)
        if name != ".links"
    )
    assert first == second


def test_optimise(programs: Programs) -> None:
    programs.add("a", data=b"x" * 2048)
    programs.add("b", data=b"x" * 2048)
    done = programs.ours("optimise")
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.splitlines()[-1] == "2.0 KiB freed by hard-linking 1 files"
    assert programs.ours("verify", "--check-contents").returncode == 0


@pytest.mark.nix
def test_names_of_roots_are_shown_safely(programs: Programs) -> None:
    kept = programs.add("kept")
    os.symlink(kept, f"{programs.location.state_dir}/gcroots/\x1b[31m\nx")
    (line,) = programs.ours("gc", "--print-roots").stdout.splitlines()
    assert line.endswith(f"gcroots/\\x1b[31m\\nx -> {kept}")
