"""Calibration: a share of the targets below each quantile, whatever the network said."""

import numpy as np
import pytest
import torch

from forecasting.forecaster import Forecaster
from forecasting.networks import build_network
from forecasting.panel import Panel
from forecasting.spec import MLPSpec, NaiveSpec
from tests.conftest import make_panel, make_spec
from training.calibrate import _conformal_quantile, calibrate
from training.windows import PanelTensors, Windows


def random_walk(n_steps: int) -> Panel:
    panel = make_panel(1, n_steps)
    y_NT = np.random.default_rng(0).standard_t(4, size=(1, n_steps)).cumsum(axis=1)
    return Panel(panel.unique_ids, panel.ds, y_NT, panel.calendar)


def coverage_after_calibration(network: NaiveSpec | MLPSpec) -> tuple[float, np.ndarray]:
    """Calibrate on the first half; return the coverage of the 80 % interval on the second and the widths."""
    panel = random_walk(4000)
    spec = make_spec(network, horizon=5)
    built = build_network(spec)
    data = PanelTensors(panel, "none", torch.device("cpu"))
    calibrate(built, Windows(data, network.input_size, 5, 0, 2000), spec.quantiles)
    cutoffs = np.arange(2000, 3990)
    steps = cutoffs[:, None] + np.arange(1 - network.input_size, 1)
    quantiles_BHQ = Forecaster(spec, built).predict(panel.y_NT[0][steps])
    actual_BH = panel.y_NT[0][cutoffs[:, None] + np.arange(1, 6)]
    low, high = (quantiles_BHQ[..., spec.quantiles.index(q)] for q in (0.1, 0.9))
    return float(((actual_BH >= low) & (actual_BH <= high)).mean()), (high - low).mean(axis=0)


def test_a_point_forecast_gets_intervals_that_cover() -> None:
    coverage, width_H = coverage_after_calibration(NaiveSpec(input_size=100))
    assert 0.77 < coverage < 0.83
    assert (np.diff(width_H) > 0).all(), "a random walk is less certain the further ahead"


def test_an_untrained_network_is_corrected_to_cover() -> None:
    coverage, _ = coverage_after_calibration(MLPSpec(input_size=30, hidden_size=8))
    assert 0.76 < coverage < 0.84


def test_calibration_treats_both_sides_alike_and_leaves_the_median_where_it_is() -> None:
    residual_M = torch.arange(-10.0, 11.0)
    low, middle, high = (float(_conformal_quantile(residual_M, q)) for q in (0.1, 0.5, 0.9))
    assert middle == 0.0
    assert low == pytest.approx(-high)
    # 18.9th of 21 by rank 0.9 * (21 + 1), where a plain quantile takes the 18th.
    assert high > float(residual_M.quantile(0.9))


def test_too_few_residuals_leave_a_network_as_it_is() -> None:
    spec = make_spec(MLPSpec(input_size=10))
    network = build_network(spec)
    data = PanelTensors(random_walk(100), "none", torch.device("cpu"))
    calibrate(network, Windows(data, 10, 3, 50, 60), spec.quantiles)
    assert not network.offsets_HQ.any()
