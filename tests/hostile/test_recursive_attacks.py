"""Builders that attack their socket (row 63): by what they add, claim, and do meanwhile."""

from __future__ import annotations

import time

import pytest

from executor.derivation import FixedOutput
from executor.formats.content_address import IngestionMethod
from executor.formats.hashes import HashAlgorithm, hash_bytes
from tests.build.conftest import Workshop
from tests.hostile.test_recursive import NIX, QUIET, build, inside, wide

pytestmark = [pytest.mark.root, pytest.mark.nix]


def test_row_063_a_derivation_can_not_name_what_its_builder_does_not_see(
    workshop: Workshop,
) -> None:
    with workshop.store() as store:
        secret = store.store_dir.render(store.add_text("secret", b"a secret"))
    run = build(workshop, f"{inside('smuggle', secret)}; echo > $out")
    assert run.result.success, (run.result.message, run.text)
    assert "a secret" not in run.text
    assert f"path '{secret}' is not valid" in run.text


def test_row_063_what_is_valid_already_is_not_shown_to_who_only_knows_its_hash(
    workshop: Workshop,
) -> None:
    with workshop.store() as store:
        secret = store.add_text("secret", b"a secret")
        address = store.query_path_info(secret).content_address
        name = store.store_dir.render(secret)
    run = build(workshop, f"{inside('claim', name, address or '')}; echo > $out")
    assert run.result.success, (run.result.message, run.text)
    assert "claimed-valid False" in run.text
    assert "claimed-many-valid False" in run.text


def test_row_063_who_waits_for_its_own_lock_waits_no_longer_than_the_builder(
    workshop: Workshop,
) -> None:
    digest = hash_bytes(HashAlgorithm.SHA256, b"fixed\n")
    drv = workshop.make(
        "outer",
        f"{QUIET} ({inside('repeat')} > log 2>&1) & sleep 3; echo fixed > $out",
        env=NIX,
        outputs={"out": FixedOutput(IngestionMethod.FLAT, digest)},
    )
    begin = time.monotonic()
    run = workshop.build(drv, **wide(workshop))
    assert run.result.success, (run.result.message, run.text)
    assert time.monotonic() - begin < 20
    assert workshop.leftovers() == []


def test_row_063_nothing_is_mounted_where_the_builder_may_change_mounts(
    workshop: Workshop,
) -> None:
    run = build(
        workshop, f"exec 2>&1; {inside('leave').replace('PYTHONPATH', 'exec env PYTHONPATH')}"
    )
    print(run.text)
    assert "remounted True" not in run.text
