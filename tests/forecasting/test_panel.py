"""Panels: what happens to every kind of bad row, each rule of the module's table once."""

import re
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forecasting import panel as panel_module
from forecasting.calendar import parse_freq
from forecasting.errors import CalendarError, InputError, PanelError
from forecasting.panel import Columns, Panel, build_panel, load_panel, save_panel
from forecasting.spec import CovariatesSpec, StaticSpec

DAYS = ["2024-01-01", "2024-01-02", "2024-01-03"]
NAN = float("nan")


def _series(ds: object, y: object, unique_id: object = "pump-7") -> pd.DataFrame:
    return pd.DataFrame({"unique_id": unique_id, "ds": ds, "y": y})


def _rows(*frames: pd.DataFrame) -> pd.DataFrame:
    return pd.concat(frames, ignore_index=True)


# Layout


def test_series_of_different_spans_share_one_grid() -> None:
    panel = build_panel(_rows(_series(DAYS[:2], [1, 2], "b"), _series(DAYS[1:], [3, 4], "a")), "D")

    assert panel.unique_ids == ("a", "b")
    assert [str(ds.date()) for ds in panel.ds] == DAYS
    np.testing.assert_array_equal(panel.y_NT, [[NAN, 3, 4], [1, 2, NAN]])
    assert [span.tolist() for span in panel.spans()] == [[1, 0], [2, 1]]
    assert (panel.n_series, panel.n_steps, panel.n_observed) == (2, 3, 4)
    assert panel.describe() == "2 series, 4 points, 2024-01-01 to 2024-01-03, freq D, 0 missing"


def test_values_cannot_be_changed_once_validated() -> None:
    with pytest.raises(ValueError, match="read-only"):
        build_panel(_series(DAYS, [1, 2, 3]), "D").y_NT[0, 0] = 7


def test_the_panel_before_a_step_holds_nothing_of_that_step() -> None:
    panel = build_panel(_series(DAYS, [1, 2, 3]), "D").before(2)
    assert panel.y_NT.tolist() == [[1, 2]]
    assert panel.ds[-1] == pd.Timestamp("2024-01-02")


def test_monday_follows_friday_and_a_holiday_is_no_gap() -> None:
    sessions = ["2024-12-20", "2024-12-23", "2024-12-24", "2024-12-26"]
    panel = build_panel(_series(sessions, [1, 2, 3, 4]), "XNYS")
    assert panel.y_NT.tolist() == [[1, 2, 3, 4]]
    assert panel.quality[0].n_missing == 0


def test_a_row_on_a_holiday_is_refused_by_date() -> None:
    with pytest.raises(PanelError, match=r"'pump-7' has timestamps off the grid of freq XNYS.*: 2024-12-25"):
        build_panel(_series(["2024-12-24", "2024-12-25", "2024-12-26"], [1, 2, 3]), "XNYS")


def test_weekends_are_steps_of_an_exchange_that_never_closes() -> None:
    panel = build_panel(_series(["2024-12-20", "2024-12-23"], [1, 2]), "24/7")
    np.testing.assert_array_equal(panel.y_NT, [[1, NAN, NAN, 2]])


# Order, repetition, gaps


def test_unsorted_rows_are_sorted_and_counted() -> None:
    frame = _rows(_series(DAYS[::-1], [3, 2, 1], "a"), _series(DAYS, [1, 2, 3], "b"))
    panel = build_panel(frame, "D")
    np.testing.assert_array_equal(panel.y_NT, [[1, 2, 3], [1, 2, 3]])
    assert [quality.n_unsorted for quality in panel.quality] == [2, 0]


def test_unsorted_rows_are_counted_between_rows_of_other_series() -> None:
    frame = _rows(_series(DAYS[1:2], [2], "a"), _series(DAYS[:1], [5], "b"), _series(DAYS[:1], [1], "a"))
    assert [quality.n_unsorted for quality in build_panel(frame, "D").quality] == [1, 0]


def test_rows_of_several_series_told_in_turn_are_not_unsorted() -> None:
    frame = _rows(_series(DAYS, [1, 2, 3], "a"), _series(DAYS, [4, 5, 6], "b")).sort_values("ds", kind="stable")
    assert [quality.n_unsorted for quality in build_panel(frame, "D").quality] == [0, 0]


