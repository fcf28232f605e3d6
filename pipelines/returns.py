"""The comparison of a stock job: rivals beside its forecasters, and what all are worth as forecasts of returns.

K test cutoffs, N series.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from forecasting.spec import BASELINE_KINDS
from pipelines.asking import whole_backtest
from pipelines.rivals import Rival, ask_rivals, load_rival
from pipelines.run import Run
from training.backtest import Backtest
from training.confidence_set import model_confidence_set
from training.density_figures import draw_returns, save_score_difference_picture, save_var_picture
from training.figures import save_html
from training.return_scores import NextStep, mean_by_cutoff, next_step, qlike_by_series, return_scores
from training.significance import compare_losses
from training.verdict import verdict

FloatArray = NDArray[np.float64]
Ask = Callable[[], Backtest]
Losses = dict[str, FloatArray]


class Returns(NamedTuple):
    """What a comparison of returns came to."""

    scores: dict[str, dict[str, float]]
    """Of everyone asked the scores of returns, and of the rivals the others too."""
    crps: Losses
    """The `(K, N)` losses of everyone."""
    qlike: Losses
    rivals: list[str]
    """Those that answered."""
    verdict: str


def compare_returns(run: Run, asked: Mapping[str, Ask], judged: str, needed: int) -> Returns:
    """Ask the rivals, score everyone's returns, and say what it comes to.

    Args:
        run: of a job with transform log_return.
        asked: what backtests each forecaster of the comparison.
        judged: the forecaster that is compared with everyone else.
        needed: steps of history before a cutoff that is asked.
    """
    rivals = ask_rivals(run, needed)
    found = Returns({}, {}, {}, rivals, "")
    steps = {name: _enter(found, name, Rival(backtest(), None)) for name, backtest in asked.items()}
    for name in rivals:
        rival = load_rival(run, name, needed)
        _enter(found, name, rival)
        found.scores[name] |= rival.test.scores()
    _compare(run, found, judged)
    return found._replace(verdict=_verdict(run, found, judged, steps[judged]))


def _enter(found: Returns, name: str, answered: Rival) -> NextStep:
    """Enter what a forecaster's returns are worth; one that fails to answer somewhere has no scores."""
    step = next_step(answered.test, answered.forecast)
    found.scores[name] = {} if answered.test.unanswered else return_scores(step)
    found.crps[name] = answered.test.loss_by_series("crps")
    found.qlike[name] = qlike_by_series(step)
    return step


def against(run: Run, found: Returns, name: str) -> dict[str, float]:
    """Return how sure it is that a forecaster and each rival differ: two-sided p-values of their CRPS."""
    lags = lags_of(run)
    return {rival: compare_losses(found.crps[name], found.crps[rival], lags).two_sided for rival in found.rivals}


def lags_of(run: Run) -> int:
    """Return the neighbouring cutoffs whose forecasts overlap."""
    return math.ceil(run.job.horizon / run.job.step_size) - 1


def _compare(run: Run, found: Returns, judged: str) -> None:
    """Enter how sure it is that the judged one and each other differ in accuracy, and who may be the best."""
    lags = lags_of(run)
    for name in found.crps:
        if name != judged:
            test = compare_losses(found.crps[judged], found.crps[name], lags)
            found.scores[name]["dm_p"] = test.two_sided
    compared = {name: mean_by_cutoff(loss_KN) for name, loss_KN in _whole(found.crps).items()}
    if compared:
        for name, p_value in model_confidence_set(compared, lags=lags).p_values.items():
            found.scores[name]["mcs_p"] = p_value


def _whole(losses: Losses) -> Losses:
    """Return the losses of those that have one wherever anybody has."""
    asked_KN = np.any([np.isfinite(loss_KN) for loss_KN in losses.values()], axis=0)
    return {name: loss_KN for name, loss_KN in losses.items() if np.isfinite(loss_KN[asked_KN]).all()}


def _verdict(run: Run, found: Returns, judged: str, step: NextStep) -> str:
    """Say in a sentence whether there is skill; beside the baselines where no rival answered."""
    beside = [judged, *(found.rivals or [name for name in found.crps if name in BASELINE_KINDS])]
    said = verdict(
        judged,
        {name: found.crps[name] for name in beside},
        qlike={name: found.qlike[name] for name in beside},
        returns_KN=step.r_KN,
        mean_KN=step.mean,
        lags=lags_of(run),
    )
    return f"{judged}: {said.sentence}"


def beside_rivals(found: Returns, name: str) -> Losses:
    """Return the CRPS of a forecaster and of the rivals."""
    return {who: found.crps[who] for who in (name, *found.rivals)}


def save_returns(run: Run, name: str, needed: int, rivals: list[str], folder: Path) -> None:
    """Write the pictures of a candidate's returns: pages, and two stills."""
    test, title = whole_backtest(run, name, needed), f"{run.job.name}, {name}"
    crps = {name: test.loss_by_series("crps")}
    crps |= {rival: load_rival(run, rival, needed).test.loss_by_series("crps") for rival in rivals}
    for what, figure in draw_returns(name, test, crps, title).items():
        save_html(figure, folder / f"{what}.html")
    step = next_step(test)
    save_var_picture(step, run.panel, title, folder / "value_at_risk.png")
    if rivals:
        ds = run.panel.ds[step.cutoffs_K]
        save_score_difference_picture(name, crps, ds, title, folder / "score_difference.png")
