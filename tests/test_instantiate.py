"""Hand-written derivations: what may be left out, how they name each other, what is refused."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from executor.derivation import Derivation
from executor.errors import FormatError, StoreError, UsageError
from executor.instantiate import Instantiated, instantiate, instantiate_file
from executor.store.local import LocalStore
from executor.store.location import parse_store_url

FIXTURES = Path(__file__).parent / "fixtures" / "formats"
SRI = "sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LocalStore]:
    with LocalStore.open(parse_store_url(str(tmp_path / "root"), {})) as store:
        yield store


def entry(**changes: Any) -> dict[str, Any]:
    """As little as a derivation can be written with."""
    return {"system": "x86_64-linux", "builder": "/bin/sh", **changes}


def make(store: LocalStore, value: object, directory: str = "/nowhere") -> Instantiated:
    return instantiate(store, json.dumps(value).encode(), directory)


def read(store: LocalStore, found: Instantiated, key: str) -> Derivation:
    return store.read_derivation(found.by_key[key])


def out(store: LocalStore, derivation: Derivation, name: str = "out") -> str:
    """An output's path as its variable has it."""
    return derivation.env[name.encode()].decode()


def test_least_of_all(store: LocalStore) -> None:
    found = make(store, entry(name="x"))
    (path,) = found.roots
    assert found.by_key == {"x": path}
    assert path.name == "x.drv"
    derivation = read(store, found, "x")
    (output,) = store.query_outputs(path).values()
    assert derivation.env == {b"out": store.store_dir.render(output).encode()}
    assert derivation.args == ()
    assert store.is_valid(path)


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(entry(name="x"), id="one"),
        pytest.param({"x": entry()}, id="map"),
        pytest.param({"derivations": {"x": entry()}}, id="wrapper"),
        pytest.param({"derivations": {"x": entry()}, "version": 4}, id="wrapper with version"),
        pytest.param({"x.drv": entry()}, id="key with extension"),
        pytest.param({f"{'0' * 32}-x.drv": entry()}, id="base name as key"),
        pytest.param({f"/nix/store/{'0' * 32}-x.drv": entry()}, id="full path as key"),
        pytest.param({"other": entry(name="x")}, id="name inside"),
        pytest.param(
            entry(name="x", args=[], env={}, inputs={"drvs": {}, "srcs": []}, version=4),
            id="everything",
        ),
        pytest.param(entry(name="x", inputDrvs={}, inputSrcs=[]), id="older shape"),
        pytest.param(entry(name="x", outputs={"out": {"path": None}}), id="unknown path"),
        pytest.param(entry(name="x", outputs={"out": {"path": f"{'0' * 32}-x"}}), id="wrong path"),
        pytest.param(entry(name="x", env={"out": "/wrong"}), id="wrong variable"),
    ],
)
def test_all_spellings_give_the_same_derivation(store: LocalStore, value: object) -> None:
    assert make(store, value).roots == make(store, entry(name="x")).roots


def fill(store: LocalStore) -> None:
    """The sources that the fixtures refer to."""
    text = store.add_text("text", b"some text\n")
    path = store.store_dir.render(text)
    store.add_text("script.sh", f"echo {path} > $out\n".encode(), [text])


def test_what_nix_2_8_shows_gives_its_derivations(store: LocalStore) -> None:
    fill(store)
    found = instantiate(store, (FIXTURES / "show-2.8.json").read_bytes(), "/nowhere")
    assert len(found.by_key) == 8
    for key, path in found.by_key.items():
        assert store.store_dir.render(path) == key


def test_what_nix_shows_gives_its_derivations(store: LocalStore) -> None:
    fill(store)
    shown = json.loads((FIXTURES / "show.json").read_bytes())
    entries = {key: value for key, value in shown["derivations"].items() if "-deferred" not in key}
    found = make(store, {**shown, "derivations": entries})
    assert len(found.by_key) == 37
    for key, path in found.by_key.items():
        assert path.base_name == key


def test_inputs_are_named_by_their_keys_in_any_order(store: LocalStore) -> None:
    found = make(
        store,
        {
            "top": entry(
                inputs={"drvs": {"left": ["out"], "right": {"outputs": ["dev"]}}},
                env={"LEFT": "{{left}}/x:{{left.out}}", "out": "ignored"},
                args=["{{right.dev}}", "{{right}}"],
                builder="{{left}}/bin/sh",
            ),
            "right": entry(inputs={"drvs": {"left": ["out"]}}, outputs={"out": {}, "dev": {}}),
            "left": entry(),
            "alone": entry(),
        },
    )
    left, right, top = (read(store, found, key) for key in ("left", "right", "top"))
    assert found.roots == (found.by_key["top"], found.by_key["alone"])
    assert top.input_drvs == {
        found.by_key["left"]: frozenset({"out"}),
        found.by_key["right"]: frozenset({"dev"}),
    }
    assert right.input_drvs == {found.by_key["left"]: frozenset({"out"})}
    assert top.env[b"LEFT"].decode() == f"{out(store, left)}/x:{out(store, left)}"
    assert [arg.decode() for arg in top.args] == [out(store, right, "dev"), out(store, right)]
    assert top.builder.decode() == f"{out(store, left)}/bin/sh"


