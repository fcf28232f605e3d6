"""What forecasts of returns are worth at the next step: variance, tails, direction, calibration; and beside whom.

K cutoffs in time order, N series, B forecasts (a series and a cutoff each), Q quantiles. Returns are in percent.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from forecasting.errors import InputError
from forecasting.forecaster import interpolate_quantile, mean_weights
from forecasting.transforms import apply_transform
from training import risk
from training.backtest import Backtest
from training.econometrics import RivalForecast
from training.garch import VARIANCE_FLOOR
from training.skewed_t import SkewedT

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

ROUNDING = 1e-9
"""Returns, in percent, smaller than what is lost on the way to a price and back."""

TAILS = {1: 0.01, 5: 0.05}
"""The probabilities of the values at risk that are scored, by their percent."""


@dataclass(frozen=True, eq=False)
class NextStep:
    """What a forecaster said of the next return of each series at each cutoff, and what came; NaN for none."""

    cutoffs_K: IntArray
    r_KN: FloatArray
    quantiles_KNQ: FloatArray
    probabilities: tuple[float, ...]
    variance_KN: FloatArray
    density: SkewedT | None
    """Where the forecaster tells one; its fields are `(K, N)`."""

    @cached_property
    def mean(self) -> FloatArray:
        """Return the `(K, N)` mean of what was forecast; rounding of none is none, and has no direction."""
        mean_KN = self.quantiles_KNQ @ mean_weights(self.probabilities)
        return np.where(np.abs(mean_KN) < ROUNDING, 0.0, mean_KN)

    @cached_property
    def pit(self) -> FloatArray:
        """Return the `(K, N)` probability at which each return lay in what was forecast."""
        by_series = [
            risk.pit_of_quantiles(self.r_KN[:, n], self.quantiles_KNQ[:, n], self.probabilities)
            for n in range(self.r_KN.shape[1])
        ]
        return np.stack(by_series, axis=1)

    def value_at_risk(self, p: float) -> FloatArray | None:
        """Return the `(K, N)` quantile of a probability; None where the trained quantiles do not reach it."""
        if not self.probabilities[0] - 1e-9 <= p <= self.probabilities[-1] + 1e-9:
            return None
        return interpolate_quantile(self.quantiles_KNQ, self.probabilities, p)


def next_step(test: Backtest, forecast: RivalForecast | None = None) -> NextStep:
    """Lay out what a backtest of prices said of the next returns.

    Args:
        test: with transform log_return.
        forecast: the rival's own answers to the same questions. Where there is none, the density is the one the
            backtest has, and the variance that of the density; without one, that of the quantiles.
    """
    if test.spec.transform != "log_return":
        raise InputError("returns are scored of jobs with transform log_return")
    cutoffs_K, k_B = np.unique(test.cutoff_B, return_inverse=True)

    def lay_out(values_B: FloatArray) -> FloatArray:
        laid_out = np.full((len(cutoffs_K), test.panel.n_series, *values_B.shape[1:]), np.nan)
        laid_out[k_B, test.series_B] = values_B
        return laid_out

    last_B = apply_transform(test.panel.y_NT[test.series_B, test.cutoff_B], "log_return")
    r_B = apply_transform(test.actual_BH[:, 0], "log_return") - last_B
    quantiles_BQ = apply_transform(test.quantiles_BHQ[:, 0], "log_return") - last_B[:, None]
    density = test.first_B if forecast is None else forecast.first
    if forecast is not None:
        variance_B = forecast.variance_KH[:, 0]
    elif density is not None:
        variance_B = density.scale**2
    else:
        variance_B = variance_of_quantiles(quantiles_BQ, test.spec.quantiles)
    # As that of rivals: where a share stands still, the one without a floor would win or lose by infinity.
    variance_B = np.maximum(variance_B, VARIANCE_FLOOR)
    return NextStep(
        cutoffs_K,
        lay_out(r_B),
        lay_out(quantiles_BQ),
        test.spec.quantiles,
        lay_out(variance_B),
        None if density is None else SkewedT(*map(lay_out, density)),
    )


def variance_of_quantiles(quantiles_BQ: FloatArray, probabilities: tuple[float, ...]) -> FloatArray:
    """Return the variance of the distribution that quantiles describe.

    Linear between two quantiles, with exponential tails beyond the outermost that go on with the density the last
    two have between them: the distribution `risk.pit_of_quantiles` reads probabilities from.
    """
    q = np.asarray(probabilities)
    left_BQ, right_BQ, share_Q = quantiles_BQ[:, :-1], quantiles_BQ[:, 1:], np.diff(q)
    mean_B = (left_BQ + right_BQ) / 2 @ share_Q
    square_B = (left_BQ**2 + left_BQ * right_BQ + right_BQ**2) / 3 @ share_Q
    for outermost, inner, beyond, between in (
        (quantiles_BQ[:, 0], quantiles_BQ[:, 1], q[0], share_Q[0]),
        (quantiles_BQ[:, -1], quantiles_BQ[:, -2], 1 - q[-1], share_Q[-1]),
    ):
        # Signed: the tail leads away from the middle.
        spread_B = (outermost - inner) * beyond / between
        mean_B = mean_B + beyond * (outermost + spread_B)
        square_B = square_B + beyond * (outermost**2 + 2 * outermost * spread_B + 2 * spread_B**2)
    variance_B: FloatArray = np.maximum(square_B - mean_B**2, 0.0)
    return variance_B


def return_scores(step: NextStep) -> dict[str, float]:
    """Return the scores of a forecaster's next returns, by their names in MLflow.

    Losses (smaller is better): `qlike`, `pinball_1`, `pinball_5`, and `log_score` where a density is told. Shares:
    `hits_1`, `hits_5` of returns below the value at risk; `direction` of right signs, with its 95 % interval. `r2`
    is against a forecast of zero. P-values, small where something is wrong: `kupiec_1` (too many hits or too few),
    `christoffersen_1` (that, or clusters of them), and at 5 %; `berkowitz` of all probabilities. Each is for the
    worst of the series, corrected for their number. What the quantiles do not reach has no score.
    """
    direction = risk.direction(step.r_KN, step.mean)
    scores = {
        "qlike": risk.qlike(step.r_KN, step.variance_KN),
        "r2": risk.r2_out_of_sample(step.r_KN, step.mean).r2,
        "direction": direction.share,
        "direction_low": direction.low,
        "direction_high": direction.high,
        "berkowitz": _worst(risk.berkowitz, step.pit),
    }
    if step.density is not None:
        scores["log_score"] = risk.log_score(step.r_KN, step.density)
    for percent, p in TAILS.items():
        quantile_KN = step.value_at_risk(p)
        if quantile_KN is not None:
            scores |= _tail_scores(step.r_KN, quantile_KN, percent, p)
    return scores


def _tail_scores(r_KN: FloatArray, quantile_KN: FloatArray, percent: int, p: float) -> dict[str, float]:
    hits_KN = risk.hits_below(r_KN, quantile_KN)
    known = np.isfinite(hits_KN)
    return {
        f"pinball_{percent}": risk.pinball_at(r_KN, quantile_KN, p),
        f"hits_{percent}": float(hits_KN[known].mean()) if known.any() else math.nan,
        f"kupiec_{percent}": _worst(lambda hits_K: risk.kupiec(hits_K, p), hits_KN),
        f"christoffersen_{percent}": _worst(lambda hits_K: risk.christoffersen_conditional(hits_K, p), hits_KN),
    }


def _worst(test: Callable[[FloatArray], float], values_KN: FloatArray) -> float:
    """Return the least p-value of any series, times their number (Bonferroni): shares fall on the same days."""
    found = [test(values_KN[:, n]) for n in range(values_KN.shape[1])]
    known = [p for p in found if math.isfinite(p)]
    return min(1.0, len(known) * min(known)) if known else math.nan


def qlike_by_series(step: NextStep) -> FloatArray:
    """Return the `(K, N)` QLIKE of each forecast."""
    return risk.qlike_each(step.r_KN, step.variance_KN)


def mean_by_cutoff(loss_KN: FloatArray) -> FloatArray:
    """Return the `(K,)` mean loss over the series at each cutoff; NaN where there is none."""
    known_KN = np.isfinite(loss_KN)
    total_K = np.where(known_KN, loss_KN, 0.0).sum(axis=1)
    return np.where(known_KN.any(axis=1), total_K / np.maximum(known_KN.sum(axis=1), 1), np.nan)
