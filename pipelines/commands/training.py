"""What the commands do that train: train, backtest, retrain, search, worker, runs."""

import json
import logging
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, redirect_stdout
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from io import StringIO
from pathlib import Path

from forecasting.errors import HindcastError, InputError
from ledger.ledger import open_ledger
from ledger.runs import PATIENCE, STATES, RunRecord, State
from pipelines.asking import whole_backtest
from pipelines.commands.jobs import list_jobs
from pipelines.comparison import Report
from pipelines.console import out, print_outcome, print_table, reporting
from pipelines.fanout import map_tasks
from pipelines.recorded import describe, retrain_recorded
from pipelines.report import Reporter
from pipelines.retrain import Outcome, backtest, train
from pipelines.returns import save_returns
from pipelines.rivals import load_rival
from pipelines.run import Run, new_run, use_threads
from pipelines.schedule import Worker, find_jobs
from pipelines.search import search, show_setting
from pipelines.settings import PipelineSettings
from training.backtest import Backtest
from training.figures import (
    error_by_step_figure,
    forecast_figure,
    save_forecast_picture,
    save_forecasts_picture,
    save_html,
)
from training.job import SearchConfig

BEST_TRIALS = 5


def train_job(settings: PipelineSettings, job: Path) -> None:
    """Train, publish as challenger, and print the leaderboard."""
    outcome = _train_with(settings, job, train)
    out.print(f"registered {outcome.job} version {outcome.version} as challenger", markup=False)


def retrain_jobs(
    settings: PipelineSettings, jobs: Sequence[Path], folder: Path | None, key: str | None, *, force: bool
) -> None:
    """Retrain jobs, as many at a time as the settings say.

    Raises:
        InputError: a key is given to more than one.
    """
    files = list_jobs(jobs, folder)
    if key is not None and len(files) > 1:
        raise InputError("--key names one run: give one job")
    _run_jobs(settings, files, partial(retrain_job, key=key, force=force))


def backtest_jobs(
    settings: PipelineSettings,
    jobs: Sequence[Path],
    folder: Path | None,
    to: Path | None,
    picture: Path | None,
    n_cutoffs: int = 1,
) -> None:
    """Backtest jobs, as many at a time as the settings say.

    Raises:
        InputError: a folder or a picture is given for more than one.
    """
    files = list_jobs(jobs, folder)
    if len(files) > 1 and (to or picture):
        raise InputError("--out and --picture are for one job")
    _run_jobs(settings, files, partial(backtest_job, to=to, picture=picture, n_cutoffs=n_cutoffs))


def _run_jobs(settings: PipelineSettings, files: Mapping[str, Path], how: Callable[..., None]) -> None:
    """Run one job here, or several that fail each for itself.

    Raises:
        HindcastError: the one job failed as it says, or some of several did.
    """
    if len(files) == 1:
        how(settings, *files.values())
        return
    if settings.in_turn:
        failed = {name: _try(how, settings, path) for name, path in files.items()}
    else:
        failed = _run_side_by_side(settings, files, how)
    errors = {name: error for name, error in failed.items() if error is not None}
    for name, error in errors.items():
        out.print(f"{name} failed: {error}", markup=False)
    if errors:
        raise HindcastError(f"{len(errors)} of {len(files)} jobs failed: {', '.join(errors)}")


def _run_side_by_side(
    settings: PipelineSettings, files: Mapping[str, Path], how: Callable[..., None]
) -> dict[str, str | None]:
    tasks = {name: (settings.alone, path.absolute(), how) for name, path in files.items()}
    with reporting() as reporter:
        ends = map_tasks(run_job_apart, tasks, settings, reporter)
    for text, _ in ends.values():
        out.print(text, markup=False, end="")
    return {name: error for name, (_, error) in ends.items()}


def run_job_apart(
    reporter: Reporter, settings: PipelineSettings, path: Path, how: Callable[..., None]
) -> tuple[str, str | None]:
    """Run a job in a process of its own; return what it printed, and why it failed if it did."""
    del reporter
    with redirect_stdout(StringIO()) as printed:
        error = _try(how, settings, path)
    return printed.getvalue(), error


def _try(how: Callable[..., None], settings: PipelineSettings, path: Path) -> str | None:
    try:
        how(settings, path)
    except HindcastError as error:
        return str(error)
    return None


def retrain_job(settings: PipelineSettings, job: Path, key: str | None = None, *, force: bool = False) -> None:
    """Train, publish, let the gate decide, and print the leaderboard; once for a key, and where something changed.

    Raises:
        HindcastError: the retraining failed, now or when it was first asked for under this key.
    """
    with closing(open_ledger(settings.ledger)) as ledger, reporting() as reporter:
        run = new_run(job, settings, reporter, key)
        ledger.runs.request(run.job.name, "command", "a command", run.key, force=force)
        try:
            outcome = retrain_recorded(run, ledger.runs, f"{platform.node()}:{os.getpid()}")
        finally:
            run.discard()
        record = ledger.runs.get(run.key)
    if outcome is not None:
        print_outcome(outcome, run.job.gate.metric)
        return
    if record is not None and record.state == "failed":
        raise HindcastError(describe(record))
    if record is not None:
        out.print(describe(record), markup=False)


