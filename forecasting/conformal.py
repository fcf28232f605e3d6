"""Intervals kept honest online: how far the quantiles of each series and step are stretched from the median.

Every quantile has a factor by which its distance from the median is multiplied, one for each series and step. It
is tracked online: widened a little when the actual falls outside, narrowed a very little when it does not, so
that in the long run the share outside is what the quantile promises, whatever the data do. That is the quantile
tracking of conformal PID control (Angelopoulos, Candes and Tibshirani, 2023), which is adaptive conformal
inference (Gibbs and Candes, 2021) with the threshold itself as the state, on the logarithm of the distance: the
step needs no unit, a width stays positive, and quantiles cannot cross. Levels beyond the trained quantiles, where
adaptive conformal inference answers with the whole real line, cannot come about.

B forecasts, H horizon, Q quantiles.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from forecasting.forecaster import interpolate_quantile
from forecasting.transforms import Transform, apply_transform, invert_transform

FloatArray = NDArray[np.float64]
StampArray = NDArray[np.datetime64]

RATE = 0.1
"""What a quantile gains at most from one actual outside, as a share of its distance."""
LIMIT = math.log(8.0)
"""No distance is stretched or shrunk by more than this, in logarithms."""


@dataclass(frozen=True, eq=False)
class Adjustment:
    """What was learned of one series from the forecasts of one version."""

    quantiles: tuple[float, ...]
    """The probabilities it belongs to."""
    stretch_HQ: FloatArray
    """The logarithm of the factor on each quantile's distance from the median; 0 changes nothing."""
    cutoff_H: StampArray
    """The newest cutoff each step has learned from; NaT for none. An earlier one teaches nothing any more."""

    @property
    def horizon(self) -> int:
        """Return the steps something is known of."""
        return len(self.cutoff_H)


def unadjusted(quantiles: Sequence[float], horizon: int) -> Adjustment:
    """Return the adjustment of a series of which nothing has been learned."""
    cutoff_H = np.full(horizon, "NaT", dtype="datetime64[us]")
    return Adjustment(tuple(quantiles), np.zeros((horizon, len(quantiles))), cutoff_H)


def apply(
    values_BHQ: FloatArray,
    quantiles: Sequence[float],
    adjustments: Sequence[Adjustment | None],
    transform: Transform = "none",
) -> FloatArray:
    """Return what to add to quantiles before they are issued.

    Args:
        values_BHQ: a network's quantiles in observed units, ascending along Q.
        quantiles: their probabilities.
        adjustments: what was learned of each forecast's series; None, or of other quantiles, changes nothing.
        transform: the model's own: distances are stretched on its scale, so that a price stays above 0.

    Returns:
        `(B, H, Q)`, finite: `values_BHQ` and it make quantiles that ascend, the median as it was. All 0 for a
        forecast that is none.
    """
    stretch_BHQ = _collect(adjustments, quantiles, values_BHQ.shape[1])
    adjustment_BHQ = np.zeros_like(values_BHQ)
    chosen_B = stretch_BHQ.any(axis=(1, 2)) & np.isfinite(values_BHQ).all(axis=(1, 2))
    if not chosen_B.any():
        return adjustment_BHQ
    raw_BHQ = values_BHQ[chosen_B]
    x_BHQ = apply_transform(raw_BHQ, transform)
    wanted_BHQ = invert_transform(stretch(x_BHQ, quantiles, stretch_BHQ[chosen_B]), transform)
    # A value without a logarithm, or one that overflows, is left as the network had it.
    usable_BH1 = np.isfinite(wanted_BHQ).all(axis=2, keepdims=True)
    added_BHQ = np.where(usable_BH1, wanted_BHQ - raw_BHQ, 0.0)
    adjustment_BHQ[chosen_B] = _ascending(raw_BHQ, added_BHQ)
    return adjustment_BHQ


