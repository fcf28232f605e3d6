"""HAR: tomorrow's variance from the last day's, week's and month's range variance (Corsi, 2009).

The regression is of logarithms, one for every horizon, on the mean variance of the steps cumulated; the
exponential of a normal error has a mean of its own, which is put back. Range variance does not see the night and
is no forecast of squared returns as it stands: their ratio on the fitted data scales it. Returns so standardised
are Student-t, with a tail fitted for every horizon.

N known sessions, M rows of a regression, F features, K cutoffs, H horizon.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from training.skewed_t import SkewedT

FloatArray = NDArray[np.float64]

DAY, WEEK, MONTH = 1, 5, 22
"""Sessions whose mean variance is looked at."""

FEWEST_ROWS = 250
"""Rows a regression takes, about a year of sessions."""

SMALLEST_SHARE = 0.01
"""Smallest range variance told apart, as a share of the mean; where the high was the low there is no logarithm."""

HEAVIEST_TAIL = 0.45
"""Largest inverse degrees of freedom: at one half there is no variance any more."""


class HarFit(NamedTuple):
    """One regression a horizon, and what returns are beside its forecast."""

    weights_HF: FloatArray
    """Of one, and the logarithms of the day's, week's and month's variance."""
    scale_H: FloatArray
    """Variance of the cumulated return over the exponential of the regression: night and error included."""
    tail_H: FloatArray
    mean: float
    """Mean return a step."""
    floor: float
    """Smallest range variance, percent squared."""


def sessions_needed(horizon: int) -> int:
    """Return how many known sessions a fit takes."""
    return MONTH - 1 + horizon + FEWEST_ROWS


def fit_har(returns_N: FloatArray, variances_N: FloatArray, horizon: int) -> HarFit | None:
    """Fit by least squares; None where neither range nor returns vary.

    Args:
        returns_N: log returns in percent; at least `sessions_needed`.
        variances_N: range variance of the same sessions, percent squared.
        horizon: steps ahead.
    """
    floor = SMALLEST_SHARE * float(variances_N.mean())
    if floor <= 0 or not np.any(np.diff(returns_N)) or not np.any(np.diff(variances_N)):
        return None
    mean = float(returns_N.mean())
    floored_N = np.maximum(variances_N, floor)
    rows_MF = _features(floored_N)
    fits = [_fit_step(rows_MF, floored_N, returns_N - mean, h) for h in range(1, horizon + 1)]
    weights_HF, scale_H, tail_H = (np.array(part) for part in zip(*fits, strict=True))
    return HarFit(weights_HF, scale_H, tail_H, mean, floor)


def _features(variances_N: FloatArray) -> FloatArray:
    """Return a row for every session from the end of the first month on."""
    columns = [
        np.lib.stride_tricks.sliding_window_view(variances_N, days).mean(axis=1) for days in (DAY, WEEK, MONTH)
    ]
    logs_FM = np.log([column[len(column) - len(columns[-1]) :] for column in columns])
    return np.vstack([np.ones(len(columns[-1])), logs_FM]).T


def _fit_step(
    rows_MF: FloatArray, variances_N: FloatArray, shocks_N: FloatArray, h: int
) -> tuple[FloatArray, float, float]:
    known_MF = rows_MF[:-h]
    ahead_M = np.lib.stride_tricks.sliding_window_view(variances_N[MONTH:], h).mean(axis=1)
    moved_M = np.lib.stride_tricks.sliding_window_view(shocks_N[MONTH:], h).sum(axis=1)
    weights_F, *_ = np.linalg.lstsq(known_MF, np.log(ahead_M), rcond=None)
    fitted_M = known_MF @ weights_F
    error = float(np.square(np.log(ahead_M) - fitted_M).mean())
    expected_M = h * np.exp(fitted_M + error / 2)
    ratio = float((np.square(moved_M) / expected_M).mean())
    tail = _fit_tail(moved_M / np.sqrt(ratio * expected_M))
    return weights_F, h * np.exp(error / 2) * ratio, tail


def _fit_tail(standard_M: FloatArray) -> float:
    """Return the inverse degrees of freedom most likely for values of variance one."""

    def loss(tail: float) -> float:
        density = SkewedT(*np.array([0.0, 1.0, tail, 0.0])[:, None])
        return -float(density.log_density(standard_M).mean())

    return float(minimize_scalar(loss, bounds=(0.0, HEAVIEST_TAIL), method="bounded").x)


def har_variance(fit: HarFit, variances_N: FloatArray, counts_K: NDArray[np.int64]) -> FloatArray:
    """Return the `(K, H)` variance of cumulated returns after the first `counts_K` sessions."""
    rows_MF = _features(np.maximum(variances_N, fit.floor))
    # Not a product of matrices: its last digits would depend on how many cutoffs are asked about.
    logs_KH = (rows_MF[counts_K - MONTH][:, None] * fit.weights_HF).sum(axis=2)
    expected_KH: FloatArray = np.exp(logs_KH) * fit.scale_H
    return expected_KH


def har_density(fit: HarFit, variance_KH: FloatArray) -> SkewedT:
    """Return the densities of cumulated returns, of shape `(K, H)`."""
    ahead_H = np.arange(1, variance_KH.shape[1] + 1)
    zeros_KH = np.zeros_like(variance_KH)
    return SkewedT(zeros_KH + fit.mean * ahead_H, np.sqrt(variance_KH), zeros_KH + fit.tail_H, zeros_KH)
