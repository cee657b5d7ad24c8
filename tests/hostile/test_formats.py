"""Rows 125 to 153: what builders and peers send is bounded in time and memory, however it is made.

What each malformed input gets is tested beside the parsers; ``tests/fuzz`` tries the rest.
"""

from __future__ import annotations

import io
import os
import resource
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import pytest

from executor.build.log import LineBuffer, TextLine
from executor.caches.cache import parse_cache_info
from executor.caches.errors import CacheError
from executor.caches.files import WebFiles
from executor.config import load_settings
from executor.derivation import Derivation, InputAddressed
from executor.derivation_hash import ModuloHasher, output_paths
from executor.errors import ConfigError, FormatError
from executor.formats.hashes import HashAlgorithm, hash_bytes
from executor.formats.store_path import StoreDir, StorePath
from executor.references import HashRewriter
from executor.store.checked import CheckedReader
from executor.store.path_info import PathInfo
from executor.transfers.answers import retry_after
from executor.transfers.endpoints import parse_url, redirected
from executor.transfers.errors import TransferError
from tests.formats.test_nar import archive, directory, regular, word

STORE = StoreDir()
_PATH = StorePath("0" * 32, "x")


def in_little_memory(program: str, limit: int = 512 << 20) -> str:
    """What a program prints that has so much address space."""

    def lower() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        check=False,
        capture_output=True,
        text=True,
        preexec_fn=lower,
        timeout=120,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_row_125_who_skips_an_archive_looks_at_its_padding() -> None:
    good = archive(directory((b"a", regular(b"x"))))
    at = good.index(word(b"x")) + 9
    bad = good[:at] + b"\1" + good[at + 1 :]
    nar_hash = hash_bytes(HashAlgorithm.SHA256, good)
    info = PathInfo(path=_PATH, nar_hash=nar_hash, nar_size=len(good))
    CheckedReader(io.BytesIO(good), info).skip()
    with pytest.raises(FormatError, match="padding"):
        CheckedReader(io.BytesIO(bad), info).skip()


@pytest.mark.parametrize("unit", ["a", r"\\\\", r"\\n", r"\\\""])
def test_row_144_a_large_variable_takes_no_more_memory_than_its_size(unit: str) -> None:
    """A pattern that may go back remembered a hundred bytes for each byte of a string."""
    program = f"""
        from executor.formats.aterm import parse_term
        value = b"{unit}" * 5_000_000
        term = parse_term(b'Derive([],[],[],"s","/b",[],[("a","' + value + b'")])')
        print(len(term.env[0][1]))
    """
    assert in_little_memory(program).strip() == "5000000"


def test_row_144_a_hundred_thousand_levels_are_refused() -> None:
    program = """
        from executor.errors import FormatError
        from executor.formats.aterm import parse_term
        nested = b'[("/d",([],[' + b'("o",([],[' * 100_000
        try:
            parse_term(b'DrvWithVersion("xp-dyn-drv",[],' + nested)
        except FormatError as error:
            print(error)
    """
    assert "nested too deeply" in in_little_memory(program)


def test_row_138_a_derivation_below_itself_is_refused() -> None:
    """No text has its own hash in it, but who signs what a cache has may have made it up."""
    graph: dict[StorePath, Derivation] = {}
    paths = [StorePath(f"{number:032}", f"d{number}.drv") for number in range(3)]
    for number, path in enumerate(paths):
        graph[path] = Derivation(
            name=f"d{number}",
            outputs={"out": InputAddressed(_PATH)},
            input_drvs={paths[(number + 1) % 3]: frozenset({"out"})},
            input_srcs=frozenset(),
            platform="x",
            builder=b"/b",
            args=(),
            env={},
        )
    top = replace(graph[paths[0]], name="top")
    with pytest.raises(FormatError, match="depends on itself"):
        output_paths(top, ModuloHasher(graph.__getitem__, STORE))


def test_row_153_output_byte_by_byte_costs_what_it_is() -> None:
    """A builder that prints single bytes must not have the whole line copied for each of them."""
    buffer = LineBuffer(25)
    start = time.thread_time()
    found = [entry for _ in range(1 << 19) for entry in buffer.feed(b"x")] + buffer.flush()
    assert time.thread_time() - start < 8, "half a MiB took far too long"
    assert found == [TextLine(b"x" * (1 << 19))]


def test_row_153_output_without_a_line_end_takes_bounded_memory() -> None:
    program = """
        from executor.build.log import LineBuffer
        buffer, block, lines = LineBuffer(10), bytes(1 << 16), 0
        for _ in range(1 << 14):
            lines += len(buffer.feed(block))
        print(lines + len(buffer.flush()))
    """
    assert in_little_memory(program, 128 << 20).strip() == "1024"


def test_row_158_many_hash_parts_are_replaced_as_fast_as_one() -> None:
    """Contents that are nearly a hash part at each byte, for a derivation with many outputs."""
    rewrites = {b"%032d" % number: b"1" * 32 for number in range(1, 1500)}
    out: list[bytes] = []
    rewriter = HashRewriter(rewrites, out.append)
    start = time.thread_time()
    rewriter.feed(b"0" * (1 << 20) + b"1")
    rewriter.finish()
    assert time.thread_time() - start < 4
    assert b"".join(out) == b"0" * ((1 << 20) - 31) + b"1" * 32


@pytest.mark.parametrize("value", [b"--5", b"-", b"5-", b"\xd9\xa3", b"1" * 5000])
def test_a_priority_of_a_cache_that_is_no_number_is_refused(value: bytes) -> None:
    with pytest.raises(FormatError, match="is not a number"):
        parse_cache_info(b"Priority: " + value + b"\n")


@pytest.mark.parametrize("name", ["http://[", "//]", "http://[::1", "file:///etc/shadow", "a:b"])
def test_a_cache_can_not_name_an_archive_that_has_no_address(name: str) -> None:
    files = WebFiles("https://cache.example", None)  # type: ignore[arg-type]
    with pytest.raises(CacheError, match="not on the web"):
        files.open(name)


@pytest.mark.parametrize(
    "location", ["http://[", "//]", "http://[::1", "//a:99999999", "file:///x"]
)
def test_a_redirection_to_no_address_is_refused(location: str) -> None:
    with pytest.raises(TransferError):
        redirected(parse_url("https://a.example/b"), location)


def test_a_user_in_a_url_may_be_of_any_bytes() -> None:
    assert parse_url("https://u\udcff%FE:p@a.example/").user == "u\udcff\udcfe"


@pytest.mark.parametrize(
    "text", ["Wed, 21 Oct 2147483648 07:28:00 GMT", f"Wed, 21 Oct {'1' * 400} 07:28:00 GMT"]
)
def test_a_time_that_no_clock_shows_is_no_reason_to_wait(text: str) -> None:
    assert retry_after(text) == 0


def test_files_that_include_each_other_twice_are_not_read_for_ever(tmp_path: Path) -> None:
    (tmp_path / "nix.conf").write_text("include 0.conf\n")
    for number in range(30):
        (tmp_path / f"{number}.conf").write_text(f"!include {number + 1}.conf\n" * 2)
    with pytest.raises(ConfigError, match="more than 1000 configuration files"):
        load_settings(environ={"NIX_CONF_DIR": os.fspath(tmp_path)})


def test_a_file_name_with_a_nul_is_an_error_of_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "nix.conf").write_text("include a\0b\n")
    with pytest.raises(ConfigError, match=r"nix\.conf:1: can't read"):
        load_settings(environ={"NIX_CONF_DIR": os.fspath(tmp_path)})