def stretch(x_BHQ: FloatArray, quantiles: Sequence[float], stretch_BHQ: FloatArray) -> FloatArray:
    """Return quantiles with their distances from the median stretched, each at least as far out as the last."""
    probability_Q = np.asarray(quantiles)
    median_BH1 = _median(x_BHQ, quantiles)
    distance_BHQ = (x_BHQ - median_BH1) * np.exp(stretch_BHQ)
    upper, lower = probability_Q > 0.5, probability_Q < 0.5
    distance_BHQ[..., upper] = np.maximum.accumulate(distance_BHQ[..., upper], axis=-1)
    distance_BHQ[..., lower] = np.minimum.accumulate(distance_BHQ[..., lower][..., ::-1], axis=-1)[..., ::-1]
    return np.where(probability_Q == 0.5, x_BHQ, median_BH1 + distance_BHQ)


def learn(
    stretch_BHQ: FloatArray,
    raw_BHQ: FloatArray,
    actual_BH: FloatArray,
    quantiles: Sequence[float],
    transform: Transform = "none",
    *,
    rate: float | FloatArray = RATE,
) -> FloatArray:
    """Return the stretch after one more actual of every forecast; a NaN teaches nothing.

    Args:
        stretch_BHQ: the stretch until now.
        raw_BHQ: the network's own quantiles, before any adjustment, in observed units.
        actual_BH: what happened.
        quantiles: the probabilities.
        transform: the model's own.
        rate: the step; see `rate_of`, or `(B, H)` of them.
    """
    probability_Q = np.asarray(quantiles)
    x_BHQ = apply_transform(raw_BHQ, transform)
    y_BH1 = apply_transform(actual_BH, transform)[..., None]
    in_force_BHQ = stretch(x_BHQ, quantiles, stretch_BHQ)
    outside_BHQ = np.where(probability_Q > 0.5, y_BH1 > in_force_BHQ, y_BH1 < in_force_BHQ)
    rate_BH1 = np.broadcast_to(rate, actual_BH.shape)[..., None]
    promised_Q = np.minimum(probability_Q, 1.0 - probability_Q)
    step_BHQ = np.where(probability_Q == 0.5, 0.0, rate_BH1 * (outside_BHQ - promised_Q))
    known_BH1 = np.isfinite(y_BH1) & np.isfinite(x_BHQ).all(axis=2, keepdims=True)
    learned: FloatArray = np.clip(stretch_BHQ + np.where(known_BH1, step_BHQ, 0.0), -LIMIT, LIMIT)
    return learned


def rate_of(ahead: FloatArray, rate: float = RATE) -> FloatArray:
    """Return the step for forecasts whose truth arrives so many cutoffs after their own.

    Errors of forecasts that overlap are alike, and what is learned comes late: the step that is best falls with
    the square root of the delay (Quanrud and Khashabi, 2015).
    """
    return rate / np.sqrt(np.maximum(ahead, 1.0))


def _median(x_BHQ: FloatArray, quantiles: Sequence[float]) -> FloatArray:
    """Return the `(B, H, 1)` median; the nearest quantile where all are on one side of it."""
    nearest = min(max(0.5, quantiles[0]), quantiles[-1])
    return interpolate_quantile(x_BHQ, quantiles, nearest)[..., None]


def _collect(adjustments: Sequence[Adjustment | None], quantiles: Sequence[float], horizon: int) -> FloatArray:
    stretch_BHQ = np.zeros((len(adjustments), horizon, len(quantiles)))
    for stretch_HQ, adjustment in zip(stretch_BHQ, adjustments, strict=True):
        if adjustment is not None and np.array_equal(adjustment.quantiles, quantiles):
            shared = min(horizon, adjustment.horizon)
            stretch_HQ[:shared] = adjustment.stretch_HQ[:shared]
    return stretch_BHQ


def _ascending(raw_BHQ: FloatArray, added_BHQ: FloatArray) -> FloatArray:
    """Return what is added such that the sums ascend as they are rounded, too."""
    added_BHQ = added_BHQ.copy()
    for q in range(1, raw_BHQ.shape[2]):
        raw_BH, floor_BH = raw_BHQ[..., q], raw_BHQ[..., q - 1] + added_BHQ[..., q - 1]
        short_BH = raw_BH + added_BHQ[..., q] < floor_BH
        # One unit of the largest number there is in the sum, or what is added would be lost in rounding.
        unit_BH = np.spacing(np.maximum(np.abs(raw_BH), np.abs(floor_BH)))
        added_BHQ[..., q] = np.where(short_BH, floor_BH - raw_BH + 2.0 * unit_BH, added_BHQ[..., q])
    return added_BHQ
