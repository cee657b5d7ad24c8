"""Binary caches as files: what they say of themselves and of paths, and what is wrong with them."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import brotli
import pytest
import zstandard

from executor.caches.address import parse_cache_address
from executor.caches.cache import BinaryCache, Clients, parse_cache_info
from executor.caches.errors import CacheError
from executor.errors import ExecutorError, FormatError
from executor.formats.content_address import ContentAddress, IngestionMethod
from executor.formats.hashes import HashAlgorithm, hash_bytes
from executor.formats.narinfo import NarInfo
from executor.formats.realisation import DrvOutput, Realisation
from executor.formats.store_path import (
    StoreDir,
    StorePath,
    make_fixed_output_path,
    make_text_path,
)
from executor.settings import Settings
from executor.store.errors import HashMismatchError
from tests.formats.test_nar import archive, regular
from tests.web import Server
from tests.web import server as server

STORE = StoreDir("/nix/store")
PATH = StorePath("0" * 32, "object")
CONTENT = b"contents of the object\n" * 100
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "none": lambda data: data,
    "xz": lzma.compress,
    "bzip2": bz2.compress,
    "gzip": gzip.compress,
    "zstd": zstandard.ZstdCompressor().compress,
    "br": brotli.compress,
}


def packed_file(contents: bytes) -> bytes:
    """A file as an archive."""
    return archive(regular(contents))


class Directory:
    """A cache that is written by hand."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        (directory / "nar").mkdir(parents=True)
        (directory / "realisations").mkdir()
        (directory / "nix-cache-info").write_text("StoreDir: /nix/store\nPriority: 30\n")

    def add(self, archive: bytes, compression: str = "none", **changes: Any) -> NarInfo:
        nar = packed_file(CONTENT)
        fields: dict[str, Any] = {
            "path": PATH,
            "url": "nar/x",
            "compression": compression,
            "nar_hash": hash_bytes(HashAlgorithm.SHA256, nar),
            "nar_size": len(nar),
        }
        info = NarInfo(**{**fields, **changes})
        (self.directory / "nar/x").write_bytes(archive)
        (self.directory / f"{info.path.digest}.narinfo").write_text(info.render(STORE))
        return info

    def cache(self, parameters: str = "") -> BinaryCache:
        address = parse_cache_address(f"file://{self.directory}{parameters}")
        return BinaryCache(address, STORE, Clients(Settings(), {}, print))


@pytest.fixture
def directory(tmp_path: Path) -> Directory:
    return Directory(tmp_path / "cache")


@contextmanager
def scratch(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "scratch").mkdir()
    descriptor = os.open(tmp_path / "scratch", os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def fetch(cache: BinaryCache, tmp_path: Path, path: StorePath = PATH) -> bytes | None:
    """The contents of a path that a cache has; nothing lies around where that fails."""
    found = cache.query(path, None)
    assert found is not None
    with scratch(tmp_path) as descriptor:
        try:
            staged = cache.stage(found, descriptor)
        except (ExecutorError, OSError):
            assert os.listdir(descriptor) == []
            raise
        if staged is None:
            return None
        return (tmp_path / "scratch" / os.fsdecode(staged.name)).read_bytes()


@pytest.mark.parametrize("compression", PACKERS)
def test_every_compression_is_undone(
    directory: Directory, tmp_path: Path, compression: str
) -> None:
    directory.add(PACKERS[compression](packed_file(CONTENT)), compression)
    assert fetch(directory.cache(), tmp_path) == CONTENT


def test_without_a_name_it_is_bzip2(directory: Directory, tmp_path: Path) -> None:
    directory.add(bz2.compress(packed_file(CONTENT)), "")
    assert fetch(directory.cache(), tmp_path) == CONTENT


@pytest.mark.parametrize("compression", [name for name in PACKERS if name != "none"])
@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "other"])
def test_a_damaged_archive_is_refused(
    directory: Directory, tmp_path: Path, compression: str, damage: str
) -> None:
    packed = PACKERS[compression](packed_file(os.urandom(5000)))
    middle = len(packed) // 2
    damaged = {
        "cut": packed[:middle],
        "flipped": packed[:middle] + bytes([packed[middle] ^ 1]) + packed[middle + 1 :],
        "empty": b"",
        "other": b"no archive at all, but long enough",
    }
    directory.add(damaged[damage], compression)
    with pytest.raises((CacheError, HashMismatchError)):
        fetch(directory.cache(), tmp_path)


