"""Derivations: Nix's files in and out, and files that state what can't be."""

from __future__ import annotations

from pathlib import Path

import pytest

from executor.derivation import (
    DeferredOutput,
    Derivation,
    DerivationKind,
    DerivationOutput,
    FixedOutput,
    FloatingOutput,
    ImpureOutput,
    InputAddressed,
    derivation_path,
    forget_parsed_derivations,
    parse_derivation,
    parse_method,
    unparse_derivation,
)
from executor.errors import FormatError
from executor.formats.aterm import parse_term
from executor.formats.content_address import IngestionMethod
from executor.formats.hashes import HashAlgorithm, hash_bytes
from executor.formats.store_path import StoreDir, StorePath

FILES = sorted((Path(__file__).parent / "fixtures" / "formats" / "derivations").iterdir())
STORE = StoreDir()
ZERO = "0" * 32
SHA256 = hash_bytes(HashAlgorithm.SHA256, b"")
SHA1 = hash_bytes(HashAlgorithm.SHA1, b"")
NAR, FLAT = IngestionMethod.NAR, IngestionMethod.FLAT
EMPTY = SHA256.base16


def read(name: str) -> Derivation:
    """The one fixture with this name."""
    (path,) = [path for path in FILES if StorePath.parse(path.name).name == f"{name}.drv"]
    return parse_derivation(path.read_bytes(), name, STORE)


def make(outputs: dict[str, DerivationOutput], name: str = "x") -> Derivation:
    return Derivation(
        name=name,
        outputs=outputs,
        input_drvs={},
        input_srcs=frozenset(),
        platform="x86_64-linux",
        builder=b"/bin/sh",
        args=(),
        env={},
    )


def test_the_fixtures_are_there() -> None:
    assert len(FILES) == 40


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name[33:80])
def test_nix_s_files_are_written_again_at_the_same_path(path: Path) -> None:
    stated = StorePath.parse(path.name)
    data = path.read_bytes()
    derivation = parse_derivation(data, stated.name.removesuffix(".drv"), STORE)
    assert unparse_derivation(derivation, STORE) == data
    assert derivation_path(derivation, STORE) == stated


def test_all_fields_are_read() -> None:
    term = parse_term(unparse_derivation(read("input"), STORE))
    derivation = read("input")
    assert derivation.name == "input"
    assert derivation.platform == "x86_64-linux"
    assert derivation.builder == b"/bin/sh"
    assert derivation.args == term.args
    assert {path.name: set(names) for path, names in derivation.input_drvs.items()} == {
        "minimal.drv": {"out"},
        "sources.drv": {"out"},
    }
    assert {path.name for path in read("sources").input_srcs} == {"script.sh", "text"}
    assert dict(derivation.env) == dict(term.env)


def test_any_bytes_may_stand_in_arguments_and_variables() -> None:
    assert read("not-utf-8").args == (b"\xff\xfe",)
    assert read("not-utf-8").env[b"value"] == b"latin-1: \xe9"
    escapes = read("escapes")
    assert escapes.args == (
        *(b"", b'"', b"\\", b"\n", b"\r\t", b"\\n", b"'$out'"),
        "é🎈".encode(),
    )
    assert escapes.env[b'name"\\\n'] == b'tab\tand "quotes" and \\backslashes\\ and\r\nlines'
    assert escapes.env["Ünïcode".encode()] == "日本語".encode()
    assert escapes.env[b"control"] == b"\x01\x1f\x7f"


