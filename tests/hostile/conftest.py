"""What the hostile tests share: a machine that is watched, and a program that attacks."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from executor.config import SandboxPath
from tests.build.conftest import Workshop
from tests.conftest import IN_CI
from tests.hostile.host import Watch, differences, owned_by_builds
from tests.hostile.probes import compile_attack
from tests.sandbox.conftest import bench as bench


def make_canaries(directory: Path) -> Path:
    """Files like those that an attacker would like to change."""
    directory.mkdir(mode=0o755)
    (directory / "closed").mkdir(mode=0o700)
    for name, mode in (("shadow", 0o600), ("open", 0o666), ("program", 0o755)):
        for place in (directory, directory / "closed"):
            (place / name).write_text("precious\n")
            (place / name).chmod(mode)
    (directory / "link").symlink_to("closed/shadow")
    (directory / "shared").mkdir()
    (directory / "shared").chmod(0o1777)
    return directory


@pytest.fixture(scope="package")
def canaries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Victims; what becomes of them is looked at after all tests."""
    return make_canaries(tmp_path_factory.mktemp("canaries") / "victim")


@pytest.fixture(scope="package", autouse=True)
def host(tmp_path_factory: pytest.TempPathFactory, canaries: Path) -> Iterator[Watch]:
    """The machine is the same after all hostile tests as before: nothing has come through."""
    mark = tmp_path_factory.getbasetemp().name
    watch = Watch((f"/{mark}/",), (canaries,), alone=IN_CI)
    before = watch.look()
    yield watch
    assert differences(before, watch.look()) == []


@pytest.fixture(scope="package")
def attack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The static program that attacks from inside; see attack.c."""
    return compile_attack(tmp_path_factory.mktemp("attack"))


@pytest.fixture
def workshop(tmp_path: Path, attack: Path) -> Iterator[Workshop]:
    """A store of one test whose builders find the attacker at ``/bin/attack``.

    Afterwards nothing below it belongs to a build id, and nothing lies in the store that isn't
    valid.
    """
    os.chmod(tmp_path, 0o755)
    workshop = Workshop(tmp_path)
    shown = SandboxPath(target="/bin/attack", source=str(attack), read_only=True)
    workshop.change(sandbox_paths=(*workshop.settings.sandbox_paths, shown))
    yield workshop
    if workshop.database.exists():
        assert workshop.leftovers() == []
    assert owned_by_builds(workshop.root) == []
