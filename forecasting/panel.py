"""Panel: many series in one long frame, validated once at the border and held dense.

N series, T timestamps of the panel's common grid.

The rules, each named by the error or the quality report that follows from it:
  unsorted rows          sorted, and counted in the report
  repeated rows          dropped and counted when they agree; refused when they hold different values
  gaps                   made explicit as missing values; never filled
  trailing missing rows  kept: a sensor that fell silent has an old cutoff, and the report says so
  mixed frequency        refused: the first timestamp off the grid is named
  infinities             refused; a value that is not a number is refused; an empty one is missing
  constant series        kept, and marked in the report
  too short              refused by `require_observed`, where the need is known
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from forecasting.calendar import OFF_GRID, Calendar, format_timestamp, normalise_timestamps, parse_freq
from forecasting.errors import CalendarError, InputError, PanelError

FloatArray = NDArray[np.float64]
BadSeries = Literal["raise", "drop"]

MAX_CELLS = 1_000_000_000
"""Largest dense panel (series times timestamps): beyond it, one wrong year would exhaust the memory."""


@dataclass(frozen=True)
class SeriesQuality:
    """What was found in one series on the way in."""

    unique_id: str
    n_observed: int
    n_missing: int
    n_duplicates: int
    n_unsorted: int
    longest_gap: int
    constant: bool


@dataclass(frozen=True, eq=False)
class Panel:
    """Many series on one grid: `y_NT` holds NaN wherever nothing was observed."""

    unique_ids: tuple[str, ...]
    ds: pd.DatetimeIndex
    y_NT: FloatArray
    calendar: Calendar
    quality: tuple[SeriesQuality, ...] = ()
    dropped: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.y_NT.setflags(write=False)

    @property
    def n_series(self) -> int:
        return len(self.unique_ids)

    @property
    def n_steps(self) -> int:
        return len(self.ds)

    @property
    def n_observed(self) -> int:
        """Return the number of values that are not missing."""
        return int(np.isfinite(self.y_NT).sum())

    def spans(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the positions of the first and of the last observed value of every series."""
        observed_NT = np.isfinite(self.y_NT)
        first = observed_NT.argmax(axis=1)
        last = self.n_steps - 1 - observed_NT[:, ::-1].argmax(axis=1)
        return first.astype(np.int64), last.astype(np.int64)

    def before(self, stop: int) -> "Panel":
        """Return the panel as it stood before position `stop` of its grid."""
        return Panel(self.unique_ids, self.ds[:stop], self.y_NT[:, :stop].copy(), self.calendar)

    def require_observed(self, n: int, *, why: str) -> None:
        """Check that every series has at least `n` observed values.

        Raises:
            PanelError: some series are too short; each is named.
        """
        counts = np.isfinite(self.y_NT).sum(axis=1)
        problems = {
            unique_id: f"series {unique_id!r} has {count} observed points; {n} are needed ({why})"
            for unique_id, count in zip(self.unique_ids, counts, strict=True)
            if count < n
        }
        if problems:
            raise PanelError(problems)

    def to_frame(self) -> pd.DataFrame:
        """Return the long frame: one row a step between a series' first and last observation."""
        first, last = self.spans()
        parts = [
            pd.DataFrame({"unique_id": uid, "ds": self.ds[a : b + 1], "y": self.y_NT[i, a : b + 1]})
            for i, (uid, a, b) in enumerate(zip(self.unique_ids, first, last, strict=True))
        ]
        return pd.concat(parts, ignore_index=True)

    def digest(self) -> str:
        """Return a SHA-256 over frequency, names, grid and values: equal digests mean equal data."""
        head = [self.calendar.freq, list(self.unique_ids), str(self.ds[0]), self.n_steps]
        sha = hashlib.sha256(json.dumps(head).encode())
        sha.update(np.nan_to_num(self.y_NT, nan=np.nan).tobytes())
        return sha.hexdigest()

    def describe(self) -> str:
        """Return one line for a log: size, range and what is missing."""
        missing = sum(q.n_missing for q in self.quality)
        start, end = (format_timestamp(ds, self.calendar) for ds in (self.ds[0], self.ds[-1]))
        return (
            f"{self.n_series} series, {self.n_observed} points, {start} to {end}, "
            f"freq {self.calendar.freq}, {missing} missing"
        )