def test_keys_may_hold_any_characters(store: LocalStore) -> None:
    key = 'é "quoted" \\ key'
    found = make(
        store,
        {
            key: entry(name="odd"),
            "top": entry(inputs={"drvs": {key: ["out"]}}, args=["<{{" + key + "}}>"]),
        },
    )
    expected = f"<{out(store, read(store, found, key))}>"
    assert read(store, found, "top").args == (expected.encode(),)


def test_inputs_may_be_derivations_of_the_store(store: LocalStore) -> None:
    (below,) = make(store, entry(name="below")).roots
    for key in (below.base_name, store.store_dir.render(below)):
        found = make(store, entry(name="top", inputs={"drvs": {key: ["out"]}}))
        assert read(store, found, "top").input_drvs == {below: frozenset({"out"})}


def test_placeholders_of_what_is_no_input_are_left_as_they_are(store: LocalStore) -> None:
    value = {"a": entry(args=["{{b}} {{c}} {{./x}} {{}}"]), "b": entry()}
    assert read(store, make(store, value), "a").args == (b"{{b}} {{c}} {{./x}} {{}}",)


def test_sources_lie_beside_the_file(store: LocalStore, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "script").write_text("echo hello\n")
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "file").write_text("contents")
    file = tmp_path / "sub" / "x.json"
    value = entry(
        inputs={"srcs": ["./script", "../tree"]}, args=["{{./script}}"], env={"t": "{{../tree}}"}
    )
    file.write_text(json.dumps({"x": value}))
    derivation = read(store, instantiate_file(store, str(file)), "x")
    script, tree = sorted(derivation.input_srcs, key=lambda path: path.name)
    assert (script.name, tree.name) == ("script", "tree")
    assert derivation.args == (store.store_dir.render(script).encode(),)
    assert derivation.env[b"t"] == store.store_dir.render(tree).encode()
    assert Path(store.real_path(script)).read_text() == "echo hello\n"
    assert Path(store.real_path(tree), "file").read_text() == "contents"
    assert store.query_path_info(derivation_path(store, file)).references == {script, tree}


def derivation_path(store: LocalStore, file: Path) -> Any:
    (path,) = instantiate_file(store, str(file)).roots
    return path


def test_sources_may_be_paths_of_the_store(store: LocalStore) -> None:
    source = store.add_text("source", b"text")
    for text in (source.base_name, store.store_dir.render(source)):
        found = make(store, entry(name="x", inputs={"srcs": [text]}))
        assert read(store, found, "x").input_srcs == {source}


def test_structured_attributes_are_filled_in_too(store: LocalStore) -> None:
    value = {
        "a": entry(),
        "b": entry(inputs={"drvs": {"a": ["out"]}}, structuredAttrs={"x": ["{{a}}", 1.5, None]}),
    }
    found = make(store, value)
    path = out(store, read(store, found, "a"))
    assert json.loads(read(store, found, "b").env[b"__json"]) == {"x": [path, 1.5, None]}


def test_fixed_outputs_get_their_path(store: LocalStore) -> None:
    found = make(store, entry(name="x", outputs={"out": {"method": "nar", "hash": SRI}}))
    (path,) = store.query_outputs(found.by_key["x"]).values()
    assert out(store, read(store, found, "x")) == store.store_dir.render(path)


