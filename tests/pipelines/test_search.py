"""A search end to end, on a real study in a file and a real MLflow store."""

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
import pytest
import yaml
from mlflow.artifacts import download_artifacts
from mlflow.entities import Run as MlflowRun
from mlflow.tracking import MlflowClient
from typer.testing import CliRunner

from forecasting.errors import HindcastError, JobError, TrainingError
from forecasting.registry import open_registry
from pipelines import search as search_module
from pipelines.cli import app
from pipelines.retrain import backtest
from pipelines.run import new_run
from pipelines.search import Found, search
from pipelines.settings import PipelineSettings
from tests.pipelines.conftest import TINY
from training.job import SearchConfig, parse_job

SIMULATED = "source: {kind: simulate, n_sensors: 2, n_steps: 500, freq: h, seed: 1}"
SMALL = TINY.replace("max_epochs: 3", "max_epochs: 3, steps_per_epoch: 5")
SPACE: dict[str, Any] = {
    "hidden_size": [4, 8, 16],
    "input_size": [12, 24],
    "learning_rate": {"low": 0.001, "high": 0.05, "log": True},
}


@dataclass
class Listener:
    """A reporter that remembers what it was told, and may interrupt."""

    lines: list[str] = field(default_factory=list)
    interrupt_at: tuple[str, int] | None = None

    def say(self, line: str) -> None:
        self.lines.append(line)

    def epoch(self, candidate: str, epoch: int, of: int, metrics: Mapping[str, float]) -> None:
        if (candidate, epoch) == self.interrupt_at:
            raise KeyboardInterrupt

    def done(self, candidate: str) -> None:
        pass


@pytest.fixture
def small_job(job_file: Path) -> Path:
    job_file.write_text(SMALL)
    return job_file


def look(
    job: Path, settings: PipelineSettings, listener: Listener | None = None, trials: int = 3, **config: Any
) -> Found:
    content = {"candidate": "mlp", "trials": trials, "space": SPACE, **config}
    run = new_run(job, settings, listener or Listener())
    return search(run, SearchConfig.model_validate(content))


def study_trials(settings: PipelineSettings) -> list[optuna.trial.FrozenTrial]:
    storage = optuna.storages.RDBStorage(f"sqlite:///{settings.home}/studies/tiny.db")
    trials = [
        trial
        for summary in optuna.get_all_study_summaries(storage)
        for trial in optuna.load_study(study_name=summary.study_name, storage=storage).trials
    ]
    storage.remove_session()
    storage.engine.dispose()
    return trials


def runs_of(settings: PipelineSettings) -> dict[str, MlflowRun]:
    """Return the runs of one search by name."""
    client = MlflowClient(settings.tracking)
    experiment = client.get_experiment_by_name("tiny")
    assert experiment is not None
    found = list(client.search_runs([experiment.experiment_id]))
    assert len({r.info.run_name for r in found}) == len(found)
    return {r.info.run_name: r for r in found}


def write_series(path: Path, *, test_block: float = 0.0, seed: int = 0) -> None:
    y = np.random.default_rng(seed).normal(size=500).cumsum()
    rows = pd.DataFrame({"unique_id": "a", "ds": pd.date_range("2024-01-01", periods=500, freq="h"), "y": y})
    rows.loc[476:, "y"] += test_block
    rows.to_csv(path, index=False)


def test_a_search_begins_with_what_the_job_has_and_can_only_be_better(
    small_job: Path, settings: PipelineSettings
) -> None:
    listener = Listener()
    found = look(small_job, settings, listener, trials=4)
    assert [tried.number for tried in found.trials] == [0, 1, 2, 3]
    assert found.trials[0].current
    assert found.trials[0].settings == {"hidden_size": 16, "input_size": 24, "learning_rate": 0.01}
    assert found.best.score <= found.trials[0].score
    assert found.best.score == min(tried.score for tried in found.trials)
    told = [line for line in listener.lines if line.startswith("trial ")]
    assert len(told) == 4
    assert told[0].startswith(f"trial 0 (1 of 4): crps {found.trials[0].score:.5g}, best")
    assert "(the job's own)" in told[0]
    assert open_registry(settings.registry).models() == []


