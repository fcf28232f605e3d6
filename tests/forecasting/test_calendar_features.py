"""Calendar features: what each says of a timestamp, and that it says the same wherever a window is cut."""

import time
from typing import get_args

import numpy as np
import pandas as pd
import pytest

from forecasting.calendar import parse_freq
from forecasting.calendar_features import calendar_features, n_columns
from forecasting.errors import InputError
from forecasting.spec import CalendarFeature

ALL: tuple[CalendarFeature, ...] = get_args(CalendarFeature)


def _stamps(*ds: str) -> pd.DatetimeIndex:
    return pd.DatetimeIndex(list(ds)).as_unit("us")


def _of(freq: str, name: CalendarFeature, *ds: str, country: str | None = None) -> np.ndarray:
    return calendar_features(parse_freq(freq), _stamps(*ds), (name,), country)


@pytest.mark.parametrize(("freq", "start"), [("15min", "2024-02-28"), ("D", "2023-12-30"), ("XNYS", "2024-01-02")])
def test_every_feature_lies_within_one_and_has_the_columns_promised(freq: str, start: str) -> None:
    calendar = parse_freq(freq)
    ds = calendar.range(pd.Timestamp(start), 900)
    for name in ALL:
        values_TK = calendar_features(calendar, ds, (name,), "DE")
        assert values_TK.shape == (900, n_columns((name,)))
        assert np.abs(values_TK).max() <= 1
    together_TK = calendar_features(calendar, ds, ALL, "DE")
    assert together_TK.shape == (900, n_columns(ALL))


def test_no_feature_is_no_column() -> None:
    assert calendar_features(parse_freq("D"), _stamps("2024-01-01"), ()).shape == (1, 0)
    assert calendar_features(parse_freq("D"), _stamps()[:0], ALL, "DE").shape == (0, n_columns(ALL))


@pytest.mark.parametrize("freq", ["h", "W-SUN", "MS", "B", "XNYS"])
def test_a_timestamp_has_the_same_features_in_every_window(freq: str) -> None:
    calendar = parse_freq(freq)
    start = {"XNYS": "2024-01-02", "B": "2024-01-01", "W-SUN": "2024-01-07"}.get(freq, "2024-01-01")
    ds = calendar.range(pd.Timestamp(start), 40)
    whole_TK = calendar_features(calendar, ds, ALL, "US-NY")
    picked = np.array([31, 7, 8, 30])
    np.testing.assert_array_equal(calendar_features(calendar, ds[picked], ALL, "US-NY"), whole_TK[picked])


def test_the_hour_turns_once_a_day_and_counts_minutes() -> None:
    quarters = _of("15min", "hour", "2024-01-01T00:00", "2024-01-01T06:00", "2024-01-01T12:00", "2024-01-01T18:00")
    np.testing.assert_allclose(quarters, [[0, 1], [1, 0], [0, -1], [-1, 0]], atol=1e-12)
    half_past = _of("1s", "hour", "2024-01-01T00:30:36")
    np.testing.assert_allclose(half_past, [[np.sin(2 * np.pi * 0.02125), np.cos(2 * np.pi * 0.02125)]])


@pytest.mark.parametrize(
    ("name", "first", "same"),
    [
        ("hour", "2024-01-01T05:00", "2025-06-07T05:00"),
        ("weekday", "2024-01-01", "2024-06-03"),  # Mondays
        ("month_day", "2024-01-16", "2024-03-16"),
        ("year_day", "2023-03-01", "2025-03-01"),
    ],
)
def test_a_cycle_comes_back_and_its_days_differ(name: CalendarFeature, first: str, same: str) -> None:
    one, again, other = _of("h", name, first, same, "2024-01-09T20:00")
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - other).max() > 0.01


def test_the_gap_tells_monday_and_the_day_after_a_holiday_from_other_days() -> None:
    tuesday, wednesday, monday, after_christmas, after_easter = _of(
        "XNYS", "session_gap", "2024-06-25", "2024-06-26", "2024-07-01", "2024-12-26", "2024-04-01"
    ).ravel()
    assert tuesday == wednesday == 0
    assert 0 < after_christmas < monday < after_easter <= 1


