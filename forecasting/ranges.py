"""What a day's open, high, low and close say of its volatility: range variances, and the returns of its parts.

Variances are daily, in percent squared; returns are logarithmic, in percent: the units of `log_return`. A value is
NaN wherever one of its prices is missing, is not above zero or contradicts the others; it is 0 where the price did
not move. T sessions, on the last axis, behind any others.

Parkinson (1980), Garman and Klass (1980), Rogers and Satchell (1991).
"""

from collections.abc import Mapping
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

RangeFeature = Literal["parkinson", "garman_klass", "rogers_satchell", "overnight", "intraday"]
RANGE_FEATURES: tuple[RangeFeature, ...] = get_args(RangeFeature)

Price = Literal["open", "high", "low", "close"]
PRICES: tuple[Price, ...] = get_args(Price)

NEEDS: Mapping[RangeFeature, tuple[Price, ...]] = {
    "parkinson": ("high", "low"),
    "garman_klass": ("open", "high", "low", "close"),
    "rogers_satchell": ("open", "high", "low", "close"),
    "overnight": ("open", "close"),
    "intraday": ("open", "close"),
}
"""The prices a feature is made of."""


def parkinson(high_T: FloatArray, low_T: FloatArray) -> FloatArray:
    """Return the variance that the span from low to high speaks of."""
    high_T, low_T = _log(high_T), _log(low_T)
    span_T = np.where(high_T >= low_T, high_T - low_T, np.nan)
    variance_T: FloatArray = span_T**2 / (4 * np.log(2))
    return variance_T


def garman_klass(open_T: FloatArray, high_T: FloatArray, low_T: FloatArray, close_T: FloatArray) -> FloatArray:
    """Return the variance that the span and the way from open to close speak of; the night is not in it."""
    open_T, high_T, low_T, close_T = _agreeing(open_T, high_T, low_T, close_T)
    variance_T: FloatArray = 0.5 * (high_T - low_T) ** 2 - (2 * np.log(2) - 1) * (close_T - open_T) ** 2
    return variance_T


def rogers_satchell(open_T: FloatArray, high_T: FloatArray, low_T: FloatArray, close_T: FloatArray) -> FloatArray:
    """Return the variance within the session, also where the price drifts; 0 where it only rose or only fell."""
    open_T, high_T, low_T, close_T = _agreeing(open_T, high_T, low_T, close_T)
    variance_T: FloatArray = (high_T - close_T) * (high_T - open_T) + (low_T - close_T) * (low_T - open_T)
    return variance_T


def overnight(open_T: FloatArray, close_T: FloatArray) -> FloatArray:
    """Return the return from the close of the session before to the open; the first session has none."""
    return_T = np.full(np.broadcast_shapes(np.shape(open_T), np.shape(close_T)), np.nan)
    return_T[..., 1:] = _log(open_T)[..., 1:] - _log(close_T)[..., :-1]
    return return_T


def intraday(open_T: FloatArray, close_T: FloatArray) -> FloatArray:
    """Return the return from open to close."""
    return _log(close_T) - _log(open_T)


def range_feature(name: RangeFeature, prices: Mapping[Price, FloatArray]) -> FloatArray:
    """Return a feature by its name; `prices` holds those it needs, on consecutive sessions."""
    match name:
        case "parkinson":
            return parkinson(prices["high"], prices["low"])
        case "garman_klass":
            return garman_klass(prices["open"], prices["high"], prices["low"], prices["close"])
        case "rogers_satchell":
            return rogers_satchell(prices["open"], prices["high"], prices["low"], prices["close"])
        case "overnight":
            return overnight(prices["open"], prices["close"])
        case "intraday":
            return intraday(prices["open"], prices["close"])


def _log(price_T: FloatArray) -> FloatArray:
    """Return 100 times the logarithm, NaN for a price that has none."""
    price_T = np.asarray(price_T, dtype=np.float64)
    usable_T = np.isfinite(price_T) & (price_T > 0)
    log_T: FloatArray = 100.0 * np.log(np.where(usable_T, price_T, np.nan))
    return log_T


def _agreeing(
    open_T: FloatArray, high_T: FloatArray, low_T: FloatArray, close_T: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """Return the logarithms, the low NaN where a price lies outside of low and high."""
    open_T, high_T, low_T, close_T = _log(open_T), _log(high_T), _log(low_T), _log(close_T)
    agree_T = (low_T <= np.minimum(open_T, close_T)) & (np.maximum(open_T, close_T) <= high_T)
    return open_T, high_T, np.where(agree_T, low_T, np.nan), close_T
