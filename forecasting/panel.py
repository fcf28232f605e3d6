"""Panel: many series in one long frame, validated once at the border and held dense.

N series, T timestamps of the panel's common grid.

The rules, each named by the error or the quality report that follows from it:
  unsorted rows           sorted, and counted in the report
  repeated rows           counted, and one kept where they agree or only one holds a value; refused where
                          they hold different values
  gaps                    made explicit as missing values; never filled
  missing rows at an end  left out: a series runs from its first to its last observation; how long a series
                          has been silent at the end of the panel is in the report
  mixed frequency         refused: most rows decide which grid it is, and the first timestamp off it is named
  time zones              instants are turned to UTC; dates keep the day of their own wall clock
  infinities              refused; a value that is not a number is refused; an empty one is missing; true is 1
  nothing observed        refused
  constant series         kept, and marked in the report
  too short               refused by `require_observed`, where the need is known
"""

import hashlib
import json
from collections.abc import Callable, Iterator
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

MAX_CELLS = 500_000_000
"""Largest dense panel (series times timestamps), 4 GB: one wrong year must not exhaust the memory."""


@dataclass(frozen=True)
class SeriesQuality:
    """What was found in one series on the way in."""

    unique_id: str
    n_observed: int
    n_missing: int
    n_duplicates: int
    n_unsorted: int
    longest_gap: int
    n_silent: int
    """Steps between its last observation and the end of the panel."""
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
        steps = np.arange(self.n_steps)
        series_R, step_R = np.nonzero((steps >= first[:, None]) & (steps <= last[:, None]))
        names = pd.Index(self.unique_ids, dtype=object)
        return pd.DataFrame(
            {"unique_id": names[series_R], "ds": self.ds[step_R], "y": self.y_NT[series_R, step_R]}
        )

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
    problems: dict[str, str] = {}
    rows = _read_rows(frame, calendar, problems)
    unsorted_N = _count_unsorted(rows)
    _find_bad_values(rows, calendar, problems)
    rows, position_R = _place(rows.without(problems), calendar, problems)
    y_NT, duplicates_N = _lay_out(rows, position_R, calendar, problems)
    if problems and (bad_series == "raise" or len(problems) == len(rows.names)):
        raise PanelError(problems)
    grid = calendar.range(rows.ds[int(position_R.argmin())], y_NT.shape[1])
    good_N = np.array([name not in problems for name in rows.names])
    names = tuple(np.asarray(rows.names, dtype=object)[good_N])
    y_NT, ds = _trim(y_NT[good_N] if problems else y_NT, grid)
    quality = tuple(_describe_series(names, y_NT, duplicates_N[good_N], unsorted_N[good_N]))
    return Panel(names, ds, y_NT, calendar, quality, problems)


@dataclass(frozen=True)
class _Rows:
    """The long frame as arrays, one entry a row (R); `code_R` is the position of its series in `names`."""

    names: tuple[str, ...]
    code_R: NDArray[np.intp]
    ds: pd.DatetimeIndex
    y_R: FloatArray
    raw: pd.Series
    """The values as they came, for the messages."""

    def select(self, keep_R: NDArray[np.bool_]) -> "_Rows":
        if keep_R.all():
            return self
        return _Rows(self.names, self.code_R[keep_R], self.ds[keep_R], self.y_R[keep_R], self.raw[keep_R])

    def without(self, problems: dict[str, str]) -> "_Rows":
        good_N = np.array([name not in problems for name in self.names])
        return self.select(good_N[self.code_R])

    def refuse(self, bad_R: NDArray[np.bool_], problems: dict[str, str], say: Callable[[int, int], str]) -> None:
        """Enter what is wrong with each series that has bad rows; `say` gets the first and the count."""
        bad_rows = np.flatnonzero(bad_R)
        codes, first, counts = np.unique(self.code_R[bad_rows], return_index=True, return_counts=True)
        for code, row, count in zip(codes, bad_rows[first], counts, strict=True):
            name = self.names[code]
            problems.setdefault(name, f"series {name!r} {say(int(row), int(count))}")


def _read_rows(frame: pd.DataFrame, calendar: Calendar, problems: dict[str, str]) -> _Rows:
    _require_columns(frame)
    if frame.empty:
        raise InputError("the data holds no series")
    names, code_R = _read_names(frame["unique_id"])
    ds = _read_timestamps(frame["ds"], names, code_R, calendar, problems)
    rows = _Rows(names, code_R, ds, _read_values(frame["y"]), frame["y"].reset_index(drop=True))
    no_ds_R = np.asarray(ds.isna())
    rows.refuse(no_ds_R, problems, lambda _, n: f"has {n} row{'s' * (n > 1)} without a timestamp")
    return rows.select(~no_ds_R)