@pytest.mark.parametrize(
    ("day", "days_shut"),
    [
        ("2018-07-03", 0),  # an early close on the eve of the holiday: a day after a day all the same
        ("2018-07-05", 1),  # the holiday was a Wednesday
        ("2018-11-23", 1),  # the half day after Thanksgiving
        ("2018-11-26", 2),  # a Monday after a half day is a Monday
        ("2018-12-03", 2),
        ("2018-12-06", 1),  # a day of mourning
        ("2018-04-02", 3),  # Easter
        ("2018-09-04", 3),  # Labor Day
        ("2012-10-31", 4),  # two days of storm after a weekend
        ("2001-09-17", 6),
    ],
)
def test_the_gap_counts_the_days_the_exchange_was_shut(day: str, days_shut: int) -> None:
    assert _of("XNYS", "session_gap", day)[0, 0] == pytest.approx(np.log1p(days_shut) / np.log1p(7))


def test_each_exchange_has_gaps_of_its_own() -> None:
    independence, golden_week = "2018-07-05", "2018-05-07"
    assert _of("XLON", "session_gap", independence)[0, 0] == 0
    assert _of("XTKS", "session_gap", golden_week)[0, 0] > _of("XNYS", "session_gap", golden_week)[0, 0]


def test_the_first_step_knows_the_gap_before_it() -> None:
    assert _of("XNYS", "session_gap", "2024-07-01")[0, 0] == _of("B", "session_gap", "2024-07-01")[0, 0] > 0


def test_the_first_session_known_has_no_gap() -> None:
    first = parse_freq("XNYS").range(pd.Timestamp("1970-01-02"), 1)
    assert calendar_features(parse_freq("XNYS"), first, ("session_gap",)).tolist() == [[0]]


@pytest.mark.parametrize("freq", ["h", "D", "2D", "W"])
def test_fixed_steps_have_no_gap(freq: str) -> None:
    assert _of(freq, "session_gap", "2024-07-01").tolist() == [[0]]


def test_a_holiday_and_its_eve_are_marked() -> None:
    days = ("2024-10-02", "2024-10-03", "2024-10-04", "2023-12-31", "2024-01-01")
    marked = _of("D", "holiday", *days, country="DE")
    assert marked.tolist() == [[0, 1], [1, 0], [0, 0], [0, 1], [1, 0]]


def test_every_hour_of_a_holiday_is_one() -> None:
    marked = _of("h", "holiday", "2024-12-24T23:00", "2024-12-25T00:00", "2024-12-25T23:00", country="US")
    assert marked[:, 0].tolist() == [0, 1, 1]


def test_a_subdivision_has_holidays_of_its_own() -> None:
    assert _of("D", "holiday", "2024-06-20", country="DE-BE").tolist() == [[0, 0]]
    epiphany = "2024-01-06"
    assert _of("D", "holiday", epiphany, country="DE-BY")[0, 0] == 1
    assert _of("D", "holiday", epiphany, country="DE")[0, 0] == 0


@pytest.mark.parametrize(
    ("country", "message"),
    [
        (None, "needs a country"),
        ("XX", r"of 'XX'; known are \d+ countries by their ISO code, such as BR, DE"),
        ("DE-ZZ", r"of 'DE-ZZ'; known are DE, DE-BB, DE-BE"),
    ],
)
def test_holidays_of_nowhere_are_refused(country: str | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        _of("D", "holiday", "2024-01-01", country=country)


def test_a_window_of_a_request_takes_a_moment() -> None:
    calendar = parse_freq("XNYS")
    ds = calendar.range(pd.Timestamp("2024-01-02"), 200)
    calendar_features(calendar, ds, ALL, "US")
    started = time.perf_counter()
    for _ in range(20):
        calendar_features(calendar, ds, ALL, "US")
    assert (time.perf_counter() - started) / 20 < 0.02
