"""Scoring teaches the intervals: once each, in order, per version, and never with hindsight."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ledger.forecasts import FloatArray, ForecastInputs
from ledger.ledger import Ledger, open_ledger
from pipelines.score import score_matured, seasonal_naive
from tests.ledger.conftest import Ticking
from tests.ledger.issued import QUANTILES, hour, issued, rows_of


@pytest.fixture
def clock() -> Ticking:
    return Ticking()


@pytest.fixture
def ledger(tmp_path: Path, clock: Ticking) -> Iterator[Ledger]:
    opened = open_ledger(f"sqlite:///{tmp_path}/ledger.db", clock)
    yield opened
    opened.close()


PUMPS = ("pump-1", "pump-2")


def stretch_of(ledger: Ledger, version: str = "1", step: int = 1) -> float:
    """Return what was learned of the upper bound of 90 %."""
    state = ledger.adjustments.read("pumps", version)["pump-1"]
    return float(state.stretch_HQ[step - 1, QUANTILES.index(0.95)])


def test_each_actual_teaches_once(ledger: Ledger) -> None:
    ledger.forecasts.append([issued(1)])
    ledger.observations.append("pumps", rows_of([8, 9, 99]))
    assert score_matured(ledger).adjusted == 1
    assert stretch_of(ledger) == pytest.approx(0.095, abs=1e-6)
    assert stretch_of(ledger, step=2) == 0
    # A revision is scored, and teaches nothing; nor does a second forecast at the same cutoff.
    ledger.observations.append("pumps", rows_of([500], first=2))
    ledger.forecasts.append([issued(1, forecast_id="again")])
    assert score_matured(ledger).adjusted == 0
    assert stretch_of(ledger) == pytest.approx(0.095, abs=1e-6)
    ledger.observations.append("pumps", rows_of([99], first=3))
    score_matured(ledger)
    assert stretch_of(ledger) == pytest.approx(0.095, abs=1e-6)
    # Of two steps ahead less is learned from each: the forecasts in between are alike.
    assert stretch_of(ledger, step=2) == pytest.approx(0.095 / np.sqrt(2), abs=1e-6)


def quantiles_with(broken: float, step: int | None = None) -> FloatArray:
    """Return quantiles that are no numbers, at all steps or one; the median of that one is."""
    values_HQ = issued(1).values_HQ.copy()
    values_HQ[slice(None) if step is None else step - 1, : len(QUANTILES) // 2] = -broken
    values_HQ[slice(None) if step is None else step - 1, len(QUANTILES) // 2 + 1 :] = broken
    return values_HQ


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_a_forecast_that_is_no_number_has_no_score_and_teaches_nothing(ledger: Ledger, broken: float) -> None:
    ledger.forecasts.append(
        [
            issued(1, values_HQ=quantiles_with(broken, step=2)),
            issued(1, unique_id="pump-2", values_HQ=quantiles_with(broken)),
        ]
    )
    ledger.observations.append("pumps", pd.concat([rows_of([8, 9, 99, 99, 99], name) for name in PUMPS]))
    report = score_matured(ledger)
    one, other = (ledger.forecasts.of_series("pumps", name)[0].id or 0 for name in PUMPS)
    assert ledger.scores.of_forecast(one)["step"].tolist() == [1, 3]
    assert ledger.scores.of_forecast(other).empty
    assert (report.forecasts, report.scores, report.adjusted) == (2, 4, 1)
    assert stretch_of(ledger) > 0
    assert stretch_of(ledger, step=2) == 0
    assert ledger.scores.due().tolist() == []

    # Another forecast at the same cutoff still can teach what it could not.
    ledger.forecasts.append([issued(1, forecast_id="again")])
    assert score_matured(ledger).adjusted == 1
    assert stretch_of(ledger, step=2) > 0


def test_what_was_added_to_a_forecast_is_taken_off_before_it_teaches(ledger: Ledger) -> None:
    adjustment_HQ = np.full((3, len(QUANTILES)), -100.0)
    values_HQ = issued(1).values_HQ + adjustment_HQ
    ledger.forecasts.append([issued(1, values_HQ=values_HQ, adjustment_HQ=adjustment_HQ)])
    ledger.observations.append("pumps", rows_of([8, 9, 10]))
    score_matured(ledger)
    assert stretch_of(ledger) < 0


def test_learning_all_at_once_or_day_by_day_comes_to_the_same(tmp_path: Path) -> None:
    values = (10 + np.random.default_rng(0).normal(scale=3, size=40)).tolist()
    found = []
    for name, size in (("day by day", 1), ("at once", 40)):
        ledger = open_ledger(f"sqlite:///{tmp_path}/{name}.db", Ticking())
        ledger.forecasts.append([issued(c, horizon=4) for c in range(1, 30)])
        for i in range(0, len(values), size):
            ledger.observations.append("pumps", rows_of(values[i : i + size], first=i))
            score_matured(ledger)
        found.append((ledger.adjustments.read("pumps", "1")["pump-1"].stretch_HQ, ledger.scores.summary()))
        ledger.close()
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-5)
    assert np.abs(found[0][0]).max() > 0.1
    assert found[0][1] == [pytest.approx(row) for row in found[1][1]]


def test_versions_learn_apart_and_a_stand_in_teaches_nothing(ledger: Ledger) -> None:
    ledger.forecasts.append(
        [
            issued(1),
            issued(1, version="2", centre=99.0),
            issued(1, model="fans", status="fallback", forecast_id="x"),
        ]
    )
    ledger.observations.append("pumps", rows_of([8, 9, 99]))
    score_matured(ledger)
    assert stretch_of(ledger, "1") > 0 > stretch_of(ledger, "2")
    assert ledger.adjustments.read("fans") == {}
    assert ledger.scores.summary(model="fans") == [], "it counts for no version"


def test_adjustments_are_read_as_they_were_known(ledger: Ledger, clock: Ticking) -> None:
    ledger.forecasts.append([issued(c) for c in range(1, 9)])
    ledger.observations.append("pumps", rows_of([8, 9, 99]))
    score_matured(ledger)
    then = ledger.clock()
    ledger.observations.append("pumps", rows_of([99, 99], first=3))
    score_matured(ledger)
    assert ledger.adjustments.changed_at("pumps") is not None
    assert ledger.adjustments.read("pumps", "1", as_of=then - timedelta(days=1)) == {}
    before = ledger.adjustments.read("pumps", "1", as_of=then)["pump-1"]
    assert before.stretch_HQ[0, -1] < stretch_of(ledger)
    clock.now += timedelta(days=3)
    ledger.observations.append("pumps", rows_of([99], first=5))
    score_matured(ledger)
    # What was replaced days ago is forgotten.
    assert ledger.adjustments.read("pumps", "1", as_of=then) == {}


def test_a_scoring_cut_off_goes_on_where_it_was(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.score.AT_ONCE", 4)
    ledger.forecasts.append([issued(c) for c in range(1, 13)])
    ledger.observations.append("pumps", rows_of([10.0] * 20))

    def stop(done: int, of: int) -> None:
        assert of == 12
        if done == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score_matured(ledger, progress=stop)
    assert ledger.scores.summary()[0]["n"] == 8 * 3
    # What comes in between is not lost either.
    ledger.observations.append("pumps", rows_of([20.0], first=4))
    score_matured(ledger)
    assert ledger.scores.summary()[0]["n"] == 12 * 3
    assert ledger.scores.of_forecast(1)["actual"].tolist() == [10, 10, 20]


def test_the_seasonal_naive_repeats_what_was_last_seen_of_each_step(ledger: Ledger) -> None:
    nan = float("nan")
    y_L = np.array([1.0, 2.0, 3.0, nan, 5.0, nan, nan])
    one = issued(1, season_length=3, horizon=5, inputs=ForecastInputs(y_L))
    # Steps of the season, newest last: (2, 5), (3, nan), (nan, nan); the last falls back on the last value.
    assert seasonal_naive(ledger, [one])[0].tolist() == [5, 3, 5, 5, 3]


def test_scores_agree_with_the_backtest(ledger: Ledger) -> None:
    from tests.conftest import make_forecaster, make_panel
    from training.backtest import run_backtest

    panel = make_panel(n_series=2, n_steps=80)
    forecaster = make_forecaster(level=(80.0, 95.0))
    cutoffs = (60, 65, 70)
    test = run_backtest(forecaster, panel, cutoffs, history_needed=10, in_sample=60)
    spec = forecaster.spec
    forecasts = [
        issued(
            int((panel.ds[cutoff].to_datetime64() - hour(0)) // np.timedelta64(1, "h")),
            forecast_id=f"{n}-{cutoff}",
            unique_id=panel.unique_ids[n],
            ds_H=panel.ds[cutoff + 1 : cutoff + 1 + spec.horizon].to_numpy(),
            quantiles=spec.quantiles,
            values_HQ=test.quantiles_BHQ[b],
            inputs=ForecastInputs(panel.y_NT[n, cutoff - 9 : cutoff + 1]),
            season_length=7,
        )
        for b, (n, cutoff) in enumerate(zip(test.series_B, test.cutoff_B, strict=True))
    ]
    ledger.forecasts.append(forecasts)
    ledger.observations.append("pumps", panel.to_frame())
    score_matured(ledger)
    (row,) = ledger.scores.summary(level=(80, 95))
    scores = test.scores()
    for name in ("mae", "crps", "coverage_80", "coverage_95"):
        assert row[name] == pytest.approx(scores[name]), name


def test_what_was_learned_stays_when_a_forecast_reaches_further(tmp_path: Path) -> None:
    found = []
    for first in (3, 5):
        ledger = open_ledger(f"sqlite:///{tmp_path}/{first}.db", Ticking())
        ledger.forecasts.append([issued(1, horizon=first), issued(6, horizon=5)])
        ledger.observations.append("pumps", rows_of([8, 9, 99, 99, 99, 99]))
        score_matured(ledger)
        learned_HQ = ledger.adjustments.read("pumps", "1")["pump-1"].stretch_HQ
        ledger.observations.append("pumps", rows_of([99], first=6 + 1))
        score_matured(ledger)
        state = ledger.adjustments.read("pumps", "1")["pump-1"]
        assert state.stretch_HQ.shape == (5, len(QUANTILES))
        assert (state.stretch_HQ[0] != learned_HQ[0]).any(), "the second forecast taught its first step"
        assert state.stretch_HQ[1:3] == pytest.approx(learned_HQ[1:3]), "and took nothing back"
        found.append(state)
        ledger.close()
    short, long = found
    assert short.stretch_HQ[:3] == pytest.approx(long.stretch_HQ[:3])
    assert short.cutoff_H[:3].tolist() == long.cutoff_H[:3].tolist()
    assert (short.stretch_HQ[3:] == 0).all()
    assert np.isnat(short.cutoff_H[3:]).all()
