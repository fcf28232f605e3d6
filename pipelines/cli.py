"""The command line: `hindcast`.

Exit codes: 0 done; 1 something failed; 2 wrong usage, job file or input; 3 a source, the registry or the ledger
did not answer; 4 no such model, version or alias; 130 interrupted.

Torch and MLflow take seconds to import, so a command imports what it runs when it runs, and reads its settings
before: `--help` and a setting that cannot be are at once.
"""

import gc
import logging
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer
from pydantic import ValidationError

from forecasting.errors import (
    HindcastError,
    InputError,
    JobError,
    LedgerUnavailableError,
    ModelNotFoundError,
    RegistryUnavailableError,
    SourceError,
)
from pipelines.console import err
from pipelines.settings import PipelineSettings

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
    (LedgerUnavailableError, 3),
    (SourceError, 3),
    (LedgerUnavailableError, 3),
    (JobError, 2),
    (InputError, 2),
    (HindcastError, 1),
)

EXIT_INTERRUPTED = 130

YOUNG_OBJECTS = 20_000
"""New objects that make the garbage collector look. What a command imports is a million objects that stay; at 700,
Python's own number, looking at them again and again is a quarter of its start."""

JobFile = Annotated[Path, typer.Argument(metavar="JOB", help="A job file, such as jobs/co2.yaml.")]
JobFiles = Annotated[
    list[Path] | None, typer.Argument(metavar="[JOB]...", help="Job files, such as jobs/co2.yaml.")
]
AllJobs = Annotated[Path | None, typer.Option("--all", help="Every job file of this folder.")]
Model = Annotated[str, typer.Argument(metavar="MODEL", help="A registered model: the name of its job.")]
Reason = Annotated[str, typer.Option(help="Why; recorded with the version and in the ledger.")]
Unrecorded = Annotated[
    bool, typer.Option("--unrecorded", help="Do it though the ledger does not answer; only the tags say so then.")
]
User = Annotated[str | None, typer.Option(help="Who decides. Default: the user of this process.")]


def exit_code_of(error: BaseException) -> int:
    """Return the exit code an error ends the process with."""
    return next((code for kind, code in EXIT_CODES if isinstance(error, kind)), 1)


def main() -> None:
    """Run the command line; errors raised on purpose end it with one line and their exit code."""
    gc.set_threshold(YOUNG_OBJECTS, *gc.get_threshold()[1:])
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    for chatty in ("mlflow", "alembic", "matplotlib", "dbos", "httpx", "optuna"):
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
    settings.home.mkdir(parents=True, exist_ok=True)
    return settings


@app.command("train")
def train_command(job: JobFile) -> None:
    """Train a job's candidates, track them in MLflow and register the best as challenger.

    Nothing is promoted; `hindcast promote` does that, or `hindcast retrain` asks the gate.

    Example: `hindcast train jobs/co2.yaml`
    """
    settings = read_settings()
    from pipelines.commands import training

    training.train_job(settings, job)


@app.command("backtest")
def backtest_command(
    jobs: JobFiles = None,
    folder: AllJobs = None,
    to: Annotated[
        Path | None, typer.Option("--out", help="Folder for the forecasts (Parquet) and figures of each model.")
    ] = None,
    picture: Annotated[
        Path | None, typer.Option(help="Draw the best candidate's newest forecast to this PNG or SVG.")
    ] = None,
    cutoffs: Annotated[
        int, typer.Option(min=1, help="Draw the forecasts of so many cutoffs, the newest, as lines.")
    ] = 1,
) -> None:
    """Train a job's candidates and compare them with the baselines and the champion; register nothing.

    Example: `hindcast backtest jobs/co2.yaml --out results`
    """
    settings = read_settings()
    from pipelines.commands import training

    training.backtest_jobs(settings, jobs or [], folder, to, picture, cutoffs)


@app.command("retrain")
def retrain_command(
    jobs: JobFiles = None,
    folder: AllJobs = None,
    key: Annotated[
        str | None, typer.Option(help="Names this run: called again with it, what it came to is shown.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Train also where nothing changed since the last run.")
    ] = False,
) -> None:
    """Train a job, publish the best candidate, and promote it if the gate says so.

    The gate: better than the seasonal naive, and on the same cutoffs shown to be better than the champion (or, its
    own configuration trained anew, not worse by more than the margin). Who may be better and lacks evidence goes
    to the shadow. The decision and its reason are printed and recorded. Not promoting is not a failure.

    Where neither the data nor the job changed since the last run, the run is skipped and says so.

    Example: `hindcast retrain jobs/sp500.yaml --key sp500-monday`
    """
    settings = read_settings()
    from pipelines.commands import training

    training.retrain_jobs(settings, jobs or [], folder, key, force=force)


