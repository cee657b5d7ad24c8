"""The root file system of all machines: Debian with systemd, stock Nix and the project.

Two layers, each made once and kept under the hash of what went into it: ``base-…``, the packages,
and ``root-….img``, that with the project installed from a wheel by ``scripts/install.sh``. The
image is never written again: each machine has a layer of its own above it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from driver.catalogue import HOME, KERNELS
from driver.errors import DriverError
from driver.kernels import Kernel, fetch
from driver.qemu import PROGRAM, require_program

PROJECT = HOME.parent
SUITE = "bookworm"
PACKAGES = (
    *("systemd", "systemd-sysv", "dbus", "udev", "kmod", "iproute2", "procps", "util-linux"),
    *("python3", "python3-venv", "passt", "nftables", "busybox-static", "ca-certificates"),
    *("openssh-server", "openssh-client", "e2fsprogs", "xz-utils", "libcap2"),
)
# What debootstrap can't configure in one go (a Perl module of it wants a virtual package).
_LATER = ("nix-bin",)
# What the image holds of the project, and so what a new image is made for.
_SOURCES = (
    "pyproject.toml",
    "setup.py",
    "Makefile",
    "README.md",
    "executor",
    "sandbox",
    "scripts",
    "systemd",
)
# The program of tests/hostile that issues system calls, and what they have to be answered.
_PROBE = PROJECT / "tests/hostile/probe.c"
_ANSWERS = PROJECT / "tests/hostile/golden/ordinary.txt"
_SIZE = "6G"
_HASH_LENGTH = 16
_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


@dataclass(frozen=True, slots=True)
class Image:
    """What machines are started from."""

    root: Path
    kernels: dict[str, Kernel]


def mirror() -> str:
    """Where Debian's packages come from."""
    return os.environ.get("DEBIAN_MIRROR", "http://deb.debian.org/debian")


def build(cache: Path, say: object = print, wanted: Iterable[str] = KERNELS) -> Image:
    """Make what isn't there yet, for machines with these kernels. Raises ``DriverError``.

    One process at a time does it.
    """
    assert callable(say)
    for program, package in (
        (PROGRAM, "qemu-system-x86"),
        ("qemu-img", "qemu-utils"),
        ("debootstrap", "debootstrap"),
        ("mkfs.ext4", "e2fsprogs"),
        ("unshare", "util-linux"),
        ("gcc", "gcc"),
    ):
        require_program(program, package)
    if os.geteuid() != 0:
        raise DriverError("making the image needs root; try sudo")
    cache.mkdir(parents=True, exist_ok=True)
    with _locked(cache / "lock"):
        kernels = {}
        with _from_mirror():
            for name in sorted(set(wanted)):
                say(f"kernel: {name}")
                kernels[name] = fetch(name, cache / "kernels", mirror())
            base = _base(cache, say)
        return Image(_root(cache, base, kernels, say), kernels)


def _base(cache: Path, say: object) -> Path:
    assert callable(say)
    base = cache / f"base-{_hash(SUITE, *PACKAGES, *_LATER)}"
    if base.exists():
        return base
    say(f"base system: {base.name}")
    _sweep(cache, "base-*")
    part = cache / "base.part"
    shutil.rmtree(part, ignore_errors=True)
    command = ["debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}"]
    if _KEYRING.exists():
        command.append(f"--keyring={_KEYRING}")
    _run([*command, SUITE, str(part), mirror()], cache / "base.log", timeout=900)
    script = "cp /etc/resolv.conf $1/etc/; mount -t proc proc $1/proc; root=$1; shift; "
    script += "exec chroot $root apt-get install -qq -y --no-install-recommends $@"
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-euc", script, "sh"]
    _run([*command, str(part), *_LATER], cache / "base.log", timeout=900)
    # The packages themselves aren't needed any more.
    for archive in (part / "var/cache/apt/archives").glob("*.deb"):
        archive.unlink()
    part.rename(base)
    return base


def _root(cache: Path, base: Path, kernels: dict[str, Kernel], say: object) -> Path:
    assert callable(say)
    versions = [kernel.version for kernel in kernels.values()]
    kind = f"root-{'-'.join(kernels)}"
    root = cache / f"{kind}-{_hash(base.name, *versions, *_source_hashes())}.img"
    if root.exists():
        return root
    say(f"image: {root.name}")
    _sweep(cache, f"{kind}-{'?' * _HASH_LENGTH}.img")
    work = cache / "work"
    shutil.rmtree(work, ignore_errors=True)
    (work / "upper/opt/wheels").mkdir(parents=True)
    # A umask of the caller's must not decide who can enter the guest's directories.
    (work / "upper").chmod(0o755)
    wheels = work / "upper/opt/wheels"
    log = cache / "root.log"
    # From a copy, because building leaves its traces where the sources are.
    source = _copied_sources(work / "source")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "-w", str(wheels), str(source)]
    _run(command, log, timeout=900)
    for kernel in kernels.values():
        target = work / "upper/usr/lib/modules" / kernel.version
        shutil.copytree(kernel.modules / kernel.version, target, symlinks=True)
    _add_probe(work / "upper/etc/executor-tests", log)
    script = HOME / "guest/make-image.sh"
    part = cache / "root.part"
    part.unlink(missing_ok=True)
    command = ["unshare", "--mount", "--propagation", "private", "sh", str(script)]
    _run([*command, str(base), str(work), str(PROJECT), str(part), _SIZE], log, timeout=900)
    shutil.rmtree(work)
    part.rename(root)
    return root


def _add_probe(target: Path, log: Path) -> None:
    target.mkdir(parents=True)
    shutil.copy2(_ANSWERS, target)
    command = ["gcc", "-static", "-no-pie", "-O1", "-o", str(target / "probe"), str(_PROBE)]
    _run(command, log, timeout=120)


def _copied_sources(target: Path) -> Path:
    target.mkdir()
    for name in _SOURCES:
        source = PROJECT / name
        if source.is_dir():
            shutil.copytree(source, target / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, target / name)
    return target


def _source_hashes() -> Iterator[str]:
    paths = [*(PROJECT / name for name in _SOURCES), HOME / "guest", _PROBE, _ANSWERS]
    for top in paths:
        for path in [top, *sorted(top.rglob("*"))] if top.is_dir() else [top]:
            if path.is_file() and "__pycache__" not in path.parts:
                yield f"{path.relative_to(PROJECT)}:{_hash(path.read_bytes())}"


def _hash(*parts: str | bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()[:_HASH_LENGTH]


def _sweep(cache: Path, pattern: str) -> None:
    for old in cache.glob(pattern):
        if old.is_dir():
            shutil.rmtree(old)
        else:
            old.unlink()


def _run(command: list[str], log: Path, *, timeout: float) -> None:
    with log.open("ab") as output:
        try:
            code = subprocess.run(
                command,
                timeout=timeout,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            raise DriverError(f"'{command[0]}' took more than {timeout:g} s; see {log}") from None
    if code != 0:
        tail = log.read_text(errors="replace")[-2000:]
        raise DriverError(f"'{' '.join(command)}' failed ({code}); {log} ends with:\n{tail}")


@contextmanager
def _from_mirror() -> Iterator[None]:
    """Errors inside are most often those of the network, so they say where from."""
    try:
        yield
    except DriverError as error:
        raise DriverError(
            f"{error}\nDebian's packages come from {mirror()}; if that can't be reached from here, "
            "set DEBIAN_MIRROR to a mirror that can"
        ) from error


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
