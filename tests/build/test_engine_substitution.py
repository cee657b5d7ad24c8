"""Outputs that come from substituters: what is fetched, what is built, and who is believed."""

from __future__ import annotations

import re
import shutil
import signal
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from executor.build.events import GraphPlanned, SubstitutionFinished, SubstitutionStarted
from executor.build.plan import Target
from executor.build.result import BuildStatus
from executor.caches.address import parse_cache_address
from executor.caches.copy import copy_to_cache
from executor.caches.writer import CacheWriter
from executor.derivation import FloatingOutput
from executor.formats.content_address import IngestionMethod
from executor.formats.hashes import HashAlgorithm
from executor.formats.store_path import StorePath
from executor.store.signing import SecretKey
from tests.build.conftest import Drv, Run, Workshop, fixed, wait_until
from tests.build.conftest import workshop as workshop
from tests.web import Answer, Server
from tests.web import server as server

pytestmark = pytest.mark.root

KEY = SecretKey("cache-1", b"s" * 32)
FLOATING = {"out": FloatingOutput(IngestionMethod.NAR, HashAlgorithm.SHA256)}


def public_key(key: SecretKey) -> str:
    import base64

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    raw = Ed25519PrivateKey.from_private_bytes(key.seed).public_key().public_bytes_raw()
    return f"{key.name}:{base64.b64encode(raw).decode()}"