@pytest.mark.parametrize(("first", "second"), [(2.0, 2.0), (NAN, 2.0), (2.0, NAN)])
def test_repeated_rows_that_do_not_contradict_are_one_row(first: float, second: float) -> None:
    panel = build_panel(_series([*DAYS, DAYS[1]], [1, first, 3, second]), "D")
    np.testing.assert_array_equal(panel.y_NT, [[1, 2, 3]])
    assert panel.quality[0].n_duplicates == 1


def test_a_row_missing_twice_is_missing_once() -> None:
    panel = build_panel(_series([*DAYS, DAYS[1]], [1, NAN, 3, NAN]), "D")
    np.testing.assert_array_equal(panel.y_NT, [[1, NAN, 3]])
    assert (panel.quality[0].n_duplicates, panel.quality[0].n_missing) == (1, 1)


def test_repeated_rows_that_contradict_are_refused() -> None:
    with pytest.raises(PanelError, match="'pump-7' has two different values at 2024-01-02"):
        build_panel(_series([*DAYS, DAYS[1], DAYS[1]], [1, 2, 3, NAN, 4]), "D")


def test_gaps_are_missing_values_and_never_filled() -> None:
    panel = build_panel(_series(["2024-01-01", "2024-01-02", "2024-01-05", "2024-01-07"], [1, 2, 5, 7]), "D")
    np.testing.assert_array_equal(panel.y_NT, [[1, 2, NAN, NAN, 5, NAN, 7]])
    assert (panel.quality[0].n_missing, panel.quality[0].longest_gap) == (3, 2)


def test_missing_rows_at_the_ends_are_left_out() -> None:
    panel = build_panel(_series([*DAYS, "2024-01-04"], [NAN, 2, 3, NAN]), "D")
    assert panel.y_NT.tolist() == [[2, 3]]
    assert panel.ds[-1] == pd.Timestamp("2024-01-03")


def test_a_sensor_that_fell_silent_keeps_its_old_cutoff_and_is_reported() -> None:
    panel = build_panel(_rows(_series(DAYS, [1, 2, 3], "alive"), _series(DAYS, [1, NAN, NAN], "silent")), "D")
    assert panel.spans()[1].tolist() == [2, 0]
    assert [quality.n_silent for quality in panel.quality] == [0, 2]


# Which grid


def test_mixed_frequency_is_refused_with_the_first_timestamp_off_the_grid() -> None:
    ds = ["2024-01-01T00:00", "2024-01-01T01:00", "2024-01-01T01:20", "2024-01-01T01:40", "2024-01-01T02:00"]
    expected = r"'pump-7' has timestamps off the grid of freq h .*: 2024-01-01T01:20:00Z and 1 more"
    with pytest.raises(PanelError, match=expected):
        build_panel(_series(ds, range(5)), "h")


@pytest.mark.parametrize(
    ("freq", "stray", "usual"),
    [
        ("h", ["2024-01-01T00:07"], ["2024-01-01T01:00", "2024-01-01T02:00"]),
        ("W", ["2024-01-02"], ["2024-01-06", "2024-01-13"]),
        ("MS", ["2024-01-02"], ["2024-02-01", "2024-03-01"]),
        ("2MS", ["2024-01-01"], ["2024-02-01", "2024-04-01"]),
        ("XNYS", ["2024-01-01"], ["2024-01-02", "2024-01-03"]),
    ],
)
def test_a_stray_first_row_does_not_decide_the_grid(freq: str, stray: list[str], usual: list[str]) -> None:
    frame = _rows(_series(stray, [9], "stray"), _series(usual, [1, 2], "usual"))
    panel = build_panel(frame, freq, bad_series="drop")
    assert panel.unique_ids == ("usual",)
    assert panel.y_NT.tolist() == [[1, 2]]
    assert "off the grid" in panel.dropped["stray"]


def test_a_plain_week_takes_the_weekday_of_the_data_and_an_anchored_one_does_not() -> None:
    sundays = _series(["2024-06-02", "2024-06-09"], [1, 2])
    assert build_panel(sundays, "W").n_steps == 2
    with pytest.raises(PanelError, match="off the grid of freq W-SAT: 2024-06-02 and 1 more"):
        build_panel(sundays, "W-SAT")


