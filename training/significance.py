"""Whether one forecaster is better than another, or only luckier.

K cutoffs, N series.
"""

import math
from dataclasses import dataclass

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


FEW_SERIES = 10
"""Below this, series are not a sample of anything: a variance between so few clusters is not to be trusted."""


@dataclass(frozen=True)
class Comparison:
    """How the losses of one forecaster differ from those of another, and whether by more than chance."""

    difference: float
    """Mean loss less the other's, every cutoff counting alike; below zero is better."""
    standard_error: float
    p_value: float
    """One-sided: how likely at most this difference is if the truth is the margin, or worse."""
    n_cutoffs: int
    n_series: int

    @property
    def two_sided(self) -> float:
        """The p-value that both are equally accurate, for a margin of 0; 1 where nothing can be told."""
        if self.difference == 0 or math.isnan(self.standard_error):
            return 1.0
        return 2.0 * min(self.p_value, 1.0 - self.p_value)


def compare_losses(loss_KN: FloatArray, other_KN: FloatArray, lags: int, margin: float = 0.0) -> Comparison:
    """Test whether a forecaster's expected loss is below another's plus a margin.

    Diebold and Mariano's test (1995), one-sided, with the correction of Harvey, Leybourne and Newbold (1997).
    The variance is clustered. All series at a cutoff share its weather, so they are one cluster, and cutoffs up
    to `lags` apart, or a few more, are correlated (Driscoll and Kraay, 1998). With `FEW_SERIES` series or more,
    what a series has in common at all cutoffs counts as well (both ways: Thompson, 2011; Cameron, Gelbach and
    Miller, 2011).

    Cutoffs whose forecasts overlap are no K independent ones. Against Student's t with K - 1 degrees of freedom
    the test rejects three to thirty times too often at the small levels of a sequence; with K / (lags + 1) - 1,
    the number of forecasts that do not overlap, it keeps them.

    Args:
        loss_KN: losses at each cutoff, in time order, and series; NaN where there is none.
        other_KN: the other's, at the same places; a place where either is missing is left out.
        lags: cutoffs whose forecasts overlap: horizon over step, less one.
        margin: difference that is not yet called worse, in units of the loss.
    """
    difference_KN = loss_KN - other_KN
    difference_KN = difference_KN[np.isfinite(difference_KN).any(axis=1)]
    known_KN = np.isfinite(difference_KN)
    n_cutoffs, n_series = len(difference_KN), int(known_KN.any(axis=0).sum())
    if not n_cutoffs:
        return Comparison(math.nan, math.nan, 1.0, 0, 0)
    weight_KN = known_KN / known_KN.sum(axis=1, keepdims=True) / n_cutoffs
    mean = float((weight_KN * np.where(known_KN, difference_KN, 0.0)).sum())
    excess = mean - margin
    independent = n_cutoffs // (lags + 1)
    if independent < 2:
        return Comparison(mean, math.nan, 1.0, n_cutoffs, n_series)
    part_KN = weight_KN * np.where(known_KN, difference_KN - mean, 0.0)
    error = math.sqrt(_clustered_variance(part_KN, lags, by_series=n_series >= FEW_SERIES))
    h = lags + 1
    # Below this the differences are one number and its rounding: there is nothing to be uncertain about.
    if error <= 1e-12 * (abs(mean) + abs(margin)):
        return Comparison(mean, error, 1.0 if excess >= 0 else 0.0, n_cutoffs, n_series)
    correction = math.sqrt((n_cutoffs + 1 - 2 * h + h * (h - 1) / n_cutoffs) / n_cutoffs)
    p_value = float(student_t.cdf(correction * excess / error, independent - 1))
    return Comparison(mean, error, p_value, n_cutoffs, n_series)


