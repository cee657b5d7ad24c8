"""Dynamic derivations: outputs that are derivations, and outputs of these (rows D2, D10)."""

from __future__ import annotations

import pytest

from executor.build.plan import Target
from executor.build.result import BuildStatus
from executor.derivation import DeferredOutput, Derivation, FloatingOutput, InputNode
from executor.derivation_hash import fill_outputs
from executor.formats.content_address import IngestionMethod
from executor.formats.hashes import HashAlgorithm
from executor.resolution import dynamic_placeholder, upstream_placeholder
from tests.build.conftest import SYSTEM, Drv, Workshop
from tests.build.conftest import workshop as workshop

pytestmark = pytest.mark.root

TEXT = {"out": FloatingOutput(IngestionMethod.TEXT, HashAlgorithm.SHA256)}


@pytest.fixture
def dynamic(workshop: Workshop) -> Workshop:
    workshop.change(experimental_features=frozenset({"ca-derivations", "dynamic-derivations"}))
    return workshop


def producer(workshop: Workshop, script: str = "") -> tuple[Drv, Drv]:
    """A derivation, and one whose output is that derivation."""
    inner = workshop.make("inner", "echo inner > $out; echo dev > $dev", outputs=("out", "dev"))
    maker = workshop.make(
        "inner.drv", script or f"cat {inner.text} > $out", outputs=TEXT, sources=[inner.path]
    )
    return inner, maker


def user(workshop: Workshop, maker: Drv) -> Drv:
    stands = dynamic_placeholder(upstream_placeholder(maker.path, "out"), "out")
    return workshop.write(
        Derivation(
            name="user",
            outputs={"out": DeferredOutput()},
            input_drvs={maker.path: frozenset()},
            input_srcs=frozenset(),
            platform=SYSTEM,
            builder=b"/bin/sh",
            args=(b"-e", b"-c", f"read x < {stands}; echo used $x > $out".encode()),
            env={b"PATH": b"/bin"},
            dynamic_inputs={maker.path: {"out": InputNode(frozenset({"out"}))}},
        )
    )


def test_an_output_of_an_output_is_an_input(dynamic: Workshop) -> None:
    inner, maker = producer(dynamic)
    drv = user(dynamic, maker)
    text = dynamic.real(drv.path).read_text()
    assert text.startswith('DrvWithVersion("xp-dyn-drv",')
    run = dynamic.build(drv)
    assert run.result.success, run.result.message
    assert dynamic.real(run.result.outputs["out"]).read_text() == "used inner\n"
    assert inner.path in run.started
    assert dynamic.build(drv).started == []


def test_a_target_may_lead_through_an_output(dynamic: Workshop) -> None:
    inner, maker = producer(dynamic)
    target = Target(drv_path=maker.path, outputs=frozenset({"dev"}), through=("out",))
    result = dynamic.build_targets(target).result
    assert result.outputs["dev"] == inner.outputs["dev"]


def test_the_command_line_leads_through_an_output(dynamic: Workshop) -> None:
    inner, maker = producer(dynamic)
    features = ("--extra-experimental-features", "ca-derivations")
    more = ("--extra-experimental-features", "dynamic-derivations")
    done = dynamic.cli("build", f"{maker.text}^out^dev", *features, *more)
    assert done.stdout == f"{dynamic.render(inner.outputs['dev'])}\n", done.stderr


def test_without_the_feature_it_is_refused(workshop: Workshop) -> None:
    workshop.change(experimental_features=frozenset({"ca-derivations"}))
    _, maker = producer(workshop)
    result = workshop.build(maker).result
    assert "'dynamic-derivations' is disabled" in result.message


def test_an_output_that_is_no_derivation_is_a_clear_error(dynamic: Workshop) -> None:
    _, maker = producer(dynamic, "echo nonsense > $out")
    result = dynamic.build(user(dynamic, maker)).result
    assert result.status is BuildStatus.DEPENDENCY_FAILED
    made = dynamic.build(maker).result
    assert "derivation" in made.message
    assert dynamic.leftovers() == []
    plain = dynamic.make("plain")
    target = Target(drv_path=plain.path, through=("out",))
    assert "is no derivation" in dynamic.build_targets(target).result.message


def test_a_text_must_not_refer_to_itself(dynamic: Workshop) -> None:
    drv = dynamic.make("text", "echo $out > $out", outputs=TEXT)
    assert "must not refer to itself" in dynamic.build(drv).result.message


def test_placeholders_of_nested_outputs(dynamic: Workshop) -> None:
    """The value that Nix's language makes of ``outputOf`` is the one that is replaced."""
    with dynamic.store() as store:
        _, maker = producer(dynamic)
        filled = fill_outputs(store.read_derivation(maker.path), store.modulo_hasher)
    assert filled.outputs == TEXT
    outer = upstream_placeholder(maker.path, "out")
    assert dynamic_placeholder(outer, "out") != outer
    assert len(dynamic_placeholder(outer, "out")) == len(outer)
