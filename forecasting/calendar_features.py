"""What the product knows of a timestamp by itself: cycles, the gap a weekend leaves, public holidays.

T timestamps, K columns. Every value is within [-1, 1] and follows from its own timestamp alone, so a window
sees the same numbers wherever it is cut. Instants are read in UTC, dates as they are.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache

import holidays
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from forecasting.calendar import Calendar, FixedSteps
from forecasting.errors import InputError
from forecasting.spec import CalendarFeature

FloatArray = NDArray[np.float64]

_DAY_US = 86_400_000_000
_LONGEST_GAP = 7
"""Days beyond one at which `session_gap` reaches 1: an exchange is hardly ever shut for longer."""


def n_columns(names: Sequence[CalendarFeature]) -> int:
    """Return the number of columns these features have together."""
    return sum(1 if name == "session_gap" else 2 for name in names)


def calendar_features(
    calendar: Calendar, ds: pd.DatetimeIndex, names: Sequence[CalendarFeature], country: str | None = None
) -> FloatArray:
    """Return the features of each timestamp, `(T, K)`, in the order of `names`.

    `hour`, `weekday`, `month_day` and `year_day` are a sine and a cosine each; `session_gap` tells how long
    nothing happened before this step; `holiday` marks public holidays and, in a second column, their eves.

    Args:
        calendar: the grid the timestamps lie on.
        ds: any timestamps of it, in any order.
        names: what is asked for.
        country: whose holidays, as `DE` or `US-NY`.

    Raises:
        InputError: `holiday` is asked for without a country, or of one whose holidays are not known.
    """
    columns: list[FloatArray] = []
    for name in names:
        if name == "session_gap":
            columns.append(_session_gap(calendar, ds))
        elif name == "holiday":
            columns += _holiday(ds, country)
        else:
            angle_T = 2 * np.pi * _SHARES[name](ds)
            columns += [np.sin(angle_T), np.cos(angle_T)]
    return np.stack(columns, axis=1) if columns else np.empty((len(ds), 0))


def _hour(ds: pd.DatetimeIndex) -> FloatArray:
    return np.asarray(ds.as_unit("us").asi8 % _DAY_US / _DAY_US)


def _weekday(ds: pd.DatetimeIndex) -> FloatArray:
    return np.asarray(ds.day_of_week, dtype=np.float64) / 7


def _month_day(ds: pd.DatetimeIndex) -> FloatArray:
    passed: FloatArray = (np.asarray(ds.day, dtype=np.float64) - 1) / np.asarray(ds.days_in_month)
    return passed


def _year_day(ds: pd.DatetimeIndex) -> FloatArray:
    passed: FloatArray = (np.asarray(ds.day_of_year, dtype=np.float64) - 1) / np.where(ds.is_leap_year, 366, 365)
    return passed


_SHARES: dict[str, Callable[[pd.DatetimeIndex], FloatArray]] = {
    "hour": _hour,
    "weekday": _weekday,
    "month_day": _month_day,
    "year_day": _year_day,
}
"""How much of its cycle has passed at each timestamp, in [0, 1)."""


def _session_gap(calendar: Calendar, ds: pd.DatetimeIndex) -> FloatArray:
    if isinstance(calendar, FixedSteps):
        return np.zeros(len(ds))
    days_T = (ds - calendar.previous(ds)) / pd.Timedelta(days=1)
    beyond_T = np.clip(np.asarray(days_T, dtype=np.float64) - 1, 0, _LONGEST_GAP)
    gap_T: FloatArray = np.log1p(beyond_T) / np.log1p(_LONGEST_GAP)
    return gap_T


def _holiday(ds: pd.DatetimeIndex, country: str | None) -> list[FloatArray]:
    if country is None:
        raise InputError("the calendar feature holiday needs a country, such as DE or US-NY")
    day_T = ds.to_numpy().astype("datetime64[D]")
    years = np.unique(ds.year) if len(ds) else np.array([1970])
    known = np.concatenate([_holidays_of(country, int(year)) for year in np.union1d(years, years + 1)])
    return [np.isin(day, known).astype(np.float64) for day in (day_T, day_T + 1)]


@lru_cache(maxsize=2048)
def _holidays_of(country: str, year: int) -> NDArray[np.datetime64]:
    code, _, subdivision = country.partition("-")
    try:
        found = holidays.country_holidays(code, subdiv=subdivision or None, years=year)
    except NotImplementedError as error:
        raise InputError(f"no public holidays are known of {country!r}; {_known(code)}") from error
    return np.array(sorted(found), dtype="datetime64[D]")


def _known(code: str) -> str:
    countries = holidays.list_supported_countries(include_aliases=False)
    if code not in countries:
        return f"known are {len(countries)} countries by their ISO code, such as BR, DE, GB, JP, US or US-NY"
    subdivisions = ", ".join(f"{code}-{name}" for name in countries[code][:60] if len(name) <= 3)
    return f"known are {code}{subdivisions and ', '}{subdivisions}"
