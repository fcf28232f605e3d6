"""The seasonal naive with intervals of its own: what can be said of a series without a trained network.

The intervals come from the history alone: the differences between a value and the one a season before it are the
errors this forecast would have made, and a forecast k seasons ahead adds k of them up (Hyndman & Athanasopoulos,
Forecasting: Principles and Practice, 3rd ed., 5.5).

T history, H horizon, Q quantiles.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from forecasting.errors import InputError
from forecasting.transforms import Transform, apply_transform, invert_transform

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

FEWEST_DIFFERENCES = 3
"""With fewer seasonal differences their spread is anybody's guess, and no interval is given."""


@dataclass(frozen=True, eq=False)
class NaiveForecast:
    """What a history says of the steps after it, in observed units."""

    values_HQ: FloatArray
    """Quantiles; all at the point forecast where there is no interval."""
    season: int
    """Steps of the season that is repeated; 1 repeats the last value."""
    has_interval: bool


def forecast_naive(
    y_T: FloatArray,
    season_length: int,
    horizon: int,
    quantiles: Sequence[float],
    transform: Transform = "none",
) -> NaiveForecast:
    """Repeat the last season over the steps after a history; the last value where it holds no season.

    A step whose value was missing a season ago takes the latest one at the same step of the season. Differences
    are taken on the transform's scale, so that a price stays above zero.

    Args:
        y_T: the history, oldest first; NaN is a missing value, at its end too.
        season_length: steps of a season.
        horizon: steps to forecast, from the one after the history's last.
        quantiles: the probabilities.
        transform: the scale on which differences are taken.

    Raises:
        InputError: the history holds no value that can be used.
    """
    x_T = apply_transform(y_T, transform)
    observed = np.flatnonzero(np.isfinite(x_T))
    if not len(observed):
        raise InputError("a history without a value cannot be continued")
    season, source_H = _find_sources(observed, season_length, len(x_T), horizon)
    age_H = (len(x_T) + np.arange(horizon) - source_H) / season
    difference_D = _seasonal_differences(x_T, season)
    has_interval = len(difference_D) >= FEWEST_DIFFERENCES
    deviation_Q = _deviations(difference_D, quantiles) if has_interval else np.zeros(len(quantiles))
    x_HQ = x_T[source_H][:, None] + np.sqrt(age_H)[:, None] * deviation_Q
    return NaiveForecast(invert_transform(x_HQ, transform), season, has_interval)


def _find_sources(observed: IntArray, season_length: int, length: int, horizon: int) -> tuple[int, IntArray]:
    """Return the season and, for each step ahead, the latest observed step of the same phase."""
    latest_P = np.full(season_length, -1)
    latest_P[observed % season_length] = observed
    source_H = latest_P[(length + np.arange(horizon)) % season_length]
    if (source_H >= 0).all():
        return season_length, source_H
    return 1, np.full(horizon, observed[-1])


def _seasonal_differences(x_T: FloatArray, season: int) -> FloatArray:
    difference_D = x_T[season:] - x_T[:-season]
    return difference_D[np.isfinite(difference_D)]


def _deviations(difference_D: FloatArray, quantiles: Sequence[float]) -> FloatArray:
    """Return how far quantiles lie from the point forecast one season ahead.

    The spread is estimated from few differences, so the quantiles are those of Student's t.
    """
    spread = float(np.sqrt(np.mean(np.square(difference_D))))
    deviation_Q: FloatArray = spread * stdtrit(len(difference_D), np.asarray(quantiles, dtype=np.float64))
    return deviation_Q
