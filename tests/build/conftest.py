"""A store of one test, derivations made of shell scripts, and executors that build them."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import pytest

from executor.api import Executor
from executor.build.events import BuildFinished, BuildLogLine, BuildStarted, Event, Notice
from executor.build.plan import Target
from executor.build.result import BuildResult
from executor.config import SandboxPath, Settings, load_settings
from executor.derivation import DeferredOutput, Derivation, DerivationOutput, FixedOutput
from executor.derivation_hash import fill_outputs
from executor.formats.content_address import IngestionMethod
from executor.formats.hashes import Hash, HashAlgorithm, hash_bytes
from executor.formats.store_path import StorePath
from executor.resolution import upstream_placeholder
from executor.store.local import LocalStore
from executor.store.location import StoreLocation, parse_store_url
from executor.store.path_info import PathInfo
from executor.store.settings import StoreSettings

SYSTEM = "x86_64-linux"
BUSYBOX = "/bin/busybox"
_APPLETS = "sh busybox cat chmod chown dd head ln ls mkdir mkfifo mknod nc rm seq sleep touch yes"
# A command that doesn't end, and how its processes are told from those of another test run.
FOREVER = f"sleep {10**8 + os.getpid()}"
SLEEPING = FOREVER.replace(" ", "\0")
# Host directories in a sandbox, for builders that need more than a shell.
HOST_PROGRAMS = tuple(
    SandboxPath(target=path, source=path, read_only=True) for path in ("/usr", "/lib", "/lib64")
)
_PATIENCE = 60.0
# In a script: finds the output with structured attributes too, where no variable has it.
FIND_OUT = """[ -n "$out" ] || IFS="'" read a b c out rest < .attrs.sh"""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Drv:
    """A derivation that is in the store; ``outputs`` are those whose paths are known before."""

    path: StorePath
    text: str
    outputs: Mapping[str, StorePath]
    names: frozenset[str]

    @property
    def out(self) -> StorePath:
        return self.outputs["out"]


@dataclass(slots=True)
class Run:
    """What an executor said of one call: the targets' results and everything on the way."""

    results: list[BuildResult] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)

    @property
    def result(self) -> BuildResult:
        (result,) = self.results
        return result

    @property
    def started(self) -> list[StorePath]:
        return [event.drv_path for event in self.events if isinstance(event, BuildStarted)]

    @property
    def finished(self) -> dict[StorePath, BuildResult]:
        return {
            event.result.drv_path: event.result
            for event in self.events
            if isinstance(event, BuildFinished)
        }

    @property
    def log(self) -> list[bytes]:
        return [event.line for event in self.events if isinstance(event, BuildLogLine)]

    @property
    def notices(self) -> list[str]:
        return [event.text for event in self.events if isinstance(event, Notice)]

    @property
    def text(self) -> str:
        """The log as people read it, without colours."""
        return re.sub("\x1b\\[[0-9;]*m", "", b"\n".join(self.log).decode())


