"""Drift: a change is seen, chance is not, and what cannot be told is not told."""

import numpy as np
import pytest
from numpy.typing import NDArray

from training.drift import measure_drift

WINDOW, SEASON = 24, 6


def observed(seed: int, n_series: int = 3, past: int = 15 * WINDOW) -> NDArray[np.float64]:
    """Return autocorrelated series with a season and a common shock, without a change."""
    rng = np.random.default_rng(seed)
    n_steps = past + WINDOW + SEASON
    shocks_NT = rng.normal(size=(n_series, n_steps)) + rng.normal(size=n_steps)
    y_NT = np.zeros_like(shocks_NT)
    for t in range(1, n_steps):
        y_NT[:, t] = 0.8 * y_NT[:, t - 1] + shocks_NT[:, t]
    return y_NT + 3 * np.sin(2 * np.pi * np.arange(n_steps) / SEASON)


def test_without_a_change_it_alarms_about_as_often_as_it_says() -> None:
    p_values = np.array([measure_drift(observed(seed), WINDOW, SEASON).p_value for seed in range(60)])
    assert (p_values <= 0.1).mean() <= 0.2
    assert (p_values <= 0.5).mean() == pytest.approx(0.5, abs=0.2)


@pytest.mark.parametrize("change", ["wild", "calm", "another season"])
def test_a_change_is_seen(change: str) -> None:
    x_NT = observed(1)
    moves_NT = np.diff(x_NT, axis=1)[:, -WINDOW:]
    if change == "another season":
        moves_NT = moves_NT - np.diff(8 * np.sin(2 * np.pi * np.arange(x_NT.shape[1]) / SEASON))[-WINDOW:]
    factor = {"wild": 2.0, "calm": 0.3, "another season": 1.0}[change]
    x_NT[:, -WINDOW:] = x_NT[:, [-WINDOW - 1]] + factor * moves_NT.cumsum(axis=1)
    drift = measure_drift(x_NT, WINDOW, SEASON)
    assert drift.p_value < 0.05
    assert drift.statistic > drift.usual


def test_a_new_level_alone_is_no_drift() -> None:
    x_NT = observed(3)
    # It moves once; a network takes the level off.
    assert measure_drift(x_NT + 1e6, WINDOW, SEASON).p_value == measure_drift(x_NT, WINDOW, SEASON).p_value


def test_what_lies_between_is_neither_past_nor_newest() -> None:
    x_NT = observed(6)
    wild_NT = np.concatenate([x_NT, 50 * observed(7)[:, : 2 * WINDOW], 50 * observed(8)[:, :WINDOW]], axis=1)
    told = measure_drift(wild_NT, WINDOW, SEASON, gap=2 * WINDOW)
    assert told.usual < 1
    assert told.p_value < 0.02
    assert measure_drift(wild_NT, WINDOW, SEASON).p_value > 0.02


def test_missing_values_are_left_out() -> None:
    x_NT = observed(4)
    x_NT[np.random.default_rng(0).random(x_NT.shape) < 0.1] = np.nan
    x_NT[1] = np.nan
    assert 0 < measure_drift(x_NT, WINDOW, SEASON).p_value <= 1


def test_too_short_a_past_tells_nothing() -> None:
    assert np.isnan(measure_drift(observed(5, past=5 * WINDOW), WINDOW, SEASON).p_value)
    assert np.isnan(measure_drift(np.ones((2, 20 * WINDOW)), WINDOW, SEASON).p_value)