@pytest.mark.parametrize(
    ("name", "kind", "output"),
    [
        ("minimal", DerivationKind.INPUT_ADDRESSED, None),
        ("flat-sha1", DerivationKind.FIXED, FixedOutput(FLAT, SHA1)),
        ("flat-sha256", DerivationKind.FIXED, FixedOutput(FLAT, SHA256)),
        ("recursive-sha1", DerivationKind.FIXED, FixedOutput(NAR, SHA1)),
        ("fixed-sri", DerivationKind.FIXED, FixedOutput(NAR, SHA256)),
        ("floating", DerivationKind.FLOATING, FloatingOutput(NAR, HashAlgorithm.SHA256)),
        ("floating-flat", DerivationKind.FLOATING, FloatingOutput(FLAT, HashAlgorithm.SHA1)),
        (
            "floating-text.txt",
            DerivationKind.FLOATING,
            FloatingOutput(IngestionMethod.TEXT, HashAlgorithm.SHA256),
        ),
        ("deferred", DerivationKind.DEFERRED, DeferredOutput()),
        ("impure", DerivationKind.IMPURE, ImpureOutput(NAR, HashAlgorithm.SHA256)),
    ],
)
def test_kinds_are_told_by_the_fields_of_the_output(
    name: str, kind: DerivationKind, output: DerivationOutput | None
) -> None:
    derivation = read(name)
    assert derivation.kind is kind
    assert derivation.is_fixed_output == (kind is DerivationKind.FIXED)
    assert derivation.has_network == (kind in (DerivationKind.FIXED, DerivationKind.IMPURE))
    if output is None:
        assert isinstance(derivation.outputs["out"], InputAddressed)
    else:
        assert derivation.outputs["out"] == output


@pytest.mark.parametrize(
    ("text", "method", "algorithm"),
    [
        ("sha256", FLAT, HashAlgorithm.SHA256),
        ("r:sha512", NAR, HashAlgorithm.SHA512),
        ("text:sha256", IngestionMethod.TEXT, HashAlgorithm.SHA256),
        ("git:sha1", IngestionMethod.GIT, HashAlgorithm.SHA1),
    ],
)
def test_methods_stand_before_algorithms(
    text: str, method: IngestionMethod, algorithm: HashAlgorithm
) -> None:
    assert parse_method(text) == (method, algorithm)


@pytest.mark.parametrize("text", ["", "r:", "R:sha256", "flat:sha256", "r:r:sha256", "r:sha3"])
def test_other_methods_are_refused(text: str) -> None:
    with pytest.raises(FormatError, match="unknown hash algorithm"):
        parse_method(text)


def path(name: str = "x") -> InputAddressed:
    return InputAddressed(StorePath(ZERO, name))


@pytest.mark.parametrize(
    ("name", "outputs", "message"),
    [
        pytest.param("x", {}, "has no outputs", id="no output"),
        pytest.param("", {"out": path()}, "must not be empty", id="no name"),
        pytest.param("a/b", {"out": path()}, "contains characters", id="path as name"),
        pytest.param("..", {"out": path()}, "relative path", id="way up as name"),
        pytest.param("a" * 212, {"out": path()}, "longer than 211", id="long name"),
        pytest.param("x", {"out/../../x": path()}, "contains characters", id="path as output"),
        pytest.param("x", {"..": path()}, "relative path", id="way up as output"),
        pytest.param("x", {"": path()}, "must not be empty", id="output without a name"),
        pytest.param("x", {"o" * 300: path()}, "longer than 211", id="long output"),
        pytest.param("x" * 200, {"o" * 100: path()}, "longer than 211", id="long together"),
        pytest.param(
            "x", {"a": path(), "b": DeferredOutput()}, "mixes", id="known and unknown path"
        ),
        pytest.param(
            "x",
            {"out": FixedOutput(NAR, SHA256), "b": FloatingOutput(NAR, HashAlgorithm.SHA256)},
            "mixes",
            id="fixed and floating",
        ),
        pytest.param(
            "x",
            {
                "a": FloatingOutput(NAR, HashAlgorithm.SHA256),
                "b": ImpureOutput(NAR, HashAlgorithm.SHA256),
            },
            "mixes",
            id="floating and impure",
        ),
        pytest.param(
            "x",
            {"out": FixedOutput(NAR, SHA256), "dev": FixedOutput(NAR, SHA256)},
            "more than one fixed output",
            id="two fixed",
        ),
        pytest.param(
            "x", {"dev": FixedOutput(NAR, SHA256)}, "must be called 'out'", id="fixed, not out"
        ),
        pytest.param(
            "x",
            {
                "a": FloatingOutput(NAR, HashAlgorithm.SHA256),
                "b": FloatingOutput(NAR, HashAlgorithm.SHA1),
            },
            "same hash algorithm",
            id="floating with two algorithms",
        ),
    ],
)
def test_outputs_that_break_the_rules_are_refused(
    name: str, outputs: dict[str, DerivationOutput], message: str
) -> None:
    with pytest.raises(FormatError, match=message):
        make(outputs, name)


