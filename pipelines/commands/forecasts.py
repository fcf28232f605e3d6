"""What the commands do with forecasts: forecast, replay, issue, score, check, tend."""

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pandas as pd
from pydantic import TypeAdapter

from forecasting.errors import HindcastError, InputError
from forecasting.frame import forecast_frame
from forecasting.registry import (
    load_version,
    open_registry,
)
from ledger.ledger import open_ledger
from pipelines.batch import BatchOrder, forecast_batch
from pipelines.commands.jobs import list_jobs
from pipelines.console import err, out, print_forecast, print_table, reporting
from pipelines.issue import issue
from pipelines.loop import Loop, Turn, go_round
from pipelines.replay import replay
from pipelines.run import use_threads
from pipelines.score import score_matured
from pipelines.settings import PipelineSettings
from pipelines.triggers import check_triggers, request_retraining
from training.job import load_job
from training.sources import AnySource
from training.sources.base import SourceContext

MOST_LEFT_OUT = 10


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


def forecast_panel_in_parts(
    settings: PipelineSettings,
    model: str,
    source: Path,
    to: Path | None,
    level: Sequence[float] | None,
    alias: str,
    part_rows: int,
) -> None:
    """Forecast a panel larger than memory into a folder, and say how many series have a forecast.

    Raises:
        InputError: there is no folder to write to.
    """
    if to is None:
        raise InputError("--batch writes a folder: give --output")
    use_threads(settings)
    with reporting() as reporter:
        result = forecast_batch(
            BatchOrder(model, source, to, tuple(level or ()), alias, part_rows), settings, reporter
        )
    out.print(
        f"{model} version {result.version}: {result.series:,} series forecast in {result.parts} parts, "
        f"{result.rejects:,} refused (_rejects.csv)",
        markup=False,
    )


def _read_frame(path: Path, names: Sequence[str]) -> pd.DataFrame:
    kind = "parquet" if path.suffix == ".parquet" else "csv"
    reader = TypeAdapter(AnySource).validate_python({"kind": kind, "path": str(path.absolute())})
    return reader.load(SourceContext(Path.cwd(), Path.cwd(), names=names))


def replay_forecast(settings: PipelineSettings, forecast_id: str, threads: int, device: str) -> bool:
    """Compute a forecast again, print what came of it, and return whether all of it is the same."""
    with closing(open_ledger(settings.ledger)) as ledger:
        replayed = replay(ledger, open_registry(settings.registry), forecast_id, threads=threads, device=device)
    first = replayed[0].issued
    different = [one for one in replayed if not one.same]
    rounded = sum(one.same and not one.identical for one in replayed)
    title = f"forecast {forecast_id} by {first.model} version {first.version}"
    if not different:
        told = f"identical but for rounding in {rounded}" if rounded else "identical to the last bit"
        out.print(f"{title}: {len(replayed)} series, {told}", markup=False)
        return True
    rows = [[one.issued.unique_id, f"{one.difference:.3g}"] for one in different]
    print_table(title, ["series", "largest difference"], rows)
    out.print(f"{len(different)} of {len(replayed)} series are not the same", markup=False)
    return False


def score_forecasts(
    settings: PipelineSettings, model: str | None, retain: float | None, by: Sequence[str]
) -> None:
    """Score what has matured, retire what is old where asked to, and print how right the models were."""
    with closing(open_ledger(settings.ledger)) as ledger, reporting() as reporter:
        done = score_matured(ledger, progress=reporter.count("scored"))
        retired = 0 if retain is None else ledger.scores.retain(retain)
        rows = ledger.scores.summary(model=model, by=("model", "version", "role", *by))
    looked = f"{done.forecasts:,} forecasts looked at, {done.scores:,} scores written, intervals adjusted for "
    out.print(f"{looked}{done.adjusted:,} series{f', {retired:,} retired' if retired else ''}", markup=False)
    if rows:
        table = [["" if value is None else _short(value) for value in row.values()] for row in rows]
        print_table("scores against the latest actual", list(rows[0]), table)


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def issue_forecasts(settings: PipelineSettings, job: str) -> None:
    """Forecast every series of a model from the ledger, and print how many forecasts are new."""
    path = Path(job)
    model = load_job(path).name if path.suffix in (".yaml", ".yml") else job
    with closing(open_ledger(settings.ledger)) as ledger, reporting() as reporter:
        done = issue(ledger, open_registry(settings.registry), model, progress=reporter.count("series"))
    for problem in list(done.left_out.values())[:MOST_LEFT_OUT]:
        out.print(f"left out: {problem}", markup=False)
    if len(done.left_out) > MOST_LEFT_OUT:
        out.print(f"left out: {len(done.left_out) - MOST_LEFT_OUT} more series", markup=False)
    out.print(
        f"{model}: {done.champion} forecasts issued by the champion, {done.shadow} by the shadow, "
        f"{done.beside} beside what the service issued",
        markup=False,
    )


def check_job(settings: PipelineSettings, job: Path, *, request: bool) -> None:
    """Print every reason to retrain a job, and queue the retraining where asked to."""
    config = load_job(job)
    with closing(open_ledger(settings.ledger)) as ledger:
        found = check_triggers(config, ledger, open_registry(settings.registry))
        run = request_retraining(config, ledger, found) if request else None
    for trigger in found:
        out.print(f"{config.name}: {trigger.kind}: {trigger.cause}", markup=False)
    if not found:
        out.print(f"{config.name}: no reason to retrain", markup=False)
    if run is not None:
        out.print(f"queued as run {run.key}", markup=False)


def tend_jobs(settings: PipelineSettings, jobs: Sequence[Path], folder: Path | None) -> None:
    """Go one round of the closed loop, and print what it came to."""
    files = list_jobs(jobs, folder)
    with closing(open_ledger(settings.ledger)) as ledger:
        done = go_round(Loop(settings, ledger), files)
    if done is None:
        out.print("another process is going round already", markup=False)
        return
    out.print(
        f"{done.scored.forecasts:,} forecasts looked at, {done.scored.scores:,} scores written", markup=False
    )
    for turn in done.turns:
        out.print(f"{turn.job}: {_told(turn)}", markup=False)
    for name, error in done.failed.items():
        err.print(f"{name} failed: {error}", style="red", markup=False)
    if done.failed:
        raise HindcastError(f"{len(done.failed)} of {len(files)} jobs failed")


def _told(turn: Turn) -> str:
    if turn.issued is None:
        return "no champion yet"
    issued = turn.issued
    told = [f"{issued.champion} forecasts issued, {issued.shadow + issued.beside} beside them in the shadow"]
    if turn.decision is not None:
        told.append(f"{turn.decision.action}: {turn.decision.reason}")
    told.extend(f"a retraining is asked for: {trigger.cause}" for trigger in turn.asked)
    return "; ".join(told)
