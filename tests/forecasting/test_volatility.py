"""Volatility networks: blind to the future, free of units, calm where columns are missing, served from windows."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from arch.univariate import SkewStudent

from forecasting.artifact import load_artifact, save_artifact
from forecasting.covariates import Covariates
from forecasting.errors import InputError
from forecasting.forecaster import BATCH, Forecaster
from forecasting.networks import build_network
from forecasting.networks.base import CovariateTensors, Inputs
from forecasting.networks.ensemble import Ensemble
from forecasting.networks.volatility import Volatility
from forecasting.recurrence import recurrence_of
from forecasting.spec import CovariatesSpec, EnsembleSpec, MLPSpec, VolatilitySpec
from tests.conftest import make_forecaster, make_spec

KINDS = ("volatility_rnn", "volatility_gru", "volatility_lstm")
TOLD = CovariatesSpec(past=("garman_klass", "ambient", "overnight"), calendar=("weekday",))
SIZE = 60


def awake(
    kind: str = "volatility_lstm", horizon: int = 3, covariates: CovariatesSpec = TOLD, *, absolute: bool = True
) -> Volatility:
    """Return a network whose every path says something, as after a training."""
    member = VolatilitySpec(kind=kind, input_size=SIZE, absolute=absolute)
    spec = make_spec(member, horizon=horizon, covariates=covariates)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = build_network(spec).eval()
        assert isinstance(network, Volatility)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return network


def market(n_series: int = 4, length: int = SIZE, horizon: int = 3, seed: int = 0) -> Inputs:
    """Return log prices in percent with gaps, and columns with gaps."""
    generator = torch.Generator().manual_seed(seed)
    x_BL = torch.randn(n_series, length, generator=generator).cumsum(dim=1)
    mask_BL = torch.rand(n_series, length, generator=generator) > 0.1
    past_BLP = torch.randn(n_series, length, 3, generator=generator)
    past_BLP[..., 0] = past_BLP[..., 0].square()
    past_BLP[torch.rand(past_BLP.shape, generator=generator) < 0.1] = torch.nan
    future_BTF = torch.rand(n_series, length + horizon, 2, generator=generator)
    none_BS = torch.zeros(n_series, 0, dtype=torch.long)
    return Inputs(x_BL, mask_BL, CovariateTensors(past_BLP, future_BTF, none_BS))


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_forecast_at_a_step_is_blind_to_later_steps(kind: str) -> None:
    network, inputs = awake(kind), market()
    assert inputs.covariates is not None
    x_BL, mask_BL, past_BLP = inputs.x_BL.clone(), inputs.mask_BL.clone(), inputs.covariates.past_BLP.clone()
    x_BL[:, 30:], mask_BL[:, 30:], past_BLP[:, 30:] = 1e9, True, 1e9
    past_BLP[:, 40:] = torch.nan
    poisoned = inputs._replace(
        x_BL=x_BL, mask_BL=mask_BL, covariates=inputs.covariates._replace(past_BLP=past_BLP)
    )
    before, after = network.forecast_steps(inputs), network.forecast_steps(poisoned)
    for told, poison in zip(before, after, strict=True):
        assert torch.equal(told[:, :30], poison[:, :30])
        assert not torch.equal(told[:, 30:], poison[:, 30:])


@torch.no_grad()
def test_the_last_step_is_forecast_as_it_is_among_all() -> None:
    network, inputs = awake(), market()
    for one, all_of_them in zip(network.raw_forecast(inputs), network.forecast_steps(inputs), strict=True):
        torch.testing.assert_close(one[:, -1], all_of_them[:, -1])


@torch.no_grad()
def test_returns_times_a_factor_with_variances_times_its_square_give_that_scale() -> None:
    network, inputs = awake(absolute=False), market()
    assert inputs.covariates is not None
    unit = torch.tensor([7.0**2, 1.0, 7.0])
    scaled = inputs._replace(
        x_BL=7 * inputs.x_BL + 100,
        covariates=inputs.covariates._replace(past_BLP=unit * inputs.covariates.past_BLP),
    )
    torch.testing.assert_close(network(scaled), 7 * network(inputs) + 100, rtol=1e-3, atol=2e-3)
    reverting = awake(absolute=True)
    assert not torch.allclose(reverting(scaled), 7 * reverting(inputs) + 100, rtol=1e-2)


def prices(n_series: int = 3, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    y_BL: np.ndarray = 50 * np.exp(0.01 * rng.normal(size=(n_series, SIZE)).cumsum(axis=1))
    return y_BL


def told(n_series: int = 3) -> Covariates:
    rng = np.random.default_rng(1)
    past_BLP = rng.normal(size=(n_series, SIZE, 3)) ** 2
    return Covariates(pd.DatetimeIndex(["2024-03-01"] * n_series), past_BLP=past_BLP)


def test_prices_times_a_constant_have_forecasts_times_it() -> None:
    spec = make_spec(VolatilitySpec(input_size=SIZE), covariates=TOLD, transform="log_return")
    forecaster = Forecaster(spec, awake())
    expected = 1000 * forecaster.predict(prices(), told())
    np.testing.assert_allclose(forecaster.predict(1000 * prices(), told()), expected, rtol=1e-5)


@torch.no_grad()
def test_columns_that_are_missing_are_done_without() -> None:
    network, inputs = awake(), market()
    assert inputs.covariates is not None
    past_BLP = inputs.covariates.past_BLP
    for hidden in (torch.full_like(past_BLP, torch.nan), torch.full_like(past_BLP, torch.inf)):
        unknown = inputs._replace(covariates=inputs.covariates._replace(past_BLP=hidden))
        assert network(unknown).isfinite().all()
    features_BLF = network.features(unknown)[0]
    assert features_BLF.isnan().any(), "what is not known must not pass for a variance of zero"
    # A variance below zero is none, and one that has not been told for a month is forgotten.
    negative = inputs.covariates._replace(past_BLP=-past_BLP[..., :1].abs().expand_as(past_BLP) - 1)
    stopped = past_BLP.clone()
    stopped[:, 20:] = torch.nan
    assert network(inputs._replace(covariates=negative)).isfinite().all()
    last_BF = network.features(inputs._replace(covariates=negative._replace(past_BLP=stopped)))[0][:, -1]
    torch.testing.assert_close(last_BF[:, :20].isnan(), features_BLF[:, -1, :20].isnan())


def test_a_return_over_missing_sessions_counts_as_one_of_a_session() -> None:
    network = build_network(make_spec(VolatilitySpec(input_size=SIZE, scale_span=100_000)))
    assert isinstance(network, Volatility)
    x_BL = torch.zeros(1, SIZE)
    x_BL[:, 40:] = 6.0
    mask_BL = torch.ones(1, SIZE, dtype=torch.bool)
    mask_BL[:, 32:40] = False
    _, anchor_BL, scale_BL = network.features(Inputs(x_BL, mask_BL))
    assert anchor_BL[0, 38:42].tolist() == [0.0, 0.0, 6.0, 6.0]
    # Nine sessions lie between the values: 6 over nine spreads as 2 over one, after 31 returns of nothing.
    assert float(scale_BL[0, 40]) == pytest.approx(math.sqrt(2.0**2 / 32), rel=1e-3)


@torch.no_grad()
def test_an_untrained_network_spreads_as_its_window_and_with_the_root_of_the_step() -> None:
    x_BL = torch.randn(200, 250).cumsum(dim=1) * 3
    network = build_network(make_spec(VolatilitySpec(input_size=250), horizon=9)).eval()
    assert isinstance(network, Volatility)
    density = network.density(Inputs(x_BL, torch.ones_like(x_BL, dtype=torch.bool)))
    assert float(density.scale[:, 0].mean()) == pytest.approx(3.0, rel=0.02)
    torch.testing.assert_close(density.scale[:, 8], 3 * density.scale[:, 0])
    torch.testing.assert_close(density.location, x_BL[:, -1:].expand(-1, 9))


def served(n_members: int) -> Forecaster:
    """Return a forecaster of one network, or of several that differ in what they say of the scale."""
    member = VolatilitySpec(input_size=SIZE)
    network = member if n_members == 1 else EnsembleSpec(n_members=n_members, member=member)
    spec = make_spec(network, covariates=TOLD, transform="log_return")
    built = build_network(spec) if n_members > 1 else awake()
    if isinstance(built, Ensemble):
        built.set_members([awake() for _ in range(n_members)])
        for i, one in enumerate(built.networks()):
            assert isinstance(one, Volatility)
            one.constant_HP.data[:, 1] += 0.2 * i
    return Forecaster(spec, built)


@pytest.mark.parametrize("n_members", [1, 3])
def test_an_artefact_answers_as_what_was_saved(n_members: int, tmp_path: Path) -> None:
    forecaster = served(n_members)
    save_artifact(forecaster, tmp_path / "artifact")
    loaded = load_artifact(tmp_path / "artifact")
    assert np.array_equal(loaded.predict(prices(), told()), forecaster.predict(prices(), told()))
    density, again = (one.predict_density(prices(), told()) for one in (forecaster, loaded))
    assert all(np.array_equal(ours, theirs) for ours, theirs in zip(density, again, strict=True))


@pytest.mark.parametrize("n_members", [1, 3])
def test_the_density_is_the_one_whose_quantiles_are_answered(n_members: int) -> None:
    forecaster = served(n_members)
    density = forecaster.predict_density(prices(), told())
    returns_BHQ = 100 * np.log(forecaster.predict(prices(), told()) / prices()[:, -1:, None])
    for series in range(3):
        for h in range(3):
            location, scale, tail, skew = (float(part_BH[series, h]) for part_BH in density)
            exact_Q = SkewStudent().ppf(np.array(forecaster.spec.quantiles), np.array([1 / tail, skew]))
            np.testing.assert_allclose(returns_BHQ[series, h], location + scale * exact_Q, rtol=5e-3, atol=5e-3)


def test_densities_of_many_histories_are_worked_out_batch_by_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    forecaster = served(3)
    whole = forecaster.predict_density(prices(), told())
    monkeypatch.setitem(BATCH, "cpu", 2)
    for found, expected in zip(forecaster.predict_density(prices(), told()), whole, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    none = forecaster.predict_density(prices()[:0], told().rows(slice(0, 0)))
    assert [part_BH.shape for part_BH in none] == [(0, forecaster.spec.horizon)] * 4


def test_a_forecaster_without_a_density_says_so() -> None:
    assert served(3).says_density
    assert not make_forecaster(MLPSpec(input_size=8)).says_density
    with pytest.raises(InputError, match="says quantiles and no density"):
        make_forecaster(MLPSpec(input_size=8)).predict_density(prices())


def test_a_stream_forecasts_from_its_window_because_no_state_is_carried() -> None:
    assert recurrence_of(served(1)) is None
    assert recurrence_of(served(3)) is None
