"""When the network cannot or should not answer: why, and what the seasonal naive says in its place.

T history, L input_size, H horizon, Q quantiles.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from forecasting.calendar import Calendar, timestamps_after
from forecasting.errors import InputError
from forecasting.fallback import FEWEST_DIFFERENCES, NaiveForecast, forecast_naive
from forecasting.spec import ForecasterSpec
from forecasting.stillness import SEASONS
from service.covariates import Slots
from service.model_slot import LoadedModel
from service.schemas import SeriesHistory

FloatArray = NDArray[np.float64]

Cause = Literal[
    "short_history", "stuck", "stale", "model_missing", "unknown_series", "covariates", "values", "not_finite"
]
"""Why a forecast is not ok, in one word: a label of the metrics."""

LONGEST_GAP = 4096
"""Most steps without a value over which a season is continued; four seasons where that is more."""

SHORTEST_RUN = 12
"""Fewest equal values for which a sensor counts as stuck."""

UNUSUAL = 5
"""A sensor counts as stuck when it is still for more than so many times as long as ever before."""

FEWEST_MOVES = 4
"""Fewest changes of a value before it stood still: a series that hardly ever moves is not stuck."""


@dataclass(frozen=True, eq=False)
class Sent:
    """One series as it was sent: the values, and the step of the window each belongs to."""

    history: SeriesHistory
    y_T: FloatArray
    slots: Slots
    input_size: int

    @property
    def points(self) -> int:
        """Return the steps from the first one sent to the last observed value."""
        first = self.slots.start if isinstance(self.slots, range) else int(self.slots.min())
        return self.input_size - first

    @property
    def gap(self) -> int:
        """Return the steps that were sent after the last observed value, all of them missing.

        Where future columns come with them they are not late, but ahead.
        """
        if self.history.future:
            return 0
        last = self.slots.stop - 1 if isinstance(self.slots, range) else int(self.slots.max())
        return last - (self.input_size - 1)

    def end(self, most: int) -> FloatArray:
        """Return the values up to the last observed one, a step each, at most so many."""
        length = min(most, self.points)
        if isinstance(self.slots, range):
            return self.y_T[self.points - length : self.points]
        step_T = self.slots - (self.input_size - length)
        inside_T = (step_T >= 0) & (step_T < length) & ~np.isnan(self.y_T)
        end = np.full(length, np.nan)
        end[step_T[inside_T]] = self.y_T[inside_T]
        return end


@dataclass(frozen=True)
class Weakness:
    """Why a network should not answer for a series, or cannot."""

    cause: Cause
    reason: str
    run: int = 0
    """Values at the end that are not to be believed: all but the first of a run that is stuck."""
    gap: int = 0
    """Steps between the last observed value and the first one to forecast."""

    @property
    def is_fatal(self) -> bool:
        """Return whether there is no network, or not enough for it."""
        return self.cause in ("short_history", "model_missing")


@dataclass(frozen=True, eq=False)
class StandIn:
    """What is answered in a network's place."""

    values_HQ: FloatArray
    """Quantiles over the whole horizon."""
    has_interval: bool
    history_T: FloatArray
    """What they were computed from: values not believed are missing, and so are the steps of a gap."""
    gap: int


def find_weakness(
    sent: Sent, y_L: FloatArray, model: LoadedModel, gap: int, stuck_share: float
) -> Weakness | None:
    """Return why the network cannot or should not answer; the gravest reason, or None.

    Args:
        sent: the series.
        y_L: its window, NaN where missing; padded in front where it is short.
        model: who would answer.
        gap: steps without a value since the last observed one, where they are more than the horizon.
        stuck_share: the part of the window that a run must fill to be called stuck; 0 calls none so.
    """
    spec, name = model.spec, f"series {sent.history.unique_id!r}"
    if gap > _longest_gap(spec):
        gap = 0
    if model.missing is not None:
        return Weakness("model_missing", f"model {model.name!r} cannot answer: {model.missing}", gap=gap)
    if sent.points < spec.input_size:
        short = f"{name} has {sent.points} points; this model needs {spec.input_size} (input_size)"
        return Weakness("short_history", short, gap=gap)
    run = _find_stuck_run(sent, y_L, spec, stuck_share)
    if run:
        return Weakness("stuck", f"{name} has stood still for its last {run} values", run=run - 1, gap=gap)
    if gap:
        old = f"{name} has no value in the last {gap} steps, and the horizon is {spec.horizon} steps"
        return Weakness("stale", old, gap=gap)
    return None


