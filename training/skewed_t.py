"""Hansen's standardised skewed t: mean zero and variance one before location and scale."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln, ndtri, stdtrit

FloatArray = NDArray[np.float64]

NORMAL_TAIL = 1e-6
"""Inverse degrees of freedom below which the tail is the normal's."""


class SkewedT(NamedTuple):
    """Densities of equal-shaped parameters; `scale` is the standard deviation, `tail` 1/nu, 0 for normal."""

    location: FloatArray
    scale: FloatArray
    tail: FloatArray
    skew: FloatArray

    def quantile(self, p: FloatArray | float) -> FloatArray:
        """Return the quantiles at probabilities that broadcast with the parameters."""
        skew, normal = self.skew, self.tail < NORMAL_TAIL
        nu = 1.0 / np.where(normal, 0.25, self.tail)
        c = np.exp(gammaln((nu + 1) / 2) - gammaln(nu / 2)) / np.sqrt(np.pi * (nu - 2))
        a = np.where(normal, 4 * skew / np.sqrt(2 * np.pi), 4 * skew * c * (nu - 2) / (nu - 1))
        b = np.sqrt(1 + 3 * skew**2 - a**2)
        left = p < (1 - skew) / 2
        inner = np.where(left, p / (1 - skew), 0.5 + (p - (1 - skew) / 2) / (1 + skew))
        core = np.where(normal, ndtri(inner), np.sqrt((nu - 2) / nu) * stdtrit(nu, inner))
        standard = (np.where(left, 1 - skew, 1 + skew) * core - a) / b
        quantiles: FloatArray = self.location + self.scale * standard
        return quantiles
