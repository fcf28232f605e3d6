"""Baselines: the ridge against an independent solver, and all of them always there."""

import numpy as np
import torch

from forecasting.networks.linear import Ridge
from forecasting.spec import RidgeSpec
from tests.conftest import make_panel, make_spec
from tests.training.test_job import MINIMAL
from training.baselines import RIDGES, _design, baseline_specs, fit_baseline
from training.job import JobConfig
from training.windows import PanelTensors, Windows


def test_the_ridge_is_the_closed_form_solution() -> None:
    spec = make_spec(RidgeSpec(input_size=12), horizon=4)
    data = PanelTensors(make_panel(2, 300, missing=10), "none", torch.device("cpu"))
    train, validation = Windows(data, 12, 4, 0, 200), Windows(data, 12, 4, 200, 300)
    network = fit_baseline(spec, train, validation)
    assert isinstance(network, Ridge)
    x_ML, y_MH = _design(network, train)
    x_val_ML, y_val_MH = _design(network, validation)

    # Independently: the normal equations without an intercept, for each penalty, the best on validation.
    def solve(ridge: float) -> tuple[float, np.ndarray]:
        gram = x_ML.T @ x_ML / len(x_ML)
        penalty = ridge * np.trace(gram) / len(gram) * np.eye(12)
        weight = np.linalg.solve(gram + penalty, x_ML.T @ y_MH / len(x_ML))
        return float(np.square(x_val_ML @ weight - y_val_MH).mean()), weight

    _, expected = min((solve(ridge) for ridge in RIDGES), key=lambda pair: pair[0])
    np.testing.assert_allclose(network.linear.weight.detach().numpy().T, expected, rtol=1e-4, atol=1e-5)


def test_every_job_has_the_four_baselines() -> None:
    job = JobConfig.model_validate(MINIMAL)
    assert list(baseline_specs(job)) == ["naive", "seasonal_naive", "drift", "ridge"]
    assert all(spec.input_size == 24 + 1 for spec in baseline_specs(job).values())