@app.command("runs")
def runs_command(
    job: Annotated[str | None, typer.Argument(metavar="[JOB]", help="Name of a job. Default: all.")] = None,
    state: Annotated[
        str | None, typer.Option(help="Only runs that are queued, running, done, skipped or failed.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Most runs shown, the newest.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="One line of JSON for each run.")] = False,
) -> None:
    """Show what was retrained, is and failed, who asked for it, and why it came to what it came to.

    Example: `hindcast runs sp500 --state failed`
    """
    settings = read_settings()
    from pipelines.commands import training

    training.list_runs(settings, job, state, limit, as_json=as_json)


@app.command("search")
def search_command(
    job: JobFile,
    trials: Annotated[int | None, typer.Option(min=1, help="Trials to finish. Default: the job's, or 30.")] = None,
    candidate: Annotated[
        str | None, typer.Option(help="Whose settings. Default: the job's, or the first that is trained.")
    ] = None,
) -> None:
    """Try settings of a candidate and print the best, ready for the job file; register nothing.

    Judged on the validation block; the test block stays unseen. Stopped, it goes on where it was when it is
    called again.

    Example: `hindcast search jobs/co2.yaml --trials 50 --candidate lstm`
    """
    settings = read_settings()
    from pipelines.commands import training

    training.search_job(settings, job, trials, candidate)


@app.command("ingest")
def ingest_command(job: JobFile) -> None:
    """Load a job's source, and append to the ledger what is not known there yet.

    The dataset is the job's name, or that of `source: {kind: ledger}`. Bad rows are left out and told; a
    value that differs from the one known is kept as a revision. Repeating it changes nothing.

    Example: `hindcast ingest jobs/co2.yaml`
    """
    settings = read_settings()
    from pipelines.commands import feeding

    feeding.ingest(settings, job)


Dataset = Annotated[str, typer.Option(help="The name the series are kept under in the ledger.")]
Mapped = Annotated[
    str, typer.Option("--columns", help='What a column is, and its name: "unique_id=sensor,ds=time,y=value".')
]


@app.command("watch")
def watch_command(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where files are put.")],
    dataset: Dataset,
    columns: Mapped = "",
    static: Annotated[
        list[str] | None, typer.Option(help="A column that holds names instead of values; may be repeated.")
    ] = None,
    separator: Annotated[str, typer.Option(help="Character between two fields of a CSV file.")] = ",",
    decimal: Annotated[str, typer.Option(help="Decimal sign of a CSV file.")] = ".",
    poll: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks at the folder.")] = 5.0,
    settle: Annotated[float, typer.Option(min=0.0, help="Seconds a file must not have changed.")] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Take in what is there, and end.")] = False,
) -> None:
    """Take every CSV or Parquet file that is put into a folder into the ledger, once and whole.

    Good files are moved to `done/`, bad ones to `rejected/` with the reason beside them. A bad row is left out and
    told in `rejected/`. Write a file under another name (`.tmp`, `.part`) and rename it when it is whole.

    Example: `hindcast watch /data/inbox --dataset plant`
    """
    settings = read_settings()
    from pipelines.commands import feeding

    layout = {"columns": columns, "static": static or [], "separator": separator, "decimal": decimal}
    feeding.watch(settings, folder, dataset, layout, poll, settle, once)


@app.command("bridge")
def bridge_command(
    kind: Annotated[Literal["mqtt"], typer.Argument(metavar="KIND", help="mqtt, the one there is.")],
    dataset: Dataset,
    topic: Annotated[
        list[str],
        typer.Option(help="Topics, such as plant/{unique_id}/{column} or plant/+/value; may be repeated."),
    ],
    broker: Annotated[str, typer.Option(help="mqtt://user@host:1883, or mqtts:// for TLS.")] = "mqtt://127.0.0.1",
    columns: Mapped = "",
    epoch: Annotated[
        Literal["s", "ms", "us"] | None,
        typer.Option(help="Timestamps in messages are numbers since 1970, in this."),
    ] = None,
    every: Annotated[
        str | None, typer.Option(help="Round the time of arrival down to this step, such as 10s or 1min.")
    ] = None,
    client_id: Annotated[
        str | None, typer.Option(help="Name of the session at the broker. Default: hindcast- and the dataset.")
    ] = None,
) -> None:
    """Carry the messages of an MQTT broker into the ledger until stopped, each at least once.

    A message is a number, or JSON: an object with `y`, `ds` and further columns, or a list of them. It is
    acknowledged when it is kept; a bad one is set aside with the reason, below HINDCAST_HOME.

    Example: `hindcast bridge mqtt --dataset plant --topic "plant/{unique_id}/value" --every 10s`
    """
    settings = read_settings()
    from pipelines.commands import feeding

    del kind
    feeding.bridge(settings, dataset, topic, broker, columns, epoch, every, client_id)


@app.command("worker")
def worker_command(
    jobs: Annotated[Path | None, typer.Option(help="Folder of job files. Default: HINDCAST_JOBS_DIR.")] = None,
) -> None:
    """Retrain every job on its schedule until stopped; survives being killed.

    Example: `HINDCAST_SCHEDULER_DB=postgresql://localhost/hindcast hindcast worker --jobs jobs`
    """
    settings = read_settings()
    from pipelines.commands import training

    training.run_worker(settings, jobs)


@app.command("forecast")
def forecast_command(
    model: Model,
    source: Annotated[
        Path, typer.Option("--input", help="CSV or Parquet with unique_id, ds and y; with --batch Parquet only.")
    ],
    to: Annotated[
        Path | None,
        typer.Option("--output", help="Write a CSV or Parquet instead of a table; with --batch a folder."),
    ] = None,
    level: Annotated[list[float] | None, typer.Option(help="Interval in percent; may be repeated.")] = None,
    alias: Annotated[str, typer.Option(help="Which version: an alias or a number.")] = "champion",
    batch: Annotated[
        bool, typer.Option("--batch", help="A panel larger than memory: part by part, and resumable.")
    ] = False,
    part_rows: Annotated[int, typer.Option(min=1, help="With --batch: rows of input in a part.")] = 1_000_000,
) -> None:
    """Forecast every series of a file with a registered model.

    With `--batch` the output is a folder of Parquet parts. Stopped, it goes on where it was when it is called
    again; series that cannot be forecast are listed in `_rejects.csv`.

    Example: `hindcast forecast co2 --input co2.csv --level 80 --output forecast.csv`
    """
    settings = read_settings()
    from pipelines.commands import forecasts

    if batch:
        forecasts.forecast_panel_in_parts(settings, model, source, to, level, alias, part_rows)
        return
    forecasts.forecast_file(settings, model, source, to, level, alias)


@app.command("replay")
def replay_command(
    forecast_id: Annotated[str, typer.Argument(metavar="FORECAST_ID", help="The forecast_id of an answer.")],
    threads: Annotated[int, typer.Option(min=1, help="CPU threads: those of the service.")] = 1,
    device: Annotated[str, typer.Option(help="cpu or cuda: that of the service.")] = "cpu",
) -> None:
    """Compute a forecast again from the ledger's record, and say whether it is the same, but for rounding.

    Ends with 1 if it is not, and shows the largest difference.

    Example: `hindcast replay 0b0f6f5e-6f0c-4d2b-9a53-2f1f0d6c3c55`
    """
    settings = read_settings()
    from pipelines.commands import forecasts

    if not forecasts.replay_forecast(settings, forecast_id, threads, device):
        raise typer.Exit(1)


@app.command("issue")
def issue_command(
    job: Annotated[str, typer.Argument(metavar="JOB|MODEL", help="A job file, or the name of a model.")],
) -> None:
    """Forecast every series of a model at its newest cutoff, from the ledger alone, and keep the forecasts.

    By the champion, and at the same cutoffs by the version in the shadow, if there is one; that version also
    forecasts what the service was asked meanwhile. Asked again, only what is new is forecast.

    Example: `hindcast issue jobs/pumps.yaml`
    """
    settings = read_settings()
    from pipelines.commands import forecasts

    forecasts.issue_forecasts(settings, job)


@app.command("score")
def score_command(
    model: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="Whose scores to print. Default: all.")
    ] = None,
    retain: Annotated[
        float | None, typer.Option(min=0, help="Retire forecasts issued more days ago; sums of their scores stay.")
    ] = None,
    by: Annotated[
        list[str] | None, typer.Option(help="Print a row for each unique_id or step too; may be repeated.")
    ] = None,
) -> None:
    """Score every forecast whose truth has arrived, adjust intervals by it, and print how right the models were.

    Example: `hindcast score pumps --by step --retain 90`
    """
    settings = read_settings()
    from pipelines.commands import forecasts

    forecasts.score_forecasts(settings, model, retain, by or [])