def test_a_wrong_year_is_refused_before_it_fills_the_memory() -> None:
    ds = ["2024-01-01T00:00", "1024-01-01T00:00"]
    with pytest.raises(InputError, match=r"from 1024-01-01T00:00:00Z \(series 'pump-7'\) .*timestamps wrong"):
        build_panel(_series(ds, [1, 2]), "1s")


def test_the_limit_counts_cells_and_not_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(panel_module, "MAX_CELLS", 5)
    assert build_panel(_series(DAYS, [1, 2, 3]), "D").n_steps == 3
    with pytest.raises(InputError, match="spans 3 steps"):
        build_panel(_rows(_series(DAYS, [1, 2, 3], "a"), _series(DAYS, [1, 2, 3], "b")), "D")


def test_an_unknown_freq_is_refused() -> None:
    with pytest.raises(CalendarError, match="fortnightly"):
        build_panel(_series(DAYS, [1, 2, 3]), "fortnightly")


# Time zones


def test_hours_told_in_a_zone_with_a_clock_change_leave_no_gap_and_no_repetition() -> None:
    for day in ("2024-03-31", "2024-10-27"):
        local = pd.date_range(day, periods=24, freq="h", tz="Europe/Berlin")
        panel = build_panel(_series(local, np.arange(24.0)), "h")
        assert panel.y_NT.tolist() == [list(range(24))]
        assert panel.ds[0] == local[0].tz_convert(None)


def test_days_told_in_a_zone_with_a_clock_change_stay_days() -> None:
    local = pd.date_range("2024-03-30", periods=4, freq="D", tz="Europe/Berlin")
    panel = build_panel(_series(local, [1, 2, 3, 4]), "D")
    assert panel.y_NT.tolist() == [[1, 2, 3, 4]]
    assert panel.ds[0] == pd.Timestamp("2024-03-30")


def test_series_of_different_zones_meet_in_utc() -> None:
    berlin = pd.date_range("2024-01-01T01:00", periods=2, freq="h", tz="Europe/Berlin")
    tokyo = pd.date_range("2024-01-01T09:00", periods=2, freq="h", tz="Asia/Tokyo")
    panel = build_panel(_rows(_series(berlin, [1, 2], "b"), _series(tokyo, [3, 4], "t")), "h")
    assert panel.y_NT.tolist() == [[1, 2], [3, 4]]


def test_a_series_with_naive_and_aware_timestamps_is_refused_alone() -> None:
    mixed = _series(["2024-01-01T00:00Z", "2024-01-01T01:00"], [1, 2], "mixed")
    good = _series(["2024-01-01T00:00", "2024-01-01T01:00"], [1, 2], "good")
    with pytest.raises(PanelError, match="series 'mixed': some timestamps carry a UTC offset"):
        build_panel(_rows(mixed, good), "h")
    assert build_panel(_rows(mixed, good), "h", bad_series="drop").unique_ids == ("good",)


# Values


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (np.inf, "holds inf at 2024-01-02, which is not finite"),
        (-np.inf, "holds -inf at 2024-01-02, which is not finite"),
        ("inf", "holds 'inf' at 2024-01-02, which is not finite"),
        ("broken", "holds 'broken' at 2024-01-02, which is not a number"),
        ("1,5", "holds '1,5' at 2024-01-02, which is not a number"),
        ([1], "holds [1] at 2024-01-02, which is not a number"),
    ],
)
def test_a_value_that_is_no_finite_number_is_refused(value: object, what: str) -> None:
    with pytest.raises(PanelError) as refused:
        build_panel(_series(DAYS, [1.0, value, 3.0]), "D")
    assert refused.value.problems == {"pump-7": f"series 'pump-7' {what}"}


@pytest.mark.parametrize("value", [None, NAN, pd.NA, "", "  "])
def test_an_empty_value_is_missing(value: object) -> None:
    panel = build_panel(_series(DAYS, pd.Series([1, value, 3], dtype=object)), "D")
    np.testing.assert_array_equal(panel.y_NT, [[1, NAN, 3]])


