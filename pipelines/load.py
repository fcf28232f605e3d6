"""Loading: from a job's source to the panel it is trained on, with every series that cannot be used named."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import numpy as np
import pandas as pd

from forecasting.calendar import normalise_timestamps, parse_freq
from forecasting.errors import JobError, PanelError, SourceError
from forecasting.panel import Columns, Panel, save_panel
from forecasting.price_panel import build_price_panel
from pipelines.run import Run
from training.job import JobConfig
from training.sources.base import SourceContext
from training.sources.ledger import LedgerSource
from training.universe import Universe, load_universe
from training.walk_forward import plan_folds

MOST_NAMED = 20
"""Most series a message names."""


def load_data(run: Run) -> str:
    """Load the job's source into a validated panel, keep it in the run's folder, and describe it."""
    job = run.job
    context = SourceContext(
        base_dir=run.base_dir,
        cache_dir=run.settings.cache_dir,
        note=run.reporter.say,
        names=job.covariates.static,
        columns=value_columns(job),
        freq=job.freq,
        observations=_LedgerReader(run),
    )
    rows = _select_members(run, _select_columns(job, job.source.load(context)))
    panel, left_out = _build_panel(job, rows)
    for problem in left_out.values():
        run.reporter.say(f"left out: {problem}")
    # Once, here: found later it would be found by every forecaster again.
    folds = plan_folds(panel, job)
    save_panel(panel, run.folder / "panel.npz")
    run.reporter.say(f"{job.name}: {panel.describe()}")
    if len(folds) > 1:
        run.reporter.say(f"{job.name}: {len(folds)} folds, refitted every {job.evaluation.refit_every} steps")
    return panel.describe()


class _LedgerReader:
    """Reads the ledger as it was known when the run first asked: a step that is repeated reads the same."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def __call__(
        self,
        dataset: str,
        columns: Sequence[str],
        *,
        static: Sequence[str],
        start: np.datetime64 | None,
        as_of: datetime | None,
    ) -> pd.DataFrame:
        moment = as_of or self._run.as_of or self._moment_of_the_run(dataset)
        return self._run.ledger.observations.frame(dataset, columns, static=static, start=start, as_of=moment)

    def _moment_of_the_run(self, dataset: str) -> datetime | None:
        """Return the last moment something became known: what comes later has a later one, whatever the clocks."""
        kept = self._run.folder / "as_of"
        if kept.exists():
            return datetime.fromisoformat(kept.read_text())
        moment = self._run.ledger.observations.last_known_at(dataset)
        if moment is not None:
            _write_whole(kept, moment.isoformat())
        return moment


def _write_whole(path: Path, text: str) -> None:
    unfinished = path.with_name(f".{path.name}")
    unfinished.write_text(text)
    unfinished.replace(path)


def dataset_of(job: JobConfig) -> str:
    """Return the ledger's dataset of a job: the one it reads, or that of its own name."""
    return job.source.dataset if isinstance(job.source, LedgerSource) else job.name


def value_columns(job: JobConfig) -> list[str]:
    """Return the columns of values a job works with, by their names in the source; the target is the first."""
    told = job.covariates
    return list(dict.fromkeys([job.target.column, *told.past, *_price_columns(job), *told.future]))


def _price_columns(job: JobConfig) -> list[str]:
    """Return the columns range features are made of, by their names in the source."""
    return list(job.prices.needed(job.covariates.ranges).values())


def name_columns(job: JobConfig) -> list[str]:
    """Return the columns of names a job works with, beside the series' own."""
    return [name for name in job.covariates.static if name != "unique_id"]


def _select_columns(job: JobConfig, frame: pd.DataFrame) -> pd.DataFrame:
    """Return the long frame with the target as `y` and the job's covariates beside it."""
    target = job.target.column
    told = job.covariates
    covariates = [*told.past, *told.future, *name_columns(job)]
    if target in covariates:
        raise JobError(f"job {job.name!r}: the target column {target!r} cannot be a covariate too")
    quoted = [name for name in _price_columns(job) if name not in (target, *covariates)]
    require_columns(job, frame, (target, *covariates, *quoted))
    return frame[["unique_id", "ds", *covariates, *quoted]].assign(y=frame[target])


