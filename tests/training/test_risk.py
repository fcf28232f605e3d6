"""Scores and tests of densities: against figures worked out by hand, others' code, and their own promises."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, chi2, norm, ttest_1samp

from training.metrics import pinball
from training.risk import (
    FloatArray,
    berkowitz,
    christoffersen_conditional,
    christoffersen_independence,
    direction,
    hits_below,
    hits_outside,
    kupiec,
    log_score,
    pinball_at,
    pinball_each,
    pit_of_density,
    pit_of_quantiles,
    pit_uniformity,
    qlike,
    qlike_each,
    r2_out_of_sample,
)
from training.skewed_t import SkewedT

NAN = float("nan")
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def normal(scale: float, size: int) -> SkewedT:
    return SkewedT(np.zeros(size), np.full(size, scale), np.zeros(size), np.zeros(size))


def rejected_at_5_percent(p_values: list[float]) -> float:
    return float((np.array(p_values) < 0.05).mean())


def test_qlike_is_what_its_formula_says() -> None:
    r, variance = np.array([1.0, -2.0]), np.array([2.0, 4.0])
    assert qlike(r, variance) == pytest.approx((math.log(2) + 0.5 + math.log(4) + 1.0) / 2)


def test_qlike_is_least_for_the_true_variance() -> None:
    r = np.random.default_rng(0).standard_t(6, size=20000) * math.sqrt(4 / 6)
    losses = [qlike(r, np.full_like(r, variance)) for variance in (0.5, 0.8, 1.0, 1.25, 2.0)]
    assert int(np.argmin(losses)) == 2


def test_a_variance_of_nothing_is_not_left_out_and_a_missing_return_is() -> None:
    assert qlike_each(np.array([1.0, 0.0]), np.array([0.0, -1.0])).tolist() == [math.inf, math.inf]
    assert qlike(np.array([1.0, NAN, 1.0]), np.array([1.0, 0.0, NAN])) == 1.0
    assert math.isnan(qlike(np.array([NAN]), np.array([1.0])))


def test_the_pinball_loss_is_the_one_of_the_leaderboard() -> None:
    r, quantile = np.array([-3.0, 0.5, 1.0, NAN]), np.array([-2.0, -2.0, 1.5, 0.0])
    each = pinball_each(r, quantile, 0.05)
    np.testing.assert_allclose(each, pinball(r[:, None], quantile[:, None, None], [0.05])[:, 0, 0])
    assert each[:3] == pytest.approx([0.95, 0.125, 0.475])
    assert pinball_at(r, quantile, 0.05) == pytest.approx((0.95 + 0.125 + 0.475) / 3)


def test_the_log_score_is_minus_the_log_density_and_least_for_the_truth() -> None:
    r = np.random.default_rng(1).normal(0, 2, size=5000)
    assert log_score(r, normal(2, 5000)) == pytest.approx(-norm.logpdf(r, 0, 2).mean(), rel=1e-12)
    assert log_score(r, normal(2, 5000)) < min(log_score(r, normal(1.8, 5000)), log_score(r, normal(2.2, 5000)))


def test_the_pit_of_a_density_is_its_distribution() -> None:
    r = np.array([-1.0, 0.0, NAN])
    np.testing.assert_allclose(pit_of_density(r, normal(2, 3)), norm.cdf(r, 0, 2))


def test_the_pit_of_quantiles_is_linear_inside_and_goes_on_in_the_tails() -> None:
    quantiles_KQ = np.tile([-2.0, -1.0, 0.0, 1.0, 3.0], (7, 1))
    r_K = np.array([-2.0, -1.5, 0.0, 3.0, -3.0, 5.0, NAN])
    found = pit_of_quantiles(r_K, quantiles_KQ, QUANTILES)
    # One unit below, with a density of 0.2 at the lowest quantile; two above, with one of 0.1 at the highest.
    low, high = 0.05 * math.exp(-0.2 / 0.05), 1 - 0.05 * math.exp(-2 * 0.1 / 0.05)
    np.testing.assert_allclose(found, [0.05, 0.15, 0.5, 0.95, low, high, NAN])


@given(st.lists(st.floats(-50, 50), min_size=2, max_size=20))
@settings(max_examples=100, deadline=None)
def test_the_pit_of_quantiles_never_falls(values: list[float]) -> None:
    r_K = np.sort(np.array(values))
    quantiles_KQ = np.tile(norm.ppf(QUANTILES), (len(r_K), 1))
    found = pit_of_quantiles(r_K, quantiles_KQ, QUANTILES)
    assert (np.diff(found) >= 0).all()
    assert (found >= 0).all()
    assert (found <= 1).all()


def test_quantiles_of_one_value_leave_no_tail() -> None:
    found = pit_of_quantiles(np.array([-1.0, 0.0, 1.0]), np.zeros((3, 5)), QUANTILES)
    assert found.tolist() == [0.0, 0.5, 1.0]


def test_pits_of_the_truth_pass_and_of_a_wrong_scale_do_not() -> None:
    rng = np.random.default_rng(2)
    r_K = rng.normal(size=800)
    grid = np.arange(1, 100) / 100
    for scale, passes in ((1.0, True), (1.3, False), (0.75, False)):
        pit_K = norm.cdf(r_K, 0, scale)
        of_grid_K = pit_of_quantiles(r_K, np.tile(norm.ppf(grid, 0, scale), (800, 1)), list(grid))
        np.testing.assert_allclose(of_grid_K, pit_K, atol=0.006)
        for test in (pit_uniformity, berkowitz):
            assert (test(pit_K) > 0.05) is passes
            assert (test(of_grid_K) > 0.05) is passes


@pytest.mark.parametrize("test", [pit_uniformity, berkowitz])
@pytest.mark.parametrize("size", [60, 500])
def test_the_tests_of_uniformity_reject_the_truth_as_often_as_promised(test: object, size: int) -> None:
    assert callable(test)
    rng = np.random.default_rng(3)
    assert 0.03 < rejected_at_5_percent([test(rng.uniform(size=size)) for _ in range(600)]) < 0.08


def test_only_berkowitz_sees_dependence() -> None:
    rng = np.random.default_rng(4)
    z = rng.normal(size=1001)
    pit_K = norm.cdf((z[1:] + 0.5 * z[:-1]) / math.sqrt(1.25))
    assert pit_uniformity(pit_K) > 0.05
    assert berkowitz(pit_K) < 1e-6


def test_berkowitz_is_the_likelihood_ratio_of_a_regression() -> None:
    z = np.random.default_rng(5).normal(0.2, 1.2, size=50)
    slope, intercept = np.polyfit(z[:-1], z[1:], 1)
    residual = z[1:] - intercept - slope * z[:-1]
    fitted = norm.logpdf(residual, 0, residual.std()).sum()
    ratio = 2 * (fitted - norm.logpdf(z[1:]).sum())
    assert berkowitz(norm.cdf(z)) == pytest.approx(chi2.sf(ratio, 3), rel=1e-9)


def test_pits_that_are_few_missing_or_impossible() -> None:
    assert math.isnan(pit_uniformity(np.array([NAN])))
    assert math.isnan(berkowitz(np.linspace(0.1, 0.9, 10)))
    assert berkowitz(np.full(40, 0.5)) < 1e-6
    assert berkowitz(np.append(np.linspace(0.1, 0.9, 40), 0.0)) < 0.05
    pit_K = np.random.default_rng(6).uniform(size=50)
    assert berkowitz(np.append(pit_K, [NAN, 0.9])) == berkowitz(pit_K)
    assert pit_uniformity(np.append(pit_K, NAN)) == pit_uniformity(pit_K)


def test_hits() -> None:
    r, low, high = np.array([-2.0, -1.0, 0.0, 3.0, NAN]), np.full(5, -1.0), np.full(5, 1.0)
    np.testing.assert_array_equal(hits_below(r, low), [1, 0, 0, 0, NAN])
    np.testing.assert_array_equal(hits_outside(r, low, high), [1, 0, 0, 1, NAN])


def test_kupiec_by_hand() -> None:
    hits = np.zeros(250)
    hits[[3, 50, 90, 91, 200]] = 1
    ratio = -2 * math.log(0.99**245 * 0.01**5 / ((245 / 250) ** 245 * (5 / 250) ** 5))
    assert ratio == pytest.approx(1.9568, abs=1e-4)
    assert kupiec(hits, 0.01) == pytest.approx(chi2.sf(ratio, 1), rel=1e-10)
    assert kupiec(np.append(hits, NAN), 0.01) == kupiec(hits, 0.01)


def test_kupiec_without_a_hit_and_with_nothing_else() -> None:
    assert kupiec(np.zeros(250), 0.01) == pytest.approx(chi2.sf(-2 * 250 * math.log(0.99), 1))
    assert kupiec(np.ones(5), 0.01) == pytest.approx(chi2.sf(-2 * 5 * math.log(0.01), 1))
    assert kupiec(np.array([1.0, 0.0]), 0.5) == 1.0
    assert math.isnan(kupiec(np.array([NAN]), 0.01))


def test_christoffersen_by_hand() -> None:
    hits = np.array([0, 0, 1, 1, 0, 0, 0, 1, 0, 1, 1, 1, 0, 0, 0, 0], dtype=np.float64)
    n_00, n_01, n_10, n_11 = 6, 3, 3, 3
    chain = (6 / 9) ** n_00 * (3 / 9) ** n_01 * (3 / 6) ** n_10 * (3 / 6) ** n_11
    alike = (9 / 15) ** (n_00 + n_10) * (6 / 15) ** (n_01 + n_11)
    independence = -2 * math.log(alike / chain)
    coverage = -2 * math.log(0.75**10 * 0.25**6 / ((10 / 16) ** 10 * (6 / 16) ** 6))
    assert christoffersen_independence(hits) == pytest.approx(chi2.sf(independence, 1), rel=1e-10)
    assert christoffersen_conditional(hits, 0.25) == pytest.approx(chi2.sf(independence + coverage, 2), rel=1e-10)


def test_hits_that_never_follow_one_another() -> None:
    hits = np.zeros(100)
    hits[[10, 40, 70]] = 1
    # n_00 = 93, n_01 = 3, n_10 = 3, n_11 = 0: the chain gives (93/96)^93 (3/96)^3, a coin (96/99)^96 (3/99)^3.
    ratio = 2 * (93 * math.log(93 / 96) + 3 * math.log(3 / 96) - 96 * math.log(96 / 99) - 3 * math.log(3 / 99))
    assert christoffersen_independence(hits) == pytest.approx(chi2.sf(ratio, 1), rel=1e-9)


@pytest.mark.parametrize("hits", [np.zeros(100), np.ones(100), np.append(np.zeros(99), 1.0)])
def test_where_there_is_no_chain_to_see_independence_is_not_doubted(hits: FloatArray) -> None:
    assert christoffersen_independence(hits) == 1.0
    assert christoffersen_conditional(hits, 0.3) == pytest.approx(
        chi2.sf(chi2.isf(kupiec(hits, 0.3), 1), 2), rel=1e-6
    )


def test_a_missing_forecast_breaks_the_chain() -> None:
    assert christoffersen_independence(np.array([1, NAN, 1, 0, 0, NAN, 0], dtype=np.float64)) == 1.0
    broken, whole = np.array([1.0, 1, 0, 0, NAN, 1, 0, 0, 1, 1]), np.array([1.0, 1, 0, 0, 1, 0, 0, 1, 1])
    assert christoffersen_independence(broken) != christoffersen_independence(whole)
    assert christoffersen_conditional(broken, 0.3) != christoffersen_conditional(whole, 0.3)
    assert math.isnan(christoffersen_independence(np.array([1, NAN, 1])))
    assert math.isnan(christoffersen_independence(np.array([1.0])))
    assert math.isnan(christoffersen_conditional(np.array([1.0]), 0.1))
    assert math.isnan(christoffersen_conditional(np.array([NAN, NAN]), 0.1))


def test_the_tests_of_hits_reject_true_values_at_risk_about_as_often_as_promised() -> None:
    rng = np.random.default_rng(7)
    hits = [(rng.uniform(size=1000) < 0.05).astype(np.float64) for _ in range(800)]
    assert 0.03 < rejected_at_5_percent([kupiec(h, 0.05) for h in hits]) < 0.08
    assert 0.02 < rejected_at_5_percent([christoffersen_independence(h) for h in hits]) < 0.09
    assert 0.02 < rejected_at_5_percent([christoffersen_conditional(h, 0.05) for h in hits]) < 0.09


def test_clustered_hits_are_found_by_independence_and_too_many_by_coverage() -> None:
    clustered = np.tile(np.repeat([0.0, 1.0, 0.0], [47, 5, 48]), 10)
    assert kupiec(clustered, 0.05) == 1.0
    assert christoffersen_independence(clustered) < 1e-6
    assert christoffersen_conditional(clustered, 0.05) < 1e-6
    assert kupiec(clustered, 0.03) < 0.01


def test_r2_by_hand_and_a_perfect_forecast() -> None:
    r, forecast = np.array([1.0, -2.0, 3.0, NAN]), np.array([0.5, 0.0, 1.0, 1.0])
    found = r2_out_of_sample(r, forecast)
    assert found.r2 == pytest.approx(1 - (0.25 + 4 + 4) / 14)
    assert found.n == 3
    rng = np.random.default_rng(8)
    r = rng.normal(size=300)
    assert r2_out_of_sample(r, r).r2 == 1.0
    assert r2_out_of_sample(r, r).p_value < 1e-9


def test_a_forecast_of_nothing_has_no_r2_and_no_returns_none_at_all() -> None:
    assert r2_out_of_sample(np.array([1.0, 2.0, -1.0]), np.zeros(3)) == (0.0, 1.0, 3)
    assert all(math.isnan(value) for value in r2_out_of_sample(np.array([NAN]), np.zeros(1))[:2])


def test_the_p_value_of_r2_is_clark_and_wests() -> None:
    rng = np.random.default_rng(9)
    forecast = rng.normal(0, 0.3, size=400)
    r = 0.5 * forecast + rng.normal(size=400)
    adjusted = r**2 - ((r - forecast) ** 2 - forecast**2)
    by_t_test = ttest_1samp(adjusted, 0, alternative="greater").pvalue
    # No more certain than without a look at lasting luck, and about as certain.
    assert by_t_test * 0.99 <= r2_out_of_sample(r, forecast).p_value < 3 * by_t_test


def test_useless_forecasts_of_the_mean_are_believed_about_as_often_as_promised() -> None:
    rng = np.random.default_rng(10)
    p_values = [
        r2_out_of_sample(rng.standard_t(4, size=250), rng.normal(0, 0.1, size=250)).p_value for _ in range(600)
    ]
    assert 0.02 < rejected_at_5_percent(p_values) < 0.07


def test_the_interval_of_the_direction_is_exact() -> None:
    r = np.ones(1000)
    r[::2] = -1
    forecast = np.where(np.arange(1000) < 512, r, -r)
    found, exact = direction(r, forecast), binomtest(512, 1000, 0.5)
    interval = exact.proportion_ci(0.95, "exact")
    assert (found.share, found.n, found.always) == (0.512, 1000, 0.5)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-9)
    assert found.p_half == pytest.approx(exact.pvalue, rel=1e-9)


@pytest.mark.parametrize("hits", [0, 1, 5, 9, 10])
def test_the_exact_interval_at_its_ends(hits: int) -> None:
    found = direction(np.ones(10), np.where(np.arange(10) < hits, 1.0, -1.0))
    exact = binomtest(hits, 10, 0.5)
    interval = exact.proportion_ci(0.95, "exact")
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), abs=1e-12)
    assert found.p_half == pytest.approx(exact.pvalue, rel=1e-9)


def test_what_has_no_sign_is_left_out() -> None:
    r, forecast = np.array([0.0, 1.0, 1.0, NAN, -1.0]), np.array([1.0, 0.0, 2.0, 1.0, 1.0])
    assert direction(r, forecast)[0] == 0.5
    assert direction(r, forecast).n == 2
    nothing = direction(np.zeros(3), np.ones(3))
    assert nothing.n == 0
    assert math.isnan(nothing.share)


def test_signs_that_are_all_right_count_no_oftener_than_their_forecasts_lie_apart() -> None:
    r = np.where(np.arange(100) % 2, 1.0, -1.0)
    exact = binomtest(20, 20).proportion_ci(0.95, "exact")
    assert direction(r, r, lags=4).low == pytest.approx(exact.low, rel=1e-9)


def test_always_up_is_no_skill_where_most_days_rise() -> None:
    rng = np.random.default_rng(11)
    r = rng.normal(0.15, 1, size=2000)
    habit = direction(r, np.ones(2000))
    assert habit.share == habit.always > 0.5
    assert habit.p_half < 0.05
    assert habit.p_always == 1.0
    skilled = direction(r, r + rng.normal(0, 2, size=2000))
    assert skilled.p_half < 0.001
    assert skilled.p_always < 0.001


def test_shares_that_move_together_are_no_independent_tosses() -> None:
    rng = np.random.default_rng(12)
    market = rng.normal(size=(250, 1))
    said = rng.normal(size=(250, 1))
    alone = direction(market[:, 0], said[:, 0])
    copied = direction(np.repeat(market, 40, axis=1), np.repeat(said, 40, axis=1))
    assert copied.n == 40 * alone.n
    assert copied.high - copied.low > 0.9 * (alone.high - alone.low)
    apart = direction(rng.normal(size=(250, 40)), rng.normal(size=(250, 40)))
    assert apart.high - apart.low < 0.35 * (alone.high - alone.low)


def test_the_interval_of_the_direction_holds_the_truth_as_often_as_promised() -> None:
    rng = np.random.default_rng(13)
    for lags, columns in ((0, 1), (4, 1), (0, 12)):
        held = 0
        for _ in range(300):
            market = rng.normal(size=(124, columns)) + rng.normal(size=(124, 1))
            r = sum((market[i : i + 120] for i in range(lags + 1)), start=np.zeros((120, columns)))
            said = np.repeat(rng.normal(size=(120 // (lags + 1), 1)), lags + 1, axis=0)
            found = direction(r, np.repeat(said, columns, axis=1), lags)
            held += found.low <= 0.5 <= found.high
        assert held / 300 > 0.93