def build_panel(frame: pd.DataFrame, freq: str, *, bad_series: BadSeries = "raise") -> Panel:
    """Validate a long frame (`unique_id`, `ds`, `y`) and lay it out on its grid.

    Args:
        frame: one row an observation, in any order.
        freq: a pandas alias or an exchange calendar.
        bad_series: `raise` refuses the panel when any series is bad, naming all of them; `drop` leaves
            those out and lists them in `Panel.dropped`.

    Raises:
        InputError: the frame itself cannot be read as a long frame.
        PanelError: a series was refused, or none is left.
    """
    calendar = parse_freq(freq)
    rows = _read_rows(frame, calendar)
    problems: dict[str, str] = {}
    _find_bad_values(rows, calendar, problems)
    duplicates = _find_duplicates(rows, calendar, problems)
    rows.frame = rows.frame[~duplicates]
    good = rows.frame[~rows.frame["unique_id"].isin(problems)]
    positions = _positions(good, calendar, problems)
    if problems and bad_series == "raise":
        raise PanelError(problems)
    keep = ~good["unique_id"].isin(problems).to_numpy()
    good, positions = good[keep], positions[keep]
    if good.empty:
        raise PanelError(problems or {"": "the data holds no series"})
    return _lay_out(good, positions, calendar, rows, problems)


@dataclass
class _Rows:
    """The sorted long frame, and what sorting and cleaning it found."""

    frame: pd.DataFrame
    unsorted: dict[str, int]
    duplicates: dict[str, int] = field(default_factory=dict)


