"""The Diebold-Mariano test with the Harvey-Leybourne-Newbold correction."""

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from training.significance import diebold_mariano


def test_without_overlap_it_is_the_t_test_of_the_difference() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=40), rng.normal(0.3, 1, size=40)
    assert diebold_mariano(a, b, lags=0) == pytest.approx(ttest_1samp(a - b, 0).pvalue, rel=1e-9)


def test_equal_forecasters_are_called_different_about_as_often_as_promised() -> None:
    rng = np.random.default_rng(1)
    called = 0
    for _ in range(1000):
        shocks = rng.normal(size=63)
        overlapping = shocks[3:] + shocks[2:-1] + shocks[1:-2]
        called += diebold_mariano(overlapping, np.zeros(60), lags=2) < 0.05
    assert 0.03 < called / 1000 < 0.10


def test_a_forecaster_does_not_differ_from_itself() -> None:
    losses = np.arange(10.0)
    assert diebold_mariano(losses, losses, lags=3) == 1.0


def test_a_cutoff_without_a_loss_is_left_out() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=40), rng.normal(0.3, 1, size=40)
    with_gap = diebold_mariano(np.insert(a, 7, np.nan), np.insert(b, 7, 1.0), lags=0)
    assert with_gap == diebold_mariano(a, b, lags=0)


def test_a_constant_advantage_is_certain() -> None:
    assert diebold_mariano(np.arange(10.0), np.arange(10.0) + 1, lags=0) == 0.0


def test_more_lags_than_cutoffs_is_no_error() -> None:
    assert 0 <= diebold_mariano(np.array([1.0, 2.0, 4.0]), np.array([2.0, 2.0, 2.0]), lags=50) <= 1
