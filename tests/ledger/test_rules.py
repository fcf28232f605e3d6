"""Rules: a bad row fails alone, and says which, whose and why."""

import math
from time import perf_counter
from typing import Any

import numpy as np
import pandas as pd
import pytest

from forecasting.errors import InputError
from ledger.rules import MOST_REPORTED, build_rows, check_dataset, check_rows


def offer(*rows: tuple[Any, Any, Any]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            name: pd.Series([row[i] for row in rows], dtype=object)
            for i, name in enumerate(("unique_id", "ds", "y"))
        }
    )


BAD = [
    (None, "2024-01-01", 1.0, "unique_id", "a name, not missing"),
    ("", "2024-01-01", 1.0, "unique_id", "1 to 256 characters"),
    ("  ", "2024-01-01", 1.0, "unique_id", "1 to 256 characters"),
    ("x" * 257, "2024-01-01", 1.0, "unique_id", "a text of 257 characters"),
    ("a\x00b", "2024-01-01", 1.0, "unique_id", "none of them control characters"),
    ("a\ud800b", "2024-01-01", 1.0, "unique_id", "none of them control characters"),
    ({"a": 1}, "2024-01-01", 1.0, "unique_id", "a name, not a list or an object"),
    ("pump", None, 1.0, "ds", "not missing"),
    ("pump", "now", 1.0, "ds", "ISO 8601"),
    ("pump", "2024-02-30", 1.0, "ds", "the text '2024-02-30'"),
    ("pump", 1704067200, 1.0, "ds", "ISO 8601"),
    ("pump", "0024-01-01", 1.0, "ds", "of the years 1800 to 2199"),
    ("pump", pd.Timestamp("1700-01-01"), 1.0, "ds", "of the years 1800 to 2199"),
    ("pump", "2024-01-01", "3.5", "y", "a number or null, not the text '3.5'"),
    ("pump", "2024-01-01", True, "y", "a number or null, not True"),
    ("pump", "2024-01-01", [1.0], "y", "a number or null, not a list or an object"),
    ("pump", "2024-01-01", math.inf, "y", "finite, not inf"),
    ("pump", "2024-01-01", 10**400, "y", "finite, not inf"),
]


def test_half_a_character_fails_its_row_and_as_a_column_all_rows() -> None:
    """JSON can carry one, and nothing can store it."""
    good = {"unique_id": "pump", "ds": "2024-01-01", "y": 1.0}
    rows, _ = build_rows([good, {**good, "unique_id": "pump\ud800"}, {**good, "ds": "\ud800"}])
    assert [(one.row, one.column) for one in check_rows(rows).refusals] == [(1, "unique_id"), (2, "ds")]
    with pytest.raises(InputError, match=r"row 2: no column can be named 'y\\ud800'"):
        build_rows([good, {**good, "y\ud800": 1.0}])


@pytest.mark.parametrize(("unique_id", "ds", "y", "column", "reason"), BAD)
def test_a_bad_row_is_refused_with_its_reason_and_the_others_are_kept(
    unique_id: Any, ds: Any, y: Any, column: str, reason: str
) -> None:
    checked = check_rows(
        offer(("pump", "2024-01-01", 1.0), (unique_id, ds, y), ("pump", "2024-01-02T00:00Z", None))
    )

    assert checked.good_R.tolist() == [True, False, True]
    assert checked.rows["y"].fillna(-1).tolist() == [1, -1]
    (refusal,) = checked.refusals
    assert (refusal.row, refusal.column) == (1, column)
    assert reason in refusal.reason
    assert str(refusal).isprintable()


def test_instants_become_utc_and_dates_stay_where_they_are() -> None:
    offered = offer(
        ("a", "2024-03-01T01:00:00+02:00", 1), ("a", "2024-03-02", 2), ("a", "2024-03-03T01:00-0500", 3)
    )

    assert check_rows(offered).rows["ds"].astype(str).tolist() == [
        "2024-02-29 23:00:00",
        "2024-03-02 00:00:00",
        "2024-03-03 06:00:00",
    ]
    assert check_rows(offered, dated=True).rows["ds"].astype(str).tolist() == [
        "2024-03-01 01:00:00",
        "2024-03-02 00:00:00",
        "2024-03-03 01:00:00",
    ]


def test_typed_rows_come_out_as_they_are() -> None:
    ds = pd.date_range("2024-03-30", periods=3, freq="h", tz="Europe/Berlin")
    offered = pd.DataFrame({"unique_id": [7, 7, 8], "ds": ds, "y": np.array([1, 2, 3]), "site": ["n", None, "s"]})

    checked = check_rows(offered, static=["site"])

    assert checked.rows["unique_id"].tolist() == ["7", "7", "8"]
    assert checked.rows["ds"].tolist() == ds.tz_convert(None).tolist()
    assert checked.rows["y"].dtype == np.float64
    assert checked.rows["site"].tolist() == ["n", None, "s"]


def test_names_of_a_series_are_rules_too() -> None:
    offered = offer(("a", "2024-03-01", 1), ("a", "2024-03-02", 1)).assign(site=["north", "nor\nth"])
    (refusal,) = check_rows(offered, static=["site"]).refusals
    assert (refusal.row, refusal.column) == (1, "site")


def test_no_list_of_refusals_grows_with_the_rows() -> None:
    checked = check_rows(offer(*[("a", "2024-03-01", "x")] * 500))
    assert (len(checked.refusals), checked.refused) == (MOST_REPORTED, 500)
    assert [refusal.row for refusal in checked.refusals] == list(range(MOST_REPORTED))


def test_nothing_offered_is_nothing_refused() -> None:
    checked = check_rows(offer())
    assert (len(checked.rows), checked.refused) == (0, 0)


@pytest.mark.parametrize(
    ("columns", "why"),
    [
        (["unique_id", "y"], "need the column 'ds'"),
        (["unique_id", "ds"], "a column of values"),
        (["unique_id", "ds", "y", "y"], "more than one column 'y'"),
        (["unique_id", "ds", "a\nb"], "no column can be named"),
        (["unique_id", "ds", *map(str, range(300))], "at most 256"),
    ],
)
def test_columns_that_cannot_be_kept_refuse_the_whole(columns: list[str], why: str) -> None:
    with pytest.raises(InputError, match=why):
        check_rows(pd.DataFrame([["a"] * len(columns)], columns=columns))


def test_a_dataset_has_a_name_like_a_model() -> None:
    assert check_dataset("plant-7") == "plant-7"
    with pytest.raises(InputError, match="no dataset can be named"):
        check_dataset("../plant")


def test_a_hundred_thousand_rows_take_no_time_to_speak_of() -> None:
    n = 100_000
    stamps = pd.date_range("2024", periods=n, freq="min").strftime("%Y-%m-%dT%H:%M:%SZ").to_numpy(dtype=object)
    offered = pd.DataFrame({"unique_id": [f"pump-{i % 1000}" for i in range(n)], "ds": stamps, "y": 1.0})
    offered = offered.assign(y=offered["y"].astype(object).where(offered.index % 2 == 0, "x"))

    began = perf_counter()
    checked = check_rows(offered)

    assert checked.refused == n // 2
    assert perf_counter() - began < 3.0, "0.25 s where nothing else runs"
