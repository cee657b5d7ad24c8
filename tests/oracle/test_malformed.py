"""Derivations that no evaluator writes: both builders refuse them, and nothing is registered."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.oracle.builders import OurExecutor, StockNix

pytestmark = [pytest.mark.root, pytest.mark.nix]

_OUT = b"/nix/store/q4dz47g0qbfs317hcn1bk1cjh4nyqpys-plain"
_OTHER = b"/nix/store/00000000000000000000000000000000-plain"
_EXPRESSION = (
    'derivation { name = "plain"; system = "x86_64-linux"; builder = "/bin/sh";'
    ' args = [ "-c" "echo > $out" ]; }'
)


def replaced(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    """A change of a derivation that must find what it changes."""

    def change(drv: bytes) -> bytes:
        assert old in drv
        return drv.replace(old, new, 1)

    return change


def _out(drv: bytes) -> bytes:
    """The output path that stands in a derivation."""
    return drv.split(b'"')[3]


# What is wrong, and the change that makes it so.
MALFORMED: dict[str, Callable[[bytes], bytes]] = {
    "D1 another head": replaced(b"Derive(", b"Dervie("),
    "D1 nothing": lambda drv: b"",
    "D1 cut off": lambda drv: drv[:-20],
    "D1 text behind the end": lambda drv: drv + b"x",
    "D1 a field too few": replaced(b',"x86_64-linux"', b""),
    "D1 a broken string": replaced(b'"/bin/sh"', b'"/bin/sh'),
    "D1 an input with a relative path": replaced(b"],[],[],", b'],[("x.drv",["out"])],[],'),
    "D1 a source outside the store": replaced(b"],[],[],", b'],[],["/etc/passwd"],'),
    "D2 another head for dynamic derivations": replaced(
        b"Derive(", b'DrvWithVersion("xp-dyn-drv",'
    ),
    "D2 an unknown version": replaced(b"Derive(", b'DrvWithVersion("2",'),
    "D3 a fixed output at another path": lambda drv: drv.replace(
        b'","",""', b'","sha256","' + b"0" * 64 + b'"', 1
    ),
    "D3 a hash without an algorithm": replaced(b'","",""', b'","","' + b"0" * 64 + b'"'),
    "D4 an unknown algorithm": replaced(b'","",""', b'","sha3","' + b"0" * 64 + b'"'),
    "D4 a hash of another length": replaced(b'","",""', b'","sha256","00"'),
    "D5 no outputs": lambda drv: drv.replace(
        drv[drv.index(b"[(") : drv.index(b")]") + 2], b"[]", 1
    ),
    "D5 kinds mixed": lambda drv: drv.replace(
        b'","","")]', b'","",""),("two","' + _OTHER + b'","sha256","' + b"0" * 64 + b'")]', 1
    ),
    "D6 a forged output path": lambda drv: drv.replace(_out(drv), _OTHER),
    "D6 a forged variable": lambda drv: drv.replace(
        b'("out","' + _out(drv) + b'"),("system"', b'("out","' + _OTHER + b'"),("system"'
    ),
    "D6 an output of another name": lambda drv: drv.replace(b'[("out"', b'[("dev"', 1),
}


# Where Nix is more generous, and what it does instead of refusing.
TAKEN_BY_NIX = {
    "D1 cut off": "2.8 reads for ever",
    "D1 text behind the end": "ignored",
    "D3 a hash without an algorithm": "ignored",
}


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> tuple[StockNix, OurExecutor, bytes]:
    """A store for each, and a good derivation to make bad ones of."""
    directory = tmp_path_factory.mktemp("malformed")
    nix, executor = StockNix(directory / "nix"), OurExecutor(directory / "executor")
    path = nix.run("nix-instantiate", "-E", _EXPRESSION).stdout.strip()
    return nix, executor, (nix.root / path.lstrip("/")).read_bytes()


@pytest.mark.parametrize("wrong", MALFORMED)
def test_refused_by_both(
    stores: tuple[StockNix, OurExecutor, bytes], wrong: str, tmp_path: Path
) -> None:
    nix, executor, good = stores
    file = tmp_path / "plain.drv"
    file.write_bytes(MALFORMED[wrong](good))
    ours = _try_executor(executor, file)
    assert ours.returncode == 1, ours.stderr
    assert "Traceback" not in ours.stderr
    assert len(ours.stderr.strip().splitlines()) <= 2
    if wrong not in TAKEN_BY_NIX:
        assert _try_nix(nix, file).returncode != 0, "stock Nix takes it"


def test_the_unchanged_one_is_built_by_both(
    stores: tuple[StockNix, OurExecutor, bytes], tmp_path: Path
) -> None:
    nix, executor, good = stores
    file = tmp_path / "plain.drv"
    file.write_bytes(good)
    for done in (_try_nix(nix, file), _try_executor(executor, file)):
        assert done.returncode == 0, done.stderr


def _try_nix(nix: StockNix, file: Path) -> subprocess.CompletedProcess[str]:
    """Bring a derivation into the store behind Nix's back, and build it."""
    added = nix.run("nix-store", "--add", str(file), check=False)
    if added.returncode != 0:
        return added
    return nix.run("nix-store", "--realise", added.stdout.strip(), check=False)


def _try_executor(executor: OurExecutor, file: Path) -> subprocess.CompletedProcess[str]:
    added = executor.run("add", str(file), check=False)
    if added.returncode != 0:
        return added
    return executor.run("build", added.stdout.strip(), check=False)