@pytest.mark.parametrize(
    "y",
    [
        np.array([1, 0, 1], dtype=np.int8),
        np.array([1, 0, 1], dtype=">f4"),
        np.array([True, False, True]),
        pd.array([1, 0, 1], dtype="Int64"),
        pd.array([1, 0, 1], dtype="Float32"),
        pd.array([True, False, True], dtype="boolean"),
        pd.array([1, 0, 1], dtype="double[pyarrow]"),
        pd.array(["1", "0.0", "1e0"], dtype="str"),
        pd.Categorical(["1", "0", "1"]),
        pd.Series([1, False, "1"], dtype=object),
    ],
    ids=lambda y: str(y.dtype),
)
def test_every_dtype_of_numbers_reads_the_same(y: object) -> None:
    assert build_panel(_series(DAYS, y), "D").y_NT.tolist() == [[1, 0, 1]]


@pytest.mark.parametrize("y", [pd.to_datetime(DAYS), pd.to_timedelta([1, 2, 3], unit="h"), np.array([1j, 2, 3])])
def test_a_column_of_another_kind_is_refused(y: object) -> None:
    with pytest.raises(InputError, match="numbers are needed"):
        build_panel(_series(DAYS, y), "D")


def test_a_whole_number_beyond_floats_is_refused() -> None:
    with pytest.raises(InputError, match="too large"):
        build_panel(_series(DAYS, [1, 10**400, 3]), "D")


def test_a_series_with_nothing_observed_is_refused() -> None:
    with pytest.raises(PanelError, match="'pump-7' has no observed value"):
        build_panel(_series(DAYS, [NAN] * 3), "D")


def test_a_constant_series_is_kept_and_marked() -> None:
    panel = build_panel(_rows(_series(DAYS, [5, NAN, 5], "stuck"), _series(DAYS, [5, 5, 6], "works")), "D")
    assert {quality.unique_id: quality.constant for quality in panel.quality} == {
        "stuck": True,
        "works": False,
    }


def test_series_that_are_too_short_are_each_named_with_the_need() -> None:
    panel = build_panel(_rows(_series(DAYS, [1, NAN, 3], "short"), _series(DAYS, [1, 2, 3], "long")), "D")
    panel.require_observed(2, why="input_size")
    with pytest.raises(PanelError) as refused:
        panel.require_observed(3, why="input_size")
    assert refused.value.problems == {"short": "series 'short' has 2 observed points; 3 are needed (input_size)"}


# Names and columns


def test_numbers_make_names() -> None:
    assert build_panel(_rows(_series(DAYS, [1, 2, 3], 7), _series(DAYS, [1, 2, 3], 10)), "D").unique_ids == (
        "10",
        "7",
    )


def test_a_number_and_its_text_are_one_name() -> None:
    panel = build_panel(_rows(_series(DAYS[:1], [1], 7), _series(DAYS[1:], [2, 3], "7")), "D")
    assert panel.y_NT.tolist() == [[1, 2, 3]]


@pytest.mark.parametrize("name", [None, "", " ", NAN])
def test_an_empty_name_is_refused(name: object) -> None:
    with pytest.raises(InputError, match="empty name"):
        build_panel(_rows(_series(DAYS, [1, 2, 3]), _series(DAYS, [1, 2, 3], name)), "D")


def test_a_row_without_a_timestamp_is_refused_with_its_series() -> None:
    frame = _rows(_series(DAYS, [1, 2, 3], "good"), _series([None, DAYS[0]], [1, 2], "bad"))
    with pytest.raises(PanelError, match="'bad' has 1 row without a timestamp"):
        build_panel(frame, "D")
    assert build_panel(frame, "D", bad_series="drop").unique_ids == ("good",)


def test_a_timestamp_that_cannot_be_read_is_refused_with_its_series() -> None:
    frame = _rows(_series(DAYS, [1, 2, 3], "good"), _series(["01/02/2024"], [1], "bad"))
    with pytest.raises(PanelError, match="series 'bad': ds holds '01/02/2024', no timestamp"):
        build_panel(frame, "D")
    assert build_panel(frame, "D", bad_series="drop").unique_ids == ("good",)


def test_a_frame_without_a_column_is_refused_with_those_it_has() -> None:
    with pytest.raises(InputError, match="no column y; it has unique_id, ds, value"):
        build_panel(_series(DAYS, [1, 2, 3]).rename(columns={"y": "value"}), "D")


def test_a_column_given_twice_is_refused() -> None:
    frame = _series(DAYS, [1, 2, 3])
    with pytest.raises(InputError, match="the column y twice"):
        build_panel(pd.concat([frame, frame[["y"]]], axis=1), "D")


