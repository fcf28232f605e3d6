"""How densities of daily returns are scored and compared; for `benchmarks.stocks`.

N shares, K test cutoffs, Q quantiles.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.report import OURS, Report, say
from training import risk
from training.confidence_set import model_confidence_set
from training.metrics import pinball
from training.significance import compare_losses, diebold_mariano
from training.skewed_t import SkewedT
from training.verdict import verdict

FloatArray = NDArray[np.float64]

QUANTILES = tuple(round(0.005 * i, 3) for i in range(1, 200))
RISKS = (0.01, 0.05)


class Said(NamedTuple):
    """What one system says of one share's next return, at each of its cutoffs, in percent."""

    quantiles_KQ: FloatArray
    variance_K: FloatArray
    density: SkewedT | None


def add_scores(report: Report, case: str, said: Mapping[str, list[Said]], actual_NK: FloatArray) -> None:
    """Add every score of every system, and how sure it is that the network differs from each other.

    Args:
        report: of the benchmark.
        case: what was asked.
        said: by system, what it said of each share.
        actual_NK: the returns that came, NaN where nobody was asked.
    """
    scored = {name: _losses(each, actual_NK) for name, each in said.items()}
    # Everyone is judged where everyone said something.
    known_NK = np.logical_and.reduce([np.isfinite(losses["CRPS"]) for losses in scored.values()])
    actual_NK = np.where(known_NK, actual_NK, np.nan)
    asked = f"{int(known_NK.any(axis=1).sum())} of {len(known_NK)} shares, {int(known_NK.sum())} forecasts"
    say(f"everyone is judged on {asked}")
    for name, losses in scored.items():
        for metric, loss_NK in losses.items():
            if np.isfinite(loss_NK[known_NK]).all():
                report.add(case, name, metric, _mean_over_shares(loss_NK, known_NK))
        _add_risk(report, case, name, said[name], actual_NK)
    _add_comparisons(report, case, scored, known_NK)
    ours = next((name for name in said if name.startswith(OURS)), None)
    if ours is not None and len(said) > 1:
        say(judge(ours, scored, said[ours], actual_NK))


def _losses(each: Sequence[Said], actual_NK: FloatArray) -> dict[str, FloatArray]:
    """Return the `(N, K)` losses of a system by score; NaN where it said nothing."""
    parts = [_losses_of_one(said, actual_K) for said, actual_K in zip(each, actual_NK, strict=True)]
    return {metric: np.stack([part[metric] for part in parts]) for metric in parts[0]}


def _losses_of_one(said: Said, actual_K: FloatArray) -> dict[str, FloatArray]:
    nothing_K, density = np.full(len(actual_K), np.nan), said.density
    each = {
        # The plain mean over the quantiles, as the protocol has it: the outermost count like the others.
        "CRPS": 2.0 * pinball(actual_K[:, None], said.quantiles_KQ[:, None], QUANTILES)[:, 0].mean(axis=-1),
        # Of the deviation from the mean that was forecast, as that makes the published figures.
        "QLIKE": risk.qlike_each(actual_K if density is None else actual_K - density.location, said.variance_K),
        "log score": nothing_K if density is None else risk.log_score_each(actual_K, density),
    }
    for p in RISKS:
        each[f"pinball {p:.0%}"] = risk.pinball_each(actual_K, said.quantiles_KQ[:, QUANTILES.index(p)], p)
    low_K, high_K = (said.quantiles_KQ[:, QUANTILES.index(p)] for p in (0.05, 0.95))
    inside_K = ((low_K <= actual_K) & (actual_K <= high_K)).astype(np.float64)
    each["coverage of the 90 % interval"] = np.where(np.isfinite(low_K), inside_K, np.nan)
    return each


def _mean_over_shares(loss_NK: FloatArray, known_NK: NDArray[np.bool_]) -> float:
    """Return the mean over shares of the mean of each."""
    asked_N = known_NK.any(axis=1)
    means_N = np.where(known_NK, loss_NK, 0.0).sum(axis=1)[asked_N] / known_NK.sum(axis=1)[asked_N]
    return float(means_N.mean())


