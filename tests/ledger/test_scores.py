"""Scores on both databases: what is due, what a revision changes, what the sums are worth after retirement."""

from datetime import timedelta

import numpy as np
import pytest

from forecasting.errors import InputError
from ledger.ledger import Ledger
from pipelines.score import score_matured
from tests.ledger.conftest import Ticking
from tests.ledger.issued import hour, issued, rows_of


def known(value: float | None) -> float:
    assert value is not None
    return value


def test_a_step_is_scored_when_its_actual_is_known(ledger: Ledger) -> None:
    ledger.observations.append("pumps", rows_of([8, 9]))
    ledger.forecasts.append([issued(1)])
    assert score_matured(ledger).scores == 0
    ledger.observations.append("pumps", rows_of([11], first=2))
    report = score_matured(ledger)
    assert (report.forecasts, report.scores) == (1, 2)
    (row,) = ledger.scores.of_forecast(1).to_dict("records")
    assert row["step"] == 1
    assert row["actual"] == 11
    assert row["error"] == pytest.approx(1.0)
    # The naive of a season of 2 repeats 8, then 9.
    assert row["naive_error"] == pytest.approx(3.0)
    assert row["pit"] == pytest.approx(0.75)
    ledger.observations.append("pumps", rows_of([9, np.nan], first=3))
    score_matured(ledger)
    assert list(ledger.scores.of_forecast(1)["step"]) == [1, 2]


def test_nothing_is_due_twice(ledger: Ledger) -> None:
    ledger.observations.append("pumps", rows_of([8, 9, 11, 12]))
    ledger.forecasts.append([issued(1)])
    assert score_matured(ledger).forecasts == 1
    assert score_matured(ledger).forecasts == 0
    # Another series, another time: none of the forecast's business.
    ledger.observations.append("pumps", rows_of([1], unique_id="pump-2", first=3))
    ledger.observations.append("pumps", rows_of([1], first=99))
    assert score_matured(ledger).forecasts == 0
    ledger.observations.append("pumps", rows_of([13], first=4))
    assert score_matured(ledger).forecasts == 1


def test_a_forecast_issued_before_its_dataset_is_known_is_scored_later(ledger: Ledger) -> None:
    ledger.forecasts.append([issued(1)])
    assert score_matured(ledger).forecasts == 1
    ledger.observations.append("pumps", rows_of([11], first=2))
    assert score_matured(ledger).scores == 2


def test_a_revision_changes_the_latest_score_and_never_the_first(ledger: Ledger) -> None:
    ledger.observations.append("pumps", rows_of([8, 9, 11]))
    ledger.forecasts.append([issued(1)])
    score_matured(ledger)
    ledger.observations.append("pumps", rows_of([15], first=2))
    score_matured(ledger)
    assert ledger.scores.of_forecast(1, "latest")["error"].tolist() == pytest.approx([5.0])
    assert ledger.scores.of_forecast(1, "first")["error"].tolist() == pytest.approx([1.0])
    ledger.observations.append("pumps", rows_of([np.nan], first=2))
    score_matured(ledger)
    assert ledger.scores.of_forecast(1, "latest").empty
    assert len(ledger.scores.of_forecast(1, "first")) == 1


def test_a_season_the_window_does_not_hold_comes_from_what_was_known_then(ledger: Ledger) -> None:
    ledger.observations.append("pumps", rows_of([1, 2, 3, 4]))
    then = ledger.clock()
    ledger.forecasts.append([issued(3, season_length=4, issued_at=then)])
    ledger.observations.append("pumps", rows_of([100, 200]))
    ledger.observations.append("pumps", rows_of([5, 5, 5], first=4))
    score_matured(ledger)
    assert ledger.scores.of_forecast(1)["naive_error"].tolist() == pytest.approx([4, 3, 2])


def test_returns_are_scored_on_their_own_scale(ledger: Ledger) -> None:
    ledger.observations.append("pumps", rows_of([10, 10, 11]))
    ledger.forecasts.append([issued(1, spread=0.0, transform="log_return")])
    score_matured(ledger)
    (row,) = ledger.scores.of_forecast(1).to_dict("records")
    assert row["error"] == pytest.approx(100 * np.log(1.1))
    assert row["crps"] == pytest.approx(100 * np.log(1.1))


