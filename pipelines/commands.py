"""What each command does, given its arguments. `cli.py` imports this only when a command runs."""

import json
import logging
import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, redirect_stdout
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from io import StringIO
from pathlib import Path

import pandas as pd
from pydantic import TypeAdapter

from forecasting.errors import HindcastError, InputError
from forecasting.frame import forecast_frame
from forecasting.registry import (
    TAG_REASON,
    ModelVersion,
    load_version,
    open_registry,
)
from ledger.ledger import open_ledger
from ledger.runs import PATIENCE, STATES, RunRecord, State
from pipelines.batch import BatchOrder, forecast_batch
from pipelines.console import err, out, print_forecast, print_leaderboard, print_table, reporting
from pipelines.fanout import map_tasks
from pipelines.ingest import ingest_job, tell_refusals
from pipelines.issue import issue
from pipelines.loop import Loop, Turn, go_round
from pipelines.override import Override, promote_by_hand, roll_back_by_hand
from pipelines.recorded import describe, retrain_recorded
from pipelines.replay import replay
from pipelines.report import Reporter
from pipelines.retrain import Outcome, backtest, backtest_of, train
from pipelines.run import Run, new_run, use_threads
from pipelines.schedule import Worker, find_jobs
from pipelines.score import score_matured
from pipelines.search import search, show_setting
from pipelines.settings import PipelineSettings
from pipelines.trial import Court, judge_shadow, note_in
from pipelines.triggers import check_triggers, request_retraining
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
MOST_LEFT_OUT = 10


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
    files = _list_jobs(jobs, folder)
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
    files = _list_jobs(jobs, folder)
    if len(files) > 1 and (to or picture):
        raise InputError("--out and --picture are for one job")
    _run_jobs(settings, files, partial(backtest_job, to=to, picture=picture, n_cutoffs=n_cutoffs))


def _list_jobs(jobs: Sequence[Path], folder: Path | None) -> dict[str, Path]:
    """Return job files by the names of their jobs.

    Raises:
        InputError: there is none, or two have the same name.
    """
    files = {} if folder is None else find_jobs(folder)
    for path in jobs:
        name = load_job(path).name
        if files.get(name, path) != path:
            raise InputError(f"{path} and {files[name]} are both named {name!r}")
        files[name] = path
    if not files:
        raise InputError("give a job file, or --all with a folder of them")
    return files


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
    ledger = open_ledger(settings.ledger)
    with reporting() as reporter:
        run = new_run(job, settings, reporter, key)
        ledger.runs.request(run.job.name, "command", "a command", run.key, force=force)
        try:
            outcome = retrain_recorded(run, ledger.runs, f"{platform.node()}:{os.getpid()}")
        finally:
            run.discard()
    if outcome is not None:
        metric = run.job.gate.metric
        print_leaderboard(outcome.job, outcome.leaderboard(metric), metric, outcome.report["best"])
        return
    record = ledger.runs.get(run.key)
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
    records = open_ledger(settings.ledger).runs.list(job, found, limit)
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
    different = [one for one in replayed if not one.identical]
    title = f"forecast {forecast_id} by {first.model} version {first.version}"
    if not different:
        out.print(f"{title}: {len(replayed)} series, identical to the last bit", markup=False)
        return True
    rows = [[one.issued.unique_id, f"{one.difference:.3g}"] for one in different]
    print_table(title, ["series", "largest difference"], rows)
    out.print(f"{len(different)} of {len(replayed)} series are not identical", markup=False)
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


def promote_model(settings: PipelineSettings, model: str, version: str, override: Override, *, hold: bool) -> None:
    """Make a version the champion, and record who did it and why."""
    champion = promote_by_hand(settings, model, version, override, hold=hold)
    out.print(f"{model} version {champion.version} is the champion", markup=False)


def roll_back(settings: PipelineSettings, model: str, override: Override) -> None:
    """Return to the champion before this one, and record who did it and why."""
    champion = roll_back_by_hand(settings, model, override)
    out.print(f"{model} version {champion.version} is the champion again", markup=False)


def judge_job(settings: PipelineSettings, job: Path) -> None:
    """Judge the version in a job's shadow, and print what came of it."""
    config = load_job(job)
    with closing(open_ledger(settings.ledger)) as ledger:
        note = note_in(settings.tracking, config)
        court = Court(open_registry(settings.registry), ledger.decisions, ledger.scores, note)
        decision = judge_shadow(court, config)
    told = "nobody is in the shadow" if decision is None else f"{decision.action}: {decision.reason}"
    out.print(f"{config.name}: {told}", markup=False)


def tend_jobs(settings: PipelineSettings, jobs: Sequence[Path], folder: Path | None) -> None:
    """Go one round of the closed loop, and print what it came to."""
    files = _list_jobs(jobs, folder)
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


def list_decisions(settings: PipelineSettings, model: str | None, limit: int, *, as_json: bool) -> None:
    """Print the newest decisions, newest first."""
    with closing(open_ledger(settings.ledger)) as ledger:
        found = ledger.decisions.of_model(model, limit=limit)
    if as_json:
        for one in found:
            out.print(json.dumps(asdict(one), default=str), markup=False)
        return
    if not found:
        out.print("no decisions yet; `hindcast retrain JOB` makes one", markup=False)
        return
    rows = [
        [f"{d.decided_at:%Y-%m-%d %H:%M}", d.model, d.version, d.against or "", d.action, d.by, d.reason]
        for d in found
    ]
    print_table("decisions", ["when (UTC)", "model", "version", "against", "action", "by", "reason"], rows)


def serve(settings: PipelineSettings, host: str | None, port: int | None) -> None:
    """Become the service."""
    # The registry is passed on because its default follows the tracking store, which the service knows not.
    flags = {"HINDCAST_HOST": host, "HINDCAST_PORT": port, "HINDCAST_REGISTRY_URI": settings.registry}
    environment = {**os.environ, **{name: str(value) for name, value in flags.items() if value is not None}}
    # The service is another process image: no pipeline imports it, and it brings no training along.
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, "-m", "service"], environment)  # noqa: S606
