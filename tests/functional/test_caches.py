"""Binary caches: what of a derivation can be had, what is told before, and lies.

Upstream: build-dry, multiple-outputs-substitute-failure, substitute-with-invalid-ca.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from executor.build.plan import Target
from executor.build.result import BuildStatus
from tests.build.conftest import Workshop
from tests.build.test_engine_substitution import Far
from tests.functional.conftest import workshop as workshop

pytestmark = pytest.mark.root


@pytest.fixture
def far(tmp_path: Path) -> Far:
    return Far(tmp_path / "far")


@pytest.fixture
def near(workshop: Workshop, far: Far) -> Workshop:
    workshop.change(substituters=(f"file://{far.cache}",), require_sigs=False)
    return workshop


def test_a_dry_run_tells_what_will_be_fetched(near: Workshop, far: Far) -> None:
    input_ = near.make("input")
    top = near.make("top", "cat $input_out > $out", inputs=[input_])
    assert far.workshop.make("input") == input_
    far.publish(input_, key=None)
    options = ("--substituters", f"file://{far.cache}", "--no-require-sigs")
    done = near.cli("build", top.text, "--dry-run", *options)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(
        rf"this derivation will be built:\n  {top.text}\n"
        r"this path will be fetched \(\S+ KiB download, \S+ KiB unpacked\):\n"
        rf"  {near.render(input_.out)}\n",
        done.stderr,
    )
    assert not near.is_valid(input_.out)


def test_one_output_is_fetched_and_the_other_can_not_be_had(near: Workshop, far: Far) -> None:
    script, outputs = "echo 1 > $first; echo 2 > $second", ("first", "second")
    drv = near.make("independent", script, outputs=outputs)
    assert far.workshop.make("independent", script, outputs=outputs) == drv
    far.publish(drv, key=None)
    narinfo = far.cache / f"{drv.outputs['second'].digest}.narinfo"
    narinfo.write_text(re.sub("NarHash:.*", f"NarHash: sha256:{'0' * 52}", narinfo.read_text()))
    run = near.build(drv, max_jobs=0)
    assert run.result.status is BuildStatus.TRANSIENT_FAILURE
    assert any("hash mismatch importing path" in text for text in run.notices)
    assert near.is_valid(drv.outputs["first"])
    assert not near.is_valid(drv.outputs["second"])


def test_a_cache_that_lies_about_a_content_address(near: Workshop, far: Far) -> None:
    good = far.workshop.source("good.txt", b"I'm a good path\n")
    bad = far.workshop.source("bad.txt", b"I'm a bad path\n")
    far.publish(paths=[good, bad], key=None)
    files = [far.cache / f"{path.digest}.narinfo" for path in (good, bad)]
    texts = [file.read_text() for file in files]
    for field in ("URL", "FileHash", "FileSize", "NarHash", "NarSize"):
        (value,) = re.findall(f"{field}: .*", texts[1])
        texts[0] = re.sub(f"{field}: .*", value, texts[0])
    files[0].write_text(texts[0])
    done = near.cli("copy", "--from", f"file://{far.cache}", "--no-check-sigs", near.render(good))
    assert done.returncode == 1
    assert "ca hash mismatch importing path" in done.stderr
    assert not near.is_valid(good)


def test_what_is_to_be_checked_is_fetched_first(near: Workshop, far: Far) -> None:
    same, other = near.make("same"), near.make("other", "cat /proc/uptime > $out")
    assert far.workshop.make("same") == same
    assert far.workshop.make("other", "cat /proc/uptime > $out") == other
    far.publish(same, other, key=None)
    targets = [Target(drv_path=drv.path, check=True) for drv in (same, other)]
    run = near.build_targets(*targets, keep_going=True)
    assert [result.status for result in run.results] == [
        BuildStatus.BUILT,
        BuildStatus.NOT_DETERMINISTIC,
    ]