def test_the_best_candidate_put_into_the_job_trains_to_the_score_it_was_chosen_for(
    small_job: Path, settings: PipelineSettings
) -> None:
    found = look(small_job, settings, trials=4)
    content = yaml.safe_load(SMALL)
    content["candidates"][0] = yaml.safe_load(found.line)[0]
    small_job.write_text(yaml.safe_dump(content))
    job = parse_job(small_job.read_text())
    in_force = {**job.training_of(job.candidates[0]).model_dump(), **job.candidates[0].network.model_dump()}
    assert {name: in_force[name] for name in SPACE} == found.best.settings
    outcome = backtest(new_run(small_job, settings, Listener()))
    assert outcome.report["validation"]["mlp"]["crps"] == pytest.approx(found.best.score, rel=1e-6)


def test_mlflow_nests_the_trials_below_the_search(
    small_job: Path, settings: PipelineSettings, tmp_path: Path
) -> None:
    found = look(small_job, settings, trials=9)
    runs = runs_of(settings)
    parent = runs.pop("search mlp")
    assert set(runs) == {f"trial {n}" for n in range(9)}
    assert {r.data.tags["mlflow.parentRunId"] for r in runs.values()} == {parent.info.run_id}
    assert {r.info.status for r in (parent, *runs.values())} == {"FINISHED"}
    client = MlflowClient(settings.tracking)
    for tried in found.trials:
        run = runs[f"trial {tried.number}"]
        assert run.data.tags["hindcast.trial_state"] == tried.result
        assert run.data.params["network.hidden_size"] == str(tried.settings["hidden_size"])
        assert float(run.data.params["training.learning_rate"]) == tried.settings["learning_rate"]
        if tried.result == "complete":
            assert run.data.metrics["val/crps"] == tried.score
            history = client.get_metric_history(run.info.run_id, "val/loss")
            assert [m.step for m in history] == [1, 2, 3]
        assert not any(name.startswith("test/") for name in run.data.metrics)
    assert parent.data.metrics["best/crps"] == found.best.score
    assert parent.data.tags["hindcast.best_trial"] == str(found.best.number)

    local = Path(
        download_artifacts(run_id=parent.info.run_id, tracking_uri=settings.tracking, dst_path=str(tmp_path))
    )
    for figure in ("optimization_history", "param_importances"):
        page = (local / f"figures/{figure}.html").read_text()
        assert "Plotly.newPlot" in page
        assert 'src="http' not in page
    assert (local / "best_candidate.yaml").read_text().strip() == found.line
    assert len(pd.read_parquet(local / "tables/trials.parquet")) == 9
    best = runs[f"trial {found.best.number}"].info.run_id
    job_text = client.download_artifacts(best, "job.yaml", str(tmp_path))
    assert (
        parse_job(Path(job_text).read_text()).candidates[0].network.hidden_size
        == found.best.settings["hidden_size"]
    )


