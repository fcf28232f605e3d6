"""Fitting: it learns, it repeats, it stops, and it says so when it cannot."""

import numpy as np
import pytest
import torch

from forecasting.errors import TrainingError
from forecasting.panel import Panel
from forecasting.spec import ForecasterSpec, MLPSpec, NetworkSpec, RecurrentSpec
from tests.conftest import make_panel, make_spec
from training.fit import FitResult, fit, pick_device
from training.job import TrainingConfig
from training.windows import PanelTensors, Windows

CPU = torch.device("cpu")
NETWORKS: list[NetworkSpec] = [
    MLPSpec(input_size=5, hidden_size=16),
    MLPSpec(input_size=14, hidden_size=16),
    RecurrentSpec(kind="rnn", input_size=28, hidden_size=16),
    RecurrentSpec(kind="gru", input_size=28, hidden_size=16),
    RecurrentSpec(kind="lstm", input_size=28, hidden_size=16, layers=2, dropout=0.1),
]


def blocks(spec: ForecasterSpec, panel: Panel | None = None) -> tuple[Windows, Windows]:
    data = PanelTensors(panel or weekly_panel(), "none", CPU)
    train = Windows(data, spec.input_size, spec.horizon, 0, 300)
    return train, Windows(data, spec.input_size, spec.horizon, 300, 400)


def weekly_panel() -> Panel:
    """A clear weekly season in a little noise: what a forecaster ought to learn."""
    panel = make_panel(2, 400)
    noise = np.random.default_rng(0).normal(0, 0.3, size=(2, 400))
    y_NT = 10 * np.sin(2 * np.pi * np.arange(400) / 7) + noise
    y_NT[0, 50:60] = np.nan
    return Panel(panel.unique_ids, panel.ds, y_NT, panel.calendar)


def quick_fit(network: NetworkSpec, panel: Panel | None = None, **settings: object) -> FitResult:
    spec = make_spec(network)
    config = TrainingConfig.model_validate({"learning_rate": 0.01, "max_epochs": 15, **settings})
    return fit(spec, config, *blocks(spec, panel))


@pytest.mark.parametrize("network", NETWORKS, ids=lambda n: f"{n.kind}-{n.input_size}")
def test_every_network_learns_a_season(network: NetworkSpec) -> None:
    # In units of the series' own scale, the seasonal naive's loss here is about 0.02, the naive's 0.3.
    assert quick_fit(network).validation_loss < 0.06


@pytest.mark.parametrize("network", [NETWORKS[1], NETWORKS[4]], ids=["mlp", "lstm"])
def test_the_same_seed_gives_the_same_weights(network: NetworkSpec) -> None:
    one, two, other = (quick_fit(network, max_epochs=3, seed=seed).network.state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


def test_fitting_leaves_the_global_random_state_alone() -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    quick_fit(NETWORKS[0], max_epochs=1)
    assert torch.equal(before, torch.random.get_rng_state())


def test_the_best_weights_are_the_ones_returned() -> None:
    spec = make_spec(NETWORKS[1])
    train, validation = blocks(spec)
    losses: list[float] = []
    config = TrainingConfig(learning_rate=0.05, schedule="constant", max_epochs=40, patience=40)
    result = fit(spec, config, train, validation, lambda metrics, _: losses.append(metrics["val/loss"]))
    assert result.best_epoch == int(np.argmin(losses)) + 1
    assert result.best_epoch < result.epochs, "this test needs a fit that gets worse again"
    stopped_there = config.model_copy(update={"max_epochs": result.best_epoch})
    expected = fit(spec, stopped_there, train, validation).network.state_dict()
    found = result.network.state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_patience_stops_a_fit_that_no_longer_improves() -> None:
    result = quick_fit(NETWORKS[1], learning_rate=0.3, schedule="constant", max_epochs=200, patience=3)
    assert result.stopped_by == "patience"
    assert result.epochs == result.best_epoch + 3


def test_the_time_budget_stops_a_fit() -> None:
    result = quick_fit(NETWORKS[1], max_epochs=100_000, patience=100_000, max_seconds=0.5)
    assert result.stopped_by == "max_seconds"
    assert result.seconds < 5


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "rmsprop"])
@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_every_optimiser_and_schedule_learns(optimizer: str, schedule: str) -> None:
    result = quick_fit(NETWORKS[1], optimizer=optimizer, schedule=schedule, learning_rate=0.003)
    assert result.validation_loss < 0.1


def test_gradient_norms_of_every_layer_are_logged() -> None:
    spec = make_spec(NETWORKS[4])
    seen: dict[str, float] = {}
    fit(spec, TrainingConfig(max_epochs=1), *blocks(spec), lambda metrics, _: seen.update(metrics))
    norms = {name: value for name, value in seen.items() if name.startswith("grad_norm/")}
    assert {f"grad_norm/recurrent.weight_hh_l{layer}" for layer in (0, 1)} <= norms.keys()
    assert "grad_norm/head.linear.weight" in norms
    assert all(value > 0 for value in norms.values())


def test_gradients_are_clipped_to_the_norm() -> None:
    """A step of plain size under a tiny clip norm hardly moves; the logged norms are the unclipped ones."""
    spec = make_spec(NETWORKS[1])
    free = TrainingConfig(
        optimizer="rmsprop", max_epochs=1, steps_per_epoch=1, learning_rate=0.01, schedule="constant"
    )
    seen: dict[str, float] = {}
    fit(spec, free.model_copy(update={"clip_norm": 1e-12}), *blocks(spec), lambda m, _: seen.update(m))
    assert seen["grad_norm/head.linear.weight"] > 1e-6


def test_a_fit_that_diverges_says_what_to_lower() -> None:
    panel = weekly_panel()
    spec = make_spec(NETWORKS[1])
    train, validation = blocks(spec, panel)
    train.data.x_NT[0, 100] = float("inf")
    with pytest.raises(TrainingError, match=r"diverged in epoch 1.*learning_rate.*clip_norm"):
        fit(spec, TrainingConfig(), train, validation)


def test_data_too_short_for_a_window_is_refused() -> None:
    spec = make_spec(MLPSpec(input_size=350))
    with pytest.raises(TrainingError, match=r"no window to train with: input_size 350"):
        fit(spec, TrainingConfig(), *blocks(spec))


def test_a_sensor_that_sticks_and_jumps_does_not_rule_the_loss() -> None:
    panel = weekly_panel()
    y_NT = panel.y_NT.copy()
    y_NT[0, 100:130] = 3.0
    y_NT[0, 130] = 1e6
    stuck = Panel(panel.unique_ids, panel.ds, y_NT, panel.calendar)
    assert quick_fit(NETWORKS[1], stuck).validation_loss < 0.1


def test_a_gpu_that_is_not_there_is_an_error_and_auto_is_not() -> None:
    if torch.cuda.is_available():
        assert pick_device("auto").type == "cuda"
        return
    assert pick_device("auto").type == "cpu"
    with pytest.raises(TrainingError, match="device: auto"):
        pick_device("cuda")