@pytest.mark.parametrize("frame", [_series([], []), _series(DAYS, [1, 2, 3]).head(0)])
def test_an_empty_frame_is_refused(frame: pd.DataFrame) -> None:
    with pytest.raises(InputError, match="no series"):
        build_panel(frame, "D")


def test_the_index_of_the_frame_does_not_matter() -> None:
    frame = _series(DAYS, [1, 2, 3]).set_index(pd.Index([5, 5, 5]))
    assert build_panel(frame, "D").y_NT.tolist() == [[1, 2, 3]]


# Several bad series


def test_every_bad_series_is_named_at_once() -> None:
    frame = _rows(
        _series(DAYS, [1, 2, 3], "good"),
        _series(DAYS, [1, "x", 3], "text"),
        _series(DAYS, [1, np.inf, 3], "infinite"),
        _series(["2024-01-01", "2024-01-01"], [1, 2], "torn"),
        _series(["2024-01-01T07:00"], [1], "off"),
        _series(["never"], [1], "undated"),
    )
    with pytest.raises(PanelError) as refused:
        build_panel(frame, "D")
    assert refused.value.problems.keys() == {"text", "infinite", "torn", "off", "undated"}
    panel = build_panel(frame, "D", bad_series="drop")
    assert panel.unique_ids == ("good",)
    assert panel.dropped == refused.value.problems


def test_dropping_every_series_is_refused() -> None:
    with pytest.raises(PanelError, match="not a number"):
        build_panel(_series(DAYS, ["x"] * 3), "D", bad_series="drop")


def test_a_dropped_series_leaves_no_trace_on_the_grid() -> None:
    frame = _rows(_series(DAYS, [1, 2, 3], "good"), _series(["2020-01-01", "2020-01-01"], [1, 2], "torn"))
    assert build_panel(frame, "D", bad_series="drop").n_steps == 3


# Covariates

COLUMNS = Columns(past=("ambient",), future=("setpoint",), static=("unique_id", "site"))
FIVE_DAYS = [*DAYS, "2024-01-04", "2024-01-05"]


def _told(unique_id: str = "pump-7", **columns: object) -> pd.DataFrame:
    """Return three observed days and two days ahead, of which the set point is known."""
    usual = {"y": [1, 2, 3, NAN, NAN], "ambient": [10, 20, 30, NAN, NAN], "setpoint": [5, 5, 6, 6, 7], "site": "A"}
    return pd.DataFrame({"unique_id": unique_id, "ds": FIVE_DAYS} | usual | columns)


def test_covariates_are_laid_out_beside_the_values() -> None:
    frame = _rows(_told("b", site="B"), _told("a", setpoint=[5, NAN, 6, 6, NAN]).sample(frac=1, random_state=1))
    panel = build_panel(frame, "D", columns=COLUMNS)

    assert panel.y_NT.tolist() == [[1, 2, 3], [1, 2, 3]]
    assert panel.past_NTP[..., 0].tolist() == [[10, 20, 30], [10, 20, 30]]
    np.testing.assert_array_equal(panel.future_NUF[..., 0], [[5, NAN, 6, 6, NAN], [5, 5, 6, 6, 7]])
    assert panel.static == {"unique_id": ("a", "b"), "site": ("A", "B")}
    assert panel.describe().endswith("0 missing; past ambient; future setpoint; static unique_id, site")


def test_a_panel_without_covariates_has_none() -> None:
    panel = build_panel(_told(), "D")
    assert (panel.past_NTP.shape, panel.future_NUF.shape) == ((1, 3, 0), (1, 3, 0))
    assert (panel.static, bool(panel.columns)) == ({}, False)
    assert panel.digest() == build_panel(_told()[["unique_id", "ds", "y"]].dropna(), "D").digest()


def test_the_digest_of_a_panel_without_covariates_is_what_it_was_before_there_were_any() -> None:
    known = "1806c93b8ee34c0326dfd033420b31658df64f3a37144185fe2e52670a7fce09"
    assert build_panel(_series(DAYS, [1, NAN, 3]), "D").digest() == known


