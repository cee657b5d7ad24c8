"""Store paths: names, parsing, and the paths that Nix computes."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from executor.errors import FormatError
from executor.formats.base32 import ALPHABET
from executor.formats.content_address import IngestionMethod
from executor.formats.hashes import Hash, HashAlgorithm, hash_bytes, parse_hash
from executor.formats.nar import Chunk, Entry, Regular, read_events
from executor.formats.store_path import (
    MAX_NAME,
    StoreDir,
    StorePath,
    check_name,
    make_fixed_output_path,
    make_output_path,
    make_store_path,
    make_text_path,
    output_path_name,
)

FIXTURES = Path(__file__).parent.parent / "fixtures" / "formats"
FIXED = [line.split() for line in (FIXTURES / "fixed-paths.txt").read_text().splitlines()]
ADDED = [line.split() for line in (FIXTURES / "added.txt").read_text().splitlines()]
METHODS = {"flat": IngestionMethod.FLAT, "nar": IngestionMethod.NAR}
STORE = StoreDir()
DIGEST = "0123456789abcdfghijklmnpqrsvwxyz"
SHA256 = hash_bytes(HashAlgorithm.SHA256, b"abc")
SHA1 = hash_bytes(HashAlgorithm.SHA1, b"abc")
NAME_CHARACTERS = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ+-._?="

names = st.text(NAME_CHARACTERS, min_size=1, max_size=MAX_NAME).filter(
    lambda name: name not in (".", "..") and not name.startswith((".-", "..-"))
)


@pytest.mark.parametrize(
    ("method", "algorithm", "base16", "name", "path"), FIXED, ids=["-".join(r[:2]) for r in FIXED]
)
def test_paths_of_fixed_outputs_are_nix_s(
    method: str, algorithm: str, base16: str, name: str, path: str
) -> None:
    hash_ = parse_hash(base16, HashAlgorithm.parse(algorithm))
    made = make_fixed_output_path(STORE, name, METHODS[method], hash_)
    assert STORE.render(made) == path


def added_contents() -> Iterator[tuple[str, IngestionMethod, Hash]]:
    """Name, method and hash of what was added to Nix's store, in the order of the fixture."""
    nars = FIXTURES / "nars"
    sha256, sha1 = HashAlgorithm.SHA256, HashAlgorithm.SHA1
    yield "tree", IngestionMethod.NAR, hash_bytes(sha256, (nars / "tree.nar").read_bytes())
    yield "script", IngestionMethod.NAR, hash_bytes(sha256, (nars / "executable.nar").read_bytes())
    for algorithm in (sha256, sha1):
        yield "nine", IngestionMethod.FLAT, hash_bytes(algorithm, b"123456789")


@pytest.mark.parametrize(
    ("row", "contents"), list(zip(ADDED, added_contents(), strict=True)), ids=lambda x: x[1]
)
def test_paths_of_added_files_are_nix_s(
    row: list[str], contents: tuple[str, IngestionMethod, Hash]
) -> None:
    name, method, hash_ = contents
    assert row[1:] == [name, STORE.render(make_fixed_output_path(STORE, name, method, hash_))]


def test_the_nine_digits_are_those_of_the_archive() -> None:
    """What the paths above stand for really is in the archive that Nix dumped."""
    events = list(read_events(io.BytesIO((FIXTURES / "nars" / "tree.nar").read_bytes())))
    at = events.index(Entry(b"nine"))
    assert events[at + 1 : at + 3] == [Regular(executable=False, size=9), Chunk(b"123456789")]


def test_references_are_part_of_the_path_sorted_and_once() -> None:
    first, second = StorePath("0" * 32, "a"), StorePath("1" * 32, "b")
    paths = [
        make_text_path(STORE, "x", SHA256, references)
        for references in ([first, second], [second, first], [first, second, first])
    ]
    assert len(set(paths)) == 1
    kind = f"text:{STORE.render(first)}:{STORE.render(second)}"
    assert paths[0] == make_store_path(STORE, kind, SHA256, "x")
    assert paths[0] != make_text_path(STORE, "x", SHA256, [first])


def test_a_reference_to_itself_is_part_of_the_path() -> None:
    other = StorePath("0" * 32, "a")
    made = make_fixed_output_path(
        STORE, "x", IngestionMethod.NAR, SHA256, [other], self_reference=True
    )
    assert made == make_store_path(STORE, f"source:{STORE.render(other)}:self", SHA256, "x")


@pytest.mark.parametrize(
    ("method", "hash_"),
    [(IngestionMethod.FLAT, SHA256), (IngestionMethod.NAR, SHA1), (IngestionMethod.FLAT, SHA1)],
)
def test_only_a_recursive_sha256_may_have_references(method: IngestionMethod, hash_: Hash) -> None:
    other = StorePath("0" * 32, "a")
    with pytest.raises(FormatError, match="must not refer"):
        make_fixed_output_path(STORE, "x", method, hash_, [other])
    with pytest.raises(FormatError, match="must not refer"):
        make_fixed_output_path(STORE, "x", method, hash_, self_reference=True)


def test_the_store_directory_is_part_of_every_path() -> None:
    other = StoreDir("/other/store")
    assert make_text_path(STORE, "x", SHA256) != make_text_path(other, "x", SHA256)


@pytest.mark.parametrize(("output", "name"), [("out", "hello"), ("dev", "hello-dev")])
def test_outputs_are_named_after_the_derivation(output: str, name: str) -> None:
    assert output_path_name("hello", output) == name
    assert make_output_path(STORE, output, SHA256, "hello").name == name


