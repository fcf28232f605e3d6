"""A panel whose range features are made of its prices: one way for training, the ledger and files.

N series, T steps, P past columns.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from forecasting.panel import BadSeries, Columns, Panel, build_panel
from forecasting.ranges import RANGE_FEATURES, Price, RangeFeature, range_feature
from forecasting.spec import TARGET_COLUMN, PriceColumns

FloatArray = NDArray[np.float64]


def find_made(
    features: Sequence[str], prices: PriceColumns | None, there: Collection[str]
) -> tuple[RangeFeature, ...]:
    """Return the features that are made of prices: those not there themselves, whose prices are."""
    if prices is None:
        return ()
    wanted = (name for name in RANGE_FEATURES if name in features and name not in there)
    return tuple(name for name in wanted if set(prices.needed([name]).values()) <= {*there, TARGET_COLUMN})


def build_price_panel(
    frame: pd.DataFrame,
    freq: str,
    *,
    bad_series: BadSeries = "raise",
    columns: Columns | None = None,
    prices: PriceColumns | None = None,
) -> Panel:
    """Build a panel, with the range features among its past columns made of prices where the frame has none.

    What a feature is made of is laid out on the grid first, so that the session before is that of the calendar;
    where it is missing, so is the feature.

    Raises:
        InputError: the frame itself cannot be read as a long frame, or lacks a column.
        PanelError: a series was refused, or none is left.
    """
    columns = columns or Columns()
    made = find_made(columns.past, prices, frame.columns)
    if prices is None or not made:
        return build_panel(frame, freq, bad_series=bad_series, columns=columns)
    needed = prices.needed(made)
    told = [name for name in columns.past if name not in made]
    read = tuple(dict.fromkeys([*told, *(name for name in needed.values() if name != TARGET_COLUMN)]))
    panel = build_panel(frame, freq, bad_series=bad_series, columns=replace(columns, past=read))
    known = dict(zip(read, np.moveaxis(panel.past_NTP, -1, 0), strict=True))
    past = make_past(columns.past, prices, {TARGET_COLUMN: panel.y_NT, **known})
    return replace(panel, columns=columns, past_NTP=np.stack(list(past.values()), axis=-1))


def make_past(
    names: Sequence[str], prices: PriceColumns | None, known: Mapping[str, FloatArray]
) -> dict[str, FloatArray]:
    """Return those of the past columns that are known or can be made of known prices.

    Args:
        names: the columns wanted.
        prices: the columns of prices; y is the series itself.
        known: columns on consecutive steps, which are the last axis.
    """
    made = find_made(names, prices, known)
    past: dict[str, FloatArray] = {}
    for name in names:
        if name in known:
            past[name] = known[name]
        elif name in made and prices is not None:
            needed: Mapping[Price, str] = prices.needed([name])
            past[name] = range_feature(name, {price: known[column] for price, column in needed.items()})
    return past
