"""The GARCH family: what `arch` says of the same parameters is the reference."""

import numpy as np
import pytest
from arch import arch_model
from numpy.typing import NDArray

from training.garch import (
    GarchFit,
    GarchModel,
    count_paths,
    cumulated_variance,
    draw_shocks,
    filter_ewma,
    filter_garch,
    fit_garch,
    is_sound,
    next_density,
    sample_quantiles,
    simulate_quantiles,
)

FloatArray = NDArray[np.float64]

MODELS = [
    GarchModel(asymmetric=False, shocks="normal"),
    GarchModel(asymmetric=False, shocks="t"),
    GarchModel(asymmetric=True, shocks="t"),
    GarchModel(asymmetric=True, shocks="skewt"),
]
GARCH = GarchFit(mean=0.05, omega=0.02, alpha=0.09, gamma=0.0, beta=0.9, tail=0.0, skew=0.0, downside=0.5)
GJR_SKEWED = GarchFit(mean=0.02, omega=0.05, alpha=0.02, gamma=0.1, beta=0.85, tail=0.1, skew=-0.2, downside=0.57)
WAITING = 400
"""Steps after which it no longer matters where a recursion began."""


def clustered(n: int = 2000, seed: int = 3) -> FloatArray:
    """Return GARCH returns in percent, as a loop writes them."""
    shocks = np.random.default_rng(seed).standard_normal(n)
    returns_N, variance = np.empty(n), 1.0
    for t in range(n):
        returns_N[t] = 0.05 + np.sqrt(variance) * shocks[t]
        variance = 0.02 + 0.09 * (returns_N[t] - 0.05) ** 2 + 0.9 * variance
    return returns_N


def parameters(model: GarchModel, fit: GarchFit) -> list[float]:
    """Return a fit as `arch` orders it."""
    dynamics = [fit.mean, fit.omega, fit.alpha, *([fit.gamma] if model.asymmetric else []), fit.beta]
    tail = [] if model.shocks == "normal" else [1 / fit.tail]
    return dynamics + tail + ([fit.skew] if model.shocks == "skewt" else [])


@pytest.mark.parametrize("model", MODELS, ids=str)
def test_variances_are_those_of_arch_at_the_same_parameters(model: GarchModel) -> None:
    returns_N = clustered()
    fit = fit_garch(model, returns_N)
    assert fit is not None
    built = arch_model(returns_N, vol="GARCH", o=int(model.asymmetric), dist=model.shocks, rescale=False)
    fixed = built.fix(parameters(model, fit))
    ours_N = filter_garch(fit, returns_N, len(returns_N))
    # Ours is of the next return, theirs of the same one; and the last of ours is what they forecast.
    theirs_N = np.square(fixed.conditional_volatility)[1:]
    np.testing.assert_allclose(ours_N[WAITING:-1], theirs_N[WAITING:], rtol=1e-9)
    ahead = fixed.forecast(horizon=1, reindex=False).variance.iloc[-1, 0]
    np.testing.assert_allclose(ours_N[-1], ahead, rtol=1e-9)


@pytest.mark.parametrize("model", MODELS, ids=str)
def test_a_fit_is_as_likely_as_that_of_arch_on_returns_in_percent(model: GarchModel) -> None:
    returns_N = clustered() * np.sqrt(3 / np.random.default_rng(9).chisquare(5, 2000))
    fit = fit_garch(model, returns_N)
    assert fit is not None
    built = arch_model(returns_N, vol="GARCH", o=int(model.asymmetric), dist=model.shocks, rescale=False)
    theirs = built.fit(disp="off")
    assert built.fix(parameters(model, fit)).loglikelihood == pytest.approx(theirs.loglikelihood, abs=0.01)


def test_parameters_are_found_again() -> None:
    fit = fit_garch(MODELS[0], clustered(20_000))
    assert fit is not None
    np.testing.assert_allclose([fit.mean, fit.alpha, fit.beta], [0.05, 0.09, 0.9], atol=0.02)


@pytest.mark.parametrize("model", MODELS, ids=str)
def test_prices_that_stand_still_or_only_drift_are_not_fitted(model: GarchModel) -> None:
    assert fit_garch(model, np.zeros(500)) is None
    assert fit_garch(model, np.full(500, 0.1)) is None


def test_parameters_whose_variances_leave_the_returns_behind_are_not_sound() -> None:
    assert is_sound(GARCH, clustered())
    assert not is_sound(GARCH._replace(omega=5.0, beta=0.999), clustered())