def list_runs(
    settings: PipelineSettings, job: str | None, state: str | None, limit: int, *, as_json: bool = False
) -> None:
    """Print runs, the newest first.

    Raises:
        InputError: there is no such state.
    """
    found: State | None = next((known for known in STATES if known == state), None)
    if state is not None and found is None:
        raise InputError(f"--state is one of {', '.join(STATES)}, not {state!r}")
    with closing(open_ledger(settings.ledger)) as ledger:
        records = ledger.runs.list(job, found, limit)
    if as_json:
        for record in records:
            out.print(json.dumps(asdict(record), default=_in_iso), markup=False, soft_wrap=True, highlight=False)
        return
    if not records:
        out.print("no such run" if job or state else "nothing was retrained yet", markup=False)
        return
    titles = ["run", "job", "asked", "took", "state", "version", "because of", "why"]
    print_table("runs", titles, [_run_row(record) for record in records])


def _run_row(record: RunRecord) -> list[str]:
    took = record.ended_at - record.started_at if record.ended_at and record.started_at else None
    version = f"{record.version} {record.decision or ''}".strip() if record.version else ""
    why = record.error or record.reason or ""
    if record.state == "running" and record.seen_at is not None and datetime.now(UTC) - record.seen_at > PATIENCE:
        why = f"no sign of {record.worker} since {record.seen_at:%Y-%m-%d %H:%M}"
    return [
        record.key,
        record.job,
        f"{record.requested_at:%Y-%m-%d %H:%M}",
        f"{took.total_seconds():.0f} s" if took is not None else "",
        record.state,
        version,
        f"{record.trigger}: {record.cause}",
        why,
    ]


def _in_iso(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)


def backtest_job(
    settings: PipelineSettings, job: Path, to: Path | None, picture: Path | None, n_cutoffs: int = 1
) -> None:
    """Train and compare without registering, and keep forecasts and figures where asked.

    Raises:
        InputError: the picture is neither a PNG nor an SVG.
    """
    if picture is not None and picture.suffix.lower() not in (".png", ".svg"):
        raise InputError(f"--picture draws a .png or a .svg, not {picture.name!r}")

    def run_and_save(run: Run) -> Outcome:
        outcome = backtest(run)
        if to is not None:
            _save_backtests(run, outcome.report, to)
        if picture is not None:
            _save_picture(run, outcome.report["best"], picture, n_cutoffs)
        return outcome

    _train_with(settings, job, run_and_save)


def _train_with(settings: PipelineSettings, job: Path, how: Callable[[Run], Outcome]) -> Outcome:
    with reporting() as reporter:
        run = new_run(job, settings, reporter)
        try:
            outcome = how(run)
        finally:
            run.discard()
    print_outcome(outcome, run.job.gate.metric)
    return outcome


def _save_backtests(run: Run, report: Report, folder: Path) -> None:
    names = [name for name in run.networks if name in report["scores"]]
    for name in names:
        test = whole_backtest(run, name)
        _save_tables(test, folder / name)
        save_html(forecast_figure(test, name), folder / name / "forecast.html")
        save_html(error_by_step_figure(test, name), folder / name / "error_by_step.html")
    rivals, needed = report["rivals"], report["history_needed"]
    for name in rivals:
        _save_tables(load_rival(run, name, needed).test, folder / name)
    if report["verdict"] is not None:
        for candidate in run.job.candidates:
            if candidate.name in names:
                save_returns(run, candidate.name, needed, rivals, folder / candidate.name)
    beside = f", and forecasts of {len(rivals)} rivals" if rivals else ""
    run.reporter.say(f"forecasts and figures of {len(names)} models{beside} are in {folder}")


def _save_tables(test: Backtest, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    test.to_frame().to_parquet(folder / "forecasts.parquet")
    test.per_series().to_parquet(folder / "per_series.parquet")


def _save_picture(run: Run, best: str, path: Path, n_cutoffs: int) -> None:
    test = whole_backtest(run, best)
    if n_cutoffs == 1:
        save_forecast_picture(test, run.job.name, path)
    else:
        save_forecasts_picture(test, run.job.name, path, n_cutoffs)
    run.reporter.say(f"drew {path}")


def search_job(settings: PipelineSettings, job: Path, trials: int | None, candidate: str | None) -> None:
    """Search for better settings of a candidate, and print the best and how to use them."""
    with reporting() as reporter:
        run = new_run(job, settings, reporter)
        asked = {"trials": trials, "candidate": candidate}
        config = (run.job.search or SearchConfig()).model_copy(update={k: v for k, v in asked.items() if v})
        try:
            found = search(run, config)
        finally:
            run.discard()
    names = list(found.best.settings)
    rows = [
        [
            f"{tried.number}{' (the job now)' if tried.current else ''}",
            f"{tried.score:.5g}",
            *(show_setting(tried.settings[name]) for name in names),
        ]
        for tried in found.ranked[:BEST_TRIALS]
    ]
    title = f"{run.job.name}: best trials of {found.candidate} on the validation block"
    print_table(title, ["trial", found.metric, *names], rows)
    if found.best.current:
        out.print(f"no trial was better than what {job.name} has", markup=False)
    else:
        out.print(f"to use trial {found.best.number}, put this under `candidates:` of {job.name}:", markup=False)
        out.print(f"  {found.line}", markup=False)


def run_worker(settings: PipelineSettings, jobs: Path | None) -> None:
    """Run the schedules until stopped, and end the process."""
    use_threads(settings)
    Worker(settings, find_jobs(jobs or settings.jobs_dir)).run()
    # A retraining may still hold a thread; its work is remembered, so the process need not wait for it.
    logging.shutdown()
    os._exit(0)