def _read_rows(frame: pd.DataFrame, calendar: Calendar) -> _Rows:
    absent = [name for name in ("unique_id", "ds", "y") if name not in frame.columns]
    if absent:
        raise InputError(
            f"the frame has no column {', '.join(absent)}; it has {', '.join(map(str, frame.columns))}"
        )
    if frame["unique_id"].isna().any():
        raise InputError("the column unique_id holds an empty name")
    rows = pd.DataFrame(
        {
            "unique_id": frame["unique_id"].astype(str).to_numpy(dtype=object),
            "ds": _timestamps(frame, calendar),
            "raw": frame["y"].to_numpy(),
        }
    )
    rows["y"] = pd.to_numeric(rows["raw"], errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    same = rows["unique_id"].eq(rows["unique_id"].shift())
    backwards = rows.loc[same & (rows["ds"] < rows["ds"].shift()), "unique_id"]
    rows = rows.sort_values(["unique_id", "ds"], kind="stable", ignore_index=True)
    return _Rows(rows, {str(uid): int(count) for uid, count in backwards.value_counts().items()})


def _timestamps(frame: pd.DataFrame, calendar: Calendar) -> pd.DatetimeIndex:
    try:
        ds = normalise_timestamps(frame["ds"], calendar)
    except CalendarError as error:
        for unique_id, part in frame.groupby("unique_id", sort=False):
            try:
                normalise_timestamps(part["ds"], calendar)
            except CalendarError as cause:
                raise PanelError({str(unique_id): f"series {str(unique_id)!r}: {cause}"}) from cause
        raise InputError(f"time zones differ between series: {error}") from error
    if ds.hasnans:
        unique_id = str(frame["unique_id"].to_numpy()[np.asarray(ds.isna()).argmax()])
        raise PanelError({unique_id: f"series {unique_id!r} has a row without a timestamp"})
    return ds


def _find_bad_values(rows: _Rows, calendar: Calendar, problems: dict[str, str]) -> None:
    frame = rows.frame
    text = frame["y"].isna() & frame["raw"].notna()
    infinite = np.isinf(frame["y"])
    for bad, what in ((text, "is not a number"), (infinite, "is not finite")):
        for unique_id, ds, raw in _first_of_each(frame[bad], "raw"):
            at = format_timestamp(ds, calendar)
            problems.setdefault(unique_id, f"series {unique_id!r}: y at {at} {what}: {raw!r}")
    observed = frame.loc[~text, ["unique_id", "y"]].groupby("unique_id")["y"].count()
    for unique_id in observed.index[observed == 0]:
        problems.setdefault(str(unique_id), f"series {unique_id!r} has no observed value")


def _first_of_each(rows: pd.DataFrame, column: str) -> Iterator[tuple[str, pd.Timestamp, object]]:
    """Yield name, timestamp and one column of the first row of every series."""
    first = rows.drop_duplicates("unique_id")
    for unique_id, ds, value in zip(first["unique_id"], first["ds"], first[column], strict=True):
        yield str(unique_id), pd.Timestamp(ds), value


def _find_duplicates(rows: _Rows, calendar: Calendar, problems: dict[str, str]) -> NDArray[np.bool_]:
    """Mark repeated rows that agree with the first; report those that do not."""
    frame = rows.frame
    repeated = frame.duplicated(["unique_id", "ds"]).to_numpy()
    if not repeated.any():
        return repeated
    first = frame.groupby(["unique_id", "ds"], sort=False)["y"].transform("first")
    differs = repeated & ~((frame["y"] == first) | (frame["y"].isna() & first.isna())).to_numpy()
    for unique_id, ds, _ in _first_of_each(frame[differs], "y"):
        at = format_timestamp(ds, calendar)
        problems.setdefault(unique_id, f"series {unique_id!r} has two different values at {at}")
    counts = frame.loc[repeated, "unique_id"].value_counts()
    rows.duplicates = {str(uid): int(count) for uid, count in counts.items()}
    return repeated


def _positions(rows: pd.DataFrame, calendar: Calendar, problems: dict[str, str]) -> NDArray[np.int64]:
    """Place every row on the grid of the earliest series, and report series that do not lie on it."""
    if rows.empty:
        return np.empty(0, dtype=np.int64)
    ds = pd.DatetimeIndex(rows["ds"])
    start = _grid_start(rows, calendar)
    positions = calendar.locate(start, ds)
    off = rows[positions == OFF_GRID]
    for unique_id, part in off.groupby("unique_id"):
        at = format_timestamp(part["ds"].iloc[0], calendar)
        others = f" and {len(part) - 1} more" if len(part) > 1 else ""
        problems[str(unique_id)] = (
            f"series {unique_id!r}: {at}{others} does not lie on the grid of freq {calendar.freq} "
            f"that contains {format_timestamp(start, calendar)}"
        )
    return positions


def _grid_start(rows: pd.DataFrame, calendar: Calendar) -> pd.Timestamp:
    """Return the earliest timestamp that lies on the calendar, so that one stray row cannot set the grid."""
    for start in rows["ds"].sort_values().unique()[:100]:
        if calendar.locate(start, pd.DatetimeIndex([start]))[0] != OFF_GRID:
            return pd.Timestamp(start)
    return pd.Timestamp(rows["ds"].min())


def _lay_out(
    rows: pd.DataFrame,
    positions: NDArray[np.int64],
    calendar: Calendar,
    found: _Rows,
    problems: dict[str, str],
) -> Panel:
    codes, unique_ids = pd.factorize(rows["unique_id"], sort=True)
    low, high = int(positions.min()), int(positions.max())
    n_steps = high - low + 1
    if len(unique_ids) * n_steps > MAX_CELLS:
        first, last = rows.iloc[int(positions.argmin())], rows.iloc[int(positions.argmax())]
        raise InputError(
            f"the data spans {n_steps} steps, from {first['ds']} (series {first['unique_id']!r}) to "
            f"{last['ds']} (series {last['unique_id']!r}): is one of these timestamps wrong?"
        )
    grid_start = pd.Timestamp(rows["ds"].iloc[int(positions.argmin())])
    y_NT = np.full((len(unique_ids), n_steps), np.nan)
    y_NT[codes, positions - low] = rows["y"].to_numpy()
    names = tuple(str(uid) for uid in unique_ids)
    quality = tuple(_describe_series(names, y_NT, found))
    return Panel(names, calendar.range(grid_start, n_steps), y_NT, calendar, quality, problems)


def _describe_series(names: tuple[str, ...], y_NT: FloatArray, found: _Rows) -> Iterator[SeriesQuality]:
    for unique_id, y_T in zip(names, y_NT, strict=True):
        observed = np.flatnonzero(np.isfinite(y_T))
        values = y_T[observed]
        steps = np.diff(observed)
        yield SeriesQuality(
            unique_id=unique_id,
            n_observed=len(observed),
            n_missing=int(observed[-1] - observed[0] + 1 - len(observed)),
            n_duplicates=found.duplicates.get(unique_id, 0),
            n_unsorted=found.unsorted.get(unique_id, 0),
            longest_gap=int(steps.max() - 1) if len(steps) else 0,
            constant=bool(np.ptp(values) == 0),
        )


def save_panel(panel: Panel, path: Path) -> None:
    """Write a validated panel to one `.npz` file, exactly."""
    head = {"freq": panel.calendar.freq, "start": panel.ds[0].isoformat(), "unique_ids": panel.unique_ids}
    np.savez(path, head=np.array(json.dumps(head)), y_NT=panel.y_NT)


def load_panel(path: Path) -> Panel:
    """Read a panel that `save_panel` wrote."""
    with np.load(path, allow_pickle=False) as stored:
        head, y_NT = json.loads(str(stored["head"])), stored["y_NT"]
    calendar = parse_freq(head["freq"])
    unique_ids = tuple(head["unique_ids"])
    ds = calendar.range(pd.Timestamp(head["start"]), y_NT.shape[1])
    quality = tuple(_describe_series(unique_ids, y_NT, _Rows(pd.DataFrame(), {})))
    return Panel(unique_ids, ds, y_NT, calendar, quality)