OUT = f"/nix/store/{ZERO}-x"
GOOD_OUTPUT = f'("out","{OUT}","","")'
FIXED_PATH = STORE.render(FixedOutput(FLAT, SHA256).path(STORE, "x", "out"))
FIXED = f'("out","{FIXED_PATH}","sha256","{EMPTY}")'


def term(
    outputs: str = GOOD_OUTPUT, drvs: str = "", srcs: str = "", args: str = "", env: str = ""
) -> bytes:
    return f'Derive([{outputs}],[{drvs}],[{srcs}],"s","/b",[{args}],[{env}])'.encode()


DRV = f"/nix/store/{ZERO}-a.drv"
DRV_B = f"/nix/store/{ZERO}-b.drv"
SRC = f"/nix/store/{ZERO}-s"


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(term(), id="least"),
        pytest.param(term(outputs=FIXED), id="fixed"),
        pytest.param(term(drvs=f'("{DRV}",["dev","out"]),("{DRV_B}",["out"])'), id="inputs"),
        pytest.param(term(srcs=f'"{OUT}-1","{OUT}-2"'), id="sources"),
        pytest.param(term(env='("a","1"),("b","2")'), id="variables"),
        pytest.param(term(outputs=f'("dev","{OUT}-dev","",""),{GOOD_OUTPUT}'), id="two outputs"),
    ],
)
def test_the_files_that_the_malformed_ones_are_made_of_are_good(data: bytes) -> None:
    assert unparse_derivation(parse_derivation(data, "x", STORE), STORE) == data


