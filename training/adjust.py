"""Prices adjusted for splits and dividends, point in time: a value depends on nothing that came after it.

What is quoted later is usually adjusted backwards: every split and dividend rewrites all prices before it. Here
prices are adjusted forwards. The price of a session is the traded one times the factors of all splits and
dividends with an ex-date up to that session: what one share bought at the first session has become, with dividends
put into the share again. Returns are the same either way, and no later action moves a value before it.

A price divided by the factor of its own session is the traded price. So is a forecast divided by the factor of its
cutoff, as long as nothing happens to the share on the way.

T sessions of one share, ascending.
"""

from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from forecasting.errors import SourceError

FloatArray = NDArray[np.float64]

OHLC = ["Open", "High", "Low", "Close"]
VOLUME, DIVIDENDS, SPLITS = "Volume", "Dividends", "Stock Splits"
ACTIONS = [DIVIDENDS, SPLITS]
FACTOR = "Factor"
"""The column of the factor a session's traded prices were multiplied by."""

Quoted = Literal["traded", "split_adjusted"]
"""What prices are: as they were traded, or divided by all splits that came later, as Yahoo has them."""


class Factors(NamedTuple):
    """What a session's traded values are multiplied by."""

    price_T: FloatArray
    """For splits and dividends."""
    shares_T: FloatArray
    """For splits alone: the shares one of the first session has become; volumes are divided by it."""


def later_splits(splits_T: FloatArray) -> FloatArray:
    """Return the product of the splits after each session, by which a split-adjusted price is multiplied."""
    product_T = np.cumprod(split_ratios(splits_T)[::-1])[::-1]
    return np.append(product_T[1:], 1.0)


def split_ratios(splits_T: FloatArray) -> FloatArray:
    """Return new shares for an old one, 1 where there was no split: none is told as 0 or as nothing.

    Raises:
        ValueError: a ratio is negative or not finite.
    """
    ratio_T = np.where(np.isnan(splits_T) | (splits_T == 0), 1.0, splits_T)
    if not (np.isfinite(ratio_T) & (ratio_T > 0)).all():
        raise ValueError("a split is no ratio above zero")
    return ratio_T


def forward_factors(close_T: FloatArray, dividends_T: FloatArray, splits_T: FloatArray) -> Factors:
    """Return the factors of traded prices; each depends on its own session and those before it alone.

    Args:
        close_T: as traded, NaN where missing.
        dividends_T: paid for one share, in the shares of its ex-date; 0 or NaN for none.
        splits_T: new shares for an old one, from this session on; 0 or NaN for none.

    Raises:
        ValueError: a dividend is negative, or not below the close before it; its position is the second argument.
    """
    shares_T = np.asarray(np.cumprod(split_ratios(splits_T)), dtype=np.float64)
    # In shares of the first session, so that a split between a close and a dividend does not matter.
    closes_T = pd.Series(close_T * shares_T).ffill().to_numpy()
    before_T = np.append(np.nan, closes_T[:-1])
    paid_T = np.nan_to_num(dividends_T) * shares_T
    # Before the first close nothing is known that a dividend could be a share of, and no dividend is a share of
    # any close, be it one that makes no sense: whoever reads the prices refuses that.
    asked_T = ~np.isnan(before_T) & (paid_T != 0)
    share_T = np.divide(paid_T, before_T, out=np.where(asked_T, np.inf, 0.0), where=asked_T & (before_T > 0))
    bad_T = ~((share_T >= 0) & (share_T < 1))
    if bad_T.any():
        raise ValueError("a dividend is not below the close before it", int(bad_T.argmax()))
    price_T: FloatArray = shares_T * np.cumprod(1.0 / (1.0 - share_T))
    return Factors(price_T, shares_T)


def to_traded(quoted: pd.DataFrame) -> pd.DataFrame:
    """Return split-adjusted prices, volume and dividends as they were, by the splits that are told with them."""
    later_T = later_splits(_numbers(quoted, SPLITS))
    traded = quoted.copy()
    for name in (*OHLC, DIVIDENDS):
        traded[name] = _numbers(quoted, name) * later_T
    traded[VOLUME] = _numbers(quoted, VOLUME) / later_T
    return traded


