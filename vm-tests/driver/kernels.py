"""Kernels: Debian's cloud kernels, the oldest that is supported and the newest there is.

Each is a directory with ``vmlinuz``, ``initrd`` and ``modules/<version>``. The initial file system
has busybox and the modules that the root file system needs, so that a guest is in its own init
within a second or two, also where qemu has to emulate the processor.
"""

from __future__ import annotations

import lzma
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from driver.cpio import archive, directory, program
from driver.errors import DriverError
from driver.qemu import require_program

SUITES = {"oldest": "bookworm", "newest": "sid"}
_PACKAGE = "linux-image-cloud-amd64"
_PARTS = ("image", "binary", "modules")
_MODULES = ("virtio_pci", "virtio_blk", "ext4")
_BUSYBOX = Path("/bin/busybox")
_INIT = b"""\
#!/busybox sh
/busybox mount -t devtmpfs dev /dev
for module in /modules/*; do /busybox insmod $module; done
tries=0
until [ -b /dev/vda ] || [ $tries -gt 600 ]; do /busybox sleep 0.1; tries=$((tries + 1)); done
/busybox mount -t ext4 -o rw /dev/vda /root || exec /busybox poweroff -f
exec /busybox switch_root /root /sbin/init
"""


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel that can be booted."""

    home: Path

    @property
    def image(self) -> Path:
        """What is booted."""
        return self.home / "vmlinuz"

    @property
    def initrd(self) -> Path:
        """Its initial file system."""
        return self.home / "initrd"

    @property
    def modules(self) -> Path:
        """The directory of ``<version>/kernel/…``."""
        return self.home / "modules"

    @property
    def version(self) -> str:
        """As ``uname -r`` says it."""
        return next(self.modules.iterdir()).name


def fetch(name: str, home: Path, mirror: str) -> Kernel:
    """Download and unpack a kernel, unless it is there. Raises ``DriverError``."""
    kernel = Kernel(home / name)
    if kernel.initrd.exists():
        return kernel
    for needed, package in (("apt-get", "apt"), ("dpkg-deb", "dpkg"), ("depmod", "kmod")):
        require_program(needed, package)
    scratch = home / f"{name}.part"
    shutil.rmtree(scratch, ignore_errors=True)
    shutil.rmtree(kernel.home, ignore_errors=True)
    tree = scratch / "tree"
    for archive_file in _download(SUITES[name], scratch / "apt", mirror):
        _run(["dpkg-deb", "-x", str(archive_file), str(tree)])
    modules = tree / ("usr/lib/modules" if (tree / "usr/lib/modules").is_dir() else "lib/modules")
    version = next(modules.iterdir()).name
    done = scratch / "done"
    (done / "lib").mkdir(parents=True)
    shutil.move(modules, done / "lib/modules")
    _run(["depmod", "-b", str(done), version])
    shutil.move(done / "lib/modules", done / "modules")
    (done / "lib").rmdir()
    # In /boot, or since 7.0 beside the modules.
    shutil.move(next(scratch.rglob("vmlinuz*")), done / "vmlinuz")
    (done / "initrd").write_bytes(initrd(done / "modules" / version))
    done.rename(kernel.home)
    shutil.rmtree(scratch)
    return kernel


def initrd(modules: Path) -> bytes:
    """The initial file system for a directory of modules. Raises ``DriverError``."""
    if not _BUSYBOX.exists():
        raise DriverError("'/bin/busybox' is missing; on Debian: apt-get install busybox-static")
    entries = [directory(name) for name in ("dev", "root", "modules")]
    entries += [program("busybox", _BUSYBOX.read_bytes()), program("init", _INIT)]
    for number, path in enumerate(load_order(modules / "modules.dep", _MODULES)):
        entries.append(program(f"modules/{number:02}.ko", _plain(modules / path)))
    return archive(entries)


def load_order(dependencies: Path, wanted: tuple[str, ...]) -> list[str]:
    """The files of modules, each after those that it needs. What is built in isn't there."""
    lines = (line.partition(":") for line in dependencies.read_text().splitlines())
    needs = {path: rest.split() for path, _, rest in lines}
    names = {path.rpartition("/")[2].partition(".")[0].replace("-", "_"): path for path in needs}
    order: list[str] = []
    for name in wanted:
        path = names.get(name)
        if path is not None:
            # depmod names the nearest first.
            order += [one for one in [*reversed(needs[path]), path] if one not in order]
    return order


def _plain(path: Path) -> bytes:
    content = path.read_bytes()
    if path.suffix == ".xz":
        return lzma.decompress(content)
    if path.suffix == ".zst":
        import zstandard

        return zstandard.ZstdDecompressor().stream_reader(content).read()
    return content


def _download(suite: str, scratch: Path, mirror: str) -> list[Path]:
    """The package files of a suite's kernel, by an apt that knows of nothing else.

    Since 7.0 the image and the modules are in packages of their own.
    """
    for name in ("state/lists/partial", "cache/archives/partial", "etc"):
        (scratch / name).mkdir(parents=True)
    (scratch / "etc/sources.list").write_text(f"deb {mirror} {suite} main\n")
    (scratch / "state/status").touch()
    options = []
    for key, value in (
        ("Dir::State", scratch / "state"),
        ("Dir::State::status", scratch / "state/status"),
        ("Dir::Cache", scratch / "cache"),
        ("Dir::Etc::sourcelist", scratch / "etc/sources.list"),
        ("Dir::Etc::sourceparts", "/dev/null"),
        ("APT::Sandbox::User", "root"),
        ("APT::Architecture", "amd64"),
        # An index that can't be had is an error and no warning, and soon.
        ("APT::Update::Error-Mode", "any"),
        ("Acquire::Retries", "3"),
        ("Acquire::http::Timeout", "30"),
    ):
        options += ["-o", f"{key}={value}"]
    _run(["apt-get", *options, "-qq", "update"], timeout=300)
    shown = _run(["apt-cache", *options, "depends", "--important", _PACKAGE])
    real = next(
        word for word in shown.split() if word.startswith("linux-image-") and word != _PACKAGE
    )
    version = real.removeprefix("linux-image-")
    known = _run(["apt-cache", *options, "pkgnames", "linux-"]).split()
    parts = [name for part in _PARTS if (name := f"linux-{part}-{version}") in known]
    _run(["apt-get", *options, "-qq", "download", *parts], timeout=600, cwd=scratch)
    return sorted(scratch.glob("*.deb"))


def _run(command: list[str], *, timeout: float = 300, cwd: Path | None = None) -> str:
    try:
        result = subprocess.run(
            command, timeout=timeout, cwd=cwd, capture_output=True, text=True, check=False
        )
    except subprocess.TimeoutExpired:
        raise DriverError(f"'{' '.join(command)}' took more than {timeout:g} s") from None
    if result.returncode != 0:
        raise DriverError(f"'{' '.join(command)}' failed: {result.stderr.strip()[-2000:]}")
    return result.stdout
