"""Retraining end to end, on a real MLflow store in a SQLite file."""

import json
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import pytest
from mlflow.artifacts import download_artifacts
from mlflow.entities import Run as MlflowRun
from mlflow.tracking import MlflowClient

from forecasting.artifact import load_artifact
from forecasting.errors import (
    JobError,
    LedgerUnavailableError,
    ModelNotFoundError,
    PanelError,
    RegistryError,
    SourceError,
    TrainingError,
)
from forecasting.panel import Columns
from forecasting.registry import (
    CHALLENGER,
    SHADOW,
    TAG_DATASET,
    TAG_DECISION,
    TAG_NUMBERS,
    TAG_REASON,
    TAG_TARGET,
    open_registry,
)
from ledger.decisions import RecordedDecision
from pipelines.fitting import fit_forecaster
from pipelines.load import load_data
from pipelines.promotion import Account
from pipelines.retrain import account_of, backtest, retrain, train
from pipelines.run import Run, new_run
from pipelines.settings import PipelineSettings
from pipelines.steps import run_now
from tests.conftest import free_port
from tests.pipelines.conftest import TINY
from training.backtest import leaderboard
from training.tracking import Tracker

T = TypeVar("T")


@dataclass
class Listener:
    """A reporter that remembers what it was told."""

    lines: list[str] = field(default_factory=list)
    epochs: list[tuple[str, int]] = field(default_factory=list)

    def say(self, line: str) -> None:
        self.lines.append(line)

    def epoch(self, candidate: str, epoch: int, of: int, metrics: Mapping[str, float]) -> None:
        assert {"train/loss", "val/loss", "learning_rate"} <= metrics.keys()
        assert epoch <= of
        self.epochs.append((candidate, epoch))

    def done(self, candidate: str) -> None:
        self.epochs.append((candidate, -1))


def runs_of(settings: PipelineSettings, name: str = "tiny") -> list[MlflowRun]:
    client = MlflowClient(settings.tracking)
    experiment = client.get_experiment_by_name(name)
    return [] if experiment is None else list(client.search_runs([experiment.experiment_id]))


@pytest.fixture
def run(job_file: Path, settings: PipelineSettings) -> Run:
    return new_run(job_file, settings, Listener())


def test_retraining_publishes_decides_and_promotes(run: Run, settings: PipelineSettings) -> None:
    outcome = retrain(run)
    assert outcome.decision is not None
    assert outcome.decision.promote
    champion = open_registry(settings.registry).resolve("tiny")
    assert champion.version == outcome.version == "1"
    assert champion.tags[TAG_DECISION] == "promoted"
    assert champion.tags[TAG_REASON] == outcome.decision.reason
    assert champion.tags["hindcast.data_digest"] == run.panel.digest()
    assert (champion.tags[TAG_DATASET], champion.tags[TAG_TARGET]) == ("tiny", run.job.target.column)
    assert float(champion.tags["hindcast.test_crps"]) == pytest.approx(
        outcome.report["scores"][outcome.report["best"]]["crps"], rel=1e-4
    )
    assert set(outcome.report["scores"]) == {"naive", "seasonal_naive", "drift", "ridge", "mlp", "lstm"}
    assert outcome.leaderboard("crps")["skill"]["seasonal_naive"] == 0
    assert isinstance(run.reporter, Listener)
    assert run.reporter.epochs[:4] == [("mlp", 1), ("mlp", 2), ("mlp", 3), ("mlp", -1)]


