"""Realisations in the database: recorded, merged, contradicted; tables as Nix makes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from executor.errors import StoreError
from executor.formats.realisation import DrvOutput, Realisation
from executor.store.local import LocalStore
from executor.store.location import parse_store_url
from executor.store.settings import StoreSettings

ID = DrvOutput("sha256:" + "ab" * 32, "out")
SETTINGS = StoreSettings(
    experimental_features=frozenset({"ca-derivations"}), build_users_group="", fsync_metadata=False
)


def open_store(root: Path, settings: StoreSettings = SETTINGS) -> LocalStore:
    return LocalStore.open(parse_store_url(str(root), {}), settings=settings)


def test_signatures_are_added_and_contradictions_refused(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        path, other = store.add_text("a", b"a"), store.add_text("b", b"b")
        store.realisations.register([Realisation(ID, path, frozenset({"x:1"}))])
        store.realisations.register([Realisation(ID, path, frozenset({"y:2"}))])
        assert store.realisations.query(ID) == Realisation(ID, path, frozenset({"x:1", "y:2"}))
        with pytest.raises(StoreError, match=r"is .*-a' already"):
            store.realisations.register([Realisation(ID, other)])
        store.invalidate(path)
        with pytest.raises(StoreError, match="is not valid"):
            store.realisations.register([Realisation(DrvOutput(ID.drv_hash, "dev"), path)])
        assert store.realisations.query(ID) is None


def test_without_the_feature_nothing_is_made_or_found(tmp_path: Path) -> None:
    plain = StoreSettings(build_users_group="", fsync_metadata=False)
    with open_store(tmp_path, plain) as store:
        assert not store.realisations.enabled
    with open_store(tmp_path) as store:
        store.realisations.register([Realisation(ID, store.add_text("a", b"a"))])
    with open_store(tmp_path, plain) as store:
        assert store.realisations.query(ID) is None
