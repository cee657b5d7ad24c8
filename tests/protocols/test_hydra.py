"""Hydra's builder agent: what it asks its machine, and its conversation, re-enacted (P50 to P56).

It speaks 1.38 with one feature, takes nothing older than 1.37, and wants to be trusted.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from executor.build.events import BuildLogLine, Event
from executor.build.result import BuildStatus
from executor.derivation import Derivation
from executor.formats.hashes import HashAlgorithm, hash_bytes
from executor.formats.store_path import StoreDir, StorePath
from executor.protocols.client_channel import ClientChannel
from executor.protocols.client_settings import ClientOptions
from executor.protocols.sockets import connect
from executor.protocols.told_events import ToldEvents
from executor.protocols.worker_client import WorkerClient
from executor.protocols.worker_protocol import BuildMode, Trust, Version
from executor.store.local import LocalStore
from executor.store.location import parse_store_url
from executor.store.tree import dump_tree
from tests.protocols.conftest import RunningDaemon

pytestmark = [pytest.mark.root, pytest.mark.nix]
STORE_DIR = StoreDir("/nix/store")
HYDRA = Version(38, frozenset({"realisation-with-path-not-hash"}))
OPTIONS = ClientOptions(
    keep_failed=False,
    keep_going=False,
    fallback=False,
    verbosity=3,
    max_jobs=1,
    max_silent_time=0,
    cores=1,
    substitute=False,
)


@pytest.fixture
def agent(daemon: RunningDaemon) -> Iterator[WorkerClient]:
    """Connected, and content with whom it has found."""
    channel = ClientChannel.of_socket(connect(daemon.socket_path))
    with WorkerClient(channel, STORE_DIR, newest=HYDRA) as client:
        assert client.version.minor >= 37
        assert client.trust is Trust.TRUSTED
        client.set_options(OPTIONS)
        yield client


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[LocalStore]:
    """The store of the machine that has the queue."""
    with LocalStore.open(parse_store_url(str(tmp_path / "queue"), {})) as store:
        yield store


def resolved(queue: LocalStore, tmp_path: Path, name: str, script: str) -> StorePath:
    """A step of a build: a derivation with one source."""
    expression = (
        f'derivation {{ name = "{name}"; system = "x86_64-linux"; builder = "/bin/sh"; '
        f'args = ["-c" "{script}"]; source = builtins.toFile "source" "of {name}"; }}'
    )
    done = subprocess.run(
        ["nix-instantiate", "--store", str(tmp_path / "queue"), "-E", expression],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return StorePath.parse(done.stdout.strip().rpartition("/")[2])


def build(
    agent: WorkerClient, queue: LocalStore, drv_path: StorePath, options: ClientOptions
) -> tuple[BuildStatus, list[bytes], dict[str, StorePath], float]:
    """As the agent does for each step: inputs by archives, then the derivation itself."""
    derivation: Derivation = queue.read_derivation(drv_path)
    for path in sorted(derivation.input_srcs):
        agent.add_temp_root(path)
        if not agent.is_valid(path):
            archive = io.BytesIO()
            dump_tree(queue.store_fd, path.base_name.encode(), archive.write)
            info = replace(queue.query_path_info(path), signatures=())
            agent.add_nar(info, io.BytesIO(archive.getvalue()), check=False)
        agent.ensure_path(path)
    agent.set_options(options)
    lines: list[bytes] = []

    def hear(event: Event) -> None:
        if isinstance(event, BuildLogLine):
            lines.append(event.line)

    agent.listen = ToldEvents(hear, STORE_DIR).take
    result = agent.build_derivation(drv_path, derivation, BuildMode.NORMAL)
    return result.status, lines, dict(result.outputs), result.stop_time - result.start_time


def test_a_step_is_built_and_its_output_taken_away(
    agent: WorkerClient, queue: LocalStore, tmp_path: Path
) -> None:
    drv_path = resolved(queue, tmp_path, "step", "echo building; read x < $source; echo $x > $out")
    status, lines, outputs, seconds = build(agent, queue, drv_path, OPTIONS)
    assert (status, lines) == (BuildStatus.BUILT, [b"building"])
    assert outputs.keys() == {"out"}
    assert seconds >= 0
    info = agent.query_path_info(outputs["out"])
    assert info is not None
    archive = io.BytesIO()
    agent.nar_from_path(info.path, archive.write)
    assert hash_bytes(HashAlgorithm.SHA256, archive.getvalue()) == info.nar_hash
    assert build(agent, queue, drv_path, OPTIONS)[0] is BuildStatus.ALREADY_VALID


@pytest.mark.parametrize(
    ("script", "overrides", "status"),
    [
        ("exit 1", {}, BuildStatus.PERMANENT_FAILURE),
        ("while :; do read -t 1 x < /dev/zero; done", {"timeout": "1"}, BuildStatus.TIMED_OUT),
        (
            "while :; do echo much; done",
            {"max-build-log-size": "4096"},
            BuildStatus.LOG_LIMIT_EXCEEDED,
        ),
    ],
)
def test_failures_have_the_status_that_hydra_looks_at(
    agent: WorkerClient,
    queue: LocalStore,
    tmp_path: Path,
    script: str,
    overrides: dict[str, str],
    status: BuildStatus,
) -> None:
    drv_path = resolved(queue, tmp_path, f"failing-{status.name}", script)
    options = replace(OPTIONS, overrides=tuple(overrides.items()))
    assert build(agent, queue, drv_path, options)[0] is status
    assert agent.is_valid(drv_path) is False


def test_a_newer_agent_and_an_older_daemon_agree_on_what_both_know(daemon: RunningDaemon) -> None:
    for minor in (37, 38):
        channel = ClientChannel.of_socket(connect(daemon.socket_path))
        with WorkerClient(channel, STORE_DIR, newest=Version(minor, HYDRA.features)) as client:
            assert client.version == Version(minor)


def test_its_question_for_settings_is_answered_as_nix_does() -> None:
    """A program named ``nix`` may hand ``show-config --json`` on to the executor."""

    def ask(*words: str) -> dict[str, dict[str, object]]:
        done = subprocess.run(words, capture_output=True, check=True, timeout=60)
        found: dict[str, dict[str, object]] = json.loads(done.stdout)
        return found

    ours = ask(sys.executable, "-m", "executor", "show-config", "--json")
    theirs = ask("nix", "--extra-experimental-features", "nix-command", "show-config", "--json")
    for name in ("system", "extra-platforms", "system-features", "max-jobs", "substituters"):
        assert type(ours[name]["value"]) is type(theirs[name]["value"]), name
    assert ours["system"]["value"] == theirs["system"]["value"]
    assert ours["use-cgroups"]["value"] is False
