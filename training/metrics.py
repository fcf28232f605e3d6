"""Forecast accuracy: point scores, distribution scores, coverage. Pure functions of arrays.

B forecasts (a series and a cutoff each), H horizon, Q quantiles. NaN targets are left out. Everything but sMAPE
is computed on the job's modelling scale (log returns in percent for `log_return`), sMAPE in observed units.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from forecasting.forecaster import mean_weights

FloatArray = NDArray[np.float64]


def mae(actual_BH: FloatArray, forecast_BH: FloatArray) -> float:
    """Return the mean absolute error."""
    return _mean(np.abs(actual_BH - forecast_BH))


def rmse(actual_BH: FloatArray, forecast_BH: FloatArray) -> float:
    """Return the root of the mean squared error."""
    return float(np.sqrt(_mean(np.square(actual_BH - forecast_BH))))


def smape(actual_BH: FloatArray, forecast_BH: FloatArray) -> float:
    """Return the symmetric mean absolute percentage error, 0 to 200 (as in the M4 competition).

    A step where both are zero counts as no error.
    """
    size_BH = np.abs(actual_BH) + np.abs(forecast_BH)
    error_BH = np.where(
        size_BH == 0, 0.0, 200.0 * np.abs(actual_BH - forecast_BH) / np.where(size_BH == 0, 1.0, size_BH)
    )
    return _mean(np.where(np.isnan(actual_BH), np.nan, error_BH))


def mase(actual_BH: FloatArray, forecast_BH: FloatArray, scale_B: FloatArray) -> float:
    """Return the mean absolute scaled error (Hyndman and Koehler, 2006); for `scale_B` see `seasonal_scale`."""
    return _mean(np.abs(actual_BH - forecast_BH) / scale_B[:, None])


def rmsse_terms(actual_BH: FloatArray, forecast_BH: FloatArray, scale_B: FloatArray) -> FloatArray:
    """Return squared errors in units of the in-sample seasonal naive squared error."""
    terms: FloatArray = np.square(actual_BH - forecast_BH) / scale_B[:, None]
    return terms


def rmsse(actual_BH: FloatArray, forecast_BH: FloatArray, scale_B: FloatArray) -> float:
    """Return the root mean squared scaled error (M5 competition); `scale_B` is a mean squared difference."""
    return float(np.sqrt(_mean(rmsse_terms(actual_BH, forecast_BH, scale_B))))


def pinball(actual_BH: FloatArray, quantiles_BHQ: FloatArray, probabilities: Sequence[float]) -> FloatArray:
    """Return the `(B, H, Q)` pinball loss of each quantile."""
    q = np.asarray(probabilities)
    error_BHQ = actual_BH[..., None] - quantiles_BHQ
    loss: FloatArray = np.maximum(q * error_BHQ, (q - 1) * error_BHQ)
    return loss


def crps_each(actual_BH: FloatArray, quantiles_BHQ: FloatArray, probabilities: Sequence[float]) -> FloatArray:
    """Return the `(B, H)` continuous ranked probability score: twice the mean pinball loss over the quantiles.

    The mean weighs each quantile by the probability it stands for, so that an uneven grid is no distortion; on
    an even grid it is the plain mean.
    """
    each: FloatArray = 2.0 * pinball(actual_BH, quantiles_BHQ, probabilities) @ mean_weights(probabilities)
    return each


def crps(actual_BH: FloatArray, quantiles_BHQ: FloatArray, probabilities: Sequence[float]) -> float:
    """Return the mean continuous ranked probability score."""
    return _mean(crps_each(actual_BH, quantiles_BHQ, probabilities))


def coverage(actual_BH: FloatArray, low_BH: FloatArray, high_BH: FloatArray) -> float:
    """Return the share of targets inside the interval, its bounds included."""
    inside_BH = ((actual_BH >= low_BH) & (actual_BH <= high_BH)).astype(np.float64)
    return _mean(np.where(np.isnan(actual_BH), np.nan, inside_BH))


def width(low_BH: FloatArray, high_BH: FloatArray) -> float:
    """Return the mean width of the interval."""
    return _mean(high_BH - low_BH)


def directional_accuracy(actual_BH: FloatArray, forecast_BH: FloatArray, last_B: FloatArray) -> float:
    """Return the share of steps whose direction from the last observed value was forecast right.

    Steps that did not move are left out, and a forecast of no movement counts as half right; NaN when nothing
    moved.
    """
    moved_BH = np.sign(actual_BH - last_B[:, None])
    said_BH = np.sign(forecast_BH - last_B[:, None])
    right_BH = np.where(said_BH == 0, 0.5, (said_BH == moved_BH).astype(np.float64))
    return _mean(np.where(np.isnan(moved_BH) | (moved_BH == 0), np.nan, right_BH))


def seasonal_scale(x_T: FloatArray, season_length: int) -> tuple[float, float]:
    """Return the in-sample mean absolute and mean squared difference over one season; NaN for none.

    They are what MASE and RMSSE divide by. A series that never moved has no scale.
    """
    steps = x_T[season_length:] - x_T[:-season_length]
    steps = steps[np.isfinite(steps)]
    if not len(steps) or not np.any(steps):
        return float("nan"), float("nan")
    return float(np.abs(steps).mean()), float(np.square(steps).mean())


def _mean(values: FloatArray) -> float:
    """Return the mean of what is known, NaN when nothing is."""
    known = np.isfinite(values)
    return float(values[known].mean()) if known.any() else float("nan")
