"""Rivals: the econometric forecasts of a stock job, asked what its candidates are asked, and never published.

They are fitted as often as the candidates, on what the fold may see. What they answered is kept in the run's
folder, so that an attempt that was interrupted goes on with those that are missing.
"""

from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from forecasting.errors import TrainingError
from forecasting.panel import Panel
from forecasting.transforms import apply_transform, invert_transform
from pipelines.fanout import map_tasks
from pipelines.report import Reporter
from pipelines.run import Run
from training.backtest import Backtest, build_backtest, find_questions
from training.econometrics import RIVALS, RivalForecast, join_forecasts
from training.job import JobConfig
from training.rivals import ask_rival
from training.skewed_t import SkewedT
from training.walk_forward import join_backtests

RIVALS_ASKED = "rivals"
"""Where in a run's folder their answers lie."""

RANGES = ("garman_klass", "rogers_satchell", "parkinson")
"""Covariates that are daily range variances, the most exact first."""

FITTED = ("garch", "garch_t", "gjr_garch_t", "gjr_garch_skewt", "har")
"""Rivals that are fitted to each series by itself, which takes time."""

MOST_ANSWERS = 200_000
"""Series times cutoffs above which those are asked only where the job names them."""

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


class Rival(NamedTuple):
    """What a rival, or whoever stands beside it, said in the backtest."""

    test: Backtest
    forecast: RivalForecast | None
    """What quantiles do not tell, where it was told."""


def choose_rivals(job: JobConfig, panel: Panel, n_cutoffs: int) -> tuple[list[str], str]:
    """Return the rivals to ask, and what is left out and why, if anything is."""
    if job.target.transform != "log_return":
        return [], ""
    wanted = job.evaluation.rivals
    chosen = [name for name in RIVALS if wanted is None or name in wanted]
    why = ""
    if "har" in chosen and _range_column(panel) is None:
        chosen.remove("har")
        # Nobody asked for it; the job has no prices but the last of the day.
        why = f"har is left out: it takes a past covariate {' or '.join(RANGES)}" if wanted else ""
    answers = panel.n_series * n_cutoffs
    if wanted is not None or answers <= MOST_ANSWERS:
        return chosen, why
    left_out = [name for name in chosen if name in FITTED]
    return [name for name in chosen if name not in FITTED], (
        f"{', '.join(left_out)} are left out: {panel.n_series:,} series at {n_cutoffs:,} cutoffs are {answers:,} "
        f"answers, and more than {MOST_ANSWERS:,} take long; named in evaluation.rivals they are asked anyway"
    )


def ask_rivals(run: Run, needed: int) -> list[str]:
    """Ask the rivals of a job at the test cutoffs of all its folds; return those that answered.

    One that fails, fails alone. Of many series answers are large, and `load_rival` gives those of one.
    """
    names, left_out = choose_rivals(run.job, run.panel, len(run.cutoffs))
    if left_out:
        run.reporter.say(f"rivals: {left_out}")
    asked = run if run.settings.in_turn else run.elsewhere
    tasks = {f"rival {name}": (asked, name, needed) for name in names}
    errors = map_tasks(answer_as_rival, tasks, run.settings, run.reporter)
    return [name for name, error in zip(names, errors.values(), strict=True) if not error]


def answer_as_rival(reporter: Reporter, run: Run, name: str, needed: int) -> str | None:
    """Let a rival answer, and keep what it says; return why it cannot, if so."""
    kept = _kept(run, name, needed)
    if kept.is_file():
        return None
    problems: Counter[str] = Counter()
    try:
        forecast = join_forecasts(
            [_ask_in_fold(part, name, needed, problems) for part in _asked_folds(run, needed)]
        )
    except TrainingError as error:
        reporter.say(f"rival {name} failed: {error}")
        return str(error)
    for note, count in problems.most_common(3):
        reporter.say(f"rival {name}: {note}" + (f" ({count} times)" if count > 1 else ""))
    if len(problems) > 3:
        reporter.say(f"rival {name}: and {len(problems) - 3} more such notes")
    _save(kept, forecast)
    return None


