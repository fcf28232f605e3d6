"""Forecast accuracy: point scores, distribution scores, coverage. Pure functions of arrays.

B forecasts (a series and a cutoff each), H horizon, Q quantiles. NaN targets are left out. Everything but sMAPE
is computed on the job's modelling scale (log returns in percent for `log_return`), sMAPE in observed units.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from forecasting.forecaster import mean_weights

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

Z_95 = 1.959964


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

    The mean weighs each quantile by the probability it stands for, so that an uneven grid is no distortion: the
    outermost ones stand for their tails as well.
    """
    each: FloatArray = 2.0 * pinball(actual_BH, quantiles_BHQ, probabilities) @ mean_weights(probabilities)
    return each


def crps(actual_BH: FloatArray, quantiles_BHQ: FloatArray, probabilities: Sequence[float]) -> float:
    """Return the mean continuous ranked probability score."""
    return _mean(crps_each(actual_BH, quantiles_BHQ, probabilities))


def pit(actual_BH: FloatArray, quantiles_BHQ: FloatArray, probabilities: Sequence[float]) -> FloatArray:
    """Return the probability at which each target lies among the quantiles (probability integral transform).

    Linear between two quantiles, 0 below and 1 above all of them. Where several quantiles are the target itself,
    the probability among theirs that is nearest to the middle: an interval includes its bounds.
    """
    q = np.asarray(probabilities)
    last = len(q) - 1
    below_BH = (quantiles_BHQ < actual_BH[..., None]).sum(axis=-1)
    reached_BH = (quantiles_BHQ <= actual_BH[..., None]).sum(axis=-1)
    left_BH, right_BH = np.clip(below_BH - 1, 0, last), np.clip(below_BH, 0, last)
    low_BH = np.take_along_axis(quantiles_BHQ, left_BH[..., None], axis=-1)[..., 0]
    high_BH = np.take_along_axis(quantiles_BHQ, right_BH[..., None], axis=-1)[..., 0]
    apart_BH = high_BH > low_BH
    share_BH = np.where(apart_BH, (actual_BH - low_BH) / np.where(apart_BH, high_BH - low_BH, 1.0), 0.0)
    between_BH = q[left_BH] + share_BH * (q[right_BH] - q[left_BH])
    between_BH = np.where(below_BH == 0, 0.0, np.where(below_BH > last, 1.0, between_BH))
    on_BH = np.clip(0.5, q[right_BH], q[np.clip(reached_BH - 1, 0, last)])
    found_BH = np.where(reached_BH > below_BH, on_BH, between_BH)
    unknown_BH = np.isnan(actual_BH) | np.isnan(quantiles_BHQ).any(axis=-1)
    return np.where(unknown_BH, np.nan, found_BH)


def coverage(actual_BH: FloatArray, low_BH: FloatArray, high_BH: FloatArray) -> float:
    """Return the share of targets inside the interval, its bounds included."""
    inside_BH = ((actual_BH >= low_BH) & (actual_BH <= high_BH)).astype(np.float64)
    return _mean(np.where(np.isnan(actual_BH), np.nan, inside_BH))


def coverage_interval(
    actual_BH: FloatArray, low_BH: FloatArray, high_BH: FloatArray, cutoff_B: IntArray
) -> tuple[float, float]:
    """Return the 95 % confidence interval of the coverage (Wilson, 1927); NaN where it cannot be told.

    The forecasts made at one cutoff share its weather, and forecasts whose horizons overlap share targets, so the
    sample is counted by how much the coverage of whole cutoffs varies (an effective size, as in cluster sampling:
    Kish, 1965) and not by single targets.
    """
    inside_BH = ((actual_BH >= low_BH) & (actual_BH <= high_BH)).astype(np.float64)
    inside_BH[np.isnan(actual_BH)] = np.nan
    share = _mean(inside_BH)
    cutoffs = np.unique(cutoff_B)
    inside_K = np.array([_mean(inside_BH[cutoff_B == cutoff]) for cutoff in cutoffs])
    if len(cutoffs) < 2 or not np.isfinite(share):
        return float("nan"), float("nan")
    apart = float(np.median(np.diff(cutoffs)))
    n_clusters = max(1.0, len(cutoffs) * min(1.0, apart / actual_BH.shape[1]))
    variance = float(np.nanvar(inside_K, ddof=1)) / n_clusters
    n_targets = float(np.isfinite(actual_BH).sum())
    # Where every cutoff is covered alike there is no variance to learn from: each counts once.
    n = share * (1 - share) / variance if variance > 0 and 0 < share < 1 else n_clusters
    return _wilson(share, min(n, n_targets))


def _wilson(share: float, n: float) -> tuple[float, float]:
    middle = (share + Z_95**2 / (2 * n)) / (1 + Z_95**2 / n)
    half = Z_95 / (1 + Z_95**2 / n) * np.sqrt(share * (1 - share) / n + Z_95**2 / (4 * n**2))
    return float(max(0.0, middle - half)), float(min(1.0, middle + half))


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
