"""Step arithmetic: which timestamp follows which, for fixed steps, calendar offsets and exchange sessions.

Timestamps inside Hindcast are naive `datetime64[us]`. Where steps are whole days they are dates on the wall
clock (a session, a calendar day), which no time zone shifts; everywhere else they are instants in UTC.
"""

import re
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal, Protocol

import exchange_calendars
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from forecasting.errors import CalendarError

OFF_GRID = np.iinfo(np.int64).min
"""The position `Calendar.locate` gives a timestamp that does not lie on the grid."""

_EPOCH = "1970-01-01"
SESSIONS_FROM, SESSIONS_TO = "1970-01-01", "2049-12-31"
_EXAMPLES = "use a pandas alias such as 15min, h, D, W, MS, or an exchange calendar such as XNYS"
_TIMESTAMPS = "give dates, or text in ISO 8601 such as 2024-03-31 or 2024-03-31T02:00+01:00"
_DAY = pd.Timedelta(days=1)
_DAY_MICROSECONDS = 86_400_000_000


class Calendar(Protocol):
    """The grid of timestamps that a frequency stands for."""

    @property
    def freq(self) -> str:
        """The alias this calendar was parsed from."""

    @property
    def season_length(self) -> int:
        """Steps in the usual season of this frequency: a day of hours, a year of weeks; 1 for none."""

    @property
    def dated(self) -> bool:
        """Whether timestamps are dates (steps of whole days or more) and not instants in UTC."""

    def phases(self, ds: pd.DatetimeIndex) -> NDArray[np.int64]:
        """Return which grid each timestamp lies on: equal numbers share one; OFF_GRID where it is on none."""

    def locate(self, start: pd.Timestamp, ds: pd.DatetimeIndex) -> NDArray[np.int64]:
        """Return the number of steps from `start` to each timestamp, OFF_GRID where it is not on the grid."""

    def range(self, start: pd.Timestamp, periods: int) -> pd.DatetimeIndex:
        """Return `periods` timestamps, the first of them `start`."""

    def ending(self, end: pd.Timestamp, periods: int) -> pd.DatetimeIndex:
        """Return `periods` timestamps, the last of them `end`."""

    def first_after(self, moment: pd.Timestamp) -> pd.Timestamp:
        """Return the first timestamp at or after a moment that a step can fall on."""

    def ordinals(self, ds: pd.DatetimeIndex) -> NDArray[np.int64]:
        """Return the absolute number of each step, the same in every panel; OFF_GRID where no step falls."""

    def previous(self, ds: pd.DatetimeIndex) -> pd.DatetimeIndex:
        """Return the step before each timestamp; the timestamp itself where none is known."""


def _microseconds(moment: pd.Timestamp | pd.Timedelta) -> int:
    # `.value` counts nanoseconds whatever the unit is.
    return int(moment.as_unit("us").asm8.view("i8"))


