"""Floating, deferred and impure derivations: paths, rewriting, resolution, realisations."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Mapping

import pytest

from executor.build.plan import Target
from executor.build.result import BuildStatus
from executor.derivation import DerivationOutput, FloatingOutput, ImpureOutput
from executor.formats.content_address import ContentAddress, IngestionMethod
from executor.formats.hashes import Hash, HashAlgorithm
from executor.formats.store_path import StorePath, make_fixed_output_path
from executor.resolution import upstream_placeholder
from tests.build.conftest import FIND_OUT, Drv, Run, Workshop, fixed, structured
from tests.build.conftest import workshop as workshop

pytestmark = pytest.mark.root

FEATURES = frozenset({"ca-derivations", "impure-derivations"})
SHA256 = HashAlgorithm.SHA256


@pytest.fixture
def ca(workshop: Workshop) -> Workshop:
    """A workshop where these kinds are allowed."""
    workshop.change(experimental_features=FEATURES)
    return workshop


def floating(
    *names: str,
    method: IngestionMethod = IngestionMethod.NAR,
    algorithm: HashAlgorithm = SHA256,
) -> Mapping[str, DerivationOutput]:
    return {name: FloatingOutput(method, algorithm) for name in names or ("out",)}


IMPURE: Mapping[str, DerivationOutput] = {"out": ImpureOutput(IngestionMethod.NAR, SHA256)}


def built(run: Run) -> StorePath:
    result = run.result
    assert result.success, result.message
    return result.outputs["out"]


def realisations(workshop: Workshop) -> list[tuple[str, str]]:
    with sqlite3.connect(workshop.database) as database:
        query = (
            "select outputName, path from Realisations r"
            " join ValidPaths v on v.id = r.outputPath order by 1, 2"
        )
        return database.execute(query).fetchall()


def test_without_the_feature_it_is_refused_by_name(workshop: Workshop) -> None:
    drv = workshop.make("floating", outputs=floating())
    result = workshop.build(drv).result
    assert not result.success
    assert "experimental Nix feature 'ca-derivations' is disabled" in result.message


@pytest.mark.parametrize("algorithm", ["sha1", "sha256", "sha512"])
@pytest.mark.parametrize("method", [IngestionMethod.FLAT, IngestionMethod.NAR])
def test_the_path_follows_from_the_contents(
    ca: Workshop, method: IngestionMethod, algorithm: str
) -> None:
    kind = HashAlgorithm.parse(algorithm)
    drv = ca.make("floating", "echo made > $out", outputs=floating(method=method, algorithm=kind))
    path = built(ca.build(drv))
    info = ca.info(path)
    address = ContentAddress.parse(info.content_address or "")
    if method is IngestionMethod.FLAT:
        assert address.hash == Hash(kind, hashlib.new(algorithm, b"made\n").digest())
    assert path == make_fixed_output_path(ca.location.store_dir, "floating", method, address.hash)
    assert ca.real(path).read_text() == "made\n"
    assert info.deriver == drv.path
    assert info.ultimate


def test_what_was_built_is_found_again_and_not_built(ca: Workshop) -> None:
    drv = ca.make("floating", outputs=floating())
    path = built(ca.build(drv))
    again = ca.build(drv)
    assert again.result.status is BuildStatus.ALREADY_VALID
    assert built(again) == path
    assert again.started == []
    assert ca.leftovers() == []


def test_references_to_itself_are_rewritten_wherever_they_stand(ca: Workshop) -> None:
    script = (
        "mkdir $out; echo in the text $out twice $out > $out/text; ln -s $out/text $out/link;"
        "printf 'x%s' ${out##*/} > $out/name"
    )
    path = built(ca.build(ca.make("self", script, outputs=floating())))
    real, rendered = ca.real(path), ca.render(path)
    assert (real / "text").read_text() == f"in the text {rendered} twice {rendered}\n"
    assert (real / "link").readlink().as_posix() == f"{rendered}/text"
    assert (real / "name").read_text() == f"x{path.base_name}"
    assert ca.info(path).references == {path}


def test_the_same_contents_with_itself_inside_have_the_same_path(ca: Workshop) -> None:
    script = "mkdir $out; echo $out > $out/self"
    first = built(ca.build(ca.make("same", script, outputs=floating())))
    second = built(ca.build(ca.make("same", f": other; {script}", outputs=floating())))
    assert first == second
    assert ca.info(first).references == {first}


def test_outputs_refer_to_each_other_at_their_true_paths(ca: Workshop) -> None:
    script = "echo $dev $lib > $out; echo $lib > $dev; mkdir $lib; echo $lib > $lib/self"
    run = ca.build(ca.make("many", script, outputs=floating("out", "dev", "lib")))
    out, dev, lib = (run.result.outputs[name] for name in ("out", "dev", "lib"))
    assert ca.real(out).read_text() == f"{ca.render(dev)} {ca.render(lib)}\n"
    assert ca.real(dev).read_text() == f"{ca.render(lib)}\n"
    assert ca.info(out).references == {dev, lib}
    assert ca.info(lib).references == {lib}


def test_outputs_in_a_circle_are_refused(ca: Workshop) -> None:
    result = ca.build(
        ca.make("circle", "echo $dev > $out; echo $out > $dev", outputs=floating("out", "dev"))
    ).result
    assert result.status is BuildStatus.OUTPUT_REJECTED
    assert "cycle detected" in result.message
    assert realisations(ca) == []


def test_references_need_a_hash_that_can_express_them(ca: Workshop) -> None:
    outputs = floating(algorithm=HashAlgorithm.SHA512)
    result = ca.build(ca.make("wide", "echo $out > $out", outputs=outputs)).result
    assert result.status is BuildStatus.MISC_FAILURE
    assert "refers to other store paths" in result.message


def test_a_flat_output_is_a_plain_file(ca: Workshop) -> None:
    outputs = floating(method=IngestionMethod.FLAT)
    result = ca.build(ca.make("tree", "mkdir $out", outputs=outputs)).result
    assert result.status is BuildStatus.OUTPUT_REJECTED


def chain(ca: Workshop, comment: str) -> tuple[Drv, Drv]:
    """A floating derivation and one, not content-addressed, that depends on it."""
    first = ca.make("first", f": {comment}; echo first > $out", outputs=floating())
    return first, ca.make(
        "second", 'cat $first_out > $out; echo "$first_out" >> $out', inputs=[first]
    )


def test_what_depends_on_it_is_resolved_and_built_once(ca: Workshop) -> None:
    _first, second = chain(ca, "one way")
    run = ca.build(second)
    path = built(run)
    (dependency,) = ca.info(path).references
    assert ca.real(path).read_text() == f"first\n{ca.render(dependency)}\n"
    assert second.outputs == {}
    resolved = ca.info(path).deriver
    assert resolved is not None
    assert resolved != second.path
    assert ca.is_valid(resolved)
    # Another way to the same input: what depends on it is there already.
    _, other = chain(ca, "another way")
    again = ca.build(other)
    assert built(again) == path
    assert again.result.status is BuildStatus.RESOLVES_TO_ALREADY_VALID
    assert len(again.started) == 1


def test_a_fixed_output_is_not_fetched_again_for_another_input(ca: Workshop) -> None:
    def fetch(comment: str) -> Drv:
        tool = ca.make("tool", f": {comment}; echo tool > $out", outputs=floating())
        return ca.make(
            "fetched", "echo fod > $out", outputs={"out": fixed(b"fod\n")}, inputs=[tool]
        )

    path = built(ca.build(fetch("one")))
    again = ca.build(fetch("two"))
    assert built(again) == path
    assert again.started == []


def test_placeholders_are_replaced_in_structured_attributes(ca: Workshop) -> None:
    first = ca.make("first", outputs=floating())
    drv = ca.make(
        "structured",
        f"{FIND_OUT}; cat .attrs.json > $out",
        env=structured(zero=upstream_placeholder(first.path, "out")),
        inputs=[first],
    )
    run = ca.build(drv)
    (dependency,) = ca.info(built(run)).references - {built(run)}
    assert f'"zero":"{ca.render(dependency)}"' in ca.real(built(run)).read_text()


def test_a_build_that_does_not_repeat_itself_is_told_by_check(ca: Workshop) -> None:
    drv = ca.make("changing", "head -c 8 /dev/urandom > $out", outputs=floating())
    path = built(ca.build(drv))
    result = ca.build_targets(Target(drv_path=drv.path, check=True)).result
    assert result.status is BuildStatus.NOT_DETERMINISTIC
    assert str(ca.real(path)) in result.message
    assert ca.leftovers() == []


def test_deleted_outputs_are_built_again(ca: Workshop) -> None:
    script = "echo one > $out; echo two > $dev"
    drv = ca.make("deleted", script, outputs=floating("out", "dev"))
    run = ca.build(drv)
    dev = run.result.outputs["dev"]
    with ca.store() as store:
        store.invalidate(dev)
    assert len(realisations(ca)) == 1
    again = ca.build(drv)
    assert again.result.outputs == run.result.outputs
    assert again.started == [drv.path]


def test_an_impure_output_is_built_each_time_and_never_recorded(ca: Workshop) -> None:
    drv = ca.make("impure", "head -c 8 /dev/urandom > $out", outputs=IMPURE)
    first, second = built(ca.build(drv)), built(ca.build(drv))
    assert first != second
    assert ca.info(first).content_address
    assert realisations(ca) == []
    user = ca.make("user", "cat $impure_out > $out", outputs=IMPURE, inputs=[drv])
    assert built(ca.build(user)) not in (first, second)


def test_a_pure_derivation_must_not_depend_on_an_impure_one(ca: Workshop) -> None:
    impure = ca.make("impure", outputs=IMPURE)
    result = ca.build(ca.make("pure", outputs=floating(), inputs=[impure])).result
    assert "depends on impure derivation" in result.message


def test_a_realisation_that_contradicts_another_is_refused(ca: Workshop) -> None:
    """Somebody else recorded another path meanwhile: the first word counts."""
    drv = ca.make("contradiction", "echo mine > $out", outputs=floating())
    other = ca.source("other", b"theirs")
    built(ca.build(drv))
    with sqlite3.connect(ca.database) as database:
        rendered = ca.render(other)
        database.execute(
            "update Realisations set outputPath = (select id from ValidPaths where path = ?)",
            [rendered],
        )
    # It is what the table says it is, as for Nix.
    assert built(ca.build(drv)) == other


@pytest.mark.parametrize("algorithm", [HashAlgorithm.SHA1, HashAlgorithm.SHA512])
def test_a_text_is_hashed_with_sha256_only(ca: Workshop, algorithm: HashAlgorithm) -> None:
    """No path can be computed for another: stock Nix dies of it."""
    ca.change(experimental_features=FEATURES | {"dynamic-derivations"})
    drv = ca.make("text", outputs={"out": FloatingOutput(IngestionMethod.TEXT, algorithm)})
    result = ca.build(drv).result
    assert "isn't hashed with SHA-256" in result.message
