"""Ledger: the one door to the database; each kind of record has a store of its own."""

from dataclasses import dataclass
from functools import cached_property

from sqlalchemy.engine import Engine

from ledger.adjustments import AdjustmentStore
from ledger.database import open_database
from ledger.decisions import DecisionStore
from ledger.forecasts import ForecastStore
from ledger.ingested import IngestedStore
from ledger.moments import Clock, utc_now
from ledger.observations import ObservationStore
from ledger.runs import RunStore
from ledger.scores import ScoreStore


@dataclass(frozen=True)
class Ledger:
    """An open ledger; safe to use from several threads."""

    engine: Engine
    clock: Clock = utc_now

    @cached_property
    def observations(self) -> ObservationStore:
        """What was observed, and when it became known."""
        return ObservationStore(self.engine, self.clock)

    @cached_property
    def ingested(self) -> IngestedStore:
        """Which files and rows of other databases were taken in."""
        return IngestedStore(self.engine, self.observations)

    @cached_property
    def forecasts(self) -> ForecastStore:
        """What was forecast."""
        return ForecastStore(self.engine)

    @cached_property
    def scores(self) -> ScoreStore:
        """How right the forecasts were."""
        return ScoreStore(self.engine, self.clock)

    @cached_property
    def adjustments(self) -> AdjustmentStore:
        """What is added to forecasts to keep their intervals honest."""
        return AdjustmentStore(self.engine, self.clock)

    @cached_property
    def runs(self) -> RunStore:
        """Every retraining, and the jobs they are of."""
        return RunStore(self.engine, self.clock)

    @cached_property
    def decisions(self) -> DecisionStore:
        """What was decided about versions, and why."""
        return DecisionStore(self.engine, self.clock)

    def close(self) -> None:
        """Close every connection."""
        self.engine.dispose()


def open_ledger(url: str, clock: Clock = utc_now) -> Ledger:
    """Open a ledger, made or brought up to date where it has to be.

    Args:
        url: `sqlite:///path` or `postgresql://...`.
        clock: tells the time; simulations bring their own.

    Raises:
        LedgerError: the URL names another kind of database, or one newer than this program.
        LedgerUnavailableError: the database does not answer.
    """
    return Ledger(open_database(url), clock)
