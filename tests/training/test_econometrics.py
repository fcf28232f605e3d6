"""Rivals: known figures, nothing from the future, and an answer whatever the prices did."""

import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from arch.data import sp500
from numpy.typing import NDArray

from forecasting.errors import TrainingError
from tests.training.test_garch import clustered
from training.econometrics import (
    FEWEST_RETURNS,
    HISTORICAL_WINDOW,
    RIVALS,
    RivalForecast,
    forecast_rival,
    has_density,
)
from training.garch import DECAY, FEWEST_TO_FIT, PATHS, VARIANCE_FLOOR
from training.har import sessions_needed
from training.metrics import pinball
from training.skewed_t import SkewedT

FloatArray = NDArray[np.float64]

P = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
GRID = tuple(np.arange(1, 200) / 200)
LAST_OF_2014 = 4023
SIMPLE = ("random_walk", "historical", "ewma")
FITTED = tuple(name for name in RIVALS if name not in SIMPLE)


def range_variances(returns_T: FloatArray, seed: int = 5) -> FloatArray:
    """Return a noisy variance of each session, as ranges give one."""
    variance_T = pd.Series(np.square(returns_T)).ewm(alpha=0.06).mean().to_numpy()
    noise_T = np.exp(0.4 * np.random.default_rng(seed).standard_normal(len(returns_T)))
    noisy_T: FloatArray = variance_T * noise_T
    return noisy_T


def ask(
    name: str,
    returns_T: FloatArray,
    cutoffs: object,
    horizon: int = 3,
    refit_every: int = 100,
    notes: list[str] | None = None,
    first_fit: int | None = None,
) -> RivalForecast:
    return forecast_rival(
        name,
        returns_T,
        np.asarray(cutoffs),
        horizon,
        P,
        refit_every=refit_every,
        first_fit=first_fit,
        variances_T=range_variances(returns_T) if name == "har" else None,
        note=None if notes is None else notes.append,
    )


def assert_sound(forecast: RivalForecast) -> None:
    assert np.isfinite(forecast.quantiles_KHQ).all()
    assert (np.diff(forecast.quantiles_KHQ, axis=2) >= 0).all()
    assert (forecast.variance_KH > 0).all()
    if forecast.first is not None:
        assert (forecast.first.scale > 0).all()
        assert np.isfinite(forecast.first).all()


def assert_same(one: RivalForecast, other: RivalForecast, rows: slice = slice(None)) -> None:
    np.testing.assert_array_equal(one.quantiles_KHQ[rows], other.quantiles_KHQ[rows])
    np.testing.assert_array_equal(one.variance_KH[rows], other.variance_KH[rows])
    if one.first is not None and other.first is not None:
        np.testing.assert_array_equal(np.array(one.first)[:, rows], np.array(other.first)[:, rows])


@pytest.mark.parametrize(
    ("name", "qlike", "crps", "pinball_1", "pinball_5", "coverage"),
    [
        ("garch", 0.4165, 0.4362, 0.0337, 0.0974, 0.932),
        ("garch_t", 0.4172, 0.4339, 0.0331, 0.0972, 0.918),
        ("gjr_garch_t", 0.3742, 0.4311, 0.0314, 0.0956, 0.922),
        ("gjr_garch_skewt", 0.3737, 0.4308, 0.0314, 0.0965, 0.921),
    ],
)
def test_the_figures_of_arch_on_the_sp500_are_reproduced(
    name: str, qlike: float, crps: float, pinball_1: float, pinball_5: float, coverage: float
) -> None:
    """Fitted on 1999 to 2014, one step ahead on the 1006 sessions of 2015 to 2018, parameters frozen."""
    returns_T = 100 * np.diff(np.log(sp500.load()["Adj Close"].to_numpy()))
    cutoffs_K = np.arange(LAST_OF_2014, LAST_OF_2014 + 1006)
    answer = forecast_rival(name, returns_T, cutoffs_K, 1, GRID, refit_every=10**9)
    actual_K = returns_T[cutoffs_K + 1]
    assert answer.first is not None
    variance_K = answer.variance_KH[:, 0]
    error_K = actual_K - answer.first.location
    losses_KQ = pinball(actual_K[:, None], answer.quantiles_KHQ, GRID)[:, 0]
    low_K, high_K = answer.quantiles_KHQ[:, 0, GRID.index(0.05)], answer.quantiles_KHQ[:, 0, GRID.index(0.95)]
    tolerance = {"abs": 1e-4}
    assert (np.log(variance_K) + error_K**2 / variance_K).mean() == pytest.approx(qlike, **tolerance)
    assert 2 * losses_KQ.mean() == pytest.approx(crps, **tolerance)
    assert losses_KQ[:, GRID.index(0.01)].mean() == pytest.approx(pinball_1, **tolerance)
    assert losses_KQ[:, GRID.index(0.05)].mean() == pytest.approx(pinball_5, **tolerance)
    assert ((actual_K >= low_K) & (actual_K <= high_K)).mean() == pytest.approx(coverage, abs=1e-3)