@given(st.text(ALPHABET, min_size=32, max_size=32), names)
def test_store_paths_read_back(digest: str, name: str) -> None:
    path = StorePath(digest, name)
    assert StorePath.parse(path.base_name) == path
    assert STORE.parse(STORE.render(path)) == path
    assert STORE.split(STORE.render(path)) == (path, "")
    assert STORE.split(f"{STORE.render(path)}/bin/x") == (path, "/bin/x")
    assert path.is_derivation == name.endswith(".drv")


@given(st.lists(st.builds(StorePath, st.text(ALPHABET, min_size=32, max_size=32), names)))
def test_store_paths_sort_as_their_base_names(paths: list[StorePath]) -> None:
    assert [path.base_name for path in sorted(paths)] == sorted(path.base_name for path in paths)


@pytest.mark.parametrize(
    "name", ["a", "...", ".a", "..a", ".x-y", "-", "a" * MAX_NAME, NAME_CHARACTERS, "x.drv"]
)
def test_good_names_pass(name: str) -> None:
    check_name(name)
    assert StorePath.parse(f"{DIGEST}-{name}").name == name


BAD_NAMES = [
    pytest.param("", id="empty"),
    pytest.param(".", id="dot"),
    pytest.param("..", id="dot dot"),
    pytest.param(".-x", id="dot and dash"),
    pytest.param("..-x", id="dot dot and dash"),
    pytest.param("a" * (MAX_NAME + 1), id="212 characters"),
    pytest.param("a/b", id="slash"),
    pytest.param("a/../b", id="way up"),
    pytest.param("a\0b", id="NUL"),
    pytest.param("a b", id="space"),
    pytest.param("a\n", id="newline at the end"),
    pytest.param("a~b", id="tilde"),
    pytest.param("a%b", id="percent"),
    pytest.param("a:b", id="colon"),
    pytest.param("a!b", id="exclamation mark"),
    pytest.param("a^b", id="caret"),
    pytest.param("é", id="letter outside ASCII"),
    pytest.param("٣", id="digit outside ASCII"),
    pytest.param("a\udcffb", id="byte that is not UTF-8"),
]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_bad_names_are_refused_wherever_a_name_enters(name: str) -> None:
    with pytest.raises(FormatError):
        check_name(name)
    with pytest.raises(FormatError):
        StorePath.parse(f"{DIGEST}-{name}")
    with pytest.raises(FormatError):
        STORE.parse(f"/nix/store/{DIGEST}-{name}")
    for method in (IngestionMethod.FLAT, IngestionMethod.NAR, IngestionMethod.TEXT):
        with pytest.raises(FormatError):
            make_fixed_output_path(STORE, name, method, SHA256)
    with pytest.raises(FormatError):
        make_output_path(STORE, "out", SHA256, name)


@pytest.mark.parametrize(
    "base_name",
    [
        pytest.param("", id="nothing"),
        pytest.param(DIGEST, id="no name"),
        pytest.param(f"{DIGEST}x", id="no dash"),
        pytest.param(f"{DIGEST[1:]}-x", id="31 digits"),
        pytest.param(f"0{DIGEST}-x", id="33 digits"),
        pytest.param(f"e{DIGEST[1:]}-x", id="no base-32 digit"),
        pytest.param(f"{DIGEST.upper()}-x", id="upper case"),
        pytest.param(f"{'%' * 32}-x", id="wild cards"),
        pytest.param(f"{DIGEST[:31]}é-x", id="digit outside ASCII"),
        pytest.param(f"/{DIGEST[1:]}-x", id="slash in the digits"),
    ],
)
def test_what_is_no_base_name_is_refused(base_name: str) -> None:
    with pytest.raises(FormatError):
        StorePath.parse(base_name)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="nothing"),
        pytest.param("/nix/store", id="the store itself"),
        pytest.param("/nix/store/", id="the store itself, with a slash"),
        pytest.param(f"{DIGEST}-x", id="base name"),
        pytest.param(f"nix/store/{DIGEST}-x", id="relative"),
        pytest.param(f"/nix/store/{DIGEST}-x/", id="slash at the end"),
        pytest.param(f"/nix/store/{DIGEST}-x/bin", id="deeper"),
        pytest.param(f"/nix/store//{DIGEST}-x", id="two slashes"),
        pytest.param(f"/nix/store/./{DIGEST}-x", id="dot in between"),
        pytest.param(f"/nix/store/../store/{DIGEST}-x", id="way up"),
        pytest.param(f"/nix/storehouse/{DIGEST}-x", id="longer directory"),
        pytest.param(f"/other/store/{DIGEST}-x", id="other directory"),
        pytest.param("/etc/shadow", id="host file"),
    ],
)
def test_what_is_no_store_path_is_refused(text: str) -> None:
    with pytest.raises(FormatError):
        STORE.parse(text)


@pytest.mark.parametrize("text", ["/nix/store", "/a", "/home/é/my store"])
def test_a_store_directory_is_absolute_and_canonical(text: str) -> None:
    assert StoreDir(text).parse(f"{text}/{DIGEST}-x") == StorePath(DIGEST, "x")


@pytest.mark.parametrize(
    "text",
    ["", "/", "nix/store", "/nix/store/", "/nix//store", "/nix/./store", "/nix/../store", "//x"],
)
def test_other_store_directories_are_refused(text: str) -> None:
    with pytest.raises(FormatError, match="not an absolute, canonical path"):
        StoreDir(text)
