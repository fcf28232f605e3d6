"""Intervals online: coverage holds when the world changes, and quantiles stay quantiles whatever was learned."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import norm

from forecasting.conformal import LIMIT, Adjustment, apply, learn, stretch, unadjusted
from forecasting.spec import quantiles_for

QUANTILES = quantiles_for((80.0, 90.0, 95.0))
Z_Q = norm.ppf(QUANTILES)


def coverage_over_time(actual_BT: NDArray[np.float64], rate: float) -> NDArray[np.float64]:
    """Return the share of series inside their 90 % interval at each time; the network always says N(0, 1)."""
    raw_BHQ = np.broadcast_to(Z_Q, (len(actual_BT), 1, len(Z_Q)))
    stretch_BHQ = np.zeros_like(raw_BHQ)
    low, high = QUANTILES.index(0.05), QUANTILES.index(0.95)
    covered = []
    for t in range(actual_BT.shape[1]):
        y_BH = actual_BT[:, t : t + 1]
        in_force_BHQ = stretch(raw_BHQ, QUANTILES, stretch_BHQ)
        covered.append(((y_BH >= in_force_BHQ[..., low]) & (y_BH <= in_force_BHQ[..., high])).mean())
        stretch_BHQ = learn(stretch_BHQ, raw_BHQ, y_BH, QUANTILES, rate=rate)
    return np.array(covered)


def test_coverage_returns_after_the_variance_doubles() -> None:
    rng = np.random.default_rng(0)
    spread_T = np.where(np.arange(600) < 200, 1.0, np.sqrt(2.0))
    actual_BT = spread_T * rng.normal(size=(200, 600))
    without, adjusted = coverage_over_time(actual_BT, 0.0), coverage_over_time(actual_BT, 0.1)
    assert without[:200].mean() == pytest.approx(0.90, abs=0.01)
    assert adjusted[:200].mean() == pytest.approx(0.90, abs=0.01)
    assert without[300:].mean() < 0.77
    assert adjusted[300:].mean() == pytest.approx(0.90, abs=0.01)


def test_each_side_is_learned_by_itself() -> None:
    raw_BHQ = Z_Q[None, None]
    learned_BHQ = np.zeros_like(raw_BHQ)
    for _ in range(10):
        learned_BHQ = learn(learned_BHQ, raw_BHQ, np.array([[9.0]]), QUANTILES)
    above = np.array(QUANTILES) > 0.5
    assert (learned_BHQ[0, 0, above] > 0).all()
    assert (learned_BHQ[0, 0, ~above] <= 0).all()
    assert learned_BHQ[0, 0, QUANTILES.index(0.5)] == 0


def test_what_is_not_known_teaches_nothing() -> None:
    before_BHQ = np.full((1, 2, len(QUANTILES)), 0.3)
    raw_BHQ = np.broadcast_to(Z_Q, before_BHQ.shape).copy()
    raw_BHQ[0, 1] = np.nan
    assert (learn(before_BHQ, raw_BHQ, np.array([[np.nan, 5.0]]), QUANTILES) == before_BHQ).all()


def test_no_distance_is_stretched_without_bound() -> None:
    learned_BHQ = np.zeros((1, 1, len(QUANTILES)))
    for _ in range(500):
        learned_BHQ = learn(learned_BHQ, Z_Q[None, None], np.array([[1e9]]), QUANTILES)
    assert np.abs(learned_BHQ).max() == LIMIT
    assert np.isfinite(apply(Z_Q[None, None], QUANTILES, [adjustment(learned_BHQ[0])])).all()


def adjustment(stretch_HQ: NDArray[np.float64], quantiles: tuple[float, ...] = QUANTILES) -> Adjustment:
    return Adjustment(quantiles, stretch_HQ, unadjusted(quantiles, len(stretch_HQ)).cutoff_H)


@pytest.mark.parametrize("level", [0.0, 1e-3, 1e6, 1e15])
def test_sums_ascend_to_the_last_bit_and_keep_the_median(level: float) -> None:
    rng = np.random.default_rng(1)
    raw_BHQ = level + np.sort(rng.standard_t(2, size=(200, 4, len(QUANTILES))), axis=-1)
    learned = [adjustment(rng.uniform(-LIMIT, LIMIT, size=(4, len(QUANTILES)))) for _ in range(200)]
    added_BHQ = apply(raw_BHQ, QUANTILES, learned)
    issued_BHQ = raw_BHQ + added_BHQ
    assert (np.diff(issued_BHQ, axis=-1) >= 0).all()
    middle = QUANTILES.index(0.5)
    assert issued_BHQ[..., middle] == pytest.approx(raw_BHQ[..., middle])
    assert level > 1e9 or np.abs(added_BHQ).max() > 1


def test_a_price_stays_a_price() -> None:
    raw_BHQ = np.exp(np.array([-0.5, 0.0, 0.5]))[None, None]
    wide = adjustment(np.full((1, 3), LIMIT), (0.1, 0.5, 0.9))
    issued = (raw_BHQ + apply(raw_BHQ, (0.1, 0.5, 0.9), [wide], "log_return"))[0, 0]
    assert issued == pytest.approx(np.exp([-4.0, 0.0, 4.0]))
    plain = raw_BHQ + apply(raw_BHQ, (0.1, 0.5, 0.9), [wide])
    assert plain.min() < 0


def test_what_does_not_fit_changes_nothing() -> None:
    raw_BHQ = np.broadcast_to(Z_Q, (4, 2, len(QUANTILES))).copy()
    raw_BHQ[3] = np.nan
    wide = adjustment(np.full((1, len(QUANTILES)), 0.5))
    other = adjustment(np.full((2, 3), 0.5), (0.1, 0.5, 0.9))
    added_BHQ = apply(raw_BHQ, QUANTILES, [None, other, wide, wide])
    assert not added_BHQ[0].any()
    assert not added_BHQ[1].any()
    assert added_BHQ[2, 0].any()
    # Of the second step nothing was learned, and the fourth forecast is none.
    assert not added_BHQ[2, 1].any()
    assert not added_BHQ[3].any()
