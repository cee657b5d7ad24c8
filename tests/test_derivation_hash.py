"""Output paths as Nix computes them, and derivations that state other ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from executor.derivation import (
    DeferredOutput,
    Derivation,
    DerivationKind,
    FixedOutput,
    FloatingOutput,
    InputAddressed,
    derivation_path,
    parse_derivation,
)
from executor.derivation_hash import (
    DerivationLookup,
    ModuloHasher,
    check_output_paths,
    fill_outputs,
    output_paths,
    placeholder,
)
from executor.errors import FormatError
from executor.formats.content_address import IngestionMethod
from executor.formats.hashes import HashAlgorithm, hash_bytes
from executor.formats.store_path import StoreDir, StorePath

STORE = StoreDir()


def load() -> dict[StorePath, Derivation]:
    """All fixtures, by their paths."""
    found = {}
    for file in sorted((Path(__file__).parent / "fixtures" / "formats" / "derivations").iterdir()):
        path = StorePath.parse(file.name)
        name = path.name.removesuffix(".drv")
        found[path] = parse_derivation(file.read_bytes(), name, STORE)
    return found


DERIVATIONS = load()
ADDRESSED = [p for p, d in DERIVATIONS.items() if d.kind is DerivationKind.INPUT_ADDRESSED]
FIXED = [p for p, d in DERIVATIONS.items() if d.kind is DerivationKind.FIXED]
UNKNOWN = [p for p in DERIVATIONS if p not in ADDRESSED and p not in FIXED]


def lookup(path: StorePath) -> Derivation:
    return DERIVATIONS[path]


def hasher(find: DerivationLookup = lookup, store_dir: StoreDir = STORE) -> ModuloHasher:
    return ModuloHasher(find, store_dir)


def named(name: str) -> list[tuple[StorePath, Derivation]]:
    """The fixtures with this name."""
    return [(path, drv) for path, drv in DERIVATIONS.items() if drv.name == name]


def plain(name: str = "x", **changes: object) -> Derivation:
    """A small derivation whose paths are not known yet."""
    fields = {
        "name": name,
        "outputs": {"out": DeferredOutput()},
        "input_drvs": {},
        "input_srcs": frozenset(),
        "platform": "x86_64-linux",
        "builder": b"/bin/sh",
        "args": (),
        "env": {},
        **changes,
    }
    return Derivation(**fields)  # type: ignore[arg-type]


def test_every_kind_is_among_the_fixtures() -> None:
    assert {derivation.kind for derivation in DERIVATIONS.values()} == set(DerivationKind)
    assert (len(ADDRESSED), len(FIXED), len(UNKNOWN)) == (23, 11, 6)


@pytest.mark.parametrize("path", ADDRESSED, ids=lambda path: path.name[:50])
def test_paths_of_input_addressed_outputs_are_nix_s(path: StorePath) -> None:
    derivation = lookup(path)
    stated = {
        name: output.path
        for name, output in derivation.outputs.items()
        if isinstance(output, InputAddressed)
    }
    assert stated
    assert output_paths(derivation, hasher()) == stated


@pytest.mark.parametrize("path", FIXED, ids=lambda path: path.name[:50])
def test_paths_of_fixed_outputs_are_nix_s(path: StorePath) -> None:
    derivation = lookup(path)
    (found,) = output_paths(derivation, hasher()).values()
    assert found is not None
    assert derivation.env[b"out"] == STORE.render(found).encode()


@pytest.mark.parametrize("path", UNKNOWN, ids=lambda path: path.name[:50])
def test_paths_that_only_a_build_can_tell_are_none(path: StorePath) -> None:
    derivation = lookup(path)
    assert output_paths(derivation, hasher()) == dict.fromkeys(derivation.outputs)


@pytest.mark.parametrize("path", DERIVATIONS, ids=lambda path: path.name[:50])
def test_nix_s_derivations_pass_the_check(path: StorePath) -> None:
    check_output_paths(lookup(path), path, hasher())


@pytest.mark.parametrize("path", [*ADDRESSED, *FIXED], ids=lambda path: path.name[:50])
def test_paths_that_were_left_out_are_filled_in(path: StorePath) -> None:
    derivation = lookup(path)
    env = {k: v for k, v in derivation.env.items() if k.decode() not in derivation.outputs}
    outputs = {
        name: DeferredOutput() if isinstance(output, InputAddressed) else output
        for name, output in derivation.outputs.items()
    }
    stripped = replace(derivation, outputs=outputs, env=env)
    assert fill_outputs(stripped, hasher()) == derivation
    assert derivation_path(fill_outputs(stripped, hasher()), STORE) == path


@pytest.mark.parametrize(("name", "inputs"), [("mirror-user", 1), ("twins-user", 2)])
def test_how_a_fixed_output_is_fetched_changes_no_path_above_it(name: str, inputs: int) -> None:
    (one_path, one), (two_path, two) = named(name)
    assert one_path != two_path
    assert one.input_drvs != two.input_drvs
    assert len(one.input_drvs) == inputs
    assert one.outputs == two.outputs


def test_inputs_that_are_the_same_modulo_are_joined() -> None:
    """Both outputs of one twin, or one of each: no difference."""
    _, user = named("twins-user")[0]
    (first, _), (second, _) = named("twin")
    for joined in ({first: frozenset({"out", "dev"})}, {second: frozenset({"dev", "out"})}):
        alone = replace(user, input_drvs=joined)
        assert output_paths(alone, hasher()) == output_paths(user, hasher())
    fewer = replace(user, input_drvs={first: frozenset({"out"})})
    assert output_paths(fewer, hasher()) != output_paths(user, hasher())


def test_each_derivation_is_looked_up_once() -> None:
    asked: list[StorePath] = []

    def count(path: StorePath) -> Derivation:
        asked.append(path)
        return lookup(path)

    hasher = ModuloHasher(count, STORE)
    ((_, deep),) = named("deep")
    first = hasher.masked(deep)
    looked_up = len(asked)
    assert hasher.masked(deep) == first
    assert len(asked) == looked_up
    # Once when it is found, once more when what it needs is known.
    assert max(map(asked.count, asked)) <= 2


def test_what_a_fixed_output_is_made_of_is_not_even_looked_up() -> None:
    (fetched,) = [path for path, drv in named("mirrored") if drv.input_drvs]
    asked: list[StorePath] = []

    def record(path: StorePath) -> Derivation:
        asked.append(path)
        return lookup(path)

    assert output_paths(plain(input_drvs={fetched: frozenset({"out"})}), hasher(record))["out"]
    assert asked == [fetched]


def test_deep_graphs_need_no_recursion() -> None:
    graph: dict[StorePath, Derivation] = {}
    needs: dict[StorePath, frozenset[str]] = {}
    for number in range(3000):
        filler = StorePath("0" * 32, f"d{number}")
        derivation = plain(f"d{number}", outputs={"out": InputAddressed(filler)}, input_drvs=needs)
        path = StorePath(f"{number:032}", f"d{number}.drv")
        graph[path] = derivation
        needs = {path: frozenset({"out"})}
    top = plain("top", input_drvs=needs)
    (found,) = output_paths(top, hasher(graph.__getitem__)).values()
    assert found is not None
    bottom = StorePath(f"{0:032}", "d0.drv")
    graph[bottom] = replace(graph[bottom], args=(b"changed",))
    assert output_paths(top, hasher(graph.__getitem__))["out"] != found


def test_placeholders_are_nix_s() -> None:
    ((_, derivation),) = named("placeholders")
    assert derivation.env[b"prefix"].decode() == placeholder("out")
    assert derivation.args == (f"--dev={placeholder('dev')}".encode(),)


def forged() -> list[tuple[str, Derivation, StorePath, str]]:
    """What is wrong, a derivation, the path it is said to have, and the complaint."""
    ((path, good),) = named("multiple")
    ((_, minimal),) = named("minimal")
    ((fixed_path, fixed),) = named("flat-sha256")
    ((deferred_path, deferred),) = named("deferred")
    stolen = minimal.outputs["out"]
    env = dict(good.env)
    return [
        (
            "path of another derivation",
            replace(good, outputs={**good.outputs, "out": stolen}),
            path,
            "incorrect output '/nix/store/.*-minimal', should be '/nix/store/.*-multiple'",
        ),
        (
            "outputs swapped",
            replace(good, outputs={**good.outputs, "out": good.outputs["dev"]}),
            path,
            "incorrect output '/nix/store/.*-multiple-dev', should be '/nix/store/.*-multiple'",
        ),
        (
            "variable with another path",
            replace(good, env={**env, b"out": env[b"dev"]}),
            path,
            "incorrect environment variable 'out'.*but is '/nix/store/.*-multiple-dev'",
        ),
        (
            "changed argument",
            replace(good, args=(b"evil",)),
            path,
            "incorrect output",
        ),
        (
            "missing path",
            replace(
                good,
                outputs=dict.fromkeys(good.outputs, DeferredOutput()),
                env={**env, b"out": b""},
            ),
            path,
            "incorrect environment variable",
        ),
        (
            "variable of a fixed output",
            replace(fixed, env={**fixed.env, b"out": b"/nix/store/x"}),
            fixed_path,
            "incorrect environment variable 'out'.*but is '/nix/store/x'",
        ),
        (
            "no variable of a fixed output",
            replace(fixed, env={k: v for k, v in fixed.env.items() if k != b"out"}),
            fixed_path,
            "incorrect environment variable 'out'.*but is missing",
        ),
        (
            "path that can't be known",
            replace(deferred, outputs=dict.fromkeys(deferred.outputs, stolen)),
            deferred_path,
            "can only be known after its inputs are built",
        ),
        (
            "another name",
            good,
            StorePath(path.digest, "other.drv"),
            "should be called 'multiple.drv'",
        ),
        ("no extension", good, StorePath(path.digest, "multiple"), "should be called"),
    ]


@pytest.mark.parametrize(
    ("derivation", "path", "message"), [pytest.param(*row[1:], id=row[0]) for row in forged()]
)
def test_forged_derivations_are_refused(
    derivation: Derivation, path: StorePath, message: str
) -> None:
    with pytest.raises(FormatError, match=message):
        check_output_paths(derivation, path, hasher())


@pytest.mark.parametrize("name", ["minimal", "flat-sha256", "deferred", "floating"])
def test_an_input_s_output_must_exist(name: str) -> None:
    ((path, _),) = named(name)
    top = plain(input_drvs={path: frozenset({"lib"})})
    with pytest.raises(FormatError, match=f"{name}.drv' has no output 'lib'"):
        output_paths(top, hasher())


@pytest.mark.parametrize("name", ["floating", "deferred", "impure"])
def test_paths_above_what_must_be_built_stay_open(name: str) -> None:
    ((path, _),) = named(name)
    top = plain(input_drvs={path: frozenset({"out"})})
    assert output_paths(top, hasher()) == {"out": None}
    filled = fill_outputs(top, hasher())
    assert filled.outputs == {"out": DeferredOutput()}
    assert filled.env[b"out"] == b""


def test_outputs_that_are_made_by_contents_are_left_alone_when_filling() -> None:
    floating = FloatingOutput(IngestionMethod.NAR, HashAlgorithm.SHA256)
    filled = fill_outputs(plain(outputs={"out": floating}), hasher())
    assert filled.outputs == {"out": floating}
    assert filled.env[b"out"] == placeholder("out").encode()


def test_a_stated_path_is_replaced_by_the_right_one_when_filling() -> None:
    ((_, good),) = named("minimal")
    wrong = replace(
        good,
        outputs={"out": InputAddressed(StorePath("0" * 32, "minimal"))},
        env={**good.env, b"out": b"/wrong"},
    )
    assert fill_outputs(wrong, hasher()) == good


def test_the_variable_of_a_fixed_output_is_filled_in() -> None:
    output = FixedOutput(IngestionMethod.NAR, hash_bytes(HashAlgorithm.SHA256, b""))
    filled = fill_outputs(plain(outputs={"out": output}), hasher())
    assert filled.env == {b"out": STORE.render(output.path(STORE, "x", "out")).encode()}


def test_the_store_directory_is_part_of_the_paths() -> None:
    other = StoreDir("/other/store")
    assert output_paths(plain(), hasher()) != output_paths(plain(), hasher(store_dir=other))
