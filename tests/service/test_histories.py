"""Series are laid out on the model's calendar by the rules of `forecasting`."""

from datetime import UTC, datetime
from functools import cache

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forecasting.calendar import format_timestamp, normalise_timestamps, parse_freq
from forecasting.panel import build_panel
from service.histories import Prepared, prepare
from service.model_slot import LoadedModel
from service.problems import ProblemError
from service.schemas import ForecastRequest, SeriesHistory
from service.settings import ServiceSettings
from tests.service.conftest import build_forecaster

FREQS = ["h", "15min", "D", "W", "W-WED", "MS", "ME", "2MS", "QE", "B", "XNYS", "XLON", "7h", "2D"]


@cache
def loaded(freq: str) -> LoadedModel:
    forecaster = build_forecaster("pump", freq)
    return LoadedModel("pump", "1", "champion", "d", datetime.now(UTC), forecaster, parse_freq(freq), "plant", "y")


def ask(freq: str, *series: SeriesHistory, h: int | None = None, **limits: int) -> Prepared:
    request = ForecastRequest.model_construct(model="pump", h=h, level=None, series=list(series), fallback=False)
    return prepare(request, loaded(freq), ServiceSettings(**limits))


def grid_of(freq: str, periods: int, skip: int) -> pd.DatetimeIndex:
    calendar = parse_freq(freq)
    for day in pd.date_range("2023-01-01", periods=400):
        try:
            return calendar.range(day, skip + periods)[skip:]
        except ValueError:
            continue
    raise AssertionError(freq)


values = st.lists(st.none() | st.floats(-1e9, 1e9, allow_nan=False), min_size=12, max_size=40).filter(
    lambda y: y[0] is not None and len(y) - [v is None for v in y[::-1]].index(False) >= 12
)


@settings(max_examples=120, deadline=None)
@given(st.sampled_from(FREQS), values, st.integers(0, 50), st.randoms())
def test_start_and_ds_and_the_panel_agree(freq: str, y: list[float | None], skip: int, random: object) -> None:
    """Three ways to say the same: the panel is what training lays its data out with."""
    ds = grid_of(freq, len(y), skip)
    calendar = parse_freq(freq)
    texts = [format_timestamp(stamp, calendar) for stamp in ds]
    order = [i for i in range(len(y)) if y[i] is not None]
    random.shuffle(order)
    by_start = SeriesHistory(unique_id="a", start=texts[0], y=y)
    by_ds = SeriesHistory(unique_id="b", ds=[texts[i] for i in order], y=[y[i] for i in order])
    first, second = ask(freq, by_start, by_ds).windows
    np.testing.assert_array_equal(first.y_L, second.y_L)
    assert (first.cutoff, first.ds) == (second.cutoff, second.ds)
    frame = pd.DataFrame({"unique_id": "a", "ds": ds, "y": [np.nan if v is None else v for v in y]})
    panel = build_panel(frame, freq)
    np.testing.assert_array_equal(first.y_L, panel.y_NT[0, -12:])
    assert first.cutoff == format_timestamp(panel.ds[-1], calendar)


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(FREQS), st.integers(0, 300))
def test_the_forecast_begins_one_step_after_the_cutoff(freq: str, skip: int) -> None:
    grid = grid_of(freq, 16, skip)
    calendar = parse_freq(freq)
    texts = [format_timestamp(stamp, calendar) for stamp in grid]
    (window,) = ask(freq, SeriesHistory(unique_id="a", start=texts[0], y=[1.0] * 12)).windows
    assert [window.cutoff, *window.ds] == texts[11:]


@settings(max_examples=80, deadline=None)
@given(
    st.datetimes(datetime(1990, 1, 1), datetime(2090, 1, 1)),
    st.sampled_from(["", "Z", "+02:00", "-05:30", "+0530"]),
    st.sampled_from(["h", "D"]),
)
def test_timestamps_are_read_as_the_panel_reads_them(stamp: datetime, zone: str, freq: str) -> None:
    text = f"{stamp.isoformat()}{zone}"
    calendar = parse_freq(freq)
    (expected,) = normalise_timestamps(pd.Series([text]), calendar)
    (window,) = ask(freq, SeriesHistory(unique_id="a", start=text, y=[1.0] * 12)).windows
    assert window.cutoff == format_timestamp(expected + 11 * calendar.step, calendar)


def test_both_sides_of_a_clock_change_fit_into_one_series() -> None:
    hours = [f"2024-03-31T{hour:02d}:00+01:00" for hour in range(2)]
    hours += [f"2024-03-31T{hour:02d}:00+02:00" for hour in range(3, 13)]
    (window,) = ask("h", SeriesHistory(unique_id="a", ds=hours, y=[float(i) for i in range(12)])).windows
    assert window.cutoff == "2024-03-31T10:00:00Z"
    assert window.y_L.tolist() == list(range(12))


def test_most_timestamps_decide_the_grid_and_the_stray_one_is_named() -> None:
    hours = ["2024-01-01T00:17", *(f"2024-01-01T{hour:02d}:00" for hour in range(1, 14))]
    with pytest.raises(ProblemError) as caught:
        ask("h", SeriesHistory(unique_id="a", ds=hours, y=[1.0] * 14))
    (error,) = caught.value.errors
    assert (error.path, error.detail) == (
        "series[0].ds[0]",
        "series 'a': 2024-01-01T00:17 does not lie on the grid of h",
    )


def test_two_timestamps_centuries_apart_cost_no_memory() -> None:
    ends = ["1800-01-01T00:00:00", "2199-12-31T00:00:00"]
    (window,) = ask("15min", SeriesHistory(unique_id="a", ds=ends, y=[1.0, 2.0])).windows
    assert np.isnan(window.y_L).sum() == 11


def test_what_a_request_may_cost_is_bounded() -> None:
    series = [SeriesHistory(unique_id=str(i), start="2024-01-01", y=[1.0] * 12) for i in range(3)]
    assert len(ask("h", *series, max_values=3 * 4 * 13).windows) == 3
    with pytest.raises(ProblemError, match="invalid-request") as caught:
        ask("h", *series, max_values=3 * 4 * 13 - 1)
    assert "would take 156 numbers; at most 155" in caught.value.detail
