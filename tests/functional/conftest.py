"""What the functional tests share: the workshop of the build tests, and places to meet."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from executor.config import SandboxPath
from executor.formats.store_path import StorePath
from tests.build.conftest import Workshop
from tests.build.conftest import workshop as workshop


@pytest.fixture
def meeting(workshop: Workshop) -> Path:
    """A directory of the host in which builders, of any executor, leave files for each other.

    They see it as ``/meeting``.
    """
    directory = workshop.directory / "meeting"
    directory.mkdir()
    directory.chmod(0o777)  # whatever the umask is
    shown = SandboxPath(target="/meeting", source=str(directory))
    workshop.change(sandbox_paths=(*workshop.settings.sandbox_paths, shown))
    return directory


def forget(workshop: Workshop, path: StorePath) -> None:
    """Take a path out of the store, as a collector does: from the database and from the disk."""
    with workshop.store() as store:
        store.invalidate(path)
    subprocess.run(["rm", "-rf", workshop.real(path)], check=True)
