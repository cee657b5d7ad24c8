"""The file form of derivations as raw terms: byte for byte, and canonical only."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from executor.errors import FormatError
from executor.formats.aterm import DerivationTerm, InputTerm, parse_term, unparse_term

FIXTURES = Path(__file__).parent.parent / "fixtures"
FILES = sorted(
    [*FIXTURES.glob("formats/derivations/*.drv"), *FIXTURES.glob("attributes/*/derivation.drv")]
)

PLAIN = b'Derive([("out","/o","","")],[("/d",["out"])],["/s"],"sys","/b",["a"],[("k","v")])'
DYNAMIC = (
    b'DrvWithVersion("xp-dyn-drv",'
    b'[("out","/o","","")],[("/d",(["out"],[("dev",["lib"])]))],["/s"],"sys","/b",["a"],[])'
)

strings = st.binary(max_size=30) | st.text('\\"\n\r\tnrt ', max_size=10).map(str.encode)
terms = st.builds(
    DerivationTerm,
    outputs=st.lists(st.tuples(strings, strings, strings, strings), max_size=3).map(tuple),
    input_drvs=st.lists(
        st.tuples(strings, st.lists(strings, max_size=3).map(tuple)), max_size=3
    ).map(tuple),
    input_srcs=st.lists(strings, max_size=3).map(tuple),
    platform=strings,
    builder=strings,
    args=st.lists(strings, max_size=3).map(tuple),
    env=st.lists(st.tuples(strings, strings), max_size=3).map(tuple),
)


def test_the_fixtures_are_there() -> None:
    assert len(FILES) >= 48


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name[:60])
def test_files_by_nix_are_written_again_byte_for_byte(path: Path) -> None:
    data = path.read_bytes()
    assert unparse_term(parse_term(data)) == data


@given(terms)
def test_any_term_reads_back(term: DerivationTerm) -> None:
    assert parse_term(unparse_term(term)) == term


@given(st.binary(max_size=40), st.integers(0, len(PLAIN)), st.integers(0, 10))
def test_what_is_accepted_is_canonical(noise: bytes, at: int, removed: int) -> None:
    data = PLAIN[:at] + noise + PLAIN[at + removed :]
    try:
        term = parse_term(data)
    except FormatError:
        return
    assert unparse_term(term) == data


def test_outputs_of_outputs_are_read() -> None:
    term = parse_term(DYNAMIC)
    assert term.versioned
    assert term.input_drvs == ((b"/d", (b"out",)),)
    assert term.dynamic == ((b"/d", ((b"dev", InputTerm((b"lib",))),)),)
    assert unparse_term(term) == DYNAMIC


def test_fields_are_told_apart() -> None:
    assert parse_term(PLAIN) == DerivationTerm(
        outputs=((b"out", b"/o", b"", b""),),
        input_drvs=((b"/d", (b"out",)),),
        input_srcs=(b"/s",),
        platform=b"sys",
        builder=b"/b",
        args=(b"a",),
        env=((b"k", b"v"),),
    )


@pytest.mark.parametrize(
    ("text", "quoted"),
    [
        (b"", b'""'),
        (b'"\\\n\r\t', b'"\\"\\\\\\n\\r\\t"'),
        (b"\\n", b'"\\\\n"'),
        (b"'\x00\x01\x7f\xff", b'"\'\x00\x01\x7f\xff"'),
        ("é🎈".encode(), '"é🎈"'.encode()),
    ],
)
def test_only_five_characters_are_escaped(text: bytes, quoted: bytes) -> None:
    data = PLAIN.replace(b'"a"', quoted)
    assert parse_term(data).args == (text,)
    assert unparse_term(parse_term(data)) == data


def test_no_file_that_is_cut_short_is_read() -> None:
    data = max((path.read_bytes() for path in FILES), key=len)
    for end in range(len(data)):
        with pytest.raises(FormatError):
            parse_term(data[:end])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        pytest.param(b"", "must start with", id="nothing"),
        pytest.param(PLAIN.lower(), "must start with", id="lower case"),
        pytest.param(b" " + PLAIN, "must start with", id="white space before"),
        pytest.param(PLAIN + b"\n", "unexpected bytes after", id="newline after"),
        pytest.param(PLAIN + PLAIN, "unexpected bytes after", id="two terms"),
        pytest.param(b"DrvWithVersion" + PLAIN[6:], "expected", id="no version"),
        pytest.param(
            b'DrvWithVersion("invalid-version",[],[],[],"","",[],[])',
            "Unknown derivation ATerm format version 'invalid-version'",
            id="bad version",
        ),
        pytest.param(b"DrvWithVersion(" * 100_000, "complete string", id="versions, nested"),
        pytest.param(
            b'DrvWithVersion("xp-dyn-drv",[],[' + b'("a",([],[' * 100_000,
            "nested too deeply",
            id="outputs of outputs, nested",
        ),
        pytest.param(
            DYNAMIC.replace(b'(["out"],[("dev",["lib"])])', b'(["out"],[])'),
            "canonical",
            id="node without need",
        ),
        pytest.param(b"Derive(" + b"[" * 100_000, "expected", id="lists, nested"),
        pytest.param(b"Derive()", "expected", id="no fields"),
        pytest.param(b"Derive([],[],[])", "expected", id="too few fields"),
        pytest.param(PLAIN[:-1] + b",[])", "expected", id="too many fields"),
        pytest.param(PLAIN.replace(b',"","")', b',"")'), "expected", id="output of 3"),
        pytest.param(PLAIN.replace(b',"","")', b',"","","")'), "expected", id="output of 5"),
        pytest.param(PLAIN.replace(b'("k","v")', b'("k")'), "expected", id="variable alone"),
        pytest.param(PLAIN.replace(b'["a"]', b'["a",]'), "complete string", id="comma at the end"),
        pytest.param(PLAIN.replace(b'["a"]', b'["a""b"]'), "expected", id="no comma"),
        pytest.param(PLAIN.replace(b'["a"]', b'[,"a"]'), "complete string", id="comma first"),
        pytest.param(PLAIN.replace(b'["a"]', b'[ "a"]'), "complete string", id="white space"),
        pytest.param(PLAIN.replace(b'["a"]', b"[a]"), "complete string", id="no quotes"),
        pytest.param(PLAIN.replace(b'["a"]', b"['a']"), "complete string", id="wrong quotes"),
        pytest.param(PLAIN.replace(b'"v")])', b'"v'), "complete string", id="unterminated"),
        pytest.param(PLAIN.replace(b'"v")])', b'"\\'), "complete string", id="backslash last"),
        pytest.param(PLAIN.replace(b'"v")])', b'"\\"'), "complete string", id="escaped quote last"),
        pytest.param(PLAIN.replace(b'"v"', b'"\\x"'), "canonical", id="unknown escape"),
        pytest.param(PLAIN.replace(b'"v"', b'"\\v"'), "canonical", id="needless escape"),
        pytest.param(PLAIN.replace(b'"v"', b'"\\\n"'), "canonical", id="escaped newline"),
        pytest.param(PLAIN.replace(b'"v"', b'"a\nb"'), "canonical", id="bare newline"),
        pytest.param(PLAIN.replace(b'"v"', b'"a\tb"'), "canonical", id="bare tab"),
        pytest.param(PLAIN.replace(b'"v"', b'"a\rb"'), "canonical", id="bare carriage return"),
    ],
)
def test_malformed_terms_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        parse_term(data)


def test_large_terms_are_read() -> None:
    term = DerivationTerm(
        outputs=(),
        input_drvs=(),
        input_srcs=tuple(b"/%d" % number for number in range(100_000)),
        platform=b"",
        builder=b"",
        args=(),
        env=((b"k", b"\\\n" * 500_000),),
    )
    assert parse_term(unparse_term(term)) == term