@pytest.mark.parametrize("name", RIVALS)
def test_nothing_after_a_cutoff_changes_what_was_said_at_it(name: str) -> None:
    returns_T = clustered(900)
    cutoffs_K = np.arange(500, 900, 7)
    before = ask(name, returns_T, cutoffs_K)
    for changed in (600, 731):
        later_T = returns_T.copy()
        later_T[changed + 1 :] = np.random.default_rng(1).standard_normal(899 - changed) * 5
        after = ask(name, later_T, cutoffs_K)
        same = slice(int((cutoffs_K <= changed).sum()))
        assert_same(before, after, same)
        assert (before.quantiles_KHQ[same.stop :] != after.quantiles_KHQ[same.stop :]).any()


@pytest.mark.parametrize("name", RIVALS)
def test_asking_at_fewer_cutoffs_of_a_fold_changes_no_answer(name: str) -> None:
    returns_T = clustered(700)
    every = ask(name, returns_T, np.arange(500, 600))
    few = ask(name, returns_T, [500, 537, 599])
    assert_same(every.take(np.array([0, 37, 99])), few)


@pytest.mark.parametrize("name", [name for name in RIVALS if has_density(name)])
def test_parameters_change_at_refits_alone(name: str) -> None:
    """The shape of the density is a parameter; of the rivals without one it is zero, and of the walk the scale."""
    returns_T = np.random.default_rng(4).standard_t(5, 900)
    answer = ask(name, returns_T, np.arange(500, 900, 10), refit_every=95)
    assert answer.first is not None
    if name == "ewma":
        assert not np.array(answer.first)[[0, 2, 3]].any()
        return
    parameter_K = answer.first.scale if name == "random_walk" else np.array(answer.first)[[0, 2, 3]].sum(axis=0)
    if name == "garch":
        parameter_K = answer.first.location
    changed = [500 + 10 * (k + 1) for k, (a, b) in enumerate(pairwise(parameter_K)) if a != b]
    # 95, 190, 285 and 380 steps after the first fit, at the first cutoff from there on.
    assert changed == [600, 690, 790, 880]


@pytest.mark.parametrize("name", FITTED)
def test_a_refit_looks_at_what_is_known_and_no_further(name: str) -> None:
    returns_T = clustered(900)
    whole = ask(name, returns_T, [600, 700, 750])
    fitted_then = ask(name, returns_T, [750], first_fit=700)
    assert_same(whole.take(np.array([2])), fitted_then)
    assert (ask(name, returns_T, [750]).quantiles_KHQ != fitted_then.quantiles_KHQ).any()


@pytest.mark.parametrize("unit", [0.01, 7.0])
@pytest.mark.parametrize("name", RIVALS)
def test_returns_in_other_units_give_the_same_quantiles_in_those_units(name: str, unit: float) -> None:
    returns_T = clustered(900)
    here, there = ask(name, returns_T, [600, 720]), ask(name, returns_T * unit, [600, 720])
    np.testing.assert_allclose(there.quantiles_KHQ, here.quantiles_KHQ * unit, rtol=1e-6, atol=1e-8 * unit)
    np.testing.assert_allclose(there.variance_KH, here.variance_KH * unit**2, rtol=1e-6)


@pytest.mark.parametrize("name", RIVALS)
def test_the_first_step_is_exactly_its_density(name: str) -> None:
    answer = ask(name, clustered(700), [500, 650])
    if not has_density(name):
        assert answer.first is None
        return
    assert answer.first is not None
    exact_KQ = SkewedT(*(part_K[:, None] for part_K in answer.first)).quantile(np.array(P))
    np.testing.assert_array_equal(answer.quantiles_KHQ[:, 0], exact_KQ)
    np.testing.assert_allclose(np.square(answer.first.scale), answer.variance_KH[:, 0], rtol=1e-12)


