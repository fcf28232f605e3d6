"""Whether one forecaster is better than another, or only luckier."""

import math

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student_t

FloatArray = NDArray[np.float64]


def diebold_mariano(loss_K: FloatArray, other_K: FloatArray, lags: int) -> float:
    """Return the two-sided p-value that two forecasters are equally accurate.

    Args:
        loss_K: one forecaster's losses at K cutoffs, in time order; a cutoff where either is NaN is left out.
        other_K: the other's, at the same cutoffs.
        lags: cutoffs whose forecasts overlap (horizon over step, less one): their losses are correlated.

    Returns:
        The p-value of Diebold and Mariano (1995) with the small-sample correction of Harvey, Leybourne and
        Newbold (1997), against Student's t; 1 when the losses do not differ at all.
    """
    difference_K = loss_K - other_K
    difference_K = difference_K[np.isfinite(difference_K)]
    count = len(difference_K)
    if count < 2 or not np.any(difference_K):
        return 1.0
    lags = min(lags, count - 1)
    centred_K = difference_K - difference_K.mean()
    variance = float(centred_K @ centred_K) / count
    for lag in range(1, lags + 1):
        variance += 2.0 * float(centred_K[lag:] @ centred_K[:-lag]) / count
    if variance <= 0:
        # The rectangular kernel can give a negative variance; the lag-free one cannot.
        variance = float(centred_K @ centred_K) / count
    if variance == 0:
        return 0.0
    h = lags + 1
    correction = math.sqrt((count + 1 - 2 * h + h * (h - 1) / count) / count) if count + 1 > 2 * h else 0.0
    statistic = correction * float(difference_K.mean()) / math.sqrt(variance / count)
    return float(2.0 * student_t.sf(abs(statistic), count - 1))
