"""Panel: many series in one long frame, validated once at the border and held dense.

N series, T timestamps of the panel's common grid, U >= T timestamps of its future columns, P past and F future
columns, C = 1 + P + F columns of numbers, R rows of the frame.

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
  covariates              read with the same care as y; a future column may go on after the last observation
  statics                 one name a series, text or number; two different names in one series are refused
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from forecasting.calendar import OFF_GRID, Calendar, format_timestamp, normalise_timestamps, parse_freq
from forecasting.covariates import Covariates
from forecasting.errors import CalendarError, InputError, PanelError
from forecasting.spec import CovariatesSpec

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BadSeries = Literal["raise", "drop"]

MAX_CELLS = 500_000_000
"""Largest dense panel (series times timestamps), 4 GB: one wrong year must not exhaust the memory."""


@dataclass(frozen=True)
class Columns:
    """The covariates of a long frame, by the names of their columns."""

    past: tuple[str, ...] = ()
    """Known up to the cutoff."""
    future: tuple[str, ...] = ()
    """Known over the horizon too."""
    static: tuple[str, ...] = ()
    """What a series is; `unique_id` for the series itself."""

    def __bool__(self) -> bool:
        return bool(self.past or self.future or self.static)


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


def _no_columns() -> FloatArray:
    return np.empty((0, 0, 0))


@dataclass(frozen=True, eq=False)
class Panel:
    """Many series on one grid: `y_NT` holds NaN wherever nothing was observed, and so do the covariates."""

    unique_ids: tuple[str, ...]
    ds: pd.DatetimeIndex
    y_NT: FloatArray
    calendar: Calendar
    quality: tuple[SeriesQuality, ...] = ()
    dropped: dict[str, str] = field(default_factory=dict)
    columns: Columns = Columns()
    past_NTP: FloatArray = field(default_factory=_no_columns)
    future_NUF: FloatArray = field(default_factory=_no_columns)
    """On the same grid, which goes on after the last observation as far as these are known."""
    static: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """By column, one name a series; empty where there is none."""

    def __post_init__(self) -> None:
        if not self.columns.past:
            object.__setattr__(self, "past_NTP", np.empty((*self.y_NT.shape, 0)))
        if not self.columns.future:
            object.__setattr__(self, "future_NUF", np.empty((*self.y_NT.shape, 0)))
        for values in (self.y_NT, self.past_NTP, self.future_NUF):
            values.setflags(write=False)

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
        """Return the panel as it stood before position `stop` of its grid; what is known ahead stays known."""
        return Panel(
            self.unique_ids,
            self.ds[:stop],
            self.y_NT[:, :stop].copy(),
            self.calendar,
            columns=self.columns,
            past_NTP=self.past_NTP[:, :stop].copy(),
            future_NUF=self.future_NUF,
            static=self.static,
        )

    def take(self, series: IntArray) -> "Panel":
        """Return the panel of these series only, by position, on the same grid."""
        return Panel(
            tuple(self.unique_ids[n] for n in series),
            self.ds,
            self.y_NT[series],
            self.calendar,
            columns=self.columns,
            past_NTP=self.past_NTP[series],
            future_NUF=self.future_NUF[series],
            static={name: tuple(labels[n] for n in series) for name, labels in self.static.items()},
        )

    def covariates_at(
        self,
        series_B: IntArray,
        cutoff_B: IntArray,
        covariates: CovariatesSpec,
        input_size: int,
        horizon: int,
    ) -> Covariates:
        """Return what a forecaster is told at these series and cutoffs: of past columns, nothing later.

        Columns are in the order of the spec; one that the panel does not have is missing throughout, as is
        what lies outside the panel.
        """
        steps_BT = cutoff_B[:, None] + np.arange(1 - input_size, horizon + 1)
        steps_BL = steps_BT[:, :input_size]
        past, future = covariates.past, covariates.future
        known = {"unique_id": self.unique_ids, **self.static}
        missing = ("",) * self.n_series
        return Covariates(
            cutoff_B=self.ds[cutoff_B],
            past_BLP=_gather(self.past_NTP, self.columns.past, past, series_B, steps_BL) if past else None,
            future_BTF=_gather(self.future_NUF, self.columns.future, future, series_B, steps_BT)
            if future
            else None,
            static={
                static.name: tuple(known.get(static.name, missing)[n] for n in series_B)
                for static in covariates.static
            },
        )

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
        """Return the long frame: one row a step between a series' first and last observation.

        With covariates, a row wherever one is known too.
        """
        n_known = self.future_NUF.shape[1]
        ds = self.calendar.range(self.ds[0], n_known)
        first, last = self.spans()
        steps = np.arange(n_known)
        told_NU = (steps >= first[:, None]) & (steps <= last[:, None]) | np.isfinite(self.future_NUF).any(axis=2)
        told_NU[:, : self.n_steps] |= np.isfinite(self.past_NTP).any(axis=2)
        series_R, step_R = np.nonzero(told_NU)
        names, future = ("y", *self.columns.past), self.columns.future
        values_NTC = np.concatenate([self.y_NT[..., None], self.past_NTP], axis=2)
        values_RC = _gather(values_NTC, names, names, series_R, step_R[:, None])[:, 0]
        static = {name: labels for name, labels in self.static.items() if name != "unique_id"}
        return pd.DataFrame(
            {
                "unique_id": pd.Index(self.unique_ids, dtype=object)[series_R],
                "ds": ds[step_R],
                **dict(zip(names, values_RC.T, strict=True)),
                **dict(zip(future, self.future_NUF[series_R, step_R].T, strict=True)),
                **{name: pd.Index(labels, dtype=object)[series_R] for name, labels in static.items()},
            }
        )

    def digest(self) -> str:
        """Return a SHA-256 over frequency, names, grid and values: equal digests mean equal data."""
        head = [self.calendar.freq, list(self.unique_ids), str(self.ds[0]), self.n_steps]
        sha = hashlib.sha256(json.dumps(head).encode())
        sha.update(np.nan_to_num(self.y_NT, nan=np.nan).tobytes())
        if self.columns:
            told = [asdict(self.columns), self.static, self.future_NUF.shape[1]]
            sha.update(json.dumps(told).encode())
            for values in (self.past_NTP, self.future_NUF):
                sha.update(np.nan_to_num(values, nan=np.nan).tobytes())
        return sha.hexdigest()

    def describe(self) -> str:
        """Return one line for a log: size, range, what is missing, and the covariates."""
        missing = sum(q.n_missing for q in self.quality)
        start, end = (format_timestamp(ds, self.calendar) for ds in (self.ds[0], self.ds[-1]))
        told = [f"{kind} {', '.join(names)}" for kind, names in asdict(self.columns).items() if names]
        return (
            f"{self.n_series} series, {self.n_observed} points, {start} to {end}, "
            f"freq {self.calendar.freq}, {missing} missing{''.join(f'; {part}' for part in told)}"
        )


def _gather(
    values_NSC: FloatArray,
    there: tuple[str, ...],
    wanted: tuple[str, ...],
    series_B: IntArray,
    steps_BL: IntArray,
) -> FloatArray:
    """Return the wanted columns at these steps, NaN for steps outside and for columns that are not there."""
    known_BL = (steps_BL >= 0) & (steps_BL < values_NSC.shape[1])
    cell_BL = (series_B[:, None], np.where(known_BL, steps_BL, 0))
    gathered_BLC = np.full((*steps_BL.shape, len(wanted)), np.nan)
    for position, name in enumerate(wanted):
        if name in there:
            values_BL = values_NSC[..., there.index(name)][cell_BL]
            gathered_BLC[..., position] = np.where(known_BL, values_BL, np.nan)
    return gathered_BLC


def build_panel(
    frame: pd.DataFrame, freq: str, *, bad_series: BadSeries = "raise", columns: Columns = Columns()
) -> Panel:
    """Validate a long frame (`unique_id`, `ds`, `y`) and lay it out on its grid.

    Args:
        frame: one row an observation, in any order; and rows after the last one, with an empty `y`, for what
            future columns are known to be.
        freq: a pandas alias or an exchange calendar.
        bad_series: `raise` refuses the panel when any series is bad, naming all of them; `drop` leaves
            those out and lists them in `Panel.dropped`.
        columns: the covariates to read beside `y`.

    Raises:
        InputError: the frame itself cannot be read as a long frame.
        PanelError: a series was refused, or none is left.
    """
    calendar = parse_freq(freq)
    problems: dict[str, str] = {}
    rows = _read_rows(frame, columns, calendar, problems)
    unsorted_N = _count_unsorted(rows)
    _find_bad_values(rows, calendar, problems)
    rows, position_R = _place(rows.without(problems), calendar, problems)
    values_CNU, duplicates_N = _lay_out(rows, position_R, calendar, problems)
    if problems and (bad_series == "raise" or len(problems) == len(rows.names)):
        raise PanelError(problems)
    grid = calendar.range(rows.ds[int(position_R.argmin())], values_CNU.shape[2])
    good = [n for n, name in enumerate(rows.names) if name not in problems]
    values_CNU = values_CNU[:, good] if problems else values_CNU
    y_NT, past_NTP, future_NUF, span = _trim(values_CNU, n_past=len(columns.past))
    names = tuple(rows.names[n] for n in good)
    return Panel(
        names,
        grid[span],
        y_NT,
        calendar,
        tuple(_describe_series(names, y_NT, duplicates_N[good], unsorted_N[good])),
        problems,
        columns,
        past_NTP,
        future_NUF,
        {column: tuple(labels[n] for n in good) for column, labels in rows.static.items()},
    )


@dataclass(frozen=True)
class _Numbers:
    """A column of the long frame, one entry a row: as numbers, NaN for what is none, and as it came."""

    name: str
    value_R: FloatArray
    raw: pd.Series
    """For the messages."""

    @property
    def place(self) -> str:
        """Say which column it is, where it is not `y`."""
        return "" if self.name == "y" else f" in {self.name}"

    def select(self, keep_R: NDArray[np.bool_]) -> "_Numbers":
        return _Numbers(self.name, self.value_R[keep_R], self.raw[keep_R])


@dataclass(frozen=True)
class _Rows:
    """The long frame as arrays, one entry a row (R); `code_R` is the position of its series in `names`."""

    names: tuple[str, ...]
    code_R: NDArray[np.intp]
    ds: pd.DatetimeIndex
    numbers: tuple[_Numbers, ...]
    """`y`, the past columns, the future columns."""
    static: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """By column, one name a series."""

    def select(self, keep_R: NDArray[np.bool_]) -> "_Rows":
        if keep_R.all():
            return self
        numbers = tuple(column.select(keep_R) for column in self.numbers)
        return _Rows(self.names, self.code_R[keep_R], self.ds[keep_R], numbers, self.static)

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


def _read_rows(frame: pd.DataFrame, columns: Columns, calendar: Calendar, problems: dict[str, str]) -> _Rows:
    _require_columns(frame, columns)
    if frame.empty:
        raise InputError("the data holds no series")
    names, code_R = _read_names(frame["unique_id"])
    ds = _read_timestamps(frame["ds"], names, code_R, calendar, problems)
    wanted = ("y", *columns.past, *columns.future)
    numbers = tuple(
        _Numbers(name, _read_values(frame[name]), frame[name].reset_index(drop=True)) for name in wanted
    )
    rows = _Rows(names, code_R, ds, numbers)
    rows = replace(rows, static={name: _read_static(frame[name], rows, problems) for name in columns.static})
    no_ds_R = np.asarray(ds.isna())
    rows.refuse(no_ds_R, problems, lambda _, n: f"has {n} row{'s' * (n > 1)} without a timestamp")
    return rows.select(~no_ds_R)


def _require_columns(frame: pd.DataFrame, columns: Columns) -> None:
    covariates = [*columns.past, *columns.future, *(name for name in columns.static if name != "unique_id")]
    needed = ["unique_id", "ds", "y", *covariates]
    for name in covariates:
        if needed.count(name) > 1:
            raise InputError(f"the column {name} is one thing only; the covariates name it as another")
    there = list(frame.columns)
    absent = [name for name in needed if name not in there]
    if absent:
        raise InputError(f"the frame has no column {', '.join(absent)}; it has {', '.join(map(str, there))}")
    twice = [name for name in needed if there.count(name) > 1]
    if twice:
        raise InputError(f"the frame has the column {', '.join(twice)} twice")


def _read_names(unique_id: pd.Series) -> tuple[tuple[str, ...], NDArray[np.intp]]:
    label_R, labels = pd.factorize(unique_id)
    texts = np.array([str(label) for label in labels], dtype=object)
    if (label_R < 0).any() or not all(text.strip() for text in texts):
        raise InputError("the column unique_id holds an empty name")
    code_of_label, names = pd.factorize(texts, sort=True)  # again, because 7 and "7" are one name
    return tuple(names), code_of_label[label_R]


def _read_static(labels: pd.Series, rows: _Rows, problems: dict[str, str]) -> tuple[str, ...]:
    """Return the name each series has in this column, empty where no row holds one."""
    if labels.name == "unique_id":
        return rows.names
    label_R, unique = pd.factorize(labels)
    texts = np.array(["", *(_format_label(label) for label in unique)], dtype=object)
    text_R = texts[label_R + 1]  # 7, 7.0 and "7" are one name
    named = np.flatnonzero(text_R != "")
    text_N = np.full(len(rows.names), "", dtype=object)
    text_N[rows.code_R[named[::-1]]] = text_R[named[::-1]]  # backwards, so that the first name of each stays

    def say(row: int, _: int) -> str:
        return f"has two names in {labels.name}: {text_N[rows.code_R[row]]!r} and {text_R[row]!r}"

    rows.refuse((text_R != "") & (text_R != text_N[rows.code_R]), problems, say)
    return tuple(text_N)


def _format_label(label: object) -> str:
    if isinstance(label, float) and label.is_integer():
        return str(int(label))  # a column of numbers becomes one of floats as soon as a row is empty
    text = str(label)
    return text if text.strip() else ""


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


def _read_values(values: pd.Series) -> FloatArray:
    """Return the values as numbers, NaN for what is none."""
    if values.dtype.kind in "mMc":
        raise InputError(f"the column {values.name} holds {values.dtype} values; numbers are needed")
    try:
        return pd.to_numeric(values, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    except OverflowError as error:
        raise InputError(f"the column {values.name} holds a whole number too large for a 64-bit float") from error


def _count_unsorted(rows: _Rows) -> NDArray[np.int64]:
    """Count, per series, the rows that are earlier than the row before them."""
    order = np.argsort(rows.code_R, kind="stable")
    code_R, time_R = rows.code_R[order], rows.ds.asi8[order]
    backwards_R = (np.diff(code_R) == 0) & (np.diff(time_R) < 0)
    return np.bincount(code_R[1:][backwards_R], minlength=len(rows.names))


def _find_bad_values(rows: _Rows, calendar: Calendar, problems: dict[str, str]) -> None:
    for column in rows.numbers:
        _refuse_what_is_no_number(column, rows, calendar, problems)
    observed_R = np.isfinite(rows.numbers[0].value_R)
    counts_N = np.bincount(rows.code_R[observed_R], minlength=len(rows.names))
    for code in np.flatnonzero(counts_N == 0):
        problems.setdefault(rows.names[code], f"series {rows.names[code]!r} has no observed value")


def _refuse_what_is_no_number(column: _Numbers, rows: _Rows, calendar: Calendar, problems: dict[str, str]) -> None:
    unread_R = np.isnan(column.value_R) & column.raw.notna().to_numpy()
    if unread_R.any():
        blank = column.raw[unread_R].astype(str).str.strip() == ""
        unread_R[unread_R] = ~blank.to_numpy()

    def say(what: str) -> Callable[[int, int], str]:
        def describe(row: int, _: int) -> str:
            value, at = column.raw.iloc[row], format_timestamp(rows.ds[row], calendar)
            shown = value if isinstance(value, float) else repr(value)
            return f"holds {shown}{column.place} at {at}, which is {what}"

        return describe

    rows.refuse(unread_R, problems, say("not a number"))
    rows.refuse(np.isinf(column.value_R), problems, say("not finite"))


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
    rows: _Rows, position_R: IntArray, calendar: Calendar, problems: dict[str, str]
) -> tuple[FloatArray, IntArray]:
    """Return the dense columns and the number of repeated rows of every series; refuse contradictions."""
    n_series, n_columns = len(rows.names), len(rows.numbers)
    if len(position_R) == 0:
        return np.empty((n_columns, n_series, 0)), np.zeros(n_series, dtype=np.int64)
    n_steps = int(position_R.max() - position_R.min()) + 1
    if n_columns * n_series * n_steps > MAX_CELLS:
        raise InputError(_describe_span(rows, n_steps, calendar))
    cell_R = (rows.code_R, position_R - position_R.min())
    present_NU = np.zeros((n_series, n_steps), dtype=bool)
    present_NU[cell_R] = True
    values_CNU = np.full((n_columns, n_series, n_steps), np.nan)
    for column, values_NU in zip(rows.numbers, values_CNU, strict=True):
        _fill(values_NU, column, cell_R, rows, calendar, problems)
    return values_CNU, np.bincount(rows.code_R, minlength=n_series) - present_NU.sum(axis=1)


def _fill(
    values_NU: FloatArray,
    column: _Numbers,
    cell_R: tuple[NDArray[np.intp], IntArray],
    rows: _Rows,
    calendar: Calendar,
    problems: dict[str, str],
) -> None:
    known_R = np.isfinite(column.value_R)
    values_NU[cell_R[0][known_R], cell_R[1][known_R]] = column.value_R[known_R]

    def say(row: int, _: int) -> str:
        return f"has two different values{column.place} at {format_timestamp(rows.ds[row], calendar)}"

    rows.refuse(known_R & (values_NU[cell_R] != column.value_R), problems, say)


def _describe_span(rows: _Rows, n_steps: int, calendar: Calendar) -> str:
    first, last = (
        f"{format_timestamp(rows.ds[row], calendar)} (series {rows.names[rows.code_R[row]]!r})"
        for row in (int(rows.ds.argmin()), int(rows.ds.argmax()))
    )
    return f"the data spans {n_steps} steps, from {first} to {last}: is one of these timestamps wrong?"


def _trim(values_CNU: FloatArray, *, n_past: int) -> tuple[FloatArray, FloatArray, FloatArray, slice]:
    """Cut the steps before the first and after the last observation of any series.

    Future columns keep what is known after it. Last comes what was kept of the grid.
    """
    observed = np.flatnonzero(np.isfinite(values_CNU[0]).any(axis=0))
    span = slice(int(observed[0]), int(observed[-1]) + 1)
    past_NTP = np.moveaxis(values_CNU[1 : 1 + n_past, :, span], 0, -1)
    future_NUF = np.moveaxis(values_CNU[1 + n_past :], 0, -1)
    known = np.flatnonzero(np.isfinite(future_NUF).any(axis=(0, 2)))
    stop = max(span.stop, int(known[-1]) + 1) if len(known) else span.stop
    kept = (values_CNU[0][:, span], past_NTP, future_NUF[:, span.start : stop])
    y_NT, past_NTP, future_NUF = (np.ascontiguousarray(values) for values in kept)
    return y_NT, past_NTP, future_NUF, span


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
    head = {
        "freq": panel.calendar.freq,
        "start": panel.ds[0].isoformat(),
        "unique_ids": panel.unique_ids,
        "columns": asdict(panel.columns),
        "static": panel.static,
    }
    with path.open("wb") as file:  # a path that np.savez opens itself gets a suffix it was not given
        np.savez(
            file,
            head=np.array(json.dumps(head)),
            y_NT=panel.y_NT,
            past_NTP=panel.past_NTP,
            future_NUF=panel.future_NUF,
        )


def load_panel(path: Path) -> Panel:
    """Read a panel that `save_panel` wrote."""
    with np.load(path, allow_pickle=False) as stored:
        head, y_NT = json.loads(str(stored["head"])), stored["y_NT"]
        past_NTP, future_NUF = stored["past_NTP"], stored["future_NUF"]
    calendar = parse_freq(head["freq"])
    unique_ids = tuple(head["unique_ids"])
    none_N = np.zeros(len(unique_ids), dtype=np.int64)
    return Panel(
        unique_ids,
        calendar.range(pd.Timestamp(head["start"]), y_NT.shape[1]),
        y_NT,
        calendar,
        tuple(_describe_series(unique_ids, y_NT, none_N, none_N)),
        columns=Columns(**{kind: tuple(names) for kind, names in head["columns"].items()}),
        past_NTP=past_NTP,
        future_NUF=future_NUF,
        static={name: tuple(labels) for name, labels in head["static"].items()},
    )
