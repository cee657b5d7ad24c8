"""Checks of outputs, with the words of Nix 2.34.8."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pytest

from executor.build.attribute_reader import AttributeReader
from executor.build.options import DerivationOptions
from executor.build.output_checks import (
    FixedOutputError,
    OutputCheckError,
    UnaddressableOutputError,
    check_fixed_output,
    check_outputs,
)
from executor.derivation import Derivation, InputAddressed
from executor.formats.hashes import HashAlgorithm, hash_bytes
from executor.formats.store_path import StoreDir, StorePath
from executor.store.path_info import PathInfo

STORE_DIR = StoreDir("/nix/store")
DRV = "/nix/store/dddddddddddddddddddddddddddddddd-x.drv"
LEAF = StorePath("1" * 32, "leaf")
BRANCH = StorePath("2" * 32, "branch")
OUT = StorePath("3" * 32, "x")
DEV = StorePath("4" * 32, "x-dev")
OUT_TEXT, LEAF_TEXT, BRANCH_TEXT = (STORE_DIR.render(path) for path in (OUT, LEAF, BRANCH))


def info(
    path: StorePath, size: int, *references: StorePath, address: str | None = None
) -> PathInfo:
    return PathInfo(
        path=path,
        nar_hash=hash_bytes(HashAlgorithm.SHA256, path.name.encode()),
        nar_size=size,
        references=frozenset(references),
        content_address=address,
    )


STORE = {LEAF: info(LEAF, 128), BRANCH: info(BRANCH, 176, LEAF)}
OUTPUTS = {"out": info(OUT, 168, BRANCH, OUT), "dev": info(DEV, 100, OUT)}


def options_with(env: Mapping[str, str]) -> DerivationOptions:
    derivation = Derivation(
        name="x",
        outputs={"out": InputAddressed(OUT), "dev": InputAddressed(DEV)},
        input_drvs={},
        input_srcs=frozenset(),
        platform="x86_64-linux",
        builder=b"/bin/sh",
        args=(),
        env={name.encode(): value.encode() for name, value in env.items()},
    )
    return DerivationOptions.from_derivation(derivation, STORE_DIR)


def structured(checks: object) -> DerivationOptions:
    return options_with({"__json": json.dumps({"outputChecks": {"out": checks}})})


def check(
    options: DerivationOptions,
    outputs: Mapping[str, PathInfo] = OUTPUTS,
    valid_outputs: Mapping[str, StorePath] | None = None,
) -> None:
    check_outputs(DRV, options, outputs, STORE.__getitem__, STORE_DIR, valid_outputs=valid_outputs)


@pytest.mark.parametrize(
    "options",
    [
        options_with({}),
        structured({}),
        structured({"maxSize": 168, "maxClosureSize": 168 + 176 + 128}),
        structured({"maxSize": -1}),
        structured({"allowedReferences": [BRANCH_TEXT, "out"]}),
        structured({"allowedRequisites": [BRANCH_TEXT, LEAF_TEXT, OUT_TEXT]}),
        structured({"disallowedReferences": [LEAF_TEXT], "disallowedRequisites": ["dev"]}),
        options_with({"allowedReferences": f"{BRANCH_TEXT} out"}),
        options_with({"allowedRequisites": f"{BRANCH_TEXT} {LEAF_TEXT} out"}),
        options_with({"disallowedReferences": LEAF_TEXT, "disallowedRequisites": "dev"}),
        options_with({"disallowedReferences": "", "disallowedRequisites": "\t\n"}),
    ],
)
def test_passes(options: DerivationOptions) -> None:
    check(options)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            structured({"maxSize": 99.5}),
            f"path '{OUT_TEXT}' is too large at 168 bytes; limit is 99 bytes",
        ),
        (
            structured({"maxClosureSize": 200}),
            f"closure of path '{OUT_TEXT}' is too large at 472 bytes; limit is 200 bytes",
        ),
        (
            structured({"allowedReferences": []}),
            f"output '{OUT_TEXT}' is not allowed to refer to the following paths:"
            f"\n  {BRANCH_TEXT}\n  {OUT_TEXT}",
        ),
        (
            structured({"allowedRequisites": [BRANCH_TEXT, LEAF_TEXT]}),
            f"output '{OUT_TEXT}' is not allowed to refer to the following paths:\n  {OUT_TEXT}",
        ),
        (
            structured({"disallowedReferences": [BRANCH_TEXT]}),
            f"output '{OUT_TEXT}' is not allowed to refer to the following paths:\n  {BRANCH_TEXT}",
        ),
        (
            structured({"disallowedRequisites": [LEAF_TEXT, "out"]}),
            f"output '{OUT_TEXT}' is not allowed to refer to the following paths:"
            f"\n  {LEAF_TEXT}\n  {OUT_TEXT}",
        ),
        (
            structured({"allowedReferences": ["nope", BRANCH_TEXT + "/sub"]}),
            f"derivation '{DRV}' output check for 'out' contains output name "
            f"'{BRANCH_TEXT}/sub', but this is not a valid output of this derivation. "
            "(Valid outputs are [dev, out].)",
        ),
        # The first output by name is the one that fails.
        (
            options_with({"allowedReferences": "nope"}),
            f"derivation '{DRV}' output check for 'dev' contains output name 'nope', but this is "
            "not a valid output of this derivation. (Valid outputs are [dev, out].)",
        ),
    ],
)
def test_refuses(options: DerivationOptions, text: str) -> None:
    with pytest.raises(OutputCheckError) as caught:
        check(options)
    assert str(caught.value) == text


def test_legacy_requisites_ignore_the_output_itself() -> None:
    only_out = {"out": OUTPUTS["out"]}
    check(options_with({"allowedRequisites": f"{BRANCH_TEXT} {LEAF_TEXT}"}), only_out)
    check(options_with({"disallowedRequisites": "out"}), only_out)
    with pytest.raises(OutputCheckError):
        check(options_with({"disallowedReferences": "out"}), only_out)


def test_output_that_was_valid_before_is_known_by_name_but_not_checked() -> None:
    options = options_with({"allowedReferences": f"dev out {BRANCH_TEXT}"})
    only_out = {"out": OUTPUTS["out"]}
    check(options, only_out, {"dev": DEV})
    with pytest.raises(OutputCheckError, match="contains output name 'dev'"):
        check(options, only_out)
    check(structured({"maxSize": 0}), {"dev": OUTPUTS["dev"]}, {"out": OUT})


FLAT = hash_bytes(HashAlgorithm.SHA256, b"x")
OTHER = hash_bytes(HashAlgorithm.SHA256, b"hi\n")


@pytest.mark.parametrize("method", ["", "r:"])
def test_fixed_output_with_the_promised_hash(method: str) -> None:
    address = f"fixed:{method}{FLAT.prefixed32}"
    check_fixed_output(DRV, info(OUT, 1, address=address), FLAT, STORE_DIR)


@pytest.mark.parametrize(
    ("output", "text"),
    [
        (
            info(OUT, 1, address=f"fixed:{OTHER.prefixed32}"),
            f"hash mismatch in fixed-output derivation '{DRV}':\n"
            "  specified: sha256-LXEWQrcmsEQBYnyp+6wy9chTD7GQPMTbAiWHF5IaSIE=\n"
            "     got:    sha256-mOpuTyFvL7S2n/+bOkSELDhobKaF8/VdxIxdP7EQe+Q=",
        ),
        (
            info(OUT, 1, LEAF, address=f"fixed:{FLAT.prefixed32}"),
            "fixed output derivation 'x' is not allowed to refer to other store paths.\n"
            "You may need to use the 'unsafeDiscardReferences' derivation attribute, "
            "see the manual for more details.",
        ),
        (
            info(OUT, 1, LEAF, BRANCH, address=f"fixed:r:{FLAT.prefixed32}"),
            f"fixed-output derivations must not reference store paths: '{DRV}' references "
            f"2 distinct paths, e.g. '{LEAF_TEXT}'",
        ),
    ],
)
def test_fixed_output_refused(output: PathInfo, text: str) -> None:
    with pytest.raises((FixedOutputError, UnaddressableOutputError)) as caught:
        check_fixed_output(DRV, output, FLAT, STORE_DIR)
    assert str(caught.value) == text


def test_wrong_hash_comes_before_references_where_the_nar_is_hashed() -> None:
    output = info(OUT, 1, LEAF, address=f"fixed:r:{OTHER.prefixed32}")
    with pytest.raises(FixedOutputError, match="hash mismatch"):
        check_fixed_output(DRV, output, FLAT, STORE_DIR)


def test_reader_of_a_legacy_derivation_has_no_structured_values() -> None:
    with pytest.raises(KeyError):
        AttributeReader(None, {b"a": b"1"}).value("a")
