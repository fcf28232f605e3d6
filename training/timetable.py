"""When a job is due: the ticks of its cron, or the closes of its exchange."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property

import numpy as np
import pandas as pd
from croniter import croniter
from numpy.typing import NDArray

from forecasting.calendar import OFF_GRID, exchange_timezone, parse_freq, session_closes
from training.job import JobConfig, parse_delay

AHEAD = pd.Timedelta(days=3 * 366)
"""How far ahead closes are looked at for the times of day they can have."""
MOST_DAYS = 1000
"""Days without a tick that counts after which a schedule is taken to have none."""


@dataclass(frozen=True)
class Timetable:
    """The moments a job is due. Its cron may tick more often: `is_due` says which ticks count."""

    cron: str
    timezone: str
    sessions: str | None = None
    """Exchange without whose session a day has no tick."""
    after_close: timedelta | None = None
    """Ticks are so long after the closes of the exchange, and nothing else is one."""

    def is_due(self, tick: datetime) -> bool:
        """Return whether a tick of the cron counts."""
        if self.after_close is not None:
            due = self._due_after_close
            at = int(np.searchsorted(due, _microseconds(tick)))
            return at < len(due) and int(due[at]) == _microseconds(tick)
        if self.sessions is None:
            return True
        day = pd.Timestamp(self.local(tick).date())
        return bool(parse_freq(self.sessions).locate(day, pd.DatetimeIndex([day]))[0] != OFF_GRID)

    def local(self, tick: datetime) -> pd.Timestamp:
        """Return a tick on the clock of the schedule's time zone."""
        return pd.Timestamp(tick).tz_convert(self.timezone)

    def next(self, moment: datetime) -> datetime | None:
        """Return the first moment after another at which the job is due, None where it is never."""
        return self._first_due(moment, forward=True)

    def previous(self, moment: datetime) -> datetime | None:
        """Return the last moment at or before another at which the job was due, None where it never was."""
        return self._first_due(moment + timedelta(microseconds=1), forward=False)

    def describe(self) -> str:
        """Return it in words."""
        if self.after_close is not None:
            minutes = self.after_close // timedelta(minutes=1)
            return f"{minutes} min after the close of {self.sessions}"
        return f"{self.cron} {self.timezone}" + (f", sessions of {self.sessions}" if self.sessions else "")

    def _first_due(self, moment: datetime, *, forward: bool) -> datetime | None:
        start = self.local(moment)
        for _ in range(MOST_DAYS):
            tick = self._tick(start, forward=forward)
            if self.is_due(tick):
                return tick.astimezone(UTC)
            # On to the next day: a cron may tick every second of one without a session.
            day = self.local(tick).normalize()
            start = day + pd.DateOffset(days=1) - pd.Timedelta(microseconds=1) if forward else day
            if self.after_close is not None:
                start = self.local(tick)
        return None

    def _tick(self, start: pd.Timestamp, *, forward: bool) -> datetime:
        ticks = croniter(self.cron, start.to_pydatetime(), second_at_beginning=True)
        tick: datetime = ticks.get_next(datetime) if forward else ticks.get_prev(datetime)
        return tick

    @cached_property
    def _due_after_close(self) -> NDArray[np.int64]:
        if self.sessions is None or self.after_close is None:
            raise ValueError("a close is that of an exchange")
        return session_closes(self.sessions).as_unit("us").asi8 + self.after_close // timedelta(microseconds=1)


def timetable_of(job: JobConfig) -> Timetable | None:
    """Return when a job is due, None for one that has no schedule."""
    schedule, exchange = job.schedule, job.session_calendar
    if schedule is None:
        return None
    if schedule.cron is not None:
        return Timetable(schedule.cron, schedule.timezone, exchange)
    if schedule.after_close is None or exchange is None:
        raise ValueError(f"job {job.name!r} has neither cron nor close")
    delay = parse_delay(schedule.after_close)
    return Timetable(_cron_after_close(exchange, delay), exchange_timezone(exchange), exchange, delay)


def _cron_after_close(exchange: str, delay: timedelta) -> str:
    """Return a cron that ticks at every time of day at which the job can be due, and at some where it is not."""
    now = pd.Timestamp.now("UTC")
    closes = session_closes(exchange)
    coming = closes[(closes > now - pd.Timedelta(days=366)) & (closes < now + AHEAD)] + delay
    due = coming.tz_convert(exchange_timezone(exchange))
    minutes, hours = (",".join(str(n) for n in sorted(set(numbers))) for numbers in (due.minute, due.hour))
    return f"{minutes} {hours} * * *"


def _microseconds(tick: datetime) -> int:
    return int(pd.Timestamp(tick).tz_convert("UTC").as_unit("us").asm8.view("i8"))
