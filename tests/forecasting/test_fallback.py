"""The seasonal naive says what its history says, and its intervals hold what they promise."""

import numpy as np
import pytest

from forecasting.errors import InputError
from forecasting.fallback import forecast_naive
from forecasting.forecaster import summarise

QUANTILES = (0.025, 0.1, 0.5, 0.9, 0.975)


def test_the_last_season_is_repeated() -> None:
    said = forecast_naive(np.array([9.0, 1.0, 2.0, 3.0, 4.0]), 4, 6, QUANTILES)
    assert said.season == 4
    assert said.values_HQ[:, 2].tolist() == [1.0, 2.0, 3.0, 4.0, 1.0, 2.0]


def test_a_missing_step_takes_the_season_before() -> None:
    y_T = np.array([1.0, 2.0, 3.0, 10.0, np.nan, 30.0])
    assert forecast_naive(y_T, 3, 3, QUANTILES).values_HQ[:, 2].tolist() == [10.0, 2.0, 30.0]


def test_a_season_is_continued_over_a_gap() -> None:
    y_T = np.array([1.0, 2.0, 3.0, 4.0, np.nan, np.nan, np.nan])
    assert forecast_naive(y_T, 4, 3, QUANTILES).values_HQ[:, 2].tolist() == [4.0, 1.0, 2.0]


def test_a_history_without_a_season_repeats_its_last_value() -> None:
    said = forecast_naive(np.array([5.0, 7.0, 6.0]), 24, 2, QUANTILES)
    assert said.season == 1
    assert said.values_HQ[:, 2].tolist() == [6.0, 6.0]


def test_too_few_differences_give_no_interval_and_the_mean_all_the_same() -> None:
    said = forecast_naive(np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]), 4, 2, QUANTILES)
    assert not said.has_interval
    assert (said.values_HQ == [[3.0], [4.0]]).all()
    assert forecast_naive(np.arange(7.0), 4, 2, QUANTILES).has_interval


def test_the_spread_grows_with_the_root_of_the_seasons_ahead() -> None:
    y_T = np.random.default_rng(0).normal(size=40)
    width_H = np.ptp(forecast_naive(y_T, 4, 12, QUANTILES).values_HQ, axis=1)
    np.testing.assert_allclose(width_H / width_H[0], np.sqrt(np.repeat([1, 2, 3], 4)))


@pytest.mark.parametrize("gap", [0, 12])
@pytest.mark.parametrize("seasons", [3, 8, 40])
def test_intervals_cover_what_they_say(seasons: int, gap: int) -> None:
    """On seasonal random walks, the process this forecast is optimal for, however short the history."""
    rng = np.random.default_rng(seasons)
    season, horizon, repeats = 4, 8, 2000
    steps = seasons * season + gap + horizon
    walk_RT = (
        rng.normal(size=(repeats, -(-steps // season), season)).cumsum(axis=1).reshape(repeats, -1)[:, :steps]
    )
    seen_RT = walk_RT[:, : steps - horizon].copy()
    seen_RT[:, seasons * season :] = np.nan
    said_RHQ = np.stack([forecast_naive(y_T, season, horizon, QUANTILES).values_HQ for y_T in seen_RT])
    inside = summarise(said_RHQ, QUANTILES, [80.0, 95.0])
    truth_RH = walk_RT[:, -horizon:]
    for level, width in ((80, 0.02), (95, 0.015)):
        covered = (inside[f"lo-{level}"] <= truth_RH) & (truth_RH <= inside[f"hi-{level}"])
        assert covered.mean() == pytest.approx(level / 100, abs=width)


def test_a_price_stays_above_zero() -> None:
    price_T = 100 * np.exp(np.random.default_rng(1).normal(scale=0.5, size=30).cumsum())
    said = forecast_naive(price_T, 1, 50, QUANTILES, "log_return")
    assert (said.values_HQ > 0).all()
    assert (np.diff(said.values_HQ, axis=1) > 0).all()
    np.testing.assert_allclose(said.values_HQ[:, 2], price_T[-1])


def test_a_history_without_a_usable_value_is_refused() -> None:
    with pytest.raises(InputError, match="without a value"):
        forecast_naive(np.array([-1.0, 0.0]), 1, 1, QUANTILES, "log_return")
