"""Rivals among forecasters: the same questions, in observed units, and one bad series fails alone."""

from collections.abc import Callable, Iterable
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from forecasting.errors import TrainingError
from forecasting.forecaster import Forecaster
from forecasting.panel import Panel, build_panel
from forecasting.spec import ForecasterSpec, NaiveSpec
from tests.conftest import make_forecaster
from tests.training.test_garch import clustered
from training.backtest import Backtest, run_backtest
from training.econometrics import RIVALS, forecast_rival, has_density
from training.rivals import SeriesAnswers, SeriesQuestions, ask_rival, log_returns, rival_backtest

FloatArray = NDArray[np.float64]

CUTOFFS = tuple(range(400, 590, 5))
ASKED = {"history_needed": 30, "in_sample": 400}


def prices(missing: int = 0, starts: tuple[int, ...] = (0, 0, 250)) -> Panel:
    """Return shares of clustered returns, the last of which was listed late."""
    rows = []
    for n, start in enumerate(starts):
        y_T = 50 * np.exp(clustered(600, seed=n).cumsum() / 100)
        y_T[np.random.default_rng(n).choice(np.arange(start + 1, 380), missing, replace=False)] = np.nan
        ds = pd.bdate_range("2020-01-01", periods=600)
        rows.append(pd.DataFrame({"unique_id": f"SHARE-{n}", "ds": ds, "y": y_T}).iloc[start:])
    return build_panel(pd.concat(rows), "B")


def naive() -> Forecaster:
    return make_forecaster(network=NaiveSpec(input_size=10), freq="B", transform="log_return")


def spec() -> ForecasterSpec:
    return naive().spec


def variances(panel: Panel) -> FloatArray:
    squares_NT: FloatArray = np.square(np.nan_to_num(log_returns(panel.y_NT))) + 0.1
    return squares_NT


def backtest(name: str, panel: Panel, notes: list[str] | None = None, refit_every: int = 100) -> Backtest:
    return rival_backtest(
        name,
        panel,
        spec(),
        CUTOFFS,
        refit_every=refit_every,
        variances_NT=variances(panel) if name == "har" else None,
        note=None if notes is None else notes.append,
        **ASKED,
    )


def hand_over(thing: Any) -> Any:
    return ForkingPickler.loads(bytes(ForkingPickler.dumps(thing)))


@pytest.mark.parametrize("name", RIVALS)
def test_a_rival_is_asked_and_scored_where_a_forecaster_is(name: str) -> None:
    panel = prices(missing=20)
    theirs = run_backtest(naive(), panel, CUTOFFS, **ASKED)
    ours = backtest(name, panel)
    np.testing.assert_array_equal(ours.series_B, theirs.series_B)
    np.testing.assert_array_equal(ours.cutoff_B, theirs.cutoff_B)
    np.testing.assert_array_equal(ours.actual_BH, theirs.actual_BH)
    assert ours.scores().keys() == theirs.scores().keys()
    assert 0.9 < ours.scores()["crps"] / backtest("garch", panel).scores()["crps"] < 1.1
    assert ours.loss_by_series("crps").shape == theirs.loss_by_series("crps").shape
    assert 0.85 < ours.scores()["coverage_95"] <= 1.0


def test_quantiles_are_prices_grown_by_the_cumulated_return() -> None:
    panel = prices()
    test = backtest("gjr_garch_skewt", panel)
    for n in range(3):
        mine_B = test.series_B == n
        returns_T = log_returns(panel.y_NT)[n]
        told = forecast_rival(
            "gjr_garch_skewt",
            returns_T,
            test.cutoff_B[mine_B],
            spec().horizon,
            spec().quantiles,
            refit_every=100,
        )
        last_B = panel.y_NT[n, test.cutoff_B[mine_B]]
        expected_BHQ = last_B[:, None, None] * np.exp(told.quantiles_KHQ / 100)
        np.testing.assert_allclose(test.quantiles_BHQ[mine_B], expected_BHQ, rtol=1e-12)