def _clustered_variance(part_KN: FloatArray, lags: int, *, by_series: bool) -> float:
    """Return the variance of a sum, clustered by rows (with lags) and, where asked, by columns too.

    Luck may last longer than forecasts overlap: of the variances with a few lags more the largest counts. Less
    than without any it cannot be: a negative autocovariance of a few cutoffs is noise, and no evidence.
    """
    part_K = part_KN.sum(axis=1)
    longest = min(len(part_K) - 1, lags + math.floor(len(part_K) ** (1 / 3)))
    by_cutoff_A = float(part_K @ part_K) + 2.0 * np.cumsum(
        [0.0, *(_product(part_K, a) for a in range(1, longest + 1))]
    )
    by_cutoff = max(float(by_cutoff_A[0]), float(by_cutoff_A[lags:].max()))
    if not by_series:
        return by_cutoff
    counted_twice = float((part_KN**2).sum()) + 2.0 * sum(_product(part_KN, a) for a in range(1, lags + 1))
    part_N = part_KN.sum(axis=0)
    n_series = int((part_KN != 0).any(axis=0).sum())
    of_series = float(part_N @ part_N) * n_series / max(1, n_series - 1)
    return max(by_cutoff, by_cutoff + of_series - counted_twice)


def _product(part: FloatArray, lag: int) -> float:
    return float((part[lag:] * part[:-lag]).sum())


BETS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


def betting_evidence(loss_K: FloatArray, other_K: FloatArray, lags: int, margin: float = 0.0) -> FloatArray:
    """Return, after each cutoff, the evidence so far that a forecaster is better than another: an e-value.

    It may be looked at after every cutoff: if the forecaster is no better, the probability that the evidence ever
    reaches 1 / alpha is at most alpha (Ville's inequality). A gambler bets on the next relative difference,
    clipped and on a scale known beforehand; what the capital has grown to is the evidence (Waudby-Smith and
    Ramdas, 2024; for forecasts Henzi and Ziegel, 2022, and Choe and Ramdas, 2023). Ten gamblers, of whom each
    always stakes the same share, take a tenth of the capital each, so that none has to know how large the
    difference is.

    "No better" is: at no time is a positive clipped difference to be expected. That holds wherever the relative
    difference of the losses is as likely above zero as below it by the same amount.

    Where forecasts overlap a bet is on `lags + 1` cutoffs together, and every second bet is one gambler's, the
    others another's: all of a bet is then known before the next is made. Either may win, for which half the
    evidence pays.

    Args:
        loss_K: losses at each cutoff, in time order, not negative.
        other_K: the other's, at the same cutoffs; one where either is NaN is left out and has the evidence before.
        lags: cutoffs that lie within the horizon of one before them.
        margin: share of the other's loss by which one may be worse and still be called no worse.
    """
    known_K = ~(np.isnan(loss_K) | np.isnan(other_K))
    evidence_K = np.ones(len(loss_K))
    size = lags + 1
    streams = [_Gamblers() for _ in range(1 if lags == 0 else 2)]
    places = np.flatnonzero(known_K)
    for bet in range(len(places) // size):
        block = places[bet * size : (bet + 1) * size]
        stream = streams[bet % len(streams)]
        stream.take(_relative_difference(float(loss_K[block].sum()), (1.0 + margin) * float(other_K[block].sum())))
        evidence_K[block[-1] :] = max(gamblers.best for gamblers in streams) / len(streams)
    return evidence_K


def _relative_difference(loss: float, other: float) -> float:
    """Return by how much a loss is below another, from -1 to 1; an infinite loss loses."""
    if math.isinf(loss) or math.isinf(other):
        return float(math.isinf(other)) - float(math.isinf(loss))
    total = loss + other
    return (other - loss) / total if total > 0 else 0.0


class _Gamblers:
    """Capital that is staked on differences above zero, clipped at the mean size of those before.

    A wider clip would find small steady differences a little sooner, and a collapse later: at best the capital
    doubles with every bet.
    """

    def __init__(self) -> None:
        self.best = 1.0
        self._capital = np.ones(len(BETS))
        self._sizes = 0.0
        self._seen = 0

    def take(self, difference: float) -> None:
        """Bet on a difference; its scale is that of those before it, so the first ones only set the scale."""
        if self._sizes > 0:
            outcome = difference / (self._sizes / self._seen)
            self._capital *= 1.0 + np.array(BETS) * min(1.0, max(-1.0, outcome))
        self.best = max(self.best, float(self._capital.mean()))
        self._sizes += abs(difference)
        self._seen += 1
