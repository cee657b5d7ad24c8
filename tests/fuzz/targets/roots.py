"""What tells the collector of roots: files of temporary ones, its socket, /proc."""

from __future__ import annotations

import atexit
import fcntl
import os
import shutil
import tempfile
from collections.abc import Hashable
from functools import cache

from executor.formats.store_path import StoreDir, StorePath
from executor.store.foreign import Patience
from executor.store.gc_roots import _ProcessScanner, find_temporary_roots, hash_part, parse_line
from executor.store.location import StoreLocation
from tests.fuzz.harness import Target
from tests.fuzz.targets.names import PATH, STORE_DIR, expect

_MAPS = (
    b"7f00-7f01 r-xp 00000000 fe:01 1234 " + PATH + b"/lib/libc.so.6\n"
    b"PATH=/bin:" + PATH + b"-bin/bin\0HOME=/root\0"
)


@cache
def _location() -> StoreLocation:
    """A store whose temporary roots are in one file that a living process holds: this one."""
    directory = tempfile.mkdtemp(prefix="fuzz-")
    atexit.register(shutil.rmtree, directory)
    os.makedirs(f"{directory}/temproots")
    return StoreLocation(
        store_dir=StoreDir(),
        real_store_dir=f"{directory}/store",
        state_dir=directory,
        log_dir=f"{directory}/log",
        conf_dir=f"{directory}/etc",
    )


@cache
def _roots_file() -> int:
    fd = os.open(f"{_location().state_dir}/temproots/1", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    fcntl.flock(fd, fcntl.LOCK_EX)
    return fd


def _temporary(data: bytes) -> Hashable:
    fd = _roots_file()
    os.pwrite(fd, data, 0)
    os.ftruncate(fd, len(data))
    told: list[str] = []
    found = find_temporary_roots(_location(), told.append)
    expect(not told, "the file of a living process is taken for a dead one's")
    written = set(data.split(b"\0")[:-1])
    expect({STORE_DIR.render(path).encode() for path in found} <= written, "made up")
    return len(found)


def _line(data: bytes) -> Hashable:
    path = parse_line(STORE_DIR, data)
    expect(path is None or STORE_DIR.render(path).encode() == data, "a path is read otherwise")
    part = hash_part(data)
    expect(part is None or data.startswith(part.encode() + b"-"), "another hash part")
    return path is None, part is None


@cache
def _scanner() -> _ProcessScanner:
    return _ProcessScanner(_location(), lambda _path: True, lambda _text: None, Patience())


def _process(data: bytes) -> Hashable:
    scanner, fd = _scanner(), _process_file()
    os.pwrite(fd, data, 0)
    os.ftruncate(fd, len(data))
    scanner._roots.clear()
    file = f"{_location().state_dir}/environ"
    scanner._take(scanner._names_in(file), file)
    found: set[StorePath] = set(scanner._roots)
    expect(all(path.digest.encode() in data for path in found), "made up")
    return len(found)


@cache
def _process_file() -> int:
    return os.open(f"{_location().state_dir}/environ", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)


_TOKENS = (PATH, PATH + b"\0", PATH[11:], b"\0", b"/nix/store/", b"-", b"\xff", b"/", b"\n", b"..")

TARGETS = (
    Target(
        name="roots-line",
        run=_line,
        errors=(),
        inputs=(PATH, PATH[11:], PATH + b"/x"),
        tokens=_TOKENS,
    ),
    Target(
        name="roots-file",
        run=_temporary,
        errors=(),
        inputs=(PATH + b"\0" + PATH + b"x\0", PATH + b"\0half"),
        tokens=_TOKENS,
    ),
    Target(name="roots-process", run=_process, errors=(), inputs=(_MAPS,), tokens=_TOKENS),
)
