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

    Who has no finite score loses: a challenger stays out, and a champion or a baseline stops nobody.

    Args:
        challenger: the best candidate of this training.
        champion: the model in use, asked at the same cutoffs; None where there is none to compare with.
        seasonal_naive: the baseline no model may fall behind.
        gate: the metric, and the level at which the reason calls a difference significant.
        lags: neighbouring cutoffs whose forecasts overlap.
    """
    asked = f"{gate.metric} on {len(challenger.losses_K)} cutoffs"
    if not math.isfinite(challenger.score):
        return Decision(promote=False, reason=f"{asked}: {challenger.name} has no finite score")
    rival = _compare(challenger, seasonal_naive, gate, lags)
    if challenger.score >= seasonal_naive.score:
        return Decision(promote=False, reason=f"{asked}: {rival}; no skill")
    if champion is None:
        return Decision(promote=True, reason=f"{asked}: {rival}; no champion to compare with")
    against = _compare(challenger, champion, gate, lags)
    if challenger.score > champion.score:
        return Decision(promote=False, reason=f"{asked}: {against}; worse than the champion")
    return Decision(promote=True, reason=f"{asked}: {against}; {rival}")


def _compare(challenger: Evidence, rival: Evidence, gate: GateConfig, lags: int) -> str:
    """Write both scores and whether they differ by more than chance."""
    if not math.isfinite(rival.score):
        return f"{challenger.name} {challenger.score:.4g}, {rival.name} has no finite score"
    sign = "<" if challenger.score < rival.score else "=" if challenger.score == rival.score else ">"
    scores = f"{challenger.name} {challenger.score:.4g} {sign} {rival.name} {rival.score:.4g}"
    if sign == "=":
        return scores
    p_value = diebold_mariano(np.array(challenger.losses_K), np.array(rival.losses_K), lags)
    certainty = "significant" if p_value < gate.alpha else "not significant"
    return f"{scores} ({certainty} at {gate.alpha:g}, p={p_value:.2g})"