def universe_of(job: JobConfig, base_dir: Path) -> Universe | None:
    """Return the memberships of a job's universe, None where it has none.

    Raises:
        SourceError: its file cannot be read.
    """
    return None if job.universe is None else load_universe(base_dir / job.universe.path)


def _select_members(run: Run, rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of members of the job's universe, all where it has none.

    Raises:
        SourceError: the universe cannot be read, or names a series the source does not have; where bad series are
            left out, that one is told and left out.
    """
    job, universe = run.job, universe_of(run.job, run.base_dir)
    if universe is None:
        return rows
    names = rows["unique_id"].astype(str)
    unknown = universe.find_unknown(names.unique().tolist())
    if unknown and job.bad_series == "raise":
        raise SourceError("; ".join(list(unknown.values())[:MOST_NAMED]))
    for problem in unknown.values():
        run.reporter.say(f"left out: {problem}")
    members_R = universe.are_members(names, normalise_timestamps(rows["ds"], parse_freq(job.freq)))
    never = sorted(set(names) - set(names[members_R]))
    if never:
        more = f" and {len(never) - MOST_NAMED} more" if len(never) > MOST_NAMED else ""
        run.reporter.say(f"left out, for they are not in the universe: {', '.join(never[:MOST_NAMED])}{more}")
    return rows[members_R].reset_index(drop=True)


def require_columns(job: JobConfig, frame: pd.DataFrame, columns: Sequence[str]) -> None:
    """Refuse what a source brought where it lacks a column the job works with.

    Raises:
        SourceError: it does; the message has what there is.
    """
    absent = [repr(name) for name in columns if name not in frame.columns]
    if absent:
        there = ", ".join(str(c) for c in frame.columns if c not in ("unique_id", "ds"))
        raise SourceError(f"job {job.name!r}: the source has no column {', '.join(absent)}; it has {there}")


def _build_panel(job: JobConfig, rows: pd.DataFrame) -> tuple[Panel, dict[str, str]]:
    """Return the panel the job can be trained on, and what is wrong with each series left out of it."""
    told = job.covariates
    columns = Columns(told.past_told, told.future, told.static)
    prices = job.prices_told
    panel = build_price_panel(rows, job.freq, bad_series=job.bad_series, columns=columns, prices=prices)
    unusable = {**_too_short(job, panel), **_without_logarithm(job, panel)}
    left_out = {**panel.dropped, **unusable}
    if not unusable:
        return panel, left_out
    if job.bad_series == "raise" or len(unusable) == panel.n_series:
        raise PanelError(left_out)
    kept = rows[~rows["unique_id"].astype(str).isin(list(left_out))]
    return build_price_panel(kept, job.freq, columns=columns, prices=prices), left_out


def _too_short(job: JobConfig, panel: Panel) -> dict[str, str]:
    """Return what is wrong with the series no candidate can learn anything from."""
    shortest = min(candidate.network.input_size for candidate in job.candidates)
    try:
        why = f"the shortest input_size, {shortest}, and the horizon, {job.horizon}"
        panel.require_observed(shortest + job.horizon, why=why)
    except PanelError as error:
        return error.problems
    return {}


def _without_logarithm(job: JobConfig, panel: Panel) -> dict[str, str]:
    """Return what is wrong with the series that have no log returns."""
    if job.target.transform != "log_return":
        return {}
    with np.errstate(invalid="ignore"):
        bad_N = np.any(panel.y_NT <= 0, axis=1)
    return {
        uid: f"series {uid!r} has values that are not positive; transform log_return needs prices above 0"
        for uid, bad in zip(panel.unique_ids, bad_N, strict=True)
        if bad
    }
