"""A small world for the simulated year: what happens each day, and when anybody gets to know of it.

S sensors, D days.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from training.sources.base import SourceContext
from training.sources.samples import SampleSource

FloatArray = NDArray[np.float64]

HISTORY_DAYS = 730
N_SENSORS = 8
BROKEN = "sensor-3"

LATE_SHARE, TWICE_SHARE, REVISED_SHARE = 0.05, 0.02, 0.01


@dataclass(frozen=True)
class Plan:
    """On which day of the year what goes wrong; day 0 is the first."""

    days: int

    def at(self, share: float) -> int:
        """Return the day at a share of the year."""
        return round(share * self.days)

    @property
    def regime_change(self) -> int:
        """The day from which the plant runs on another rhythm."""
        return self.at(0.50)

    @property
    def broken(self) -> range:
        """The days on which one sensor is stuck, before somebody withdraws its values."""
        return range(self.at(0.35), self.at(0.35) + max(4, self.at(0.05)))

    @property
    def outage(self) -> range:
        """The days on which the ledger's database is away."""
        return range(self.at(0.25), self.at(0.25) + 3)

    @property
    def bad_deployment(self) -> int:
        """The day on which a person promotes a model that is broken."""
        return self.at(0.10)


class SimulatedClock:
    """Time as the simulation has it: it stands until it is moved, but for a microsecond a look."""

    def __init__(self, now: datetime) -> None:
        self.now = now

    def __call__(self) -> datetime:
        """Return a moment later than any before."""
        self.now += timedelta(microseconds=1)
        return self.now

    def move(self, moment: datetime) -> None:
        """Go on to a moment."""
        self.now = max(self.now, moment)


@dataclass(frozen=True)
class Deliveries:
    """Rows in the order they arrive: `unique_id`, `ds`, `y` and the day of arrival."""

    rows: pd.DataFrame

    def of_day(self, day: int) -> pd.DataFrame:
        """Return what arrives on a day; the history arrives on day -1."""
        rows = self.rows[self.rows["day"] == day]
        return rows.drop(columns="day").reset_index(drop=True)


def simulate_plant(start: pd.Timestamp, plan: Plan, seed: int = 1) -> Deliveries:
    """Return a plant whose rhythm changes, one of whose sensors breaks, and whose gateway dawdles."""
    rng = np.random.default_rng(seed)
    n_days = HISTORY_DAYS + plan.days
    ds = pd.date_range(start - pd.Timedelta(days=HISTORY_DAYS), periods=n_days, freq="D")
    day_D = np.arange(n_days) - HISTORY_DAYS
    y_SD = _readings(rng, ds, day_D >= plan.regime_change)
    stuck = np.isin(day_D, list(plan.broken))
    y_SD[3, stuck] = y_SD[3, int(np.flatnonzero(stuck)[0]) - 1]
    names = [f"sensor-{s}" for s in range(N_SENSORS)]
    rows = pd.DataFrame(
        {
            "unique_id": np.repeat(names, n_days),
            "ds": np.tile(ds.to_numpy(), N_SENSORS),
            "y": y_SD.ravel(),
            "day": np.tile(np.maximum(day_D, -1), N_SENSORS),
        }
    )
    live = (rows["day"] >= 0).to_numpy()
    late = live & (rng.random(len(rows)) < LATE_SHARE)
    rows.loc[late, "day"] += rng.integers(1, 4, int(late.sum()))
    again = rows[live & (rng.random(len(rows)) < TWICE_SHARE)]
    revised = rows[live & ~late & (rng.random(len(rows)) < REVISED_SHARE)]
    revised = revised.assign(day=revised["day"] + 5, y=revised["y"] + 0.1)
    withdrawn = rows[(rows["unique_id"] == BROKEN) & rows["ds"].isin(ds[stuck])]
    withdrawn = withdrawn.assign(day=plan.broken.stop + 4, y=np.nan)
    revised = revised[~revised["ds"].isin(ds[stuck]) | (revised["unique_id"] != BROKEN)]
    return Deliveries(pd.concat([rows, again, revised, withdrawn], ignore_index=True))


def _readings(rng: np.random.Generator, ds: pd.DatetimeIndex, changed_D: NDArray[np.bool_]) -> FloatArray:
    """Return `(S, D)` values: a weekly rhythm and a slow weather that all share, each in its own measure."""
    n_days = len(ds)
    phase_D = 2 * np.pi * np.asarray(ds.day_of_week) / 7
    rhythm_D = np.where(changed_D, 1.8 * np.cos(2 * phase_D), np.sin(phase_D) + 0.5 * np.cos(2 * phase_D))
    weather_D = np.zeros(n_days)
    shock_D = rng.normal(size=n_days) * np.where(changed_D, 0.6, 0.3)
    for d in range(1, n_days):
        weather_D[d] = (0.6 if changed_D[d] else 0.9) * weather_D[d - 1] + shock_D[d]
    gain_S1 = rng.uniform(0.7, 1.5, (N_SENSORS, 1))
    own_SD = 0.25 * rng.normal(size=(N_SENSORS, n_days))
    level_S1 = rng.uniform(15, 25, (N_SENSORS, 1)) + 2.0 * changed_D
    return level_S1 + gain_S1 * (2 * rhythm_D + weather_D) + own_SD


def replay_stock(start: pd.Timestamp, plan: Plan) -> Deliveries:
    """Return the S&P 500 up to the end of the year, a session's close arriving on its day."""
    frame = SampleSource(kind="sample", dataset="sp500").load(SourceContext(Path(), Path()))
    rows = frame[["unique_id", "ds"]].assign(y=frame["Close"])
    day = (rows["ds"] - start).dt.days
    rows = rows.assign(day=np.maximum(day, -1))[(day < plan.days) & (day >= -6 * 365)]
    return Deliveries(rows.reset_index(drop=True))


def evening_of(start: pd.Timestamp, day: int) -> datetime:
    """Return the moment of a day at which everything is done that is done daily."""
    return (start + pd.Timedelta(days=day, hours=23)).to_pydatetime().replace(tzinfo=UTC)
