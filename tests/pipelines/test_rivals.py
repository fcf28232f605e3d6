"""Rivals and verdict of a stock job: beside everyone in the leaderboard, refitted as often, never published."""

import dataclasses
from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd
import pytest
import yaml
from mlflow.tracking import MlflowClient
from typer.testing import CliRunner

from forecasting.artifact import load_artifact
from forecasting.errors import TrainingError
from forecasting.panel import Columns, Panel
from forecasting.registry import open_registry
from pipelines import rivals
from pipelines.cli import app
from pipelines.load import load_data
from pipelines.retrain import TAG_VERDICT, backtest, retrain
from pipelines.rivals import Rival, answer_as_rival, ask_rivals, choose_rivals, load_rival
from pipelines.run import Run, new_run
from pipelines.settings import PipelineSettings
from tests.conftest import make_panel
from tests.pipelines.test_retrain import Listener, runs_of
from training import risk
from training.econometrics import RIVALS
from training.job import JobConfig, RivalName
from training.skewed_t import SkewedT

N_STEPS = 420
JOB = {
    "name": "shares",
    "source": {"kind": "csv", "path": "shares.csv"},
    "target": {"transform": "log_return"},
    "freq": "D",
    "season_length": 1,
    "horizon": 1,
    "level": [90],
    "candidates": [{"kind": "mlp", "input_size": 20, "hidden_size": 8}],
    "training": {"max_epochs": 1},
    "evaluation": {
        "n_windows": 60,
        "step_size": 1,
        "validation_size": 60,
        "refit_every": 30,
        "rivals": ["random_walk", "ewma", "garch_t"],
    },
}


def write_prices(folder: Path, *, poisoned_from: int = N_STEPS) -> None:
    """Write the prices of two shares; from a position on they may be others."""
    rng = np.random.default_rng(3)
    scale_T = np.exp(0.5 * np.sin(np.arange(N_STEPS) / 20))
    for_all = []
    for name in ("a", "b"):
        r_T = rng.standard_t(6, size=N_STEPS) * scale_T
        r_T[poisoned_from:] *= 9.0
        prices = 100.0 * np.exp(np.cumsum(r_T) / 100.0)
        ds = pd.date_range("2022-01-01", periods=N_STEPS, freq="D")
        for_all.append(pd.DataFrame({"unique_id": name, "ds": ds, "y": prices}))
    pd.concat(for_all).to_csv(folder / "shares.csv", index=False)


@pytest.fixture
def job_file(tmp_path: Path) -> Path:
    write_prices(tmp_path)
    path = tmp_path / "shares.yaml"
    path.write_text(yaml.safe_dump(JOB))
    return path


@pytest.fixture
def run(job_file: Path, settings: PipelineSettings) -> Run:
    run = new_run(job_file, settings, Listener())
    load_data(run)
    return run


def lines_of(run: Run) -> list[str]:
    assert isinstance(run.reporter, Listener)
    return run.reporter.lines


def job(**evaluation: object) -> JobConfig:
    return JobConfig.model_validate({**JOB, "evaluation": evaluation})


def test_the_job_knows_every_rival_there_is() -> None:
    assert get_args(RivalName) == RIVALS


def test_all_rivals_are_asked_unless_the_job_names_them_and_har_takes_ranges() -> None:
    panel = make_panel(2, 300)
    assert choose_rivals(job(), panel, 50) == (list(RIVALS[:-1]), "")
    named = job(rivals=["har", "ewma"])
    assert choose_rivals(named, panel, 50) == (
        ["ewma"],
        "har is left out: it takes a past covariate garman_klass or rogers_satchell or parkinson",
    )
    ranged = dataclasses.replace(panel, columns=Columns(past=("parkinson",)), past_NTP=np.ones((2, 300, 1)))
    assert choose_rivals(named, ranged, 50) == (["ewma", "har"], "")
    assert choose_rivals(job(rivals=[]), panel, 50) == ([], "")
    assert choose_rivals(JobConfig.model_validate({**JOB, "target": {}, "evaluation": {}}), panel, 50) == ([], "")


def test_what_takes_long_is_left_out_of_a_large_panel_and_said() -> None:
    panel = make_panel(2, 300)
    chosen, why = choose_rivals(job(), panel, 100_001)
    assert chosen == ["random_walk", "historical", "ewma"]
    assert (
        "garch, garch_t, gjr_garch_t, gjr_garch_skewt are left out: 2 series at 100,001 cutoffs are 200,002" in why
    )
    assert choose_rivals(job(rivals=["garch"]), panel, 100_001) == (["garch"], "")