def test_a_second_retraining_meets_the_champion_on_the_same_cutoffs(
    run: Run, job_file: Path, settings: PipelineSettings
) -> None:
    first = retrain(run)
    second = retrain(new_run(job_file, settings, Listener()))
    assert second.report["champion"] == "champion v1"
    # Same seed, same data: the same weights, and so the same score.
    best = second.report["best"]
    assert second.report["scores"]["champion v1"] == first.report["scores"][best]
    assert second.decision is not None
    assert "refresh, " in second.decision.reason
    assert "= champion v1" in second.decision.reason
    assert second.decision.promote
    registry = open_registry(settings.registry)
    assert registry.resolve("tiny").version == "2"
    assert registry.resolve("tiny", SHADOW).version == "1", "the one before is there to be compared live"
    recorded = run.ledger.decisions.of_model("tiny")
    assert [(d.version, d.against, d.action, d.by, d.kind) for d in recorded] == [
        ("2", "1", "promote", "gate", "refresh"),
        ("1", None, "promote", "gate", "first"),
    ]
    assert recorded[0].numbers["look"] == 1
    assert recorded[0].reason == second.decision.reason
    tags = registry.resolve("tiny").tags
    assert json.loads(tags[TAG_NUMBERS]) == recorded[0].numbers == second.decision.numbers
    parent = next(r for r in runs_of(settings) if r.info.run_id == tags["hindcast.tracking_run"])
    assert parent.data.tags[TAG_NUMBERS] == tags[TAG_NUMBERS]


def test_another_configuration_is_no_refresh(run: Run, job_file: Path, settings: PipelineSettings) -> None:
    retrain(run)
    job_file.write_text(TINY.replace("learning_rate: 0.01", "learning_rate: 0.011"))
    outcome = retrain(new_run(job_file, settings, Listener()))
    assert not outcome.report["refresh"]
    assert outcome.decision is not None
    assert outcome.decision.numbers["kind"] == "new"


@pytest.mark.parametrize("taken", [False, True])
def test_a_challenger_that_lacks_evidence_goes_to_the_shadow_unless_it_is_taken(
    run: Run, job_file: Path, settings: PipelineSettings, taken: bool
) -> None:
    retrain(run)
    job_file.write_text(TINY.replace("learning_rate: 0.01", "learning_rate: 0.011"))
    second = new_run(job_file, settings, Listener())

    def leave_it_open(name: str, function: Callable[..., T], *args: object) -> T:
        result: T = run_now(name, function, *args)
        if name == "backtest":
            champion_KN = np.random.default_rng(0).uniform(1, 2, size=(6, 2))
            noise_KN = np.random.default_rng(1).normal(0, 0.1, size=(6, 2))
            challenger_KN = champion_KN - 0.01 + noise_KN - noise_KN.mean()
            outcome: Any = result
            found = {outcome["best"]: challenger_KN, "champion v1": champion_KN, "seasonal_naive": champion_KN + 5}
            np.savez(second.folder / "losses.npz", **found)
            for who, losses_KN in found.items():
                outcome["scores"][who]["crps"] = float(losses_KN.mean())
        return result

    registry = open_registry(settings.registry)
    if taken:
        registry.set_alias("tiny", SHADOW, "1")
    done = retrain(second, leave_it_open)
    assert done.decision is not None
    assert done.decision.action == ("keep" if taken else "shadow")
    assert registry.resolve("tiny").version == "1"
    assert registry.resolve("tiny", SHADOW).version == ("1" if taken else "2")
    tags = registry.version("tiny", "2").tags
    assert tags[TAG_DECISION] == ("not promoted" if taken else "in the shadow")
    if taken:
        assert tags[TAG_REASON].endswith("version 1 is in the shadow")


def test_a_person_who_is_faster_than_the_gate_is_not_overruled(
    run: Run, job_file: Path, settings: PipelineSettings
) -> None:
    retrain(run)
    registry = open_registry(settings.registry)
    second = new_run(job_file, settings, Listener())
    train(second)
    third = new_run(job_file, settings, Listener())

    def promote_meanwhile(name: str, function: Callable[..., T], *args: object) -> T:
        if name == "promote":
            registry.set_alias("tiny", "champion", "2")
        return run_now(name, function, *args)

    retrain(third, promote_meanwhile)
    assert registry.resolve("tiny").version == "2"
    assert registry.version("tiny", "3").tags[TAG_DECISION] == "not promoted"
    newest = third.ledger.decisions.of_model("tiny", limit=1)[0]
    assert (newest.version, newest.action) == ("3", "keep")
    assert "version 2 became the champion before it" in newest.reason


