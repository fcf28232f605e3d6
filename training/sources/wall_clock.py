"""Timestamps as files hold them: text, numbers or local wall-clock time, turned into real ones.

A wall clock skips an hour in spring and tells one twice in autumn. Neither is guessed at: a time that did not
exist is an error, and one that happened twice is told apart by the order of the rows or not at all.

R rows.
"""

from collections.abc import Callable
from dataclasses import dataclass
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

MOST_TOLD = 100
"""Timestamps that cannot be read of which each is told; the others are missing."""

BoolArray = NDArray[np.bool_]

_ISO = "in ISO 8601, such as 2024-03-31T02:00; set timestamp_format"


@dataclass(frozen=True)
class Unread:
    """Stands in the place of a timestamp that cannot be read."""

    reason: str


class _Reading:
    """Timestamps on the way from what a file holds to real ones, and what is wrong with those that get nowhere."""

    def __init__(self, ds: pd.Series, names: pd.Series) -> None:
        self.ds = ds
        self.names = names
        self.unread: dict[int, str] = {}

    def refuse(self, bad_R: BoolArray, reason: Callable[[object], str]) -> None:
        """Take the timestamps of these rows away, and note why."""
        for row in np.flatnonzero(bad_R)[:MOST_TOLD]:
            self.unread.setdefault(int(row), reason(self.ds.iloc[row]))
        self.ds = self.ds.mask(bad_R)


def read_timestamps(
    ds: pd.Series,
    names: pd.Series,
    timestamp_format: str | None = None,
    timezone: str | None = None,
    *,
    row_by_row: bool = False,
) -> pd.Series:
    """Return `ds` as timestamps: naive where the file gives wall-clock time, aware where it gives an instant.

    Args:
        ds: what the file holds.
        names: the series of each row: for the messages, and the order of what happened twice.
        timestamp_format: a strptime format, one of EPOCH_UNITS, or ISO 8601 where it is none.
        timezone: the zone of wall-clock times: they become instants; dates stay dates.
        row_by_row: a timestamp that cannot be read fails alone: an `Unread` in its place says why.

    Raises:
        SourceError: the timestamps are of another kind than was said, or one cannot be read, did not exist, or
            happened twice and the order of the rows does not tell which one it is; series and time are named.
    """
    reading = _Reading(ds, names)
    _parse(reading, timestamp_format)
    if timezone is not None:
        _localise(reading, timezone)
    if not reading.unread:
        return reading.ds
    if not row_by_row:
        row = min(reading.unread)
        raise SourceError(f"series {str(names.iloc[row])!r}: {reading.unread[row]}")
    mixed = reading.ds.astype(object)
    mixed.iloc[list(reading.unread)] = [Unread(reason) for reason in reading.unread.values()]
    return mixed


def split_unread(ds: pd.Series) -> tuple[pd.Series, dict[int, str]]:
    """Return timestamps without those that could not be read, and by row why they could not."""
    if ds.dtype != object:
        return ds, {}
    unread = {row: value.reason for row, value in enumerate(ds) if isinstance(value, Unread)}
    if not unread:
        return ds, {}
    rest = ds.copy()
    rest.iloc[list(unread)] = pd.NaT
    return pd.to_datetime(rest), unread


def _parse(reading: _Reading, timestamp_format: str | None) -> None:
    ds = reading.ds
    if timestamp_format is not None and timestamp_format in EPOCH_UNITS:
        _parse_epoch(reading, EPOCH_UNITS[timestamp_format])
    elif ds.dtype.kind == "M":
        return
    elif ds.dtype.kind in "biuf" and ds.notna().any() and not (timestamp_format or "").startswith("%"):
        raise SourceError(
            f"the timestamps are numbers, such as {ds.dropna().iloc[0]}; "
            f"give timestamp_format: {', '.join(EPOCH_UNITS)} or a format such as %Y%m%d"
        )
    else:
        is_text = isinstance(ds.dtype, pd.StringDtype)
        reading.ds = ds if is_text else ds.map(_text, na_action="ignore").astype("str")
        _parse_text(reading, timestamp_format or "ISO8601")


def _text(value: object) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _parse_epoch(reading: _Reading, unit: EpochUnit) -> None:
    ds = reading.ds
    numbers = pd.to_numeric(ds, errors="coerce") if ds.dtype.kind not in "mM" else pd.Series(np.nan, ds.index)
    _refuse_unread(reading, numbers, f"seconds since 1970, in {unit}")
    instants = pd.to_datetime(numbers.astype(np.float64), unit=unit, utc=True, errors="coerce")
    _refuse_unread(reading, instants, "a moment that a timestamp can hold")
    reading.ds = instants.dt.round("us")


