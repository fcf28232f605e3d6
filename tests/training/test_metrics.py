"""Every metric against a case computed by hand, or against an independent implementation."""

from statistics import NormalDist

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm

from training import metrics

ACTUAL = np.array([[1.0, 2.0, np.nan], [4.0, 0.0, 10.0]])
FORECAST = np.array([[2.0, 2.0, 5.0], [2.0, 0.0, 6.0]])


def test_mae_is_the_hand_computed_one() -> None:
    assert metrics.mae(ACTUAL, FORECAST) == pytest.approx((1 + 0 + 2 + 0 + 4) / 5)


def test_rmse_is_the_hand_computed_one() -> None:
    assert metrics.rmse(ACTUAL, FORECAST) == pytest.approx(((1 + 0 + 4 + 0 + 16) / 5) ** 0.5)


def test_smape_is_the_hand_computed_one_and_counts_two_zeros_as_right() -> None:
    expected = (200 * 1 / 3 + 0 + 200 * 2 / 6 + 0 + 200 * 4 / 16) / 5
    assert metrics.smape(ACTUAL, FORECAST) == pytest.approx(expected)


def test_mase_and_rmsse_divide_by_each_series_own_scale() -> None:
    assert metrics.mase(ACTUAL, FORECAST, np.array([2.0, 4.0])) == pytest.approx((0.5 + 0 + 0.5 + 0 + 1) / 5)
    expected = ((1 / 2 + 0 + 4 / 4 + 0 + 16 / 4) / 5) ** 0.5
    assert metrics.rmsse(ACTUAL, FORECAST, np.array([2.0, 4.0])) == pytest.approx(expected)


def test_seasonal_scale_skips_missing_pairs() -> None:
    x_T = np.array([1.0, 2.0, 4.0, np.nan, 3.0, 5.0])
    # Season 2: 4-1, nan, 3-4, nan: the known ones are 3 and -1.
    assert metrics.seasonal_scale(x_T, 2) == (2.0, 5.0)


@pytest.mark.parametrize("x_T", [np.ones(10), np.array([1.0]), np.full(5, np.nan)])
def test_a_series_that_never_moved_has_no_scale(x_T: np.ndarray) -> None:
    assert np.isnan(metrics.seasonal_scale(x_T, 1)).all()


def test_pinball_is_the_hand_computed_one() -> None:
    loss = metrics.pinball(np.array([[3.0]]), np.array([[[1.0, 5.0]]]), (0.1, 0.8))
    assert loss.ravel().tolist() == pytest.approx([0.1 * 2, 0.2 * 2])


def test_crps_of_a_fine_grid_is_that_of_the_normal_distribution() -> None:
    """Closed form of Gneiting and Raftery (2007), and the defining integral by numerical integration."""
    mean, deviation, y = 1.0, 2.0, 2.5
    grid = tuple(i / 1000 for i in range(1, 1000))
    quantiles = np.array([[[NormalDist(mean, deviation).inv_cdf(q) for q in grid]]])
    z = (y - mean) / deviation
    closed = deviation * (z * (2 * norm.cdf(z) - 1) + 2 * norm.pdf(z) - 1 / np.pi**0.5)
    below, _ = quad(lambda x: norm.cdf(x, mean, deviation) ** 2, -20, y)
    above, _ = quad(lambda x: (1 - norm.cdf(x, mean, deviation)) ** 2, y, 25)
    assert closed == pytest.approx(below + above, rel=1e-6)
    assert metrics.crps(np.array([[y]]), quantiles, grid) == pytest.approx(closed, rel=2e-3)


def test_crps_of_one_value_is_the_absolute_error() -> None:
    quantiles = np.full((1, 1, 3), 5.0)
    assert metrics.crps(np.array([[8.0]]), quantiles, (0.25, 0.5, 0.75)) == pytest.approx(3.0)