def fill(ledger: Ledger, n: int = 40) -> None:
    """Issue forecasts of two versions at hourly cutoffs, with all that came after."""
    values = 10 + np.random.default_rng(0).uniform(-3, 3, size=n + 10)
    ledger.observations.append("pumps", rows_of(values.tolist()))
    forecasts = [issued(c, horizon=3) for c in range(1, n)]
    forecasts += [issued(c, centre=14.0, horizon=3, version="2", role="shadow") for c in range(1, n)]
    ledger.forecasts.append(forecasts)
    score_matured(ledger)


def test_the_summary_is_what_the_scores_come_to(ledger: Ledger) -> None:
    fill(ledger)
    champion, shadow = ledger.scores.summary()
    assert (champion["version"], champion["role"], champion["n"]) == ("1", "champion", 39 * 3)
    assert shadow["version"] == "2"
    assert known(champion["mae"]) < known(shadow["mae"])
    assert champion["skill"] == pytest.approx(1 - known(champion["mase"]))
    scores = [ledger.scores.of_forecast(i) for i in range(1, 40)]
    inside = np.mean([(s["pit"].between(0.1, 0.9)).mean() for s in scores])
    assert champion["coverage_80"] == pytest.approx(inside)
    assert champion["mae"] == pytest.approx(np.mean([s["error"].abs().mean() for s in scores]))
    steps = ledger.scores.summary(model="pumps", role="champion", by=("step",))
    assert [row["step"] for row in steps] == [1, 2, 3]
    assert [row["n"] for row in ledger.scores.summary(since=hour(30), by=())] == [2 * 10 * 3]
    assert ledger.scores.summary(model="fans", by=()) == []
    with pytest.raises(InputError, match="not by 'weather'"):
        ledger.scores.summary(by=("weather",))


def test_a_level_beyond_the_trained_quantiles_has_no_coverage(ledger: Ledger) -> None:
    ledger.observations.append("pumps", rows_of([8, 9, 11]))
    values_HQ = np.tile([9.0, 10.0, 11.0], (3, 1))
    ledger.forecasts.append([issued(1, quantiles=(0.1, 0.5, 0.9), values_HQ=values_HQ)])
    score_matured(ledger)
    (row,) = ledger.scores.summary()
    assert row["coverage_80"] == 1.0
    assert row["coverage_95"] is None
    by_cutoff = ledger.scores.by_cutoff("pumps", "1", level=(80, 95))
    assert by_cutoff["coverage_80"].tolist() == [1.0]
    assert by_cutoff["coverage_95"].isna().all()


def test_a_slower_scorer_takes_nothing_back_that_is_scored(ledger: Ledger) -> None:
    ledger.forecasts.append([issued(1)])
    ledger.observations.append("pumps", rows_of([8, 9]))
    ledger.scores.due()
    early = ledger.scores.seen()
    ledger.observations.append("pumps", rows_of([11], first=2))
    score_matured(ledger)
    ledger.scores.note(early)
    assert ledger.scores.due().tolist() == []


def test_sums_of_retired_forecasts_measure_no_level_that_one_of_them_did_not(
    ledger: Ledger, clock: Ticking
) -> None:
    ledger.observations.append("pumps", rows_of([8, 9, 11, 11, 11]))
    narrow = issued(1, quantiles=(0.1, 0.5, 0.9), values_HQ=np.tile([9.0, 10.0, 11.0], (3, 1)))
    for one in (narrow, issued(1, forecast_id="wide")):
        ledger.forecasts.append([one])
        score_matured(ledger)
        clock.now += timedelta(days=90)
        assert ledger.scores.retain(30) == 1
    (row,) = ledger.scores.summary()
    assert row["coverage_80"] is not None
    assert row["coverage_95"] is None