def stand_in(sent: Sent, spec: ForecasterSpec, weakness: Weakness) -> tuple[StandIn, str]:
    """Return what the seasonal naive says, and the reason as it is told.

    Raises:
        InputError: the series holds no value it could go by.
    """
    history_T = sent.end(max(spec.input_size, SEASONS * spec.season_length)).copy()
    if weakness.run:
        history_T[np.flatnonzero(~np.isnan(history_T))[-weakness.run :]] = np.nan
    history_T = np.append(history_T, np.full(weakness.gap, np.nan))
    said = forecast_naive(history_T, spec.season_length, spec.horizon, spec.quantiles, spec.transform)
    found = StandIn(said.values_HQ, said.has_interval, history_T, weakness.gap)
    return found, "; ".join([f"{weakness.reason}: {_describe(said, spec, weakness)}", *_describe_doubt(said)])


def _describe(said: NaiveForecast, spec: ForecasterSpec, weakness: Weakness) -> str:
    over = ", continued over the gap" if weakness.gap else ""
    if said.season > 1:
        return f"answered by the seasonal naive of {said.season} steps{over}"
    why = f", for it holds no season of {spec.season_length} steps" if spec.season_length > 1 else ""
    return f"answered by its last value{over}{why}"


def _describe_doubt(said: NaiveForecast) -> Iterator[str]:
    if not said.has_interval:
        yield f"without intervals, which take {FEWEST_DIFFERENCES} differences between seasons"


def _find_stuck_run(sent: Sent, y_L: FloatArray, spec: ForecasterSpec, share: float) -> int:
    """Return how many values at the end are the same although the series otherwise moves, else 0."""
    if share == 0 or (y_L[-1] != y_L[-2:][0] and not np.isnan(y_L[-2:][0])):
        return 0  # nearly every series ends here
    y_T = sent.end(max(spec.input_size, SEASONS * spec.season_length))
    observed_T = y_T[~np.isnan(y_T)]
    if observed_T[-1] == 0 and (observed_T >= 0).all():
        return 0  # nothing was sold, no rain fell: at its floor a series may rest
    starts = np.flatnonzero(np.append(True, observed_T[1:] != observed_T[:-1]))
    runs = np.diff(np.append(starts, len(observed_T)))
    run, before = int(runs[-1]), runs[:-1]
    return run if run >= shortest_run(spec, share) and is_unusual(run, len(before), max(before, default=0)) else 0


def shortest_run(spec: ForecasterSpec, share: float) -> int:
    """Return the fewest equal values at its end for which a series may be called stuck."""
    return max(SHORTEST_RUN, math.ceil(share * spec.input_size), spec.season_length + 1)


def is_unusual(run: int, runs: int, longest: int) -> bool:
    """Return whether a series stands still for longer than it is wont to, and moved before.

    Args:
        run: equal values at its end.
        runs: runs of equal values before them.
        longest: values of the longest of those.
    """
    return runs >= FEWEST_MOVES and run > UNUSUAL * longest


def _longest_gap(spec: ForecasterSpec) -> int:
    return max(LONGEST_GAP, 4 * spec.season_length)


def count_steps_over(calendar: Calendar, cutoff: pd.Timestamp, moment: datetime, spec: ForecasterSpec) -> int:
    """Return how many steps after a cutoff were over at a moment; 0 as long as one of the horizon is not.

    More than a season is continued over are not counted.
    """
    now = pd.Timestamp(moment.astimezone(UTC).replace(tzinfo=None))
    try:
        ahead = timestamps_after(calendar, cutoff, spec.horizon + 1)
        if len(ahead) <= spec.horizon or ahead[-1] > now:
            return 0
        return int(timestamps_after(calendar, cutoff, _longest_gap(spec) + 2).searchsorted(now, side="right")) - 1
    except (InputError, OverflowError, ValueError):
        return 0