class Far:
    """Another store, where things are built, and a binary cache that is filled from it."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self.workshop = Workshop(directory)
        self.cache = directory / "cache"

    def publish(
        self, *drvs: Drv, key: SecretKey | None = KEY, paths: Iterable[StorePath] = ()
    ) -> None:
        """Build derivations and put their outputs into the cache."""
        outputs = list(paths)
        for drv in drvs:
            result = self.workshop.build(drv).result
            assert result.success, result.message
            outputs += result.outputs.values()
        address = parse_cache_address(f"file://{self.cache}?compression=none")
        keys = [] if key is None else [key]
        with (
            self.workshop.store() as store,
            CacheWriter(address, store.store_dir, keys) as writer,
        ):
            copy_to_cache(store, writer, outputs, jobs=2, progress=lambda _path: None)

    def forget(self, path: StorePath) -> None:
        (self.cache / f"{path.digest}.narinfo").unlink()

    def archive(self, path: StorePath) -> Path:
        text = (self.cache / f"{path.digest}.narinfo").read_text()
        found = re.search("URL: (.*)", text)
        assert found is not None
        return self.cache / found[1]


@pytest.fixture
def far(tmp_path: Path) -> Far:
    return Far(tmp_path / "far")


@pytest.fixture
def near(workshop: Workshop, far: Far) -> Workshop:
    """The store of the test, with the cache as its substituter."""
    workshop.change(
        substituters=(f"file://{far.cache}",),
        trusted_public_keys=frozenset({public_key(KEY)}),
    )
    return workshop


def both(near: Workshop, far: Far, name: str, script: str = "echo made > $out", **more: Any) -> Drv:
    """The same derivation in both stores; inputs and sources have to be in both."""
    drv = near.make(name, script, **more)
    assert far.workshop.make(name, script, **more) == drv
    return drv


def chain(near: Workshop, far: Far) -> tuple[Drv, Drv, Drv]:
    """Three derivations; each output names the one before."""
    first = both(near, far, "first")
    second = both(near, far, "second", "echo $first_out > $out", inputs=[first])
    return first, second, both(near, far, "third", "echo $second_out > $out", inputs=[second])


def fetched(run: Run) -> list[StorePath]:
    return [event.path for event in run.events if isinstance(event, SubstitutionStarted)]


def test_what_somebody_has_is_not_built(near: Workshop, far: Far) -> None:
    first, second, third = chain(near, far)
    far.publish(third)
    run = near.build(third)
    assert run.result.status is BuildStatus.SUBSTITUTED
    assert run.started == []
    assert fetched(run) == [first.out, second.out, third.out]
    info, there = near.info(third.out), far.workshop.info(third.out)
    assert (info.nar_hash, info.references) == (there.nar_hash, there.references)
    assert (info.deriver, info.ultimate) == (third.path, False)
    assert near.real(third.out).read_text() == far.workshop.real(third.out).read_text()
    assert near.leftovers() == []
    assert near.build(third).result.status is BuildStatus.ALREADY_VALID


def test_listeners_hear_what_will_be_fetched(near: Workshop, far: Far) -> None:
    _, second, third = chain(near, far)
    far.publish(second)
    run = near.build(third)
    (plan,) = [event for event in run.events if isinstance(event, GraphPlanned)]
    assert plan.will_build == (third.path,)
    assert len(plan.will_substitute) == 2
    assert plan.nar_size == sum(near.info(path).nar_size for path in plan.will_substitute)
    ended = [event for event in run.events if isinstance(event, SubstitutionFinished)]
    assert all(event.success for event in ended)


def test_an_incomplete_closure_is_built_where_it_must_be(near: Workshop, far: Far) -> None:
    """What lacks part of its closure is tried again once the inputs are there."""
    first, second, third = chain(near, far)
    far.publish(third)
    far.forget(first.out)
    run = near.build(third)
    assert run.result.status is BuildStatus.SUBSTITUTED
    assert run.started == [first.path]
    assert fetched(run) == [second.out, third.out]


def test_a_missing_derivation_is_fetched(near: Workshop, far: Far) -> None:
    input_ = far.workshop.make("input")
    drv = far.workshop.make("far", "cat $input_out > $out", inputs=[input_])
    far.publish(paths=[drv.path])
    run = near.build(drv)
    assert run.result.success, run.result.message
    assert run.started == [input_.path, drv.path]


def test_a_missing_source_is_fetched(near: Workshop, far: Far) -> None:
    source = far.workshop.source("text", b"a source\n")
    drv = far.workshop.make("user", f"cat {far.workshop.render(source)} > $out", sources=[source])
    far.publish(paths=[source, drv.path])
    with far.workshop.store() as store:
        assert store.query_path_info(drv.path).references == {source}
    run = near.build(drv)
    assert run.result.success, run.result.message
    assert near.real(drv.out).read_text() == "a source\n"


@pytest.mark.parametrize("key", [None, SecretKey("cache-1", b"x" * 32), SecretKey("y", b"s" * 32)])
def test_what_nobody_trusted_signed_is_built(
    near: Workshop, far: Far, key: SecretKey | None
) -> None:
    drv = both(near, far, "drv")
    far.publish(drv, key=key)
    run = near.build(drv)
    assert run.result.status is BuildStatus.BUILT
    assert any("not signed by any of the keys" in text for text in run.notices)
    assert near.build(near.make("other"), require_sigs=False).result.success


@pytest.mark.parametrize("way", ["setting", "url"])
def test_signatures_may_be_waived(near: Workshop, far: Far, way: str) -> None:
    drv = both(near, far, "drv")
    far.publish(drv, key=None)
    if way == "setting":
        near.change(require_sigs=False)
    else:
        near.change(substituters=(f"file://{far.cache}?trusted=true",))
    assert near.build(drv).result.status is BuildStatus.SUBSTITUTED


def test_a_fixed_output_needs_no_signature(near: Workshop, far: Far) -> None:
    drv = both(near, far, "fixed", "echo it > $out", outputs={"out": fixed(b"it\n")})
    far.publish(drv, key=None)
    assert near.build(drv).result.status is BuildStatus.SUBSTITUTED
    assert near.info(drv.out).content_address is not None


def test_a_signature_covers_the_references(near: Workshop, far: Far) -> None:
    first, second, _ = chain(near, far)
    far.publish(second)
    file = far.cache / f"{second.out.digest}.narinfo"
    file.write_text(file.read_text().replace(f"References: {first.out.base_name}", "References: "))
    assert near.build(second).result.status is BuildStatus.BUILT


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "gone"])
def test_a_cache_that_lies_is_survived(near: Workshop, far: Far, damage: str) -> None:
    """Without fallback the goal fails for now; with it, it is built. Nothing bad gets in."""
    drv = both(near, far, "drv", "seq 10000 > $out")
    far.publish(drv)
    archive = far.archive(drv.out)
    data = archive.read_bytes()
    if damage == "gone":
        archive.unlink()
    else:
        flipped = data[:5000] + bytes([data[5000] ^ 1]) + data[5001:]
        archive.write_bytes({"flip": flipped, "cut": data[:5000], "empty": b""}[damage])
    if damage != "gone":
        failed = near.build(drv)
        assert failed.result.status is BuildStatus.TRANSIENT_FAILURE
        assert "try '--fallback' to build derivation from source" in failed.result.message
        assert not near.is_valid(drv.out)
        assert near.leftovers() == []
    run = near.build(drv, fallback=True)
    assert run.result.status is BuildStatus.BUILT
    assert near.leftovers() == []


def test_another_substituter_is_asked_where_one_fails(
    near: Workshop, far: Far, tmp_path: Path
) -> None:
    drv = both(near, far, "drv")
    far.publish(drv)
    good = tmp_path / "good"
    shutil.copytree(far.cache, good)
    far.archive(drv.out).write_bytes(b"nonsense")
    bad = f"file://{far.cache}?priority=1"
    near.change(substituters=("file:///nonexistent/cache", bad, f"file://{good}?priority=2"))
    run = near.build(drv)
    assert run.result.status is BuildStatus.SUBSTITUTED
    assert any("does not appear to be a binary cache" in text for text in run.notices)


def test_a_server_that_is_down_costs_a_warning(near: Workshop, far: Far) -> None:
    drv = both(near, far, "drv")
    near.change(substituters=("http://127.0.0.1:1/cache",), download_attempts=1)
    run = near.build(drv)
    assert run.result.status is BuildStatus.BUILT
    assert [text for text in run.notices if "Could not connect to server" in text]


def test_a_server_serves_a_whole_graph(near: Workshop, far: Far, server: Server) -> None:
    drvs = [both(near, far, f"leaf-{number}") for number in range(20)]
    top = both(near, far, "top", "set | grep leaf > $out || echo none > $out", inputs=drvs)
    far.publish(top)
    server.directory = far.cache
    near.change(substituters=(server.url(""),))
    run = near.build(top)
    assert run.result.status is BuildStatus.SUBSTITUTED
    assert server.connections <= 26


def test_realisations_are_fetched(near: Workshop, far: Far) -> None:
    features = frozenset({"ca-derivations"})
    near.change(experimental_features=features)
    far.workshop.change(experimental_features=features)
    floating = both(near, far, "floating", outputs=FLOATING)
    user = both(near, far, "user", "cat $floating_out > $out", inputs=[floating])
    far.workshop.change(secret_key_files=(_key_file(far),))
    far.publish(user)
    run = near.build(user)
    assert run.result.status is BuildStatus.SUBSTITUTED, run.result.message
    assert run.started == []
    with near.store() as store:
        assert len(store.realisations.of_paths(run.result.outputs.values())) == 1
    assert near.build(user).result.status is BuildStatus.ALREADY_VALID


def test_a_realisation_that_nobody_signed_is_not_believed(near: Workshop, far: Far) -> None:
    features = frozenset({"ca-derivations"})
    near.change(experimental_features=features)
    far.workshop.change(experimental_features=features)
    floating = both(near, far, "floating", outputs=FLOATING)
    far.publish(floating, key=None)
    run = near.build(floating)
    assert run.result.status is BuildStatus.BUILT
    assert any("ignoring the realisation" in text for text in run.notices)


def test_a_realisation_that_contradicts_ours_is_told(near: Workshop, far: Far) -> None:
    """Two builds that differ; the dependent's closure from afar holds the other one."""
    features = frozenset({"ca-derivations"})
    near.change(experimental_features=features)
    far.workshop.change(experimental_features=features)
    floating = both(
        near, far, "floating", "echo $$ > $out; cat /proc/uptime >> $out", outputs=FLOATING
    )
    far.workshop.change(secret_key_files=(_key_file(far),))
    far.publish(floating)
    mine = near.build(floating, substitute=False).result
    run = near.build(floating)
    assert run.result.status is BuildStatus.ALREADY_VALID
    assert run.result.outputs == mine.outputs


