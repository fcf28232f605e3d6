"""Outputs: quantiles that ascend, a Student-t that is one, and the random walk they start at."""

import numpy as np
import pytest
import torch
from arch.univariate import SkewStudent
from scipy import stats

from forecasting.networks.outputs import (
    HEAVIEST_STANDARDISED,
    MOST_SKEWED,
    SkewedTOutput,
    StudentTOutput,
    build_output,
)
from forecasting.spec import Head
from training.losses import pinball, skewed_t_loss, student_t_loss

PROBABILITIES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
HEADS: list[Head] = ["quantile", "student_t", "skewed_t", "point"]


@pytest.mark.parametrize("head", HEADS)
def test_quantiles_ascend_whatever_the_parameters(head: Head) -> None:
    output = build_output(head, PROBABILITIES)
    parameters = 20 * torch.randn(50, 3, 4, output.n_parameters, generator=torch.Generator().manual_seed(0))
    quantiles = output.quantiles(parameters)
    assert quantiles.shape == (50, 3, 4, len(PROBABILITIES))
    assert quantiles.isfinite().all()
    assert (quantiles.diff(dim=-1) >= 0).all()


@pytest.mark.parametrize("head", HEADS)
def test_the_location_shifts_the_whole_distribution(head: Head) -> None:
    output = build_output(head, PROBABILITIES)
    parameters = torch.randn(5, 1, 2, output.n_parameters)
    shifted = parameters.clone()
    shifted[..., output.location] += 3.0
    torch.testing.assert_close(output.quantiles(shifted), output.quantiles(parameters) + 3.0)


@pytest.mark.parametrize("degrees", [2.1, 3.0, 7.5, 40.0, 1e6])
def test_student_t_quantiles_and_density_are_those_of_scipy(degrees: float) -> None:
    output = StudentTOutput(PROBABILITIES)
    tail = float(np.log((1 / degrees / 0.5) / (1 - 1 / degrees / 0.5)))
    scale_raw = float(np.log(np.expm1(1.7)))
    parameters = torch.tensor([[[[0.4, scale_raw, tail]]]])
    exact = stats.t(df=degrees, loc=0.4, scale=1.7 + 1e-4)
    np.testing.assert_allclose(output.quantiles(parameters)[0, 0, 0], exact.ppf(PROBABILITIES), rtol=5e-3)
    for target in (-8.0, 0.0, 2.5):
        loss = student_t_loss(output.density(parameters), torch.full((1, 1, 1), target))
        assert float(loss) == pytest.approx(-exact.logpdf(target), rel=2e-3)


@pytest.mark.parametrize("head", ["quantile", "student_t", "skewed_t"])
def test_outputs_start_as_a_random_walk(head: Head) -> None:
    output = build_output(head, PROBABILITIES)
    quantiles_HQ = output.quantiles(output.start(16)[None, None])[0, 0]
    width_H = quantiles_HQ[:, -2] - quantiles_HQ[:, 1]
    assert float(width_H[15] / width_H[0]) == pytest.approx(4.0, rel=0.01)
    assert float(quantiles_HQ[0, 3]) == 0.0


@pytest.mark.parametrize("degrees", [2.1, 3.0, 7.5, 40.0, 290.0])
@pytest.mark.parametrize("skew", [-0.7, -0.1, 0.0, 0.4])
def test_skewed_t_quantiles_and_density_are_those_of_arch(degrees: float, skew: float) -> None:
    output = SkewedTOutput(PROBABILITIES)
    share = 1 / degrees / HEAVIEST_STANDARDISED
    tail = float(np.log(share / (1 - share)))
    raw = [0.4, float(np.log(1.7)), tail, float(np.arctanh(skew / MOST_SKEWED))]
    parameters = torch.tensor([[[raw]]])
    shape, exact = np.array([degrees, skew]), SkewStudent()
    expected = 0.4 + 1.7 * exact.ppf(np.array(PROBABILITIES), shape)
    np.testing.assert_allclose(output.quantiles(parameters)[0, 0, 0], expected, rtol=5e-3, atol=2e-3)
    for target in (-8.0, 0.0, 2.5):
        loss = skewed_t_loss(output.density(parameters), torch.full((1, 1, 1), target))
        likelihood = exact.loglikelihood(shape, np.array([target - 0.4]), np.array([1.7**2]), individual=True)
        assert float(loss) == pytest.approx(-float(likelihood[0]), rel=2e-3)


@pytest.mark.parametrize(("tail", "skew"), [(-30.0, 0.0), (-1.5, -1.0), (0.0, 0.5)])
def test_the_skewed_t_is_a_density_with_the_mean_and_the_deviation_it_says(tail: float, skew: float) -> None:
    output = SkewedTOutput(PROBABILITIES)
    parameters = torch.tensor([0.3, 0.5, tail, skew], dtype=torch.float64)[None, None, None]
    density = output.density(parameters)
    grid = torch.linspace(-2000, 2000, 4_000_001, dtype=torch.float64)
    weight = torch.exp(-skewed_t_loss(density, grid[None, None])).flatten() * 1e-3
    assert float(weight.sum()) == pytest.approx(1.0, abs=1e-4)
    assert float((weight * grid).sum()) == pytest.approx(0.3, abs=1e-3)
    spread = (weight * (grid - 0.3) ** 2).sum().sqrt()
    assert float(spread) == pytest.approx(float(density.scale), rel=0.02)


def test_the_pinball_loss_has_the_derivative_autograd_finds() -> None:
    quantiles_Q = torch.tensor(PROBABILITIES, dtype=torch.float64)
    target = torch.randn(4, 2, 3, dtype=torch.float64)
    predicted = torch.randn(4, 2, 3, len(PROBABILITIES), dtype=torch.float64, requires_grad=True)
    error = target[..., None] - predicted
    plain = torch.maximum(quantiles_Q * error, (quantiles_Q - 1) * error).mean(dim=-1)
    weight = torch.rand(4, 2, 3, dtype=torch.float64)
    expected = torch.autograd.grad((plain * weight).sum(), predicted)[0]
    ours = pinball(predicted, target, quantiles_Q)
    torch.testing.assert_close(ours, plain)
    torch.testing.assert_close(torch.autograd.grad((ours * weight).sum(), predicted)[0], expected)