def test_looks_are_counted_from_the_record(run: Run, settings: PipelineSettings) -> None:
    retrain(run)
    looked = RecordedDecision("", "tiny", "", "1", "keep", "gate", "new", "worse")
    for look in range(53):
        run.ledger.decisions.record(replace(looked, key=f"run-{look}:gate", version=str(look)))
    promoted = replace(looked, key="trial", version="52", action="promote", by="trial")
    run.ledger.decisions.record(promoted)
    assert account_of(run.ledger.decisions, run.job, "new", "") == Account(looks=1, promotions=1)
    assert account_of(run.ledger.decisions, run.job, "new", "run-52:gate") == Account(looks=0, promotions=0)
    assert account_of(run.ledger.decisions, run.job, "refresh", "") == Account()


def test_without_a_ledger_nothing_is_decided_and_the_repeated_step_decides(
    run: Run, settings: PipelineSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose_the_ledger(name: str, function: Callable[..., T], *args: object) -> T:
        if name == "decide":
            nowhere = f"postgresql://nobody@127.0.0.1:{free_port()}/none"
            object.__setattr__(run, "settings", settings.model_copy(update={"ledger_url": nowhere}))
            with pytest.raises(LedgerUnavailableError):
                function(*args)
            assert open_registry(settings.registry).version("tiny", "1").aliases == (CHALLENGER,)
            object.__setattr__(run, "settings", settings)
        return run_now(name, function, *args)

    assert retrain(run, lose_the_ledger).decision is not None
    assert open_registry(settings.registry).resolve("tiny").version == "1"


def test_a_worse_challenger_is_published_and_not_promoted(
    run: Run, job_file: Path, settings: PipelineSettings
) -> None:
    retrain(run)
    job_file.write_text(
        TINY.replace(
            "max_epochs: 3, learning_rate: 0.01", "max_epochs: 1, steps_per_epoch: 1, learning_rate: 1.0e-9"
        )
    )
    outcome = retrain(new_run(job_file, settings, Listener()))
    registry = open_registry(settings.registry)
    assert outcome.decision is not None
    assert not outcome.decision.promote
    assert registry.resolve("tiny").version == "1"
    assert registry.resolve("tiny", CHALLENGER).version == "2"
    assert registry.version("tiny", "2").tags[TAG_DECISION] == "not promoted"
    assert "worse than the champion" in registry.version("tiny", "2").tags[TAG_REASON]


def test_a_champion_that_answers_another_question_is_not_compared_with(
    run: Run, job_file: Path, settings: PipelineSettings
) -> None:
    retrain(run)
    job_file.write_text(TINY.replace("horizon: 4", "horizon: 6"))
    listener = Listener()
    outcome = retrain(new_run(job_file, settings, listener))
    assert outcome.report["champion"] is None
    assert any("answers another question" in line for line in listener.lines)


def test_a_champion_whose_artefact_is_lost_holds_up_no_retraining(
    job_file: Path, settings: PipelineSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HINDCAST_REGISTRY_URI", f"file://{tmp_path}/registry")
    settings = PipelineSettings()
    retrain(new_run(job_file, settings, Listener()))
    (tmp_path / "registry/tiny/versions/1/weights.safetensors").unlink()
    listener = Listener()
    outcome = retrain(new_run(job_file, settings, listener))
    assert open_registry(settings.registry).resolve("tiny").version == outcome.version == "2"
    assert any("champion v1 cannot be loaded" in line for line in listener.lines)


def test_training_promotes_nothing(run: Run, settings: PipelineSettings) -> None:
    outcome = train(run)
    registry = open_registry(settings.registry)
    assert outcome.decision is None
    assert registry.resolve("tiny", CHALLENGER).version == "1"
    with pytest.raises(ModelNotFoundError):
        registry.resolve("tiny")


def test_a_backtest_tracks_and_publishes_nothing(run: Run, settings: PipelineSettings) -> None:
    outcome = backtest(run)
    assert len(outcome.report["scores"]) == 6
    assert open_registry(settings.registry).models() == []
    assert runs_of(settings) == []


def test_mlflow_tells_the_whole_story_under_the_same_names(
    run: Run, settings: PipelineSettings, tmp_path: Path
) -> None:
    outcome = retrain(run)
    runs = {r.info.run_name: r for r in runs_of(settings)}
    parent = next(r for name, r in runs.items() if name.startswith("train "))
    children = {name: r for name, r in runs.items() if r.data.tags.get("mlflow.parentRunId") == parent.info.run_id}
    assert set(children) == {"naive", "seasonal_naive", "drift", "ridge", "mlp", "lstm"}
    assert {r.info.status for r in runs.values()} == {"FINISHED"}
    for name, child in children.items():
        metrics = child.data.metrics
        assert {
            "val/crps",
            "test/crps",
            "test/mase",
            "test/coverage_80",
            "skill/mase",
            "test/mae_by_step",
        } <= metrics.keys()
        assert metrics["test/crps"] == pytest.approx(outcome.report["scores"][name]["crps"])
    assert {"train/loss", "val/loss", "grad_norm/recurrent.weight_hh_l0"} <= children["lstm"].data.metrics.keys()
    assert children["lstm"].data.params["network.hidden_size"] == "8"
    assert children["lstm"].data.params["training.learning_rate"] == "0.01"

    client = MlflowClient(settings.tracking)
    by_step = client.get_metric_history(children["mlp"].info.run_id, "test/mae_by_step")
    assert [m.step for m in by_step] == [1, 2, 3, 4]
    by_epoch = client.get_metric_history(children["mlp"].info.run_id, "train/loss")
    assert [m.step for m in by_epoch] == [1, 2, 3]

    local = Path(
        download_artifacts(
            run_id=children["mlp"].info.run_id, tracking_uri=settings.tracking, dst_path=str(tmp_path)
        )
    )
    assert (local / "job.yaml").read_text() == TINY
    assert list(pd.read_parquet(local / "tables/per_series.parquet")["unique_id"]) == list(run.panel.unique_ids)
    for figure in ("forecast", "error_by_step"):
        page = (local / f"figures/{figure}.html").read_text()
        assert "Plotly.newPlot" in page
        assert 'src="http' not in page, "figures must open without a network"

    tags = parent.data.tags
    assert tags["hindcast.data_digest"] == run.panel.digest()
    assert tags["hindcast.best_candidate"] == outcome.report["best"]
    assert outcome.decision is not None
    assert tags[TAG_REASON] == outcome.decision.reason
    assert [d.dataset.name for d in parent.inputs.dataset_inputs] == ["tiny"]


def test_no_pickle_is_written(run: Run, settings: PipelineSettings) -> None:
    retrain(run)
    written = [path for path in settings.home.rglob("*") if path.suffix in (".pkl", ".pickle", ".pt", ".pth")]
    assert written == []


def test_a_repeated_step_publishes_no_second_version(run: Run, settings: PipelineSettings) -> None:
    """A scheduler may run a step again when the process died after it and before its result was remembered."""

    def twice(name: str, function: Callable[..., T], *args: object) -> T:
        run_now(name, function, *args)
        return run_now(name, function, *args)

    outcome = retrain(run, twice)
    registry = open_registry(settings.registry)
    assert [v.version for v in registry.versions("tiny")] == ["1"]
    assert [d.version for d in run.ledger.decisions.of_model("tiny")] == ["1"]
    assert registry.resolve("tiny").version == outcome.version == "1"


def test_what_a_step_returns_is_plain_data(run: Run) -> None:
    def through_json(name: str, function: Callable[..., T], *args: object) -> T:
        result: T = json.loads(json.dumps(run_now(name, function, *args)))
        return result

    outcome = retrain(run, through_json)
    assert len(leaderboard(outcome.report["scores"], "crps")) == 6


def test_a_candidate_that_fails_fails_alone(gappy_job: Path, settings: PipelineSettings) -> None:
    listener = Listener()
    outcome = retrain(new_run(gappy_job, settings, listener))
    assert outcome.report["best"] == "mlp"
    assert "lstm" not in outcome.report["scores"]
    assert any(line.startswith("lstm failed: no window to train with") for line in listener.lines)
    failed = next(r for r in runs_of(settings) if r.info.run_name == "lstm")
    assert failed.info.status == "FAILED"
    assert "no window to train with" in failed.data.tags["hindcast.error"]


def test_nothing_to_compare_is_an_error_that_names_every_cause(
    gappy_job: Path, settings: PipelineSettings
) -> None:
    gappy_job.write_text(gappy_job.read_text().replace("kind: mlp, input_size: 24", "kind: mlp, input_size: 101"))
    with pytest.raises(TrainingError, match=r"nothing to compare: .*mlp: no window.*lstm: no window"):
        retrain(new_run(gappy_job, settings, Listener()))
    assert open_registry(settings.registry).models() == []
    assert {r.info.status for r in runs_of(settings) if r.info.run_name.startswith("train ")} == {"FAILED"}


@pytest.mark.parametrize("during", ["tracking", "candidate"])
def test_a_run_interrupted_as_it_opens_is_closed(
    run: Run, settings: PipelineSettings, monkeypatch: pytest.MonkeyPatch, during: str
) -> None:
    def interrupt(self: Tracker, run_id: str, params: Mapping[str, object]) -> None:
        if ("job" in params) == (during == "tracking"):
            raise KeyboardInterrupt

    monkeypatch.setattr(Tracker, "_log_params", interrupt)
    with pytest.raises(KeyboardInterrupt):
        retrain(run)
    assert {r.info.status for r in runs_of(settings)} == {"KILLED"}


def test_a_ctrl_c_while_the_model_is_registered_lets_that_be_carried_through(
    run: Run, settings: PipelineSettings
) -> None:
    def press(name: str, function: Callable[..., T], *args: object) -> T:
        result = run_now(name, function, *args)
        if name == "publish":
            signal.raise_signal(signal.SIGINT)
        return result

    outcome = retrain(run, press)
    assert open_registry(settings.registry).resolve("tiny").version == outcome.version
    assert {r.info.status for r in runs_of(settings)} == {"FINISHED"}
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_ctrl_c_stops_at_once(run: Run, settings: PipelineSettings) -> None:
    def press_twice(name: str, function: Callable[..., T], *args: object) -> T:
        if name == "publish":
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        return run_now(name, function, *args)

    with pytest.raises(KeyboardInterrupt):
        retrain(run, press_twice)
    assert open_registry(settings.registry).models() == []
    assert {r.info.status for r in runs_of(settings) if r.info.run_name.startswith("train ")} == {"KILLED"}


def test_data_too_short_is_one_error_and_no_run(job_file: Path, settings: PipelineSettings) -> None:
    job_file.write_text(TINY.replace("n_windows: 6", "n_windows: 600"))
    listener = Listener()
    with pytest.raises(TrainingError, match=r"^job 'tiny' has 500 steps of data and needs at least"):
        retrain(new_run(job_file, settings, listener))
    assert not any("failed" in line for line in listener.lines)
    assert runs_of(settings) == []


def test_an_interrupted_training_leaves_no_version_and_no_open_run(run: Run, settings: PipelineSettings) -> None:
    def interrupt(name: str, function: Callable[..., T], *args: object) -> T:
        if name == "fit lstm":
            raise KeyboardInterrupt
        return run_now(name, function, *args)

    with pytest.raises(KeyboardInterrupt):
        retrain(run, interrupt)
    assert open_registry(settings.registry).models() == []
    assert {r.info.status for r in runs_of(settings) if r.info.run_name.startswith("train ")} == {"KILLED"}


def test_the_test_block_changes_no_bit_of_what_is_trained(
    job_file: Path, settings: PipelineSettings, tmp_path: Path
) -> None:
    """The pipeline's own split and tensors, from data that differ in nothing but the test block."""
    rng = np.random.default_rng(0)
    y = rng.normal(size=500).cumsum()
    source = "source: {kind: simulate, n_sensors: 2, n_steps: 500, freq: h, seed: 1}"
    job_file.write_text(TINY.replace(source, "source: {kind: csv, path: a.csv}"))

    def weights_of(test_block: float) -> dict[str, bytes]:
        rows = pd.DataFrame({"unique_id": "a", "ds": pd.date_range("2024-01-01", periods=500, freq="h"), "y": y})
        rows.loc[476:, "y"] += test_block
        rows.to_csv(tmp_path / "a.csv", index=False)
        run = new_run(job_file, settings, Listener())
        load_data(run)
        assert run.split.test == 476
        for name in run.networks:
            fit_forecaster(run, None, name)
        return {name: (run.artifact(name) / "weights.safetensors").read_bytes() for name in run.networks}

    assert weights_of(0.0) == weights_of(1e7)


def test_a_column_the_source_does_not_have_is_named(job_file: Path, settings: PipelineSettings) -> None:
    job_file.write_text(TINY + "target: {column: Close}\n")
    with pytest.raises(SourceError, match=r"no column 'Close'; it has y"):
        backtest(new_run(job_file, settings, Listener()))


TOLD = TINY.replace("seed: 1}", "seed: 1, covariates: true}") + "covariates: {past: [ambient], static: [site]}\n"


def test_a_job_gets_the_covariates_it_names_and_no_others(job_file: Path, settings: PipelineSettings) -> None:
    job_file.write_text(TOLD)
    run = new_run(job_file, settings, Listener())
    assert "past ambient; static site" in load_data(run)
    assert run.panel.columns == Columns(past=("ambient",), static=("site",))
    assert run.panel.past_NTP.shape == (2, run.panel.n_steps, 1)


def test_a_series_left_out_takes_its_covariates_along(
    job_file: Path, settings: PipelineSettings, tmp_path: Path
) -> None:
    ds = pd.date_range("2024-01-01", periods=500, freq="h")
    long = pd.DataFrame({"unique_id": "long", "ds": ds, "y": range(500), "ambient": 1, "site": "north"})
    short = long.head(10).assign(unique_id="short", ambient=2, site="south")
    pd.concat([short, long]).to_csv(tmp_path / "data.csv", index=False)
    simulated = TOLD.partition("source:")[2].partition("\n")[0]
    job_file.write_text(TOLD.replace(simulated, " {kind: csv, path: data.csv}") + "bad_series: drop\n")
    run = new_run(job_file, settings, Listener())
    load_data(run)
    assert run.panel.unique_ids == ("long",)
    assert (run.panel.past_NTP == 1).all()
    assert run.panel.static == {"site": ("north",)}


def test_a_covariate_the_source_does_not_have_is_named(job_file: Path, settings: PipelineSettings) -> None:
    job_file.write_text(TOLD.replace("[ambient]", "[humidity]"))
    with pytest.raises(SourceError, match=r"no column 'humidity'; it has y, ambient, setpoint, site, kind"):
        load_data(new_run(job_file, settings, Listener()))


def test_the_target_cannot_be_told_ahead(job_file: Path, settings: PipelineSettings) -> None:
    job_file.write_text(TOLD.replace("past: [ambient]", "future: [ambient]") + "target: {column: ambient}\n")
    with pytest.raises(JobError, match="the target column 'ambient' cannot be a covariate too"):
        load_data(new_run(job_file, settings, Listener()))


def test_returns_of_values_that_are_not_positive_are_refused(
    job_file: Path, settings: PipelineSettings, tmp_path: Path
) -> None:
    rows = pd.DataFrame(
        {"unique_id": "a", "ds": pd.date_range("2024-01-01", periods=500, freq="h"), "y": range(-5, 495)}
    )
    rows.to_csv(tmp_path / "a.csv", index=False)
    source = "source: {kind: csv, path: a.csv}"
    job_file.write_text(
        TINY.replace("source: {kind: simulate, n_sensors: 2, n_steps: 500, freq: h, seed: 1}", source)
        + "target: {transform: log_return}\n"
    )
    with pytest.raises(PanelError, match="series 'a' has values that are not positive"):
        backtest(new_run(job_file, settings, Listener()))


def test_a_series_without_log_returns_is_left_out_where_the_job_says_so(
    job_file: Path, settings: PipelineSettings, tmp_path: Path
) -> None:
    ds = pd.date_range("2024-01-01", periods=500, freq="h")
    good = pd.DataFrame({"unique_id": 7, "ds": ds, "y": 5 + np.random.default_rng(0).uniform(size=500)})
    pd.concat([good, good.assign(unique_id=8, y=good["y"] - 5.5)]).to_csv(tmp_path / "a.csv", index=False)
    source = "source: {kind: simulate, n_sensors: 2, n_steps: 500, freq: h, seed: 1}"
    text = TINY.replace(source, "source: {kind: csv, path: a.csv}") + "target: {transform: log_return}\n"
    job_file.write_text(text + "bad_series: drop\n")
    listener = Listener()
    run = new_run(job_file, settings, listener)
    load_data(run)
    assert run.panel.unique_ids == ("7",)
    assert any(line.startswith("left out: series '8' has values that are not positive") for line in listener.lines)


def test_the_published_artefact_is_the_one_that_was_backtested(
    run: Run, settings: PipelineSettings, tmp_path: Path
) -> None:
    outcome = retrain(run)
    registry = open_registry(settings.registry)
    fetched = load_artifact(registry.fetch(registry.resolve("tiny"), tmp_path / "fetched"))
    local = load_artifact(run.artifact(outcome.report["best"]))
    history = run.panel.y_NT[:, -24:]
    assert (fetched.predict(history) == local.predict(history)).all()


@pytest.mark.parametrize("rule", ["raise", "drop"])
def test_a_series_too_short_to_learn_from_is_named(
    rule: str, job_file: Path, settings: PipelineSettings, tmp_path: Path
) -> None:
    ds = pd.date_range("2024-01-01", periods=500, freq="h")
    y = np.random.default_rng(0).normal(size=500).cumsum()
    long, short = (
        pd.DataFrame({"unique_id": u, "ds": ds[-n:], "y": y[-n:]}) for u, n in (("old", 500), ("new", 20))
    )
    pd.concat([long, short]).to_csv(tmp_path / "two.csv", index=False)
    simulated = "source: {kind: simulate, n_sensors: 2, n_steps: 500, freq: h, seed: 1}"
    job_file.write_text(TINY.replace(simulated, "source: {kind: csv, path: two.csv}") + f"bad_series: {rule}\n")
    listener = Listener()
    run = new_run(job_file, settings, listener)
    if rule == "raise":
        with pytest.raises(PanelError, match=r"series 'new' has 20 observed points; 28 are needed"):
            backtest(run)
        return
    backtest(run)
    assert run.panel.unique_ids == ("old",)
    assert any(line.startswith("left out: series 'new' has 20 observed points") for line in listener.lines)


def test_a_champion_that_sees_further_back_is_compared_all_the_same(
    run: Run, job_file: Path, settings: PipelineSettings
) -> None:
    first = retrain(run)
    job_file.write_text(TINY.replace("input_size: 24", "input_size: 12"))
    second = retrain(new_run(job_file, settings, Listener()))
    assert second.report["champion"] == "champion v1"
    best = first.report["best"]
    assert second.report["scores"]["champion v1"]["crps"] == pytest.approx(first.report["scores"][best]["crps"])


def test_a_champion_that_was_tampered_with_is_not_compared_and_the_reason_says_so(
    run: Run, job_file: Path, settings: PipelineSettings
) -> None:
    retrain(run)
    for spec in settings.home.glob("artifacts/**/spec.json"):
        spec.write_text(spec.read_text() + " ")
    outcome = retrain(new_run(job_file, settings, Listener()))
    assert outcome.report["champion"] is None
    assert outcome.decision is not None
    assert "champion v1 cannot be loaded: version 1 is not what was published" in outcome.decision.reason


def test_tracking_that_fails_half_way_is_an_error_of_ours(run: Run, settings: PipelineSettings) -> None:
    def lose_the_store(name: str, function: Callable[..., T], *args: object) -> T:
        if name == "fit mlp":
            client = MlflowClient(settings.tracking)
            for found in runs_of(settings):
                client.delete_run(found.info.run_id)
        return run_now(name, function, *args)

    with pytest.raises(RegistryError):
        retrain(run, lose_the_store)
