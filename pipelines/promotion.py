"""The gate: whether a challenger becomes the champion, and why. Pure: numbers in, decision out.

A challenger is judged in its backtest (`decide`), and where that is not enough, or to make sure of it, by what it
and the champion forecast live at the same cutoffs (`judge_trial`, `judge_watch`). docs/promotion.md has the rule
in words, and how often it errs.

K test cutoffs, the same for everyone compared; N series.
"""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from training.job import GateConfig
from training.significance import Comparison, betting_evidence, compare_losses

FloatArray = NDArray[np.float64]
Action = Literal["promote", "shadow", "keep", "rollback"]
Kind = Literal["first", "new", "refresh"]

VERDICTS: dict[str, str] = {
    "promote": "promoted",
    "shadow": "in the shadow",
    "keep": "not promoted",
    "rollback": "rolled back",
}
"""What the tags and the log call each action."""


@dataclass(frozen=True, eq=False)
class Evidence:
    """What a forecaster showed on the test cutoffs."""

    name: str
    score: float
    """The gate's metric over all cutoffs; lower is better."""
    losses_KN: FloatArray
    """Its loss at each cutoff, in time order, and series; NaN where there is none."""


@dataclass(frozen=True)
class Account:
    """What was spent of alpha before this look; from the recorded decisions."""

    looks: int = 0
    """Challengers of the same kind judged before, since the account was opened."""
    promotions: int = 0
    """How many of them were promoted on evidence."""

    def level(self, gate: GateConfig) -> float:
        """Return the level of the next look: the harmonic share of alpha, times one more than the promotions.

        Levels by number of discovery (LOND: Javanmard and Montanari, 2018). The shares of all looks add up to one,
        so that while nothing deserves promotion the chance that anything is promoted is at most alpha, however the
        looks depend on each other (the union bound). Once challengers do deserve it, the share of undeserved ones
        among those promoted is expected to be at most alpha, for looks that depend on each other positively, as
        those at overlapping test blocks do (Zrnic, Ramdas and Jordan, 2021).
        """
        shares = sum(1.0 / look for look in range(1, gate.looks + 1))
        return gate.alpha * (self.promotions + 1) / ((self.looks + 1) * shares)


@dataclass(frozen=True)
class Decision:
    """What was decided, the sentence that says why, and the numbers behind it."""

    action: Action
    reason: str
    numbers: dict[str, Any] = field(default_factory=dict)

    @property
    def promote(self) -> bool:
        """Return whether the challenger becomes the champion."""
        return self.action == "promote"


def decide(
    challenger: Evidence,
    champion: Evidence | None,
    seasonal_naive: Evidence,
    gate: GateConfig,
    *,
    lags: int,
    refresh: bool = False,
    account: Account | None = None,
    meeting: Evidence | None = None,
) -> Decision:
    """Promote a challenger that beats the seasonal naive, and of which it is shown that it beats the champion.

    A refresh, the champion's own configuration trained on newer data, need only be shown to be not worse by more
    than the margin. Half of the look's level is spent here; the other half is for the trial in the shadow, where
    a challenger goes that may well be better but lacks evidence. Who has no finite score loses: a challenger stays
    out, and a champion or a baseline stops nobody.

    Args:
        challenger: the best candidate of this training.
        champion: the model in use, asked at the same cutoffs; None where there is none to compare with.
        seasonal_naive: the baseline no model may fall behind.
        gate: the metric, alpha, the margin, and the looks that share alpha.
        lags: neighbouring cutoffs whose forecasts overlap.
        refresh: whether the challenger is the champion's configuration trained anew.
        account: the looks before this one, of the same kind.
        meeting: what the challenger showed where the champion was asked; default everywhere. A champion has
            learned from what the earlier folds of a walk-forward are tested on.
    """
    case = _Case(challenger, champion, seasonal_naive, gate, lags, refresh, account or Account(), meeting)
    found = compare_losses(challenger.losses_KN, seasonal_naive.losses_KN, lags)
    case.numbers["p_value_seasonal_naive"] = found.p_value
    if not math.isfinite(challenger.score):
        return case.conclude("keep", f"{challenger.name} has no finite score")
    skill = _skill(challenger, seasonal_naive, found, gate)
    if challenger.score >= seasonal_naive.score:
        return case.conclude("keep", f"{skill}; no skill")
    if champion is None:
        return case.conclude("promote", f"{skill}; no champion to compare with")
    if not math.isfinite(champion.score):
        return case.conclude("promote", f"{champion.name} has no finite score; {skill}")
    return _refresh(case, champion, skill) if refresh else _succeed(case, champion, skill)


