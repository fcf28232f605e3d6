"""Streams: one value in, a forecast out, at a cost that does not grow with the history.

Every stream has one row of a dense array: its latest observations (a ring, which holds what a window sees and
what a late value is replayed on), the state of an every-step network after the newest step, and that state at
two earlier steps. Many streams advance in one forward pass. A network without a state forecasts from the ring.

Steps are numbered by `Calendar.ordinals`; the state is kept at multiples of `rewind`, so that a late value never
replays more than twice as many steps, whatever way the observations arrived in.

B streams, L input_size, H horizon, Q quantiles, R observations kept of a stream, K rewind, T = L + H,
P past columns, F future columns, S statics, W numbers in a state.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from forecasting.calendar import OFF_GRID, Calendar
from forecasting.covariates import Covariates, encode_static, future_columns
from forecasting.forecaster import Forecaster
from forecasting.networks.base import CovariateTensors
from forecasting.recurrence import Recurrence, recurrence_of
from forecasting.scaling import RunningState
from forecasting.spec import ForecasterSpec
from forecasting.stillness import REMEMBERED, SEASONS, Standstill, may_stand_still, measure, remember
from forecasting.transforms import apply_transform

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]
RowArray = NDArray[np.void]

NOTHING = np.iinfo(np.int64).min
"""The newest step of a stream that has none."""
SEEN = RunningState._fields.index("seen_B")
NOT_TOLD = -1
"""The code of a static nobody told."""
BATCH = 4096
"""Streams advanced in one pass: a step leaves little behind, but what a pass takes with it has to be bounded."""


class Outcome(IntEnum):
    """What became of one observation."""

    NEW = 0
    KNOWN = 1
    """It was known already, and changed nothing."""
    REVISED = 2
    """It was late, or differs from the one known: the steps since were replayed."""
    RESTARTED = 3
    """It came after a gap that is too long to be bridged: the stream begins with it."""
    TOO_LATE = 4
    OFF_GRID = 5

    @property
    def is_refused(self) -> bool:
        return self >= Outcome.TOO_LATE


@dataclass(frozen=True)
class Layout:
    """What the row of a stream consists of; it can be told as JSON, and a row be read by it."""

    freq: str
    length: int
    """Observations kept, R."""
    rewind: int
    horizon: int
    width: int
    """Numbers in the state of an every-step network; 0 without one."""
    past: tuple[str, ...] = ()
    future: tuple[str, ...] = ()
    static: tuple[str, ...] = ()
    remembers: bool = False
    """Whether it holds how values moved that left the ring; rows of earlier releases do not."""

    @property
    def dtype(self) -> np.dtype[np.void]:
        """The type of a row."""
        mark = [("at", "<i8"), ("level", "<f8"), *([("state", "<f4", (self.width,))] if self.width else [])]
        fields: list[Any] = [
            ("newest", "<i8"),
            ("first", "<i8"),
            ("phase", "<i8"),
            ("ds", "<i8"),
            ("lost", "<i8"),
            ("group", "<i8"),
            ("y", "<f8", (self.length,)),
            *[(name, mark) for name in ("now", "mid", "old")],
        ]
        if self.past:
            fields.append(("past", "<f4", (self.length, len(self.past))))
        if self.future:
            fields.append(("future", "<f4", (self.length + self.horizon, len(self.future))))
        if self.static:
            fields.append(("static", "<i4", (len(self.static),)))
        if self.remembers:
            fields.append(("still", REMEMBERED))
        return np.dtype(fields, align=True)


def layout_of(spec: ForecasterSpec, rewind: int, width: int) -> Layout:
    """Return how streams of a forecaster are laid out."""
    known = spec.covariates
    length = max(spec.input_size, 3 * rewind)
    statics = tuple(static.name for static in known.static)
    return Layout(
        spec.freq, length, rewind, spec.horizon, width, known.past, known.future, statics, remembers=True
    )


@dataclass(frozen=True)
class Observed:
    """One observation of each of B streams, in columns; NaN and NOT_TOLD where nothing is told."""

    slot_B: IntArray
    """Rows, each there once."""
    ds_B: IntArray
    """Microseconds since 1970."""
    y_B: FloatArray
    past_BP: FloatArray | None = None
    future_BTF: FloatArray | None = None
    """At the step itself and over the horizon: T is 1 + H."""
    static_BS: IntArray | None = None

    def rows(self, chosen: IntArray | BoolArray) -> "Observed":
        """Return some of the observations."""
        return Observed(
            self.slot_B[chosen],
            self.ds_B[chosen],
            self.y_B[chosen],
            None if self.past_BP is None else self.past_BP[chosen],
            None if self.future_BTF is None else self.future_BTF[chosen],
            None if self.static_BS is None else self.static_BS[chosen],
        )


Pass = Literal["advance", "forecast"]
NotePass = Callable[[Pass, int], None]
"""Told the kind of every forward pass, and how many streams shared it."""


def _note_nothing(kind: Pass, n: int) -> None:
    """Take no note of a pass."""


class Streams:
    """The streams of one forecaster; the caller says which row is whose.

    Args:
        forecaster: what forecasts.
        rewind: steps a late value may lie before the newest one.
        gap: most steps without an observation that are bridged.
        capacity: rows to begin with.
        note_pass: told of every forward pass.
    """

    def __init__(
        self,
        forecaster: Forecaster,
        *,
        rewind: int = 64,
        gap: int = 256,
        capacity: int = 64,
        note_pass: NotePass = _note_nothing,
    ) -> None:
        self.forecaster = forecaster
        self.gap = gap
        self._note_pass = note_pass
        self._span = max(forecaster.spec.input_size, SEASONS * forecaster.spec.season_length)
        self._recurrence = recurrence_of(forecaster)
        width = 0 if self._recurrence is None else self._recurrence.width
        self.layout = layout_of(forecaster.spec, rewind, width)
        self.rows: RowArray = np.zeros(capacity, dtype=self.layout.dtype)
        self.clear(np.arange(capacity))

    @property
    def has_state(self) -> bool:
        """Return whether an every-step network carries a state, or windows are forecast."""
        return self._recurrence is not None

    @property
    def _network(self) -> Recurrence:
        if self._recurrence is None:
            raise TypeError(f"a {self.forecaster.spec.network.kind} network has no state to advance")
        return self._recurrence

    @property
    def bytes_each(self) -> int:
        """Bytes of one stream in memory."""
        return self.rows.itemsize

    def resize(self, capacity: int) -> None:
        """Have another number of rows; those that stay keep their place."""
        kept = min(capacity, len(self.rows))
        rows = np.zeros(capacity, dtype=self.layout.dtype)
        rows[:kept] = self.rows[:kept]
        self.rows = rows
        self.clear(np.arange(kept, capacity))

    def clear(self, slot_B: IntArray) -> None:
        """Forget streams."""
        self.rows[slot_B] = np.zeros((), dtype=self.layout.dtype)
        self.rows["newest"][slot_B] = NOTHING
        self.rows["group"][slot_B] = NOTHING

    # Observing

    def observe(self, observed: Observed) -> NDArray[np.int8]:
        """Take observations in and return what became of each, an `Outcome`.

        What is refused changes nothing. States follow with `settle`, or when a forecast is asked for.
        """
        ordinal_B, phase_B = self._locate(observed.ds_B)
        outcome_B = self._judge(observed, ordinal_B, phase_B)
        starts_B = (outcome_B == Outcome.RESTARTED) | (
            (outcome_B == Outcome.NEW) & (self.rows["newest"][observed.slot_B] == NOTHING)
        )
        if starts_B.any():
            self._start(observed.slot_B[starts_B], ordinal_B[starts_B], phase_B[starts_B])
        ahead_B = (outcome_B == Outcome.NEW) | (outcome_B == Outcome.RESTARTED)
        if ahead_B.any():
            self._extend(observed.slot_B[ahead_B], ordinal_B[ahead_B], observed.ds_B[ahead_B])
        revised_B = outcome_B == Outcome.REVISED
        if revised_B.any():
            self._go_back(observed.slot_B[revised_B], ordinal_B[revised_B])
        written_B = ahead_B | revised_B | (outcome_B == Outcome.KNOWN)
        self._write(observed.rows(written_B), ordinal_B[written_B])
        return outcome_B

    def _locate(self, ds_B: IntArray) -> tuple[IntArray, IntArray]:
        """Return the number of each timestamp's step and the grid it lies on."""
        unique, inverse_B = np.unique(ds_B, return_inverse=True)
        stamps = pd.DatetimeIndex(unique.view("datetime64[us]"))
        ordinals, phases = self._calendar.ordinals(stamps), self._calendar.phases(stamps)
        return np.where(phases == OFF_GRID, OFF_GRID, ordinals)[inverse_B], phases[inverse_B]

    def _judge(self, observed: Observed, ordinal_B: IntArray, phase_B: IntArray) -> NDArray[np.int8]:
        rows, slot_B = self.rows, observed.slot_B
        newest_B = rows["newest"][slot_B]
        begun_B = newest_B != NOTHING
        ahead_B = ordinal_B - np.where(begun_B, newest_B, ordinal_B - 1)
        restarts_B = ahead_B > self.gap + 1
        on_grid_B = (ordinal_B != OFF_GRID) & (~begun_B | restarts_B | (phase_B == rows["phase"][slot_B]))
        known_B = np.zeros(len(slot_B), dtype=bool)
        past_B = on_grid_B & (ahead_B <= 0)
        known_B[past_B] = self._is_known(observed.rows(past_B), ordinal_B[past_B])
        return np.select(
            [~on_grid_B, restarts_B, ahead_B > 0, known_B, ahead_B > -self.layout.rewind],
            [Outcome.OFF_GRID, Outcome.RESTARTED, Outcome.NEW, Outcome.KNOWN, Outcome.REVISED],
            Outcome.TOO_LATE,
        ).astype(np.int8)

    def _is_known(self, observed: Observed, ordinal_B: IntArray) -> BoolArray:
        """Return whether the very same was observed before."""
        rows, slot_B = self.rows, observed.slot_B
        kept_B = ordinal_B > rows["newest"][slot_B] - self.layout.length
        at_B = ordinal_B % self.layout.length
        same_B = kept_B & (ordinal_B >= rows["first"][slot_B])
        same_B &= _equal(rows["y"][slot_B, at_B], observed.y_B)
        if observed.past_BP is not None and self.layout.past:
            told_BP = observed.past_BP.astype(np.float32)
            same_B &= (np.isnan(told_BP) | _equal(rows["past"][slot_B, at_B], told_BP)).all(axis=1)
        if observed.future_BTF is not None and self.layout.future:
            told_BF = observed.future_BTF[:, 0].astype(np.float32)
            kept_BF = rows["future"][slot_B, ordinal_B % self._n_future]
            same_B &= (np.isnan(told_BF) | _equal(kept_BF, told_BF)).all(axis=1)
        return same_B

    def _start(self, slot_B: IntArray, ordinal_B: IntArray, phase_B: IntArray) -> None:
        rows = self.rows
        group_B = rows["group"][slot_B]
        self.clear(slot_B)
        for name in ("y", "past", "future"):
            if name in self.layout.dtype.names:  # type: ignore[operator]  # a record has names
                rows[name][slot_B] = np.nan
        if self.layout.static:
            rows["static"][slot_B] = NOT_TOLD
        rows["group"][slot_B], rows["phase"][slot_B] = group_B, phase_B
        rows["newest"][slot_B] = ordinal_B - 1
        self._begin_at(slot_B, ordinal_B)

    def _begin_at(self, slot_B: IntArray, ordinal_B: IntArray) -> None:
        """Let streams begin with a step: nothing was seen before it."""
        self.rows["first"][slot_B] = ordinal_B
        self.rows["lost"][slot_B] = NOTHING
        for name in ("now", "mid", "old"):
            mark = np.zeros(len(slot_B), dtype=self.layout.dtype[name])
            mark["at"] = ordinal_B - 1
            self.rows[name][slot_B] = mark

    def _extend(self, slot_B: IntArray, ordinal_B: IntArray, ds_B: IntArray) -> None:
        """Lengthen streams to a step, `rewind` steps at a time, or the ring would lose what no state has seen."""
        rows, rewind = self.rows, self.layout.rewind
        while len(slot_B):
            step_B = np.minimum(ordinal_B - rows["newest"][slot_B], rewind)
            pending_B = rows["newest"][slot_B] - rows["now"]["at"][slot_B]
            crowded_B = pending_B + step_B > rewind
            if crowded_B.any():
                self.settle(slot_B[crowded_B])
            self._empty_steps(slot_B, step_B)
            rows["newest"][slot_B] += step_B
            left_B = ordinal_B - rows["newest"][slot_B]
            rows["ds"][slot_B] = self._stamps_before(ds_B, left_B)
            slot_B, ordinal_B, ds_B = slot_B[left_B > 0], ordinal_B[left_B > 0], ds_B[left_B > 0]

    def _empty_steps(self, slot_B: IntArray, step_B: IntArray) -> None:
        """Empty the places of the steps that come next."""
        rows, newest_B = self.rows, self.rows["newest"][slot_B]
        for j in range(1, int(step_B.max()) + 1):
            longer_B = step_B >= j
            slots, at_B = slot_B[longer_B], newest_B[longer_B] + j
            self._remember(slots, rows["y"][slots, at_B % self.layout.length])
            rows["y"][slots, at_B % self.layout.length] = np.nan
            if self.layout.past:
                rows["past"][slots, at_B % self.layout.length] = np.nan
            if self.layout.future:
                rows["future"][slots, (at_B + self.layout.horizon) % self._n_future] = np.nan

    def _remember(self, slot_B: IntArray, leaving_B: FloatArray) -> None:
        """Keep how values moved that leave their rings: a stream that stands still for longer is told by it."""
        if not np.isnan(leaving_B).all():
            kept_B = self.rows["still"][slot_B]
            remember(kept_B, leaving_B, self._span)
            self.rows["still"][slot_B] = kept_B

    def _go_back(self, slot_B: IntArray, ordinal_B: IntArray) -> None:
        """Go back to a state that had not seen a step."""
        rows = self.rows
        before_B = ordinal_B < rows["first"][slot_B]
        if before_B.any():
            self._begin_at(slot_B[before_B], ordinal_B[before_B])
        rows["lost"][slot_B] = NOTHING
        from_old_B = rows["mid"]["at"][slot_B] >= ordinal_B
        old = slot_B[from_old_B]
        rows["mid"][old] = rows["old"][old]
        back = slot_B[rows["now"]["at"][slot_B] >= ordinal_B]
        rows["now"][back] = rows["mid"][back]

    def _write(self, observed: Observed, ordinal_B: IntArray) -> None:
        rows, slot_B, at_B = self.rows, observed.slot_B, ordinal_B % self.layout.length
        rows["y"][slot_B, at_B] = observed.y_B
        if observed.past_BP is not None and self.layout.past:
            rows["past"][slot_B, at_B] = _told(observed.past_BP, rows["past"][slot_B, at_B])
        if observed.future_BTF is not None and self.layout.future:
            self._write_future(slot_B, ordinal_B, observed.future_BTF)
        if observed.static_BS is not None and self.layout.static:
            told_BS = observed.static_BS
            rows["static"][slot_B] = np.where(told_BS == NOT_TOLD, rows["static"][slot_B], told_BS)

    def _write_future(self, slot_B: IntArray, ordinal_B: IntArray, future_BTF: FloatArray) -> None:
        """Keep what is told of a step and of those ahead; a late observation tells of its own step alone."""
        late_B = ordinal_B < self.rows["newest"][slot_B]
        future_BTF = np.where(
            late_B[:, None, None] & (np.arange(future_BTF.shape[1]) > 0)[:, None], np.nan, future_BTF
        )
        at_BT = (ordinal_B[:, None] + np.arange(future_BTF.shape[1])) % self._n_future
        kept_BTF = self.rows["future"][slot_B[:, None], at_BT]
        self.rows["future"][slot_B[:, None], at_BT] = _told(future_BTF, kept_BTF)

    # States

    def settle(self, slot_B: IntArray) -> None:
        """Advance the states of streams to their newest step."""
        if self._recurrence is None:
            self.rows["now"]["at"][slot_B] = self.rows["newest"][slot_B]
            return
        rewind = self.layout.rewind
        while True:
            at_B, newest_B = self.rows["now"]["at"][slot_B], self.rows["newest"][slot_B]
            behind_B = newest_B > at_B
            if not behind_B.any():
                return
            slot_B, at_B, newest_B = slot_B[behind_B], at_B[behind_B], newest_B[behind_B]
            count_B = np.minimum(newest_B, at_B - at_B % rewind + rewind) - at_B
            for count in np.unique(count_B):
                for slots in _batches(slot_B[count_B == count]):
                    self._advance(slots, int(count))

    def _advance(self, slot_B: IntArray, n: int) -> None:
        """Advance states n steps; a value that cannot be worked with is taken as missing."""
        at_B = self.rows["now"]["at"][slot_B]
        x_BN = apply_transform(self._values(slot_B, at_B + n, n), self.forecaster.spec.transform)
        finite_B = self._try_advance(slot_B, at_B, x_BN)
        bad = slot_B[~finite_B]
        if len(bad) and n > 1:
            for _ in range(n):
                self._advance(bad, 1)
        elif len(bad):
            self._try_advance(bad, at_B[~finite_B], np.full((len(bad), 1), np.nan))
            self.rows["lost"][bad] = at_B[~finite_B] + 1

    def _try_advance(self, slot_B: IntArray, at_B: IntArray, x_BN: FloatArray) -> BoolArray:
        """Advance states, and return which of them are finite: those are kept."""
        n, now = x_BN.shape[1], self.rows["now"]
        told = self._covariates(slot_B, at_B + n, n, 0)
        self._note_pass("advance", len(slot_B))
        state_BW, level_B = self._network.advance(now["state"][slot_B], now["level"][slot_B], x_BN, told)
        finite_B: BoolArray = np.asarray(_finite(state_BW).all(axis=1))
        kept = slot_B[finite_B]
        now["state"][kept], now["level"][kept] = state_BW[finite_B], level_B[finite_B]
        now["at"][kept] = at_B[finite_B] + n
        passed = kept[now["at"][kept] % self.layout.rewind == 0]
        self.rows["old"][passed] = self.rows["mid"][passed]
        self.rows["mid"][passed] = now[passed]
        return finite_B

    # Forecasting

    def forecast(self, slot_B: IntArray) -> FloatArray:
        """Return the `(B, H, Q)` quantiles after each stream's newest step; NaN where nothing was seen."""
        self.settle(slot_B)
        spec = self.forecaster.spec
        quantiles = [self._forecast(slots) for slots in _batches(slot_B)]
        return np.concatenate(quantiles or [np.empty((0, spec.horizon, len(spec.quantiles)))])

    def _forecast(self, slot_B: IntArray) -> FloatArray:
        spec = self.forecaster.spec
        quantiles_BHQ = np.full((len(slot_B), spec.horizon, len(spec.quantiles)), np.nan)
        usable_B = self._has_something(slot_B)
        usable = slot_B[usable_B]
        if len(usable):
            self._note_pass("forecast", len(usable))
            of = self._from_states if self.has_state else self._from_windows
            quantiles_BHQ[usable_B] = of(usable)
        return quantiles_BHQ

    def _has_something(self, slot_B: IntArray) -> BoolArray:
        newest_B = self.rows["newest"][slot_B]
        if not self.has_state:
            return np.asarray(_finite(self.windows(slot_B)).any(axis=1))
        seen_B = self.rows["now"]["state"][slot_B, SEEN] > 0
        usable_B: BoolArray = seen_B & (self.rows["lost"][slot_B] != newest_B)
        return usable_B

    def _from_states(self, slot_B: IntArray) -> FloatArray:
        now = self.rows["now"]
        told = self._covariates(slot_B, now["at"][slot_B], 1, self.layout.horizon)
        return self._network.forecast(now["state"][slot_B], now["level"][slot_B], told)

    def _from_windows(self, slot_B: IntArray) -> FloatArray:
        spec, newest_B = self.forecaster.spec, self.rows["newest"][slot_B]
        told = None
        if spec.takes_covariates:
            told = Covariates(self.cutoffs(slot_B), *self.covariate_windows(slot_B), self.names(slot_B))
        return self.forecaster.predict(self._values(slot_B, newest_B, spec.input_size), told)

    def windows(self, slot_B: IntArray) -> FloatArray:
        """Return the last `input_size` values of each stream on the scale the network models, `(B, L)`."""
        spec = self.forecaster.spec
        values_BL = self._values(slot_B, self.rows["newest"][slot_B], spec.input_size)
        return apply_transform(values_BL, spec.transform)

    def observed_windows(self, slot_B: IntArray) -> FloatArray:
        """Return the last `input_size` values of each stream as they were observed, `(B, L)`."""
        return self._values(slot_B, self.rows["newest"][slot_B], self.forecaster.input_size)

    def newest_values(self, slot_B: IntArray) -> FloatArray:
        """Return what was observed at each stream's newest step, NaN where nothing was."""
        return self._values(slot_B, self.rows["newest"][slot_B], 1)[:, 0]

    def standstill(self, slot_B: IntArray, shortest: int) -> tuple[IntArray, Standstill]:
        """Return the places of streams that may end in so many equal values, or more, and how they stand still."""
        place = np.arange(len(slot_B))
        for n in (2, min(shortest, self.layout.length)):
            slots = slot_B[place]
            place = place[may_stand_still(self._values(slots, self.rows["newest"][slots], n))]
        slots = slot_B[place]
        ring_CR = self._values(slots, self.rows["newest"][slots], self.layout.length)
        return place, measure(self.rows["still"][slots], ring_CR)

    def covariate_windows(self, slot_B: IntArray) -> tuple[FloatArray, FloatArray]:
        """Return past columns of the last `input_size` steps `(B, L, P)`, and future ones `(B, T, F)`."""
        newest_B, spec = self.rows["newest"][slot_B], self.forecaster.spec
        past_BLP = self._past(slot_B, newest_B, spec.input_size)
        return past_BLP, self._future(slot_B, newest_B, spec.input_size, spec.horizon)

    def lengths(self, slot_B: IntArray) -> IntArray:
        """Return the steps since each stream began."""
        lengths_B: IntArray = self.rows["newest"][slot_B] - self.rows["first"][slot_B] + 1
        return lengths_B

    def cutoffs(self, slot_B: IntArray) -> pd.DatetimeIndex:
        """Return the timestamp of each stream's newest step."""
        return pd.DatetimeIndex(self.rows["ds"][slot_B].view("datetime64[us]"))

    def names(self, slot_B: IntArray) -> dict[str, list[str]]:
        """Return the statics of each stream by name; empty where none was told, or none that is known."""
        statics = self.forecaster.spec.covariates.static
        return {
            static.name: [
                static.categories[code - 1] if code > 0 else "" for code in self.rows["static"][slot_B, s]
            ]
            for s, static in enumerate(statics)
        }

    # Another forecaster's streams

    def take_over(self, slot_B: IntArray, kept: RowArray, layout: Layout, names: dict[str, list[str]]) -> None:
        """Rebuild streams from the observations that another forecaster's, or an earlier layout's, rows hold.

        Args:
            slot_B: where they are to be.
            kept: a row each, by `layout`; of another frequency, they begin with nothing.
            names: statics of each by name, empty where none is known.
        """
        begun_B = kept["newest"] != NOTHING
        self.clear(slot_B)
        if layout.freq != self.layout.freq or not begun_B.any():
            return
        slot_B, kept = slot_B[begun_B], kept[begun_B]
        n = min(layout.length, self.layout.length)
        first_B = np.maximum(kept["first"], kept["newest"] - n + 1)
        self._start(slot_B, first_B, kept["phase"])
        for name in ("newest", "ds", "group"):
            self.rows[name][slot_B] = kept[name]
        self._copy_rings(slot_B, kept, layout, n)
        self._copy_memory(slot_B, kept, layout)
        for s, static in enumerate(self.forecaster.spec.covariates.static):
            told = [
                name
                for name, begun in zip(names.get(static.name, [""] * len(begun_B)), begun_B, strict=True)
                if begun
            ]
            code_B = encode_static(told, static)
            self.rows["static"][slot_B, s] = np.where([name == "" for name in told], NOT_TOLD, code_B)
        self.settle(slot_B)

    def _copy_memory(self, slot_B: IntArray, kept: RowArray, layout: Layout) -> None:
        """Remember what the other did, and the values this ring has no room for."""
        if layout.remembers:
            self.rows["still"][slot_B] = kept["still"]
        place_B = np.arange(len(slot_B))
        for back in range(layout.length - 1, self.layout.length - 1, -1):
            at_B = kept["newest"] - back
            leaving_B = np.where(at_B >= kept["first"], kept["y"][place_B, at_B % layout.length], np.nan)
            self._remember(slot_B, leaving_B)

    def _copy_rings(self, slot_B: IntArray, kept: RowArray, layout: Layout, n: int) -> None:
        place_B = np.arange(len(slot_B))[:, None]
        at_BN = kept["newest"][:, None] - np.arange(n)
        old_BN = at_BN >= kept["first"][:, None]
        self.rows["y"][slot_B[:, None], at_BN % self.layout.length] = np.where(
            old_BN, kept["y"][place_B, at_BN % layout.length], np.nan
        )
        for p, name in enumerate(self.layout.past):
            if name in layout.past:
                values_BN = kept["past"][place_B, at_BN % layout.length, layout.past.index(name)]
                self.rows["past"][slot_B[:, None], at_BN % self.layout.length, p] = values_BN
        ahead = min(layout.horizon, self.layout.horizon)
        at_BN = kept["newest"][:, None] + ahead - np.arange(n + ahead)
        for f, name in enumerate(self.layout.future):
            if name in layout.future:
                values_BN = kept["future"][
                    place_B, at_BN % (layout.length + layout.horizon), layout.future.index(name)
                ]
                self.rows["future"][slot_B[:, None], at_BN % self._n_future, f] = values_BN

    # What the rings hold

    @property
    def _calendar(self) -> Calendar:
        return self.forecaster.calendar

    @property
    def _n_future(self) -> int:
        return self.layout.length + self.layout.horizon

    def _values(self, slot_B: IntArray, last_B: IntArray, n: int) -> FloatArray:
        """Return the n values up to a step, `(B, N)`."""
        at_BN = (last_B[:, None] + np.arange(1 - n, 1)) % self.layout.length
        values_BN: FloatArray = self.rows["y"][slot_B[:, None], at_BN]
        return values_BN

    def _past(self, slot_B: IntArray, last_B: IntArray, n: int) -> FloatArray:
        if not self.layout.past:
            return np.empty((len(slot_B), n, 0))
        at_BN = (last_B[:, None] + np.arange(1 - n, 1)) % self.layout.length
        past_BNP: FloatArray = self.rows["past"][slot_B[:, None], at_BN].astype(np.float64)
        return past_BNP

    def _future(self, slot_B: IntArray, last_B: IntArray, n: int, ahead: int) -> FloatArray:
        if not self.layout.future:
            return np.empty((len(slot_B), n + ahead, 0))
        at_BT = (last_B[:, None] + np.arange(1 - n, ahead + 1)) % self._n_future
        future_BTF: FloatArray = self.rows["future"][slot_B[:, None], at_BT].astype(np.float64)
        return future_BTF

    def _covariates(self, slot_B: IntArray, last_B: IntArray, n: int, ahead: int) -> CovariateTensors | None:
        """Return what is known of the n steps up to a step, and of the steps ahead."""
        spec = self.forecaster.spec
        if not spec.covariates:
            return None
        stamps = self._stamps_before(self.rows["ds"][slot_B], self.rows["newest"][slot_B] - last_B)
        cutoff_B = pd.DatetimeIndex(stamps.view("datetime64[us]"))
        known = Covariates(cutoff_B, future_BTF=self._future(slot_B, last_B, n, ahead))
        future_BTF = future_columns(known, spec.covariates, n, ahead, self._calendar)
        static_BS = np.empty((len(slot_B), 0), dtype=np.int64)
        if self.layout.static:
            static_BS = np.maximum(self.rows["static"][slot_B], 0).astype(np.int64)
        return self.forecaster.covariate_tensors(self._past(slot_B, last_B, n), future_BTF, static_BS)

    def _stamps_before(self, ds_B: IntArray, back_B: IntArray) -> IntArray:
        """Return the timestamps so many steps before."""
        if not back_B.any():
            return ds_B
        pairs, pair_B = np.unique(np.stack([ds_B, back_B], axis=1), axis=0, return_inverse=True)
        found = [self._calendar.ending(_stamp(ds), int(back) + 1)[0] for ds, back in pairs]
        stamps = np.array([stamp.as_unit("us").asm8 for stamp in found], dtype="datetime64[us]").view(np.int64)
        return stamps[pair_B.reshape(-1)]


def _stamp(ds: np.int64) -> pd.Timestamp:
    return pd.Timestamp(np.datetime64(int(ds), "us"))


def _finite(values: NDArray[Any]) -> BoolArray:
    return np.asarray(np.isfinite(values))


def _equal(one: NDArray[Any], other: NDArray[Any]) -> BoolArray:
    equal: BoolArray = (one == other) | (np.isnan(one) & np.isnan(other))
    return equal


def _told(told: FloatArray, kept: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return what is told, and what was known where nothing is."""
    return np.where(np.isnan(told), kept, told).astype(np.float32)


def _batches(slot_B: IntArray) -> Iterator[IntArray]:
    """Bound the memory of one forward pass."""
    return (slot_B[i : i + BATCH] for i in range(0, len(slot_B), BATCH))