@dataclass(frozen=True)
class FixedSteps:
    """Steps of one fixed duration; the phase (minute past the hour, weekday) is the data's own."""

    freq: str
    step: pd.Timedelta
    season_length: int
    weekday: int | None = None

    @cached_property  # asked for with every timestamp that is written
    def dated(self) -> bool:
        return self.step % _DAY == pd.Timedelta(0)

    def phases(self, ds: pd.DatetimeIndex) -> NDArray[np.int64]:
        phases = ds.as_unit("us").asi8 % _microseconds(self.step)
        return phases if self.weekday is None else np.where(ds.day_of_week == self.weekday, phases, OFF_GRID)

    def locate(self, start: pd.Timestamp, ds: pd.DatetimeIndex) -> NDArray[np.int64]:
        if self.weekday is not None and start.weekday() != self.weekday:
            return np.full(len(ds), OFF_GRID)
        elapsed = (ds.as_unit("us").asi8 - _microseconds(start)).astype(np.int64)
        positions, remainder = np.divmod(elapsed, _microseconds(self.step))
        return np.where(remainder == 0, positions, OFF_GRID)

    def range(self, start: pd.Timestamp, periods: int) -> pd.DatetimeIndex:
        if self.weekday is not None and start.weekday() != self.weekday:
            raise CalendarError(f"{start.date()} is a {start.day_name()}, which is not on the grid of {self.freq}")
        steps = np.arange(periods, dtype=np.int64) * _microseconds(self.step)
        return pd.DatetimeIndex((_microseconds(start) + steps).view("datetime64[us]"))

    def ending(self, end: pd.Timestamp, periods: int) -> pd.DatetimeIndex:
        return self.range(end - (periods - 1) * self.step, periods)

    def first_after(self, moment: pd.Timestamp) -> pd.Timestamp:
        days = 0 if self.weekday is None else (self.weekday - moment.weekday()) % 7
        return moment + days * _DAY

    def ordinals(self, ds: pd.DatetimeIndex) -> NDArray[np.int64]:
        numbers: NDArray[np.int64] = ds.as_unit("us").asi8 // _microseconds(self.step)
        return numbers if self.weekday is None else np.where(ds.day_of_week == self.weekday, numbers, OFF_GRID)

    def previous(self, ds: pd.DatetimeIndex) -> pd.DatetimeIndex:
        return ds.as_unit("us") - self.step.as_unit("us")


