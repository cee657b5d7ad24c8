"""Magic attributes: what is understood, what is refused, in the words of Nix 2.34.8."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pytest

from executor.build.options import DerivationOptions, InvalidAttributeError, OutputChecks
from executor.derivation import (
    DeferredOutput,
    Derivation,
    DerivationOutput,
    FixedOutput,
    FloatingOutput,
    ImpureOutput,
    InputAddressed,
)
from executor.formats.content_address import IngestionMethod
from executor.formats.hashes import HashAlgorithm, hash_bytes
from executor.formats.nlohmann import JsonValue
from executor.formats.store_path import StoreDir, StorePath

STORE_DIR = StoreDir("/nix/store")
LEAF = StorePath("1" * 32, "leaf")
LEAF_TEXT = STORE_DIR.render(LEAF)
OUT = InputAddressed(StorePath("3" * 32, "x"))


def parse(env: Mapping[bytes, bytes], output: DerivationOutput = OUT) -> DerivationOptions:
    derivation = Derivation(
        name="x",
        outputs={"out": output},
        input_drvs={},
        input_srcs=frozenset(),
        platform="x86_64-linux",
        builder=b"/bin/sh",
        args=(),
        env=env,
    )
    return DerivationOptions.from_derivation(derivation, STORE_DIR)


def parse_structured(attributes: object, **env: str) -> DerivationOptions:
    extra = {name.encode(): value.encode() for name, value in env.items()}
    return parse({b"__json": json.dumps(attributes).encode(), **extra})


def test_defaults() -> None:
    assert parse({}) == DerivationOptions(
        output_checks={None: OutputChecks(ignore_self_references=True)}
    )
    assert parse_structured({}) == DerivationOptions(structured={})


def test_legacy() -> None:
    options = parse(
        {
            b"__noChroot": b"1",
            b"__impureHostDeps": b" /a\t/b\n/a ",
            b"impureEnvVars": b"http_proxy \xff",
            b"requiredSystemFeatures": b"kvm big-parallel",
            b"preferLocalBuild": b"1",
            b"allowSubstitutes": b"",
            b"passAsFile": b"a b\r\na",
            b"exportReferencesGraph": b"one %s two %s/sub" % ((LEAF_TEXT.encode(),) * 2),
            b"allowedReferences": b"",
            b"disallowedReferences": f"out {LEAF_TEXT} /nix/store//{LEAF.base_name}".encode(),
            b"disallowedRequisites": f"{LEAF_TEXT}/sub".encode(),
            b"unsafeDiscardReferences": b"1",
            b"outputChecks": b"x",
        }
    )
    assert options == DerivationOptions(
        no_chroot=True,
        impure_host_deps=frozenset({"/a", "/b"}),
        impure_env_vars=frozenset({b"http_proxy", b"\xff"}),
        required_system_features=frozenset({"kvm", "big-parallel"}),
        prefer_local_build=True,
        allow_substitutes=False,
        pass_as_file=frozenset({b"a", b"b"}),
        export_references_graph={"one": frozenset({LEAF}), "two": frozenset({LEAF})},
        output_checks={
            None: OutputChecks(
                ignore_self_references=True,
                allowed_references=frozenset(),
                disallowed_references=frozenset({"out", LEAF}),
                disallowed_requisites=frozenset({f"{LEAF_TEXT}/sub"}),
            )
        },
    )


@pytest.mark.parametrize("value", [b"", b"0", b"true", b" 1", b"11"])
def test_only_one_is_true_in_legacy_derivations(value: bytes) -> None:
    options = parse({b"__noChroot": value, b"allowSubstitutes": value})
    assert not options.no_chroot
    assert not options.allow_substitutes


def test_structured() -> None:
    attributes: dict[str, JsonValue] = {
        "__noChroot": True,
        "__impureHostDeps": ["/a"],
        "impureEnvVars": ["http_proxy"],
        "requiredSystemFeatures": ["uid-range"],
        "preferLocalBuild": True,
        "allowSubstitutes": False,
        "exportReferencesGraph": {"g": [[LEAF_TEXT], [], LEAF_TEXT + "/sub"], "h": LEAF_TEXT},
        "unsafeDiscardReferences": {"out": True, "dev": False},
        "outputChecks": {
            "out": {
                "maxSize": 10,
                "maxClosureSize": 2**64 - 1,
                "allowedReferences": ["out", LEAF_TEXT],
                "allowedRequisites": [],
            },
            "dev": {"disallowedReferences": ["out"], "disallowedRequisites": [LEAF_TEXT]},
        },
    }
    options = parse_structured(attributes)
    assert options == DerivationOptions(
        structured=attributes,
        no_chroot=True,
        impure_host_deps=frozenset({"/a"}),
        impure_env_vars=frozenset({b"http_proxy"}),
        required_system_features=frozenset({"uid-range"}),
        prefer_local_build=True,
        allow_substitutes=False,
        export_references_graph={"g": frozenset({LEAF}), "h": frozenset({LEAF})},
        unsafe_discard_references={"out": True, "dev": False},
        output_checks={
            "out": OutputChecks(
                max_size=10,
                max_closure_size=2**64 - 1,
                allowed_references=frozenset({"out", LEAF}),
                allowed_requisites=frozenset(),
            ),
            "dev": OutputChecks(
                disallowed_references=frozenset({"out"}),
                disallowed_requisites=frozenset({LEAF}),
            ),
        },
    )
    assert options.wants_uid_range
    assert options.discards_references("out")
    assert not options.discards_references("dev")
    assert not options.discards_references("lib")
    assert options.checks_for("lib") is None


def test_environment_beside_structured_attributes_is_ignored() -> None:
    options = parse_structured({}, preferLocalBuild="1", allowedReferences="", __noChroot="1")
    assert options == DerivationOptions(structured={})


METHOD = IngestionMethod.NAR
SHA256 = HashAlgorithm.SHA256


@pytest.mark.parametrize(
    ("output", "features"),
    [
        (OUT, set()),
        (FixedOutput(METHOD, hash_bytes(SHA256, b"")), set()),
        (FloatingOutput(METHOD, SHA256), {"ca-derivations"}),
        (DeferredOutput(), {"ca-derivations"}),
        (ImpureOutput(METHOD, SHA256), {"ca-derivations"}),
    ],
)
def test_unknown_output_paths_need_a_feature(output: DerivationOutput, features: set[str]) -> None:
    assert parse({}, output).required_system_features == features


def test_warnings() -> None:
    names = [
        "allowedReferences",
        "allowedRequisites",
        "disallowedRequisites",
        "disallowedReferences",
        "maxSize",
        "maxClosureSize",
    ]
    attributes = {**dict.fromkeys(names, 1), "exportReferencesGraph": ["g", LEAF_TEXT]}
    options = parse_structured(attributes, passAsFile="x")
    assert options.warnings == (
        *(
            f"'structuredAttrs' disables the effect of the top-level attribute '{name}'; "
            "use 'outputChecks' instead"
            for name in names
        ),
        "'structuredAttrs' disables the effect of the top-level attribute 'passAsFile'; "
        "because all JSON is always passed via file",
        "'exportReferencesGraph' in structured attrs is not a JSON object, ignoring",
    )
    assert options.export_references_graph == {}
    assert parse({name.encode(): b"" for name in names}).warnings == ()


@pytest.mark.parametrize(
    "name",
    ["../../etc/cron.d/x", "a/b", ".", "..", ".attrs.sh", "1a", "-a", "ä", "a\0b", "a" * 256],
)
def test_illegal_file_names(name: str) -> None:
    with pytest.raises(InvalidAttributeError) as caught:
        parse({b"exportReferencesGraph": f"{name} {LEAF_TEXT}".encode()})
    assert str(caught.value) == f"invalid file name '{name}' in 'exportReferencesGraph'"


def test_legal_file_names() -> None:
    names = ["a", "_", "Z9_.-", "a" * 255]
    words = " ".join(f"{name} {LEAF_TEXT}" for name in names)
    assert list(parse({b"exportReferencesGraph": words.encode()}).export_references_graph) == names


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (
            f"x {LEAF_TEXT} y",
            f"odd number of tokens in 'exportReferencesGraph': 'x {LEAF_TEXT} y'",
        ),
        ("x /tmp/x", "path '/tmp/x' is not in the Nix store"),
        ("x /nix/store", "path '/nix/store' is not in the Nix store"),
        ("x /nix/store/short", "'short' is not the base name of a store path"),
    ],
)
def test_illegal_graphs(value: str, text: str) -> None:
    with pytest.raises(InvalidAttributeError) as caught:
        parse({b"exportReferencesGraph": value.encode()})
    assert str(caught.value) == text


def expected(wanted: str, found: str, value: str) -> str:
    return f"Expected JSON value to be of type '{wanted}' but it is of type '{found}': {value}"


@pytest.mark.parametrize(
    ("attributes", "text"),
    [
        (
            {"preferLocalBuild": "1"},
            'while parsing attribute "preferLocalBuild": ' + expected("boolean", "string", '"1"'),
        ),
        (
            {"allowSubstitutes": None},
            'while parsing attribute "allowSubstitutes": ' + expected("boolean", "null", "null"),
        ),
        (
            {"__noChroot": 1},
            'while parsing attribute "__noChroot": ' + expected("boolean", "number", "1"),
        ),
        (
            {"requiredSystemFeatures": "big"},
            'while parsing attribute "requiredSystemFeatures": '
            + expected("array", "string", '"big"'),
        ),
        (
            {"impureEnvVars": [1]},
            'while parsing attribute "impureEnvVars": ' + expected("string", "number", "1"),
        ),
        (
            {"__sandboxProfile": 1.5},
            'while parsing attribute "__sandboxProfile": ' + expected("string", "number", "1.5"),
        ),
        (
            {"__darwinAllowLocalNetworking": {}},
            'while parsing attribute "__darwinAllowLocalNetworking": '
            + expected("boolean", "object", "{}"),
        ),
        ({"outputChecks": []}, expected("object", "array", "[]")),
        ({"outputChecks": {"out": 1}}, expected("object", "number", "1")),
        (
            {"outputChecks": {"out": {"allowedReferences": "out"}}},
            "while parsing attribute 'outputChecks.\"out\".allowedReferences': "
            + expected("array", "string", '"out"'),
        ),
        (
            {"outputChecks": {"out": {"maxSize": "1"}}},
            "[json.exception.type_error.302] type must be number, but is string",
        ),
        (
            {"outputChecks": {"out": {"maxClosureSize": True}}},
            "[json.exception.type_error.302] type must be number, but is boolean",
        ),
        (
            {"unsafeDiscardReferences": True},
            "while parsing attribute 'unsafeDiscardReferences': "
            + expected("object", "boolean", "true"),
        ),
        (
            {"unsafeDiscardReferences": {"out": 1}},
            "while parsing attribute 'unsafeDiscardReferences': "
            + expected("boolean", "number", "1"),
        ),
        (
            {"exportReferencesGraph": {"x": [1]}},
            "'exportReferencesGraph' value is not an array or a string",
        ),
        (
            {"exportReferencesGraph": {"x": [["/tmp/x"]]}},
            "path '/tmp/x' is not in the Nix store",
        ),
    ],
)
def test_ill_typed_structured_attributes(attributes: object, text: str) -> None:
    with pytest.raises(InvalidAttributeError) as caught:
        parse_structured(attributes)
    assert str(caught.value) == text


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b"null", b'{"a":1e999}', b'{"a":"\\ud800"}', b"\xff", b"[" * 10**6]
)
def test_structured_attributes_must_be_an_object(text: bytes) -> None:
    with pytest.raises(InvalidAttributeError, match="cannot process __json attribute"):
        parse({b"__json": text})


def test_long_and_odd_values_stay_printable_in_messages() -> None:
    with pytest.raises(InvalidAttributeError) as caught:
        parse_structured({"preferLocalBuild": "x" * 100_000})
    assert len(str(caught.value)) < 1000
    with pytest.raises(InvalidAttributeError) as caught:
        parse({b"exportReferencesGraph": b"\xff"})
    str(caught.value).encode("utf-8")