def _asked_folds(run: Run, needed: int) -> list[Run]:
    """Return the run in each fold in which there is anything to ask.

    Raises:
        TrainingError: there is none.
    """
    find_questions(run.panel, run.cutoffs, run.job.horizon, needed)
    return [part for part in run.by_fold if _questions(part, needed) is not None]


def _questions(part: Run, needed: int) -> tuple[IntArray, IntArray] | None:
    try:
        return find_questions(part.panel, part.split.cutoffs, part.job.horizon, needed)
    except TrainingError:
        return None


def _ask_in_fold(part: Run, name: str, needed: int, problems: Counter[str]) -> RivalForecast:
    """Ask a rival at the cutoffs of one fold, fitted on what the fold may learn from."""
    split, panel = part.split, part.panel
    series_B, cutoff_B = find_questions(panel, split.cutoffs, part.job.horizon, needed)
    # It is fitted where it is first asked. So it is asked before the embargo, where nobody reads the answer; but
    # for series that are too young then.
    fit_at = split.test - 1
    first_N, _ = panel.spans()
    asked = np.unique(series_B[cutoff_B > fit_at])
    asked = asked[~np.isin(asked, series_B[cutoff_B == fit_at])]
    asked = asked[fit_at - first_N[asked] + 1 >= needed]
    stop = split.cutoffs[-1] + 1
    column = _range_column(panel)
    answers = ask_rival(
        name,
        panel.before(stop),
        part.spec_of("naive"),
        np.concatenate([asked, series_B]),
        np.concatenate([np.full(len(asked), fit_at), cutoff_B]),
        refit_every=panel.n_steps,
        variances_NT=None if column is None else panel.past_NTP[:, :stop, column],
        note=lambda text: problems.update([part.title(text)]),
    )
    return answers.take(np.arange(len(asked), len(asked) + len(series_B)))


def _range_column(panel: Panel) -> int | None:
    return next((panel.columns.past.index(name) for name in RANGES if name in panel.columns.past), None)


def _kept(run: Run, name: str, needed: int) -> Path:
    """Return where a rival's answers lie; other questions, other answers."""
    return run.folder / RIVALS_ASKED / f"{name}-{needed}.npz"


def _save(path: Path, forecast: RivalForecast) -> None:
    path.parent.mkdir(exist_ok=True)
    density = {} if forecast.first is None else forecast.first._asdict()
    draft = path.with_suffix(".draft")
    with draft.open("wb") as file:
        np.savez(
            file,
            allow_pickle=False,
            quantiles_BHQ=forecast.quantiles_KHQ,
            variance_BH=forecast.variance_KH,
            **density,
        )
    draft.replace(path)


def load_rival(run: Run, name: str, needed: int) -> Rival:
    """Put what a rival answered beside what happened."""
    with np.load(_kept(run, name, needed), allow_pickle=False) as kept:
        density = SkewedT(*(kept[field] for field in SkewedT._fields)) if "scale" in kept else None
        forecast = RivalForecast(kept["quantiles_BHQ"], kept["variance_BH"], density)
    parts, begin = [], 0
    for part in _asked_folds(run, needed):
        series_B, cutoff_B = find_questions(run.panel, part.split.cutoffs, run.job.horizon, needed)
        spec, end = part.spec_of("naive"), begin + len(series_B)
        x_B11 = apply_transform(run.panel.y_NT[series_B, cutoff_B], spec.transform)[:, None, None]
        quantiles_BHQ = invert_transform(x_B11 + forecast.quantiles_KHQ[begin:end], spec.transform)
        parts.append(build_backtest(spec, run.panel, series_B, cutoff_B, quantiles_BHQ, in_sample=part.split.test))
        begin = end
    return Rival(join_backtests(parts), forecast)
