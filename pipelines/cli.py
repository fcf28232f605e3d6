"""The command line: `hindcast`.

Exit codes: 0 done; 1 something failed; 2 wrong usage, job file or input; 3 a source or the registry did not
answer; 4 no such model, version or alias; 130 interrupted.
"""

import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import pandas as pd
import torch
import typer
from pydantic import TypeAdapter, ValidationError

from forecasting.errors import (
    HindcastError,
    InputError,
    JobError,
    ModelNotFoundError,
    RegistryUnavailableError,
    SourceError,
)
from forecasting.frame import forecast_frame
from forecasting.registry import (
    CHAMPION,
    TAG_DECISION,
    TAG_REASON,
    ModelVersion,
    load_version,
    open_registry,
    promote,
    rollback,
)
from pipelines.console import err, out, print_forecast, print_leaderboard, print_table, reporting
from pipelines.demo import run_demo
from pipelines.retrain import Outcome, backtest, backtest_of, retrain, train
from pipelines.run import Run, new_run
from pipelines.schedule import Worker, find_jobs
from pipelines.settings import PipelineSettings
from training.figures import error_by_step_figure, forecast_figure, save_forecast_picture, save_html
from training.sources import AnySource
from training.sources.base import SourceContext

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    help="Hindcast: train, serve and retrain forecasting models that keep score.\n\n"
    "Settings come from HINDCAST_... variables; see docs/settings.md.",
)

EXIT_CODES: tuple[tuple[type[BaseException], int], ...] = (
    (ModelNotFoundError, 4),
    (RegistryUnavailableError, 3),
    (SourceError, 3),
    (JobError, 2),
    (InputError, 2),
    (HindcastError, 1),
)

EXIT_INTERRUPTED = 130

JobFile = Annotated[Path, typer.Argument(metavar="JOB", help="A job file, such as jobs/co2.yaml.")]
Model = Annotated[str, typer.Argument(metavar="MODEL", help="A registered model: the name of its job.")]


def exit_code_of(error: BaseException) -> int:
    """Return the exit code an error ends the process with."""
    return next((code for kind, code in EXIT_CODES if isinstance(error, kind)), 1)


