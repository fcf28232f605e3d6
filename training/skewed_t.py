"""The skewed t distribution of one step: what a density forecast is scored and drawn with.

Hansen (1994, International Economic Review 35), standardised: whatever its tail and skew, its mean is the location
and its standard deviation the scale. Without skew it is Student's t, and without a tail besides it is the normal.

Every function keeps its relative precision far out in both tails and as the tail goes to nothing: no difference of
large numbers, no power of degrees of freedom.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import gammaln, ndtr, ndtri, stdtr, stdtrit

FloatArray = NDArray[np.float64]

NO_TAIL = 1e-20
"""Below this the t is the normal to the last digit, even where its distribution is the smallest number."""

SERIES_BELOW = 0.02
"""Tails below this (50 degrees of freedom) take a series: the difference of two log gammas would lose digits."""


class SkewedT(NamedTuple):
    """Densities, one for each place of four arrays that broadcast together; NaN in, NaN out.

    What is asked of them broadcasts too: for K densities at Q probabilities give the fields as `(K, 1)`.
    """

    location: FloatArray
    """The mean."""
    scale: FloatArray
    """The standard deviation, above 0, in the units of the location."""
    tail: FloatArray
    """Inverse degrees of freedom: 0 is normal, and at 0.5, which is left out, the variance is infinite."""
    skew: FloatArray
    """Between -1 and 1, both left out: below 0 the tail of losses is the longer one."""

    def log_density(self, r: ArrayLike) -> FloatArray:
        """Return the natural logarithm of the density at each value."""
        shift, spread = self._shift_and_spread()
        y = spread * (np.asarray(r, dtype=np.float64) - self.location) / self.scale + shift
        y = y / np.where(y < 0, 1.0 - self.skew, 1.0 + self.skew)
        square = y * y / (1.0 - 2.0 * self.tail)
        kernel = -0.5 * (1.0 + self.tail) * square * _log1p_ratio(self.tail * square)
        found: FloatArray = np.log(spread / self.scale) + _log_constant(self.tail) + kernel
        return found

    def cdf(self, r: ArrayLike) -> FloatArray:
        """Return the probability of at most each value."""
        shift, spread = self._shift_and_spread()
        y = spread * (np.asarray(r, dtype=np.float64) - self.location) / self.scale + shift
        y = y / np.sqrt(1.0 - 2.0 * self.tail)
        below = (1.0 - self.skew) * _student_cdf(self.tail, np.minimum(y, 0.0) / (1.0 - self.skew))
        above = (1.0 + self.skew) * _student_cdf(self.tail, -np.maximum(y, 0.0) / (1.0 + self.skew))
        found: FloatArray = np.where(y < 0, below, 1.0 - above)
        return found

    def quantile(self, p: ArrayLike) -> FloatArray:
        """Return the value of each probability: minus infinity at 0, infinity at 1, NaN outside of both."""
        shift, spread = self._shift_and_spread()
        p = np.asarray(p, dtype=np.float64)
        left = p < (1.0 - self.skew) / 2.0
        share = np.where(left, p / (1.0 - self.skew), (1.0 - p) / (1.0 + self.skew))
        side = np.where(left, 1.0 - self.skew, -(1.0 + self.skew))
        y = side * np.sqrt(1.0 - 2.0 * self.tail) * _student_quantile(self.tail, share)
        found: FloatArray = self.location + self.scale * (y - shift) / spread
        return found

    def _shift_and_spread(self) -> tuple[FloatArray, FloatArray]:
        """Return Hansen's a and b, which give the skewed t a mean of zero and a variance of one."""
        tail, skew = np.asarray(self.tail), np.asarray(self.skew)
        shift = 4.0 * skew * np.exp(_log_constant(tail)) * (1.0 - 2.0 * tail) / (1.0 - tail)
        return shift, np.sqrt(1.0 + 3.0 * skew**2 - shift**2)


def _log_constant(tail: FloatArray) -> FloatArray:
    """Return the log of Hansen's c: the density of the standardised t at zero.

    For small tails by the series of Gamma(x + 1/2) / Gamma(x) in 1/x, x being half the degrees of freedom.
    """
    tail = np.asarray(tail, dtype=np.float64)
    half = 0.5 / np.maximum(tail, SERIES_BELOW)
    ratio = gammaln(half + 0.5) - gammaln(half) - 0.5 * np.log(half)
    series = tail * (-1 / 4 + tail**2 * (1 / 24 + tail**2 * (-1 / 20 + tail**2 * (17 / 112))))
    ratio = np.where(tail < SERIES_BELOW, series, ratio)
    found: FloatArray = ratio - 0.5 * np.log(2.0 * np.pi) - 0.5 * np.log1p(-2.0 * tail)
    return found


def _log1p_ratio(u: FloatArray) -> FloatArray:
    """Return log(1 + u) / u for u of 0 and above, which is 1 at 0."""
    found: FloatArray = np.where(u > 0, np.log1p(u) / np.where(u > 0, u, 1.0), 1.0 + 0.0 * u)
    return found


def _student_cdf(tail: FloatArray, t: FloatArray) -> FloatArray:
    found: FloatArray = np.where(tail < NO_TAIL, ndtr(t), stdtr(1.0 / np.maximum(tail, NO_TAIL), t))
    return found


def _student_quantile(tail: FloatArray, p: FloatArray) -> FloatArray:
    degrees = 1.0 / np.maximum(tail, NO_TAIL)
    found = np.where(tail < NO_TAIL, ndtri(p), stdtrit(degrees, p))
    # SciPy's inverse is infinite at 0, but with the wrong sign.
    return np.where(p == 0, -np.inf, found)
