"""Build logs: where they are, and that Nix can read ours and we can read Nix's."""

import bz2
import os
import tracemalloc
from contextlib import ExitStack
from pathlib import Path

import pytest

from executor.errors import StoreError
from executor.formats.store_path import StorePath
from executor.store.local import LocalStore
from executor.store.log_files import LogFile, log_path, log_pieces, read_log

from .conftest import Nix

_DRV = StorePath.parse("0c5b4rqqbwqhhp30jhjlh2bjzrpz1v2k-hello.drv")


@pytest.mark.parametrize("compress", [False, True])
def test_round_trip(scratch: Path, compress: bool) -> None:
    path = log_path(str(scratch), _DRV, compress=compress)
    assert read_log(str(scratch), _DRV) is None
    with LogFile(path, compress) as log:
        log.write(b"one\n")
        log.write(b"\xff\x00two")
        assert log.size == 9
    assert read_log(str(scratch), _DRV) == b"one\n\xff\x00two"
    suffix = ".bz2" if compress else ""
    assert path == f"{scratch}/drvs/0c/5b4rqqbwqhhp30jhjlh2bjzrpz1v2k-hello.drv{suffix}"


@pytest.mark.parametrize("size", [0, 1, 9_999, 10_001, 65_536, 65_537, 99_999, 2_000_000])
def test_a_compressed_log_is_what_bzip2_makes_of_it_in_large_blocks(
    scratch: Path, size: int
) -> None:
    """As Nix does, whatever pieces it came in, and however little there is."""
    content = b"".join(b"line %d of it\n" % number for number in range(size // 12 + 1))[:size]
    path = log_path(str(scratch), _DRV, compress=True)
    with LogFile(path, compress=True) as log:
        for at in range(0, size, 7001):
            log.write(content[at : at + 7001])
    assert Path(path).read_bytes() == bz2.compress(content, 9)


def test_small_logs_that_are_being_written_take_little_memory(scratch: Path) -> None:
    """Hundreds of builds may run at once; bzip2's large blocks would take 7.6 MB for each."""
    with ExitStack() as stack:
        tracemalloc.start()
        stack.callback(tracemalloc.stop)
        for number in range(20):
            log = stack.enter_context(LogFile(f"{scratch}/{number}.bz2", compress=True))
            log.write(b"hello\n" * 1000)
        _now, most = tracemalloc.get_traced_memory()
    assert most < 2_000_000


@pytest.mark.parametrize("compress", [False, True])
def test_row_158_a_log_is_read_in_pieces_however_long_it_is(scratch: Path, compress: bool) -> None:
    """A builder may print zeros for an hour: compressed, gigabytes of them are kilobytes."""
    path = Path(log_path(str(scratch), _DRV, compress=compress))
    path.parent.mkdir(parents=True)
    size = 400 << 20
    if compress:
        packer = bz2.BZ2Compressor()
        packed = b"".join(packer.compress(bytes(1 << 20)) for _ in range(size >> 20))
        path.write_bytes(packed + packer.flush())
        assert path.stat().st_size < 1 << 20
    else:
        path.touch()
        os.truncate(path, size)
    tracemalloc.start()
    try:
        pieces = log_pieces(str(scratch), _DRV)
        assert pieces is not None
        assert sum(map(len, pieces)) == size
        assert tracemalloc.get_traced_memory()[1] < 2 << 20
    finally:
        tracemalloc.stop()
    with pytest.raises(StoreError, match="is longer than"):
        read_log(str(scratch), _DRV)


def test_plain_log_is_visible_while_it_grows(scratch: Path) -> None:
    path = log_path(str(scratch), _DRV, compress=False)
    with LogFile(path, compress=False) as log:
        log.write(b"so far")
        assert read_log(str(scratch), _DRV) == b"so far"


def test_a_new_log_replaces_both_forms(scratch: Path) -> None:
    for compress, text in ((False, b"first"), (True, b"second"), (True, b"third")):
        with LogFile(log_path(str(scratch), _DRV, compress=compress), compress) as log:
            log.write(text)
        assert read_log(str(scratch), _DRV) == text


def test_symlink_in_place_of_the_log_is_replaced(scratch: Path) -> None:
    victim = scratch / "victim"
    victim.write_text("precious")
    path = Path(log_path(str(scratch), _DRV, compress=False))
    path.parent.mkdir(parents=True)
    path.symlink_to(victim)
    with LogFile(str(path), compress=False) as log:
        log.write(b"log")
    assert victim.read_text() == "precious"
    assert path.read_bytes() == b"log"
    assert not path.is_symlink()


def test_symlinked_directory_is_refused(scratch: Path) -> None:
    (scratch / "drvs").mkdir()
    (scratch / "drvs/0c").symlink_to(scratch)
    with pytest.raises(StoreError, match="cannot open log file"):
        LogFile(log_path(str(scratch), _DRV, compress=False), compress=False)


@pytest.mark.nix
def test_nix_reads_our_log(store: LocalStore, nix: Nix) -> None:
    drv = store.add_text("x.drv", _UNBUILDABLE)
    for compress in (True, False):
        with LogFile(log_path(store.location.log_dir, drv, compress=compress), compress) as log:
            log.write(b"said by the builder\n")
        assert nix.run("nix-store", "--read-log", store.store_dir.render(drv)) == (
            "said by the builder"
        )


_UNBUILDABLE = b'Derive([("out","","r:sha256","")],[],[],"x86_64-linux","/bin/sh",[],[("out","")])'


def test_logs_of_nix_are_found(scratch: Path) -> None:
    path = Path(log_path(str(scratch), _DRV, compress=True))
    path.parent.mkdir(parents=True)
    path.write_bytes(bz2.compress(b"a" * 2_000_000))
    assert read_log(str(scratch), _DRV) == b"a" * 2_000_000


def test_a_log_whose_writer_was_killed_is_read_as_far_as_it_goes(scratch: Path) -> None:
    path = Path(log_path(str(scratch), _DRV, compress=True))
    log = LogFile(str(path), compress=True)
    lines = b"".join(b"line %d\n" % number for number in range(400_000))
    log.write(lines)
    assert path.stat().st_size > 1000
    found = read_log(str(scratch), _DRV)
    assert found
    assert lines.startswith(found)
    path.write_bytes(b"BZh9" + bytes(100))
    with pytest.raises(StoreError, match="is damaged"):
        read_log(str(scratch), _DRV)
    log.close()
