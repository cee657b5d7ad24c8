"""The two builders that are compared: stock Nix and the executor, each on a store of its own."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from executor.build.result import BuildStatus
from executor.formats.aterm import parse_term
from tests.oracle.observe import Observation, read_log, store_outputs
from tests.oracle.serve import build_status, status_on_the_wire

CASES = Path(__file__).parent / "cases"
BUSYBOX = "/bin/busybox"
TIMEOUT = 120
# What both are told; nothing of the machine's configuration is read.
_SETTINGS = """\
sandbox = true
sandbox-fallback = false
substituters =
sandbox-paths = /bin/sh=@busybox@ /bin/busybox=@busybox@
system-features = benchmark big-parallel nixos-test
max-jobs = 1
"""
_EVALUATE = (
    "builtins.mapAttrs (_: case: { drv = case.drv.drvPath; inherit (case) options; })"
    " (import @cases@)"
)


@dataclass(frozen=True, slots=True)
class Case:
    """An instantiated case: the path of its derivation, and settings of its own."""

    name: str
    drv: str
    options: Mapping[str, str]

    @property
    def option_words(self) -> list[str]:
        """The settings as words of a command line."""
        return [word for item in self.options.items() for word in ("--option", *item)]


class StockNix:
    """Stock Nix on a store below ``root``, run through ``prefix`` if given."""

    def __init__(self, root: Path, *, busybox: str = BUSYBOX, prefix: Sequence[str] = ()) -> None:
        self.root = root
        self.busybox = busybox
        self._prefix = list(prefix)
        conf_dir = root.parent / f"{root.name}-conf"
        conf_dir.mkdir(parents=True, exist_ok=True)
        self.environment = environment(conf_dir, busybox) | {"NIX_REMOTE": "local"}
        if not _has_build_users():
            self.environment["NIX_CONFIG"] += "build-users-group =\n"

    def run(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run one of its commands on the store."""
        return subprocess.run(
            self.command(*words),
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=check,
        )

    def command(self, program: str, *words: str) -> list[str]:
        """``program`` with the options that point it at the store."""
        return [*self._prefix, program, "--store", str(self.root), *words]

    def instantiate(self, cases: Path = CASES) -> list[Case]:
        """Evaluate all cases, writing their derivations into the store."""
        expression = _EVALUATE.replace("@cases@", str(cases))
        words = ("--eval", "--read-write-mode", "--strict", "--json", "-E", expression)
        found: dict[str, Any] = json.loads(self.run("nix-instantiate", *words).stdout)
        return [
            Case(name, value["drv"], with_busybox(value["options"], self.busybox))
            for name, value in sorted(found.items())
        ]

    def build(self, case: Case) -> Observation:
        """Build a case and look at what came of it."""
        words = ("--realise", case.drv, *case.option_words)
        done = self.run("nix-store", *words, check=False)
        return Observation(
            drv=case.drv,
            exit_code=done.returncode,
            outputs=store_outputs(self.root, case.drv),
            log=read_log(self.root, case.drv),
            status=BuildStatus.BUILT.label if done.returncode == 0 else self._status(case),
        )

    def _status(self, case: Case) -> str | None:
        drv = (self.root / case.drv.lstrip("/")).read_bytes()
        limits = ("max-silent-time", "timeout", "max-build-log-size")
        silence, timeout, size = (int(case.options.get(name, 0)) for name in limits)
        inputs = self._inputs(drv)
        if inputs is None:
            return BuildStatus.DEPENDENCY_FAILED.label
        command = self.command("nix-store", "--serve", "--write", *case.option_words)
        return build_status(
            command, self.environment, case.drv, drv, inputs, (silence, timeout, size)
        )

    def _inputs(self, drv: bytes) -> set[str] | None:
        """All inputs of a derivation; None when one of them isn't there."""
        term = parse_term(drv)
        inputs = {os.fsdecode(path) for path in term.input_srcs}
        query = (
            "SELECT o.path FROM DerivationOutputs o JOIN ValidPaths d ON d.id = o.drv"
            " JOIN ValidPaths v ON v.path = o.path WHERE d.path = ? AND o.id = ?"
        )
        with closing(sqlite3.connect(self.root / "nix/var/nix/db/db.sqlite")) as database:
            for path, names in term.input_drvs:
                for name in names:
                    row = database.execute(query, (path.decode(), name.decode())).fetchone()
                    if row is None:
                        return None
                    inputs.add(row[0])
        return inputs


class OurExecutor:
    """The executor's command line on a store below ``root``."""

    def __init__(self, root: Path, *, busybox: str = BUSYBOX) -> None:
        self.root = root
        conf_dir = root.parent / f"{root.name}-conf"
        conf_dir.mkdir(parents=True, exist_ok=True)
        self.environment = environment(conf_dir, busybox)

    def command(self, command: str, *words: str) -> list[str]:
        """The command line of one of its commands, on the store."""
        return [sys.executable, "-m", "executor", command, "--store", str(self.root), *words]

    def run(
        self, command: str, *words: str, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run one of its commands on the store."""
        return subprocess.run(
            self.command(command, *words),
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=check,
        )

    def build(self, case: Case) -> Observation:
        """Build a case and look at what came of it."""
        done = self.run("build", "--json", case.drv, *case.option_words, check=False)
        assert "Traceback" not in done.stderr, done.stderr
        records = json.loads(done.stdout) if done.stdout else []
        return Observation(
            drv=case.drv,
            exit_code=done.returncode,
            outputs=store_outputs(self.root, case.drv),
            log=read_log(self.root, case.drv),
            status=status_on_the_wire(records[0]) if records else None,
        )


def environment(conf_dir: Path, busybox: str) -> dict[str, str]:
    """What both programs are started with."""
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(conf_dir),
        "NIX_CONF_DIR": str(conf_dir),
        "NIX_CONFIG": _SETTINGS.replace("@busybox@", busybox),
        "ORACLE_IMPURE": "from outside",
    }


def with_busybox(options: Mapping[str, str], busybox: str) -> dict[str, str]:
    """Settings of a case, with the place of the shell filled in."""
    return {name: value.replace("@busybox@", busybox) for name, value in options.items()}


def _has_build_users() -> bool:
    with open("/etc/group", encoding="utf-8") as groups:
        return any(line.startswith("nixbld:") and line.strip()[-1] != ":" for line in groups)