def test_a_compression_that_nobody_knows_is_an_error(directory: Directory, tmp_path: Path) -> None:
    directory.add(b"", "zpaq")
    with pytest.raises(CacheError, match="compressed with 'zpaq', which is not supported"):
        fetch(directory.cache(), tmp_path)


def test_contents_with_another_hash_are_refused(directory: Directory, tmp_path: Path) -> None:
    directory.add(packed_file(CONTENT[::-1]))
    with pytest.raises(HashMismatchError, match="hash mismatch importing path"):
        fetch(directory.cache(), tmp_path)


def test_an_archive_does_not_grow_beyond_what_was_promised(
    directory: Directory, tmp_path: Path
) -> None:
    directory.add(lzma.compress(packed_file(bytes(50_000_000))), "xz")
    with pytest.raises(HashMismatchError, match=r"size mismatch.*got: at least"):
        fetch(directory.cache(), tmp_path)


def test_a_shorter_archive_is_refused(directory: Directory, tmp_path: Path) -> None:
    directory.add(packed_file(CONTENT[:-10]))
    with pytest.raises(HashMismatchError, match="size mismatch"):
        fetch(directory.cache(), tmp_path)


@pytest.mark.parametrize("method", [IngestionMethod.FLAT, IngestionMethod.TEXT])
def test_a_content_address_is_compared_with_the_contents(
    directory: Directory, tmp_path: Path, method: IngestionMethod
) -> None:
    claimed = hash_bytes(HashAlgorithm.SHA256, b"something else")
    make = make_text_path if method is IngestionMethod.TEXT else None
    path = (
        make(STORE, "object", claimed, ())
        if make
        else make_fixed_output_path(STORE, "object", method, claimed)
    )
    address = ContentAddress(method, claimed).render()
    directory.add(packed_file(CONTENT), path=path, content_address=address)
    with pytest.raises(HashMismatchError, match="ca hash mismatch"):
        fetch(directory.cache(), tmp_path, path)


def test_an_archive_that_is_gone_is_none(directory: Directory, tmp_path: Path) -> None:
    directory.add(b"")
    (directory.directory / "nar/x").unlink()
    assert fetch(directory.cache(), tmp_path) is None


@pytest.mark.parametrize("url", ["../secret", "nar/../../secret", "/etc/passwd", "nar//x", "."])
def test_archives_lie_in_the_cache(directory: Directory, tmp_path: Path, url: str) -> None:
    (tmp_path / "secret").write_bytes(packed_file(CONTENT))
    directory.add(b"", url=url)
    with pytest.raises(CacheError, match="is no file of the cache"):
        fetch(directory.cache(), tmp_path)


def test_a_fifo_instead_of_a_file_does_not_block(directory: Directory, tmp_path: Path) -> None:
    directory.add(b"", url="nar/fifo")
    os.mkfifo(directory.directory / "nar/fifo")
    with pytest.raises(CacheError, match="no regular file"):
        fetch(directory.cache(), tmp_path)


def test_what_is_not_there_is_none(directory: Directory) -> None:
    assert directory.cache().query(PATH, None) is None
    assert directory.cache().query_realisation(DrvOutput(f"sha256:{'0' * 64}", "out")) is None


def test_an_answer_to_another_question_is_refused(directory: Directory) -> None:
    info = directory.add(b"", path=StorePath("1" * 32, "object"))
    text = (directory.directory / f"{info.path.digest}.narinfo").read_text()
    (directory.directory / f"{PATH.digest}.narinfo").write_text(text)
    with pytest.raises(CacheError, match=r"asked .* but got '/nix/store/1111"):
        directory.cache().query(PATH, None)


@pytest.mark.parametrize(
    "data",
    [b"", b"nonsense", b"StorePath: x\n", b"\xff\xfe\n", b"NarSize: -1\n", b"References: ../x\n"],
)
def test_a_corrupt_description_is_named(directory: Directory, data: bytes) -> None:
    (directory.directory / f"{PATH.digest}.narinfo").write_bytes(data)
    with pytest.raises(FormatError, match=f"'.*{PATH.digest}.narinfo' is corrupt"):
        directory.cache().query(PATH, None)


