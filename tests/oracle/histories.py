"""Scenarios: several steps in a store of its own, and everything that the store then holds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from executor.build.result import BuildStatus
from executor.formats.store_path import StorePath
from executor.store.local import LocalStore
from executor.store.location import parse_store_url
from tests.oracle.builders import OurExecutor, StockNix
from tests.oracle.daemon import build_statuses
from tests.oracle.observe import open_database
from tests.oracle.serve import status_on_the_wire
from tests.oracle.snapshot import take_snapshot

SCENARIOS = Path(__file__).parent / "scenarios"
FIELDS = ("steps", "paths", "outputs", "realisations", "unregistered", "logs")
ALL_FEATURES = ("ca-derivations", "dynamic-derivations", "impure-derivations")
_NAMES = "builtins.attrNames (import @scenarios@)"
_ONE = "(import @scenarios@).${@name@}"


@dataclass(frozen=True, slots=True)
class Step:
    """Building ``targets`` (``x.drv^out``), or losing the valid path with the name ``lost``.

    Where ``garbage`` is true, something else lies at the lost path then. ``modern`` asks Nix's new
    command, because the old one can't print the paths. Its exit code says of failures only that
    they are failures.
    """

    targets: Sequence[str] = ()
    check: bool = False
    options: Mapping[str, str] = field(default_factory=dict)
    lost: str | None = None
    garbage: bool = False
    modern: bool = False

    @property
    def option_words(self) -> list[str]:
        """The settings as words of a command line."""
        return [word for item in self.options.items() for word in ("--option", *item)]


@dataclass(frozen=True, slots=True)
class Scenario:
    """Steps, the experimental features that they need, and the paths that are there before.

    ``derivations`` are the paths with contents and references, in an order in which they can be
    added. ``since`` is the first version of Nix in which the outcome is the same.
    """

    name: str
    features: Sequence[str]
    since: str
    steps: Sequence[Step]
    derivations: Sequence[tuple[str, str, Sequence[str]]] = ()

    @classmethod
    def from_json(cls, name: str, value: Mapping[str, Any]) -> Scenario:
        """Take a scenario out of what Nix evaluates, or out of the golden file."""
        steps = [Step(**step) for step in value["steps"]]
        found = [(path, text, list(references)) for path, text, references in value["derivations"]]
        return cls(name, value["features"], value["since"], steps, found)


class NixActor(StockNix):
    """Stock Nix with experimental features."""

    def enable(self, features: Sequence[str]) -> None:
        """Turn features on."""
        words = " ".join(features)
        self.environment["NIX_CONFIG"] += f"extra-experimental-features = {words}\n"

    def scenario(self, name: str, scenarios: Path = SCENARIOS) -> Scenario:
        """Evaluate a scenario, writing its derivations into the store."""
        expression = _ONE.replace("@scenarios@", str(scenarios)).replace("@name@", f'"{name}"')
        words = ("--eval", "--read-write-mode", "--strict", "--json", "-E", expression)
        value = json.loads(self.run("nix-instantiate", *words).stdout)
        value["derivations"] = self._texts()
        return Scenario.from_json(name, value)

    def _texts(self) -> list[tuple[str, str, list[str]]]:
        with closing(open_database(self.root)) as database:
            paths = dict(database.execute("SELECT id, path FROM ValidPaths ORDER BY id").fetchall())
            links = database.execute("SELECT referrer, reference FROM Refs").fetchall()
        return [
            (
                path,
                (self.root / path[1:]).read_text(),
                sorted(paths[target] for source, target in links if source == number),
            )
            for number, path in paths.items()
        ]

    def take(self, step: Step) -> dict[str, Any]:
        done = self.run(*_stock_words(step), check=False)
        printed = done.stdout.replace(f"{self.root}/", "/").split()
        return _ended(step, done.returncode, printed, self._statuses(step, done.returncode))

    def _statuses(self, step: Step, code: int) -> dict[str, str] | None:
        if code == 0:
            return dict.fromkeys(step.targets, BuildStatus.BUILT.label)
        command = self.command("nix-daemon", "--stdio", *step.option_words)
        legacy = {_legacy(target): target for target in step.targets}
        found = build_statuses(command, self.environment, list(legacy), check=step.check)
        return found and {legacy[target]: status for target, status in found.items()}


class ExecutorActor(OurExecutor):
    """The executor with experimental features."""

    def enable(self, features: Sequence[str]) -> None:
        """Turn features on."""
        words = " ".join(features)
        self.environment["NIX_CONFIG"] += f"extra-experimental-features = {words}\n"

    def prepare(self, scenario: Scenario) -> None:
        """Write the derivations of a scenario into the store."""
        with LocalStore.open(parse_store_url(str(self.root), {})) as store:
            prefix = f"{store.location.store_dir.path}/"
            for path, text, references in scenario.derivations:
                linked = [StorePath.parse(item.removeprefix(prefix)) for item in references]
                name = path.removeprefix(prefix)[33:]
                assert store.add_text(name, text.encode(), linked).base_name == path[len(prefix) :]

    def take(self, step: Step) -> dict[str, Any]:
        words = [*step.targets, *(["--check"] if step.check else []), *step.option_words]
        done = self.run("build", "--json", *words, check=False)
        assert "Traceback" not in done.stderr, done.stderr
        records = json.loads(done.stdout) if done.stdout else []
        built = dict(zip(step.targets, records, strict=False))
        printed = [path for target, item in built.items() for path in _wanted(target, item)]
        statuses = {target: status_on_the_wire(item) for target, item in built.items()}
        return _ended(step, done.returncode, printed, statuses)


def go_through(actor: NixActor | ExecutorActor, scenario: Scenario) -> dict[str, Any]:
    """Do all steps; what each ended in, and what the store holds then."""
    before = [path for path, _, _ in scenario.derivations]
    steps = []
    for step in scenario.steps:
        if step.lost is None:
            steps.append(actor.take(step))
        else:
            _lose(actor.root, step.lost, garbage=step.garbage)
    return {"steps": steps, **take_snapshot(actor.root, before).to_json()}


def to_json(scenario: Scenario) -> dict[str, Any]:
    """A scenario as it stands in the golden file."""
    value = asdict(scenario)
    del value["name"]
    return value


def names(nix: StockNix, scenarios: Path = SCENARIOS) -> list[str]:
    """The names of all scenarios."""
    expression = _NAMES.replace("@scenarios@", str(scenarios))
    found = nix.run("nix-instantiate", "--eval", "--strict", "--json", "-E", expression).stdout
    return [str(name) for name in json.loads(found)]


def _lose(root: Path, name: str, *, garbage: bool) -> None:
    """Make the one path of that name invalid, and remove it or put something else there."""
    with closing(open_database(root)) as database, database:
        database.execute("PRAGMA foreign_keys = ON")
        ((path,),) = database.execute(
            "SELECT path FROM ValidPaths WHERE substr(path, 45) = ?", (name,)
        ).fetchall()
        database.execute("DELETE FROM ValidPaths WHERE path = ?", (path,))
    real = root / path[1:]
    if real.is_dir() and not real.is_symlink():
        shutil.rmtree(real)
    else:
        real.unlink()
    if garbage:
        real.write_text("garbage\n")


def _ended(
    step: Step, code: int, printed: Sequence[str], statuses: dict[str, str] | None
) -> dict[str, Any]:
    return {
        "exit_code": None if code != 0 and step.modern else code,
        "printed": sorted(printed) if code == 0 else [],
        "statuses": statuses,
    }


def _wanted(target: str, record: Mapping[str, Any]) -> list[str]:
    """The paths of the outputs that a target names; a record has all of them."""
    names = target.rsplit("^", 1)[1].split(",")
    return [path for name, path in record["outputs"].items() if names == ["*"] or name in names]


def _stock_words(step: Step) -> list[str]:
    """The command line of stock Nix."""
    if step.modern:
        words = ["nix", "build", "--no-link", "--print-out-paths", *step.targets]
        words += ["--extra-experimental-features", "nix-command", *step.option_words]
        return words + (["--rebuild"] if step.check else [])
    targets = [target.removesuffix("^*").replace("^", "!") for target in step.targets]
    words = ["nix-store", "--realise", *targets, *step.option_words]
    return words + (["--check"] if step.check else [])


def _legacy(target: str) -> str:
    """A target as the worker protocol has it."""
    return target.replace("^", "!")
