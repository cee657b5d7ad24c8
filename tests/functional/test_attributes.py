"""Attributes with files and warnings of their own. Upstream: export-graph, structured-attrs."""

from __future__ import annotations

import pytest

from executor.derivation_hash import placeholder
from tests.build.conftest import Drv, Workshop, structured

pytestmark = pytest.mark.root

# Prints every path of a graph file, and fails for one that isn't there.
READ_GRAPH = """
    while read path; do
        read deriver; read count; test -e $path; echo $path >> $out
        while [ $count -gt 0 ]; do read reference; test -e $reference; count=$((count - 1)); done
    done < refs"""


@pytest.fixture
def graph(workshop: Workshop) -> tuple[Drv, Drv, Drv]:
    """``top`` keeps one of its two inputs."""
    dropped = workshop.make("dropped")
    kept = workshop.make("kept")
    top = workshop.make("top", "echo $kept_out > $out", inputs=[dropped, kept])
    assert workshop.build(top).result.success
    return dropped, kept, top


def test_the_graph_of_an_output_is_its_closure(
    workshop: Workshop, graph: tuple[Drv, Drv, Drv]
) -> None:
    _dropped, kept, top = graph
    env = {"exportReferencesGraph": f"refs {workshop.render(top.out)}"}
    drv = workshop.make("reader", READ_GRAPH, inputs=[top], env=env)
    assert workshop.build(drv).result.success
    expected = {kept.out, top.out}
    assert set(workshop.real(drv.out).read_text().split()) == {
        workshop.render(path) for path in expected
    }
    assert workshop.info(drv.out).references == expected


def test_the_graph_of_a_derivation_has_all_derivations_and_their_outputs(
    workshop: Workshop, graph: tuple[Drv, Drv, Drv]
) -> None:
    """They are there for the builder to see, and the output may refer to all of them."""
    env = {"exportReferencesGraph": f"refs {graph[-1].text}"}
    drv = workshop.make(
        "reader", READ_GRAPH, inputs=graph, sources=[item.path for item in graph], env=env
    )
    run = workshop.build(drv)
    assert run.result.success, run.text
    expected = {item.path for item in graph} | {item.out for item in graph}
    assert set(workshop.real(drv.out).read_text().split()) == {
        workshop.render(path) for path in expected
    }
    assert workshop.info(drv.out).references == expected


def test_attributes_without_effect_are_warned_of(workshop: Workshop) -> None:
    attributes = structured(exportReferencesGraph=["foo", "bar"], allowedReferences=[])
    drv = workshop.make("warned", "read x < .attrs.sh; exit 1", env=attributes)
    done = workshop.cli("build", drv.text)
    assert done.returncode == 100
    warnings = [line for line in done.stderr.splitlines() if line.startswith("warning: ")]
    assert any("'exportReferencesGraph' in structured attrs is not" in text for text in warnings)
    assert any("the top-level attribute 'allowedReferences'" in text for text in warnings)


def test_outputs_are_found_through_their_placeholders(workshop: Workshop) -> None:
    names = ("out", "bin", "dev")
    holders = {name: placeholder(name) for name in names}
    script = "".join(
        f"echo {name} > ${name}; [ $(cat {holders[name]}) = {name} ]; " for name in names
    )
    drv = workshop.make("holders", script, outputs=names, env=holders)
    assert workshop.build(drv).result.success
    for name in names:
        assert workshop.real(drv.outputs[name]).read_text() == f"{name}\n"