class Workshop:
    """One chroot store below ``directory``. Nothing is kept open between calls."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.root = directory / "root"
        self.location: StoreLocation = parse_store_url(str(self.root), {})
        self.settings = _settings()

    def change(self, **settings: Any) -> None:
        """Other settings from now on, for the command line too where it hears of them."""
        self.settings = replace(self.settings, **settings)

    def shown(self, source: Path, target: str) -> SandboxPath:
        """A directory of the test that builders can look into."""
        return SandboxPath(target=target, source=str(source), read_only=True)

    # Derivations.

    def make(
        self,
        name: str,
        script: str = "echo made > $out",
        *,
        outputs: Iterable[str] | Mapping[str, DerivationOutput] = ("out",),
        inputs: Iterable[Drv] = (),
        sources: Iterable[StorePath] = (),
        env: Mapping[str, str] | None = None,
        **changes: Any,
    ) -> Drv:
        """Write a derivation whose builder is ``/bin/sh -c script``.

        An input's outputs are found in the environment: ``$name_out`` for the input ``name``.
        """
        inputs = list(inputs)
        variables = {"PATH": "/bin", **_paths_of(inputs, self), **(env or {})}
        derivation = Derivation(
            name=name,
            outputs=(
                outputs
                if isinstance(outputs, Mapping)
                else dict.fromkeys(outputs, DeferredOutput())
            ),
            input_drvs={drv.path: drv.names for drv in inputs},
            input_srcs=frozenset(sources),
            platform=SYSTEM,
            builder=b"/bin/sh",
            args=(b"-e", b"-c", script.encode()),
            env={key.encode(): value.encode() for key, value in variables.items()},
        )
        return self.write(replace(derivation, **changes))

    def write(self, derivation: Derivation) -> Drv:
        with self.store() as store:
            filled = fill_outputs(derivation, store.modulo_hasher)
            path = store.write_derivation(filled)
            known, names = store.query_outputs(path), frozenset(filled.outputs)
            return Drv(path, store.store_dir.render(path), known, names)

    def source(self, name: str, content: bytes, references: Iterable[StorePath] = ()) -> StorePath:
        with self.store() as store:
            return store.add_text(name, content, frozenset(references))

    # The store.

    def store(self) -> LocalStore:
        return LocalStore.open(self.location, settings=StoreSettings.of(self.settings))

    @property
    def database(self) -> Path:
        return Path(self.location.state_dir, "db/db.sqlite")

    def real(self, path: StorePath) -> Path:
        return Path(self.location.real_store_dir, path.base_name)

    def render(self, path: StorePath) -> str:
        return self.location.store_dir.render(path)

    def info(self, path: StorePath) -> PathInfo:
        with self.store() as store:
            return store.query_path_info(path)

    def is_valid(self, path: StorePath) -> bool:
        with self.store() as store:
            return store.is_valid(path)

    def leftovers(self) -> list[str]:
        """What lies in the store and the build directory without belonging to a valid path."""
        with self.store() as store:
            valid = {path.base_name for path in store.query_all_valid()}
        names = set(os.listdir(self.location.real_store_dir)) - valid - {".links"}
        builds = Path(self.location.state_dir, "builds")
        return sorted(names | {path.name for path in builds.glob("*")})

    # Building, in this process.

    def run(
        self, function: Callable[[Executor], Awaitable[T]], run: Run | None = None, **settings: Any
    ) -> T:
        """Call a coroutine function with an entered executor, for a limited time."""

        async def go() -> T:
            executor = Executor(store=str(self.root), settings=replace(self.settings, **settings))
            if run is not None:
                executor.subscribe(run.events.append)
            async with executor:
                return await asyncio.wait_for(function(executor), _PATIENCE)

        return asyncio.run(go())

    def build(self, *drvs: Drv, **settings: Any) -> Run:
        """Build all outputs of some derivations."""
        return self.build_targets(*(Target(drv_path=drv.path) for drv in drvs), **settings)

    def build_targets(self, *targets: Target, **settings: Any) -> Run:
        run = Run()

        async def go(executor: Executor) -> list[BuildResult]:
            return await executor.build_all(targets)

        run.results = self.run(go, run, **settings)
        return run

    # Building, by the command line.

    def command(self, *arguments: str) -> list[str]:
        name, *rest = arguments
        return [sys.executable, "-m", "executor", name, "--store", str(self.root), *rest]

    def environment(self) -> dict[str, str]:
        """The machine's own configuration has no say in tests."""
        (self.directory / "conf").mkdir(exist_ok=True)
        paths = " ".join(f"{path.target}={path.source}:ro" for path in self.settings.sandbox_paths)
        network = self.settings.fod_network
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.directory),
            "NIX_CONF_DIR": str(self.directory / "conf"),
            "NIX_CONFIG": f"sandbox-paths = {paths}\nbuild-users-group =\n"
            "fsync-metadata = false\nsubstituters =\n"
            + ("" if network == "isolated" else f"fod-network = {network}\n"),
        }

    def cli(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a command to its end; a traceback is never all right."""
        done = subprocess.run(
            self.command(*arguments),
            env=self.environment(),
            capture_output=True,
            text=True,
            check=False,
            timeout=_PATIENCE,
            **options,
        )
        assert "Traceback" not in done.stderr, done.stderr
        assert "internal error" not in done.stderr, done.stderr
        return done

    def start_cli(self, *arguments: str) -> subprocess.Popen[str]:
        """Start a command and leave it running."""
        return subprocess.Popen(
            self.command(*arguments),
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def json_file(self, derivations: Mapping[str, object], name: str = "drvs.json") -> Path:
        """A file of hand-written derivations."""
        path = self.directory / name
        path.write_text(json.dumps({"version": 4, "derivations": derivations}))
        return path


def fixed(content: bytes, method: IngestionMethod = IngestionMethod.FLAT) -> FixedOutput:
    """A fixed output that promises the SHA-256 of ``content``."""
    return FixedOutput(method, sha256(content))


def sha256(content: bytes) -> Hash:
    return hash_bytes(HashAlgorithm.SHA256, content)


def structured(**attributes: object) -> dict[str, str]:
    """The environment of a derivation with structured attributes."""
    return {"__json": json.dumps(attributes)}


def processes_with(marker: str) -> list[int]:
    """Processes of this machine whose command line holds ``marker``."""
    found: list[int] = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        with suppress(OSError), open(f"/proc/{entry}/cmdline", "rb") as file:
            if marker.encode() in file.read():
                found.append(int(entry))
    return found


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 20.0) -> None:
    """Poll until something holds; fails the test when it takes too long."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s in vain for {what}"
        time.sleep(0.02)


def _paths_of(inputs: Sequence[Drv], workshop: Workshop) -> dict[str, str]:
    return {
        f"{drv.path.name.removesuffix('.drv')}_{output}": (
            workshop.render(drv.outputs[output])
            if output in drv.outputs
            else upstream_placeholder(drv.path, output)
        )
        for drv in inputs
        for output in drv.names
    }


def _settings() -> Settings:
    """This machine's defaults, with busybox's applets in /bin and ids of no group."""
    paths = tuple(
        SandboxPath(target=f"/bin/{name}", source=BUSYBOX, read_only=True)
        for name in _APPLETS.split()
    )
    nowhere = {"NIX_CONF_DIR": "/nonexistent", "XDG_CONFIG_DIRS": "/nonexistent"}
    return replace(
        load_settings(environ=nowhere).settings,
        sandbox_paths=paths,
        build_users_group="",
        fsync_metadata=False,
        substituters=(),
    )


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    return Workshop(tmp_path)