@pytest.mark.parametrize("name", RIVALS)
def test_sessions_that_are_missing_are_passed_over(name: str) -> None:
    returns_T = clustered(700)
    gaps = np.random.default_rng(2).choice(np.arange(1, 699), 60, replace=False)
    with_gaps_T = np.insert(returns_T, np.sort(gaps), np.nan)
    cutoffs_K = np.array([520, 640, 690])
    moved_K = np.flatnonzero(np.isfinite(with_gaps_T))[cutoffs_K]
    variances_T = range_variances(returns_T)
    spread_T = np.full(len(with_gaps_T), 5.0)
    spread_T[np.isfinite(with_gaps_T)] = variances_T
    whole, gappy = (
        forecast_rival(name, x_T, at_K, 2, P, refit_every=10**9, variances_T=v_T)
        for x_T, at_K, v_T in ((returns_T, cutoffs_K, variances_T), (with_gaps_T, moved_K, spread_T))
    )
    assert_same(whole, gappy)


def test_a_cutoff_at_a_missing_session_repeats_the_last_variance() -> None:
    returns_T = clustered(700)
    returns_T[600] = np.nan
    variance_KH = ask("garch", returns_T, [599, 600, 601]).variance_KH
    np.testing.assert_array_equal(variance_KH[0], variance_KH[1])
    assert variance_KH[2, 0] != variance_KH[1, 0]


@pytest.mark.parametrize("name", RIVALS)
@pytest.mark.parametrize(
    "returns_T",
    [
        np.zeros(600),
        np.full(600, 0.1),
        np.where(np.arange(600) == 300, 50.0, 0.0),
        np.where(np.arange(600) % 50 == 0, 5.0, 0.0),
        np.tile([1.0, -1.0], 300),
        np.append(np.random.default_rng(0).standard_normal(598), [1e6, 0.0]),
        np.random.default_rng(0).standard_cauchy(600),
    ],
    ids=["still", "drift", "one jump", "jumps", "to and fro", "a wrong price", "wild"],
)
def test_whatever_prices_did_there_is_an_answer(name: str, returns_T: FloatArray) -> None:
    assert_sound(ask(name, returns_T, [400, 450, 520, 599]))


@pytest.mark.parametrize("name", RIVALS)
def test_too_short_a_history_is_refused_with_the_need(name: str) -> None:
    returns_T = clustered(40)
    needed = 22 if name == "historical" else 20
    assert_sound(ask(name, returns_T, [needed - 1, 39]))
    with pytest.raises(TrainingError, match=rf"{name!r} has {needed - 1} known returns .* needs {needed}"):
        ask(name, returns_T, [needed - 2, 39])


@pytest.mark.parametrize("name", FITTED)
def test_a_history_too_short_to_fit_on_is_answered_by_ewma_and_said(name: str) -> None:
    returns_T, notes = clustered(400), list[str]()
    answer = ask(name, returns_T, [200, 399], notes=notes)
    ewma = ask("ewma", returns_T, [200, 399])
    np.testing.assert_array_equal(answer.quantiles_KHQ[0], ewma.quantiles_KHQ[0])
    assert (answer.quantiles_KHQ[1] != ewma.quantiles_KHQ[1]).any()
    assert len(notes) == 1
    assert notes[0].startswith(f"{name} could not be fitted at step 200: 201 ")
    assert notes[0].endswith("are needed; ewma answers")


@pytest.mark.parametrize("name", [name for name in FITTED if name != "har"])
def test_where_a_refit_fails_the_parameters_of_the_last_one_stay(name: str) -> None:
    """Prices that hardly moved and then stand still, until there is nothing to fit."""
    returns_T, notes = np.append(clustered(300) * 1.5e-4, np.zeros(1200)), list[str]()
    answer = ask(name, returns_T, [299, 1499], horizon=1, notes=notes)
    assert notes == [
        f"{name} could not be fitted at step 1499: nothing moved, or the likelihood has no sound maximum; "
        "the parameters of the last fit stay"
    ]
    assert answer.first is not None
    assert answer.first.location[0] == answer.first.location[1] > 0


