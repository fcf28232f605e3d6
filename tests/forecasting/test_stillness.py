"""How streams stand still: what is told from a few numbers and a ring is what the whole history says."""

from dataclasses import replace
from itertools import groupby

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forecasting.spec import MLPSpec, RecurrentSpec
from forecasting.stillness import REMEMBERED, Standstill, remember
from forecasting.stream import NOTHING, Outcome, Streams
from tests.conftest import make_forecaster
from tests.forecasting.test_stream import observe, open_streams

FORECASTERS = [
    make_forecaster(MLPSpec(input_size=4, hidden_size=2)),
    make_forecaster(RecurrentSpec(kind="gru", input_size=4, hidden_size=2)),
]
VALUES = st.lists(st.sampled_from([0.0, 1.0, 1.0, 2.0, -1.0, np.nan]), min_size=1, max_size=60)
KEPT = 12
"""Values of a ring: three times the steps a late value may lie back."""


def told_of(streams: Streams, slot: int = 0, shortest: int = 2) -> tuple[int, int, int, bool] | None:
    """Return run, runs before, the longest of them, and whether it rests; None where it surely does not stand."""
    place_C, found = streams.standstill(np.array([slot]), shortest)
    assert isinstance(found, Standstill)
    if not len(place_C):
        return None
    return (
        int(found.run_C[0]),
        int(found.runs_C[0]),
        int(found.longest_C[0]),
        bool(found.rests_C[0]),
    )


def seen_in(y: list[float]) -> tuple[int, int, int, bool]:
    """Return the same from the whole history."""
    told = [value for value in y if not np.isnan(value)]
    runs = [len(list(equal)) for _, equal in groupby(told)]
    rests = bool(told) and told[-1] == 0 and min(told) >= 0
    return (runs[-1] if runs else 0, len(runs[:-1]), max(runs[:-1], default=0), rests)


@pytest.mark.parametrize("forecaster", FORECASTERS, ids=["windows", "states"])
@given(y=VALUES, late=st.data())
def test_it_is_what_the_whole_history_says_revised_or_not(
    forecaster: object, y: list[float], late: st.DataObject
) -> None:
    streams, kept = open_streams(forecaster), list(y)  # type: ignore[arg-type]
    for step, value in enumerate(y):
        observe(streams, 0, step, value)
        if step > 3 and late.draw(st.booleans()):
            back = step - late.draw(st.integers(1, 3))
            kept[back] = late.draw(st.sampled_from([0.0, 1.0, 5.0]))
            assert observe(streams, 0, back, kept[back]) in (Outcome.REVISED, Outcome.KNOWN)
    found, expected = told_of(streams), seen_in(kept)
    if found is None:
        newest = [value for value in kept[-2:] if not np.isnan(value)]
        assert len(newest) == 2
        assert newest[0] != newest[1]
    else:
        assert found == expected


def test_a_stream_that_stands_still_for_longer_than_its_ring_is_still_known_to_have_moved() -> None:
    streams = open_streams(FORECASTERS[1])
    y = [1.0, 2.0, 3.0, 4.0, 5.0, *[7.0] * 100]
    for step, value in enumerate(y):
        observe(streams, 0, step, value)
    assert told_of(streams, shortest=50) == (100, 5, 1, False)


@pytest.mark.parametrize("rewind", [2, 4, 9])
def test_it_goes_along_when_the_forecaster_changes(rewind: int) -> None:
    old, new = open_streams(FORECASTERS[0]), open_streams(FORECASTERS[1], rewind=rewind)
    y = [1.0, 2.0, 1.0, 3.0, 4.0, *[7.0] * 30]
    for step, value in enumerate(y):
        observe(old, 0, step, value)
    new.take_over(np.array([2]), old.rows[:1], old.layout, {})
    for step in range(len(y), len(y) + 2 * KEPT):
        observe(new, 2, step, 7.0)
    assert told_of(new, 2) == (30 + 2 * KEPT, 5, 1, False)


def test_rows_of_an_earlier_release_are_read_and_remember_nothing() -> None:
    streams, other = open_streams(FORECASTERS[0]), open_streams(FORECASTERS[1])
    for step, value in enumerate([1.0, 2.0, *[7.0] * 30]):
        observe(streams, 0, step, value)
    layout = replace(streams.layout, remembers=False)
    earlier = np.zeros(1, dtype=layout.dtype)
    for name in layout.dtype.names or ():
        earlier[name] = streams.rows[:1][name]
    other.take_over(np.array([0]), earlier, layout, {})
    assert other.rows["newest"][0] != NOTHING
    assert told_of(other) == (KEPT, 0, 0, False)


def test_one_long_run_is_not_the_measure_for_ever() -> None:
    kept_C = np.zeros(1, dtype=REMEMBERED)
    for value in [1.0, *[2.0] * 50, *np.arange(100.0, 100.0 + 9)]:
        remember(kept_C, np.array([value]), span=10)
    assert kept_C["longest"].max() == 50, "a span ends when it is full, not before"
    for value in np.arange(200.0, 200.0 + 30):
        remember(kept_C, np.array([value]), span=10)
    assert kept_C["longest"].max() == 1
    for _ in range(1000):
        remember(kept_C, np.array([5.0]), span=10)
    assert (kept_C["run"][0], kept_C["longest"].max()) == (1000, 1), "while it stands still nothing is forgotten"
    assert kept_C["runs"].sum() >= 10
