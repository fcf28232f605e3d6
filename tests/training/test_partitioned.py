"""One network over partitions of the series: rounds by hand, reproducible, close to training on all at once."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from forecasting.networks import QuantileNetwork
from forecasting.panel import Panel
from forecasting.spec import MLPSpec, NetworkSpec, RecurrentSpec
from tests.conftest import make_panel, make_spec
from training.fit import FitResult, fit
from training.job import TrainingConfig
from training.partitioned import LocalResult, LocalRound, partitioned, train_round, write_partitions
from training.windows import PanelTensors, Windows

BOUNDARY = 160
MLP = MLPSpec(input_size=14, hidden_size=16)


class Rounds:
    """Runs rounds here, and remembers them."""

    def __init__(self) -> None:
        self.orders: list[LocalRound] = []
        self.results: list[LocalResult] = []

    def __call__(self, orders: Sequence[LocalRound]) -> Sequence[LocalResult]:
        results = [train_round(order) for order in reversed(orders)][::-1]  # whichever is trained first
        self.orders += orders
        self.results += results
        return results


def fit_in(
    folder: Path,
    panel: Panel,
    count: int | None,
    network: NetworkSpec = MLP,
    rounds: Rounds | None = None,
    **changes: object,
) -> FitResult:
    """Fit over so many partitions; None is the usual training over all series."""
    spec = make_spec(network)
    config = TrainingConfig.model_validate({"max_epochs": 4, "steps_per_epoch": 20, "device": "cpu", **changes})
    data = PanelTensors(panel, "none", torch.device("cpu"))
    train = Windows(data, spec.input_size, spec.horizon, 0, BOUNDARY)
    validation = Windows(data, spec.input_size, spec.horizon, BOUNDARY, panel.n_steps)
    if count is None:
        return fit(spec, config, train, validation)
    paths = write_partitions(panel, folder / str(count), count)
    return fit(spec, config, train, validation, fitting=partitioned(paths, rounds or Rounds()))


def weights_of(network: QuantileNetwork) -> bytes:
    return b"".join(tensor.numpy().tobytes() for tensor in network.state_dict().values())


def test_a_round_is_the_average_of_its_partitions_by_their_windows(tmp_path: Path) -> None:
    rounds = Rounds()
    panel = make_panel(5, 200)
    result = fit_in(tmp_path, panel, 2, rounds=rounds, max_epochs=1)
    assert result.best_epoch == 1
    odd, even = rounds.results
    assert (odd.windows, even.windows) == (3 * odd.windows // 3, 2 * odd.windows // 3)  # three series and two
    for name, parameter in result.network.named_parameters():
        mean = (3 * odd.weights[name].astype(float) + 2 * even.weights[name].astype(float)) / 5
        np.testing.assert_allclose(parameter.detach().numpy(), mean, rtol=1e-6, atol=1e-9)
        assert not np.array_equal(odd.weights[name], even.weights[name])


def test_the_next_round_starts_from_the_average_and_its_moments(tmp_path: Path) -> None:
    rounds = Rounds()
    fit_in(tmp_path, make_panel(4, 200), 2, rounds=rounds, max_epochs=2)
    first, second = rounds.orders[:2], rounds.orders[2:]
    assert [order.moments for order in first] == [{}, {}]
    assert second[0].weights.keys() == second[1].weights.keys()
    moments = [result.moments[0]["exp_avg_sq"] for result in rounds.results[:2]]
    np.testing.assert_allclose(second[0].moments[0]["exp_avg_sq"], (moments[0] + moments[1]) / 2, rtol=1e-5)
    assert float(second[0].moments[0]["step"]) == 20


@pytest.mark.parametrize("optimizer", ["adamw", "rmsprop"])
def test_the_same_seed_gives_the_same_weights(tmp_path: Path, optimizer: str) -> None:
    panel = make_panel(6, 200)
    runs = [fit_in(tmp_path, panel, 3, optimizer=optimizer).network for _ in range(2)]
    assert weights_of(runs[0]) == weights_of(runs[1])
    other = fit_in(tmp_path, panel, 3, optimizer=optimizer, seed=2).network
    assert weights_of(other) != weights_of(runs[0])


@pytest.mark.parametrize("network", [MLP, RecurrentSpec(kind="lstm", input_size=28, hidden_size=8)])
def test_partitions_come_close_to_training_on_all_series_at_once(tmp_path: Path, network: NetworkSpec) -> None:
    panel = make_panel(16, 200)
    changes: dict[str, object] = {"max_epochs": 10, "learning_rate": 0.01}
    whole = fit_in(tmp_path, panel, None, network, **changes)
    parted = fit_in(tmp_path, panel, 4, network, **changes)
    assert parted.forecasts_seen == 4 * whole.forecasts_seen
    assert parted.validation_loss < 1.05 * whole.validation_loss


def test_a_partition_with_nothing_to_learn_from_is_passed_over(tmp_path: Path) -> None:
    panel = make_panel(3, 200)
    y_NT = panel.y_NT.copy()
    y_NT[1, :190] = np.nan
    late = Panel(panel.unique_ids, panel.ds, y_NT, panel.calendar)
    rounds = Rounds()
    fit_in(tmp_path, late, 3, rounds=rounds, max_epochs=1)
    assert [result.windows > 0 for result in rounds.results] == [True, False, True]


def test_a_series_without_a_value_is_in_no_partition(tmp_path: Path) -> None:
    panel = make_panel(3, 50)
    y_NT = panel.y_NT.copy()
    y_NT[1] = np.nan
    empty = Panel(panel.unique_ids, panel.ds, y_NT, panel.calendar)
    assert len(write_partitions(empty, tmp_path, 5)) == 2


def test_an_average_of_every_step_is_refused() -> None:
    with pytest.raises(ValidationError, match="with partitions leave it 0"):
        TrainingConfig(partitions=2, average=0.9)
