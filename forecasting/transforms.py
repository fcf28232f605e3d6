"""The scale on which a series is modelled and scored, and the way back to its own units.

Both directions are pointwise and monotone, so quantiles stay quantiles: a forecast of the log price relative
to the last one is a forecast of the cumulated log return, and its exponential is a coherent price.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

Transform = Literal["none", "log_return"]
"""`none`: as observed. `log_return`: 100 times the log, whose differences are log returns in percent."""


def apply_transform(y: FloatArray, transform: Transform) -> FloatArray:
    """Map observed values to the modelling scale; a value with no logarithm becomes missing."""
    if transform == "none":
        return y
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(y > 0, 100.0 * np.log(y), np.nan)


def invert_transform(x: FloatArray, transform: Transform) -> FloatArray:
    """Map values on the modelling scale back to observed units."""
    if transform == "none":
        return x
    with np.errstate(over="ignore"):
        return np.exp(x / 100.0)