def test_ewma_is_the_loop_of_riskmetrics() -> None:
    returns_N = clustered(300)
    weights = 0.94 ** np.arange(75)
    variance = float(weights @ np.square(returns_N[:75]) / weights.sum())
    for value, found in zip(returns_N, filter_ewma(returns_N, 300), strict=True):
        variance = 0.94 * variance + 0.06 * value**2
        assert found == pytest.approx(variance, rel=1e-12)


def test_a_recursion_begins_with_what_a_fit_may_see() -> None:
    returns_N = clustered(300)
    later_N = np.where(np.arange(300) < 50, returns_N, 9.0)
    for variances in (lambda x_N: filter_ewma(x_N, 50), lambda x_N: filter_garch(GARCH, x_N, 50)):
        np.testing.assert_array_equal(variances(returns_N)[:50], variances(later_N)[:50])


def test_cumulated_variance_is_the_sum_that_arch_forecasts() -> None:
    returns_N = clustered()
    fixed = arch_model(returns_N, vol="GARCH", rescale=False).fix(parameters(MODELS[0], GARCH))
    theirs_H = np.cumsum(fixed.forecast(horizon=10, reindex=False).variance.to_numpy()[-1])
    ours_KH = cumulated_variance(GARCH, filter_garch(GARCH, returns_N, len(returns_N))[-1:], 10)
    np.testing.assert_allclose(ours_KH[0], theirs_H, rtol=1e-9)


@pytest.mark.parametrize("fit", [GARCH, GJR_SKEWED], ids=["garch", "gjr_garch_skewt"])
def test_simulated_returns_have_the_variance_in_closed_form(fit: GarchFit) -> None:
    """From the simulated quantiles alone: the mean of their squares, on a grid fine enough for the tails."""
    downside = float(np.square(np.minimum(draw_shocks(fit, 1, 7), 0)).mean())
    fit = fit._replace(downside=downside)
    variance_K = np.array([0.3, 1.0, 8.0])
    grid = (np.arange(4096) + 0.5) / 4096
    simulated_KHQ = simulate_quantiles(fit, variance_K, 10, tuple(grid), seed=1)
    ahead_H = np.arange(1, 11)
    np.testing.assert_allclose(simulated_KHQ.mean(axis=2), np.tile(fit.mean * ahead_H, (3, 1)), atol=0.02)
    expected_KH = cumulated_variance(fit, variance_K, 10)
    np.testing.assert_allclose(simulated_KHQ.var(axis=2), expected_KH, rtol=0.03)


def test_the_first_simulated_step_has_the_quantiles_of_its_density() -> None:
    p = (0.005, 0.05, 0.5, 0.95, 0.995)
    variance_K = np.array([0.3, 4.0])
    simulated_KQ = simulate_quantiles(GJR_SKEWED, variance_K, 1, p, seed=1)[:, 0]
    exact_KQ = np.stack([next_density(GJR_SKEWED, variance_K).quantile(each) for each in p], axis=1)
    np.testing.assert_allclose(simulated_KQ, exact_KQ, rtol=0.01)


def test_the_share_of_variance_below_zero_is_that_of_the_shocks() -> None:
    returns_N = clustered()
    fit = fit_garch(MODELS[3], returns_N - 0.1 * np.square(returns_N))
    assert fit is not None
    assert fit.skew < -0.1
    shocks_P = draw_shocks(fit, 1, 1)[0]
    assert fit.downside == pytest.approx(np.square(np.minimum(shocks_P, 0)).mean(), rel=0.01)


def test_shocks_are_as_many_as_memory_allows() -> None:
    assert draw_shocks(GARCH, 20, 1).shape == (20, 4096)
    assert [count_paths(horizon) for horizon in (1, 4096, 4097, 10_000)] == [4096, 4096, 2048, 1024]


def test_a_forecast_does_not_depend_on_who_else_is_asked() -> None:
    variance_K = np.linspace(0.1, 9.0, 70)
    together_KHQ = simulate_quantiles(GJR_SKEWED, variance_K, 3, (0.1, 0.9), seed=1)
    alone_KHQ = simulate_quantiles(GJR_SKEWED, variance_K[50:51], 3, (0.1, 0.9), seed=1)
    np.testing.assert_array_equal(together_KHQ[50:51], alone_KHQ)
    assert (simulate_quantiles(GJR_SKEWED, variance_K, 3, (0.1, 0.9), seed=2) != together_KHQ).any()


def test_quantiles_of_samples_stand_in_the_middle_of_their_shares() -> None:
    samples_KP = np.array([[3.0, 1.0, 2.0, 4.0]])
    found_KQ = sample_quantiles(samples_KP, (0.01, 0.125, 0.5, 0.625, 0.99))
    np.testing.assert_allclose(found_KQ, [[1.0, 1.0, 2.5, 3.0, 4.0]])
