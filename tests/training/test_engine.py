"""What the engine adds to a fit: covariates that matter, decoding, densities, blends, ensembles, warm starts."""

import numpy as np
import pandas as pd
import pytest
import torch

from forecasting.covariates import Covariates
from forecasting.errors import InputError, TrainingError
from forecasting.forecaster import Forecaster
from forecasting.networks import build_network
from forecasting.networks.base import Inputs
from forecasting.networks.ensemble import Ensemble
from forecasting.networks.linear import Ridge
from forecasting.networks.recurrent import Recurrent
from forecasting.networks.segment import Segment
from forecasting.panel import Columns, Panel, build_panel
from forecasting.spec import (
    CovariatesSpec,
    EnsembleSpec,
    ForecasterSpec,
    MLPSpec,
    NetworkSpec,
    RecurrentSpec,
    RidgeSpec,
    SegmentSpec,
    StaticSpec,
)
from tests.conftest import make_spec
from tests.training.test_fit import blocks, quick_fit, weekly_panel
from training.baselines import fit_baseline
from training.fit import fit
from training.job import TrainingConfig
from training.windows import PanelTensors, Windows

CPU = torch.device("cpu")
TOLD = CovariatesSpec(
    future=("plan",), static=(StaticSpec(name="unique_id", categories=("down", "up")),), calendar=("weekday",)
)
FAST = {"learning_rate": 0.01, "max_epochs": 12}


def planned_panel() -> Panel:
    """Series that jump with a plan nobody could guess, one up and one down."""
    rng = np.random.default_rng(0)
    plan = rng.normal(size=500)
    ds = pd.date_range("2024-01-01", periods=500, freq="D")
    frames = [
        pd.DataFrame({"unique_id": name, "ds": ds, "y": sign * plan + 0.1 * rng.normal(size=500), "plan": plan})
        for name, sign in (("up", 1.0), ("down", -1.0))
    ]
    return build_panel(pd.concat(frames), "D", columns=Columns(future=("plan",), static=("unique_id",)))


def fit_planned(network: NetworkSpec, covariates: CovariatesSpec) -> tuple[Forecaster, float]:
    spec = make_spec(network, covariates=covariates)
    data = PanelTensors(planned_panel(), "none", CPU, covariates)
    train = Windows(data, spec.input_size, spec.horizon, 0, 400)
    validation = Windows(data, spec.input_size, spec.horizon, 400, 500)
    result = fit(spec, TrainingConfig.model_validate({**FAST, "learning_rate": 0.02}), train, validation)
    return Forecaster(spec, result.network), result.validation_loss


@pytest.mark.parametrize(
    "network",
    [
        MLPSpec(input_size=8, hidden_size=32),
        RecurrentSpec(kind="lstm", input_size=12, hidden_size=32),
        RecurrentSpec(kind="gru", input_size=12, hidden_size=32, decoding="autoregressive"),
        SegmentSpec(kind="segment_gru", input_size=12, segment_size=3, hidden_size=32, linear="none"),
    ],
    ids=lambda n: n.kind,
)
def test_a_network_told_of_the_plan_forecasts_what_no_history_could(network: NetworkSpec) -> None:
    _, told = fit_planned(network, TOLD)
    _, untold = fit_planned(network, CovariatesSpec())
    assert told < 0.6 * untold


def test_an_unknown_series_and_missing_columns_are_answered() -> None:
    forecaster, _ = fit_planned(MLPSpec(input_size=8, hidden_size=32), TOLD)
    y_BL = planned_panel().y_NT[:, 100:108]
    cutoff_B = pd.DatetimeIndex(["2024-04-17"] * 2)
    known = forecaster.predict(y_BL, Covariates(cutoff_B, static={"unique_id": ["down", "up"]}))
    unknown = forecaster.predict(y_BL, Covariates(cutoff_B, static={"unique_id": ["new", "newer"]}))
    assert np.isfinite(known).all()
    assert np.isfinite(unknown).all()
    assert not np.allclose(known, unknown)
    with pytest.raises(InputError, match="needs covariates"):
        forecaster.predict(y_BL)
    with pytest.raises(InputError, match=r"future covariates of shape \(2, 8, 1\); this model needs \(2, 11, 1\)"):
        forecaster.predict(y_BL, Covariates(cutoff_B, future_BTF=np.zeros((2, 8, 1))))


