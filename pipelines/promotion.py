"""The gate: whether a challenger becomes the champion, and why. Pure: numbers in, decision out.

K test cutoffs, the same for everyone compared.
"""

import math
from dataclasses import dataclass

import numpy as np

from training.job import GateConfig
from training.significance import diebold_mariano


@dataclass(frozen=True)
class Evidence:
    """What a forecaster showed on the test cutoffs."""

    name: str
    score: float
    """The gate's metric over all cutoffs; lower is better."""
    losses_K: tuple[float, ...]
    """Its loss at each cutoff, in time order."""


@dataclass(frozen=True)
class Decision:
    """What the gate decided, and the sentence that says why."""

    promote: bool
    reason: str


def decide(
    challenger: Evidence, champion: Evidence | None, seasonal_naive: Evidence, gate: GateConfig, *, lags: int
) -> Decision:
    """Promote a challenger that beats the seasonal naive and is not worse than the champion.

    Args:
        challenger: the best candidate of this training.
        champion: the model in use, asked at the same cutoffs; None where there is none to compare with.
        seasonal_naive: the baseline no model may fall behind.
        gate: the metric, and the level at which the reason calls a difference significant.
        lags: neighbouring cutoffs whose forecasts overlap.
    """
    metric = gate.metric
    if not math.isfinite(challenger.score):
        return Decision(promote=False, reason=f"{challenger.name} has no finite {metric} on the test cutoffs")
    cutoffs = f"{len(challenger.losses_K)} cutoffs"
    rival = _compare(challenger, seasonal_naive, gate, lags)
    if not challenger.score < seasonal_naive.score:
        return Decision(promote=False, reason=f"{metric} {rival} on {cutoffs}: no skill, not promoted")
    if champion is None:
        return Decision(
            promote=True, reason=f"{metric} {rival} on {cutoffs}; there is no champion to compare with"
        )
    against = _compare(challenger, champion, gate, lags)
    promote = challenger.score <= champion.score
    verdict = "promoted" if promote else "the champion stays"
    return Decision(promote=promote, reason=f"{metric} {against} and {rival} on {cutoffs}: {verdict}")


def _compare(challenger: Evidence, rival: Evidence, gate: GateConfig, lags: int) -> str:
    """Write both scores and whether they differ by more than chance."""
    p_value = diebold_mariano(np.array(challenger.losses_K), np.array(rival.losses_K), lags)
    sign = "<" if challenger.score < rival.score else "=" if challenger.score == rival.score else ">"
    certainty = "significant" if p_value < gate.alpha else "not significant"
    return (
        f"{challenger.score:.4g} ({challenger.name}) {sign} {rival.score:.4g} ({rival.name}), "
        f"{certainty} at {gate.alpha:g} (p={p_value:.2g})"
    )