@dataclass(frozen=True)
class OffsetSteps:
    """Steps of unequal duration that pandas knows: months, quarters, years, business days."""

    freq: str
    offset: pd.offsets.BaseOffset
    season_length: int
    dated: bool = True

    def phases(self, ds: pd.DatetimeIndex) -> NDArray[np.int64]:
        days = ds.normalize()
        numbers = self._number(days)
        clock = (ds - days).as_unit("us").asi8
        return np.where(numbers != OFF_GRID, numbers % self.offset.n * _microseconds(_DAY) + clock, OFF_GRID)

    def locate(self, start: pd.Timestamp, ds: pd.DatetimeIndex) -> NDArray[np.int64]:
        stamps = ds.insert(0, start)
        days = stamps.normalize()
        numbers, clock = self._number(days), stamps - days
        known = (numbers != OFF_GRID) & (numbers[0] != OFF_GRID)
        steps, remainder = np.divmod(np.where(known, numbers - numbers[0], 0), self.offset.n)
        return np.where(known & (remainder == 0) & (clock == clock[0]), steps, OFF_GRID)[1:]

    def range(self, start: pd.Timestamp, periods: int) -> pd.DatetimeIndex:
        if not self.offset.is_on_offset(start):
            raise CalendarError(f"{start.date()} is not on the grid of {self.freq}")
        return pd.date_range(start, periods=periods, freq=self.offset, unit="us")

    def ending(self, end: pd.Timestamp, periods: int) -> pd.DatetimeIndex:
        if not self.offset.is_on_offset(end):
            raise CalendarError(f"{end.date()} is not on the grid of {self.freq}")
        return pd.date_range(end=end, periods=periods, freq=self.offset, unit="us")

    def first_after(self, moment: pd.Timestamp) -> pd.Timestamp:
        return self.offset.base.rollforward(moment)

    def ordinals(self, ds: pd.DatetimeIndex) -> NDArray[np.int64]:
        numbers = self._number(ds.normalize())
        return np.where(numbers != OFF_GRID, numbers // self.offset.n, OFF_GRID)

    def previous(self, ds: pd.DatetimeIndex) -> pd.DatetimeIndex:
        if ds.empty:
            return ds
        days = ds.normalize()
        grid, _ = _days_of(self.offset.base, days.min().year - self.offset.n, days.max().year)
        positions = np.asarray(grid.searchsorted(days)) - self.offset.n
        return pd.DatetimeIndex(grid[positions] + (ds - days)).as_unit("us")

    def _number(self, days: pd.DatetimeIndex) -> NDArray[np.int64]:
        """Count single steps from 1970; OFF_GRID for a day on which none falls."""
        if days.empty:
            return np.empty(0, dtype=np.int64)
        # Counted one by one: every second month may begin at an odd or an even one.
        grid, origin = _days_of(self.offset.base, days.min().year, days.max().year)
        positions = grid.get_indexer(days).astype(np.int64)
        return np.where(positions >= 0, positions - origin, OFF_GRID)


def _days_of(single: pd.offsets.BaseOffset, first: int, last: int) -> tuple[pd.DatetimeIndex, int]:
    """Return the days of a single offset over whole decades with these years, and the position of 1970 there."""
    return _decades_of(single, min(first // 10, 197), max(last // 10, 202))


@lru_cache(maxsize=64)
def _decades_of(single: pd.offsets.BaseOffset, first: int, last: int) -> tuple[pd.DatetimeIndex, int]:
    start = pd.Timestamp(year=max(10 * first, 1), month=1, day=1)
    end = pd.Timestamp(year=10 * last + 9, month=12, day=31)
    grid = pd.date_range(single.rollback(start), end, freq=single, unit="us")
    return grid, int(grid.searchsorted(pd.Timestamp(_EPOCH)))


@dataclass(frozen=True, eq=False)
class Sessions:
    """The trading sessions of an exchange: Monday follows Friday, and a holiday is no row."""

    freq: str
    sessions: pd.DatetimeIndex
    season_length: int = 1  # prices have no season: the honest rival is the last one
    dated: bool = True

    def phases(self, ds: pd.DatetimeIndex) -> NDArray[np.int64]:
        return np.where(self.sessions.get_indexer(ds) >= 0, 0, OFF_GRID)

    def locate(self, start: pd.Timestamp, ds: pd.DatetimeIndex) -> NDArray[np.int64]:
        origin = self.sessions.get_indexer(pd.DatetimeIndex([start]))[0]
        positions = self.sessions.get_indexer(ds).astype(np.int64)
        if origin < 0:
            return np.full(len(ds), OFF_GRID)
        return np.where(positions >= 0, positions - origin, OFF_GRID)

    def range(self, start: pd.Timestamp, periods: int) -> pd.DatetimeIndex:
        origin = self.sessions.get_indexer(pd.DatetimeIndex([start]))[0]
        if origin < 0:
            raise CalendarError(f"{start} is not a session of {self.freq}")
        if origin + periods > len(self.sessions):
            raise CalendarError(f"the sessions of {self.freq} are known until {self.sessions[-1].date()} only")
        return self.sessions[origin : origin + periods]

    def ending(self, end: pd.Timestamp, periods: int) -> pd.DatetimeIndex:
        last = self.sessions.get_indexer(pd.DatetimeIndex([end]))[0]
        if last < 0:
            raise CalendarError(f"{end} is not a session of {self.freq}")
        if last + 1 < periods:
            raise CalendarError(f"the sessions of {self.freq} are known from {self.sessions[0].date()} only")
        return self.sessions[last + 1 - periods : last + 1]

    def first_after(self, moment: pd.Timestamp) -> pd.Timestamp:
        return pd.Timestamp(self.sessions[int(self.sessions.searchsorted(moment))])

    def ordinals(self, ds: pd.DatetimeIndex) -> NDArray[np.int64]:
        positions = self.sessions.get_indexer(ds).astype(np.int64)
        return np.where(positions >= 0, positions, OFF_GRID)

    def previous(self, ds: pd.DatetimeIndex) -> pd.DatetimeIndex:
        positions = np.asarray(self.sessions.searchsorted(ds)) - 1
        return self.sessions[np.maximum(positions, 0)]


def timestamps_after(calendar: Calendar, cutoff: pd.Timestamp, periods: int) -> pd.DatetimeIndex:
    """Return the `periods` timestamps that follow `cutoff`."""
    return calendar.range(cutoff, periods + 1)[1:]


@lru_cache(maxsize=64)
def parse_freq(freq: str) -> Calendar:
    """Build the calendar of a pandas alias or an exchange code.

    Raises:
        CalendarError: the alias is unknown, has no positive step, is finer than a microsecond, or counts
            business hours.
    """
    if freq in exchange_calendars.get_calendar_names():
        return Sessions(freq, _sessions_of(freq))
    try:
        offset = pd.tseries.frequencies.to_offset(freq)
    except (ValueError, TypeError) as error:
        raise CalendarError(f"unknown frequency {freq!r}: {_EXAMPLES}") from error
    if isinstance(offset, pd.offsets.BusinessHour):
        raise CalendarError(f"frequency {freq!r} counts business hours: {_EXAMPLES}")
    if offset is None or offset.n < 1:
        raise CalendarError(f"frequency {freq!r} has no positive step: {_EXAMPLES}")
    return _calendar_of(freq, offset)


def _sessions_of(exchange: str) -> pd.DatetimeIndex:
    """Return the sessions from SESSIONS_FROM to SESSIONS_TO, or as many as the exchange's rules cover."""
    return pd.DatetimeIndex(_exchange(exchange).sessions.to_numpy()).as_unit("us")


@lru_cache(maxsize=64)
def _exchange(exchange: str) -> exchange_calendars.ExchangeCalendar:
    usual = exchange_calendars.get_calendar(exchange)
    first, last = usual.bound_min(), usual.bound_max()
    start = SESSIONS_FROM if first is None else max(SESSIONS_FROM, str(first.date()))
    end = SESSIONS_TO if last is None else min(SESSIONS_TO, str(last.date()))
    return exchange_calendars.get_calendar(exchange, start=start, end=end)


def session_closes(exchange: str) -> pd.DatetimeIndex:
    """Return the moment each session ends, in UTC; early closes are where they are.

    Raises:
        CalendarError: there is no exchange of this code.
    """
    if not isinstance(parse_freq(exchange), Sessions):
        raise CalendarError(f"{exchange!r} is not an exchange calendar such as XNYS")
    return pd.DatetimeIndex(_exchange(exchange).closes).as_unit("us")


def exchange_timezone(exchange: str) -> str:
    """Return the IANA name of the time zone an exchange keeps its hours in."""
    return str(_exchange(exchange).tz)


def _calendar_of(freq: str, offset: pd.offsets.BaseOffset) -> Calendar:
    if isinstance(offset, pd.offsets.Week):
        weekday: int | None = getattr(offset, "weekday", None) if "-" in freq else None
        return FixedSteps(freq, 7 * offset.n * _DAY, _season(52, offset.n), weekday)
    if isinstance(offset, pd.offsets.Day):
        return FixedSteps(freq, offset.n * _DAY, _season(7, offset.n))
    if isinstance(offset, pd.offsets.Tick):
        step = pd.Timedelta(offset)
        if step < pd.Timedelta(microseconds=1):
            raise CalendarError(f"frequency {freq!r} is finer than a microsecond")
        return FixedSteps(freq, step, _season_of_tick(step))
    family = offset.rule_code.split("-")[0]
    steps_a_season = {"B": 5, "C": 5, "SM": 24, "M": 12, "Q": 4}
    usual = steps_a_season.get(family) or steps_a_season.get(family.lstrip("BC").rstrip("SE"), 1)
    return OffsetSteps(freq, offset, _season(usual, offset.n))


def _season(usual: int, n: int) -> int:
    """Return the steps of a season when `n` usual steps are one; 1 where they do not divide it."""
    return usual // n if usual % n == 0 else 1


def _season_of_tick(step: pd.Timedelta) -> int:
    """Return the steps of a day, or of an hour where a day would be more than 10,000 of them."""
    if step == _DAY:
        return 7
    for span in (_DAY, pd.Timedelta(hours=1), pd.Timedelta(minutes=1)):
        if span % step == pd.Timedelta(0) and 1 < span // step <= 10_000:
            return int(span // step)
    return 1


def normalise_timestamps(ds: pd.Series | pd.DatetimeIndex, calendar: Calendar) -> pd.DatetimeIndex:
    """Return naive timestamps: instants in UTC, or wall-clock dates where steps are whole days.

    Text is read as ISO 8601 and nothing else: no order of day and month is guessed. Empty values become NaT.

    Raises:
        CalendarError: a value is not a timestamp, or only some carry a UTC offset.
    """
    stamps = pd.Index(ds)
    _refuse_what_pandas_would_guess(stamps)
    try:
        index = pd.DatetimeIndex(pd.to_datetime(stamps, format="ISO8601"))
    except (ValueError, TypeError, OverflowError):
        index = _normalise_mixed_zones(stamps, calendar)
    if index.tz is not None:
        index = index.tz_localize(None) if calendar.dated else index.tz_convert(None)
    return index.as_unit("us").rename(None)


def _refuse_what_pandas_would_guess(stamps: pd.Index) -> None:
    """Refuse numbers, which pandas takes for nanoseconds since 1970, and words it takes for this moment."""
    if stamps.dtype.kind == "M" or stamps.empty:
        return
    mixed = stamps.inferred_type.startswith("mixed")
    if stamps.dtype.kind in "biufc" or (mixed and any(isinstance(value, int | float) for value in stamps)):
        raise CalendarError(f"ds holds numbers, which are no timestamps; {_TIMESTAMPS}")
    if stamps.isin(["now", "today"]).any():
        raise CalendarError(f"ds holds the words 'now' or 'today'; {_TIMESTAMPS}")


def _normalise_mixed_zones(stamps: pd.Index, calendar: Calendar) -> pd.DatetimeIndex:
    """Read what pandas refuses to hold in one index: several offsets, as on both sides of a clock change."""
    try:
        instants = pd.DatetimeIndex(pd.to_datetime(stamps, format="ISO8601", utc=True, errors="coerce"))
    except (ValueError, TypeError, OverflowError) as error:
        raise CalendarError(f"ds holds {stamps.dtype} values, which are no timestamps: {error}") from error
    unread = np.asarray(instants.isna()) & np.asarray(stamps.notna()) & ~np.asarray(stamps.isin(["", "NaT"]))
    if unread.any():
        raise CalendarError(f"ds holds {stamps[int(unread.argmax())]!r}, no timestamp; {_TIMESTAMPS}")
    if len({_has_offset(value) for value in stamps[instants.notna()]}) > 1:
        raise CalendarError("some timestamps carry a UTC offset and some do not")
    if not calendar.dated:
        return instants
    return pd.DatetimeIndex([_wall_clock(value) for value in stamps])


_OFFSET = re.compile(r"\s*(Z|[+-]\d{2}(:?\d{2})?)\s*$")


def _has_offset(stamp: object) -> bool:
    if isinstance(stamp, str):
        return ":" in stamp and _OFFSET.search(stamp) is not None
    return getattr(stamp, "tzinfo", None) is not None


def _wall_clock(stamp: object) -> pd.Timestamp:
    text = _OFFSET.sub("", stamp) if isinstance(stamp, str) else stamp
    return pd.Timestamp(text).replace(tzinfo=None)  # type: ignore[arg-type]  # checked by the caller


def format_timestamp(ds: pd.Timestamp, calendar: Calendar) -> str:
    """Write a timestamp as JSON carries it: `2019-01-02` for dates, `2019-01-02T03:00:00Z` for instants."""
    if calendar.dated and ds == ds.normalize():
        return ds.strftime("%Y-%m-%d")
    return ds.isoformat() + ("" if calendar.dated else "Z")


def format_timestamps(ds: NDArray[np.datetime64], calendar: Calendar) -> list[str]:
    """Write many microsecond timestamps as `format_timestamp` writes each."""
    unit: Literal["s", "D"] = "s"
    suffix = "" if calendar.dated else "Z"
    numbers = ds.astype(np.int64)
    if calendar.dated and not (numbers % _DAY_MICROSECONDS).any():
        unit = "D"
    elif (numbers % 1_000_000).any() or (calendar.dated and not (numbers % _DAY_MICROSECONDS).all()):
        return [format_timestamp(stamp, calendar) for stamp in pd.DatetimeIndex(ds)]
    texts: list[str] = np.datetime_as_string(numbers.view("datetime64[us]"), unit=unit).tolist()
    return [text + suffix for text in texts] if suffix else texts
