"""The backtest: the questions a service would have been asked, and not a value more."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from forecasting.artifact import load_artifact, save_artifact
from forecasting.errors import TrainingError
from forecasting.forecaster import Forecaster, summarise
from forecasting.panel import Panel
from forecasting.spec import MLPSpec, NaiveSpec, NetworkSpec, RecurrentSpec
from tests.conftest import make_forecaster, make_panel
from tests.training.test_job import MINIMAL
from training import metrics
from training.backtest import Backtest, leaderboard, plan_split, run_backtest, validation_cutoffs
from training.calibrate import calibrate
from training.fit import fit
from training.job import JobConfig, TrainingConfig
from training.windows import PanelTensors, Windows

NETWORKS: list[NetworkSpec] = [
    NaiveSpec(input_size=10),
    MLPSpec(input_size=10),
    RecurrentSpec(kind="lstm", input_size=30, layers=2),
]


def job(**evaluation: object) -> JobConfig:
    return JobConfig.model_validate({**MINIMAL, "evaluation": evaluation})


def ask(forecaster: Forecaster, panel: Panel, cutoffs: tuple[int, ...] = (150, 160, 170)) -> Backtest:
    return run_backtest(forecaster, panel, cutoffs, history_needed=30, in_sample=151)


def test_blocks_follow_each_other_in_time() -> None:
    panel = make_panel(1, 200, "h")
    split = plan_split(panel, job(n_windows=5, step_size=2, validation_size=40))
    # Horizon 4, the last target is the last step: cutoffs 187, 189, ..., 195.
    assert split.cutoffs == (187, 189, 191, 193, 195)
    assert split.test == 188
    assert split.validation == 148
    chosen = validation_cutoffs(split, 4)
    assert chosen[0] == 147
    assert chosen[-1] + 4 == 187


@pytest.mark.parametrize("size", [3, 12])
def test_a_validation_block_too_short_to_calibrate_on_is_refused(size: int) -> None:
    with pytest.raises(TrainingError, match=rf"validation_size of {size} steps; it takes 13"):
        plan_split(make_panel(1, 200, "h"), job(validation_size=size))


def test_data_too_short_for_the_evaluation_is_refused_with_the_sum() -> None:
    with pytest.raises(TrainingError, match=r"60 steps.*at least 133: longest window 25 .* \+ horizon 4"):
        plan_split(make_panel(1, 60, "h"), job(n_windows=20))


def test_a_season_that_does_not_fit_into_the_data_is_refused_with_the_sum() -> None:
    long = job(n_windows=5).model_copy(update={"season_length": 1000})
    with pytest.raises(TrainingError, match=r"longest window 1001 .*the season of 1000"):
        plan_split(make_panel(1, 200, "h"), long)


@pytest.mark.parametrize("network", NETWORKS, ids=lambda n: n.kind)
@pytest.mark.parametrize("transform", ["none", "log_return"])
def test_poisoning_the_future_changes_no_bit_of_a_forecast(network: NetworkSpec, transform: str) -> None:
    forecaster = make_forecaster(network, transform=transform)
    panel = make_panel(3, 200, missing=10)
    for cutoff in (150, 160, 170):
        y_NT = panel.y_NT.copy()
        y_NT[:, cutoff + 1 :] = np.random.default_rng(0).uniform(1e5, 1e9, size=y_NT[:, cutoff + 1 :].shape)
        future = Panel(panel.unique_ids, panel.ds, y_NT, panel.calendar)
        before, poisoned = ask(forecaster, panel, (cutoff,)), ask(forecaster, future, (cutoff,))
        assert np.array_equal(poisoned.quantiles_BHQ, before.quantiles_BHQ)
        assert not np.array_equal(poisoned.actual_BH, before.actual_BH)


def test_training_never_sees_the_test_block() -> None:
    """Windows end before validation, validation before test: poisoned test values leave every weight alone."""
    spec = make_forecaster(MLPSpec(input_size=14)).spec
    panel = make_panel(2, 400)
    y_NT = panel.y_NT.copy()
    y_NT[:, 360:] = 1e6
    poisoned = Panel(panel.unique_ids, panel.ds, y_NT, panel.calendar)

    def weights_of(data: Panel) -> dict[str, torch.Tensor]:
        # What a training run does: everything before position 360 is known when it begins.
        tensors = PanelTensors(data.before(360), "none", torch.device("cpu"))
        train, validation = Windows(tensors, 14, 3, 0, 300), Windows(tensors, 14, 3, 300, 360)
        network = fit(spec, TrainingConfig(max_epochs=2), train, validation).network
        calibrate(network, validation, spec.quantiles)
        return network.state_dict()

    clean, other = weights_of(panel), weights_of(poisoned)
    assert all(torch.equal(clean[name], other[name]) for name in clean)


def test_what_is_backtested_is_what_ships(tmp_path: Path) -> None:
    forecaster = make_forecaster(MLPSpec(input_size=10))
    save_artifact(forecaster, tmp_path / "a")
    reloaded = load_artifact(tmp_path / "a")
    panel = make_panel(2, 200)
    assert np.array_equal(ask(forecaster, panel).quantiles_BHQ, ask(reloaded, panel).quantiles_BHQ)


def test_a_cutoff_without_an_observation_is_not_asked() -> None:
    panel = make_panel(2, 200)
    y_NT = panel.y_NT.copy()
    y_NT[0, 160] = np.nan
    y_NT[1, :140] = np.nan
    test = ask(make_forecaster(), Panel(panel.unique_ids, panel.ds, y_NT, panel.calendar))
    asked = list(zip(test.series_B.tolist(), test.cutoff_B.tolist(), strict=True))
    assert asked == [(0, 150), (0, 170), (1, 170)], "no value at 160; too little history before 170"


def test_scores_agree_with_the_metrics_computed_directly() -> None:
    panel = make_panel(2, 200, missing=10)
    forecaster = make_forecaster(MLPSpec(input_size=10))
    test = ask(forecaster, panel)
    scores = test.scores()
    columns = summarise(test.quantiles_BHQ, forecaster.spec.quantiles, (80,))
    errors = np.abs(test.actual_BH - columns["mean"])
    assert scores["mae"] == pytest.approx(np.nanmean(errors))
    scale_N = [np.nanmean(np.abs(y_T[7:151] - y_T[:144])) for y_T in panel.y_NT]
    assert scores["mase"] == pytest.approx(np.nanmean(errors / np.array(scale_N)[test.series_B][:, None]))
    inside = (test.actual_BH >= columns["lo-80"]) & (test.actual_BH <= columns["hi-80"])
    assert scores["coverage_80"] == pytest.approx(inside[np.isfinite(test.actual_BH)].mean())
    assert test.mae_by_step()[0] == pytest.approx(np.nanmean(errors[:, 0]))
    asked = list(zip(test.cutoff_B // 10 - 15, test.series_B, strict=True))
    loss_KN = test.loss_by_series("mae")
    assert [loss_KN[k, n] for k, n in asked] == pytest.approx([np.nanmean(row) for row in errors])
    assert np.isfinite(loss_KN).sum() == len(asked)


def test_log_returns_are_scored_in_percent() -> None:
    panel = make_panel(1, 200)
    prices = Panel(panel.unique_ids, panel.ds, 100 * np.exp(0.01 * np.arange(200.0))[None], panel.calendar)
    test = ask(make_forecaster(NaiveSpec(input_size=10), transform="log_return"), prices)
    # A price that grows one percent a step is 1, 2 and 3 percent ahead of its last value.
    assert test.scores()["mae"] == pytest.approx(2.0, rel=1e-4)


def test_rows_are_dated_as_they_would_have_been_answered() -> None:
    panel = make_panel(2, 200)
    rows = ask(make_forecaster(), panel).to_frame()
    assert list(rows.columns[:6]) == ["unique_id", "cutoff", "ds", "step", "y", "mean"]
    assert len(rows) == 2 * 3 * 3
    assert ((rows["ds"] - rows["cutoff"]) == pd.to_timedelta(rows["step"], unit="D")).all()
    truth = panel.to_frame().set_index(["unique_id", "ds"])["y"]
    assert np.array_equal(truth.loc[list(zip(rows["unique_id"], rows["ds"], strict=True))], rows["y"])


def test_per_series_scores_average_to_the_whole() -> None:
    test = ask(make_forecaster(), make_panel(3, 200))
    per_series = test.per_series()
    assert per_series["n_forecasts"].tolist() == [3, 3, 3]
    assert per_series["mae"].mean() == pytest.approx(test.scores()["mae"])


def test_the_leaderboard_is_sorted_and_knows_the_skill() -> None:
    board = leaderboard({"naive": {"crps": 3.0}, "seasonal_naive": {"crps": 2.0}, "lstm": {"crps": 0.5}}, "crps")
    assert list(board.index) == ["lstm", "seasonal_naive", "naive"]
    assert board["skill"].tolist() == [0.75, 0.0, -0.5]


def test_who_answers_the_easy_questions_only_has_no_score() -> None:
    """A squared value of 1e25 does not fit into single precision: the window has no scale, the answer is none."""
    panel = make_panel(2, 200)
    y_NT = panel.y_NT * np.array([[1.0], [1e25]])
    huge = Panel(panel.unique_ids, panel.ds, y_NT, panel.calendar)
    test = ask(make_forecaster(MLPSpec(input_size=10)), huge)
    assert test.unanswered == ("pump-1",)
    assert all(np.isnan(value) for value in test.scores().values())
    per_series = test.per_series().set_index("unique_id")["mae"]
    assert np.isfinite(per_series["pump-0"])
    assert np.isnan(per_series["pump-1"])
    assert ask(make_forecaster(NaiveSpec(input_size=10)), huge).unanswered == ()


def test_nobody_to_ask_is_an_error() -> None:
    with pytest.raises(TrainingError, match=r"from 2024-05-30 to 2024-05-30: .* 500 steps of history"):
        run_backtest(make_forecaster(), make_panel(1, 200), (150,), history_needed=500, in_sample=151)


def test_losses_of_every_gate_metric_average_to_its_score() -> None:
    test = ask(make_forecaster(), make_panel(2, 200))
    scores = test.scores()
    for metric in ("crps", "mae", "mase"):
        assert np.nanmean(test.losses(metric)) == pytest.approx(scores[metric])
    for metric in ("rmse", "rmsse"):
        assert np.nanmean(test.losses(metric)) ** 0.5 == pytest.approx(scores[metric])
    assert metrics.mae(test.actual_BH, test.actual_BH) == 0