def test_autoregressive_decoding_feeds_each_forecast_back() -> None:
    spec = make_spec(RecurrentSpec(kind="lstm", input_size=20, hidden_size=8, decoding="autoregressive"))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = build_network(spec).eval()
    assert isinstance(network, Recurrent)
    y_BL = 100 + np.random.default_rng(0).normal(size=(2, 20)).cumsum(axis=1)
    whole = Forecaster(spec, network).predict(y_BL)
    # By hand: forecast one step, append its middle to the history, and forecast again from the beginning.
    history_BL = y_BL
    for h in range(3):
        level_B1 = history_BL[:, -1:]
        x_BL = torch.from_numpy((history_BL - level_B1).astype(np.float32))
        raw = network.raw_forecast(Inputs(x_BL, torch.ones_like(x_BL, dtype=torch.bool)))
        quantiles_BQ = network.output.quantiles(raw.parameters_BSHP)[:, 0, 0]
        step_BQ = (raw.anchor_BS + raw.scale_BS * quantiles_BQ).numpy() + level_B1
        np.testing.assert_allclose(step_BQ, whole[:, h], rtol=0, atol=1e-3)
        history_BL = np.concatenate([history_BL, step_BQ[:, [spec.quantiles.index(0.5)]]], axis=1)


@pytest.mark.parametrize(
    ("network", "settings"),
    [
        (MLPSpec(input_size=14, hidden_size=16, head="student_t"), {}),
        (MLPSpec(input_size=14, hidden_size=16, head="student_t"), {"loss": "quantile"}),
        (MLPSpec(input_size=14, hidden_size=16, head="point"), {"loss": "absolute", "units": "series"}),
        (MLPSpec(input_size=14, hidden_size=16, head="point"), {"units": "series"}),
        (RecurrentSpec(kind="lstm", input_size=28, hidden_size=16, head="student_t"), {}),
        (SegmentSpec(kind="segment_lstm", input_size=28, segment_size=7, hidden_size=16), {}),
        (SegmentSpec(kind="segment_lstm", input_size=28, segment_size=7, hidden_size=16, linear="skip"), {}),
        (SegmentSpec(kind="segment_gru", input_size=28, segment_size=7, cycle=7, linear="none"), {"average": 0.9}),
    ],
    ids=str,
)
def test_every_head_and_loss_learns_the_season(network: NetworkSpec, settings: dict[str, object]) -> None:
    spec = make_spec(network)
    result = quick_fit(network, **settings)
    panel = weekly_panel()
    cutoffs = np.arange(330, 380)
    y_BL = panel.y_NT[1][cutoffs[:, None] + np.arange(1 - network.input_size, 1)]
    actual_BH = panel.y_NT[1][cutoffs[:, None] + np.arange(1, 4)]
    told = None
    if spec.takes_covariates:
        told = Covariates(panel.ds[cutoffs])
    point_BH = Forecaster(spec, result.network).predict(y_BL, told)[..., spec.quantiles.index(0.5)]
    # The amplitude is 10: the naive is off by about 7, the noise alone by 0.24.
    assert np.abs(point_BH - actual_BH).mean() < 1.0


def test_a_loss_that_does_not_suit_the_head_is_refused() -> None:
    with pytest.raises(TrainingError, match="head quantile is fitted with quantile, not with loss squared"):
        quick_fit(MLPSpec(input_size=14), loss="squared")