def test_an_interrupted_search_goes_on_as_if_it_had_not_been(
    small_job: Path, settings: PipelineSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = look(small_job, settings, trials=12)
    monkeypatch.setenv("HINDCAST_HOME", str(tmp_path / "other"))
    settings = PipelineSettings()
    for name in ("trial 0", "trial 4"):
        listener = Listener(interrupt_at=(name, 2))
        with pytest.raises(KeyboardInterrupt):
            look(small_job, settings, listener, trials=12)
        assert listener.lines[-1].endswith("of 12 trials; the same command goes on from there")
        assert runs_of(settings)[name].info.status == "KILLED"
        assert runs_of(settings)["search mlp"].info.status == "KILLED"
    listener = Listener()
    parts = look(small_job, settings, listener, trials=12)
    assert "3 of 12 trials are finished; going on from there" in listener.lines
    assert [t.settings for t in parts.trials] == [t.settings for t in whole.trials]
    assert [t.score for t in parts.trials] == [t.score for t in whole.trials]
    assert [t.current for t in parts.trials] == [True] + [False] * 11
    parent = runs_of(settings)["search mlp"]
    assert parent.info.status == "FINISHED"
    assert "hindcast.error" not in parent.data.tags


def test_a_finished_search_trains_nothing_more_unless_more_is_asked(
    small_job: Path, settings: PipelineSettings
) -> None:
    first = look(small_job, settings)
    listener = Listener(interrupt_at=("trial 3", 1))
    assert look(small_job, settings, listener) == first
    assert len(look(small_job, settings, trials=4).trials) == 4


def test_a_trial_of_a_killed_process_does_not_count_and_is_made_again(
    small_job: Path, settings: PipelineSettings
) -> None:
    look(small_job, settings, trials=2)
    storage = optuna.storages.RDBStorage(f"sqlite:///{settings.home}/studies/tiny.db")
    name = optuna.get_all_study_summaries(storage)[0].study_name
    left = optuna.load_study(study_name=name, storage=storage).ask()
    left.set_user_attr("result", "complete")
    storage.remove_session()
    storage.engine.dispose()
    found = look(small_job, settings, trials=3)
    assert [tried.number for tried in found.trials] == [0, 1, 3]
    assert study_trials(settings)[2].state == optuna.trial.TrialState.FAIL


def test_the_test_block_changes_nothing_of_a_search(
    small_job: Path, settings: PipelineSettings, tmp_path: Path
) -> None:
    """Settings and scores of every trial, from data that differ in nothing but the test block."""
    small_job.write_text(SMALL.replace(SIMULATED, "source: {kind: csv, path: a.csv}"))

    def found_with(test_block: float) -> Found:
        write_series(tmp_path / "a.csv", test_block=test_block)
        return look(small_job, settings, trials=6, space={**SPACE, "scaling": ["last", "mean"]})

    assert found_with(0.0) == found_with(1e7)
    write_series(tmp_path / "a.csv", seed=1)
    assert look(small_job, settings, trials=1).best.score != found_with(0.0).trials[0].score


def test_no_trial_is_handed_a_value_of_the_test_block(
    small_job: Path, settings: PipelineSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    handed = []
    fit = search_module.fit_forecaster

    def look_at(run: Any, parent: None, name: str) -> Any:
        handed.append((run.panel.n_steps, run.tensors.x_NT.shape[1], run.split.test))
        return fit(run, parent, name)

    monkeypatch.setattr(search_module, "fit_forecaster", look_at)
    look(small_job, settings, trials=2)
    assert handed == [(476, 476, 476)] * 2


@pytest.mark.parametrize("changed", ["data", "space", "job's other settings"])
def test_what_changes_the_scores_starts_a_new_study_and_says_so(
    changed: str, small_job: Path, settings: PipelineSettings
) -> None:
    look(small_job, settings, trials=2)
    listener = Listener()
    if changed == "data":
        small_job.write_text(SMALL.replace("seed: 1", "seed: 2"))
    if changed == "job's other settings":
        small_job.write_text(SMALL.replace("max_epochs: 3", "max_epochs: 2"))
    space = {"hidden_size": [4, 16]} if changed == "space" else SPACE
    found = look(small_job, settings, listener, trials=1, space=space)
    assert f"the {changed} changed since the last search of mlp: a new study" in listener.lines
    assert [tried.number for tried in found.trials] == [0]
    assert found.trials[0].current
    listener = Listener()
    look(small_job, settings, listener, trials=1, candidate="lstm", space={"layers": [1, 2]})
    assert not any("changed" in line for line in listener.lines), "another candidate is another search"


def test_a_trial_that_fails_counts_says_why_and_leaves_the_search_running(
    small_job: Path, settings: PipelineSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = search_module.fit_forecaster

    def diverge(run: Any, parent: None, name: str) -> Any:
        fitted = fit(run, parent, name)
        if run.job.candidates[0].network.hidden_size == 16:
            return fitted
        return {**fitted, "error": "training diverged in epoch 1"}

    monkeypatch.setattr(search_module, "fit_forecaster", diverge)
    listener = Listener()
    found = look(small_job, settings, listener, trials=6, space={"hidden_size": [4, 16]})
    failed = [tried for tried in found.trials if tried.result == "failed"]
    assert len(found.trials) == 6
    assert failed[0].why == "training diverged in epoch 1"
    assert any(": failed, best " in line and "(training diverged in epoch 1)" in line for line in listener.lines)
    tags = runs_of(settings)[f"trial {failed[0].number}"].data.tags
    assert tags["hindcast.trial_state"] == "failed"
    assert tags["hindcast.trial_note"] == "training diverged in epoch 1"

    small_job.write_text(SMALL.replace("hidden_size: 16", "hidden_size: 8"))
    with pytest.raises(TrainingError, match=r"no trial of the search came to a score: training diverged"):
        look(small_job, settings, trials=2, space={"hidden_size": [4, 8]})


def test_a_trial_that_lags_is_stopped_and_marked(small_job: Path, settings: PipelineSettings) -> None:
    small_job.write_text(SMALL.replace("max_epochs: 3", "max_epochs: 4"))
    space = {"learning_rate": [0.01, 0.011, 0.012, 0.013, 0.014, 1e-9, 2e-9, 3e-9, 4e-9]}
    found = look(small_job, settings, trials=14, space=space)
    pruned = [tried for tried in found.trials if tried.result == "pruned"]
    assert pruned
    assert all(float(tried.settings["learning_rate"] or 0) < 1e-8 for tried in pruned)
    assert pruned[0].why.startswith("behind the median after ")
    run = runs_of(settings)[f"trial {pruned[0].number}"]
    assert run.data.tags["hindcast.trial_state"] == "pruned"
    assert run.info.status == "FINISHED"
    assert found.best.result == "complete"


def test_the_same_settings_are_not_trained_twice(
    small_job: Path, settings: PipelineSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = []
    fit = search_module.fit_forecaster

    def count(run: Any, parent: None, name: str) -> Any:
        trained.append(name)
        return fit(run, parent, name)

    monkeypatch.setattr(search_module, "fit_forecaster", count)
    found = look(small_job, settings, trials=8, space={"hidden_size": [4, 16]})
    assert len(trained) == 2
    assert len(found.trials) == 8
    assert len({tried.score for tried in found.trials}) == 2
    assert sum(tried.why.startswith("the same as trial ") for tried in found.trials) == 6


def test_no_trial_is_begun_when_the_time_is_up(small_job: Path, settings: PipelineSettings) -> None:
    listener = Listener()
    found = look(small_job, settings, listener, trials=500, max_seconds=0.5)
    assert 1 <= len(found.trials) < 500
    assert listener.lines[-1].startswith(f"max_seconds is over after {len(found.trials)} of 500 trials")


def test_one_job_is_searched_by_one_process(small_job: Path, settings: PipelineSettings) -> None:
    folder = settings.home / "studies"
    folder.mkdir(parents=True)
    with (folder / "tiny.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(HindcastError, match="'tiny' is being searched by another process"):
            look(small_job, settings)


def test_a_window_longer_than_the_data_is_refused_before_the_first_trial(
    small_job: Path, settings: PipelineSettings
) -> None:
    with pytest.raises(
        TrainingError, match=r"input_size of 400.*takes 404 steps before the validation block; .* 356"
    ):
        look(small_job, settings, space={"input_size": [24, 400]})


def test_a_candidate_that_is_not_there_is_refused_before_the_data_are_loaded(
    small_job: Path, settings: PipelineSettings
) -> None:
    listener = Listener()
    with pytest.raises(
        JobError, match=r"job 'tiny': search.candidate 'gru' is none that is trained; there is mlp, lstm"
    ):
        look(small_job, settings, listener, candidate="gru")
    assert listener.lines == []


def test_the_command_prints_what_to_paste(small_job: Path, settings: PipelineSettings) -> None:
    search_section = {
        "candidate": "mlp",
        "trials": 5,
        "space": {"hidden_size": [4, 8], "learning_rate": [0.02, 0.05]},
    }
    small_job.write_text(SMALL + yaml.safe_dump({"search": search_section}))
    cli = CliRunner()
    printed = cli.invoke(app, ["search", str(small_job), "--trials", "4"], catch_exceptions=False).output
    assert "trial 3 (4 of 4): " in printed
    assert "tiny: best trials of mlp on the validation block" in printed
    assert "(the job now)" in printed
    assert "\x1b[" not in printed
    assert list((settings.home / "runs").iterdir()) == []
    line = next((part for part in printed.splitlines() if part.startswith("  - {name: mlp")), None)
    if "no trial was better" in printed:
        assert line is None
    else:
        assert line is not None
        pasted = parse_job(SMALL.replace("  - {kind: mlp, input_size: 24, hidden_size: 16}", line))
        assert pasted.candidates[0].name == "mlp"
        assert pasted.candidates[0].network.hidden_size in (4, 8)

    other = cli.invoke(app, ["search", str(small_job), "--candidate", "gru"])
    assert isinstance(other.exception, JobError)


def test_ctrl_c_ends_a_search_and_says_how_to_go_on(small_job: Path, tmp_path: Path) -> None:
    """The real signal, to the real process, in the middle of a trial that would train for minutes."""
    small_job.write_text(TINY.replace("max_epochs: 3", "max_epochs: 9999, patience: 9999"))
    command = ["search", str(small_job), "--candidate", "lstm"]
    arguments = [sys.executable, "-c", "from pipelines.cli import main; main()", *command]
    home = tmp_path / "home"
    environment = {**os.environ, "HINDCAST_HOME": str(home), "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        next(line for line in process.stdout if line.startswith("trial 0: epoch 1 "))
        process.send_signal(signal.SIGINT)
        printed, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert printed.strip().splitlines()[-1] == "stopped after 0 of 30 trials; the same command goes on from there"
    assert "Traceback" not in errors
    assert list((home / "runs").iterdir()) == []
    states = [trial.state for trial in study_trials(PipelineSettings(home=home))]
    assert states == [optuna.trial.TrialState.FAIL]
