"""Attributes in Bash. The kept files of real Nix are compared in test_environment.py."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from executor.build.structured_attrs import shell_declarations
from executor.formats.nlohmann import JsonValue, dump_json, parse_json


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("true", "declare a=1"),
        ("false", "declare a="),
        ("null", "declare a=''"),
        ('"it\'s"', "declare a='it'\\''s'"),
        ("2147483647", "declare a=2147483647"),
        ("2147483648", "declare a=-2147483648"),
        ("4294967297", "declare a=1"),
        ("-2147483649", "declare a=2147483647"),
        ("9223372036854775807", "declare a=-1"),
        ("-9223372036854775808", "declare a=0"),
        ("18446744073709551615", "declare a=-1"),
        ("3.0", "declare a=3"),
        ("-0.0", "declare a=0"),
        ("0.99999999", "declare a=0"),
        ("-0.99999999", "declare a=0"),
        ("8388609.5", "declare a=8388609"),
        ("8388607.5", None),
        ("1.5", None),
        ("1e-300", "declare a=0"),
        ("1e300", "declare a=-2147483648"),
        ("-1e300", "declare a=-2147483648"),
        ("2147483648.0", "declare a=-2147483648"),
        ("[]", "declare -a a=()"),
        ('[1,false,null,"x"]', "declare -a a=(1  '' 'x' )"),
        ("[1,[2]]", None),
        ("[1,1.5]", None),
        ("{}", "declare -A a=()"),
        ('{"b":1,"a\'":false}', "declare -A a=(['a'\\''']= ['b']=1 )"),
        ('{"a":{}}', None),
    ],
)
def test_values(value: str, text: str | None) -> None:
    parsed = parse_json(value.encode())
    expected = b"" if text is None else text.encode() + b"\n"
    assert shell_declarations({"a": parsed}) == expected


def test_only_identifiers_and_in_order_of_bytes() -> None:
    names = ["b", "B", "_", "a1", "1a", "a-b", "", "ä", "a\n", "a b"]
    lines = shell_declarations(dict.fromkeys(names, 1)).splitlines()
    assert lines == [b"declare B=1", b"declare _=1", b"declare a1=1", b"declare b=1"]


def test_control_characters_go_through() -> None:
    assert shell_declarations({"a": "x\0\x01\ny"}) == b"declare a='x\0\x01\ny'\n"


json_values: st.SearchStrategy[JsonValue] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8", exclude_characters="\0")),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner),
    max_leaves=10,
)


@given(st.dictionaries(st.text(st.characters(codec="utf-8")), json_values))
def test_json_comes_back_and_stays_as_it_is(attributes: dict[str, JsonValue]) -> None:
    text = dump_json(attributes)
    assert json.loads(text) == attributes
    assert dump_json(parse_json(text)) == text


@settings(max_examples=30)
@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0")), max_size=5))
def test_quoting_holds_in_a_shell(texts: list[str]) -> None:
    bash = shutil.which("bash")
    if bash is None:  # the text is the same for every shell that knows `declare`
        pytest.fail("bash is needed")
    script = shell_declarations({"a": list(texts)}) + b'printf "%s\\0" "${a[@]}" end'
    done = subprocess.run([bash], input=script, capture_output=True, check=True)
    assert done.stdout == b"".join(text.encode() + b"\0" for text in [*texts, "end"])
