"""What each command does, given its arguments. `cli.py` imports this only when a command runs."""

import logging
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import pandas as pd
from pydantic import TypeAdapter

from forecasting.errors import InputError
from forecasting.frame import forecast_frame
from forecasting.registry import (
    TAG_DECISION,
    TAG_REASON,
    ModelVersion,
    load_version,
    open_registry,
    promote,
    rollback,
)
from ledger.ledger import open_ledger
from pipelines.console import out, print_forecast, print_leaderboard, print_table, reporting
from pipelines.ingest import ingest_job, tell_refusals
from pipelines.retrain import Outcome, backtest, backtest_of, retrain, train
from pipelines.run import Run, new_run, use_threads
from pipelines.schedule import Worker, find_jobs
from pipelines.search import search, show_setting
from pipelines.settings import PipelineSettings
from training.figures import (
    error_by_step_figure,
    forecast_figure,
    save_forecast_picture,
    save_forecasts_picture,
    save_html,
)
from training.job import SearchConfig, load_job
from training.sources import AnySource
from training.sources.base import SourceContext

BEST_TRIALS = 5


def train_job(settings: PipelineSettings, job: Path) -> None:
    """Train, publish as challenger, and print the leaderboard."""
    outcome = _train_with(settings, job, train)
    out.print(f"registered {outcome.job} version {outcome.version} as challenger", markup=False)


def retrain_job(settings: PipelineSettings, job: Path) -> None:
    """Train, publish, let the gate decide, and print the leaderboard."""
    _train_with(settings, job, retrain)


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
            _save_backtests(run, [name for name in run.networks if name in outcome.report["scores"]], to)
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
    metric = run.job.gate.metric
    print_leaderboard(outcome.job, outcome.leaderboard(metric), metric, outcome.report["best"])
    return outcome


def _save_backtests(run: Run, names: Sequence[str], folder: Path) -> None:
    for name in names:
        test = backtest_of(run, run.artifact(name), run.split.cutoffs)
        (folder / name).mkdir(parents=True, exist_ok=True)
        test.to_frame().to_parquet(folder / name / "forecasts.parquet")
        test.per_series().to_parquet(folder / name / "per_series.parquet")
        save_html(forecast_figure(test, name), folder / name / "forecast.html")
        save_html(error_by_step_figure(test, name), folder / name / "error_by_step.html")
    run.reporter.say(f"forecasts and figures of {len(names)} models are in {folder}")


def _save_picture(run: Run, best: str, path: Path, n_cutoffs: int) -> None:
    test = backtest_of(run, run.artifact(best), run.split.cutoffs)
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


def ingest(settings: PipelineSettings, job: Path) -> None:
    """Append what a job's source has to the ledger, and print what became of it."""
    config = load_job(job)
    with reporting() as reporter, closing(open_ledger(settings.ledger)) as ledger:
        done = ingest_job(config, job.parent.absolute(), settings.cache_dir, ledger, reporter)
        tell_refusals(done.refusals, done.refused, reporter)
    out.print(done.describe(), markup=False)


def run_worker(settings: PipelineSettings, jobs: Path | None) -> None:
    """Run the schedules until stopped, and end the process."""
    use_threads(settings)
    Worker(settings, find_jobs(jobs or settings.jobs_dir)).run()
    # A retraining may still hold a thread; its work is remembered, so the process need not wait for it.
    logging.shutdown()
    os._exit(0)


def forecast_file(
    settings: PipelineSettings,
    model: str,
    source: Path,
    to: Path | None,
    level: Sequence[float] | None,
    alias: str,
) -> None:
    """Forecast every series of a file, and print or write the result."""
    registry = open_registry(settings.registry)
    version = registry.version(model, alias) if alias.isdecimal() else registry.resolve(model, alias)
    forecaster = load_version(registry, version)
    names = [static.name for static in forecaster.spec.covariates.static]
    frame = forecast_frame(forecaster, _read_frame(source, names), level or None)
    if to is None:
        print_forecast(f"{model} version {version.version}", frame)
    elif to.suffix == ".parquet":
        frame.to_parquet(to, index=False)
    else:
        frame.to_csv(to, index=False)


def _read_frame(path: Path, names: Sequence[str]) -> pd.DataFrame:
    kind = "parquet" if path.suffix == ".parquet" else "csv"
    reader = TypeAdapter(AnySource).validate_python({"kind": kind, "path": str(path.absolute())})
    return reader.load(SourceContext(Path.cwd(), Path.cwd(), names=names))


def list_models(settings: PipelineSettings) -> None:
    """Print every version of every model."""
    registry = open_registry(settings.registry)
    rows = [_describe(version) for name in registry.models() for version in registry.versions(name)]
    if not rows:
        out.print("no models yet; `hindcast train JOB` makes one", markup=False)
        return
    print_table("registered models", ["model", "version", "aliases", "created", "decision"], rows)


def _describe(version: ModelVersion) -> list[str]:
    created = f"{version.created_at:%Y-%m-%d %H:%M}" if version.created_at else ""
    reason = version.tags.get(TAG_REASON, "")
    return [version.model, version.version, ", ".join(version.aliases), created, reason]


def promote_model(settings: PipelineSettings, model: str, version: str, reason: str) -> None:
    """Make a version the champion, and record why."""
    registry = open_registry(settings.registry)
    champion = promote(registry, model, version, {TAG_DECISION: "promoted", TAG_REASON: reason})
    out.print(f"{model} version {champion.version} is the champion", markup=False)


def roll_back(settings: PipelineSettings, model: str) -> None:
    """Return to the champion before this one."""
    registry = open_registry(settings.registry)
    champion = rollback(registry, model)
    out.print(f"{model} version {champion.version} is the champion again", markup=False)


def serve(settings: PipelineSettings, host: str | None, port: int | None) -> None:
    """Become the service."""
    # The registry is passed on because its default follows the tracking store, which the service knows not.
    flags = {"HINDCAST_HOST": host, "HINDCAST_PORT": port, "HINDCAST_REGISTRY_URI": settings.registry}
    environment = {**os.environ, **{name: str(value) for name, value in flags.items() if value is not None}}
    # The service is another process image: no pipeline imports it, and it brings no training along.
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, "-m", "service"], environment)  # noqa: S606
