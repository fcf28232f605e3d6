"""Adjusting forwards: what happens to a share later moves nothing before it."""

import numpy as np
import pandas as pd
import pytest

from forecasting.errors import SourceError
from training.adjust import ACTIONS, FACTOR, OHLC, Quoted, adjust_forward, adjust_rows, forward_factors, to_traded

SESSIONS = pd.bdate_range("2024-01-01", periods=8).as_unit("us")


def traded(
    closes: list[float], dividends: dict[int, float] | None = None, splits: dict[int, float] | None = None
) -> pd.DataFrame:
    frame = pd.DataFrame(dict.fromkeys(OHLC, closes), index=SESSIONS[: len(closes)], dtype=np.float64)
    frame["High"], frame["Low"], frame["Volume"] = frame["Close"] + 1, frame["Close"] - 1, 1000.0
    frame["Dividends"], frame["Stock Splits"] = 0.0, 0.0
    for name, events in (("Dividends", dividends), ("Stock Splits", splits)):
        for at, value in (events or {}).items():
            frame.iloc[at, frame.columns.get_loc(name)] = value
    return frame


def returns(prices: pd.Series) -> np.ndarray:
    return np.diff(np.log(prices.to_numpy()))


def test_a_split_is_no_return() -> None:
    adjusted = adjust_forward(traded([100, 110, 55, 60.5], splits={2: 2.0}))
    assert adjusted["Close"].tolist() == [100, 110, 110, 121]
    assert adjusted["High"].tolist() == [101, 111, 112, 123]
    assert adjusted["Volume"].tolist() == [1000, 1000, 500, 500]
    assert adjusted[FACTOR].tolist() == [1, 1, 2, 2]


def test_a_dividend_is_a_return() -> None:
    adjusted = adjust_forward(traded([100, 100, 95, 95], dividends={2: 5.0}))
    np.testing.assert_allclose(adjusted["Close"], 100)
    assert adjusted["Volume"].tolist() == [1000] * 4


def test_returns_are_those_of_prices_adjusted_backwards() -> None:
    frame = traded([100, 104, 51, 50, 53, 26, 27], dividends={2: 0.5, 4: 1.0, 5: 0.4}, splits={2: 2.0, 5: 2.0})
    # As data vendors do it: all before an ex-date times 1 - dividend / close before it, and divided by the split.
    backward = frame["Close"].to_numpy().copy()
    for at in (2, 4, 5):
        split, dividend = frame["Stock Splits"].iloc[at] or 1.0, frame["Dividends"].iloc[at]
        before = frame["Close"].iloc[at - 1] / split
        backward[:at] *= (1 - dividend / before) / split
    np.testing.assert_allclose(returns(adjust_forward(frame)["Close"]), np.diff(np.log(backward)), rtol=1e-12)


def test_a_price_divided_by_its_factor_is_the_traded_one() -> None:
    frame = traded([100, 104, 51, 50], dividends={1: 0.3}, splits={2: 2.0})
    adjusted = adjust_forward(frame)
    np.testing.assert_allclose(adjusted["Close"] / adjusted[FACTOR], frame["Close"])


def test_later_actions_move_nothing_before_them_not_by_a_bit() -> None:
    rng = np.random.default_rng(2)
    closes = (50 * np.exp(rng.normal(0, 0.02, 8).cumsum())).tolist()
    before = adjust_forward(traded(closes, dividends={1: 0.17, 6: 0.31}))
    after = adjust_forward(traded(closes, dividends={1: 0.17, 6: 0.31, 7: 0.4}, splits={6: 3.0, 7: 0.1}))
    pd.testing.assert_frame_equal(before[:6], after[:6], check_exact=True)
    assert not np.allclose(before["Close"][6:], after["Close"][6:])


def test_split_adjusted_prices_become_what_they_were() -> None:
    frame = traded([100, 110, 55, 60, 20, 21], dividends={1: 1.0, 3: 0.6}, splits={2: 2.0, 4: 3.0})
    later = np.array([6.0, 6, 3, 3, 1, 1])
    quoted = frame.assign(
        **{name: frame[name] / later for name in (*OHLC, "Dividends")}, Volume=frame["Volume"] * later
    )
    pd.testing.assert_frame_equal(to_traded(quoted), frame)


def test_actions_on_a_session_without_a_price_count() -> None:
    frame = traded([100, 100, np.nan, 50, 50], splits={2: 2.0}, dividends={2: 0.0, 3: 1.0})
    adjusted = adjust_forward(frame)
    assert adjusted["Close"].iloc[0] == 100
    np.testing.assert_allclose(adjusted["Close"].iloc[3], 100 / (1 - 2 / 100))


def test_a_dividend_before_the_first_close_changes_nothing() -> None:
    assert adjust_forward(traded([100, 101], dividends={0: 3.0}))[FACTOR].tolist() == [1, 1]


@pytest.mark.parametrize(
    ("dividends", "splits"), [({2: 100.0}, {}), ({2: -1.0}, {}), ({}, {2: -2.0}), ({}, {2: np.inf})]
)
def test_an_action_that_cannot_be_is_refused(dividends: dict[int, float], splits: dict[int, float]) -> None:
    with pytest.raises(
        SourceError, match=r"dividend is not below the close before it, on 2024-01-03|split is no ratio"
    ):
        adjust_forward(traded([100, 100, 100], dividends, splits))


