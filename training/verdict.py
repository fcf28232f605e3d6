"""Whether a forecaster of returns has skill, in what, against whom and at what p: said in one sentence.

K cutoffs in time order, N series. A difference that chance makes as well is no skill, and is called none.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from training.risk import Direction, OutOfSample, columns, direction, r2_out_of_sample
from training.significance import compare_losses

FloatArray = NDArray[np.float64]

Aspect = Literal["distribution", "variance", "direction", "mean"]

SCORES: dict[Aspect, str] = {"distribution": "CRPS", "variance": "QLIKE"}
"""The losses by which forecasters are compared with their rivals; direction and mean are compared with none."""

ENOUGH = 50
"""Cutoffs that do not overlap, below which nothing is claimed: losses of returns have tails that no t-test bears
with fewer, and a direction is then known to 14 points at best."""


@dataclass(frozen=True)
class Finding:
    """One comparison of the candidate, with a rival or with knowing nothing."""

    aspect: Aspect
    rival: str | None
    """Whom it is compared with; none for direction (a coin, and always saying the same) and mean (zero)."""
    score: float
    """Mean CRPS or QLIKE where both are known, share of right signs, or R2."""
    other: float
    """The rival's mean loss at the same places; the share of always saying the same; 0 for the mean."""
    p_value: float
    """Two-sided by Diebold and Mariano, two-sided for the direction, and one-sided for the mean."""
    p_holm: float = 1.0
    """The same, corrected for the number of findings (Holm, 1979)."""
    better: bool = False
    """Whether the candidate is better, at a corrected p-value below alpha."""
    worse: bool = False
    """Whether a rival is better, likewise."""


@dataclass(frozen=True)
class Verdict:
    """What is said of a candidate, and the figures behind it."""

    sentence: str
    skill: tuple[Aspect, ...]
    """In what the candidate is better than every rival, or than knowing nothing."""
    findings: tuple[Finding, ...]
    direction: Direction | None
    mean: OutOfSample | None
    n_cutoffs: int
    """Cutoffs at which the candidate has a CRPS."""


def verdict(
    candidate: str,
    crps: Mapping[str, FloatArray],
    *,
    qlike: Mapping[str, FloatArray] | None = None,
    returns_KN: FloatArray | None = None,
    mean_KN: FloatArray | None = None,
    lags: int = 0,
    alpha: float = 0.05,
) -> Verdict:
    """Say whether a candidate has skill.

    Losses are compared with those of every rival by the test of Diebold and Mariano (1995) with the correction of
    Harvey, Leybourne and Newbold (1997), clustered by cutoff (`compare_losses`), two-sided; the mean by Clark and
    West (2007), which counts only with an R2 above 0; the direction by the exact binomial test against one half,
    and against always saying the same, whichever p-value is larger. That many comparisons find something by
    chance: all p-values together are corrected as Holm (1979) does, which holds however they depend on each other.

    Skill in the distribution or the variance is to be better than every rival. Being better than some is told, and
    is not called skill. Fewer than `ENOUGH` cutoffs that do not overlap tell nothing, whatever the p-values.

    Args:
        candidate: the name of the forecaster in question.
        crps: losses by name, the candidate's and its rivals', `(K,)` or `(K, N)`; NaN where there is none.
        qlike: the same of the variance; a rival, or the candidate, without one is not compared.
        returns_KN: what came, `(K,)` or `(K, N)`.
        mean_KN: the candidate's forecast means.
        lags: cutoffs whose forecasts overlap: horizon over step, less one.
        alpha: probability of any claim at all where there is nothing to be claimed.
    """
    findings = _against_rivals("distribution", candidate, crps, lags)
    findings += _against_rivals("variance", candidate, qlike or {}, lags)
    signs = explained = None
    if returns_KN is not None and mean_KN is not None:
        signs, explained = direction(returns_KN, mean_KN, lags), r2_out_of_sample(returns_KN, mean_KN, lags)
        findings += [_of_direction(signs), _of_mean(explained)]
    n_cutoffs = int(np.isfinite(columns(crps[candidate])).any(axis=1).sum())
    enough = n_cutoffs // (lags + 1) >= ENOUGH
    found = _corrected(findings, alpha if enough else 0.0)
    groups = [[f for f in found if f.aspect == a] for a in ("distribution", "variance", "direction", "mean")]
    groups = [group for group in groups if group]
    skill = tuple(group[0].aspect for group in groups if all(f.better for f in group))
    sentence = _sentence(groups, signs, n_cutoffs) if enough else _too_few(n_cutoffs, lags)
    return Verdict(sentence, skill, tuple(found), signs, explained, n_cutoffs)


def _against_rivals(aspect: Aspect, candidate: str, losses: Mapping[str, FloatArray], lags: int) -> list[Finding]:
    """Compare with every rival that has a loss where the candidate has one."""
    if candidate not in losses:
        return []
    found = [_compare(aspect, losses[candidate], name, losses[name], lags) for name in losses if name != candidate]
    return [finding for finding in found if not math.isnan(finding.score)]


def _compare(aspect: Aspect, own: FloatArray, rival: str, other: FloatArray, lags: int) -> Finding:
    own_KN, other_KN = columns(own), columns(other)
    unknown_KN = np.isnan(own_KN) | np.isnan(other_KN)
    own_KN, other_KN = np.where(unknown_KN, np.nan, own_KN), np.where(unknown_KN, np.nan, other_KN)
    score, rivals = _mean_of_cutoffs(own_KN), _mean_of_cutoffs(other_KN)
    # An infinite loss is in no test: the candidate's would be forgotten, and must not be.
    p_value = 1.0 if math.isinf(score) else compare_losses(own_KN, other_KN, lags).two_sided
    return Finding(aspect, rival, score, rivals, p_value)