@app.command("check")
def check_command(
    job: JobFile,
    request: Annotated[bool, typer.Option("--request", help="Queue the retraining for a worker.")] = False,
) -> None:
    """Look for reasons to retrain a job besides the clock: its `triggers:`.

    Live skill below the gate's margin, coverage out of band, drift of what is observed, enough new data.

    Example: `hindcast check jobs/pumps.yaml --request`
    """
    settings = read_settings()
    from pipelines.commands import forecasts

    forecasts.check_job(settings, job, request=request)


@app.command("tend")
def tend_command(jobs: JobFiles = None, folder: AllJobs = None) -> None:
    """Go one round of the closed loop: score what has matured, issue, judge the shadow, ask for retrainings.

    The worker does the same every minute; this is for cron, or for a look. A round may be gone at any time and
    again: what is done already is not done twice.

    Example: `hindcast tend --all jobs`
    """
    settings = read_settings()
    from pipelines.commands import forecasts

    forecasts.tend_jobs(settings, jobs or [], folder)


@app.command("models")
def models_command() -> None:
    """List the registered models: versions, aliases, and why each was promoted or not.

    Example: `hindcast models`
    """
    settings = read_settings()
    from pipelines.commands import models

    models.list_models(settings)


@app.command("promote")
def promote_command(
    model: Model,
    version: Annotated[str, typer.Argument(help="Version number.")],
    reason: Reason = "promoted by hand",
    user: User = None,
    unrecorded: Unrecorded = False,
    hold: Annotated[
        bool, typer.Option("--hold", help="Do not watch it: it stays even if it does worse than the one before.")
    ] = False,
) -> None:
    """Make a version the champion, whatever the gate said; who did it and why is recorded.

    The champion before it forecasts on in the shadow, and comes back by itself if the new one does worse live.

    Example: `hindcast promote co2 3 --reason "sensor was replaced"`
    """
    settings = read_settings()
    from pipelines.commands import models
    from pipelines.override import Override

    override = Override(reason, user, unrecorded=unrecorded)
    models.promote_model(settings, model, version, override, hold=hold)