def main() -> None:
    """Run the command line; errors raised on purpose end it with one line and their exit code."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    for chatty in ("mlflow", "alembic", "matplotlib", "dbos", "httpx"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    try:
        app()
    except HindcastError as error:
        err.print(f"error: {error}", style="red", markup=False)
        raise SystemExit(exit_code_of(error)) from None
    except SystemExit as end:
        # Typer has made this exit code of the KeyboardInterrupt.
        if end.code == EXIT_INTERRUPTED:
            err.print("interrupted; nothing was left half done", markup=False)
        raise


def read_settings() -> PipelineSettings:
    """Read the settings from the environment, and make them hold for this process.

    Raises:
        InputError: a variable has a value that cannot be used.
    """
    try:
        settings = PipelineSettings()
    except ValidationError as error:
        first = error.errors()[0]
        name = f"HINDCAST_{'_'.join(map(str, first['loc'])).upper()}"
        raise InputError(f"{name}: {first['msg']}, not {first['input']!r}") from error
    if settings.training_threads:
        torch.set_num_threads(settings.training_threads)
    settings.home.mkdir(parents=True, exist_ok=True)
    return settings


def _train_with(job: Path, how: Callable[[Run], Outcome]) -> Outcome:
    settings = read_settings()
    with reporting() as reporter:
        run = new_run(job, settings, reporter)
        try:
            outcome = how(run)
        finally:
            run.discard()
    metric = run.job.gate.metric
    print_leaderboard(outcome.job, outcome.leaderboard(metric), metric, outcome.report["best"])
    return outcome


@app.command("train")
def train_command(job: JobFile) -> None:
    """Train a job's candidates, track them in MLflow and register the best as challenger.

    Nothing is promoted; `hindcast promote` does that, or `hindcast retrain` asks the gate.

    Example: `hindcast train jobs/co2.yaml`
    """
    outcome = _train_with(job, train)
    out.print(f"registered {outcome.job} version {outcome.version} as challenger", markup=False)


@app.command("backtest")
def backtest_command(
    job: JobFile,
    to: Annotated[
        Path | None, typer.Option("--out", help="Folder for the forecasts (Parquet) and figures of each model.")
    ] = None,
    picture: Annotated[
        Path | None, typer.Option(help="Draw the best candidate's newest forecast to this PNG or SVG.")
    ] = None,
) -> None:
    """Train a job's candidates and compare them with the baselines and the champion; register nothing.

    Example: `hindcast backtest jobs/co2.yaml --out results`
    """
    if picture is not None and picture.suffix.lower() not in (".png", ".svg"):
        raise InputError(f"--picture draws a .png or a .svg, not {picture.name!r}")

    def run_and_save(run: Run) -> Outcome:
        outcome = backtest(run)
        if to is not None:
            _save_backtests(run, [name for name in run.networks if name in outcome.report["scores"]], to)
        if picture is not None:
            _save_picture(run, outcome.report["best"], picture)
        return outcome

    _train_with(job, run_and_save)


def _save_backtests(run: Run, names: Sequence[str], folder: Path) -> None:
    for name in names:
        test = backtest_of(run, run.artifact(name), run.split.cutoffs)
        (folder / name).mkdir(parents=True, exist_ok=True)
        test.to_frame().to_parquet(folder / name / "forecasts.parquet")
        test.per_series().to_parquet(folder / name / "per_series.parquet")
        save_html(forecast_figure(test, name), folder / name / "forecast.html")
        save_html(error_by_step_figure(test, name), folder / name / "error_by_step.html")
    run.reporter.say(f"forecasts and figures of {len(names)} models are in {folder}")


def _save_picture(run: Run, best: str, path: Path) -> None:
    save_forecast_picture(backtest_of(run, run.artifact(best), run.split.cutoffs), run.job.name, path)
    run.reporter.say(f"drew {path}")


@app.command("retrain")
def retrain_command(job: JobFile) -> None:
    """Train a job, publish the best candidate, and promote it if the gate says so.

    The gate: better than the seasonal naive, and not worse than the champion on the same cutoffs. Its decision
    and reason are printed and written to the version's tags. Not promoting is not a failure.

    Example: `hindcast retrain jobs/sp500.yaml`
    """
    _train_with(job, retrain)


@app.command("worker")
def worker_command(
    jobs: Annotated[Path | None, typer.Option(help="Folder of job files. Default: HINDCAST_JOBS_DIR.")] = None,
) -> None:
    """Retrain every job on its schedule until stopped; survives being killed.

    Example: `HINDCAST_SCHEDULER_DB=postgresql://localhost/hindcast hindcast worker --jobs jobs`
    """
    settings = read_settings()
    Worker(settings, find_jobs(jobs or settings.jobs_dir)).run()
    # A retraining may still hold a thread; its work is remembered, so the process need not wait for it.
    logging.shutdown()
    os._exit(0)


@app.command("forecast")
def forecast_command(
    model: Model,
    source: Annotated[Path, typer.Option("--input", help="CSV or Parquet with unique_id, ds and y.")],
    to: Annotated[Path | None, typer.Option("--output", help="Write a CSV or Parquet instead of a table.")] = None,
    level: Annotated[list[float] | None, typer.Option(help="Interval in percent; may be repeated.")] = None,
    alias: Annotated[str, typer.Option(help="Which version: an alias or a number.")] = CHAMPION,
) -> None:
    """Forecast every series of a file with a registered model.

    Example: `hindcast forecast co2 --input co2.csv --level 80 --output forecast.csv`
    """
    settings = read_settings()
    registry = open_registry(settings.registry)
    version = registry.version(model, alias) if alias.isdecimal() else registry.resolve(model, alias)
    frame = forecast_frame(load_version(registry, version), _read_frame(source), level or None)
    if to is None:
        print_forecast(f"{model} version {version.version}", frame)
    elif to.suffix == ".parquet":
        frame.to_parquet(to, index=False)
    else:
        frame.to_csv(to, index=False)


def _read_frame(path: Path) -> pd.DataFrame:
    kind = "parquet" if path.suffix == ".parquet" else "csv"
    reader = TypeAdapter(AnySource).validate_python({"kind": kind, "path": str(path.absolute())})
    return reader.load(SourceContext(Path.cwd(), Path.cwd()))


@app.command("models")
def models_command() -> None:
    """List the registered models: versions, aliases, and why each was promoted or not.

    Example: `hindcast models`
    """
    registry = open_registry(read_settings().registry)
    rows = [_describe(version) for name in registry.models() for version in registry.versions(name)]
    if not rows:
        out.print("no models yet; `hindcast train JOB` makes one", markup=False)
        return
    print_table("registered models", ["model", "version", "aliases", "created", "decision"], rows)


def _describe(version: ModelVersion) -> list[str]:
    created = f"{version.created_at:%Y-%m-%d %H:%M}" if version.created_at else ""
    reason = version.tags.get(TAG_REASON, "")
    return [version.model, version.version, ", ".join(version.aliases), created, reason]


@app.command("promote")
def promote_command(
    model: Model,
    version: Annotated[str, typer.Argument(help="Version number.")],
    reason: Annotated[str, typer.Option(help="Recorded with the version.")] = "promoted by hand",
) -> None:
    """Make a version the champion, whatever the gate said.

    Example: `hindcast promote co2 3 --reason "sensor was replaced"`
    """
    registry = open_registry(read_settings().registry)
    champion = promote(registry, model, version, {TAG_DECISION: "promoted", TAG_REASON: reason})
    out.print(f"{model} version {champion.version} is the champion", markup=False)


@app.command("rollback")
def rollback_command(model: Model) -> None:
    """Return to the champion before this one.

    Example: `hindcast rollback co2`
    """
    registry = open_registry(read_settings().registry)
    champion = rollback(registry, model)
    out.print(f"{model} version {champion.version} is the champion again", markup=False)


@app.command("serve")
def serve_command(
    host: Annotated[
        str | None, typer.Option(help="Address to bind. Default: HINDCAST_HOST, or 127.0.0.1.")
    ] = None,
    port: Annotated[int | None, typer.Option(help="Port. Default: HINDCAST_PORT, or 8000.")] = None,
) -> None:
    """Serve every registered champion over HTTP; promoted versions are picked up without a restart.

    Example: `hindcast serve --port 8080`
    """
    # The registry is passed on because its default follows the tracking store, which the service knows not.
    flags = {"HINDCAST_HOST": host, "HINDCAST_PORT": port, "HINDCAST_REGISTRY_URI": read_settings().registry}
    environment = {**os.environ, **{name: str(value) for name, value in flags.items() if value is not None}}
    # The service is another process image: no pipeline imports it, and it brings no training along.
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, "-m", "service"], environment)  # noqa: S606


@app.command("demo")
def demo_command(
    once: Annotated[bool, typer.Option("--once", help="Stop after the forecasts instead of serving on.")] = False,
    port: Annotated[int, typer.Option(help="Port of the service on 127.0.0.1.")] = 8000,
) -> None:
    """Train two jobs on real data, promote the winners, serve them, and ask for a forecast of each.

    Example: `hindcast demo --once`
    """
    run_demo(read_settings(), port=port, once=once)