def test_future_columns_are_cut_where_the_values_begin_and_go_on_where_they_end() -> None:
    panel = build_panel(_told(y=[NAN, 2, 3, NAN, NAN]), "D", columns=COLUMNS)
    assert panel.ds[0] == pd.Timestamp("2024-01-02")
    assert panel.past_NTP[0, :, 0].tolist() == [20, 30]
    assert panel.future_NUF[0, :, 0].tolist() == [5, 6, 6, 7]


def test_nothing_known_ahead_ends_the_future_columns_with_the_values() -> None:
    panel = build_panel(_told(setpoint=[5, 5, NAN, NAN, NAN]), "D", columns=COLUMNS)
    np.testing.assert_array_equal(panel.future_NUF[0, :, 0], [5, 5, NAN])


@pytest.mark.parametrize(
    ("column", "values", "what"),
    [
        ("ambient", [1, "warm", 3, 4, 5], "holds 'warm' in ambient at 2024-01-02, which is not a number"),
        ("setpoint", [1, 2, 3, 4, np.inf], "holds inf in setpoint at 2024-01-05, which is not finite"),
    ],
)
def test_a_covariate_that_is_no_finite_number_is_refused(column: str, values: list[object], what: str) -> None:
    frame = _rows(_told("good"), _told("bad", **{column: values}))
    with pytest.raises(PanelError) as refused:
        build_panel(frame, "D", columns=COLUMNS)
    assert refused.value.problems == {"bad": f"series 'bad' {what}"}
    panel = build_panel(frame, "D", bad_series="drop", columns=COLUMNS)
    assert (panel.unique_ids, panel.past_NTP.shape, panel.future_NUF.shape) == (("good",), (1, 3, 1), (1, 5, 1))
    assert panel.static == {"unique_id": ("good",), "site": ("A",)}


def test_two_different_covariates_at_one_time_are_refused_and_equal_ones_are_one() -> None:
    again = _told(ambient=[NAN, 20, NAN, NAN, NAN])
    assert build_panel(_rows(_told(), again), "D", columns=COLUMNS).past_NTP[0, :, 0].tolist() == [10, 20, 30]
    other = _told(setpoint=[5, 5, 9, 6, 7])
    with pytest.raises(PanelError, match="'pump-7' has two different values in setpoint at 2024-01-03"):
        build_panel(_rows(_told(), other), "D", columns=COLUMNS)


def test_two_names_of_one_series_are_refused() -> None:
    frame = _rows(_told("good"), _told("bad", site=["A", "", "A", "B", None]))
    with pytest.raises(PanelError) as refused:
        build_panel(frame, "D", columns=COLUMNS)
    assert refused.value.problems == {"bad": "series 'bad' has two names in site: 'A' and 'B'"}


@pytest.mark.parametrize(
    ("labels", "name"),
    [
        (["A", None, "", NAN, "A"], "A"),
        ([NAN, NAN, 7.0, 7.0, NAN], "7"),
        ([7, "7", 7.0, None, 7], "7"),
        ([None] * 5, ""),
        ([" "] * 5, ""),
        (pd.Categorical([None, "A", "A", "A", "A"], categories=["B", "A"]), "A"),
        ("007", "007"),
    ],
)
def test_a_series_has_the_name_that_any_of_its_rows_holds(labels: object, name: str) -> None:
    assert build_panel(_told(site=labels), "D", columns=COLUMNS).static["site"] == (name,)


def test_an_absent_covariate_is_refused_with_the_columns_that_are_there() -> None:
    with pytest.raises(InputError, match="no column ambient; it has unique_id, ds, y, setpoint, site"):
        build_panel(_told().drop(columns="ambient"), "D", columns=COLUMNS)


@pytest.mark.parametrize(
    "columns",
    [Columns(past=("y",)), Columns(future=("ds",)), Columns(past=("unique_id",)), Columns(("a",), ("a",))],
)
def test_a_column_cannot_be_two_things(columns: Columns) -> None:
    with pytest.raises(InputError, match="is one thing only"):
        build_panel(_told(a=1), "D", columns=columns)


def test_the_panel_before_a_step_keeps_what_is_known_ahead() -> None:
    panel = build_panel(_told(), "D", columns=COLUMNS).before(2)
    assert panel.past_NTP[0, :, 0].tolist() == [10, 20]
    assert panel.future_NUF[0, :, 0].tolist() == [5, 5, 6, 6, 7]
    assert panel.static["site"] == ("A",)


