"""What a density of returns is worth: variance, tails, probabilities, mean, direction. Pure functions of arrays.

K cutoffs in time order, N series, Q quantiles. Returns and quantiles are in percent, variances in percent squared.
A place where anything is NaN is left out of means and tests. Losses are smaller for the better, and come in two
forms as in `training/metrics.py`: one for each place (`_each`), which is what tests compare, and their mean.

The tests of hits and of probabilities are for one series, forecast one step ahead: shares fall on the same days,
and forecasts that overlap miss together, so that neither is a sample of independent ones.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import betainc, ndtri, xlogy
from scipy.stats import beta, chi2, kstest

from training import metrics
from training.significance import compare_losses
from training.skewed_t import SkewedT

FloatArray = NDArray[np.float64]

NEAREST = 1e-15
"""A probability nearer to 0 or 1 than this counts as this where its normal score is taken."""


def qlike_each(r: FloatArray, variance: FloatArray) -> FloatArray:
    """Return the QLIKE of each variance forecast, log s2 + r2 / s2 (Patton, 2011).

    A variance of nothing has an infinite loss, unless what it was forecast for is missing.
    """
    sound = np.where(variance > 0, variance, 1.0)
    loss = np.where(variance > 0, np.log(sound) + np.square(r) / sound, np.inf)
    return np.where(np.isnan(r) | np.isnan(variance), np.nan, loss)


def qlike(r: FloatArray, variance: FloatArray) -> float:
    """Return the mean QLIKE: least, in expectation, for the true variance, noisy as squared returns are."""
    return _mean(qlike_each(r, variance))


def pinball_each(r: FloatArray, quantile: FloatArray, p: float) -> FloatArray:
    """Return the pinball loss of each quantile of probability p (Koenker and Bassett, 1978)."""
    error = r - quantile
    return np.maximum(p * error, (p - 1.0) * error)


def pinball_at(r: FloatArray, quantile: FloatArray, p: float) -> float:
    """Return the mean pinball loss at one probability: the score of a value at risk."""
    return _mean(pinball_each(r, quantile, p))


def log_score_each(r: FloatArray, density: SkewedT) -> FloatArray:
    """Return the logarithmic score of each density, as a loss: minus the log density of what came (Good, 1952)."""
    return -density.log_density(r)


def log_score(r: FloatArray, density: SkewedT) -> float:
    """Return the mean logarithmic score; one outcome that was called impossible makes it infinite."""
    return _mean(log_score_each(r, density))


def pit_of_density(r: FloatArray, density: SkewedT) -> FloatArray:
    """Return the probability at which each outcome lay in its density (Diebold, Gunther and Tay, 1998)."""
    return density.cdf(r)


def pit_of_quantiles(r_K: FloatArray, quantiles_KQ: FloatArray, probabilities: Sequence[float]) -> FloatArray:
    """Return the probability at which each outcome lay among its quantiles.

    Linear between two quantiles, as in `metrics.pit`. Beyond the outermost one there is no density to read; an
    exponential tail goes on with the density that the outermost two have between them, and never reaches 0 or 1.
    Needs two quantiles at least.
    """
    q = np.asarray(probabilities)
    inside_K = metrics.pit(r_K[:, None], quantiles_KQ[:, None, :], probabilities)[:, 0]
    low_K = _tail(quantiles_KQ[:, 0] - r_K, quantiles_KQ[:, 1] - quantiles_KQ[:, 0], q[0], q[1] - q[0])
    high_K = _tail(r_K - quantiles_KQ[:, -1], quantiles_KQ[:, -1] - quantiles_KQ[:, -2], 1 - q[-1], q[-1] - q[-2])
    below_K, above_K = r_K < quantiles_KQ[:, 0], r_K > quantiles_KQ[:, -1]
    found_K = np.where(below_K, low_K, np.where(above_K, 1.0 - high_K, inside_K))
    return np.where(np.isnan(inside_K), np.nan, found_K)


def _tail(beyond_K: FloatArray, apart_K: FloatArray, outside: float, between: float) -> FloatArray:
    """Return the probability left beyond a distance from the outermost quantile; nothing where two coincide."""
    spread_K = np.where(apart_K > 0, apart_K, 1.0)
    left_K = outside * np.exp(-np.maximum(beyond_K, 0.0) / spread_K * between / outside)
    return np.where(apart_K > 0, left_K, 0.0)


def pit_uniformity(pit_K: FloatArray) -> float:
    """Return the p-value that probabilities are uniform, by the test of Kolmogorov and Smirnov.

    It sees a wrong shape and is blind to the order: densities that are too wide in calm and too narrow in storm
    may pass. It takes the values as independent, which those of overlapping forecasts are not. It looks at the
    middle more than at the tails. NaN without a value.
    """
    known = pit_K[np.isfinite(pit_K)]
    return float(kstest(known, "uniform").pvalue) if len(known) else math.nan


def berkowitz(pit_K: FloatArray) -> float:
    """Return the p-value that normal scores of probabilities are independent, of mean 0 and variance 1.

    The likelihood ratio of Berkowitz (2001, Journal of Business and Economic Statistics 19), chi-squared with
    three degrees of freedom: mean, variance and first autocorrelation of the scores at once, given the first one.
    It sees dependence that `pit_uniformity` does not, and no shape beyond the variance: a tail that is wrong on
    both sides alike may pass. Only neighbours that are both known count. NaN with fewer than 10 of them.
    """
    score_K = ndtri(np.clip(pit_K, NEAREST, 1.0 - NEAREST))
    before, after = score_K[:-1], score_K[1:]
    both = np.isfinite(before) & np.isfinite(after)
    before, after = before[both], after[both]
    if len(after) < 10:
        return math.nan
    design = np.column_stack([np.ones(len(before)), before])
    residual = after - design @ np.linalg.lstsq(design, after, rcond=None)[0]
    # Scores that never change have no variance to fit; the smallest one keeps the ratio finite, and rejects.
    variance = max(float(residual @ residual) / len(after), NEAREST)
    ratio = float(after @ after) - len(after) * (1.0 + np.log(variance))
    return float(chi2.sf(max(0.0, ratio), 3))


def hits_below(r: FloatArray, quantile: FloatArray) -> FloatArray:
    """Return 1 where a return fell below its quantile (its value at risk was exceeded), 0 where not, or NaN."""
    return np.where(np.isnan(r) | np.isnan(quantile), np.nan, (r < quantile).astype(np.float64))


def hits_outside(r: FloatArray, low: FloatArray, high: FloatArray) -> FloatArray:
    """Return 1 where a return fell outside an interval, its bounds being inside, 0 where not, or NaN.

    With `kupiec(hits, 0.1)` it is the test of the coverage of 90 % intervals.
    """
    unknown = np.isnan(r) | np.isnan(low) | np.isnan(high)
    return np.where(unknown, np.nan, ((r < low) | (r > high)).astype(np.float64))


def kupiec(hits_K: FloatArray, p: float) -> float:
    """Return the p-value that hits come with probability p: unconditional coverage.

    The likelihood ratio of Kupiec (1995, Journal of Derivatives 3), chi-squared with one degree of freedom. It is
    two-sided: too few hits are as wrong as too many. No hit and nothing but hits are no special cases, 0 log 0
    being 0. NaN without a forecast. At 1 % and 250 forecasts it seldom tells 1 % from 2 %.
    """
    known = hits_K[np.isfinite(hits_K)]
    return float(chi2.sf(_coverage_ratio(known, p), 1)) if len(known) else math.nan


def christoffersen_independence(hits_K: FloatArray) -> float:
    """Return the p-value that a hit is as likely after a hit as after none: that hits do not cluster.

    The likelihood ratio of Christoffersen (1998, International Economic Review 39) against a first-order Markov
    chain, chi-squared with one degree of freedom. Of n_ij steps from i to j, those from none to a hit are
    n_01 / (n_00 + n_01), and so on. With 0 log 0 = 0 nothing is undefined: two hits that never follow one another
    give the chain a probability of 0 after a hit (n_11 = 0; Christoffersen, 2012, chapter 13), and where there is
    no hit, nothing but hits, or one at the very end, the chain has nothing to gain and the p-value is 1.
    Only neighbours that are both known make a step; NaN where there is none. It sees clusters of neighbours only.
    """
    ratio = _independence_ratio(hits_K)
    return float(chi2.sf(ratio, 1))


def christoffersen_conditional(hits_K: FloatArray, p: float) -> float:
    """Return the p-value that hits come with probability p and do not cluster: conditional coverage.

    Christoffersen (1998): the sum of the likelihood ratios of `kupiec`, of all hits, and of
    `christoffersen_independence`, of all steps; chi-squared with two degrees of freedom. NaN where either is.
    """
    known = hits_K[np.isfinite(hits_K)]
    if not len(known):
        return math.nan
    return float(chi2.sf(_coverage_ratio(known, p) + _independence_ratio(hits_K), 2))


def _coverage_ratio(known: FloatArray, p: float) -> float:
    n_hits = float(known.sum())
    n_others = len(known) - n_hits
    promised = n_hits * math.log(p) + n_others * math.log1p(-p)
    return max(0.0, 2.0 * (_likelihood(n_hits, n_others) - promised))


def _independence_ratio(hits_K: FloatArray) -> float:
    before, after = hits_K[:-1], hits_K[1:]
    both = np.isfinite(before) & np.isfinite(after)
    if not both.any():
        return math.nan
    before, after = before[both], after[both]
    n_01, n_11 = float(((before == 0) & (after == 1)).sum()), float(((before == 1) & (after == 1)).sum())
    n_00, n_10 = float((before == 0).sum()) - n_01, float((before == 1).sum()) - n_11
    chain = _likelihood(n_01, n_00) + _likelihood(n_11, n_10)
    return max(0.0, 2.0 * (chain - _likelihood(n_01 + n_11, n_00 + n_10)))


def _likelihood(n_hits: float, n_others: float) -> float:
    """Return the log likelihood of hits at the probability that makes it largest, with 0 log 0 = 0."""
    total = max(1.0, n_hits + n_others)
    return float(xlogy(n_hits, n_hits / total) + xlogy(n_others, n_others / total))


class OutOfSample(NamedTuple):
    """How much of the squared returns a forecast of the mean explains."""

    r2: float
    """1 less the squared errors over the squared returns; 0 is as good as the forecast of nothing."""
    p_value: float
    """One-sided, that no return can be told by the forecast; of use only where `r2` is above 0."""
    n: int


def r2_out_of_sample(r_KN: FloatArray, forecast_KN: FloatArray, lags: int = 0) -> OutOfSample:
    """Return the R2 out of sample against the forecast of zero (Campbell and Thompson, 2008), and if it is luck.

    The p-value is that of Clark and West (2007), for a forecast whose rival is the same without its predictors:
    squared errors less what estimating them costs, which against zero is twice the product of return and forecast,
    tested as `compare_losses` does. It asks whether there is anything to be forecast, and may find so where this
    forecast is worse than none: without an `r2` above 0 there is no skill. A steady rise is also "forecast" by a
    constant. NaN without returns, and an `r2` of 0 at p = 1 for a forecast of nothing.

    Args:
        r_KN: returns, `(K,)` or `(K, N)`.
        forecast_KN: forecast means of the same shape.
        lags: cutoffs whose forecasts overlap: horizon over step, less one.
    """
    r_KN, forecast_KN = columns(r_KN), columns(forecast_KN)
    known = np.isfinite(r_KN) & np.isfinite(forecast_KN)
    total = float(np.square(r_KN[known]).sum())
    if total == 0:
        return OutOfSample(math.nan, math.nan, int(known.sum()))
    r2 = 1.0 - float(np.square(r_KN[known] - forecast_KN[known]).sum()) / total
    gain_KN = 2.0 * r_KN * forecast_KN
    return OutOfSample(r2, compare_losses(-gain_KN, np.zeros_like(gain_KN), lags).p_value, int(known.sum()))


class Direction(NamedTuple):
    """How often the sign of a return was forecast, and whether that is more than a coin or a habit."""

    share: float
    """Share of right signs, 0 to 1."""
    low: float
    high: float
    """The 95 % interval of the share."""
    p_half: float
    """Two-sided, that the share is one half."""
    always: float
    """Share of right signs of always saying what came more often, told in hindsight."""
    p_always: float
    """Two-sided, that it is as good as always saying the same."""
    n: int
    """Signs forecast: returns of zero and forecasts of zero have none."""


def direction(r_KN: FloatArray, forecast_KN: FloatArray, lags: int = 0) -> Direction:
    """Return the directional accuracy of a forecast of the mean with its exact interval.

    Clopper and Pearson (1934) for one series without overlap, each sign being a toss of its own. Signs of many
    shares at one cutoff, or of forecasts that overlap, are no independent tosses: the interval is then that of
    Korn and Graubard (1998), with as many tosses as `compare_losses` finds them worth. Returns of zero have no
    direction and are left out; so are forecasts of zero, which say none. NaN where nothing is left.

    Beating one half is no skill where most days rise: always saying "up" does as well, so that is compared too.

    Args:
        r_KN: returns, `(K,)` or `(K, N)`.
        forecast_KN: forecast means, or medians, of the same shape.
        lags: cutoffs whose forecasts overlap: horizon over step, less one.
    """
    came_KN, said_KN = np.sign(columns(r_KN)), np.sign(columns(forecast_KN))
    signed_KN = np.isfinite(came_KN) & np.isfinite(said_KN) & (came_KN != 0) & (said_KN != 0)
    n = int(signed_KN.sum())
    if n == 0:
        return Direction(math.nan, math.nan, math.nan, math.nan, math.nan, math.nan, 0)
    usual = 1.0 if (came_KN[signed_KN] > 0).mean() >= 0.5 else -1.0
    right_KN = np.where(signed_KN, (came_KN == said_KN).astype(np.float64), np.nan)
    habit_KN = np.where(signed_KN, (came_KN == usual).astype(np.float64), np.nan)
    share = float(np.nanmean(right_KN))
    alone = right_KN.shape[1] == 1 and lags == 0
    tosses = float(n) if alone else _tosses(right_KN, share, lags)
    low, high = _clopper_pearson(share, tosses)
    return Direction(
        share,
        low,
        high,
        p_half=_against_half(share, tosses),
        always=float(np.nanmean(habit_KN)),
        p_always=compare_losses(-right_KN, -habit_KN, lags).two_sided,
        n=n,
    )


def _tosses(right_KN: FloatArray, share: float, lags: int) -> float:
    """Return how many independent tosses tell as much of a share as dependent ones do (Kish, 1965)."""
    found = compare_losses(right_KN, np.zeros_like(right_KN), lags)
    apart = max(1.0, found.n_cutoffs // (lags + 1))
    if not found.standard_error > 0 or share in (0.0, 1.0):
        return apart
    return max(1.0, min(float(np.isfinite(right_KN).sum()), share * (1 - share) / found.standard_error**2))


def _clopper_pearson(share: float, n: float) -> tuple[float, float]:
    hits = share * n
    low = float(beta.ppf(0.025, hits, n - hits + 1)) if hits > 0 else 0.0
    high = float(beta.ppf(0.975, hits + 1, n - hits)) if hits < n else 1.0
    return low, high


def _against_half(share: float, n: float) -> float:
    """Return the two-sided binomial p-value of a share against one half; exact for whole numbers of tosses."""
    more = max(share, 1.0 - share) * n
    return min(1.0, 2.0 * float(betainc(more, n - more + 1.0, 0.5)))


def columns(values: FloatArray) -> FloatArray:
    """Return `(K,)` values as `(K, 1)`, and `(K, N)` ones as they are."""
    return values[:, None] if values.ndim == 1 else values


def _mean(values: FloatArray) -> float:
    """Return the mean of what is known, an infinite loss included; NaN when nothing is."""
    known = ~np.isnan(values)
    return float(values[known].mean()) if known.any() else math.nan