def test_pairs_have_both_versions_at_the_same_cutoffs_all_matured(ledger: Ledger) -> None:
    ledger.observations.append("pumps", rows_of([8, 9, 11, 11, 11]))
    again = {"forecast_id": "again", "issued_at": ledger.clock() + timedelta(days=1)}
    ledger.forecasts.append(
        [
            *(issued(0), issued(1), issued(1, centre=50.0, **again), issued(2)),
            *(issued(1, centre=12.0, version="2"), issued(2, version="2")),
        ]
    )
    score_matured(ledger)
    pairs = ledger.scores.paired_losses("pumps", "1", "2", "mae")
    # At hour 0 there is no second version, at hour 2 not every step has matured.
    assert pairs.to_dict("records") == [
        {"unique_id": "pump-1", "cutoff": hour(1), "one": pytest.approx(1.0), "other": pytest.approx(1.0)}
    ]
    scaled = ledger.scores.paired_losses("pumps", "1", "2", "mase")
    assert scaled["one"].tolist() == pytest.approx([1.0 / np.mean([3, 2, 3])])
    assert len(ledger.scores.paired_losses("pumps", "1", "2", "crps")) == 1
    assert ledger.scores.paired_losses("pumps", "1", "9").empty


def test_retired_forecasts_leave_their_sums(ledger: Ledger, clock: Ticking) -> None:
    fill(ledger)
    before = {against: ledger.scores.summary(against=against) for against in ("latest", "first")}
    by_step = ledger.scores.summary(by=("unique_id", "step"))
    clock.now += timedelta(hours=21)
    # Those issued before are gone, in two rounds.
    assert ledger.scores.retain(days=0.5) > 10
    assert ledger.scores.retain(days=0.2) > 10
    assert 0 < len(ledger.forecasts.select()) < 60
    for against, rows in before.items():
        for row, after in zip(rows, ledger.scores.summary(against=against), strict=True):
            assert after == pytest.approx(row)
    assert ledger.scores.summary(by=("unique_id", "step")) == [pytest.approx(row) for row in by_step]
    assert ledger.scores.retain(days=0.2) == 0
    ledger.observations.append("pumps", rows_of([99.0], first=2))
    score_matured(ledger)
    assert ledger.scores.summary() == [pytest.approx(row) for row in before["latest"]]


def test_what_the_seasonal_naive_stood_in_for_is_kept_and_counts_for_no_version(
    ledger: Ledger, clock: Ticking
) -> None:
    """Two versions, each with one forecast of its own and one that the seasonal naive made in its place."""
    for version in ("1", "2"):
        own = issued(1, centre=10, version=version)
        ledger.forecasts.append([own, issued(2, centre=500, version=version, status="fallback")])
    ledger.observations.append("pumps", rows_of([8, 9, 10, 10, 10, 10, 10]))
    assert score_matured(ledger).forecasts == 4
    assert len(ledger.scores.of_forecast(2)) == 3, "it is scored, and can be looked up"

    def figures() -> list[tuple[int, float | None]]:
        return [(row["n"], row["mae"]) for row in ledger.scores.summary()]

    assert figures() == [(3, 0.0), (3, 0.0)]
    assert ledger.scores.by_cutoff("pumps", "1")["n"].tolist() == [3]
    assert len(ledger.scores.paired_losses("pumps", "1", "2")) == 1
    clock.now += timedelta(days=400)
    assert ledger.scores.retain(days=30) == 4
    assert figures() == [(3, 0.0), (3, 0.0)], "nor does it enter the sums that stay"


def test_scores_of_a_forecast_retired_meanwhile_are_not_kept(ledger: Ledger, clock: Ticking) -> None:
    fill(ledger, n=5)
    one = ledger.forecasts.numbered([1])
    clock.now += timedelta(days=9)
    ledger.scores.retain(days=1)
    from pipelines.score import score_batch

    rows = score_batch(ledger, one, ledger.scores.actuals(one))
    assert len(rows.step_R) == 6
    assert ledger.scores.keep([1], rows) == 0


def test_cutoffs_are_summed_in_time_order(ledger: Ledger) -> None:
    fill(ledger)
    frame = ledger.scores.by_cutoff("pumps", "1", level=(80,))
    assert list(frame["cutoff"]) == [hour(c) for c in range(1, 40)]
    assert frame["ends"].iloc[0] == hour(4)
    assert frame["mae"].mean() == pytest.approx(known(ledger.scores.summary(version="1")[0]["mae"]))
    assert frame["coverage_80"].between(0, 1).all()
    assert ledger.scores.by_cutoff("pumps", "9").empty
