"""Networks: quantiles that ascend, any window, missing values masked, forecasts at every step."""

import numpy as np
import pytest
import torch

from forecasting.networks import build_network
from forecasting.networks.base import Inputs
from forecasting.networks.recurrent import Recurrent
from forecasting.spec import (
    DriftSpec,
    EnsembleSpec,
    MLPSpec,
    NaiveSpec,
    NetworkSpec,
    RecurrentSpec,
    RidgeSpec,
    SeasonalNaiveSpec,
    SegmentSpec,
    VolatilitySpec,
)
from tests.conftest import make_forecaster, make_spec

EVERY_KIND: list[NetworkSpec] = [
    NaiveSpec(input_size=20),
    SeasonalNaiveSpec(input_size=20, season_length=7),
    DriftSpec(input_size=20),
    RidgeSpec(input_size=20),
    RidgeSpec(input_size=20, scaling="difference"),
    MLPSpec(input_size=5),
    MLPSpec(input_size=1, layers=1),
    MLPSpec(input_size=20, scaling="mean", dropout=0.5, layers=3),
    RecurrentSpec(kind="rnn", input_size=20),
    RecurrentSpec(kind="gru", input_size=20, layers=2, scaling="mean"),
    RecurrentSpec(kind="lstm", input_size=200, layers=2, dropout=0.1, scaling="difference"),
    MLPSpec(input_size=21, head="student_t"),
    MLPSpec(input_size=22, head="point"),
    RecurrentSpec(kind="lstm", input_size=23, head="student_t"),
    RecurrentSpec(kind="gru", input_size=24, decoding="autoregressive"),
    SegmentSpec(kind="segment_lstm", input_size=25, segment_size=4),
    SegmentSpec(kind="segment_gru", input_size=26, segment_size=2, scaling="mean", linear="none"),
    SegmentSpec(kind="segment_rnn", input_size=27, segment_size=9, scaling="difference", head="student_t"),
    MLPSpec(input_size=29, head="skewed_t"),
    VolatilitySpec(kind="volatility_rnn", input_size=30),
    VolatilitySpec(kind="volatility_gru", input_size=31, scale_span=10),
    VolatilitySpec(kind="volatility_lstm", input_size=150, absolute=False),
    EnsembleSpec(n_members=2, member=VolatilitySpec(input_size=32)),
    EnsembleSpec(n_members=3, member=RecurrentSpec(kind="lstm", input_size=28)),
]


