"""A calendar that remembers: the series of one hour mostly end at one step, and are told the same timestamps."""

from functools import lru_cache

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from forecasting.calendar import OFF_GRID, Calendar, FixedSteps, format_timestamp, format_timestamps, parse_freq
from forecasting.errors import CalendarError, InputError

IntArray = NDArray[np.int64]
MicrosecondArray = NDArray[np.datetime64]

REMEMBERED = 4096
"""Steps of which a grid knows by heart where they end and how they are written."""

REMEMBERED_STEPS = 1_000_000
"""Timestamps ahead that a grid knows by heart, in all: about 100 MB of text."""

REMEMBERED_HISTORIES = 16
"""Lists of timestamps whose places are known by heart: the series of one request mostly share theirs."""

_LATEST = pd.Timestamp("9999-12-31T23:59:59.999999").as_unit("us").asm8.astype(np.int64).item()


class Grid:
    """The steps of one calendar as requests ask for them; it may be shared between threads."""

    def __init__(self, calendar: Calendar) -> None:
        self.calendar = calendar
        self.last = lru_cache(REMEMBERED)(self._last)
        """Return the timestamp of the last of some periods; InputError when they leave the calendar."""
        self.text = lru_cache(REMEMBERED)(self._text)
        """Return a timestamp as JSON carries it."""
        self._remembered_after = lru_cache(REMEMBERED)(self._after)
        self._positions = lru_cache(REMEMBERED_HISTORIES)(self._locate)

    def after(self, cutoff: pd.Timestamp, h: int) -> list[str]:
        """Return the `h` timestamps after a cutoff, as JSON carries them; nobody may change the list."""
        if h * REMEMBERED > REMEMBERED_STEPS:
            return self._after(cutoff, h)
        return self._remembered_after(cutoff, h)

    def positions(self, ds_T: MicrosecondArray) -> IntArray:
        """Return steps from the earliest timestamp on the grid of most of them, OFF_GRID for the others."""
        return self._positions(ds_T.tobytes())

    def _locate(self, ds_bytes: bytes) -> IntArray:
        ds_T = np.frombuffer(ds_bytes, dtype="datetime64[us]")
        ds = pd.DatetimeIndex(ds_T)
        phase_T = self.calendar.phases(ds)
        phases, counts = np.unique(phase_T[phase_T != OFF_GRID], return_counts=True)
        if len(phases) == 0:
            return np.full(len(ds), OFF_GRID)
        start = ds_T[phase_T == phases[counts.argmax()]].min()
        return self.calendar.locate(pd.Timestamp(start), ds)

    def _last(self, start: pd.Timestamp, periods: int) -> pd.Timestamp:
        calendar = self.calendar
        if not isinstance(calendar, FixedSteps) or calendar.weekday is not None:
            return _steps(calendar, start, periods)[-1]
        end = _microseconds(start) + (periods - 1) * _microseconds(calendar.step)
        if end > _LATEST:
            raise _too_late(calendar, start, periods)
        return pd.Timestamp(np.datetime64(end, "us"))

    def _text(self, stamp: pd.Timestamp) -> str:
        return format_timestamp(stamp, self.calendar)

    def _after(self, cutoff: pd.Timestamp, h: int) -> list[str]:
        ds_H = _steps(self.calendar, cutoff, h + 1)[1:].to_numpy().astype("datetime64[us]")
        return format_timestamps(ds_H, self.calendar)


def grid_of(calendar: Calendar) -> Grid:
    """Return the grid that everybody shares who asks for this calendar."""
    return _grid_of(calendar.freq)


@lru_cache(maxsize=64)
def _grid_of(freq: str) -> Grid:
    return Grid(parse_freq(freq))


def _microseconds(moment: pd.Timestamp | pd.Timedelta) -> int:
    return int(moment.as_unit("us").asm8.view("i8"))


def _too_late(calendar: Calendar, start: pd.Timestamp, periods: int) -> InputError:
    return InputError(f"{periods} steps of {calendar.freq} from {start} reach beyond the year 9999")


def _steps(calendar: Calendar, start: pd.Timestamp, periods: int) -> pd.DatetimeIndex:
    try:
        steps = calendar.range(start, periods)
    except (OverflowError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{periods} steps of {calendar.freq} from {start} leave the calendar") from error
    if len(steps) < periods or steps[-1].year > 9999:
        raise _too_late(calendar, start, periods)
    return steps


def first_step(calendar: Calendar) -> pd.Timestamp:
    """Return a step of the calendar in 2024, for what needs any."""
    for day in pd.date_range("2024-01-01", periods=400):
        try:
            return calendar.range(day, 1)[0]
        except CalendarError:
            continue
    raise CalendarError(f"freq {calendar.freq} has no step in 2024")