def test_a_blend_is_weighed_between_the_network_and_the_ridge() -> None:
    network = SegmentSpec(kind="segment_lstm", input_size=28, segment_size=7, hidden_size=16, head="point")
    spec = make_spec(network)
    train, validation = blocks(spec)
    fitted = fit(spec, TrainingConfig(max_epochs=1, steps_per_epoch=5), train, validation).network
    assert isinstance(fitted, Segment)
    assert fitted.linear is not None
    ridge = fit_baseline(make_spec(RidgeSpec(input_size=28)), train, validation)
    assert isinstance(ridge, Ridge)
    torch.testing.assert_close(fitted.linear.weight, ridge.linear.weight)
    # A network that has hardly learnt anything is worth little beside the ridge on a season in noise.
    assert 0.0 <= float(fitted.share) < 0.5


def test_a_known_series_is_scaled_by_its_own_spread_and_an_unknown_one_by_its_window() -> None:
    names = CovariatesSpec(static=(StaticSpec(name="unique_id", categories=("pump-0", "pump-1")),))
    network = SegmentSpec(kind="segment_lstm", input_size=14, segment_size=7, scale="series")
    with pytest.raises(ValueError, match="takes unique_id"):
        make_spec(network)
    spec: ForecasterSpec = make_spec(network, covariates=names)
    panel = weekly_panel()
    told = Panel(
        panel.unique_ids,
        panel.ds,
        panel.y_NT.copy(),
        panel.calendar,
        columns=Columns(static=("unique_id",)),
        static={"unique_id": panel.unique_ids},
    )
    data = PanelTensors(told, "none", CPU, names)
    train, validation = Windows(data, 14, 3, 0, 300), Windows(data, 14, 3, 300, 400)
    fitted = fit(spec, TrainingConfig(max_epochs=1), train, validation).network
    assert isinstance(fitted, Segment)
    assert fitted.units is not None
    spread = np.nanstd(panel.y_NT[:, :300], axis=1)
    np.testing.assert_allclose(fitted.units.unit_U[1:], spread, rtol=1e-3)
    assert float(fitted.units.unit_U[0]) == 0.0
    forecaster = Forecaster(spec, fitted)
    y_BL = panel.y_NT[1:, 100:114]
    for name in ("pump-1", "nobody"):
        answered = forecaster.predict(y_BL, Covariates(panel.ds[[113]], static={"unique_id": [name]}))
        assert np.isfinite(answered).all()


def test_an_ensemble_is_the_mean_of_its_members() -> None:
    member = MLPSpec(input_size=14, hidden_size=16)
    spec = make_spec(EnsembleSpec(n_members=3, member=member))
    epochs: list[int] = []
    result = fit(spec, TrainingConfig(max_epochs=2), *blocks(spec), lambda _, epoch: epochs.append(epoch))
    ensemble = result.network
    assert isinstance(ensemble, Ensemble)
    y_BL = weekly_panel().y_NT[1:, 100:114]
    alone = [Forecaster(make_spec(member), one).predict(y_BL) for one in ensemble.networks()]
    assert not np.allclose(alone[0], alone[1])
    np.testing.assert_allclose(Forecaster(spec, ensemble).predict(y_BL), np.mean(alone, axis=0), rtol=1e-4)
    assert epochs == [1, 2, 3, 4, 5, 6]


def test_a_warm_start_begins_where_the_other_network_ended() -> None:
    spec = make_spec(MLPSpec(input_size=14, hidden_size=16))
    train, validation = blocks(spec)
    before = fit(spec, TrainingConfig.model_validate(FAST), train, validation)
    short = TrainingConfig(max_epochs=1, learning_rate=1e-6)
    warm = fit(spec, short, train, validation, warm=before.network)
    scratch = fit(spec, short, train, validation)
    assert warm.validation_loss == pytest.approx(before.validation_loss, rel=1e-3)
    assert scratch.validation_loss > 2 * warm.validation_loss


def test_bfloat16_comes_close_to_single_precision() -> None:
    network = MLPSpec(input_size=14, hidden_size=16)
    single = quick_fit(network, precision="float32")
    half = quick_fit(network, precision="bfloat16")
    assert half.validation_loss == pytest.approx(single.validation_loss, rel=0.3)
