"""Volatility networks in training: a known model found, nothing kept that does not help, scales widened only."""

import numpy as np
import pytest
import torch

from forecasting.errors import JobError, TrainingError
from forecasting.networks import build_network
from forecasting.networks.volatility import Volatility
from forecasting.panel import Columns, Panel
from forecasting.spec import CovariatesSpec, EnsembleSpec, ForecasterSpec, VolatilitySpec
from tests.conftest import make_panel, make_spec
from training.calibrate import calibrate
from training.fit import FitResult, fit
from training.job import TrainingConfig, parse_job
from training.windows import PanelTensors, Windows

SIZE = 100
STEPS = 1600
TOLD = CovariatesSpec(past=("garman_klass",))


def clustered(n_series: int = 3) -> tuple[Panel, np.ndarray]:
    """Return prices whose log variance is a known sum of past log range variances, and their deviations."""
    rng = np.random.default_rng(0)
    log_range_NT = np.zeros((n_series, STEPS))
    log_scale_NT = np.zeros((n_series, STEPS))
    for t in range(1, STEPS):
        week_N = log_range_NT[:, max(0, t - 5) : t].mean(axis=1)
        log_scale_NT[:, t] = 0.5 * (0.4 * log_range_NT[:, t - 1] + 0.5 * week_N)
        log_range_NT[:, t] = 2 * log_scale_NT[:, t] + 0.8 * rng.normal(size=n_series)
    scale_NT = np.exp(log_scale_NT)
    y_NT = 100 * np.exp((scale_NT * rng.normal(size=scale_NT.shape)).cumsum(axis=1) / 100)
    grid = make_panel(n_series, STEPS)
    past_NTP = np.exp(log_range_NT)[..., None]
    columns = Columns(past=("garman_klass",))
    return Panel(grid.unique_ids, grid.ds, y_NT, grid.calendar, columns=columns, past_NTP=past_NTP), scale_NT


def spec_of(network: VolatilitySpec | EnsembleSpec, covariates: CovariatesSpec = TOLD) -> ForecasterSpec:
    return make_spec(network, horizon=1, covariates=covariates, transform="log_return")


def blocks(panel: Panel, spec: ForecasterSpec) -> tuple[Windows, Windows, Windows]:
    data = PanelTensors(panel, "log_return", torch.device("cpu"), spec.covariates)
    sides = ((0, 1000), (1000, 1200), (1200, STEPS))
    train, validation, test = (Windows(data, spec.input_size, 1, start, stop) for start, stop in sides)
    return train, validation, test


def quick_fit(network: VolatilitySpec | EnsembleSpec, **settings: object) -> FitResult:
    panel, _ = clustered()
    config = TrainingConfig.model_validate({"max_epochs": 2, "steps_per_epoch": 3, "batch_size": 8, **settings})
    spec = spec_of(network)
    return fit(spec, config, *blocks(panel, spec)[:2])


def log_scales(network: Volatility, test: Windows) -> np.ndarray:
    chosen_B = torch.arange(len(test))
    with torch.no_grad():
        scale_B: np.ndarray = network.density(test.gather(chosen_B).inputs).scale[:, 0].log().numpy()
    return scale_B


@pytest.mark.parametrize(("covariates", "least"), [(TOLD, 0.97), (CovariatesSpec(), 0.6)], ids=["told", "returns"])
def test_the_linear_path_alone_finds_a_known_autoregression(covariates: CovariatesSpec, least: float) -> None:
    panel, scale_NT = clustered()
    spec = spec_of(VolatilitySpec(input_size=SIZE), covariates)
    train, validation, test = blocks(panel, spec)
    # So low a rate that descent adds nothing: what is fitted is what was solved.
    config = TrainingConfig(learning_rate=1e-9, max_epochs=1, steps_per_epoch=1, batch_size=2)
    network = fit(spec, config, train, validation).network
    assert isinstance(network, Volatility)
    series_B, cutoff_B = test.locate(torch.arange(len(test)))
    truth_B = np.log(scale_NT[series_B, cutoff_B + 1])
    found_B = log_scales(network, test)
    assert np.corrcoef(found_B, truth_B)[0, 1] > least
    assert np.abs(found_B - truth_B).mean() < np.abs(truth_B - truth_B.mean()).mean()
    assert abs(float(np.mean(found_B - truth_B))) < 0.1


