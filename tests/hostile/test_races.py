"""Directories that become links while root walks: rows 73, 76 and 77, and trees of all sizes.

The attacker is a process of its own that exchanges a directory for a link to a victim, as fast as
it can, in a loop in C. No process of a builder is alive when its outputs are looked at, so this
is the second line, as if one were.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from executor.errors import ExecutorError
from executor.store.canonicalise import (
    Canonicaliser,
    canonicalise_and_describe,
    canonicalise_tree,
    describe_tree,
)
from executor.store.delete import delete_tree
from executor.store.restore import restore_tree
from executor.store.tree import copy_tree, dump_tree, move_tree
from tests.hostile.host import facts_of, tree

pytestmark = pytest.mark.root

_ROUNDS = 1000
_UID = 880_930_001
_EXCHANGER = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <signal.h>
#include <unistd.h>
int main(int argc, char **argv) {
  unsigned long done = 0;
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  puts("ready");
  fflush(stdout);
  for (;;) {
    if (syscall(SYS_renameat2, AT_FDCWD, argv[1], AT_FDCWD, argv[2], 2) == 0 && ++done % 4 == 0)
      usleep(done % 16 * 3);
    else if (done % 4 != 0)
      usleep(1);
  }
}
"""


@pytest.fixture(scope="module")
def exchanger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("exchanger")
    (directory / "x.c").write_text(_EXCHANGER)
    subprocess.run(["gcc", "-O1", "-o", directory / "x", directory / "x.c"], check=True, timeout=60)
    return directory / "x"


class Field:
    """Where a race takes place: a victim, and trees with a directory that changes places."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.victim = directory / "victim"
        (self.victim / "sub").mkdir(parents=True)
        for name in ("f0", "f1", "sub/f0", "precious"):
            (self.victim / name).write_text("precious")
        self.before = tree(self.victim)
        self.fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)

    def fill(self) -> None:
        """A fresh tree at ``top``, with ``top/d`` and the link ``top/link`` to exchange."""
        new = self.directory / "new"
        (new / "d/sub").mkdir(parents=True)
        for name in ("f0", "f1", "sub/f0"):
            (new / "d" / name).write_text("builder's")
        (new / "link").symlink_to(self.victim)
        new.rename(self.directory / "top")

    def clear(self) -> None:
        for name in ("top", "copy", "moved"):
            delete_tree(self.fd, name.encode())

    def is_intact(self) -> bool:
        return tree(self.victim) == self.before


@pytest.fixture
def memory() -> Iterator[Path]:
    """A directory in memory, where more rounds fit into a second."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        yield Path(directory)


@pytest.fixture
def field(memory: Path) -> Iterator[Field]:
    found = Field(memory)
    yield found
    os.close(found.fd)


