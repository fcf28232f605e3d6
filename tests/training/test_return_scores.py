"""What forecasts of returns are scored on: against densities whose answers are known."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import norm

from forecasting.errors import InputError
from forecasting.forecaster import interpolate_quantile
from forecasting.panel import Panel
from forecasting.spec import NaiveSpec, quantiles_for
from tests.conftest import make_panel, make_spec
from training import risk
from training.backtest import Backtest
from training.econometrics import RivalForecast
from training.return_scores import (
    mean_by_cutoff,
    next_step,
    qlike_by_series,
    return_scores,
    variance_of_quantiles,
)
from training.rivals import ask_rival, rival_backtest
from training.skewed_t import SkewedT
from training.walk_forward import join_backtests

QUANTILES = quantiles_for((90.0,), "log_return")
CUTOFFS = np.arange(100, 700)


def prices(n_series: int = 2, n_steps: int = 720) -> Panel:
    """Return prices whose log returns are normal with a standard deviation of 2 percent."""
    r_NT = np.random.default_rng(1).normal(0.0, 2.0, size=(n_series, n_steps))
    plain = make_panel(n_series, n_steps, "D")
    return Panel(plain.unique_ids, plain.ds, 50.0 * np.exp(np.cumsum(r_NT, axis=1) / 100.0), plain.calendar)


def backtest_of(panel: Panel, scale: float = 2.0, horizon: int = 1) -> Backtest:
    """Return forecasts of normal returns of a scale, the same at every cutoff."""
    spec = make_spec(
        NaiveSpec(input_size=5), horizon=horizon, quantiles=QUANTILES, level=(90.0,), transform="log_return"
    )
    series_B, cutoff_B = np.tile(np.arange(panel.n_series), len(CUTOFFS)), np.repeat(CUTOFFS, panel.n_series)
    steps = np.arange(1, horizon + 1)
    spread_HQ = scale * np.sqrt(steps)[:, None] * norm.ppf(QUANTILES)
    quantiles_BHQ = panel.y_NT[series_B, cutoff_B][:, None, None] * np.exp(spread_HQ / 100.0)
    actual_BH = panel.y_NT[series_B[:, None], cutoff_B[:, None] + steps]
    ones_B = np.ones(len(series_B))
    return Backtest(spec, panel, series_B, cutoff_B, actual_BH, quantiles_BHQ, (ones_B, ones_B))


def test_returns_are_trained_at_one_and_five_percent_and_others_as_before() -> None:
    assert {0.01, 0.05, 0.95, 0.99} <= set(QUANTILES)
    assert 0.01 not in quantiles_for((90.0,))


def test_the_variance_of_quantiles_is_nearly_that_of_the_density_they_came_from() -> None:
    scales_B = np.array([0.5, 1.0, 3.0])
    found_B = variance_of_quantiles(1.7 + scales_B[:, None] * norm.ppf(QUANTILES), QUANTILES)
    assert found_B == pytest.approx(scales_B**2, rel=0.04)


def test_the_variance_of_an_exponential_tail_is_exact() -> None:
    """Beyond the outermost quantiles of a Laplace density there is nothing but its own tail."""
    grid = tuple(float(q) for q in np.linspace(0.1, 0.9, 801))
    laplace_Q = np.where(np.array(grid) < 0.5, np.log(2 * np.array(grid)), -np.log(2 * (1 - np.array(grid))))
    assert variance_of_quantiles(laplace_Q[None], grid)[0] == pytest.approx(2.0, rel=1e-2)


def test_right_forecasts_of_returns_pass_and_have_the_scores_they_should() -> None:
    scores = return_scores(next_step(backtest_of(prices())))
    assert scores["qlike"] == pytest.approx(np.log(4.0) + 1.0, abs=0.08)
    assert scores["pinball_5"] == pytest.approx(2.0 * norm.pdf(norm.ppf(0.05)), rel=0.1)
    assert scores["hits_1"] == pytest.approx(0.01, abs=0.008)
    assert scores["hits_5"] == pytest.approx(0.05, abs=0.02)
    for name in ("kupiec_1", "kupiec_5", "christoffersen_1", "christoffersen_5", "berkowitz"):
        assert scores[name] > 0.05, name
    assert "log_score" not in scores, "quantiles are no density"
    assert np.isnan(scores["direction"]), "a forecast of zero has no direction"
    assert scores["r2"] == 0


def test_forecasts_too_narrow_are_found_out() -> None:
    right, narrow = (return_scores(next_step(backtest_of(prices(), scale))) for scale in (2.0, 1.3))
    for name in ("kupiec_1", "kupiec_5", "christoffersen_1", "berkowitz"):
        assert narrow[name] < 0.01, name
    for name in ("qlike", "pinball_1", "pinball_5"):
        assert narrow[name] > right[name], name


def test_a_p_value_of_many_series_is_that_of_the_worst_times_their_number() -> None:
    step = next_step(backtest_of(prices(3)))
    each = [
        risk.kupiec(risk.hits_below(step.r_KN[:, n], step.quantiles_KNQ[:, n, QUANTILES.index(0.05)]), 0.05)
        for n in range(3)
    ]
    assert return_scores(step)["kupiec_5"] == pytest.approx(min(1.0, 3 * min(each)))


def test_a_rivals_own_variance_and_density_are_taken() -> None:
    test = backtest_of(prices())
    n = len(test.series_B)
    density = SkewedT(np.zeros(n), np.full(n, 2.0), np.zeros(n), np.zeros(n))
    forecast = RivalForecast(np.zeros((n, 1, len(QUANTILES))), np.full((n, 1), 4.0), density)
    step = next_step(test, forecast)
    assert np.all(step.variance_KN == 4.0)
    expected = -norm.logpdf(step.r_KN, scale=2.0).mean()
    assert return_scores(step)["log_score"] == pytest.approx(expected, rel=1e-12)
    assert qlike_by_series(step) == pytest.approx(np.log(4.0) + step.r_KN**2 / 4.0)


def test_a_density_the_backtest_has_is_what_is_scored() -> None:
    test = backtest_of(prices())
    n = len(test.series_B)
    scale_B = np.where(test.series_B == 0, 2.0, 3.0)
    told = replace(test, first_B=SkewedT(np.zeros(n), scale_B, np.zeros(n), np.zeros(n)))
    step = next_step(told)
    assert np.array_equal(step.variance_KN, np.tile([4.0, 9.0], (len(CUTOFFS), 1)))
    expected = -norm.logpdf(step.r_KN, scale=[2.0, 3.0]).mean()
    assert return_scores(step)["log_score"] == pytest.approx(expected, rel=1e-12)
    assert "log_score" not in return_scores(next_step(test))


def test_densities_stay_with_their_forecasts_where_those_are_chosen_or_joined() -> None:
    test = backtest_of(prices())
    n = len(test.series_B)
    density = SkewedT(test.cutoff_B + 0.1 * test.series_B, np.full(n, 2.0), np.zeros(n), np.zeros(n))
    told = replace(test, first_B=density)
    early, late = told.select(test.cutoff_B < 300), told.select(test.cutoff_B >= 300)
    joined = join_backtests([early, late])
    for part in (early, late, joined):
        assert part.first_B is not None
        assert np.array_equal(part.first_B.location, part.cutoff_B + 0.1 * part.series_B)
    assert len(joined.series_B) == n
    assert join_backtests([early, replace(late, first_B=None)]).first_B is None


def test_a_share_that_stands_still_costs_a_forecaster_what_it_costs_a_rival() -> None:
    moving = prices()
    still = Panel(moving.unique_ids, moving.ds, np.full_like(moving.y_NT, 50.0), moving.calendar)
    test = backtest_of(still, scale=0.0)
    rival = rival_backtest("ewma", still, test.spec, CUTOFFS, refit_every=1000, history_needed=5, in_sample=100)
    answer = ask_rival("ewma", still, test.spec, test.series_B, test.cutoff_B, refit_every=1000)
    ours, theirs = qlike_by_series(next_step(test)), qlike_by_series(next_step(rival, answer))
    assert np.isfinite(ours).all()
    assert ours == pytest.approx(theirs)


def test_only_the_next_step_is_scored_whatever_the_horizon() -> None:
    panel = prices()
    one, five = next_step(backtest_of(panel)), next_step(backtest_of(panel, horizon=5))
    assert np.allclose(one.r_KN, five.r_KN)
    assert return_scores(five) == pytest.approx(return_scores(one), nan_ok=True)


def test_what_quantiles_do_not_reach_has_no_score() -> None:
    test = backtest_of(prices())
    inner = [q for q, p in enumerate(QUANTILES) if 0.05 <= p <= 0.95]
    spec = test.spec.model_copy(update={"quantiles": tuple(QUANTILES[q] for q in inner)})
    held = Backtest(
        spec,
        test.panel,
        test.series_B,
        test.cutoff_B,
        test.actual_BH,
        test.quantiles_BHQ[..., inner],
        test.scales,
    )
    scores = return_scores(next_step(held))
    assert "pinball_1" not in scores
    assert scores["pinball_5"] == pytest.approx(return_scores(next_step(test))["pinball_5"])


def test_series_that_were_not_asked_are_missing_and_not_zero() -> None:
    test = backtest_of(prices())
    step = next_step(test.select((test.series_B == 0) | (test.cutoff_B > 300)))
    assert np.isnan(step.r_KN[:201, 1]).all()
    assert np.isfinite(step.r_KN[:, 0]).all()
    middle_KN = interpolate_quantile(step.quantiles_KNQ, QUANTILES, 0.5)
    assert np.isnan(middle_KN[:201, 1]).all()
    loss_KN = np.array([[1.0, np.nan], [np.nan, np.nan], [1.0, 3.0]])
    assert np.array_equal(mean_by_cutoff(loss_KN), [1.0, np.nan, 2.0], equal_nan=True)


def test_prices_that_are_not_modelled_as_returns_are_refused() -> None:
    test = backtest_of(prices())
    other = Backtest(
        test.spec.model_copy(update={"transform": "none"}),
        test.panel,
        test.series_B,
        test.cutoff_B,
        test.actual_BH,
        test.quantiles_BHQ,
        test.scales,
    )
    with pytest.raises(InputError, match="transform log_return"):
        next_step(other)