def _require_columns(frame: pd.DataFrame) -> None:
    columns = list(frame.columns)
    absent = [name for name in ("unique_id", "ds", "y") if name not in columns]
    if absent:
        raise InputError(f"the frame has no column {', '.join(absent)}; it has {', '.join(map(str, columns))}")
    twice = [name for name in ("unique_id", "ds", "y") if columns.count(name) > 1]
    if twice:
        raise InputError(f"the frame has the column {', '.join(twice)} twice")


def _read_names(unique_id: pd.Series) -> tuple[tuple[str, ...], NDArray[np.intp]]:
    label_R, labels = pd.factorize(unique_id)
    texts = np.array([str(label) for label in labels], dtype=object)
    if (label_R < 0).any() or not all(text.strip() for text in texts):
        raise InputError("the column unique_id holds an empty name")
    code_of_label, names = pd.factorize(texts, sort=True)  # again, because 7 and "7" are one name
    return tuple(names), code_of_label[label_R]


def _read_timestamps(
    ds: pd.Series,
    names: tuple[str, ...],
    code_R: NDArray[np.intp],
    calendar: Calendar,
    problems: dict[str, str],
) -> pd.DatetimeIndex:
    """Return naive timestamps, NaT for those of a series whose own could not be read."""
    try:
        return normalise_timestamps(ds, calendar)
    except CalendarError:
        pass  # one series is at fault, or each has a time zone of its own: read them one by one
    read = np.full(len(ds), np.datetime64("NaT"), dtype="datetime64[us]")
    for code, row_R in pd.Series(code_R).groupby(code_R).groups.items():
        name = names[int(str(code))]
        try:
            read[row_R] = normalise_timestamps(ds.iloc[row_R].infer_objects(), calendar).to_numpy()
        except CalendarError as error:
            problems[name] = f"series {name!r}: {error}"
    return pd.DatetimeIndex(read)


