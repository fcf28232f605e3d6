"""The world of the simulated year: what goes wrong in it does, and the audit would see what is lost."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks.audit import audit_job, last_word
from benchmarks.report import OURS, Report
from benchmarks.world import BROKEN, N_SENSORS, Deliveries, Plan, SimulatedClock, evening_of, simulate_plant
from forecasting.registry import DirectoryRegistry
from ledger.ledger import open_ledger

START = pd.Timestamp("2018-01-01")
PLAN = Plan(60)


@pytest.fixture(scope="module")
def plant() -> Deliveries:
    """Sixty days of the plant, and its history."""
    return simulate_plant(START, PLAN)


def test_rows_come_late_twice_and_revised(plant: Deliveries) -> None:
    live = plant.rows[plant.rows["day"] >= 0]
    arrived = live.groupby(["unique_id", "ds"])
    late = arrived["day"].min().reset_index()
    assert (late["day"] > (late["ds"] - START).dt.days).sum() > 5
    assert (arrived.size() > 1).sum() > 5
    assert (arrived["y"].nunique() > 1).sum() >= 2
    history = plant.of_day(-1)
    assert (history["ds"] < START).all()
    assert len(history) == 730 * N_SENSORS


def test_the_broken_sensor_stands_still_until_its_values_are_withdrawn(plant: Deliveries) -> None:
    stuck = START + pd.to_timedelta(list(PLAN.broken), unit="D")
    rows = plant.rows[(plant.rows["unique_id"] == BROKEN) & plant.rows["ds"].isin(stuck)]
    assert rows["y"].dropna().nunique() == 1
    assert last_word(plant.rows).loc[BROKEN].reindex(stuck).isna().all()


def test_after_the_change_a_week_is_another(plant: Deliveries) -> None:
    truth = last_word(plant.rows).unstack("unique_id").mean(axis=1)
    change = START + pd.Timedelta(days=PLAN.regime_change)

    def shape(values: pd.Series) -> np.ndarray:
        week = values.groupby(values.index.day_of_week).mean().to_numpy()
        return (week - week.mean()) / week.std()

    assert shape(truth[:change]) @ shape(truth[change:]) / 7 < 0.8


def test_an_observation_that_is_lost_is_seen(plant: Deliveries, tmp_path: Path) -> None:
    clock = SimulatedClock(evening_of(START, 0))
    ledger = open_ledger(f"sqlite:///{tmp_path}/ledger.db", clock)
    history = plant.of_day(-1)
    ledger.observations.append("plant", history.iloc[1:])
    report = Report()
    audit_job(report, ledger, DirectoryRegistry(tmp_path), "plant", Deliveries(history.assign(day=-1)))
    ledger.close()
    assert report.value("plant", OURS, "values the ledger should hold") == len(history)
    assert report.value("plant", OURS, "values lost or wrong") == 1


def test_the_clock_stands_between_two_looks() -> None:
    clock = SimulatedClock(datetime(2018, 1, 1, tzinfo=UTC))
    assert clock() < clock() < datetime(2018, 1, 1, tzinfo=UTC) + timedelta(seconds=1)
    clock.move(datetime(2017, 1, 1, tzinfo=UTC))
    assert clock().year == 2018