def _add_risk(report: Report, case: str, name: str, each: Sequence[Said], actual_NK: FloatArray) -> None:
    """Add the back-tests of the value at risk: of one share their p, of several the share of those that pass."""
    for p in RISKS:
        at, column = f"VaR {p:.0%}", QUANTILES.index(p)
        hits = [
            risk.hits_below(actual_K, said.quantiles_KQ[:, column])[np.isfinite(actual_K)]
            for said, actual_K in zip(each, actual_NK, strict=True)
            if np.isfinite(actual_K).any()
        ]
        tests = {
            "Kupiec p": [risk.kupiec(hits_K, p) for hits_K in hits],
            "Christoffersen independence p": [risk.christoffersen_independence(hits_K) for hits_K in hits],
            "Christoffersen conditional p": [risk.christoffersen_conditional(hits_K, p) for hits_K in hits],
        }
        report.add(case, name, f"{at}, share of days below", float(np.mean([hits_K.mean() for hits_K in hits])))
        for title, values in tests.items():
            if len(values) == 1:
                report.add(case, name, f"{at}, {title}", values[0])
            else:
                report.add(
                    case, name, f"{at}, shares with {title} > 0.05", float(np.mean(np.array(values) > 0.05))
                )


def _add_comparisons(
    report: Report, case: str, scored: Mapping[str, Mapping[str, FloatArray]], known_NK: NDArray[np.bool_]
) -> None:
    """Add the network's p against each rival (Diebold-Mariano), and everyone's in the model confidence set."""
    ours = next((name for name in scored if name.startswith(OURS)), None)
    for metric in ("CRPS", "QLIKE"):
        losses = {name: np.where(known_NK, each[metric], np.nan) for name, each in scored.items()}
        for name, loss_NK in losses.items():
            if ours is not None and name != ours:
                report.add(case, name, f"{metric} less the network's", -_difference(losses[ours], loss_NK))
                report.add(case, name, f"{metric}, p against the network", compare(losses[ours], loss_NK))
        if len(losses) > 1:
            daily = {name: _daily_means(loss_NK) for name, loss_NK in losses.items()}
            for name, p_value in model_confidence_set(daily, alpha=0.1).p_values.items():
                report.add(case, name, f"{metric}, model confidence set p", p_value)


def judge(
    ours: str, scored: Mapping[str, Mapping[str, FloatArray]], said: Sequence[Said], actual_NK: FloatArray
) -> str:
    """Return in one sentence whether the network has skill."""
    known_NK = np.isfinite(actual_NK)
    losses = {
        metric: {name: np.where(known_NK, each[metric], np.nan).T for name, each in scored.items()}
        for metric in ("CRPS", "QLIKE")
    }
    mean_NK = np.stack([one.density.location for one in said if one.density is not None])
    found = verdict(ours, losses["CRPS"], qlike=losses["QLIKE"], returns_KN=actual_NK.T, mean_KN=mean_NK.T)
    return found.sentence


def _difference(loss_NK: FloatArray, other_NK: FloatArray) -> float:
    """Return the mean over shares of the mean difference of each."""
    difference_NK = loss_NK - other_NK
    asked_N = np.isfinite(difference_NK).any(axis=1)
    return float(np.nanmean(difference_NK[asked_N], axis=1).mean())


def compare(loss_NK: FloatArray, other_NK: FloatArray) -> float:
    """Return the two-sided p that both are equally good; days are clusters where there are several shares."""
    if len(loss_NK) == 1:
        return diebold_mariano(loss_NK[0], other_NK[0], lags=0)
    return compare_losses(loss_NK.T, other_NK.T, lags=0).two_sided


def _daily_means(loss_NK: FloatArray) -> FloatArray:
    asked_K = np.isfinite(loss_NK).any(axis=0)
    means_K = np.full(loss_NK.shape[1], np.nan)
    means_K[asked_K] = np.nanmean(loss_NK[:, asked_K], axis=0)
    return means_K