class _Case:
    """A challenger before the gate, and what is noted of it."""

    def __init__(
        self,
        challenger: Evidence,
        champion: Evidence | None,
        seasonal_naive: Evidence,
        gate: GateConfig,
        lags: int,
        refresh: bool,
        account: Account,
        meeting: Evidence | None,
    ) -> None:
        self.met = meeting or challenger
        self.challenger, self.gate, self.lags, self.account = challenger, gate, lags, account
        self.level = account.level(gate) / 2
        rivals = {"challenger": challenger, "champion": champion, "seasonal_naive": seasonal_naive}
        known = champion is not None and math.isfinite(champion.score)
        apart = {} if meeting is None else {"met": {"score": meeting.score, "cutoffs": len(meeting.losses_KN)}}
        self.numbers: dict[str, Any] = {
            "kind": ("refresh" if refresh else "new") if known else "first",
            "metric": gate.metric,
            "alpha": gate.alpha,
            "lags": lags,
            "cutoffs": len(challenger.losses_KN),
            "scores": {role: finite(rival.score) for role, rival in rivals.items() if rival is not None},
            **apart,
        }
        if known:
            # Whoever stands before a champion has taken a look at it, however it ends.
            self.numbers |= {"look": account.looks + 1, "promotions": account.promotions, "level": self.level}

    def conclude(self, action: Action, why: str) -> Decision:
        return Decision(action, f"{self.gate.metric} on {self.numbers['cutoffs']} cutoffs: {why}", self.numbers)

    def compare(self, champion: Evidence, share: float = 0.0) -> tuple[Comparison, float, str]:
        """Test against the champion; return what was found, the margin, and the sentence for the reason."""
        margin = share * _mean(champion.losses_KN) if share else 0.0
        found = compare_losses(self.met.losses_KN, champion.losses_KN, self.lags, margin)
        self.numbers |= {
            "p_value": found.p_value,
            "difference": finite(found.difference),
            "standard_error": finite(found.standard_error),
            "series": found.n_series,
            "margin": share,
            "trial_level": self.level,
        }
        proof = f"p={found.p_value:.2g}, level {self.level:.2g} at look {self.account.looks + 1}"
        return found, margin, f"{_scores(self.met, champion)} ({proof})"


def _succeed(case: _Case, champion: Evidence, skill: str) -> Decision:
    """Judge whether a challenger of another make is better than the champion."""
    found, _, told = case.compare(champion)
    if case.met.score > champion.score or found.difference > 0:
        return case.conclude("keep", f"{told}; worse than the champion")
    if found.difference == 0:
        return case.conclude("keep", f"{told}; no better than the champion")
    if found.p_value < case.level:
        return case.conclude("promote", f"{told}; {skill}")
    return case.conclude("shadow", f"{told}; better than the champion, but not enough evidence")


def _refresh(case: _Case, champion: Evidence, skill: str) -> Decision:
    """Judge whether the champion's configuration trained anew is not worse by more than the margin."""
    found, margin, told = case.compare(champion, margin_of(case.gate))
    told, within = f"refresh, {told}", f"the margin of {100 * case.gate.margin:g} %"
    if not found.difference <= margin:
        return case.conclude("keep", f"{told}; worse than the champion by more than {within}")
    if found.p_value < case.level:
        return case.conclude("promote", f"{told}; not worse by {within}; {skill}")
    return case.conclude("shadow", f"{told}; not shown to be within {within}")


def margin_of(gate: GateConfig) -> float:
    """Return the margin as a share of the losses compared, which are squares where the metric is their root."""
    return (1.0 + gate.margin) ** 2 - 1.0 if gate.metric in ("rmse", "rmsse") else gate.margin


def _scores(challenger: Evidence, rival: Evidence) -> str:
    sign = "<" if challenger.score < rival.score else "=" if challenger.score == rival.score else ">"
    return f"{challenger.name} {challenger.score:.4g} {sign} {rival.name} {rival.score:.4g}"


def _skill(challenger: Evidence, naive: Evidence, found: Comparison, gate: GateConfig) -> str:
    """Write both scores, and how sure it is that the challenger is better than the baseline."""
    if not math.isfinite(naive.score):
        return f"{challenger.name} {challenger.score:.4g}, {naive.name} has no finite score"
    scores = _scores(challenger, naive)
    if challenger.score >= naive.score:
        return scores
    if found.p_value < gate.alpha:
        return f"{scores} (significant at {gate.alpha:g}, p={found.p_value:.2g})"
    return f"{scores} (weak evidence, not significant at {gate.alpha:g}, p={found.p_value:.2g})"