def _read_values(y: pd.Series) -> FloatArray:
    """Return the values as numbers, NaN for what is none."""
    if y.dtype.kind in "mMc":
        raise InputError(f"the column y holds {y.dtype} values; numbers are needed")
    try:
        return pd.to_numeric(y, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    except OverflowError as error:
        raise InputError("the column y holds a whole number too large for a 64-bit float") from error


def _count_unsorted(rows: _Rows) -> NDArray[np.int64]:
    """Count, per series, the rows that are earlier than the row before them."""
    order = np.argsort(rows.code_R, kind="stable")
    code_R, time_R = rows.code_R[order], rows.ds.asi8[order]
    backwards_R = (np.diff(code_R) == 0) & (np.diff(time_R) < 0)
    return np.bincount(code_R[1:][backwards_R], minlength=len(rows.names))


def _find_bad_values(rows: _Rows, calendar: Calendar, problems: dict[str, str]) -> None:
    observed_R = np.isfinite(rows.y_R)
    unread_R = np.isnan(rows.y_R) & rows.raw.notna().to_numpy()
    if unread_R.any():
        blank = rows.raw[unread_R].astype(str).str.strip() == ""
        unread_R[unread_R] = ~blank.to_numpy()

    def say(what: str) -> Callable[[int, int], str]:
        def describe(row: int, _: int) -> str:
            value, at = rows.raw.iloc[row], format_timestamp(rows.ds[row], calendar)
            return f"holds {value if isinstance(value, float) else repr(value)} at {at}, which is {what}"

        return describe

    rows.refuse(unread_R, problems, say("not a number"))
    rows.refuse(np.isinf(rows.y_R), problems, say("not finite"))
    counts_N = np.bincount(rows.code_R[observed_R], minlength=len(rows.names))
    for code in np.flatnonzero(counts_N == 0):
        problems.setdefault(rows.names[code], f"series {rows.names[code]!r} has no observed value")


def _place(rows: _Rows, calendar: Calendar, problems: dict[str, str]) -> tuple[_Rows, NDArray[np.int64]]:
    """Return the rows on the grid that most rows share, with their positions; refuse series with others."""
    if rows.ds.empty:
        return rows, np.empty(0, dtype=np.int64)
    start = _grid_start(rows.ds, calendar)
    position_R = calendar.locate(start, rows.ds) if start is not None else np.full(len(rows.ds), OFF_GRID)
    through = "" if start is None else f" through {format_timestamp(start, calendar)}"

    def say(row: int, count: int) -> str:
        others = f" and {count - 1} more" if count > 1 else ""
        at = format_timestamp(rows.ds[row], calendar)
        return f"has timestamps off the grid of freq {calendar.freq}{through}: {at}{others}"

    on_R = position_R != OFF_GRID
    rows.refuse(~on_R, problems, say)
    return rows.select(on_R), position_R[on_R]


def _grid_start(ds: pd.DatetimeIndex, calendar: Calendar) -> pd.Timestamp | None:
    """Return the earliest timestamp on the grid of most rows, so that no stray row decides which it is."""
    phase_R = calendar.phases(ds)
    counts = pd.Series(phase_R[phase_R != OFF_GRID]).value_counts()
    if counts.empty:
        return None
    commonest = counts.index[counts == counts.max()]
    return pd.Timestamp(ds[np.isin(phase_R, commonest)].min())


def _lay_out(
    rows: _Rows, position_R: NDArray[np.int64], calendar: Calendar, problems: dict[str, str]
) -> tuple[FloatArray, NDArray[np.int64]]:
    """Return the dense values and the number of repeated rows of every series; refuse contradictions."""
    n_series = len(rows.names)
    if len(position_R) == 0:
        return np.empty((n_series, 0)), np.zeros(n_series, dtype=np.int64)
    n_steps = int(position_R.max() - position_R.min()) + 1
    if n_series * n_steps > MAX_CELLS:
        raise InputError(_describe_span(rows, n_steps, calendar))
    cell_R = (rows.code_R, position_R - position_R.min())
    y_NT, present_NT = np.full((n_series, n_steps), np.nan), np.zeros((n_series, n_steps), dtype=bool)
    present_NT[cell_R] = True
    observed_R = np.isfinite(rows.y_R)
    y_NT[rows.code_R[observed_R], cell_R[1][observed_R]] = rows.y_R[observed_R]
    rows.refuse(
        observed_R & (y_NT[cell_R] != rows.y_R),
        problems,
        lambda row, _: f"has two different values at {format_timestamp(rows.ds[row], calendar)}",
    )
    return y_NT, np.bincount(rows.code_R, minlength=n_series) - present_NT.sum(axis=1)


def _describe_span(rows: _Rows, n_steps: int, calendar: Calendar) -> str:
    first, last = (
        f"{format_timestamp(rows.ds[row], calendar)} (series {rows.names[rows.code_R[row]]!r})"
        for row in (int(rows.ds.argmin()), int(rows.ds.argmax()))
    )
    return f"the data spans {n_steps} steps, from {first} to {last}: is one of these timestamps wrong?"


def _trim(y_NT: FloatArray, ds: pd.DatetimeIndex) -> tuple[FloatArray, pd.DatetimeIndex]:
    """Cut the steps before the first and after the last observation of any series."""
    steps = np.flatnonzero(np.isfinite(y_NT).any(axis=0))
    span = slice(int(steps[0]), int(steps[-1]) + 1)
    return np.ascontiguousarray(y_NT[:, span]), ds[span]


def _describe_series(
    names: tuple[str, ...],
    y_NT: FloatArray,
    duplicates_N: NDArray[np.int64],
    unsorted_N: NDArray[np.int64],
) -> Iterator[SeriesQuality]:
    for n, unique_id in enumerate(names):
        observed = np.flatnonzero(np.isfinite(y_NT[n]))
        steps = np.diff(observed)
        yield SeriesQuality(
            unique_id=unique_id,
            n_observed=len(observed),
            n_missing=int(observed[-1] - observed[0] + 1 - len(observed)),
            n_duplicates=int(duplicates_N[n]),
            n_unsorted=int(unsorted_N[n]),
            longest_gap=int(steps.max() - 1) if len(steps) else 0,
            n_silent=y_NT.shape[1] - 1 - int(observed[-1]),
            constant=bool((y_NT[n][observed] == y_NT[n][observed[0]]).all()),
        )


def save_panel(panel: Panel, path: Path) -> None:
    """Write a validated panel to one file in NumPy's `.npz` format, exactly."""
    head = {"freq": panel.calendar.freq, "start": panel.ds[0].isoformat(), "unique_ids": panel.unique_ids}
    with path.open("wb") as file:  # a path that np.savez opens itself gets a suffix it was not given
        np.savez(file, head=np.array(json.dumps(head)), y_NT=panel.y_NT)


def load_panel(path: Path) -> Panel:
    """Read a panel that `save_panel` wrote."""
    with np.load(path, allow_pickle=False) as stored:
        head, y_NT = json.loads(str(stored["head"])), stored["y_NT"]
    calendar = parse_freq(head["freq"])
    unique_ids = tuple(head["unique_ids"])
    ds = calendar.range(pd.Timestamp(head["start"]), y_NT.shape[1])
    none_N = np.zeros(len(unique_ids), dtype=np.int64)
    quality = tuple(_describe_series(unique_ids, y_NT, none_N, none_N))
    return Panel(unique_ids, ds, y_NT, calendar, quality)