@pytest.mark.nix
def test_nix_agrees_with_what_was_written(store: LocalStore, tmp_path: Path) -> None:
    """Its own check of output paths runs when it reads a derivation."""
    found = make(
        store,
        {
            "source": entry(outputs={"out": {"method": "flat", "hash": SRI}}),
            "lib": entry(inputs={"drvs": {"source": ["out"]}}, outputs={"out": {}, "dev": {}}),
            "top": entry(inputs={"drvs": {"lib": ["dev"]}}, env={"x": 'é "\n\\" {{lib.dev}}'}),
        },
    )

    def ask(*words: str) -> str:
        done = subprocess.run(
            ["nix-store", "--store", str(tmp_path / "root"), *words],
            env={**os.environ, "NIX_REMOTE": "local"},
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout

    for key, path in found.by_key.items():
        full = store.store_dir.render(path)
        outputs = {store.store_dir.render(output) for output in store.query_outputs(path).values()}
        assert set(ask("--query", "--outputs", full).split()) == outputs
        assert (
            ask("--query", "--binding", "out", full) == f"{out(store, read(store, found, key))}\n"
        )
    top = read(store, found, "top")
    full = store.store_dir.render(found.by_key["top"])
    assert ask("--query", "--binding", "x", full).encode() == top.env[b"x"] + b"\n"
    ask("--verify", "--check-contents")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        pytest.param([], "top level in the JSON is not an object", id="list"),
        pytest.param({"a": []}, "'a' in the JSON is not an object", id="list as derivation"),
        pytest.param({"derivations": []}, "'derivations'.*not an object", id="list of them"),
        pytest.param({"derivations": {}, "version": 3}, "version 3 is not", id="old wrapper"),
        pytest.param(entry(name="x", version=3), "version 3 is not", id="old version"),
        pytest.param(entry(name="../x"), "contains characters", id="path as name"),
        pytest.param({"a/b": entry()}, "contains characters", id="path as key"),
        pytest.param({"a": {"system": "x"}}, "no key 'builder'", id="no builder"),
        pytest.param({"a": {"builder": "x"}}, "no key 'system'", id="no system"),
        pytest.param({"a": entry(inputs=[])}, "'inputs'.*not an object", id="list as inputs"),
        pytest.param({"a": entry(inputs={"drvs": []})}, "'drvs'.*not an object", id="drvs list"),
        pytest.param({"a": entry(inputs={"srcs": {}})}, "'srcs'.*not an array", id="srcs object"),
        pytest.param({"a": entry(inputs={"srcs": [1]})}, "a source.*not a str", id="number source"),
        pytest.param({"a": entry(inputs={"drvs": {"b": ["out"]}})}, "base name", id="unknown key"),
        pytest.param({"a": entry(inputs={"drvs": {"a": ["out"]}})}, "each other", id="itself"),
        pytest.param(
            {
                "a": entry(inputs={"drvs": {"b": ["out"]}}),
                "b": entry(inputs={"drvs": {"c": ["out"]}}),
                "c": entry(inputs={"drvs": {"a": ["out"]}}),
            },
            "depend on each other: .* -> .* -> ",
            id="circle",
        ),
        pytest.param(
            {"a": entry(), "b": entry(inputs={"drvs": {"a": ["dev"]}})},
            "has no output 'dev'",
            id="unknown output",
        ),
        pytest.param(
            {"a": entry(), "b": entry(inputs={"drvs": {"a": []}})}, "empty list", id="no output"
        ),
    ],
)
def test_what_means_nothing_is_refused(store: LocalStore, value: object, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        make(store, value)


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b'{"a":1}x', b"[" * 100_000])
def test_what_is_no_json_is_refused(store: LocalStore, data: bytes) -> None:
    with pytest.raises(FormatError, match="not JSON"):
        instantiate(store, data, "/nowhere")


@pytest.mark.parametrize(
    "inputs",
    [
        {"drvs": {f"{'0' * 32}-x.drv": ["out"]}},
        {"srcs": [f"{'0' * 32}-x"]},
    ],
)
def test_inputs_must_be_in_the_store(store: LocalStore, inputs: object) -> None:
    with pytest.raises(StoreError):
        make(store, entry(name="top", inputs=inputs))
    assert not [path for path in store.query_all_valid() if path.name == "top.drv"]


def test_a_source_must_exist(store: LocalStore, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"cannot read .*/missing.: No such file"):
        make(store, entry(name="x", inputs={"srcs": ["./missing"]}), str(tmp_path))


def test_errors_name_the_file(store: LocalStore, tmp_path: Path) -> None:
    file = tmp_path / "bad.json"
    file.write_text("{")
    with pytest.raises(FormatError, match=r"^'/.*/bad\.json': not JSON"):
        instantiate_file(store, str(file))
    with pytest.raises(UsageError, match=r"^can't read '/.*/missing': No such file"):
        instantiate_file(store, str(tmp_path / "missing"))
    with pytest.raises(UsageError, match="Is a directory"):
        instantiate_file(store, str(tmp_path))


def test_relative_files_are_found_from_the_working_directory(
    store: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "text").write_text("text")
    (tmp_path / "x.json").write_text(json.dumps(entry(name="x", inputs={"srcs": ["./text"]})))
    monkeypatch.chdir(tmp_path)
    derivation = read(store, instantiate_file(store, "x.json"), "x")
    assert [path.name for path in derivation.input_srcs] == ["text"]
    assert os.getcwd() == str(tmp_path)


@pytest.mark.parametrize("source", ["./a\0b", "./a\0b/c", "../\0"])
def test_a_source_with_a_nul_in_its_name_is_refused(store: LocalStore, source: str) -> None:
    with pytest.raises(FormatError, match="NUL in its name"):
        make(store, entry(name="x", inputs={"srcs": [source]}))