def _parse_text(reading: _Reading, timestamp_format: str) -> None:
    wanted = _ISO if timestamp_format == "ISO8601" else f"of the form {timestamp_format}"
    _refuse_unread(reading, reading.ds.mask(reading.ds.isin(["now", "today"])), wanted)  # pandas reads these
    if (read := _parse_alike(reading.ds, timestamp_format)) is None:
        instants = pd.to_datetime(reading.ds, format=timestamp_format, utc=True, errors="coerce")
        _refuse_unread(reading, instants, wanted)
        read = _parse_alike(reading.ds.where(instants.notna()), timestamp_format)
    if read is None:
        read = _parse_instants(reading, timestamp_format)
    reading.ds = read


def _parse_alike(ds: pd.Series, timestamp_format: str) -> pd.Series | None:
    """Return timestamps that are all naive, or all of one UTC offset; None where they are not, or one is none."""
    try:
        return pd.to_datetime(ds, format=timestamp_format)
    except (ValueError, OverflowError):
        return None


def _parse_instants(reading: _Reading, timestamp_format: str) -> pd.Series:
    """Return timestamps of several UTC offsets, as on both sides of a clock change."""
    if timestamp_format == "ISO8601":
        aware = reading.ds.str.contains(r":.*(?:Z|[+-]\d{2}(?::?\d{2})?)\s*$", regex=True) | reading.ds.isna()
        why = "carries no UTC offset, and other timestamps do"
        reading.refuse(~aware.to_numpy(dtype=bool), lambda text: f"{text} {why}")
    return pd.to_datetime(reading.ds, format=timestamp_format, utc=True, errors="coerce")


def _refuse_unread(reading: _Reading, read: pd.Series, wanted: str) -> None:
    lost_R = (read.isna() & reading.ds.notna()).to_numpy(copy=True)
    # An empty timestamp is left for the panel to refuse with its series.
    lost_R[lost_R] = [bool(str(value).strip()) for value in reading.ds[lost_R]]
    reading.refuse(lost_R, lambda value: f"the timestamp {str(value)!r} is not {wanted}")


def _localise(reading: _Reading, timezone: str) -> None:
    """Turn wall-clock times into instants of a zone; dates stay dates, and instants are told in the zone."""
    zone, ds = ZoneInfo(timezone), reading.ds
    if ds.dt.tz is not None:
        reading.ds = ds.dt.tz_convert(zone)
        return
    if (ds.isna() | (ds == ds.dt.normalize())).all():
        return
    absent_R = _is_lost(ds, ds.dt.tz_localize(zone, nonexistent="NaT", ambiguous=_always(ds)))
    reading.refuse(
        absent_R, lambda time: f"{time} does not exist in {timezone}: the clocks went forward; is the zone right?"
    )
    twice_R = _is_lost(reading.ds, reading.ds.dt.tz_localize(zone, ambiguous="NaT", nonexistent="raise"))
    summer_R, untold_R = _tell_apart(reading, twice_R)
    reading.refuse(
        untold_R,
        lambda time: (
            f"{time} happened twice in {timezone}, and the order of the rows "
            "does not tell which one it is; give UTC, or timestamps with an offset"
        ),
    )
    reading.ds = reading.ds.dt.tz_localize(zone, ambiguous=summer_R)


def _always(ds: pd.Series) -> BoolArray:
    return np.ones(len(ds), dtype=bool)


def _is_lost(before: pd.Series, after: pd.Series) -> BoolArray:
    return (after.isna() & before.notna()).to_numpy()


def _tell_apart(reading: _Reading, twice_R: BoolArray) -> tuple[BoolArray, BoolArray]:
    """Say of each doubtful time whether it is the first: before the one step back in its series that night.

    And say of which nobody can tell.
    """
    rows = pd.DataFrame({"name": reading.names.to_numpy(), "ds": reading.ds.to_numpy()})
    summer_R, untold_R = _always(reading.ds), np.zeros(len(rows), dtype=bool)
    ends = rows.groupby("name")["ds"].agg(["first", "last"])
    newest_first = ends.index[ends["first"] > ends["last"]]
    doubtful = rows[twice_R].assign(night=lambda part: part["ds"].dt.normalize())
    for (name, _), night in doubtful.groupby(["name", "night"]):
        times = night["ds"].iloc[::-1] if name in newest_first else night["ds"]
        back = np.flatnonzero(np.diff(times.to_numpy()) <= np.timedelta64(0))
        if len(back) == 1:
            summer_R[times.index[back[0] + 1 :]] = False
        else:
            untold_R[times.index] = True
    return summer_R, untold_R