def histories(length: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    y_BL = 100 + rng.normal(size=(4, length)).cumsum(axis=1)
    y_BL[1, 1:-1:3] = np.nan
    y_BL[2, : length // 2] = np.nan
    y_BL[3, -1] = np.nan if length > 1 else y_BL[3, -1]
    return y_BL


@pytest.mark.parametrize("network", EVERY_KIND, ids=lambda n: f"{n.kind}-{n.input_size}")
@pytest.mark.parametrize("transform", ["none", "log_return"])
def test_every_kind_forecasts_finite_ascending_quantiles(network: NetworkSpec, transform: str) -> None:
    quantiles_BHQ = make_forecaster(network, transform=transform).predict(histories(network.input_size))
    assert quantiles_BHQ.shape == (4, 3, 13)
    assert np.isfinite(quantiles_BHQ).all()
    assert (np.diff(quantiles_BHQ, axis=-1) >= 0).all()


@pytest.mark.parametrize("network", EVERY_KIND, ids=lambda n: f"{n.kind}-{n.input_size}")
def test_forecasts_follow_the_unit_of_their_input(network: NetworkSpec) -> None:
    forecaster, y_BL = make_forecaster(network), histories(network.input_size)
    moved_BHQ = forecaster.predict(1000 * y_BL - 5e6)
    np.testing.assert_allclose(moved_BHQ, 1000 * forecaster.predict(y_BL) - 5e6, rtol=0, atol=0.05)


@pytest.mark.parametrize("network", EVERY_KIND, ids=lambda n: f"{n.kind}-{n.input_size}")
def test_a_missing_value_has_no_value(network: NetworkSpec) -> None:
    """Whatever stands where the mask says missing changes nothing."""
    spec = make_spec(network)
    torch.manual_seed(0)
    built = build_network(spec).eval()
    x_BL = torch.randn(2, network.input_size).cumsum(dim=1)
    mask_BL = torch.ones_like(x_BL, dtype=torch.bool)
    mask_BL[:, 1:-1:2] = False
    other_BL = torch.where(mask_BL, x_BL, 1e6)
    assert torch.equal(built(Inputs(x_BL, mask_BL)), built(Inputs(other_BL, mask_BL)))


@pytest.mark.parametrize("network", EVERY_KIND, ids=lambda n: f"{n.kind}-{n.input_size}")
def test_windows_known_to_be_whole_are_forecast_as_those_looked_at(network: NetworkSpec) -> None:
    torch.manual_seed(0)
    built = build_network(make_spec(network)).eval()
    x_BL = torch.randn(4, network.input_size).cumsum(dim=1)
    looked_at = Inputs(x_BL, torch.ones_like(x_BL, dtype=torch.bool))
    torch.testing.assert_close(built(looked_at._replace(whole=True)), built(looked_at), rtol=1e-4, atol=1e-5)


def test_baselines_forecast_what_their_names_say() -> None:
    week = np.array([[1.0, 2, 3, 4, 5, 6, 7, 2, 3, 4, 5, 6, 7, 8, 3, np.nan]])

    def point(network: NetworkSpec) -> list[float]:
        return make_forecaster(network, horizon=8).predict(week)[0, :, 0].round(5).tolist()

    assert point(NaiveSpec(input_size=16)) == [3.0] * 8
    # The last value of each weekday; the missing one is answered by the week before.
    assert point(SeasonalNaiveSpec(input_size=14, season_length=7)) == [4.0, 5.0, 6.0, 7.0, 8.0, 3.0, 3.0, 4.0]
    # From 1 at the first step to 3 at the fifteenth, then one silent step.
    assert point(DriftSpec(input_size=16)) == [round(3 + 2 / 14 * (h + 1), 5) for h in range(1, 9)]


@pytest.mark.parametrize("kind", ["rnn", "gru", "lstm"])
def test_the_full_pass_equals_the_step_by_step_pass(kind: str) -> None:
    spec = make_spec(RecurrentSpec(kind=kind, input_size=150, layers=2, hidden_size=16))
    torch.manual_seed(0)
    network = build_network(spec).eval()
    assert isinstance(network, Recurrent)
    x_BL = torch.randn(3, 150).cumsum(dim=1)
    mask_BL = torch.rand(3, 150) > 0.1
    with torch.no_grad():
        whole, _ = network.forecast_every_step(Inputs(x_BL, mask_BL))
        state = None
        for t in range(150):
            step, state = network.forecast_every_step(Inputs(x_BL[:, t : t + 1], mask_BL[:, t : t + 1]), state)
            torch.testing.assert_close(
                step.parameters_BSHP[:, 0], whole.parameters_BSHP[:, t], rtol=1e-4, atol=1e-4
            )
            torch.testing.assert_close(step.scale_BS[:, 0], whole.scale_BS[:, t], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["rnn", "gru", "lstm"])
def test_a_forecast_at_a_step_is_blind_to_later_steps(kind: str) -> None:
    spec = make_spec(RecurrentSpec(kind=kind, input_size=60))
    network = build_network(spec).eval()
    assert isinstance(network, Recurrent)
    x_BL, mask_BL = torch.randn(2, 60).cumsum(dim=1), torch.ones(2, 60, dtype=torch.bool)
    poisoned_BL = x_BL.clone()
    poisoned_BL[:, 30:] = 1e9
    before = network.forecast_every_step(Inputs(x_BL, mask_BL))[0].parameters_BSHP[:, :30]
    after = network.forecast_every_step(Inputs(poisoned_BL, mask_BL))[0].parameters_BSHP[:, :30]
    assert torch.equal(before, after)


def test_an_untrained_network_starts_as_a_random_walk() -> None:
    y_BL = 100 + np.random.default_rng(0).normal(size=(200, 50)).cumsum(axis=1)
    network = MLPSpec(input_size=50, scaling="difference")
    quantiles_BHQ = make_forecaster(network, horizon=9).predict(y_BL)
    width_H = (quantiles_BHQ[..., -1] - quantiles_BHQ[..., 0]).mean(axis=0)
    assert width_H[8] / width_H[0] == pytest.approx(3.0, rel=0.15)
    assert np.abs(quantiles_BHQ[..., 6].mean(axis=1) - y_BL[:, -1]).mean() < 0.5


def test_recurrent_weights_start_orthogonal_with_open_forget_gates() -> None:
    network = build_network(make_spec(RecurrentSpec(kind="lstm", input_size=20, hidden_size=16)))
    assert isinstance(network, Recurrent)
    for block in network.recurrent.weight_hh_l0.detach().split(16):
        torch.testing.assert_close(block @ block.T, torch.eye(16), rtol=1e-4, atol=1e-4)
    assert network.recurrent.bias_ih_l0.detach()[16:32].tolist() == [1.0] * 16
