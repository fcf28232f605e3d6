"""Sessions of an exchange beside what a vendor of prices sends: which are over, which are not of this exchange."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from forecasting.calendar import Sessions, exchange_timezone, parse_freq, session_closes
from forecasting.errors import SourceError

DELAY = timedelta(minutes=15)
"""After the close, before a session counts as over: free quotes are late by so much."""

STRAY_SHARE, FEW_STRAY = 0.01, 2
"""Sessions an exchange did not have that a vendor may send of a share of it, by share and by number."""

MOST_TOLD = 5


@dataclass(frozen=True)
class Market:
    """The exchange a job's steps are sessions of, if they are."""

    freq: str | None
    """The job's; None where it is not known."""

    @cached_property
    def _sessions(self) -> Sessions | None:
        calendar = None if self.freq is None else parse_freq(self.freq)
        return calendar if isinstance(calendar, Sessions) else None

    def require_time_zone(self, timezone: str) -> None:
        """Refuse prices of sessions in another time zone: they are of another exchange.

        Raises:
            SourceError: they are.
        """
        if self._sessions is None:
            return
        wanted = exchange_timezone(self._sessions.freq)
        if timezone != wanted:
            raise SourceError(
                f"keeps the hours of {timezone}, and {self.freq} those of {wanted}: "
                "it belongs to a job of its own exchange, or of freq D"
            )

    def are_over(self, sessions: pd.DatetimeIndex, timezone: str, at: datetime) -> NDArray[np.bool_]:
        """Return which sessions were over at a moment; without an exchange, those of the days before it."""
        today = pd.Timestamp(at).tz_convert(timezone).tz_localize(None).normalize()
        over = np.asarray(sessions < today)
        if self._sessions is None:
            return over
        place = self._sessions.sessions.get_indexer(sessions)
        return np.where(place >= 0, _are_closed(self._sessions.freq, at)[place], over)

    def has_ended_between(self, since: datetime, until: datetime) -> bool:
        """Return whether a session of the exchange was over at a moment that was not at an earlier one."""
        if self._sessions is None:
            return False
        exchange = self._sessions.freq
        return bool((_are_closed(exchange, until) & ~_are_closed(exchange, since)).any())

    def find_strays(self, sessions: pd.DatetimeIndex) -> NDArray[np.bool_]:
        """Return which dates were no sessions of the exchange.

        Raises:
            SourceError: they are so many that the prices are of something else.
        """
        if self._sessions is None:
            return np.zeros(len(sessions), dtype=bool)
        strays = np.asarray(~sessions.isin(self._sessions.sessions))
        if strays.sum() > max(FEW_STRAY, STRAY_SHARE * len(sessions)):
            raise SourceError(
                f"was traded on {strays.sum()} of {len(sessions)} dates on which {self.freq} was not, such as "
                f"{list_days(sessions[strays])}: it belongs to a job of its own exchange, or of freq D"
            )
        return strays

    def find_absent(self, sessions: pd.DatetimeIndex) -> pd.DatetimeIndex:
        """Return the sessions of the exchange that are not there, from the first to the last that is."""
        if self._sessions is None or sessions.empty:
            return sessions[:0]
        known = self._sessions.sessions
        return known[(known > sessions.min()) & (known < sessions.max()) & ~known.isin(sessions)]


def _are_closed(exchange: str, at: datetime) -> NDArray[np.bool_]:
    """Return which of an exchange's sessions were over at a moment."""
    return np.asarray(session_closes(exchange) <= pd.Timestamp(at - DELAY).tz_convert("UTC"))


def list_days(days: pd.DatetimeIndex) -> str:
    """Write the first of some days, and how many more there are."""
    told = ", ".join(f"{day:%Y-%m-%d}" for day in days[:MOST_TOLD])
    return f"{told} and {len(days) - MOST_TOLD} more" if len(days) > MOST_TOLD else told