def test_derivations_may_refuse_substitutes(near: Workshop, far: Far) -> None:
    drv = both(near, far, "own", env={"allowSubstitutes": ""})
    far.publish(drv)
    assert near.build(drv).result.status is BuildStatus.BUILT


def test_the_machine_may_insist(near: Workshop, far: Far) -> None:
    drv = both(near, far, "own", env={"allowSubstitutes": ""})
    far.publish(drv)
    run = near.build(drv, always_allow_substitutes=True)
    assert run.result.status is BuildStatus.SUBSTITUTED


def test_only_what_is_wanted_is_fetched(near: Workshop, far: Far) -> None:
    script = "echo a > $out; echo b > $dev"
    drv = both(near, far, "two", script, outputs=("out", "dev"))
    far.publish(drv)
    run = near.build_targets(Target(drv_path=drv.path, outputs=frozenset({"dev"})))
    assert fetched(run) == [drv.outputs["dev"]]
    assert not near.is_valid(drv.out)


@pytest.mark.parametrize("what", ["nix-cache-info", "narinfo", "archive"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_cancelled_run_does_not_wait_for_a_server(
    near: Workshop, far: Far, server: Server, what: str, number: signal.Signals
) -> None:
    drv = both(near, far, "drv")
    far.publish(drv)
    server.directory = far.cache
    forever = threading.Event()
    archive = {
        "nix-cache-info": "/nix-cache-info",
        "narinfo": f"/{drv.out.digest}.narinfo",
        "archive": "/" + str(far.archive(drv.out).relative_to(far.cache)),
    }[what]
    server.offer(archive, Answer(wait=forever))
    conf = near.directory / "conf"
    conf.mkdir(exist_ok=True)
    (conf / "nix.conf").write_text(f"trusted-public-keys = {public_key(KEY)}\n")
    process = near.start_cli("build", drv.text, "--option", "substituters", server.url(""))
    wait_until(lambda: archive in server.paths, "the request")
    process.send_signal(number)
    try:
        _, errors = process.communicate(timeout=20)
    finally:
        forever.set()
        process.kill()
    assert process.returncode == 128 + number, errors
    assert near.leftovers() == []


def test_a_repair_fetches_good_contents(near: Workshop, far: Far) -> None:
    drv = both(near, far, "drv")
    far.publish(drv)
    near.build(drv)
    near.real(drv.out).chmod(0o644)
    near.real(drv.out).write_text("damaged\n")

    async def repair(executor: Any) -> Any:
        return await executor.build_all([Target(drv_path=drv.path)], repair=True)

    (result,) = near.run(repair)
    assert result.success
    assert near.real(drv.out).read_text() == "made\n"
    assert near.leftovers() == []


def _key_file(far: Far) -> str:
    import base64

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    raw = Ed25519PrivateKey.from_private_bytes(KEY.seed).public_key().public_bytes_raw()
    file = far.workshop.directory / "key"
    file.write_text(f"{KEY.name}:{base64.b64encode(KEY.seed + raw).decode()}")
    return str(file)
