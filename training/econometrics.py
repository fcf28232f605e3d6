"""Rivals: the econometric forecasts of returns that a network has to beat."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from training.skewed_t import SkewedT

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

RIVALS = (
    "random_walk",
    "historical",
    "ewma",
    "garch",
    "garch_t",
    "gjr_garch_t",
    "gjr_garch_skewt",
    "har",
)


class RivalForecast(NamedTuple):
    """What a rival says at each cutoff of the cumulated returns, in percent."""

    quantiles_KHQ: FloatArray
    variance_KH: FloatArray
    first: SkewedT | None
    """The one-step density, of shape `(K,)`, where the rival has one."""


def forecast_rival(
    name: str,
    returns_T: FloatArray,
    cutoffs_K: IntArray,
    horizon: int,
    quantiles: Sequence[float],
    *,
    refit_every: int,
    variances_T: FloatArray | None = None,
    first_fit: int | None = None,
    seed: int = 1,
    note: Callable[[str], None] | None = None,
) -> RivalForecast:
    """Forecast cumulated returns at every cutoff, refitted on a rolling schedule."""
    raise NotImplementedError