def test_densities_and_variances_are_in_the_order_of_the_questions() -> None:
    panel = prices()
    series_B, cutoff_B = np.array([2, 0, 1, 0]), np.array([500, 420, 420, 450])
    answer = ask_rival("garch_t", panel, spec(), series_B, cutoff_B, refit_every=10**9)
    alone = ask_rival("garch_t", panel, spec(), series_B[:1], cutoff_B[:1], refit_every=10**9)
    np.testing.assert_array_equal(answer.variance_KH[:1], alone.variance_KH)
    np.testing.assert_array_equal(answer.quantiles_KHQ[:1], alone.quantiles_KHQ)
    assert answer.first is not None
    np.testing.assert_allclose(np.square(answer.first.scale), answer.variance_KH[:, 0])


@pytest.mark.parametrize("name", RIVALS)
def test_no_price_after_a_cutoff_is_used_at_it(name: str) -> None:
    panel = prices()
    changed_NT = panel.y_NT.copy()
    changed_NT[:, 501:] *= 1.5
    changed = Panel(panel.unique_ids, panel.ds, changed_NT, panel.calendar)
    before, after = backtest(name, panel), backtest(name, changed)
    then_B = before.cutoff_B <= 500
    np.testing.assert_array_equal(before.quantiles_BHQ[then_B], after.quantiles_BHQ[then_B])
    assert (before.quantiles_BHQ[~then_B] != after.quantiles_BHQ[~then_B]).any()


def test_returns_are_since_the_last_price_there_was() -> None:
    prices_NT = np.array([[np.nan, 100.0, 110.0, np.nan, np.nan, 121.0, 0.0, 121.0]])
    grown = 100 * np.log(1.1)
    expected_NT = [[np.nan, np.nan, grown, np.nan, np.nan, grown, np.nan, 0.0]]
    np.testing.assert_allclose(log_returns(prices_NT), expected_NT, atol=1e-12)


@pytest.mark.parametrize("name", ["historical", "garch"])
def test_a_series_too_short_is_none_and_named_and_the_others_are_answered(name: str) -> None:
    notes = list[str]()
    panel = prices(starts=(0, 0, 385))
    test = rival_backtest(
        name, panel, spec(), CUTOFFS, refit_every=100, history_needed=5, in_sample=400, note=notes.append
    )
    assert test.unanswered == ("SHARE-2",)
    assert np.isfinite(test.quantiles_BHQ[test.series_B != 2]).all()
    assert [note for note in notes if "SHARE-2" in note] == notes
    assert "known returns at its first fit; it needs" in notes[0]
    answer = ask_rival(name, panel, spec(), test.series_B, test.cutoff_B, refit_every=100)
    assert (answer.first is not None) == has_density(name)


def test_series_may_be_answered_side_by_side() -> None:
    panel = prices()
    asked = ("gjr_garch_t", panel, spec(), np.array([0, 1, 2]), np.array([450, 450, 450]))
    here = ask_rival(*asked, refit_every=100)

    def beside(
        answer: Callable[[SeriesQuestions], SeriesAnswers], questions: Iterable[SeriesQuestions]
    ) -> Iterable[SeriesAnswers]:
        """Hand everything over as processes do, there and back."""
        return [hand_over(hand_over(answer)(hand_over(each))) for each in questions]

    there = ask_rival(*asked, refit_every=100, map_series=beside)
    np.testing.assert_array_equal(here.quantiles_KHQ, there.quantiles_KHQ)


def test_a_target_that_is_no_price_and_ranges_that_are_not_there_are_refused() -> None:
    panel = prices()
    plain = make_forecaster(network=NaiveSpec(input_size=10), freq="B").spec
    with pytest.raises(TrainingError, match="'garch' forecasts returns: the target takes transform log_return"):
        rival_backtest("garch", panel, plain, CUTOFFS, refit_every=100, **ASKED)
    with pytest.raises(TrainingError, match="'har' takes a daily range variance"):
        rival_backtest("har", panel, spec(), CUTOFFS, refit_every=100, **ASKED)
    with pytest.raises(TrainingError, match="no series can be asked"):
        rival_backtest("garch", panel, spec(), CUTOFFS, refit_every=100, history_needed=600, in_sample=400)