def test_the_random_walk_is_normal_with_the_mean_square_so_far() -> None:
    returns_T = clustered(400)
    answer = ask("random_walk", returns_T, [300, 350])
    known = np.square(returns_T[:301]).mean()
    np.testing.assert_allclose(answer.variance_KH, [[known, 2 * known, 3 * known]] * 2)
    np.testing.assert_allclose(answer.quantiles_KHQ[0, 2, 5], 1.644854 * np.sqrt(3 * known), rtol=1e-6)


def test_the_historical_distribution_is_that_of_the_last_1000_returns_and_their_overlapping_sums() -> None:
    returns_T = clustered(1500)
    answer = ask("historical", returns_T, [700, 1400])
    for k, window_W in enumerate((returns_T[:701], returns_T[401:1401])):
        for h in (1, 2, 3):
            sums_W = [window_W[i : i + h].sum() for i in range(len(window_W) - h + 1)]
            expected_Q = np.quantile(sums_W, P, method="hazen")
            np.testing.assert_allclose(answer.quantiles_KHQ[k, h - 1], expected_Q, rtol=1e-9)
            assert answer.variance_KH[k, h - 1] == pytest.approx(np.var(sums_W), rel=1e-9)


def test_har_forecasts_the_variance_of_returns_and_not_of_ranges() -> None:
    """Log variances of three horizons; ranges that see a third of it; shocks of eight degrees of freedom."""
    rng = np.random.default_rng(6)
    n = 12_000
    log_T = np.zeros(n)
    for t in range(22, n):
        log_T[t] = 0.3 * log_T[t - 1] + 0.35 * log_T[t - 5 : t].mean() + 0.3 * log_T[t - 22 : t].mean()
        log_T[t] += 0.4 * rng.standard_normal()
    returns_T = np.exp(log_T / 2) * rng.standard_t(8, n) * np.sqrt(6 / 8)
    cutoffs_K = np.arange(6000, n - 5)
    answer = forecast_rival(
        "har",
        returns_T,
        cutoffs_K,
        5,
        P,
        refit_every=2000,
        variances_T=np.exp(log_T + 0.2 * rng.normal(size=n)) / 3,
    )
    for h in (1, 5):
        moved_K = np.lib.stride_tricks.sliding_window_view(returns_T, h).sum(axis=1)[cutoffs_K + 1]
        ratio = (np.square(moved_K) / answer.variance_KH[:, h - 1]).mean()
        assert ratio == pytest.approx(1.0, abs=0.1)
        low_K, high_K = answer.quantiles_KHQ[:, h - 1, 1], answer.quantiles_KHQ[:, h - 1, 5]
        assert ((moved_K > low_K) & (moved_K < high_K)).mean() == pytest.approx(0.9, abs=0.02)
    assert answer.first is not None
    assert answer.first.tail.mean() == pytest.approx(0.125, abs=0.06)


def test_har_takes_ranges_and_a_stranger_is_refused() -> None:
    with pytest.raises(TrainingError, match="'har' takes a daily range variance"):
        forecast_rival("har", clustered(600), np.array([500]), 1, P, refit_every=10)
    with pytest.raises(TrainingError, match="no rival is called 'arima'; there are random_walk, historical"):
        forecast_rival("arima", clustered(600), np.array([500]), 1, P, refit_every=10)


@pytest.mark.parametrize(
    ("cutoffs", "first_fit"), [([300, 200], None), ([300, 400], None), ([300], 301), ([300], -1)]
)
def test_cutoffs_out_of_order_or_of_the_data_are_refused(cutoffs: list[int], first_fit: int | None) -> None:
    with pytest.raises(TrainingError, match="cutoffs must ascend from the first fit"):
        ask("ewma", clustered(400), cutoffs, first_fit=first_fit)


def test_the_page_on_rivals_tells_of_all_of_them_and_of_their_needs() -> None:
    page = (Path(__file__).parents[2] / "docs" / "rivals.md").read_text()
    listed, shown = (re.findall(r"^\| `(\w+)` \|", part, re.M) for part in page.split("## What they show"))
    assert tuple(listed) == RIVALS == tuple(shown)
    for told in (
        f"the last {HISTORICAL_WINDOW} returns",
        f"a decay of {DECAY}",
        f"{FEWEST_TO_FIT} known returns",
        f"{sessions_needed(0)} sessions",
        f"{PATHS} paths",
        f"fewer than {FEWEST_RETURNS} known returns",
        f"{VARIANCE_FLOOR:.0e}".replace("e-0", "e-"),
    ):
        assert told in page