def answers_of(run: Run) -> dict[str, Rival]:
    return {name: load_rival(run, name, 30) for name in ask_rivals(run, 30)}


def test_rivals_answer_the_questions_of_the_candidates(run: Run) -> None:
    found = answers_of(run)
    assert list(found) == ["random_walk", "ewma", "garch_t"]
    for rival in found.values():
        assert sorted(set(rival.test.cutoff_B)) == list(run.cutoffs)
        assert len(rival.test.series_B) == 2 * 60
        assert not rival.test.unanswered


def test_rivals_learn_nothing_from_the_embargo_on(run: Run, job_file: Path, settings: PipelineSettings) -> None:
    """The random walk's variance is the mean square of what its fold may see, and nothing else."""

    def variances_of(asked: Run) -> np.ndarray:
        forecast = answers_of(asked)["random_walk"].forecast
        assert forecast is not None
        return forecast.variance_KH[:, 0]

    def variances_after(begin: int) -> np.ndarray:
        write_prices(job_file.parent, poisoned_from=begin)
        other = new_run(job_file, settings, Listener())
        load_data(other)
        return variances_of(other)

    before, first, second = variances_of(run), run.folds[0], run.folds[1]
    assert len(set(before)) == 4, "two shares, fitted twice"
    assert np.array_equal(variances_after(second.test), before)
    changed = variances_after(first.test) != before
    assert not changed[: 2 * len(first.cutoffs)].any()
    assert changed[2 * len(first.cutoffs) :].all()


