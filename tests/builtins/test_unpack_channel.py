"""``builtin:unpack-channel``: tarballs with one entry, and those that want to break out."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import stat
import tarfile
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import zstandard

from executor.build.result import BuildStatus
from tests.build.conftest import Drv, Run, Workshop
from tests.build.conftest import workshop as workshop

pytestmark = pytest.mark.root


@dataclass(frozen=True, slots=True)
class Entry:
    """A member of a tarball."""

    name: str
    kind: bytes = tarfile.REGTYPE
    content: bytes = b"x"
    mode: int = 0o644
    link: str = ""


DIRECTORY = tarfile.DIRTYPE
HONEST = [
    Entry("nixos-1", DIRECTORY, mode=0o755),
    Entry("nixos-1/default.nix", content=b"{ }\n"),
    Entry("nixos-1/sub/tool", content=b"#!/bin/sh\n", mode=0o755),
    Entry("nixos-1/link", tarfile.SYMTYPE, link="sub/tool"),
    Entry("nixos-1/hard", tarfile.LNKTYPE, link="nixos-1/default.nix"),
]


def tarball(*entries: Entry) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        for entry in entries:
            info = tarfile.TarInfo(entry.name)
            info.type, info.mode, info.linkname = entry.kind, entry.mode, entry.link
            info.size = len(entry.content) if entry.kind == tarfile.REGTYPE else 0
            archive.addfile(info, io.BytesIO(entry.content))
    return data.getvalue()


def unpack(workshop: Workshop, data: bytes, channel: str | None = "nixos") -> tuple[Run, Drv]:
    source = workshop.source("channel.tar", data)
    name = {} if channel is None else {"channelName": channel}
    drv = workshop.make(
        "channel",
        sources=[source],
        builder=b"builtin:unpack-channel",
        args=(),
        platform="builtin",
        env={"src": workshop.render(source), **name},
    )
    return workshop.build(drv), drv


@pytest.mark.parametrize(
    "compress",
    [bytes, gzip.compress, bz2.compress, lzma.compress, zstandard.ZstdCompressor().compress],
    ids=["plain", "gzip", "bzip2", "xz", "zstd"],
)
def test_the_one_entry_gets_the_channel_s_name(
    workshop: Workshop, compress: Callable[[bytes], bytes]
) -> None:
    run, drv = unpack(workshop, compress(tarball(*HONEST)))
    assert run.result.status is BuildStatus.BUILT, run.log
    top = workshop.real(drv.out)
    assert os.listdir(top) == ["nixos"]
    channel = top / "nixos"
    assert sorted(os.listdir(channel)) == ["default.nix", "hard", "link", "sub"]
    assert (channel / "default.nix").read_text() == "{ }\n"
    assert os.readlink(channel / "link") == "sub/tool"
    assert (channel / "hard").read_text() == "{ }\n"
    assert stat.S_IMODE((channel / "sub/tool").stat().st_mode) == 0o555


def test_a_later_member_replaces_an_earlier_one(workshop: Workshop) -> None:
    entries = (Entry("c/x", content=b"old"), Entry("c/x", content=b"new"))
    run, drv = unpack(workshop, tarball(*entries))
    assert run.result.success, run.log
    assert (workshop.real(drv.out) / "nixos/x").read_bytes() == b"new"


def test_setuid_bits_are_not_taken_over(workshop: Workshop) -> None:
    run, drv = unpack(workshop, tarball(Entry("c/tool", mode=0o6755)))
    assert run.result.success, run.log
    assert stat.S_IMODE((workshop.real(drv.out) / "nixos/tool").stat().st_mode) == 0o555


def test_directories_that_nobody_may_enter_are_filled_all_the_same(workshop: Workshop) -> None:
    run, drv = unpack(workshop, tarball(Entry("c", DIRECTORY, mode=0), Entry("c/x", mode=0)))
    assert run.result.success, run.log
    assert (workshop.real(drv.out) / "nixos/x").read_bytes() == b"x"


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([Entry("../escape")], "unsafe file name: '../escape'"),
        ([Entry("c/../../escape")], "unsafe file name"),
        ([Entry("/build/escape")], "unsafe file name: '/build/escape'"),
        ([Entry("c/null", tarfile.CHRTYPE)], "special file: 'c/null'"),
        ([Entry("c/disk", tarfile.BLKTYPE)], "special file: 'c/disk'"),
        ([Entry("c/pipe", tarfile.FIFOTYPE)], "special file: 'c/pipe'"),
        (
            [Entry("c/out", tarfile.SYMTYPE, link="/build"), Entry("c/out/escape")],
            "Not a directory",
        ),
        ([Entry("c/x", tarfile.LNKTYPE, link="/etc/passwd")], "unsafe file name: '/etc/passwd'"),
        ([Entry("c/x", tarfile.LNKTYPE, link="../../x")], "unsafe file name"),
        ([Entry("/".join(["d"] * 200))], "unsafe file name"),
        ([Entry("one"), Entry("two")], "contains more than one file"),
        ([], "contains more than one file"),
    ],
    ids=[
        *("dotdot", "inner-dotdot", "absolute", "character", "block", "fifo", "through-link"),
        *("hard-absolute", "hard-dotdot", "deep", "two", "none"),
    ],
)
def test_a_tarball_that_is_refused(workshop: Workshop, entries: list[Entry], message: str) -> None:
    run, drv = unpack(workshop, tarball(*entries))
    assert run.result.status is BuildStatus.PERMANENT_FAILURE
    assert message in run.text
    assert not workshop.is_valid(drv.out)
    assert workshop.leftovers() == []


@pytest.mark.parametrize(
    "data",
    [b"", b"no tarball", gzip.compress(tarball(*HONEST))[:60], lzma.compress(b"x" * 2000)],
    ids=["empty", "text", "cut", "no-tar"],
)
def test_what_is_no_tarball_is_refused(workshop: Workshop, data: bytes) -> None:
    run, _drv = unpack(workshop, data)
    assert run.result.status is BuildStatus.PERMANENT_FAILURE
    assert len(run.log) == 1
    assert run.text.startswith("error: ")


@pytest.mark.parametrize("channel", ["a/b", "..", ".", "", None])
def test_a_channel_name_that_is_none_is_refused(workshop: Workshop, channel: str | None) -> None:
    run, _drv = unpack(workshop, tarball(*HONEST), channel)
    assert run.result.status is BuildStatus.PERMANENT_FAILURE
    assert "channelName" in run.text
