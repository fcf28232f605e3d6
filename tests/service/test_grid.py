"""The remembered calendar says what the calendar itself says."""

from datetime import datetime

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forecasting.calendar import format_timestamp, format_timestamps, parse_freq, timestamps_after
from forecasting.errors import InputError
from service.grid import Grid, grid_of

STARTS = st.datetimes(datetime(1900, 1, 1), datetime(2100, 1, 1))


@settings(max_examples=60, deadline=None)
@given(start=STARTS, freq=st.sampled_from(["h", "15min", "D", "7D", "W"]), periods=st.integers(1, 500))
def test_last_step_and_those_after_it_are_those_of_the_calendar(start: datetime, freq: str, periods: int) -> None:
    calendar, grid = parse_freq(freq), grid_of(parse_freq(freq))
    begin = pd.Timestamp(start).as_unit("us")
    last = grid.last(begin, periods)
    assert last == calendar.range(begin, periods)[-1]
    assert grid.text(last) == format_timestamp(last, calendar)
    assert grid.after(last, 3) == [format_timestamp(ds, calendar) for ds in timestamps_after(calendar, last, 3)]


@pytest.mark.parametrize("freq", ["XNYS", "MS", "B", "W-SAT"])
def test_calendars_without_a_fixed_step_are_asked_and_remembered(freq: str) -> None:
    calendar, grid = parse_freq(freq), Grid(parse_freq(freq))
    start = calendar.first_after(pd.Timestamp("2024-03-05"))
    assert grid.last(start, 5) == calendar.range(start, 5)[-1]
    assert grid.after(start, 4) == [format_timestamp(ds, calendar) for ds in timestamps_after(calendar, start, 4)]
    assert grid.after(start, 4) is grid.after(start, 4)


def test_steps_beyond_the_year_9999_are_refused() -> None:
    grid = grid_of(parse_freq("D"))
    with pytest.raises(InputError, match="reach beyond the year 9999"):
        grid.last(pd.Timestamp("2199-01-01"), 3_000_000)


def test_a_long_horizon_is_not_kept_in_memory() -> None:
    grid = Grid(parse_freq("h"))
    cutoff = pd.Timestamp("2024-01-01")
    assert len(grid.after(cutoff, 5000)) == 5000
    assert grid.after(cutoff, 5000) is not grid.after(cutoff, 5000)


@pytest.mark.parametrize("freq", ["h", "D"])
@pytest.mark.parametrize(
    "stamps",
    [
        ["2024-01-01", "2024-01-02"],
        ["2024-01-01T05:00", "2024-01-02"],
        ["2024-01-01T05:30:07", "2024-01-02T01:00"],
        ["2024-01-01T05:30:07.000250", "2024-01-02T01:00"],
    ],
)
def test_many_timestamps_are_written_as_each_would_be(freq: str, stamps: list[str]) -> None:
    calendar = parse_freq(freq)
    ds = np.array(stamps, dtype="datetime64[us]")
    assert format_timestamps(ds, calendar) == [format_timestamp(pd.Timestamp(stamp), calendar) for stamp in stamps]
