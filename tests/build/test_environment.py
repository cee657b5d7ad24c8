"""Environments, held against what Nix 2.34.8 gave to the builders of the same derivations."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from executor.build.environment import (
    BuildEnvironment,
    BuildFile,
    EnvironmentSettings,
    build_environment,
)
from executor.build.options import DerivationOptions, InvalidAttributeError, NotAnInputError
from executor.derivation import Derivation, FloatingOutput, InputAddressed, parse_derivation
from executor.derivation_hash import placeholder
from executor.formats.content_address import IngestionMethod
from executor.formats.hashes import HashAlgorithm, hash_bytes, parse_hash
from executor.formats.store_path import StoreDir, StorePath
from executor.store.path_info import PathInfo

FIXTURES = Path(__file__).parent.parent / "fixtures" / "attributes"
STORE_DIR = StoreDir("/nix/store")
SETTINGS = EnvironmentSettings(
    store_dir=STORE_DIR,
    build_directory=b"/build",
    cores=7,
    host_environment={
        b"NIX_TEST_CANARY": b"hello",
        b"TMPDIR": b"/tmp",
        b"AWS_SECRET_ACCESS_KEY": b"secret",
        b"http_proxy": b"http://proxy",
    },
)
CASES = {
    "plain": "plain",
    "overrides": "overrides",
    "files": "files",
    "graph": "graph",
    "structured": "structured",
    "structuredGraph": "structured-graph",
    "structuredGraphList": "structured-graph-list",
    "raw": "raw",
    "fixed": "fixed",
}


class Lookup:
    """A store of a few paths."""

    def __init__(
        self,
        infos: Mapping[StorePath, PathInfo],
        derivations: Mapping[StorePath, Derivation] | None = None,
    ) -> None:
        self._infos = infos
        self._derivations = derivations or {}

    def query_path_infos(self, paths: Collection[StorePath]) -> Mapping[StorePath, PathInfo]:
        return {path: self._infos[path] for path in paths}

    def closure(self, paths: Iterable[StorePath]) -> set[StorePath]:
        found: set[StorePath] = set()
        waiting = list(paths)
        while waiting:
            path = waiting.pop()
            if path not in found:
                found.add(path)
                waiting.extend(self._infos[path].references)
        return found

    def read_derivation(self, path: StorePath) -> Derivation:
        return self._derivations[path]


def fixture_lookup() -> Lookup:
    infos = {}
    for text, raw in json.loads((FIXTURES / "path-infos.json").read_text()).items():
        path = STORE_DIR.parse(text)
        infos[path] = PathInfo(
            path=path,
            nar_hash=parse_hash(raw["narHash"]),
            nar_size=raw["narSize"],
            references=frozenset(STORE_DIR.parse(item) for item in raw["references"]),
            content_address=raw["ca"],
        )
    return Lookup(infos)


def fixture_derivation(case: str) -> Derivation:
    data = (FIXTURES / case / "derivation.drv").read_bytes()
    return parse_derivation(data, CASES[case], STORE_DIR)


def environment_of(
    derivation: Derivation,
    lookup: Lookup | None = None,
    settings: EnvironmentSettings = SETTINGS,
) -> BuildEnvironment:
    lookup = lookup or fixture_lookup()
    outputs = {
        name: output.path
        if isinstance(output, InputAddressed)
        else STORE_DIR.parse(derivation.env[name.encode()].decode())
        for name, output in derivation.outputs.items()
    }
    return build_environment(
        derivation,
        DerivationOptions.from_derivation(derivation, STORE_DIR),
        settings,
        outputs=outputs,
        inputs=derivation.input_srcs,
        lookup=lookup,
    )


def derivation_with(
    env: Mapping[bytes, bytes], args: tuple[bytes, ...] = (), builder: bytes = b"/bin/sh"
) -> Derivation:
    base = fixture_derivation("plain")
    return replace(base, env={b"out": base.env[b"out"], **env}, args=args, builder=builder)


def content_of(environment: BuildEnvironment, name: bytes) -> bytes:
    (content,) = (file.content for file in environment.files if file.name == name)
    return content


@pytest.mark.parametrize("case", [case for case in CASES if case != "fixed"])
def test_environment_arguments_and_files_are_those_of_nix(case: str) -> None:
    environment = environment_of(fixture_derivation(case))
    variables = b"".join(b"%b=%b\0" % item for item in environment.variables)
    assert variables == (FIXTURES / case / "environment").read_bytes()
    arguments = b"".join(argument + b"\0" for argument in environment.arguments)
    assert arguments == (FIXTURES / case / "arguments").read_bytes()
    directory = FIXTURES / case / "files"
    files = sorted(directory.iterdir()) if directory.exists() else []
    expected = [BuildFile(name=file.name.encode(), content=file.read_bytes()) for file in files]
    assert sorted(environment.files, key=lambda file: file.name) == expected


def test_fixed_output_environment_is_that_of_nix() -> None:
    environment = environment_of(fixture_derivation("fixed"))
    lines = b"".join(b"%b=%b\n" % item for item in environment.variables)
    assert lines == (FIXTURES / "fixed" / "environment.lines").read_bytes()


def test_setting_impure_env_goes_before_the_host() -> None:
    settings = replace(
        SETTINGS, impure_environment={b"NIX_TEST_CANARY": b"from setting", b"OTHER": b"unasked"}
    )
    variables = dict(environment_of(fixture_derivation("fixed"), settings=settings).variables)
    assert variables[b"NIX_TEST_CANARY"] == b"from setting"
    assert b"OTHER" not in variables


def test_impure_variables_cannot_change_terminal_and_log() -> None:
    base = fixture_derivation("fixed")
    derivation = replace(base, env={**base.env, b"impureEnvVars": b"TERM NIX_LOG_FD PWD"})
    settings = replace(SETTINGS, host_environment={b"TERM": b"x", b"NIX_LOG_FD": b"x"})
    variables = dict(environment_of(derivation, settings=settings).variables)
    assert variables[b"TERM"] == b"xterm-256color"
    assert variables[b"NIX_LOG_FD"] == b"2"
    assert variables[b"PWD"] == b""


def test_normal_builds_see_nothing_of_the_host() -> None:
    variables = dict(environment_of(derivation_with({b"impureEnvVars": b"http_proxy"})).variables)
    assert b"http_proxy" not in variables
    assert b"secret" not in variables.values()
    assert b"NIX_OUTPUT_CHECKED" not in variables


def test_placeholders_become_paths_of_outputs_everywhere() -> None:
    here = placeholder("out").encode()
    out = fixture_derivation("plain").env[b"out"]
    derivation = derivation_with(
        {b"x": b"<" + here + b">", b"name" + here: b"y", b"big": here, b"passAsFile": b"big"},
        args=(b"-c", here + here),
    )
    environment = environment_of(derivation)
    variables = dict(environment.variables)
    assert variables[b"x"] == b"<" + out + b">"
    assert variables[b"name" + out] == b"y"
    assert environment.arguments == (b"sh", b"-c", out + out)
    assert [file.content for file in environment.files] == [out]


def test_further_rewrites() -> None:
    derivation = derivation_with({b"x": b"a" * 32 + b"-name"})
    environment = build_environment(
        derivation,
        DerivationOptions.from_derivation(derivation, STORE_DIR),
        SETTINGS,
        outputs={},
        inputs=(),
        lookup=fixture_lookup(),
        rewrites={b"a" * 32: b"b" * 32},
    )
    assert dict(environment.variables)[b"x"] == b"b" * 32 + b"-name"


@pytest.mark.parametrize(
    ("builder", "name"),
    [(b"/bin/sh", b"sh"), (b"/a/b//", b"b"), (b"sh", b"sh"), (b"builtin:fetchurl",) * 2],
)
def test_first_argument_is_the_base_name(builder: bytes, name: bytes) -> None:
    assert environment_of(derivation_with({}, builder=builder)).arguments == (name,)


@pytest.mark.parametrize(
    "derivation",
    [
        derivation_with({b"a\0b": b""}),
        derivation_with({b"a=b": b""}),
        derivation_with({b"": b"x"}),
        derivation_with({b"a": b"x\0"}),
        derivation_with({}, args=(b"a\0",)),
        derivation_with({}, builder=b"/bin/\0sh"),
        derivation_with({b"\xff=": b""}),
    ],
)
def test_refuses_what_no_process_can_be_given(derivation: Derivation) -> None:
    with pytest.raises(InvalidAttributeError) as caught:
        environment_of(derivation)
    str(caught.value).encode("utf-8")


def test_bytes_that_are_no_text_pass() -> None:
    environment = environment_of(derivation_with({b"\xff": b"\xfe\n"}, args=(b"\xfd",)))
    assert (b"\xff", b"\xfe\n") in environment.variables
    assert environment.arguments[1] == b"\xfd"


def test_exported_path_must_be_an_input() -> None:
    path = "/nix/store/" + "0" * 32 + "-x"
    derivation = derivation_with({b"exportReferencesGraph": b"graph " + path.encode()})
    with pytest.raises(NotAnInputError) as caught:
        environment_of(derivation)
    assert str(caught.value) == (
        f"cannot export references of path '{path}' because it is not in the input closure of "
        "the derivation"
    )


def info_of(digit: str, name: str, size: int, *references: StorePath) -> PathInfo:
    return PathInfo(
        path=StorePath(digit * 32, name),
        nar_hash=hash_bytes(HashAlgorithm.SHA256, name.encode()),
        nar_size=size,
        references=frozenset(references),
    )


def test_derivations_in_the_graph_bring_their_outputs() -> None:
    base = fixture_derivation("plain")
    out = STORE_DIR.parse(base.env[b"out"].decode())
    dependency = info_of("2", "dependency", 30)
    built = replace(info_of("3", "x", 5), path=out, references=frozenset({dependency.path, out}))
    drv = info_of("1", "plain.drv", 100)
    infos = {info.path: info for info in (drv, built, dependency)}
    lookup = Lookup(infos, {drv.path: base})
    graph = json.dumps({"exportReferencesGraph": {"graph": [STORE_DIR.render(drv.path)]}})
    derivation = replace(base, env={b"__json": graph.encode()}, input_srcs=frozenset({drv.path}))
    attributes = json.loads(content_of(environment_of(derivation, lookup), b".attrs.json"))
    sizes = {item["path"]: item["closureSize"] for item in attributes["graph"]}
    assert sizes == {
        STORE_DIR.render(drv.path): 100,
        STORE_DIR.render(dependency.path): 30,
        STORE_DIR.render(out): 35,
    }
    assert list(sizes) == sorted(sizes)
    floating = FloatingOutput(IngestionMethod.NAR, HashAlgorithm.SHA256)
    unknown = Lookup(
        infos, {drv.path: replace(base, outputs=dict.fromkeys(base.outputs, floating))}
    )
    with pytest.raises(InvalidAttributeError, match="CA derivations"):
        environment_of(derivation, unknown)


def test_large_graphs_are_summed_right() -> None:
    infos: dict[StorePath, PathInfo] = {}
    previous: list[StorePath] = []
    for index in range(400):
        info = info_of("0", f"n{index}", index + 1, *previous[-2:])
        infos[info.path] = info
        previous.append(info.path)
    top = previous[-1]
    graph = json.dumps({"exportReferencesGraph": {"graph": STORE_DIR.render(top)}})
    derivation = replace(
        fixture_derivation("plain"), env={b"__json": graph.encode()}, input_srcs=frozenset({top})
    )
    attributes = json.loads(content_of(environment_of(derivation, Lookup(infos)), b".attrs.json"))
    sizes = {item["path"]: item["closureSize"] for item in attributes["graph"]}
    for index, path in enumerate(previous):
        assert sizes[STORE_DIR.render(path)] == (index + 1) * (index + 2) // 2