@pytest.mark.parametrize(
    ("data", "message"),
    [
        pytest.param(term(outputs=""), "no outputs", id="no outputs"),
        pytest.param(
            term(outputs=f"{GOOD_OUTPUT},{GOOD_OUTPUT}"), "canonical", id="same output twice"
        ),
        pytest.param(
            term(outputs=f'{GOOD_OUTPUT},("dev","{OUT}-dev","","")'), "canonical", id="outputs fall"
        ),
        pytest.param(
            term(drvs=f'("{DRV}",["out"]),("{DRV}",["dev"])'), "canonical", id="same input twice"
        ),
        pytest.param(
            term(drvs=f'("{DRV_B}",["out"]),("{DRV}",["out"])'), "canonical", id="inputs fall"
        ),
        pytest.param(
            term(drvs=f'("{DRV}",["out","dev"])'), "canonical", id="outputs of an input fall"
        ),
        pytest.param(
            term(drvs=f'("{DRV}",["out","out"])'), "canonical", id="output of an input twice"
        ),
        pytest.param(term(drvs=f'("{DRV}",[])'), "empty list", id="input without outputs"),
        pytest.param(
            term(drvs=f'("{DRV}",["../x"])'), "contains characters", id="output of an input"
        ),
        pytest.param(term(srcs=f'"{SRC}","{SRC}"'), "canonical", id="same source twice"),
        pytest.param(term(srcs=f'"{SRC}b","{SRC}a"'), "canonical", id="sources fall"),
        pytest.param(term(env='("a","1"),("a","2")'), "canonical", id="same variable twice"),
        pytest.param(term(env='("b","1"),("a","2")'), "canonical", id="variables fall"),
        pytest.param(term(srcs='"/etc/shadow"'), "store directory", id="source on the host"),
        pytest.param(term(srcs=f'"/nix/store//{ZERO}-s"'), "base name", id="two slashes"),
        pytest.param(term(srcs=f'"/nix/store/./{ZERO}-s"'), "base name", id="dot in a path"),
        pytest.param(term(srcs=f'"{SRC}/bin"'), "contains characters", id="file in a source"),
        pytest.param(term(srcs=f'"{SRC}/"'), "contains characters", id="slash behind a source"),
        pytest.param(term(srcs=f'"/nix/store/{"e" * 32}-s"'), "base name", id="bad digits"),
        pytest.param(
            term(drvs='("/tmp/x.drv",["out"])'), "store directory", id="input on the host"
        ),
        pytest.param(
            term(outputs='("out","/etc","","")'), "store directory", id="output on the host"
        ),
        pytest.param(
            term(outputs=f'("out","{OUT}","","{EMPTY}")'), "without an algorithm", id="hash alone"
        ),
        pytest.param(
            term(outputs=f'("out","","sha256","{EMPTY}")'),
            "store directory",
            id="fixed without a path",
        ),
        pytest.param(
            term(outputs=f'("out","{OUT}","sha256","{EMPTY}")'),
            "its hash gives",
            id="fixed with another path",
        ),
        pytest.param(
            term(outputs=FIXED.replace("sha256", "r:sha256")),
            "its hash gives",
            id="fixed with the path of another method",
        ),
        pytest.param(
            term(outputs=FIXED.replace(EMPTY, EMPTY.upper())), "canonical", id="hash in upper case"
        ),
        pytest.param(
            term(outputs=FIXED.replace(EMPTY, SHA256.base32)), "canonical", id="hash in base 32"
        ),
        pytest.param(
            term(outputs=FIXED.replace(EMPTY, SHA256.sri)), "canonical", id="hash with algorithm"
        ),
        pytest.param(
            term(outputs=FIXED.replace(EMPTY, EMPTY[:-2])), "wrong length", id="short hash"
        ),
        pytest.param(
            term(outputs=FIXED.replace("sha256", "sha3")), "unknown hash", id="unknown algorithm"
        ),
        pytest.param(
            term(outputs=f'("out","{OUT}","r:sha256","")'), "its path", id="floating with a path"
        ),
        pytest.param(
            term(outputs=f'("out","{OUT}","r:sha256","impure")'),
            "its path",
            id="impure with a path",
        ),
        pytest.param(
            term(outputs=f'("dev","","",""),{GOOD_OUTPUT}'), "mixes", id="mixed kinds of outputs"
        ),
        pytest.param(
            term().replace(b'"out"', b'"\xff"'), "not valid UTF-8", id="output not in UTF-8"
        ),
        pytest.param(
            term().replace(b'"s"', b'"\xff"'), "not valid UTF-8", id="system not in UTF-8"
        ),
        pytest.param(
            term(srcs="@").replace(b"@", b'"/nix/store/\xff"'),
            "not valid UTF-8",
            id="source not in UTF-8",
        ),
    ],
)
def test_files_that_can_t_be_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        parse_derivation(data, "x", STORE)


@pytest.mark.parametrize("name", ["", "..", "a/b", "a" * 212, "a\n"])
def test_a_file_can_t_have_a_bad_name(name: str) -> None:
    with pytest.raises(FormatError):
        parse_derivation(term(), name, STORE)


def test_a_file_belongs_to_one_store_directory() -> None:
    with pytest.raises(FormatError, match="is not in the store directory '/other/store'"):
        parse_derivation(term(), "x", StoreDir("/other/store"))


def _with_a_long_argument(size: int) -> bytes:
    text = 'Derive([("out","/nix/store/{}-x","","")],[],[],"s","/b",["{}"],[])'
    return text.format("0" * 32, "a" * size).encode()


def test_what_is_kept_of_derivations_is_bounded_whatever_a_client_sends() -> None:
    forget_parsed_derivations()
    small, large = _with_a_long_argument(1000), _with_a_long_argument(300_000)
    assert parse_derivation(small, "x", STORE) is parse_derivation(small, "x", STORE)
    assert parse_derivation(large, "x", STORE) is not parse_derivation(large, "x", STORE)
    for number in range(100):
        parse_derivation(_with_a_long_argument(number), "x", STORE)
    before = parse_derivation(small, "x", STORE)
    forget_parsed_derivations()
    assert parse_derivation(small, "x", STORE) is not before
