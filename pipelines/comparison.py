"""Comparison: every forecaster that was fitted, and the champion, asked the same questions of the test block.

K test cutoffs, N series.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple, TypedDict

import numpy as np
from numpy.typing import NDArray

from forecasting.errors import TrainingError
from pipelines.asking import ask, backtest_of, chosen_backtest, whole_backtest
from pipelines.champion import Champion, is_refresh, load_champion
from pipelines.fanout import map_tasks
from pipelines.fitting import Fitted
from pipelines.promotion import Evidence
from pipelines.report import Reporter
from pipelines.returns import Returns, against, beside_rivals, compare_returns
from pipelines.run import Run
from training.backtest import Backtest, validation_cutoffs
from training.density_figures import draw_returns

LOSSES = "losses.npz"
CHOSEN = "chosen by fold"
"""Who was the best candidate on the validation block of each fold, where that was not always the same."""

FloatArray = NDArray[np.float64]


class Shown(NamedTuple):
    """What one forecaster showed in the backtest."""

    scores: dict[str, float]
    validation: tuple[dict[str, float], ...]
    """By fold."""
    tested_KN: FloatArray
    """The gate metric by test cutoff and series."""


class Report(TypedDict):
    """What the backtest found; plain data, so that a scheduler can remember it."""

    best: str
    """The candidate with the best gate metric on the validation block; of several folds, on the last one's."""
    judged: str
    """Whose scores the gate takes for the best's: its own, or where folds chose otherwise, who was chosen."""
    champion: str | None
    """The champion's name, where there was one to compare with."""
    champion_version: str | None
    """The champion there was, compared with or not."""
    refresh: bool
    """Whether the best is the champion's configuration trained anew."""
    not_compared: str | None
    """Why a champion there is was not compared with."""
    scores: dict[str, dict[str, float]]
    validation: dict[str, dict[str, float]]
    """Of the last fold."""
    met: dict[str, float]
    """The gate metric of the best and of the champion where they met: on the last of several folds."""
    history_needed: int
    """Steps of history before a cutoff that was asked."""
    rivals: list[str]
    """The econometric rivals that answered; they have rows in `scores`, and are never published."""
    verdict: str | None
    """Of a job with transform log_return: whether there is skill, in what, against whom."""


def backtest_all(run: Run, fitted: Sequence[Fitted]) -> Report:
    """Backtest every artefact that was fitted, and the champion, at the same cutoffs; choose by validation."""
    metric = run.job.gate.metric
    champion = load_champion(run)
    # Everyone answers the same questions: those that leave the longest window, the champion's included, filled.
    needed = max(run.history_needed, champion.input_size)
    asked = run if run.settings.in_turn else run.elsewhere
    tasks = {f["name"]: (asked, f, needed) for f in _usable(run, fitted)}
    shown = map_tasks(show_forecaster, tasks, run.settings, run.reporter, aloud=False)
    scores = {name: one.scores for name, one in shown.items()}
    tested = {name: one.tested_KN for name, one in shown.items()}
    for f in fitted:
        if f["run_id"] is not None:
            run.tracker.log_skill(f["run_id"], scores[f["name"]], scores["seasonal_naive"])
    chosen = _choose(run, shown)
    best = judged = chosen[-1]
    if len(set(chosen)) > 1:
        judged, test = CHOSEN, chosen_backtest(run, chosen, needed)
        scores[judged], tested[judged] = test.scores(), test.loss_by_series(metric)
    met = _meet_champion(run, champion, best, needed, scores, tested)
    returns = _compare_returns(run, fitted, chosen, needed, champion, scores)
    _save_losses(run, {name: tested[name] for name in {best, judged, "seasonal_naive", champion.name} if name})
    return {
        "best": best,
        "judged": judged,
        "champion": champion.name if champion.forecaster is not None else None,
        "champion_version": champion.version,
        "refresh": is_refresh(run, best, champion),
        "not_compared": champion.why_not,
        "scores": scores,
        "validation": {name: one.validation[-1] for name, one in shown.items()},
        "met": met,
        "history_needed": needed,
        "rivals": returns.rivals if returns else [],
        "verdict": returns.verdict if returns else None,
    }


def _compare_returns(
    run: Run,
    fitted: Sequence[Fitted],
    chosen: Sequence[str],
    needed: int,
    champion: Champion,
    scores: dict[str, dict[str, float]],
) -> Returns | None:
    """Enter the rivals of a stock job, and everyone's scores of returns; log those of the candidates."""
    if run.job.target.transform != "log_return":
        return None
    asked = {name: partial(whole_backtest, run, name, needed) for name in scores if name in run.networks}
    if CHOSEN in scores:
        asked[CHOSEN] = partial(chosen_backtest, run, chosen, needed)
    if champion.forecaster is not None and champion.name in scores:
        asked[champion.name] = partial(ask, run, champion.forecaster, run.split.cutoffs, needed)
    returns = compare_returns(run, asked, CHOSEN if CHOSEN in scores else chosen[-1], needed)
    for name, row in returns.scores.items():
        scores[name] = {**scores.get(name, {}), **row}
    for f in fitted:
        name, run_id = f["name"], f["run_id"]
        if run_id is not None and run.candidate(name) is not None:
            title = f"{run.job.name}, {name}"
            figures = draw_returns(name, asked[name](), beside_rivals(returns, name), title)
            run.tracker.log_returns(run_id, returns.scores[name], against(run, returns, name), figures)
    return returns