def adjust_forward(traded: pd.DataFrame) -> pd.DataFrame:
    """Return traded prices and volume adjusted for what happened up to each session, and the factor beside them.

    Raises:
        SourceError: an action cannot be; the message has the session.
    """
    factors = factors_by_session(traded)
    adjusted = traded.copy()
    for name in OHLC:
        adjusted[name] = _numbers(traded, name) * factors.price_T
    adjusted[VOLUME] = _numbers(traded, VOLUME) / factors.shares_T
    adjusted[FACTOR] = factors.price_T
    return adjusted


def factors_by_session(traded: pd.DataFrame) -> Factors:
    """Return the factors of traded prices, by the actions told with them.

    Raises:
        SourceError: an action cannot be; the message has the session.
    """
    try:
        return forward_factors(*(_numbers(traded, name) for name in ("Close", DIVIDENDS, SPLITS)))
    except ValueError as error:
        reason, *place = error.args
        raise SourceError(f"{reason}{f', on {_day(traded.index[place[0]])}' if place else ''}") from error


def adjust_rows(frame: pd.DataFrame, ds: pd.Series, quoted: Quoted) -> pd.DataFrame:
    """Adjust the prices of a long frame forwards, each share by its own actions, whatever the order of rows.

    A value that is no number is left as it is, for the panel to refuse, and so is a row without a timestamp.

    Args:
        frame: long, with prices and actions beside `unique_id`.
        ds: the timestamps of its rows, NaT where one could not be read.
        quoted: what the prices are.

    Raises:
        SourceError: a column is absent, or an action cannot be; the message has the share and the session.
    """
    absent = [name for name in ("Close", *ACTIONS) if name not in frame.columns]
    if absent:
        raise SourceError(
            f"adjust: forward takes the columns Close, {', '.join(ACTIONS)}; there is no {', '.join(absent)}: "
            "say with columns what the file calls them"
        )
    priced = [name for name in (*OHLC, VOLUME) if name in frame.columns]
    values = frame[[*priced, *ACTIONS]].apply(_to_numbers).assign(ds=ds)
    _require_numbers(frame, values)
    shares = values[ds.notna()].groupby(frame["unique_id"], sort=False)
    parts = [
        _factors_of(str(name), rows, quoted).reindex(rows["ds"]).set_axis(rows.index) for name, rows in shares
    ]
    if not parts:
        return frame.assign(**{FACTOR: np.nan})
    told = pd.concat(parts).reindex(frame.index)
    adjusted = frame.assign(**{FACTOR: told["price"]})
    for column in priced:
        made = (
            values[column] / told["shares"] if column == VOLUME else values[column] * told["later"] * told["price"]
        )
        adjusted[column] = made.where(made.notna(), frame[column])
    return adjusted


def _require_numbers(frame: pd.DataFrame, values: pd.DataFrame) -> None:
    """Refuse actions that are told and are no numbers: taken for none, they would leave a jump in the prices."""
    for column in ACTIONS:
        unread = values[column].isna() & frame[column].notna() & (frame[column].astype(str).str.strip() != "")
        if unread.any():
            name, told = (frame[which].iloc[int(unread.to_numpy().argmax())] for which in ("unique_id", column))
            raise SourceError(
                f"series {name!r}: {column} {told!r} is no number such as "
                f"{'2 for two new shares for an old one' if column == SPLITS else '0.25'}"
            )


def _factors_of(name: str, rows: pd.DataFrame, quoted: Quoted) -> pd.DataFrame:
    """Return the factors of each session; one that is there twice has one action."""
    sessions = rows.groupby("ds").first()
    try:
        later_T = (
            later_splits(_numbers(sessions, SPLITS)) if quoted == "split_adjusted" else np.ones(len(sessions))
        )
        traded = sessions.assign(**{column: sessions[column] * later_T for column in ("Close", DIVIDENDS)})
        factors = factors_by_session(traded)
    except (SourceError, ValueError) as error:
        raise SourceError(f"series {name!r}: {error}") from error
    told = {"later": later_T, "price": factors.price_T, "shares": factors.shares_T * later_T}
    return pd.DataFrame(told, index=sessions.index)


def _to_numbers(values: pd.Series) -> pd.Series:
    return pd.to_numeric(values, errors="coerce").astype(np.float64)


def _numbers(frame: pd.DataFrame, name: str) -> FloatArray:
    return frame[name].to_numpy(dtype=np.float64)


def _day(session: object) -> str:
    return f"{pd.Timestamp(str(session)):%Y-%m-%d}"
