"""Published source packages, fetched by apt with a configuration and a state of their own.

The archive is the one that the system installs from; apt checks its signature, that of the index
of sources by the archive's, every ``.dsc`` by the index. What is here once is used again as long
as it is what its ``.dsc`` says.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

CACHE = Path(__file__).parent.parent.parent / ".cache" / "sources"
_TIMEOUT = 300
_RELEASE_FILE = re.compile(r"^'(\S+)/dists/([^/' ]+)/InRelease'", re.MULTILINE)
_CHECKSUMS = re.compile(r"^Checksums-Sha256:\n((?: .*\n)+)", re.MULTILINE)


def fetch(packages: Iterable[str]) -> dict[str, Path]:
    """The archives that the packages' authors published. Fails the test if one can't be had."""
    directories = {package: CACHE / package for package in packages}
    missing = [name for name, path in directories.items() if not _is_complete(path)]
    if missing:
        apt = _Apt(CACHE / "apt")
        for package in missing:
            apt.download(package, directories[package])
            assert _is_complete(directories[package]), f"apt-get left {package} incomplete"
    return {package: _archive(path) for package, path in directories.items()}


def _archive(directory: Path) -> Path:
    """Upstream's archive, not its detached signature."""
    (found,) = (path for path in directory.glob("*.orig.tar.*") if path.suffix != ".asc")
    return found


def _is_complete(directory: Path) -> bool:
    """Whether a package is there, and all of it is what its ``.dsc`` says."""
    descriptions = list(directory.glob("*.dsc"))
    if len(descriptions) != 1:
        return False
    sums = dict(_checksums(descriptions[0].read_text()))
    return bool(sums) and all(_sha256(directory / name) == value for name, value in sums.items())


def _checksums(description: str) -> Iterator[tuple[str, str]]:
    """File names and their SHA-256, as a ``.dsc`` lists them."""
    section = _CHECKSUMS.search(description)
    for line in section.group(1).splitlines() if section else ():
        value, _size, name = line.split()
        yield name, value


def _sha256(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


class _Apt:
    """apt-get on the system's archive, with a configuration and a state below ``directory``."""

    def __init__(self, directory: Path) -> None:
        sources = directory / "sources.list"
        options = (
            f"Dir::State={directory}/state",
            f"Dir::Cache={directory}/cache",
            f"Dir::Etc::sourcelist={sources}",
            "Dir::Etc::sourceparts=/dev/null",
            # apt's own user can't enter a checkout below /root.
            "APT::Sandbox::User=root",
            "APT::Update::Error-Mode=any",
            "Acquire::Retries=3",
        )
        self._command = ["apt-get", "-q", *(w for option in options for w in ("-o", option))]
        for name in ("state/lists/partial", "cache/archives/partial"):
            (directory / name).mkdir(parents=True, exist_ok=True)
        sources.write_text(_source_list())
        _run([*self._command, "update"], directory)

    def download(self, package: str, directory: Path) -> None:
        """Fetch a source package as the only one in ``directory``."""
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        _run([*self._command, "source", "--download-only", package], directory)


def _source_list() -> str:
    """The archive of the running release, as the system's own configuration has it."""
    release = dict(
        line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if line
    )
    codename = release.get("VERSION_CODENAME", "stable").strip('"')
    listing = _run(["apt-get", "update", "--print-uris"], Path("/"))
    for archive, suite in _RELEASE_FILE.findall(listing):
        if suite == codename:
            return f"deb-src {archive} {suite} main\n"
    pytest.fail(f"no archive of {codename} among the system's package sources:\n{listing}")


def _run(command: list[str], directory: Path) -> str:
    try:
        done = subprocess.run(
            command, cwd=directory, capture_output=True, text=True, timeout=_TIMEOUT, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        pytest.fail(f"the sources of real programs can't be fetched: {error}", pytrace=False)
    if done.returncode != 0:
        shown = " ".join(command)
        pytest.fail(
            f"the sources of real programs can't be fetched: '{shown}' ended with "
            f"{done.returncode}:\n{done.stdout}{done.stderr}",
            pytrace=False,
        )
    return done.stdout