def test_descent_leaves_the_solved_weights_and_keeps_no_epoch_that_is_worse() -> None:
    solved = quick_fit(VolatilitySpec(input_size=SIZE), learning_rate=1e-9)
    fitted = quick_fit(VolatilitySpec(input_size=SIZE), learning_rate=0.05, max_epochs=6)
    assert fitted.validation_loss <= solved.validation_loss
    for network in (solved.network, fitted.network):
        assert isinstance(network, Volatility)
    assert torch.equal(solved.network.linear.weight, fitted.network.linear.weight)
    assert solved.network.linear.weight.abs().max() > 0.01


def test_the_same_seed_gives_the_same_weights_and_members_differ() -> None:
    network = EnsembleSpec(n_members=2, member=VolatilitySpec(input_size=SIZE))
    one, two = (quick_fit(network, learning_rate=0.01).network.state_dict() for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["members.0.recurrent.weight_hh_l0"], one["members.1.recurrent.weight_hh_l0"])


@pytest.mark.parametrize("factor", [0.5, 1.5])
def test_calibration_widens_and_never_narrows(factor: float) -> None:
    panel, _ = clustered()
    spec = spec_of(VolatilitySpec(input_size=SIZE))
    network = quick_fit(VolatilitySpec(input_size=SIZE)).network
    assert isinstance(network, Volatility)
    with torch.no_grad():
        network.constant_HP[:, 1] += float(np.log(factor))
    _, validation, test = blocks(panel, spec)
    before_B = log_scales(network, test)
    calibrate(network, validation, spec.quantiles)
    widened = np.exp(log_scales(network, test) - before_B).mean()
    assert widened == pytest.approx(1 / factor if factor < 1 else 1.0, rel=0.1)
    assert not network.offsets_HQ.any()


def test_every_member_of_an_ensemble_is_widened() -> None:
    panel, _ = clustered()
    spec = spec_of(EnsembleSpec(n_members=2, member=VolatilitySpec(input_size=SIZE)))
    ensemble = build_network(spec)
    before = {name: tensor.clone() for name, tensor in ensemble.state_dict().items()}
    with torch.no_grad():
        for name, tensor in ensemble.named_parameters():
            if name.endswith("constant_HP"):
                tensor[:, 1] -= 1.0
    calibrate(ensemble, blocks(panel, spec)[1], spec.quantiles)
    after = ensemble.state_dict()
    for i in range(2):
        assert (after[f"members.{i}.constant_HP"][:, 1] > before[f"members.{i}.constant_HP"][:, 1] - 0.9).all()


def test_lanes_are_refused_where_no_state_is_carried() -> None:
    with pytest.raises(TrainingError, match="carries no state from chunk to chunk"):
        quick_fit(VolatilitySpec(input_size=SIZE), truncation=20)


JOB = """
name: shares
source: {kind: sample, dataset: sp500}
target: {column: Close, transform: log_return}
freq: XNYS
horizon: 1
candidates:
  - {kind: volatility_lstm, input_size: 250}
"""


def test_a_job_names_what_does_not_fit_a_volatility_network() -> None:
    parse_job(JOB)
    parse_job(JOB.replace("250}", "250, training: {truncation: null}}") + "training: {truncation: 48}")
    parse_job(JOB + "covariates: {past: [garman_klass]}")
    refused = {
        JOB + "training: {truncation: 48}": "truncation is for rnn, gru and lstm",
        JOB.replace("transform: log_return", "transform: none")
        + "covariates: {past: [garman_klass]}": "garman_klass is of log returns in percent",
        JOB.replace("250}", "250, decoding: autoregressive}"): "decoding: Extra inputs",
        JOB.replace("250}", "250, head: quantile}"): "head: Extra inputs",
        JOB.replace("250}", "250, training: {loss: squared}}"): "head skewed_t is fitted with likelihood or",
    }
    for job, reason in refused.items():
        with pytest.raises(JobError, match=reason):
            parse_job(job)
