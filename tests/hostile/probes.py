"""The programs that run inside: compiling them, and reading what the probe prints."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from pathlib import Path

PROBES = ("64", "32")
_SOURCE = Path(__file__).with_name("probe.c")


def compile_probe(directory: Path, bits: str) -> Path:
    """A static program of 64 or 32 bits that lies at fixed addresses."""
    program = directory / f"probe-{bits}"
    options = ("-static", "-no-pie", "-O1", "-Wall", "-Werror")
    command = ["gcc", f"-m{bits}", *options, "-o", str(program), str(_SOURCE)]
    subprocess.run(command, check=True, timeout=120)
    return program


def compile_attack(directory: Path) -> Path:
    """The static program that attacks from inside."""
    program = directory / "attack"
    source = _SOURCE.with_name("attack.c")
    command = ["gcc", "-static", "-O1", "-Wall", "-Werror", "-o", str(program), str(source)]
    subprocess.run(command, check=True, timeout=120)
    return program


def answers(lines: Iterable[str]) -> dict[tuple[str, str], str]:
    """``name convention answer`` lines by name and convention."""
    words = [line.split() for line in lines]
    found = {(name, convention): answer for name, convention, answer in words}
    assert len(found) == len(words), "a name was printed twice"
    return found