SPEC = CovariatesSpec(
    past=("ambient", "unknown"),
    future=("setpoint",),
    static=tuple(StaticSpec(name=name, categories=("A",)) for name in ("site", "unique_id", "kind")),
)


def test_a_forecaster_is_told_of_past_columns_nothing_after_the_cutoff() -> None:
    panel = build_panel(_rows(_told("a"), _told("b", site="B")), "D", columns=COLUMNS)
    told = panel.covariates_at(np.array([1, 0]), np.array([1, 2]), SPEC, input_size=3, horizon=3)

    assert told.cutoff_B.equals(panel.ds[[1, 2]])
    assert told.past_BLP is not None
    np.testing.assert_array_equal(told.past_BLP[..., 0], [[NAN, 10, 20], [10, 20, 30]])
    assert np.isnan(told.past_BLP[..., 1]).all()
    assert told.future_BTF is not None
    np.testing.assert_array_equal(told.future_BTF[..., 0], [[NAN, 5, 5, 6, 6, 7], [5, 5, 6, 6, 7, NAN]])
    assert told.static == {"site": ("B", "A"), "unique_id": ("b", "a"), "kind": ("", "")}


def test_changing_a_past_column_after_the_cutoff_changes_nothing_told() -> None:
    told = [
        build_panel(_told(ambient=[10, 20, later, NAN, NAN]), "D", columns=COLUMNS).covariates_at(
            np.array([0]), np.array([1]), SPEC, input_size=2, horizon=2
        )
        for later in (30, -999)
    ]
    np.testing.assert_array_equal(told[0].past_BLP, told[1].past_BLP)  # type: ignore[arg-type]


def test_a_forecaster_that_needs_no_columns_is_told_only_the_time() -> None:
    told = build_panel(_told(), "D").covariates_at(
        np.array([0]), np.array([2]), CovariatesSpec(calendar=("weekday",)), input_size=2, horizon=1
    )
    assert (told.past_BLP, told.future_BTF, told.static) == (None, None, {})
    assert told.cutoff_B[0] == pd.Timestamp("2024-01-03")


def test_a_panel_with_covariates_comes_back_from_its_rows_and_from_disk(tmp_path: Path) -> None:
    late = _told("late", y=[NAN, NAN, 3, 4, NAN], ambient=[10, NAN, NAN, NAN, 50], setpoint=[1, NAN, NAN, NAN, 2])
    panel = build_panel(_rows(_told(), late), "D", columns=COLUMNS)
    save_panel(panel, tmp_path / "panel.saved")
    loaded = load_panel(tmp_path / "panel.saved")

    assert build_panel(panel.to_frame(), "D", columns=COLUMNS).digest() == panel.digest() == loaded.digest()
    assert (loaded.columns, loaded.static) == (panel.columns, panel.static)
    assert loaded.future_NUF.tobytes() == panel.future_NUF.tobytes()


def test_a_digest_changes_with_every_covariate() -> None:
    frames = [
        _told(),
        _told(ambient=[10, 20, 31, NAN, NAN]),
        _told(setpoint=[5, 5, 6, 6, 8]),
        _told(setpoint=[5, 5, 6, 6, NAN]),
        _told(site="B"),
    ]
    digests = {build_panel(frame, "D", columns=COLUMNS).digest() for frame in frames}
    digests.add(build_panel(_told(), "D").digest())
    digests.add(build_panel(_told(), "D", columns=Columns(past=("setpoint",), future=("ambient",))).digest())
    assert len(digests) == 7


# Round trips


@st.composite
def panels(draw: st.DrawFn) -> Panel:
    freq = draw(st.sampled_from(["h", "D", "W-SAT", "2MS", "XNYS"]))
    calendar = parse_freq(freq)
    start = {"W-SAT": "2024-06-29", "XNYS": "2024-06-28"}.get(freq, "2024-06-01")
    ds = calendar.range(pd.Timestamp(start), draw(st.integers(1, 30)))
    names = draw(st.lists(st.text(min_size=1).filter(str.strip), min_size=1, max_size=4, unique=True))
    number = st.floats(allow_nan=True, allow_infinity=False)
    values = [draw(st.lists(number, min_size=len(ds), max_size=len(ds))) for _ in names]
    for row, value in zip(values, draw(st.lists(st.integers(), min_size=len(names))), strict=False):
        row[abs(value) % len(ds)] = 1.5  # at least one observation a series
    return build_panel(_rows(*[_series(ds, row, name) for name, row in zip(names, values, strict=True)]), freq)