def test_factors_have_no_look_ahead_in_missing_values_either() -> None:
    closes = np.array([np.nan, 10.0, np.nan, 12.0])
    whole = forward_factors(closes, np.array([1.0, 0, 2.0, 3.0]), np.array([0, np.nan, 2.0, 0]))
    for n in range(1, 5):
        part = forward_factors(closes[:n], np.array([1.0, 0, 2.0, 3.0])[:n], np.array([0, np.nan, 2.0, 0])[:n])
        np.testing.assert_array_equal(part.price_T, whole.price_T[:n])


def adjusted_rows(frame: pd.DataFrame, quoted: Quoted) -> pd.DataFrame:
    return adjust_rows(frame, frame["ds"], quoted)


def rows() -> pd.DataFrame:
    one = traded([100, 110, 55, 60.5], splits={2: 2.0}).assign(unique_id="one")
    two = traded([10, 10, 9, 9], dividends={2: 1.0}).assign(unique_id="two")
    return pd.concat([one, two]).rename_axis("ds").reset_index()


@pytest.mark.parametrize("seed", [0, 1])
def test_rows_are_adjusted_share_by_share_in_any_order(seed: int) -> None:
    shuffled = rows().sample(frac=1, random_state=seed).reset_index(drop=True)
    adjusted = adjusted_rows(shuffled, "traded").sort_values(["unique_id", "ds"])
    np.testing.assert_allclose(adjusted["Close"], [100, 110, 110, 121, 10, 10, 10, 10])
    assert adjusted["Volume"].tolist() == [1000, 1000, 500, 500, 1000, 1000, 1000, 1000]


def test_split_adjusted_rows_are_adjusted_to_the_same() -> None:
    frame = rows()
    quoted = frame.copy()
    quoted.loc[:1, OHLC] /= 2
    quoted.loc[:1, "Volume"] *= 2
    pd.testing.assert_frame_equal(adjusted_rows(quoted, "split_adjusted"), adjusted_rows(frame, "traded"))


def test_a_session_that_is_there_twice_is_split_once_and_a_contradiction_stays_one() -> None:
    frame = rows()
    twice = pd.concat([frame, frame.iloc[[2]].assign(Close=56.0)], ignore_index=True)
    adjusted = adjusted_rows(twice, "traded")
    assert adjusted["Close"].iloc[[2, 3, 8]].tolist() == [110, 121, 112]


def test_what_is_no_number_is_left_for_the_panel_to_refuse() -> None:
    frame = rows().astype({"Close": object})
    frame.loc[1, "Close"] = "n/a?"
    adjusted = adjusted_rows(frame, "traded")
    assert adjusted["Close"].tolist()[:4] == [100, "n/a?", 110, 121]


def test_columns_that_are_absent_are_named() -> None:
    with pytest.raises(SourceError, match="there is no Dividends, Stock Splits"):
        adjusted_rows(rows().drop(columns=ACTIONS), "traded")


def test_a_share_with_an_impossible_action_is_named() -> None:
    frame = rows()
    frame.loc[6, "Dividends"] = 50.0
    with pytest.raises(
        SourceError, match="series 'two': a dividend is not below the close before it, on 2024-01-03"
    ):
        adjusted_rows(frame, "traded")


def test_a_row_without_a_timestamp_is_left_as_it_is() -> None:
    frame = rows()
    ds = frame["ds"].mask(frame.index == 3)
    adjusted = adjust_rows(frame, ds, "traded")
    assert adjusted["Close"].tolist()[:4] == [100, 110, 110, 60.5]
    assert np.isnan(adjusted[FACTOR].iloc[3])


def test_an_action_that_is_no_number_is_refused_and_not_taken_for_none() -> None:
    frame = rows().astype({"Stock Splits": object})
    frame.loc[2, "Stock Splits"] = "2:1"
    with pytest.raises(SourceError, match="series 'one': Stock Splits '2:1' is no number such as 2"):
        adjusted_rows(frame, "traded")
    frame.loc[2, "Stock Splits"] = " "
    assert adjusted_rows(frame, "traded")[FACTOR].iloc[2] == 1


@pytest.mark.parametrize("close", [0.0, -3.0])
def test_a_close_that_is_no_price_is_no_wrong_dividend(close: float) -> None:
    adjusted = adjust_forward(traded([100, close, 90, 90], dividends={3: 9.0}))
    np.testing.assert_allclose(adjusted[FACTOR], [1, 1, 1, 1 / 0.9])
    with pytest.raises(SourceError, match="not below the close before it, on 2024-01-03"):
        adjust_forward(traded([100, close, 90], dividends={2: 9.0}))


def test_rows_of_which_no_timestamp_could_be_read_are_left_as_they_are() -> None:
    frame = rows()
    adjusted = adjust_rows(frame, frame["ds"].mask(frame.index >= 0), "traded")
    pd.testing.assert_frame_equal(adjusted.drop(columns=FACTOR), frame)
    assert adjusted[FACTOR].isna().all()