def test_an_uneven_grid_does_not_distort_the_crps() -> None:
    even = tuple(i / 100 for i in range(1, 100))
    crowded = tuple(sorted({*(i / 100 for i in range(1, 100)), *(0.9 + i / 1000 for i in range(1, 99))}))
    y = np.array([[0.4]])

    def score(grid: tuple[float, ...]) -> float:
        return metrics.crps(y, np.array([[[NormalDist().inv_cdf(q) for q in grid]]]), grid)

    assert score(crowded) == pytest.approx(score(even), rel=5e-3)


def test_coverage_counts_the_bounds_as_inside() -> None:
    low, high = np.array([[1.0, 3.0, 0.0], [5.0, 0.0, 0.0]]), np.array([[1.0, 4.0, 9.0], [6.0, 0.0, 20.0]])
    assert metrics.coverage(ACTUAL, low, high) == pytest.approx((1 + 0 + 0 + 1 + 1) / 5)
    assert metrics.width(low, high) == pytest.approx((0 + 1 + 9 + 1 + 0 + 20) / 6)


def test_directional_accuracy_leaves_out_what_did_not_move() -> None:
    last = np.array([1.0, 3.0])
    # Moved: 2 up, 4 up, 0 down, 10 up; forecast from 1: up; from 3: down, down, up. 1 did not move.
    assert metrics.directional_accuracy(ACTUAL, FORECAST, last) == pytest.approx((1 + 0 + 1 + 1) / 4)
    assert metrics.directional_accuracy(ACTUAL[1:], np.full((1, 3), 3.0), last[1:]) == 0.5


def test_metrics_of_nothing_are_missing() -> None:
    nothing = np.full((1, 2), np.nan)
    assert np.isnan(metrics.mae(nothing, FORECAST[:1, :2]))
    assert np.isnan(metrics.directional_accuracy(nothing, FORECAST[:1, :2], np.array([1.0])))


def test_the_interval_of_a_coverage_is_wilsons_where_targets_are_independent() -> None:
    """80 of 100 cutoffs of one step inside: the score interval, by hand from Wilson (1927)."""
    actual = np.zeros((100, 1))
    low = np.where(np.arange(100) % 5 == 0, 1.0, -1.0)[:, None]

    found = metrics.coverage_interval(actual, low, np.full((100, 1), 2.0), np.arange(100))

    # The variance between cutoffs is the binomial one but for the sample's 99 in place of 100.
    n, z, share = 99.0, 1.959964, 0.8
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * (share * (1 - share) / n + z**2 / (4 * n**2)) ** 0.5
    assert found == pytest.approx((middle - half, middle + half), abs=1e-6)


def test_series_that_are_missed_together_count_as_one() -> None:
    """Ten series that are inside or outside as a whole say no more than one series does."""
    one = np.where(np.arange(60) % 5 == 0, 1.0, -1.0)[:, None]
    together, cutoffs = np.tile(one, (10, 1)), np.tile(np.arange(60), 10)
    spread = np.random.default_rng(1).permutation(together[:, 0])[:, None]

    def width_of(low: np.ndarray, cutoff_B: np.ndarray) -> float:
        high = np.full_like(low, 2.0)
        bottom, top = metrics.coverage_interval(np.zeros_like(low), low, high, cutoff_B)
        return top - bottom

    assert width_of(together, cutoffs) == pytest.approx(width_of(one, np.arange(60)), rel=1e-9)
    assert width_of(spread, cutoffs) < 0.6 * width_of(together, cutoffs)


def test_cutoffs_whose_forecasts_overlap_say_less() -> None:
    inside = np.where(np.arange(100) % 5 == 0, 1.0, -1.0)[:, None] * np.ones(4)
    high, actual = np.full((100, 4), 2.0), np.zeros((100, 4))

    def width_of(apart: int) -> float:
        bottom, top = metrics.coverage_interval(actual, inside, high, apart * np.arange(100))
        return top - bottom

    assert width_of(1) > 1.7 * width_of(4)
    assert width_of(4) == width_of(8)