def _mean(losses_KN: FloatArray) -> float:
    """Return the mean loss, every cutoff counting alike."""
    known_KN = np.isfinite(losses_KN)
    counts_K = known_KN.sum(axis=1)
    sums_K = np.where(known_KN, losses_KN, 0.0).sum(axis=1)
    return float((sums_K[counts_K > 0] / counts_K[counts_K > 0]).mean()) if counts_K.any() else math.nan


def finite(value: float) -> float | None:
    """Return a number as JSON can hold it."""
    return value if math.isfinite(value) else None


@dataclass(frozen=True, eq=False)
class Live:
    """What two versions' forecasts at the same cutoffs turned out to be worth, in time order."""

    challenger: str
    champion: str
    challenger_K: FloatArray
    champion_K: FloatArray
    lags: int
    """Cutoffs that lie within the horizon of one before them."""


def judge_trial(live: Live, *, level: float, most: int, margin: float = 0.0) -> Decision:
    """Judge a challenger in the shadow by its live losses; to be asked again after every cutoff.

    Promote when the evidence reaches one over the level; give up when it has not after so many cutoffs, or when
    there is that much evidence of the contrary; else go on. The evidence is about the typical cutoff, so the mean
    loss has to agree: who is a little better mostly and terrible at times is not promoted.

    Args:
        live: the losses so far.
        level: the chance that a challenger no better than the champion is promoted.
        most: cutoffs that do not overlap, after which a trial without evidence ends.
        margin: share of the champion's loss by which a refresh may be worse.
    """
    better = _evidence(live.challenger_K, live.champion_K, live.lags, margin)
    worse = _evidence(live.champion_K, live.challenger_K, live.lags)
    challenger, champion = _means(live)
    told, numbers = _told(live, better, level), _numbers(live, better, level, most)
    numbers |= {"evidence_of_worse": worse, "margin": margin}
    if better >= 1.0 / level and challenger <= (1.0 + margin) * champion:
        proven = f"not worse by the margin of {100 * margin:g} %" if margin else "better"
        return Decision("promote", f"{told}; {proven} live", numbers)
    if worse >= 1.0 / level and challenger > champion:
        return Decision("keep", f"{told}; worse live", numbers)
    if len(live.challenger_K) >= most * (live.lags + 1):
        return Decision("keep", f"{told}; the trial is over", numbers)
    return Decision("shadow", f"{told}; the trial goes on", numbers)


def judge_watch(live: Live, *, level: float, most: int) -> Decision:
    """Judge a new champion by its live losses beside those of the one before it, which forecasts in the shadow.

    Args:
        live: the losses so far; `challenger` is the champion before.
        level: the chance that a champion which is not worse is rolled back.
        most: cutoffs that do not overlap, after which the new champion is kept for good.
    """
    better = _evidence(live.challenger_K, live.champion_K, live.lags)
    before, champion = _means(live)
    told, numbers = _told(live, better, level), _numbers(live, better, level, most)
    if better >= 1.0 / level and before < champion:
        return Decision("rollback", f"{told}; the new champion is worse live", numbers)
    if len(live.challenger_K) >= most * (live.lags + 1):
        return Decision("keep", f"{told}; the new champion is not shown to be worse", numbers)
    return Decision("shadow", f"{told}; the watch goes on", numbers)


def _evidence(loss_K: FloatArray, other_K: FloatArray, lags: int, margin: float = 0.0) -> float:
    return float(betting_evidence(loss_K, other_K, lags, margin)[-1]) if len(loss_K) else 1.0


def _means(live: Live) -> tuple[float, float]:
    if not len(live.challenger_K):
        return math.nan, math.nan
    return float(np.mean(live.challenger_K)), float(np.mean(live.champion_K))


def _told(live: Live, evidence: float, level: float) -> str:
    challenger, champion = _means(live)
    scores = f"{live.challenger} {challenger:.4g}, {live.champion} {champion:.4g}"
    return f"{len(live.challenger_K)} live cutoffs: {scores} (evidence {evidence:.3g} of {1.0 / level:.3g})"


def _numbers(live: Live, evidence: float, level: float, most: int) -> dict[str, Any]:
    challenger, champion = _means(live)
    return {
        "cutoffs": len(live.challenger_K),
        "lags": live.lags,
        "scores": {live.challenger: finite(challenger), live.champion: finite(champion)},
        "evidence": evidence,
        "needed": 1.0 / level,
        "level": level,
        "most": most,
    }
