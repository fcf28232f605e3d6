"""The command line: it does what its help says, and ends with the exit code its docs promise."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from forecasting.errors import (
    ArtifactError,
    InputError,
    JobError,
    LedgerUnavailableError,
    ModelNotFoundError,
    RegistryUnavailableError,
    SourceError,
    TrainingError,
)
from forecasting.frame import forecast_frame
from forecasting.mlflow_registry import open_client
from forecasting.registry import TAG_DECISION, load_version, open_registry
from pipelines.cli import app, exit_code_of
from pipelines.commands import serving
from pipelines.settings import PipelineSettings
from service.key_store import load_keys
from tests.conftest import free_port
from tests.pipelines.conftest import TINY
from training.sources.base import SourceContext
from training.sources.simulate import SimulateSource

COMMANDS = (
    "train",
    "backtest",
    "retrain",
    "runs",
    "search",
    "ingest",
    "watch",
    "bridge",
    "worker",
    "forecast",
    "replay",
    "issue",
    "score",
    "check",
    "tend",
    "models",
    "promote",
    "rollback",
    "trial",
    "decisions",
    "serve",
    "keys",
    "demo",
)


@pytest.fixture
def cli(settings: PipelineSettings) -> CliRunner:
    assert settings.home, "the fixture points HINDCAST_HOME to a temporary folder"
    return CliRunner()


def hindcast(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", "from pipelines.cli import main; main()", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, check=False)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_help_text_with_an_example(cli: CliRunner, command: str) -> None:
    result = cli.invoke(app, [command, "--help"])
    assert result.exit_code == 0
    assert f"hindcast {command}" in result.output


def test_help_does_not_wait_for_torch_or_mlflow() -> None:
    code = "import sys, pipelines.cli; print({'torch', 'mlflow', 'pandas', 'dbos', 'optuna'} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"


def test_there_are_no_commands_without_a_test() -> None:
    assert {c.name for c in app.registered_commands} == set(COMMANDS)


def test_the_life_of_a_forecast(cli: CliRunner, tmp_path: Path) -> None:
    """Ingest, retrain from the ledger, issue; then the truth arrives, is scored, and asks for a retraining."""

    def run(*arguments: str) -> str:
        result = cli.invoke(app, [*arguments], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return " ".join(result.output.split())

    source = SimulateSource(n_sensors=2, n_steps=400, freq="h", seed=1, missing_rate=0.0)
    frame = source.load(SourceContext(tmp_path, tmp_path))[["unique_id", "ds", "y"]]
    known = frame["ds"] < frame["ds"].unique()[396]
    frame[known].to_csv(tmp_path / "plant.csv", index=False)
    job = tmp_path / "plant.yaml"
    text = TINY.replace("name: tiny", "name: plant").replace(
        "  - {kind: lstm, input_size: 24, hidden_size: 8}\n", ""
    )
    feed = "{kind: ledger, dataset: hall, feed: {kind: csv, path: plant.csv}}"
    simulated = "{kind: simulate, n_sensors: 2, n_steps: 500, freq: h, seed: 1}"
    job.write_text(text.replace(simulated, feed) + "triggers: {new_data: 8, pause_hours: 0}\n")

    assert "792 values new" in run("ingest", str(job))
    assert "0 values new, 0 revised, 792 unchanged" in run("ingest", str(job))
    assert "plant version 1 promoted" in run("retrain", str(job))
    assert "no reason to retrain" in run("check", str(job))
    assert "plant: 2 forecasts issued by the champion" in run("issue", str(job))
    assert "plant: 0 forecasts issued by the champion" in run("issue", "plant")
    assert "2 forecasts looked at, 0 scores written" in run("score")

    frame.to_csv(tmp_path / "plant.csv", index=False)
    assert "8 values new" in run("ingest", str(job))
    assert "2 forecasts looked at, 16 scores written" in run("score", "plant")
    assert "new_data" in run("check", str(job))
    tended = run("tend", str(job))
    assert "plant: 2 forecasts issued" in tended
    assert "a retraining is asked for: 8 values" in tended
    assert "new_data" in run("runs", "plant", "--state", "queued")


def test_the_life_of_a_model(cli: CliRunner, job_file: Path, settings: PipelineSettings, tmp_path: Path) -> None:
    assert "no models yet" in cli.invoke(app, ["models"]).output
    assert "no decisions yet" in cli.invoke(app, ["decisions"]).output

    trained = cli.invoke(app, ["train", str(job_file)], catch_exceptions=False)
    assert "registered tiny version 1 as challenger" in trained.output
    assert "seasonal_naive" in trained.output
    retrained = cli.invoke(app, ["retrain", str(job_file)], catch_exceptions=False)
    assert "tiny version 2 promoted: crps on 6 cutoffs" in retrained.output

    for _ in range(2):
        skipped = cli.invoke(app, ["retrain", str(job_file), "--key", "again"], catch_exceptions=False)
        assert "run again of tiny is skipped: nothing changed since run tiny-" in skipped.output
    lines = cli.invoke(app, ["runs", "tiny", "--json"], catch_exceptions=False).output.splitlines()
    told = [json.loads(line) for line in lines]
    assert [(run["state"], run["version"]) for run in told] == [("skipped", None), ("done", "2")]
    table = cli.invoke(app, ["runs", "--state", "done", "--limit", "1"], catch_exceptions=False).output
    assert "2 promoted" in table
    assert "again" not in table
    assert cli.invoke(app, ["runs", "--state", "failed"]).output == "no such run\n"
    assert exit_code_of(cli.invoke(app, ["runs", "--state", "lost"]).exception or Exception()) == 2

    listed = cli.invoke(app, ["models"]).output
    assert "challenger, champion" in listed
    promoted = cli.invoke(app, ["promote", "tiny", "1", "--reason", "by hand, to see"])
    assert promoted.output.strip() == "tiny version 1 is the champion"
    assert "by hand, to see" in cli.invoke(app, ["models"]).output
    assert open_registry(settings.registry).resolve("tiny").tags[TAG_DECISION] == "promoted"
    rolled = cli.invoke(app, ["rollback", "tiny", "--reason", "seen enough", "--user", "kim"])
    assert rolled.output.strip() == "tiny version 2 is the champion again"
    lines = cli.invoke(app, ["decisions", "tiny", "--json"]).output.splitlines()
    decisions = [json.loads(line) for line in lines]
    assert [(d["version"], d["action"], d["kind"]) for d in decisions] == [
        ("1", "rollback", "override"),
        ("1", "promote", "override"),
        ("2", "promote", "first"),
    ]
    assert (decisions[0]["by"], decisions[0]["reason"], decisions[0]["against"]) == (
        "person kim",
        "seen enough",
        "2",
    )
    shown = cli.invoke(app, ["decisions", "--limit", "1"]).output
    assert "seen enough" in shown
    assert "by hand, to see" not in shown

    source = SimulateSource(n_sensors=2, n_steps=100, freq="h", seed=1, missing_rate=0.0)
    frame = source.load(SourceContext(tmp_path, tmp_path))[["unique_id", "ds", "y"]].dropna()
    frame.to_csv(tmp_path / "history.csv", index=False)
    shown = cli.invoke(app, ["forecast", "tiny", "--input", str(tmp_path / "history.csv"), "--level", "80"])
    assert shown.exit_code == 0
    assert "lo-80" in shown.output
    assert "lo-95" not in shown.output

    for name in ("forecast.csv", "forecast.parquet"):
        out = tmp_path / name
        cli.invoke(
            app,
            ["forecast", "tiny", "--input", str(tmp_path / "history.csv"), "--output", str(out)],
            catch_exceptions=False,
        )
        found = pd.read_parquet(out) if name.endswith("parquet") else pd.read_csv(out)
        registry = open_registry(settings.registry)
        expected = forecast_frame(load_version(registry, registry.resolve("tiny")), frame)
        np.testing.assert_allclose(found["mean"], expected["mean"], rtol=1e-6)
        assert len(found) == 2 * 4


def test_a_backtest_can_be_kept_and_drawn(cli: CliRunner, job_file: Path, tmp_path: Path) -> None:
    cli.invoke(
        app,
        ["backtest", str(job_file), "--out", str(tmp_path / "results"), "--picture", str(tmp_path / "p.png")],
        catch_exceptions=False,
    )
    rows = pd.read_parquet(tmp_path / "results/lstm/forecasts.parquet")
    assert {"unique_id", "cutoff", "ds", "step", "y", "mean", "lo-80", "hi-95"} <= set(rows.columns)
    assert (tmp_path / "results/naive/error_by_step.html").stat().st_size > 1_000_000
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


def test_a_picture_shows_the_newest_forecast_or_those_of_several_cutoffs(
    cli: CliRunner, job_file: Path, tmp_path: Path
) -> None:
    command = ["backtest", str(job_file), "--picture"]
    cli.invoke(app, [*command, str(tmp_path / "one.svg")], catch_exceptions=False)
    cli.invoke(app, [*command, str(tmp_path / "three.svg"), "--cutoffs", "3"], catch_exceptions=False)
    one, three = ((tmp_path / name).read_text() for name in ("one.svg", "three.svg"))
    assert "3 forecasts, each from its cutoff" in three
    assert "each from its cutoff" not in one
    assert "what happened" in one


def test_a_backtest_is_kept_without_the_candidate_that_failed(
    cli: CliRunner, gappy_job: Path, tmp_path: Path
) -> None:
    command = ["backtest", str(gappy_job), "--out", str(tmp_path / "results")]
    kept = cli.invoke(app, command, catch_exceptions=False)
    assert "lstm failed: no window to train with" in kept.output
    assert kept.exit_code == 0
    assert {path.name for path in (tmp_path / "results").iterdir()} == {"naive", "seasonal_naive", "drift", "mlp"}


def test_a_picture_that_cannot_be_drawn_is_refused_before_the_training(cli: CliRunner, job_file: Path) -> None:
    result = cli.invoke(app, ["backtest", str(job_file), "--picture", "forecast.doc"])
    assert isinstance(result.exception, InputError)
    assert "epoch" not in result.output


def test_a_finished_or_failed_run_leaves_no_folder_behind(
    cli: CliRunner, job_file: Path, settings: PipelineSettings
) -> None:
    cli.invoke(app, ["backtest", str(job_file)], catch_exceptions=False)
    job_file.write_text(job_file.read_text().replace("n_windows: 6", "n_windows: 600"))
    assert cli.invoke(app, ["backtest", str(job_file)]).exit_code == 1
    assert list((settings.home / "runs").iterdir()) == []


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (TrainingError("x"), 1),
        (ArtifactError("x"), 1),
        (InputError("x"), 2),
        (JobError("x"), 2),
        (SourceError("x"), 3),
        (RegistryUnavailableError("x"), 3),
        (LedgerUnavailableError("x"), 3),
        (ModelNotFoundError("x"), 4),
    ],
)
def test_exit_codes_mean_what_the_docs_say(error: Exception, code: int) -> None:
    assert exit_code_of(error) == code


@pytest.mark.parametrize("command", ["train", "retrain", "backtest"])
def test_ctrl_c_ends_a_training_with_nothing_left_half_done(
    command: str, job_file: Path, tmp_path: Path, lay_store: Callable[[Path], str]
) -> None:
    """The real signal, to the real process, in the middle of an LSTM that would train for minutes."""
    endless = "hidden_size: 8, training: {max_epochs: 9999, patience: 9999}"
    job_file.write_text(job_file.read_text().replace("hidden_size: 8", endless))
    home = tmp_path / "home"
    lay_store(home)
    arguments = [sys.executable, "-c", "from pipelines.cli import main; main()", command, str(job_file)]
    environment = {**os.environ, "HINDCAST_HOME": str(home), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        next(line for line in process.stdout if line.startswith("lstm: epoch 1 "))
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.strip().splitlines()[-1] == "interrupted; nothing was left half done"
    assert "Traceback" not in errors
    assert list((home / "runs").iterdir()) == []
    if command != "backtest":
        client = open_client(f"sqlite:///{home}/mlflow.db")
        experiment = client.get_experiment_by_name("tiny")
        assert experiment is not None
        runs = client.search_runs([experiment.experiment_id])
        closed = {r.info.run_name: r.info.status for r in runs if not r.info.run_name.startswith("train ")}
        assert closed["lstm"] == "KILLED"
        assert closed["mlp"] == "FINISHED"
        assert [r.info.status for r in runs if r.info.run_name.startswith("train ")] == ["KILLED"]
        assert client.search_registered_models() == []


def test_an_error_is_one_line_without_a_traceback(job_file: Path, tmp_path: Path) -> None:
    job_file.write_text("name: broken")
    result = hindcast("retrain", str(job_file), HINDCAST_HOME=str(tmp_path / "home"))
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert "source: Field required" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_registry_that_is_down_ends_with_its_own_code(tmp_path: Path) -> None:
    uri = f"http://127.0.0.1:{free_port()}"
    result = hindcast("models", HINDCAST_HOME=str(tmp_path / "home"), HINDCAST_TRACKING_URI=uri)
    assert result.returncode == 3
    assert "did not answer" in result.stderr


@pytest.mark.parametrize("command", [["models"], ["retrain", "no-such-job.yaml"], ["score"]])
def test_a_setting_that_cannot_be_is_named_without_waiting_for_torch_or_mlflow(
    command: list[str], tmp_path: Path
) -> None:
    shown = "print({'torch', 'mlflow'} & sys.modules.keys())"
    code = f"import sys; from pipelines.cli import main\ntry: main()\nfinally: {shown}"
    environment = {**os.environ, "HINDCAST_HOME": str(tmp_path / "home"), "HINDCAST_TRAINING_THREADS": "many"}
    result = subprocess.run(
        [sys.executable, "-c", code, *command], capture_output=True, text=True, env=environment, check=False
    )
    assert result.returncode == 2
    assert "HINDCAST_TRAINING_THREADS" in result.stderr
    assert result.stdout.strip() == "set()"


def test_away_from_a_terminal_lines_are_plain(cli: CliRunner, job_file: Path) -> None:
    output = cli.invoke(app, ["backtest", str(job_file)]).output
    assert "\x1b[" not in output
    assert "mlp: epoch 1 of 3" in output


def test_serve_hands_its_flags_to_the_service(tmp_path: Path) -> None:
    """A flag out of range is refused by the service itself, which shows that it arrived there."""
    home = str(tmp_path / "home")
    result = hindcast("serve", "--port", "99999", HINDCAST_HOME=home)
    assert result.returncode != 0
    assert "HINDCAST_PORT" in result.stderr


def test_keys_are_made_listed_and_revoked(tmp_path: Path) -> None:
    home = str(tmp_path / "home")
    made = hindcast("keys", "create", "dashboard", "--scopes", "read", "--expires", "90d", HINDCAST_HOME=home)
    assert made.returncode == 0
    assert re.fullmatch(r"hc_[0-9a-f]{12}_[0-9a-f]{64}\n", made.stdout)
    (key,) = load_keys(tmp_path / "home" / "keys.json")
    listed = hindcast("keys", "list", "--json", HINDCAST_HOME=home)
    assert json.loads(listed.stdout)["scopes"] == ["read"]
    assert hindcast("keys", "revoke", key.id, HINDCAST_HOME=home).returncode == 0
    assert hindcast("keys", "revoke", "0" * 12, HINDCAST_HOME=home).returncode == 4
    assert hindcast("keys", "burn", HINDCAST_HOME=home).returncode == 2
    assert "--expires" in hindcast("keys", "create", "--help", HINDCAST_HOME=home).stdout


def test_where_the_service_is_not_installed_its_commands_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "find_spec", lambda _: None)
    with pytest.raises(InputError, match="the service is not installed here"):
        serving.manage_keys(["list"])


def test_the_demo_job_files_are_where_the_demo_looks() -> None:
    from pipelines.demo import DEMO_JOBS, JOBS

    assert all((JOBS / f"{name}.yaml").is_file() for name in DEMO_JOBS)