@contextmanager
def attacker(field: Field, exchanger: Path) -> Iterator[None]:
    places = [field.directory / "top/d", field.directory / "top/link"]
    with subprocess.Popen([exchanger, *places], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield
        finally:
            process.kill()


def _delete(field: Field) -> None:
    delete_tree(field.fd, b"top")
    assert not os.path.lexists(field.directory / "top")


def _canonicalise(field: Field) -> None:
    canonicalise_and_describe(field.fd, b"top", candidates=["0" * 32])


def _metadata(field: Field) -> None:
    canonicalise_tree(field.fd, b"top", Canonicaliser())


def _describe(field: Field) -> None:
    found = describe_tree(field.fd, b"top", candidates=["0" * 32])
    assert found.references == frozenset()


def _copy(field: Field) -> None:
    copy_tree(field.fd, b"top", field.fd, b"copy")


def _dump(field: Field) -> None:
    data = bytearray()
    dump_tree(field.fd, b"top", data.extend)
    assert b"precious" not in data.replace(os.fsencode(field.victim), b"")


def _move(field: Field) -> None:
    move_tree(field.fd, b"top", field.fd, b"moved")


_ACTS = [_delete, _canonicalise, _metadata, _describe, _copy, _dump, _move]


@pytest.mark.parametrize("act", _ACTS)
def test_row_073_the_victim_of_a_race_is_intact(
    field: Field, exchanger: Path, act: Callable[[Field], None]
) -> None:
    """A result or a clean error; nothing of the victim is changed, or read into a result."""
    descriptors = len(os.listdir("/proc/self/fd"))
    refused = 0
    with attacker(field, exchanger):
        for _ in range(_ROUNDS):
            field.fill()
            try:
                act(field)
            except (ExecutorError, OSError):
                refused += 1
            field.clear()
    assert field.is_intact()
    assert len(os.listdir("/proc/self/fd")) <= descriptors + 1
    assert refused < _ROUNDS


def test_row_076_a_deletion_that_is_raced_deletes_all_and_nothing_else(
    field: Field, exchanger: Path
) -> None:
    """Also from the level above: the top itself is what is exchanged."""
    link = field.directory / "aside"
    with subprocess.Popen(
        [exchanger, field.directory / "top", link], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            for _ in range(_ROUNDS):
                link.symlink_to(field.victim)
                field.fill()
                for name in (b"top", b"aside", b"top"):
                    delete_tree(field.fd, name)
        finally:
            process.kill()
    delete_tree(field.fd, b"aside")
    assert field.is_intact()


def _nar_of_a_tree(field: Field) -> bytes:
    field.fill()
    data = bytearray()
    dump_tree(field.fd, b"top", data.extend)
    field.clear()
    return bytes(data)


class _Slow:
    """An archive that comes in pieces, so that there is time to interfere."""

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)

    def read(self, size: int, /) -> bytes:
        piece, self._data = self._data[:size], self._data[size:]
        return bytes(piece)


def test_row_073_a_restoration_that_is_raced_writes_nowhere_else(
    field: Field, exchanger: Path
) -> None:
    """The directory that is being filled changes places with a link, and so does the top."""
    archive = _nar_of_a_tree(field)
    places = [field.directory / "top/d", field.directory / "bait"]
    with subprocess.Popen([exchanger, *places], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            for _ in range(_ROUNDS):
                with suppress(FileExistsError):
                    (field.directory / "bait").symlink_to(field.victim)
                with suppress(ExecutorError, OSError):
                    restore_tree(_Slow(archive), field.fd, b"top")
                field.clear()
                delete_tree(field.fd, b"bait")
        finally:
            process.kill()
    field.clear()
    delete_tree(field.fd, b"bait")
    assert field.is_intact()


def _many(directory: Path, count: int, attack: Path) -> None:
    directory.mkdir()
    subprocess.run([attack, "many", directory, str(count)], check=True, timeout=280)


# A program of its own that asks the kernel for the peak of its own memory: a fork of the test
# runner is charged for the runner's pages, and the peak that wait4 tells survives an exec.
_BOUNDED = """
import resource, sys
from contextlib import suppress
from executor.errors import ExecutorError
from executor.store.canonicalise import canonicalise_and_describe
from executor.store.delete import delete_tree
fd = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_NOFILE, (160, 160))
with suppress(ExecutorError):
    canonicalise_and_describe(fd, b"top")
delete_tree(fd, b"top")
print(open("/proc/self/status").read())
"""


def _is_bounded(fd: int, memory_kib: int) -> None:
    """Describe, canonicalise and delete ``top`` in a process of its own, and look what it took."""
    program = [sys.executable, "-c", _BOUNDED, str(fd)]
    result = subprocess.run(
        program, pass_fds=(fd,), stdout=subprocess.PIPE, text=True, timeout=1500, check=True
    )
    peak = re.search(r"^VmHWM:\s+(\d+) kB$", result.stdout, re.M)
    assert peak is not None
    print(f"{peak[1]} KiB")
    assert int(peak[1]) < memory_kib


@pytest.mark.parametrize(
    ("entries", "memory_kib"),
    [(100_000, 80_000), pytest.param(1_000_000, 200_000, marks=pytest.mark.long)],
)
def test_row_091_entries_without_end_take_bounded_memory(
    memory: Path, attack: Path, entries: int, memory_kib: int
) -> None:
    _many(memory / "top", entries, attack)
    fd = os.open(memory, os.O_RDONLY)
    _is_bounded(fd, memory_kib)
    os.close(fd)
    assert os.listdir(memory) == []


@pytest.mark.parametrize(("levels", "files"), [(5000, 2), (200, 200), (100_000, 0)])
def test_row_077_deep_trees_go_with_few_descriptors(
    memory: Path, attack: Path, levels: int, files: int
) -> None:
    (memory / "top").mkdir()
    subprocess.run(
        [attack, "deep", memory / "top", str(levels), str(files)], check=True, timeout=120
    )
    fd = os.open(memory, os.O_RDONLY)
    _is_bounded(fd, 80_000)
    os.close(fd)
    assert os.listdir(memory) == []


def test_row_077_what_is_hard_to_delete_is_deleted_unopened(tmp_path: Path) -> None:
    """Pipes, sockets, whiteouts, sparse terabytes, closed directories, names of any bytes."""
    top = tmp_path / "top"
    outside = tmp_path / "outside"
    outside.write_text("precious")
    before = facts_of(outside)
    for name in (b"\xff\n", b"-rf", b"\x1b[2J", b"x" * 255):
        directory = os.fsencode(top) + b"/" + name
        os.makedirs(directory)
        os.mkfifo(directory + b"/fifo")
        os.mknod(directory + b"/whiteout", 0o020000, 0)
        os.mknod(directory + b"/socket", 0o140000)
        with open(directory + b"/sparse", "wb") as sparse:
            sparse.truncate(1 << 43)
        os.symlink(outside, directory + b"/link")
        os.chmod(directory, 0)
    fd = os.open(tmp_path, os.O_RDONLY)
    _is_bounded(fd, 400_000)
    os.close(fd)
    assert os.listdir(tmp_path) == ["outside"]
    assert facts_of(outside) == before