def _choose(run: Run, shown: Mapping[str, Shown]) -> list[str]:
    """Return the candidate with the best gate metric on the validation block of each fold."""
    metric = run.job.gate.metric
    trained = [c.name for c in run.job.candidates if c.name in shown]
    return [
        min(trained, key=lambda name, fold=fold: _or_worst(shown[name].validation[fold][metric]))  # type: ignore[misc]
        for fold in range(len(run.folds))
    ]


def _meet_champion(
    run: Run,
    champion: Champion,
    best: str,
    needed: int,
    scores: dict[str, dict[str, float]],
    tested: dict[str, FloatArray],
) -> dict[str, float]:
    """Ask the champion what it has not learned from, and enter what it showed.

    Of several folds that is the last: what the others test on, it has seen when it was trained. Its score there
    stands beside nobody's over all folds, so it is returned apart, with that of the best.
    """
    metric = run.job.gate.metric
    if champion.forecaster is None:
        return {}
    test = ask(run, champion.forecaster, run.split.cutoffs, needed)
    tested[champion.name] = test.loss_by_series(metric)
    if len(run.folds) == 1:
        scores[champion.name] = test.scores()
        return {}
    ours = backtest_of(run, run.artifact(best), run.split.cutoffs, needed)
    met = {best: ours.scores()[metric], champion.name: test.scores()[metric]}
    said = " and ".join(f"{name} {score:.4g}" for name, score in met.items())
    run.reporter.say(f"{metric} on the {len(tested[champion.name])} cutoffs of the last fold: {said}")
    return met


def show_forecaster(reporter: Reporter, run: Run, fitted: Fitted, needed: int) -> Shown:
    """Backtest one forecaster on the test and the validation block of every fold, and log what it showed."""
    name, run_id, metric = fitted["name"], fitted["run_id"], run.job.gate.metric
    test = whole_backtest(run, name, needed)
    before = [
        backtest_of(part, part.artifact(name), validation_cutoffs(part.split, run.job.horizon))
        for part in run.by_fold
    ]
    if test.unanswered:
        reporter.say(f"{name} has no score: it gives no finite forecast for {_listed(test.unanswered)}")
    if run_id is not None:
        run.tracker.log_backtest(run_id, before[-1], test, name, figures=run.candidate(name) is not None)
        if len(run.folds) > 1:
            run.tracker.log_folds(run_id, [_in_fold(test, part).scores() for part in run.by_fold])
    return Shown(test.scores(), tuple(one.scores() for one in before), test.loss_by_series(metric))


def _in_fold(test: Backtest, part: Run) -> Backtest:
    return test.select(np.isin(test.cutoff_B, part.split.cutoffs))


def _save_losses(run: Run, tested: Mapping[str, FloatArray]) -> None:
    """Keep the losses by cutoff and series in the folder: of many series they are too much for a report."""
    with (run.folder / LOSSES).open("wb") as file:
        np.savez(file, allow_pickle=False, **tested)


def _listed(unique_ids: Sequence[str]) -> str:
    shown = ", ".join(repr(unique_id) for unique_id in unique_ids[:5])
    return shown + (f" and {len(unique_ids) - 5} more series" if len(unique_ids) > 5 else "")


def _usable(run: Run, fitted: Sequence[Fitted]) -> list[Fitted]:
    """Return what can be compared.

    Raises:
        TrainingError: no candidate is left, or the baseline everyone is measured by is not.
    """
    usable = [f for f in fitted if f["error"] is None]
    names = {f["name"] for f in usable}
    if "seasonal_naive" not in names or not any(c.name in names for c in run.job.candidates):
        causes = "; ".join(f"{f['name']}: {f['error']}" for f in fitted if f["error"])
        raise TrainingError(f"job {run.job.name!r} has nothing to compare: {causes}")
    return usable


def _or_worst(value: float) -> float:
    return value if math.isfinite(value) else math.inf


class Case(NamedTuple):
    """Who stands before the gate, and beside whom."""

    challenger: Evidence
    champion: Evidence | None
    seasonal_naive: Evidence
    meeting: Evidence | None
    """The challenger where the champion was asked, if that is not everywhere."""


def case_of(run: Run, report: Report) -> Case:
    """Return what the backtest showed, as the gate takes it."""
    metric, best, champion, met = run.job.gate.metric, report["best"], report["champion"], report["met"]
    with np.load(run.folder / LOSSES, allow_pickle=False) as tested:
        score = report["scores"][report["judged"]][metric]
        challenger = Evidence(best, score, tested[report["judged"]])
        naive = Evidence("seasonal_naive", report["scores"]["seasonal_naive"][metric], tested["seasonal_naive"])
        if champion is None:
            return Case(challenger, None, naive, None)
        other_KN = tested[champion]
        if not met:
            return Case(challenger, Evidence(champion, report["scores"][champion][metric], other_KN), naive, None)
        meeting = Evidence(best, met[best], tested[best][-len(other_KN) :])
        return Case(challenger, Evidence(champion, met[champion], other_KN), naive, meeting)