@settings(max_examples=40, deadline=None)
@given(panels(), st.randoms(use_true_random=False))
def test_a_panel_told_as_rows_in_any_order_is_the_same_panel(panel: Panel, random: object) -> None:
    frame = panel.to_frame()
    assert build_panel(frame, panel.calendar.freq).digest() == panel.digest()
    shuffled = frame.sample(frac=1, random_state=random.randrange(2**31))  # type: ignore[attr-defined]
    assert build_panel(shuffled, panel.calendar.freq).digest() == panel.digest()


@settings(max_examples=20, deadline=None)
@given(panels())
def test_a_saved_panel_loads_exactly(tmp_path_factory: pytest.TempPathFactory, panel: Panel) -> None:
    path = tmp_path_factory.mktemp("panel") / "panel.saved"
    save_panel(panel, path)
    loaded = load_panel(path)
    assert loaded.unique_ids == panel.unique_ids
    assert loaded.ds.equals(panel.ds)
    assert loaded.y_NT.tobytes() == panel.y_NT.tobytes()
    assert loaded.digest() == panel.digest()


def test_a_digest_changes_with_every_part_of_the_panel() -> None:
    frame = _series(DAYS, [1, 2, 3])
    digests = {
        build_panel(frame, "D").digest(),
        build_panel(frame, "24h").digest(),
        build_panel(frame.assign(y=[1, 2, 3.0000001]), "D").digest(),
        build_panel(frame.assign(y=[1, NAN, 3]), "D").digest(),
        build_panel(frame.assign(unique_id="pump-8"), "D").digest(),
        build_panel(frame.assign(ds=["2024-01-02", "2024-01-03", "2024-01-04"]), "D").digest(),
    }
    assert len(digests) == 6


def test_a_constant_series_is_told_from_one_too_wide_to_subtract() -> None:
    assert not build_panel(_series(DAYS, [1.7e308, 0, -1.7e308]), "D").quality[0].constant


def test_a_million_rows_in_any_order_take_seconds() -> None:
    ds = pd.date_range("2024-01-01", periods=500, freq="h", unit="us")
    names = np.array([f"sensor-{n:04d}" for n in range(2_000)], dtype=object)
    y = np.random.default_rng(1).normal(size=2_000 * 500)
    frame = pd.DataFrame({"unique_id": np.repeat(names, 500), "ds": np.tile(ds.to_numpy(), 2_000), "y": y})
    shuffled = frame.sample(frac=1, random_state=1)

    started = time.perf_counter()
    panel = build_panel(shuffled, "h")

    assert panel.y_NT.tobytes() == y.tobytes()
    assert time.perf_counter() - started < 5


# Documentation

RULES = {
    "unsorted rows": test_unsorted_rows_are_sorted_and_counted,
    "repeated rows": test_repeated_rows_that_contradict_are_refused,
    "gaps": test_gaps_are_missing_values_and_never_filled,
    "missing rows at an end": test_a_sensor_that_fell_silent_keeps_its_old_cutoff_and_is_reported,
    "mixed frequency": test_mixed_frequency_is_refused_with_the_first_timestamp_off_the_grid,
    "time zones": test_series_of_different_zones_meet_in_utc,
    "infinities": test_a_value_that_is_no_finite_number_is_refused,
    "nothing observed": test_a_series_with_nothing_observed_is_refused,
    "constant series": test_a_constant_series_is_kept_and_marked,
    "too short": test_series_that_are_too_short_are_each_named_with_the_need,
    "covariates": test_future_columns_are_cut_where_the_values_begin_and_go_on_where_they_end,
    "statics": test_two_names_of_one_series_are_refused,
}


def test_the_documented_rules_are_those_of_the_module_and_each_has_a_test() -> None:
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    table = page.partition("| what | what happens |")[2].partition("\n\n")[0]
    documented = re.findall(r"^\| ([a-z ]+) \|", table, flags=re.MULTILINE)
    in_the_module = re.findall(r"^  (\w[\w ]*?)  +\w", panel_module.__doc__ or "", flags=re.MULTILINE)
    assert documented == list(RULES)
    assert in_the_module == list(RULES)