def test_what_a_rival_answered_is_not_asked_again(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    first = answers_of(run)["garch_t"]

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr(rivals, "ask_rival", refuse)
    again = answers_of(run)["garch_t"]
    assert np.array_equal(again.test.quantiles_BHQ, first.test.quantiles_BHQ)
    assert again.forecast is not None
    assert first.forecast is not None
    assert again.forecast.first is not None
    assert first.forecast.first is not None
    assert np.array_equal(again.forecast.first.scale, first.forecast.first.scale)


def test_a_rival_fails_alone_and_says_why(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    ask = rivals.ask_rival

    def fail_one(name: str, panel: Panel, *args: object, **settings: object) -> object:
        if name == "garch_t":
            raise TrainingError("no way")
        return ask(name, panel, *args, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(rivals, "ask_rival", fail_one)
    found = answers_of(run)
    assert list(found) == ["random_walk", "ewma"]
    assert "rival garch_t failed: no way" in lines_of(run)
    assert answer_as_rival(run.reporter, run, "garch_t", 30) == "no way"


def test_rivals_are_in_the_leaderboard_with_a_verdict_and_never_published(
    job_file: Path, settings: PipelineSettings
) -> None:
    run = new_run(job_file, settings, Listener())
    outcome = retrain(run)
    report = outcome.report
    assert report["rivals"] == ["random_walk", "ewma", "garch_t"]
    board = outcome.leaderboard("crps")
    assert set(board.index) == {"naive", "seasonal_naive", "drift", "ridge", "mlp", *report["rivals"]}
    assert report["best"] == "mlp"
    assert board["log_score"].notna().to_dict() == {name: name in report["rivals"] for name in board.index}
    for column in ("qlike", "pinball_1", "pinball_5", "kupiec_1", "christoffersen_5", "r2", "mcs_p"):
        assert board[column].notna().all(), column
    # A forecast of nothing has no direction, and is as good as itself.
    assert np.isnan(board["direction"]["ewma"])
    assert board["r2"]["ewma"] == 0
    assert board["dm_p"].drop("mlp").between(0, 1).all()
    verdict = report["verdict"]
    assert verdict is not None
    assert verdict.startswith("mlp: ")
    version = open_registry(settings.registry).resolve("shares", "challenger")
    assert version.tags[TAG_VERDICT] == verdict
    assert version.tags["hindcast.candidate"] == "mlp"
    tracked = {r.info.run_name.split()[0]: r for r in runs_of(settings, "shares")}
    assert tracked["train"].data.tags[TAG_VERDICT] == verdict
    assert {"test/qlike", "test/kupiec_1", "dm_p/garch_t"} <= tracked["mlp"].data.metrics.keys()
    listed = MlflowClient(settings.tracking).list_artifacts(tracked["mlp"].info.run_id, "figures")
    assert {Path(f.path).stem for f in listed} == {
        *("forecast", "error_by_step", "return_fan", "price_fan", "pit", "value_at_risk", "score_difference")
    }
    assert outcome.decision is not None
    assert outcome.decision.numbers["verdict"] == verdict


def test_a_network_that_tells_a_density_is_scored_by_it_in_every_fold(
    job_file: Path, settings: PipelineSettings
) -> None:
    candidate = {"kind": "volatility_lstm", "input_size": 20, "training": {"steps_per_epoch": 5, "members": 2}}
    asked = {**JOB["evaluation"], "rivals": ["ewma"]}  # type: ignore[dict-item]
    job_file.write_text(yaml.safe_dump({**JOB, "candidates": [candidate], "evaluation": asked}))
    run = new_run(job_file, settings, Listener())
    board = retrain(run).leaderboard("crps")
    told = {"volatility_lstm", "ewma"}
    assert board["log_score"].notna().to_dict() == {name: name in told for name in board.index}
    scale, r, log_scores = (list[float]() for _ in range(3))
    for part in run.by_fold:
        forecaster, y_NT = load_artifact(part.artifact("volatility_lstm")), part.panel.y_NT
        for cutoff in part.split.cutoffs:
            density = SkewedT(*(p[:, 0] for p in forecaster.predict_density(y_NT[:, cutoff - 19 : cutoff + 1])))
            r_N = 100 * np.log(y_NT[:, cutoff + 1] / y_NT[:, cutoff])
            scale.extend(density.scale)
            r.extend(r_N)
            log_scores.extend(-density.log_density(r_N))
    found = board.loc["volatility_lstm"]
    assert found["log_score"] == pytest.approx(np.mean(log_scores), rel=1e-5)
    assert found["qlike"] == pytest.approx(risk.qlike(np.array(r), np.square(scale)), rel=1e-5)
    tracked = {one.info.run_name.split()[0]: one.data.metrics for one in runs_of(settings, "shares")}
    assert tracked["volatility_lstm"]["test/log_score"] == pytest.approx(found["log_score"])


def test_rivals_are_the_same_side_by_side(job_file: Path, settings: PipelineSettings) -> None:
    closed = {**JOB, "evaluation": {**JOB["evaluation"], "rivals": ["random_walk", "historical", "ewma"]}}  # type: ignore[dict-item]
    job_file.write_text(yaml.safe_dump(closed))
    two = settings.model_copy(update={"fan_out": 2})
    in_turn, beside = (backtest(new_run(job_file, chosen, Listener())) for chosen in (settings, two))
    pd.testing.assert_frame_equal(beside.leaderboard("crps"), in_turn.leaderboard("crps"))
    assert beside.report["verdict"] == in_turn.report["verdict"]


def test_what_is_fitted_side_by_side_differs_by_the_rounding_of_threads(run: Run, job_file: Path) -> None:
    """With another number of threads sums are rounded otherwise, and an optimiser stops a hair's breadth apart."""
    beside = new_run(job_file, run.settings.model_copy(update={"fan_out": 2}), Listener())
    load_data(beside)
    one, other = (answers_of(asked)["garch_t"].forecast for asked in (run, beside))
    assert one is not None
    assert other is not None
    assert np.allclose(one.variance_KH, other.variance_KH, rtol=1e-3)


def test_the_command_prints_the_next_return_and_the_verdict_and_saves_pictures(
    job_file: Path, settings: PipelineSettings, tmp_path: Path
) -> None:
    del settings
    result = CliRunner().invoke(app, ["backtest", str(job_file), "--out", str(tmp_path / "out")])
    assert result.exception is None, result.output
    assert "shares: the next return, in percent" in result.output
    assert "garch_t (rival)" in result.output
    assert "mlp *" in result.output
    assert "60 cutoffs; p by Holm" in result.output
    saved = {path.name for path in (tmp_path / "out" / "mlp").iterdir()}
    assert {"return_fan.html", "pit.html", "value_at_risk.png", "score_difference.png"} <= saved
    assert (tmp_path / "out" / "garch_t" / "forecasts.parquet").exists()


def test_without_rivals_the_verdict_is_beside_the_baselines(job_file: Path, settings: PipelineSettings) -> None:
    content = {**JOB, "evaluation": {**JOB["evaluation"], "rivals": []}}  # type: ignore[dict-item]
    job_file.write_text(yaml.safe_dump(content))
    outcome = backtest(new_run(job_file, settings, Listener()))
    assert outcome.report["rivals"] == []
    assert "naive" in (outcome.report["verdict"] or "")


def test_a_rivals_answers_are_backtests_like_any_other(run: Run) -> None:
    rival: Rival = answers_of(run)["ewma"]
    frame = rival.test.to_frame()
    assert (frame["lo-90"] < frame["mean"]).all()
    assert (frame["mean"] < frame["hi-90"]).all()
