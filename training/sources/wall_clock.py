"""Timestamps as files hold them: text, numbers or local wall-clock time, turned into real ones.

A wall clock skips an hour in spring and tells one twice in autumn. Neither is guessed at: a time that did not
exist is an error, and one that happened twice is told apart by the order of the rows or not at all.
"""

from typing import Annotated, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import AfterValidator

from forecasting.errors import SourceError

EpochUnit = Literal["s", "ms", "us", "ns"]

EPOCH_UNITS: dict[str, EpochUnit] = {"epoch_s": "s", "epoch_ms": "ms", "epoch_us": "us", "epoch_ns": "ns"}
"""Values of `timestamp_format` for numbers counted from 1970-01-01T00:00Z, and the unit of each."""


def _require_zone(name: str) -> str:
    try:
        return ZoneInfo(name).key
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ValueError(f"unknown time zone {name!r}; use an IANA name such as Europe/Berlin") from error


TimeZone = Annotated[str, AfterValidator(_require_zone)]
"""The name of a time zone there is."""

_ISO = "in ISO 8601, such as 2024-03-31T02:00; set timestamp_format"


def parse_timestamps(ds: pd.Series, names: pd.Series, timestamp_format: str | None) -> pd.Series:
    """Return `ds` as timestamps: naive where the file gives wall-clock time, aware where it gives an instant.

    Args:
        ds: what the file holds.
        names: the series of each row, for the messages.
        timestamp_format: a strptime format, one of EPOCH_UNITS, or ISO 8601 where it is none.

    Raises:
        SourceError: a value cannot be read, or only some carry a UTC offset; the first is named.
    """
    if timestamp_format is not None and timestamp_format in EPOCH_UNITS:
        return _parse_epoch(ds, names, EPOCH_UNITS[timestamp_format])
    if ds.dtype.kind == "M":
        return ds
    if ds.dtype.kind in "biuf" and ds.notna().any() and not (timestamp_format or "").startswith("%"):
        raise SourceError(
            f"the timestamps are numbers, such as {ds.dropna().iloc[0]}; "
            f"give timestamp_format: {', '.join(EPOCH_UNITS)} or a format such as %Y%m%d"
        )
    text = ds if isinstance(ds.dtype, pd.StringDtype) else ds.map(_text, na_action="ignore").astype("str")
    return _parse_text(text, names, timestamp_format or "ISO8601")


def _text(value: object) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _parse_epoch(ds: pd.Series, names: pd.Series, unit: EpochUnit) -> pd.Series:
    numbers = pd.to_numeric(ds, errors="coerce") if ds.dtype.kind not in "mM" else pd.Series(np.nan, ds.index)
    _refuse_unread(ds, numbers, names, f"seconds since 1970, in {unit}")
    instants = pd.to_datetime(numbers.astype(np.float64), unit=unit, utc=True, errors="coerce")
    _refuse_unread(ds, instants, names, "a moment that a timestamp can hold")
    rounded: pd.Series = instants.dt.round("us")
    return rounded


def _parse_text(ds: pd.Series, names: pd.Series, timestamp_format: str) -> pd.Series:
    wanted = _ISO if timestamp_format == "ISO8601" else f"of the form {timestamp_format}"
    _refuse_unread(ds, ds.mask(ds.isin(["now", "today"])), names, wanted)  # pandas reads these
    try:
        return pd.to_datetime(ds, format=timestamp_format)
    except (ValueError, OverflowError):
        pass  # something cannot be read, or there are several UTC offsets, as on both sides of a clock change
    instants = pd.to_datetime(ds, format=timestamp_format, utc=True, errors="coerce")
    _refuse_unread(ds, instants, names, wanted)
    offset = ds.str.contains(r":.*(?:Z|[+-]\d{2}(?::?\d{2})?)\s*$", regex=True) | ds.isna()
    if timestamp_format == "ISO8601" and not offset.all():
        row = int(np.argmin(offset.to_numpy()))
        raise SourceError(
            f"series {str(names.iloc[row])!r}: {ds.iloc[row]} carries no UTC offset, and other timestamps do"
        )
    return instants


def _refuse_unread(ds: pd.Series, read: pd.Series, names: pd.Series, wanted: str) -> None:
    for row in np.flatnonzero(read.isna() & ds.notna()):
        if str(ds.iloc[row]).strip():  # an empty timestamp is left for the panel to refuse with its series
            raise SourceError(
                f"series {str(names.iloc[row])!r}: the timestamp {str(ds.iloc[row])!r} is not {wanted}"
            )


def localise(ds: pd.Series, names: pd.Series, timezone: str) -> pd.Series:
    """Return wall-clock times as instants of a zone; dates stay dates, and instants are told in the zone.

    Raises:
        SourceError: a wall-clock time did not exist, or happened twice and the order of the rows does not
            tell which one it is; series and time are named.
    """
    zone = ZoneInfo(timezone)
    if ds.dt.tz is not None:
        return pd.Series(ds.dt.tz_convert(zone))
    if (ds.isna() | (ds == ds.dt.normalize())).all():
        return ds
    absent = _is_lost(ds, ds.dt.tz_localize(zone, nonexistent="NaT", ambiguous=_always(ds)))
    if absent.any():
        row = int(absent.argmax())
        raise SourceError(
            f"series {str(names.iloc[row])!r}: {ds.iloc[row]} does not exist in {timezone}: "
            "the clocks went forward; is the zone right?"
        )
    twice = _is_lost(ds, ds.dt.tz_localize(zone, ambiguous="NaT", nonexistent="raise"))
    summer = _always(ds)
    summer[twice] = _tell_apart(ds, names, twice, timezone)
    return pd.Series(ds.dt.tz_localize(zone, ambiguous=summer))


def _always(ds: pd.Series) -> NDArray[np.bool_]:
    return np.ones(len(ds), dtype=bool)


def _is_lost(before: pd.Series, after: pd.Series) -> NDArray[np.bool_]:
    return (after.isna() & before.notna()).to_numpy()


def _tell_apart(ds: pd.Series, names: pd.Series, twice: NDArray[np.bool_], timezone: str) -> NDArray[np.bool_]:
    """Say of each doubtful time whether it is the first: before the one step back in its series that night."""
    rows = pd.DataFrame({"name": names.to_numpy(), "ds": ds.to_numpy()})
    ends = rows.groupby("name")["ds"].agg(["first", "last"])
    newest_first = ends.index[ends["first"] > ends["last"]]
    doubtful = rows[twice].assign(night=lambda part: part["ds"].dt.normalize())
    summer = pd.Series(data=True, index=doubtful.index)
    for (name, _), night in doubtful.groupby(["name", "night"]):
        times = night["ds"].iloc[::-1] if name in newest_first else night["ds"]
        back = np.flatnonzero(np.diff(times.to_numpy()) <= np.timedelta64(0))
        if len(back) != 1:
            raise SourceError(
                f"series {str(name)!r}: {times.iloc[0]} happened twice in {timezone}, and the order of the rows "
                "does not tell which one it is; give UTC, or timestamps with an offset"
            )
        summer[times.index[back[0] + 1 :]] = False
    return summer.to_numpy()
