"""Range variances and the returns of a session's parts."""

import numpy as np
import pytest

from forecasting.ranges import (
    NEEDS,
    PRICES,
    RANGE_FEATURES,
    Price,
    RangeFeature,
    garman_klass,
    intraday,
    overnight,
    parkinson,
    range_feature,
    rogers_satchell,
)

BAR: dict[Price, np.ndarray] = {
    "open": np.array([100.0, 101.0]),
    "high": np.array([104.0, 103.0]),
    "low": np.array([98.0, 99.0]),
    "close": np.array([102.0, 100.0]),
}


def test_variances_are_those_of_the_literature_in_percent_squared() -> None:
    o, h, low, c = (BAR[name] for name in PRICES)
    up, down, close = 100 * np.log(h / o), 100 * np.log(low / o), 100 * np.log(c / o)
    # Garman and Klass (1980), equation 20 as it is usually shortened, and equation 4.7 of Yang and Zhang (2000).
    np.testing.assert_allclose(parkinson(h, low), (up - down) ** 2 / (4 * np.log(2)))
    klass = 0.5 * (up - down) ** 2 - (2 * np.log(2) - 1) * close**2
    np.testing.assert_allclose(garman_klass(o, h, low, c), klass)
    satchell = up * (up - close) + down * (down - close)
    np.testing.assert_allclose(rogers_satchell(o, h, low, c), satchell)


def test_overnight_and_intraday_add_up_to_the_return() -> None:
    o, c = BAR["open"], BAR["close"]
    whole = overnight(o, c) + intraday(o, c)
    assert np.isnan(whole[0])
    np.testing.assert_allclose(whole[1], 100 * np.log(c[1] / c[0]))


def test_each_estimator_finds_the_variance_of_a_random_walk() -> None:
    rng = np.random.default_rng(7)
    steps = rng.normal(0, 1.5 / np.sqrt(4000), size=(1500, 4000))
    path = np.concatenate([np.zeros((1500, 1)), steps.cumsum(axis=1)], axis=1)
    prices = np.exp(path / 100)
    o, h, low, c = prices[:, 0], prices.max(axis=1), prices.min(axis=1), prices[:, -1]
    for found in (parkinson(h, low), garman_klass(o, h, low, c), rogers_satchell(o, h, low, c)):
        assert found.mean() == pytest.approx(1.5**2, rel=0.06)  # a grid misses a little of the range
    assert garman_klass(o, h, low, c).std() < ((100 * np.log(c / o)) ** 2).std() / 2


@pytest.mark.parametrize("name", RANGE_FEATURES)
@pytest.mark.parametrize("bad", [np.nan, 0.0, -5.0, np.inf])
def test_a_price_that_is_missing_or_impossible_makes_every_feature_of_it_missing(
    name: RangeFeature, bad: float
) -> None:
    for price in NEEDS[name]:
        # The close of the first session is what the second one's overnight return is of.
        step = 0 if (name, price) == ("overnight", "close") else 1
        spoilt = {**BAR, price: BAR[price].copy()}
        spoilt[price][step] = bad
        found = range_feature(name, spoilt)
        assert np.isnan(found[1 if name == "overnight" else step]), price


@pytest.mark.parametrize("name", ["garman_klass", "rogers_satchell"])
@pytest.mark.parametrize(("price", "value"), [("high", 97.0), ("open", 105.0), ("close", 97.5)])
def test_a_bar_that_contradicts_itself_has_no_variance(name: RangeFeature, price: Price, value: float) -> None:
    spoilt = {**BAR, price: np.array([value, BAR[price][1]])}
    found = range_feature(name, spoilt)
    assert np.isnan(found[0])
    assert np.isfinite(found[1])


def test_a_high_below_the_low_has_no_variance() -> None:
    assert np.isnan(parkinson(np.array([97.0]), np.array([98.0]))).all()


def test_a_price_that_did_not_move_has_no_variance_but_zero() -> None:
    still = np.array([10.0, 10.0])
    assert parkinson(still, still).tolist() == [0.0, 0.0]
    assert garman_klass(still, still, still, still).tolist() == [0.0, 0.0]
    assert rogers_satchell(still, still, still, still).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("name", RANGE_FEATURES)
def test_many_series_at_once_are_as_each_alone(name: RangeFeature) -> None:
    rng = np.random.default_rng(1)
    o, c = 50 + rng.random((2, 3, 8))
    prices: dict[Price, np.ndarray] = {
        "open": o,
        "high": np.maximum(o, c) + rng.random((3, 8)),
        "low": np.minimum(o, c) - rng.random((3, 8)),
        "close": c,
    }
    together = range_feature(name, prices)
    for n in range(3):
        alone = range_feature(name, {price: values[n] for price, values in prices.items()})
        np.testing.assert_array_equal(together[n], alone)


def test_variances_are_never_negative() -> None:
    rng = np.random.default_rng(3)
    o, c = np.exp(rng.normal(3, 0.2, size=(2, 5000)))
    h, low = np.maximum(o, c), np.minimum(o, c)  # the narrowest range there can be
    assert (garman_klass(o, h, low, c) >= 0).all()
    assert (rogers_satchell(o, h, low, c) >= 0).all()