def _of_direction(signs: Direction) -> Finding:
    p_value = 1.0 if signs.n == 0 else max(signs.p_half, signs.p_always)
    return Finding("direction", None, signs.share, signs.always, p_value)


def _of_mean(explained: OutOfSample) -> Finding:
    p_value = 1.0 if math.isnan(explained.p_value) else explained.p_value
    return Finding("mean", None, explained.r2, 0.0, p_value)


def _corrected(findings: Sequence[Finding], alpha: float) -> list[Finding]:
    """Return the findings with Holm's p-values and what they allow to be said."""
    p_holm = holm([finding.p_value for finding in findings])
    return [_judged(replace(f, p_holm=p), alpha) for f, p in zip(findings, p_holm, strict=True)]


def _judged(finding: Finding, alpha: float) -> Finding:
    sure = finding.p_holm < alpha
    if finding.aspect == "direction":
        return replace(finding, better=sure and finding.score > max(0.5, finding.other))
    if finding.aspect == "mean":
        return replace(finding, better=sure and finding.score > 0)
    return replace(
        finding, better=sure and finding.score < finding.other, worse=sure and finding.score > finding.other
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number (Holm, 1979): the smallest times all, the next by one fewer."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    corrected, least = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        least = min(1.0, max(least, p_values[i] * (len(p_values) - rank)))
        corrected[i] = least
    return corrected


def _sentence(groups: Sequence[Sequence[Finding]], signs: Direction | None, n_cutoffs: int) -> str:
    none = [_none(group, signs) for group in groups if not any(f.better for f in group)]
    some = [_some(group) for group in groups if any(f.better for f in group) and not all(f.better for f in group)]
    full = [_full(group, signs) for group in groups if all(f.better for f in group)]
    parts = [f"no skill in {_listed(none, 'or')}"] if none else []
    parts += [f"no skill over all rivals in {_listed(some, 'or')}"] if some else []
    parts += [f"skill in {_listed(full, 'and')}"] if full else []
    text = "; ".join(parts) if parts else "nothing was compared"
    n = sum(len(group) for group in groups)
    return f"{text[0].upper()}{text[1:]} ({n_cutoffs} cutoffs; p by Holm over {_count(n, 'comparison')})."


def _too_few(n_cutoffs: int, lags: int) -> str:
    apart = f", of which {n_cutoffs // (lags + 1)} do not overlap" if lags else ""
    return f"Nothing can be told from {_count(n_cutoffs, 'cutoff')}{apart}: it takes {ENOUGH} that do not overlap."


def _none(group: Sequence[Finding], signs: Direction | None) -> str:
    """Say what was compared without finding any advantage, and where a rival is better."""
    first = group[0]
    if first.rival is None:
        return _alone(first, signs)
    best = _best_rival(group)
    worse = f", which is better, {_p(best.p_holm)}" if best.worse else f", {_p(best.p_holm)}"
    return f"the {first.aspect} ({_scores(best)}{worse})"


def _some(group: Sequence[Finding]) -> str:
    beaten = [f for f in group if f.better]
    best = _best_rival([f for f in group if not f.better])
    names, p = _listed([str(f.rival) for f in beaten], "and"), _p(max(f.p_holm for f in beaten))
    other = "which is better" if best.worse else "which it cannot be told from"
    return f"the {best.aspect} (better than {names}, {p}, but {_scores(best)}, {other}, {_p(best.p_holm)})"


def _full(group: Sequence[Finding], signs: Direction | None) -> str:
    """Say against whom: the best rival, at the largest of the p-values, as all rivals must be beaten."""
    if group[0].rival is None:
        return _alone(group[0], signs)
    rivals = f", the best of {len(group)} rivals" if len(group) > 1 else ""
    p_value = _p(max(f.p_holm for f in group))
    return f"the {group[0].aspect} ({_scores(_best_rival(group))}{rivals}, {p_value})"


def _alone(finding: Finding, signs: Direction | None) -> str:
    if math.isnan(finding.score) or signs is None:
        return f"{finding.aspect} (none was forecast)"
    if finding.aspect == "mean":
        return f"mean (R2 {finding.score:.4f} against zero, {_p(finding.p_holm)})"
    habit = f"; always the same sign {100 * signs.always:.1f} %" if signs.always > 0.5 else ""
    interval = f"95 % interval {100 * signs.low:.1f} to {100 * signs.high:.1f}"
    return f"direction ({100 * signs.share:.1f} %, {interval}{habit}, {_p(finding.p_holm)})"


def _best_rival(group: Sequence[Finding]) -> Finding:
    """Return the comparison with the rival that gains most on the candidate, each where both are known."""
    return min(group, key=lambda f: 0.0 if math.isinf(f.score) else f.other - f.score)


def _scores(finding: Finding) -> str:
    return f"{SCORES[finding.aspect]} {finding.score:.4f} against {finding.other:.4f} of {finding.rival}"


def _p(p_value: float) -> str:
    if p_value < 0.001:
        return "p<0.001"
    return f"p={p_value:.3f}" if p_value < 0.1 else f"p={p_value:.2f}"


def _count(n: int, word: str) -> str:
    return f"{n} {word}" if n == 1 else f"{n} {word}s"


def _listed(parts: Sequence[str], word: str) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} {word} {parts[-1]}"


def _mean_of_cutoffs(loss_KN: FloatArray) -> float:
    """Return the mean of each cutoff's mean: each counts alike, as in the test."""
    known_KN = ~np.isnan(loss_KN)
    known_K = known_KN.any(axis=1)
    if not known_K.any():
        return math.nan
    total_K = np.where(known_KN, loss_KN, 0.0)[known_K].sum(axis=1)
    return float((total_K / known_KN[known_K].sum(axis=1)).mean())