@app.command("rollback")
def rollback_command(
    model: Model, reason: Reason = "rolled back by hand", user: User = None, unrecorded: Unrecorded = False
) -> None:
    """Return to the champion before this one; who did it and why is recorded.

    Example: `hindcast rollback co2 --reason "its intervals are too narrow"`
    """
    settings = read_settings()
    from pipelines.commands import models
    from pipelines.override import Override

    models.roll_back(settings, model, Override(reason, user, unrecorded=unrecorded))


@app.command("trial")
def trial_command(job: JobFile) -> None:
    """Judge the version in a job's shadow by what it and the champion forecast live at the same cutoffs.

    A challenger on trial is promoted when the evidence suffices, and a new champion that is worse than the one
    before it makes way. Run it after `hindcast score`; it may be run as often as you like.

    Example: `hindcast trial jobs/co2.yaml`
    """
    settings = read_settings()
    from pipelines.commands import models

    models.judge_job(settings, job)


@app.command("decisions")
def decisions_command(
    model: Annotated[str | None, typer.Argument(metavar="[MODEL]", help="One model. Default: all.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="The newest so many.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line, with all numbers.")] = False,
) -> None:
    """List what was decided about versions: promoted, sent to the shadow, kept out, rolled back; by whom and why.

    Example: `hindcast decisions co2 --limit 5 --json`
    """
    settings = read_settings()
    from pipelines.commands import models

    models.list_decisions(settings, model, limit, as_json=as_json)


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
    settings = read_settings()
    from pipelines.commands import serving

    serving.serve(settings, host, port)


@app.command(
    "keys",
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True, "allow_interspersed_args": False},
)
def keys_command(
    context: typer.Context,
    action: Annotated[
        str, typer.Argument(metavar="create|list|revoke", help="`create --help` tells its options.")
    ],
) -> None:
    """Create, list and revoke the API keys of the service.

    Examples: `hindcast keys create dashboard --scopes forecast,read --expires 90d`, `hindcast keys list`,
    `hindcast keys revoke 4f0c2a9d81be`
    """
    from pipelines.commands import serving

    serving.manage_keys([action, *context.args])


@app.command("demo")
def demo_command(
    once: Annotated[bool, typer.Option("--once", help="Stop after the forecasts instead of serving on.")] = False,
    port: Annotated[int, typer.Option(help="Port of the service on 127.0.0.1.")] = 8000,
) -> None:
    """Train two jobs on real data, promote the winners, serve them, and ask for a forecast of each.

    Example: `hindcast demo --once`
    """
    settings = read_settings()
    from pipelines.demo import run_demo

    run_demo(settings, port=port, once=once)
