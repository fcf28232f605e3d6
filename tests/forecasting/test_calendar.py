"""Calendars: which timestamp follows which, over clock changes, month ends and holidays."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forecasting.calendar import (
    OFF_GRID,
    Calendar,
    format_timestamp,
    normalise_timestamps,
    parse_freq,
    timestamps_after,
)
from forecasting.errors import CalendarError

FIXED = ["1s", "15min", "90min", "h", "36h", "D", "24h", "2D", "W", "W-SAT", "2W-SUN"]
UNEVEN = ["MS", "ME", "2MS", "3ME", "QS", "QE-JAN", "2QE", "YS", "YE", "B", "3B", "BME", "SMS", "WOM-3FRI"]
EXCHANGES = ["XNYS", "XLON", "XTKS", "24/7"]
moments = st.datetimes(pd.Timestamp("2000-01-01"), pd.Timestamp("2035-01-01"))


def _stamps(*ds: str) -> pd.DatetimeIndex:
    return pd.DatetimeIndex(list(ds)).as_unit("us")


def _first_on_grid(calendar: Calendar, near: pd.Timestamp) -> pd.Timestamp:
    days = pd.date_range(near.normalize(), periods=800, freq="D", unit="us")
    return days[calendar.phases(days) != OFF_GRID][0]


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(FIXED + UNEVEN + EXCHANGES), moments, st.integers(2, 60), st.data())
def test_locate_undoes_range_for_every_freq(
    freq: str, near: pd.Timestamp, periods: int, data: st.DataObject
) -> None:
    calendar = parse_freq(freq)
    ds = calendar.range(_first_on_grid(calendar, pd.Timestamp(near)), periods)
    origin = data.draw(st.integers(0, periods - 1))
    shown = data.draw(st.lists(st.integers(0, periods - 1), min_size=1))

    assert calendar.locate(ds[origin], ds[shown]).tolist() == [step - origin for step in shown]


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(FIXED + UNEVEN + EXCHANGES), moments, st.integers(2, 60))
def test_timestamps_strictly_ascend_and_share_one_grid(freq: str, near: pd.Timestamp, periods: int) -> None:
    calendar = parse_freq(freq)
    ds = calendar.range(_first_on_grid(calendar, pd.Timestamp(near)), periods)

    assert len(ds) == periods
    assert ds.is_monotonic_increasing
    assert ds.is_unique
    assert ds.unit == "us"
    assert np.unique(calendar.phases(ds)).size == 1


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(FIXED + UNEVEN + EXCHANGES), moments, st.integers(3, 60))
def test_consecutive_steps_have_consecutive_ordinals_and_know_the_step_before(
    freq: str, near: pd.Timestamp, periods: int
) -> None:
    calendar = parse_freq(freq)
    ds = calendar.range(_first_on_grid(calendar, pd.Timestamp(near)), periods)

    ordinals = calendar.ordinals(ds)
    assert np.diff(ordinals).tolist() == [1] * (periods - 1)
    assert calendar.ordinals(ds[[2, 0]]).tolist() == ordinals[[2, 0]].tolist()  # the same in every panel
    assert calendar.previous(ds[1:]).equals(ds[:-1])
    assert calendar.previous(ds[[2, 1]]).equals(ds[[1, 0]])


@pytest.mark.parametrize(
    ("freq", "ds", "ordinals"),
    [
        ("h", ["1969-12-31T23:00", "1970-01-01T00:00", "1970-01-02T00:30"], [-1, 0, 24]),
        ("MS", ["1899-12-01", "1969-12-01", "1970-01-01", "2070-01-01"], [-841, -1, 0, 1200]),
        ("2MS", ["1969-11-01", "1969-12-01", "1970-01-01", "1970-02-01", "1970-03-01"], [-1, -1, 0, 0, 1]),
        ("B", ["1969-12-31", "1970-01-01", "1970-01-05"], [-1, 0, 2]),
        ("XNYS", ["1970-01-02", "1970-01-05"], [0, 1]),
        ("W-SAT", ["2024-06-30"], [OFF_GRID]),
        ("MS", ["2024-06-30"], [OFF_GRID]),
        ("XNYS", ["2024-12-25"], [OFF_GRID]),
    ],
)
def test_a_step_has_one_number_for_ever(freq: str, ds: list[str], ordinals: list[int]) -> None:
    assert parse_freq(freq).ordinals(_stamps(*ds)).tolist() == ordinals


@settings(max_examples=40, deadline=None)
@given(moments, st.integers(1, 300))
def test_a_forecast_of_sessions_skips_weekends_and_never_repeats(near: pd.Timestamp, periods: int) -> None:
    calendar = parse_freq("XNYS")
    cutoff = _first_on_grid(calendar, pd.Timestamp(near))

    following = timestamps_after(calendar, cutoff, periods)

    assert (following > cutoff).all()
    assert (following.day_of_week < 5).all()
    assert calendar.locate(cutoff, following).tolist() == list(range(1, periods + 1))


@pytest.mark.parametrize(
    ("freq", "cutoff", "following"),
    [
        ("XNYS", "2024-06-28", "2024-07-01"),  # Friday, Monday
        ("XNYS", "2024-12-24", "2024-12-26"),  # Christmas
        ("XNYS", "2024-03-28", "2024-04-01"),  # Good Friday
        ("XNYS", "2001-09-10", "2001-09-17"),  # the exchange stayed shut
        ("XLON", "2024-12-24", "2024-12-27"),  # Boxing Day
        ("24/7", "2024-12-24", "2024-12-25"),
        ("24/7", "2024-06-28", "2024-06-29"),
        ("B", "2024-12-24", "2024-12-25"),  # business days know no holiday
        ("ME", "2024-01-31", "2024-02-29"),
        ("ME", "2023-01-31", "2023-02-28"),
        ("MS", "2024-12-01", "2025-01-01"),
        ("2MS", "2024-02-01", "2024-04-01"),
        ("QE", "2024-03-31", "2024-06-30"),
        ("YE", "2023-12-31", "2024-12-31"),
        ("W", "2024-06-26", "2024-07-03"),  # any weekday
        ("W-SAT", "2024-06-29", "2024-07-06"),
        ("D", "2024-02-28", "2024-02-29"),
        ("D", "2024-03-30", "2024-03-31"),
        ("h", "2024-03-31T00:00", "2024-03-31T01:00"),  # UTC knows no clock change
    ],
)
def test_the_step_after(freq: str, cutoff: str, following: str) -> None:
    assert timestamps_after(parse_freq(freq), pd.Timestamp(cutoff), 1)[0] == pd.Timestamp(following)


@pytest.mark.parametrize(
    ("freq", "start", "off"),
    [
        ("XNYS", "2024-12-24", "2024-12-25"),
        ("XNYS", "2024-12-24", "2024-12-24T16:00"),
        ("W-SAT", "2024-06-29", "2024-06-30"),
        ("W", "2024-06-29", "2024-06-30"),
        ("MS", "2024-06-01", "2024-07-02"),
        ("MS", "2024-06-01", "2024-07-01T06:00"),
        ("2MS", "2024-06-01", "2024-07-01"),
        ("2MS", "2024-06-01", "2024-05-01"),
        ("ME", "2024-02-29", "2024-03-30"),
        ("B", "2024-06-28", "2024-06-29"),
        ("15min", "2024-06-01", "2024-06-01T00:07"),
        ("D", "2024-06-01", "2024-06-02T01:00"),
    ],
)
def test_a_timestamp_off_the_grid_has_no_position(freq: str, start: str, off: str) -> None:
    assert parse_freq(freq).locate(pd.Timestamp(start), _stamps(off)).tolist() == [OFF_GRID]


@pytest.mark.parametrize("freq", ["W-SAT", "MS", "B", "XNYS"])
def test_nothing_is_located_from_a_start_off_the_grid(freq: str) -> None:
    calendar = parse_freq(freq)
    sunday, ds = (
        pd.Timestamp("2024-06-02"),
        calendar.range(_first_on_grid(calendar, pd.Timestamp("2024")), 20),
    )

    assert (calendar.locate(sunday, ds.append(pd.DatetimeIndex([sunday]))) == OFF_GRID).all()
    with pytest.raises(CalendarError, match=freq):
        calendar.range(sunday, 2)


@pytest.mark.parametrize("freq", ["h", "2MS", "XNYS"])
def test_locating_nothing_gives_nothing(freq: str) -> None:
    none = pd.DatetimeIndex([], dtype="datetime64[us]")
    assert len(parse_freq(freq).locate(pd.Timestamp("2024-06-03"), none)) == 0
    assert len(parse_freq(freq).phases(none)) == 0


def test_every_second_month_counts_backwards_from_a_start_in_the_middle() -> None:
    ds = _stamps("2023-12-01", "2024-01-01", "2024-02-01", "2024-03-01", "2024-05-01")
    positions = parse_freq("2MS").locate(pd.Timestamp("2024-03-01"), ds)
    assert positions.tolist() == [OFF_GRID, -1, OFF_GRID, 0, 1]


def test_months_that_differ_in_parity_or_hour_are_on_different_grids() -> None:
    ds = _stamps("2024-01-01", "2024-03-01", "2024-02-01", "2024-03-01T06:00", "2024-03-02")
    first, third, second, later, off = parse_freq("2MS").phases(ds)
    assert first == third
    assert len({first, second, later, off}) == 4
    assert off == OFF_GRID


def test_month_starts_keep_the_hour_the_data_has() -> None:
    calendar = parse_freq("MS")
    ds = calendar.range(pd.Timestamp("2024-01-01T06:00"), 3)
    assert ds[1] == pd.Timestamp("2024-02-01T06:00")
    assert calendar.locate(ds[0], ds).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "freq", ["", "H", "fortnightly", "xnys", "2XNYS", "0D", "-1h", "1ns", "500ns", "bh", "None"]
)
def test_a_freq_that_is_none_is_refused_with_examples(freq: str) -> None:
    with pytest.raises(CalendarError, match="frequency"):
        parse_freq(freq)


SEASONS = (
    {"1us": 1, "1s": 3600, "7min": 1, "15min": 96, "90min": 16, "h": 24, "36h": 1}
    | {"24h": 7, "D": 7, "2D": 1, "W": 52, "W-SAT": 52, "2W": 26}
    | {"MS": 12, "ME": 12, "2MS": 6, "BME": 12, "SMS": 24, "QS": 4, "YS": 1, "B": 5, "2B": 1}
)


@pytest.mark.parametrize("freq", SEASONS)
def test_the_usual_season_of_a_freq(freq: str) -> None:
    assert parse_freq(freq).season_length == SEASONS[freq]


@pytest.mark.parametrize(("freq", "dated"), [("h", False), ("36h", False), ("24h", True), ("D", True)])
def test_only_steps_of_whole_days_are_dates(freq: str, dated: bool) -> None:
    assert parse_freq(freq).dated is dated


def test_sessions_end_where_the_calendar_ends() -> None:
    with pytest.raises(CalendarError, match="known until 2049-12-31"):
        parse_freq("XNYS").range(pd.Timestamp("2049-12-30"), 3)


def test_hours_across_a_clock_change_stay_one_hour_apart() -> None:
    # In Berlin 02:00 does not exist on 31 March, and 02:00 to 03:00 happens twice on 27 October.
    for day in ("2024-03-31", "2024-10-27"):
        local = pd.date_range(f"{day} 00:00", periods=6, freq="h", tz="Europe/Berlin")
        ds = normalise_timestamps(pd.Series(local), parse_freq("h"))
        assert parse_freq("h").locate(ds[0], ds).tolist() == [0, 1, 2, 3, 4, 5]


@settings(max_examples=40, deadline=None)
@given(
    moments,
    st.sampled_from(["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "America/Sao_Paulo"]),
    st.sampled_from(["15min", "h"]),
)
def test_instants_keep_their_places_whatever_zone_they_are_told_in(
    near: pd.Timestamp, zone: str, freq: str
) -> None:
    calendar = parse_freq(freq)
    utc = pd.date_range(pd.Timestamp(near).floor("h"), periods=400, freq=freq, tz="UTC", unit="us")

    ds = normalise_timestamps(pd.Series(utc.tz_convert(zone)), calendar)

    assert ds.equals(utc.tz_localize(None))
    assert calendar.locate(ds[0], ds).tolist() == list(range(400))


def test_midnights_across_a_clock_change_stay_dates() -> None:
    local = pd.date_range("2024-03-30", periods=3, freq="D", tz="Europe/Berlin")
    ds = normalise_timestamps(pd.Series(local), parse_freq("D"))
    assert ds.equals(_stamps("2024-03-30", "2024-03-31", "2024-04-01"))


def test_text_with_two_offsets_is_read_as_instants_below_a_day() -> None:
    text = pd.Series(["2024-03-31T01:00+01:00", "2024-03-31T03:00+02:00", "2024-03-31T02:00Z"])
    ds = normalise_timestamps(text, parse_freq("h"))
    assert ds.equals(_stamps("2024-03-31T00:00", "2024-03-31T01:00", "2024-03-31T02:00"))


def test_text_with_two_offsets_is_read_as_wall_clock_dates_from_a_day() -> None:
    text = pd.Series(["2024-03-30T00:00+01:00", "2024-04-01T00:00:00+0200", None])
    ds = normalise_timestamps(text, parse_freq("D"))
    assert ds[:2].equals(_stamps("2024-03-30", "2024-04-01"))
    assert ds.isna().tolist() == [False, False, True]


def test_timestamps_of_several_zones_are_instants_below_a_day_and_dates_from_a_day() -> None:
    zones = [pd.Timestamp("2024-01-01", tz=zone) for zone in ("Europe/Berlin", "Asia/Tokyo")]
    hours = normalise_timestamps(pd.Series(zones, dtype=object), parse_freq("h"))
    dates = normalise_timestamps(pd.Series(zones, dtype=object), parse_freq("D"))
    assert hours.equals(_stamps("2023-12-31T23:00", "2023-12-31T15:00"))
    assert dates.equals(_stamps("2024-01-01", "2024-01-01"))


def test_an_offset_on_only_some_timestamps_is_refused() -> None:
    with pytest.raises(CalendarError, match="some timestamps carry a UTC offset"):
        normalise_timestamps(pd.Series(["2024-01-01T00:00Z", "2024-01-01T01:00"]), parse_freq("h"))


@pytest.mark.parametrize("value", ["01/02/2024", "2 Jan 2024", "2024-02-30", "2024-W05", "yesterday", "now"])
def test_text_that_is_not_iso_8601_is_never_guessed(value: str) -> None:
    with pytest.raises(CalendarError, match="ISO 8601"):
        normalise_timestamps(pd.Series(["2024-01-01", value]), parse_freq("D"))
    with pytest.raises(CalendarError, match="ISO 8601"):
        normalise_timestamps(pd.Series([value]), parse_freq("D"))


@pytest.mark.parametrize("values", [[1, 2], [1.5], [True], ["2024-01-01", 7], [1704067200]])
def test_numbers_are_no_timestamps(values: list[object]) -> None:
    with pytest.raises(CalendarError, match="numbers"):
        normalise_timestamps(pd.Series(values), parse_freq("D"))


@pytest.mark.parametrize("values", [pd.to_timedelta([1], unit="h"), pd.period_range("2024", periods=1, freq="M")])
def test_other_kinds_of_time_are_no_timestamps(values: pd.Index) -> None:
    with pytest.raises(CalendarError, match="no timestamp"):
        normalise_timestamps(pd.Series(values), parse_freq("D"))


@pytest.mark.parametrize("dtype", ["datetime64[s]", "datetime64[ns]", "timestamp[ns][pyarrow]", "category", "str"])
def test_every_dtype_of_dates_reads_the_same(dtype: str) -> None:
    dates = pd.Series(["2024-01-01", "2024-01-02"])
    typed = pd.to_datetime(dates).astype(dtype) if "time" in dtype else dates.astype(dtype)
    ds = normalise_timestamps(typed, parse_freq("D"))
    assert ds.equals(_stamps("2024-01-01", "2024-01-02"))
    assert ds.unit == "us"


@pytest.mark.parametrize(
    ("freq", "ds", "text"),
    [
        ("D", "2024-01-02", "2024-01-02"),
        ("XNYS", "2024-01-02", "2024-01-02"),
        ("MS", "2024-01-01T06:00", "2024-01-01T06:00:00"),
        ("h", "2024-01-02T03:00", "2024-01-02T03:00:00Z"),
        ("h", "2024-01-02", "2024-01-02T00:00:00Z"),
    ],
)
def test_timestamps_are_written_so_that_they_read_back(freq: str, ds: str, text: str) -> None:
    calendar = parse_freq(freq)
    assert format_timestamp(pd.Timestamp(ds), calendar) == text
    assert normalise_timestamps(pd.Series([text]), calendar)[0] == pd.Timestamp(ds)
