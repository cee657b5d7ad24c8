"""Events and results as JSON: what a hostile server may write in their place."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable

import pytest

from executor.build.event_json import (
    event_from_json,
    event_to_json,
    result_from_json,
    result_to_json,
)
from executor.build.events import BuildStarted, Event
from executor.build.result import BuildResult, BuildStatus
from executor.errors import FormatError
from executor.formats.store_path import StorePath

DRV = StorePath("0" * 32, "x.drv")
EVENT = BuildStarted(build_id=1, drv_path=DRV, start_time=1.5)
RESULT = BuildResult(drv_path=DRV, status=BuildStatus.BUILT, start_time=1.5)
# More levels than this can't be parsed: a few less are the ones that later steps may trip over.
DEPTHS = range(900, 1000)


def in_place_of(field: str, text: str, whole: str) -> str:
    """A JSON text with another value of a field."""
    marked = {**json.loads(whole), field: "MARK"}
    return json.dumps(marked).replace('"MARK"', text)


def test_events_and_results_come_back() -> None:
    assert event_from_json(event_to_json(EVENT)) == EVENT
    assert result_from_json(result_to_json(RESULT)) == RESULT


@pytest.mark.parametrize(
    ("read", "whole"),
    [(event_from_json, event_to_json(EVENT)), (result_from_json, result_to_json(RESULT))],
)
@pytest.mark.parametrize("number", ["1" + "0" * 400, "-1" + "0" * 400, "1e999", "NaN", "1" * 5000])
def test_row_145_numbers_beyond_all_measure_are_refused(
    read: Callable[[str], Event | BuildResult], whole: str, number: str
) -> None:
    with pytest.raises(FormatError):
        read(in_place_of("start_time", number, whole))


@pytest.mark.parametrize("field", ["event", "build_id", "drv_path", "purpose", "start_time"])
def test_row_145_events_of_any_depth_are_refused(field: str) -> None:
    for depth in DEPTHS:
        with pytest.raises(FormatError):
            event_from_json(in_place_of(field, "[" * depth + "]" * depth, event_to_json(EVENT)))


@pytest.mark.parametrize("field", ["drv_path", "status", "outputs", "start_time", "contacts"])
def test_row_145_results_of_any_depth_are_refused(field: str) -> None:
    for depth in DEPTHS:
        with pytest.raises(FormatError) as caught:
            result_from_json(in_place_of(field, "[" * depth + "]" * depth, result_to_json(RESULT)))
        assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("item", ["[]", "{}", '{"":0}', "0"])
def test_row_145_a_text_of_many_values_is_refused_before_they_are_made(item: str) -> None:
    text = event_to_json(EVENT)[:-1] + ',"more":[' + (item + ",") * (4 << 20) + "0]}"
    tracemalloc.start()
    try:
        with pytest.raises(FormatError, match="too many values"):
            event_from_json(text)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