def test_realisations_are_read(directory: Directory) -> None:
    id = DrvOutput(f"sha256:{'0' * 64}", "out")
    file = directory.directory / f"realisations/{id}.doi"
    file.write_bytes(Realisation(id, PATH).to_json())
    assert directory.cache().query_realisation(id) == Realisation(id, PATH)
    file.write_bytes(Realisation(DrvOutput(id.drv_hash, "dev"), PATH).to_json())
    with pytest.raises(CacheError, match=r"asked .* but got"):
        directory.cache().query_realisation(id)
    file.write_bytes(b"[" * 100_000)
    with pytest.raises(CacheError, match="not a realisation"):
        directory.cache().query_realisation(id)


def test_a_cache_says_who_it_is(directory: Directory) -> None:
    cache = directory.cache()
    cache.prepare()
    assert cache.priority == 30
    chosen = directory.cache("?priority=7&trusted=true")
    chosen.prepare()
    assert (chosen.priority, chosen.trusted) == (7, True)


def test_a_cache_for_another_store_is_refused(directory: Directory) -> None:
    (directory.directory / "nix-cache-info").write_text("StoreDir: /other/store\n")
    with pytest.raises(CacheError, match="is for Nix stores with prefix '/other/store'"):
        directory.cache().prepare()
    directory.cache("?store=/other/store").prepare()


def test_what_is_no_cache_is_refused(directory: Directory, tmp_path: Path) -> None:
    (directory.directory / "nix-cache-info").unlink()
    directory.cache().prepare()  # an empty directory may become one
    address = parse_cache_address(f"file://{tmp_path}/nowhere")
    with pytest.raises(CacheError, match="does not appear to be a binary cache"):
        BinaryCache(address, STORE, Clients(Settings(), {}, print)).prepare()


def test_unknown_lines_are_ignored() -> None:
    info = parse_cache_info(b"WantMassQuery: 1\nnonsense\nPriority: 40\n\xff: \xff\n")
    assert (info.store_dir, info.priority) == (None, 40)
    with pytest.raises(FormatError, match="not a number"):
        parse_cache_info(b"Priority: high\n")


def test_a_path_is_found_under_the_name_that_it_has_elsewhere(
    directory: Directory, tmp_path: Path
) -> None:
    other = StoreDir("/other/store")
    digest = hash_bytes(HashAlgorithm.SHA256, CONTENT)
    there = make_fixed_output_path(other, "object", IngestionMethod.FLAT, digest)
    here = make_fixed_output_path(STORE, "object", IngestionMethod.FLAT, digest)
    address = ContentAddress(IngestionMethod.FLAT, digest).render()
    (directory.directory / "nix-cache-info").write_text("StoreDir: /other/store\n")
    info = directory.add(packed_file(CONTENT), path=there, content_address=address)
    text = info.render(other)
    (directory.directory / f"{there.digest}.narinfo").write_text(text)
    cache = directory.cache("?store=/other/store")
    cache.prepare()
    assert cache.query(here, None) is None
    found = cache.query(here, address)
    assert found is not None
    with scratch(tmp_path) as descriptor:
        staged = cache.stage(found, descriptor)
        assert staged is not None
        assert (tmp_path / "scratch" / os.fsdecode(staged.name)).read_bytes() == CONTENT


@pytest.mark.parametrize(("seconds", "requests"), [(3600, 1), (0, 2)])
def test_a_server_is_not_asked_twice_for_what_it_lacks(
    server: Server, seconds: int, requests: int
) -> None:
    """Plans and goals ask for the same; ``narinfo-cache-negative-ttl`` says how long that holds."""
    settings = Settings(narinfo_cache_negative_ttl=seconds)
    clients = Clients(settings, {}, print)
    cache = BinaryCache(parse_cache_address(server.url("/")), STORE, clients)
    try:
        assert cache.query(PATH, None) is None
        assert cache.query(PATH, None) is None
    finally:
        clients.close()
    assert len(server.requests) == requests
