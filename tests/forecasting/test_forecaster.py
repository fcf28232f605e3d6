"""Forecaster.predict: the one inference path."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forecasting.errors import InputError
from forecasting.forecaster import interpolate_quantile, interval_bounds, mean_weights, summarise
from forecasting.spec import MLPSpec, NaiveSpec
from tests.conftest import make_forecaster

GRID = (0.025, 0.1, 0.5, 0.9, 0.975)


def test_longer_histories_are_cut_to_what_the_model_sees() -> None:
    forecaster = make_forecaster()
    y_BL = np.random.default_rng(0).normal(size=(2, 50))
    assert np.array_equal(forecaster.predict(y_BL), forecaster.predict(y_BL[:, -10:]))


def test_a_short_history_is_refused_with_the_numbers() -> None:
    with pytest.raises(InputError, match=r"\(1, 9\); this model needs \(series, 10\)"):
        make_forecaster().predict(np.zeros((1, 9)))


def test_a_history_without_a_value_is_refused() -> None:
    y_BL = np.ones((2, 10))
    y_BL[1] = np.nan
    with pytest.raises(InputError, match="history 1 has no usable value"):
        make_forecaster().predict(y_BL)


def test_prices_that_have_no_logarithm_count_as_missing() -> None:
    forecaster = make_forecaster(transform="log_return")
    y_BL = np.array([[1.0, 2, 3, 4, 0, 6, 7, -1, 9, 10]])
    masked_BL = np.where(y_BL > 0, y_BL, np.nan)
    assert np.array_equal(forecaster.predict(y_BL), forecaster.predict(masked_BL))


def test_a_constant_history_is_forecast_flat() -> None:
    quantiles_BHQ = make_forecaster().predict(np.full((1, 10), 7.0))
    np.testing.assert_allclose(quantiles_BHQ, 7.0, atol=1e-6)


def test_no_series_is_an_answer_of_no_rows() -> None:
    assert make_forecaster().predict(np.empty((0, 10))).shape == (0, 3, 13)


def test_what_is_not_finite_becomes_missing_over_the_whole_series() -> None:
    forecaster = make_forecaster(transform="log_return")
    steep_L = np.exp(np.linspace(0, 700, 10))
    quantiles_BHQ = forecaster.predict(np.stack([steep_L, np.linspace(1, 2, 10)]))
    assert np.isnan(quantiles_BHQ[0]).all()
    assert np.isfinite(quantiles_BHQ[1]).all()


def test_a_large_level_costs_no_precision() -> None:
    forecaster = make_forecaster(MLPSpec(input_size=10))
    y_BL = np.random.default_rng(0).normal(size=(1, 10))
    np.testing.assert_allclose(forecaster.predict(y_BL + 2.0**40) - 2.0**40, forecaster.predict(y_BL), atol=1e-3)


def test_the_mean_of_a_normal_distribution_is_its_mean() -> None:
    from statistics import NormalDist

    grid = tuple(i / 200 for i in range(1, 200))
    quantiles = np.array([NormalDist(3.0, 2.0).inv_cdf(q) for q in grid])
    assert quantiles @ mean_weights(grid) == pytest.approx(3.0)
    assert mean_weights(GRID).sum() == pytest.approx(1.0)


@settings(max_examples=50, deadline=None)
@given(st.floats(1, 95))
def test_intervals_of_any_level_nest(level: float) -> None:
    quantiles_BHQ = np.sort(np.random.default_rng(0).normal(size=(2, 3, 5)), axis=-1)
    columns = summarise(quantiles_BHQ, GRID, (level, 95.0))
    low, high = columns[f"lo-{level:g}"], columns[f"hi-{level:g}"]
    assert (columns["lo-95"] <= low).all()
    assert (low <= high).all()
    assert (high <= columns["hi-95"]).all()


def test_a_trained_level_is_answered_exactly() -> None:
    quantiles_BHQ = np.arange(5.0).reshape(1, 1, 5)
    columns = summarise(quantiles_BHQ, GRID, (80,))
    assert columns["lo-80"] == 1.0
    assert columns["hi-80"] == 3.0
    assert interpolate_quantile(quantiles_BHQ, GRID, 0.3) == pytest.approx(1.5)


@pytest.mark.parametrize("level", [0, 96, 100, -5])
def test_a_level_beyond_the_trained_quantiles_is_refused(level: float) -> None:
    with pytest.raises(InputError, match="above 0 and up to 95"):
        interval_bounds(GRID, level)


def test_offsets_move_the_quantiles_in_units_of_the_scale() -> None:
    forecaster = make_forecaster(NaiveSpec(input_size=3), horizon=1)
    forecaster.network.offsets_HQ.copy_(forecaster.network.offsets_HQ + 2.0)
    # The mean absolute step of 1, 3, 4 is 1.5.
    np.testing.assert_allclose(forecaster.predict(np.array([[1.0, 3.0, 4.0]])), 4.0 + 2 * 1.5)
