"""Rules: what a row must be to be kept. A bad row fails alone, and says which, whose, and why.

Two passes: are these names, timestamps and numbers at all; and do they lie where observations can lie. The rules
are pandera's, asked lazily: every failure is found, not the first.

R rows.
"""

import math
import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from forecasting.errors import InputError

if TYPE_CHECKING:
    # Imported where it is used: a service starts without waiting for it.
    from pandera.pandas import DataFrameSchema

BoolArray = NDArray[np.bool_]

LONGEST_NAME = 256
MOST_COLUMNS = 256
MOST_CELLS = 4_000_000
"""Most rows times columns that are laid out where somebody else says how many there are."""
FIRST_YEAR, LAST_YEAR = 1800, 2199
MOST_REPORTED = 100
"""Refusals told one by one; the rest are counted."""

DATASET_PATTERN = r"^[a-z0-9][a-z0-9_-]{0,63}$"

_ISO = (
    r"(?:1[89]|2[01])\d{2}-\d{2}-\d{2}"
    r"(?:[T ]\d{2}:\d{2}(?::\d{2}(?:\.\d{1,9})?)?(?:Z|[+-]\d{2}(?::?\d{2})?)?)?"
)
_OFFSET = r"(:\d{2}(?:\.\d+)?)(?:Z|[+-]\d{2}(?::?\d{2})?)$"
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
_HALF = re.compile(r"[\ud800-\udfff]")
_UNSTORABLE = re.compile(r"[\x00\ud800-\udfff]")


@dataclass(frozen=True)
class Refusal:
    """One thing that is wrong with one row."""

    row: int
    """Its position among the rows that were offered, from 0."""
    unique_id: str | None
    column: str
    reason: str

    def __str__(self) -> str:
        whose = "a row without a usable unique_id" if self.unique_id is None else f"series {self.unique_id!r}"
        return f"{whose}: {self.column} {self.reason}"


@dataclass(frozen=True)
class Checked:
    """Rows that can be kept, and what is wrong with the others."""

    rows: pd.DataFrame
    """`unique_id` as text, `ds` naive in UTC or a date, values as floats; as the ledger takes them."""
    good_R: BoolArray
    """Which of the rows offered these are."""
    refusals: tuple[Refusal, ...]
    """The first of them, in the order of the rows."""

    @property
    def refused(self) -> int:
        """Return how many rows were refused."""
        return int((~self.good_R).sum())


def is_storable(text: str) -> bool:
    """Return whether a text can be kept: PostgreSQL keeps no NUL, and half a character has no bytes anywhere."""
    return not _UNSTORABLE.search(text)


def make_storable(text: str) -> str:
    """Return a text with a question mark in place of what cannot be kept."""
    return _UNSTORABLE.sub("?", text)


def check_name(name: str, whose: str) -> str:
    """Return a name that can be kept.

    Args:
        name: of a series, of a column, or of what a series is.
        whose: what it names and where, for the message.

    Raises:
        InputError: it is too long, or has a character that no database keeps.
    """
    if len(name) > LONGEST_NAME:
        raise InputError(f"{whose} is a text of {len(name)} characters; at most {LONGEST_NAME}")
    if not is_storable(name):
        raise InputError(f"{whose} {_shown(name)!r} has a NUL or half a character in it, which nothing can keep")
    return name


def check_dataset(dataset: str) -> str:
    """Return a dataset's name.

    Raises:
        InputError: no dataset can be named so.
    """
    if not re.fullmatch(DATASET_PATTERN, dataset):
        raise InputError(
            f"no dataset can be named {dataset[:80]!r}: use a-z, 0-9, dash and underscore, at most 64"
        )
    return dataset


def build_rows(
    rows: Sequence[Mapping[str, Any]], static: Sequence[str] = ()
) -> tuple[pd.DataFrame, dict[str, BoolArray]]:
    """Return objects as rows, and which of them say something of each column of values.

    A key that is not there says nothing; one that is there and null says that there is no value.

    Raises:
        InputError: there are more columns than can be, or one has a name that nothing can keep.
    """
    columns: dict[str, None] = dict.fromkeys(("unique_id", "ds", *static))
    for number, row in enumerate(rows, start=1):
        columns.update(dict.fromkeys(row))
        for name in row:
            if not is_storable(name):
                raise InputError(f"row {number}: no column can be named {name[:40]!r}")
        if len(columns) > MOST_COLUMNS:
            raise InputError(f"more than {MOST_COLUMNS} columns; at most {MOST_COLUMNS}")
    if len(rows) * len(columns) > MOST_CELLS:
        raise InputError(f"{len(rows)} rows of {len(columns)} columns; at most {MOST_CELLS} values")
    frame = pd.DataFrame({name: _column_of([row.get(name) for row in rows]) for name in columns})
    values = [name for name in columns if name not in ("unique_id", "ds", *static)]
    return frame, {name: np.array([name in row for row in rows], dtype=bool) for name in values}


def _column_of(values: list[Any]) -> pd.Series:
    try:
        return pd.Series(values)
    except UnicodeEncodeError:
        # Texts with half a character among them: the row is refused later, and not all rows here.
        return pd.Series(values, dtype=object)


def check_rows(
    rows: pd.DataFrame, *, static: Sequence[str] = (), dated: bool = False, most: int = MOST_REPORTED
) -> Checked:
    """Return the rows that can be kept, as the ledger takes them, and what is wrong with the others.

    Args:
        rows: `unique_id`, `ds` (timestamps, or text in ISO 8601), columns of values, and those in `static`.
        static: columns of names.
        dated: timestamps are dates, and keep the day of their own wall clock; instants become UTC.
        most: refusals told one by one.

    Raises:
        InputError: a column is absent or has a name that cannot be kept, so that no row is any good.
    """
    values = _check_columns(rows, static)
    rows = rows.reset_index(drop=True).apply(_encodable)
    read = pd.DataFrame(
        {"unique_id": _read_names(rows["unique_id"]), "ds": _read_moments(rows["ds"], dated=dated)}
    )
    read = read.assign(**{name: _read_numbers(rows[name]) for name in values})
    read = read.assign(**{name: _read_names(rows[name]) for name in static})
    wrong = _find_failures(_kinds(rows, read, values, static), rows)
    bad_R = np.zeros(len(rows), dtype=bool)
    bad_R[wrong["index"].to_numpy(dtype=np.int64)] = True
    beyond = _find_failures(_limits(values, static), read[~bad_R])
    bad_R[beyond["index"].to_numpy(dtype=np.int64)] = True
    found = pd.concat([wrong, beyond]).sort_values("index", kind="stable").head(most)
    return Checked(read[~bad_R].reset_index(drop=True), ~bad_R, _tell(found, read["unique_id"]))


def _check_columns(rows: pd.DataFrame, static: Sequence[str]) -> list[str]:
    """Return the columns of values."""
    names = [str(name) for name in rows.columns]
    for name in ("unique_id", "ds", *static):
        if name not in names:
            raise InputError(f"observations need the column {name!r}; there are {', '.join(names[:20])}")
    for name in names:
        if not 1 <= len(name) <= LONGEST_NAME or _UNPRINTABLE.search(name):
            raise InputError(
                f"no column can be named {name[:40]!r}: 1 to {LONGEST_NAME} characters, no control ones"
            )
        if names.count(name) > 1:
            raise InputError(f"there is more than one column {name!r}")
    values = [name for name in names if name not in ("unique_id", "ds", *static)]
    if not values:
        raise InputError("observations need a column of values, such as 'y'")
    if len(names) > MOST_COLUMNS:
        raise InputError(f"{len(names)} columns; at most {MOST_COLUMNS}")
    return values


def _encodable(raw: pd.Series) -> pd.Series:
    """Return the column with half characters, which JSON can carry and nothing can store, made control ones."""
    if raw.dtype != object:
        return raw
    return pd.Series(
        [_HALF.sub("\x00", value) if isinstance(value, str) and not value.isascii() else value for value in raw],
        index=raw.index,
        dtype=object,
    )


def _read_names(raw: pd.Series) -> pd.Series:
    """Return text as it is, whole numbers as text, and None for anything else."""
    if isinstance(raw.dtype, pd.StringDtype):
        return raw.astype(object).where(raw.notna(), None)
    return pd.Series([_name_of(value) for value in raw], index=raw.index, dtype=object)


def _name_of(value: Any) -> str | None:  # noqa: ANN401
    if isinstance(value, str):
        return value
    if not _is_number(value):
        return None
    # A column of numbers becomes one of floats as soon as a row is empty.
    return str(int(value)) if not isinstance(value, float) or value.is_integer() else None


def _read_moments(raw: pd.Series, *, dated: bool) -> pd.Series:
    """Return naive timestamps, NaT where there is none."""
    if isinstance(raw.dtype, pd.DatetimeTZDtype):
        wall = raw if dated else raw.dt.tz_convert("UTC")
        return pd.Series(wall.dt.tz_localize(None).astype("datetime64[us]"))
    if raw.dtype.kind == "M":
        return raw.astype("datetime64[us]")
    texts = pd.Series([_text_of(value) for value in raw], index=raw.index, dtype="str")
    texts = texts.where(texts.str.fullmatch(_ISO, na=False))
    if dated:
        texts = texts.str.replace(_OFFSET, r"\1", regex=True)
    moments = pd.to_datetime(texts, format="ISO8601", utc=True, errors="coerce")
    return moments.dt.tz_localize(None).astype("datetime64[us]")


def _text_of(value: Any) -> str | None:  # noqa: ANN401  (whatever was sent)
    if isinstance(value, str):
        return value
    iso = getattr(value, "isoformat", None)
    return None if iso is None or value is pd.NaT else str(iso())


def _read_numbers(raw: pd.Series) -> pd.Series:
    """Return floats, NaN where there is no number."""
    if pd.api.types.is_numeric_dtype(raw) and not pd.api.types.is_bool_dtype(raw):
        return pd.Series(raw.to_numpy(dtype=np.float64, na_value=np.nan), index=raw.index)
    return pd.Series([_number_of(value) for value in raw], index=raw.index, dtype=np.float64)


def _number_of(value: Any) -> float:  # noqa: ANN401
    if not _is_number(value):
        return np.nan
    try:
        return float(value)
    except OverflowError:
        return np.inf


def _is_number(value: Any) -> bool:  # noqa: ANN401
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def _is_missing(raw: pd.Series) -> pd.Series:
    return pd.Series([_is_nothing(value) for value in raw])


def _is_nothing(value: Any) -> bool:  # noqa: ANN401
    return value is None or value is pd.NA or value is pd.NaT or (isinstance(value, float) and math.isnan(value))


def _kinds(
    rows: pd.DataFrame, read: pd.DataFrame, values: Sequence[str], static: Sequence[str]
) -> "DataFrameSchema":
    """Return the rules of the first pass, asked of the rows as they came."""
    import pandera.pandas as pa

    def known(name: str, what: str) -> "pa.Column":
        there = read[name].notna()
        return pa.Column(checks=pa.Check(lambda _: there, error=what, ignore_na=False), nullable=True)

    def number_or_missing(name: str) -> "pa.Column":
        if pd.api.types.is_numeric_dtype(rows[name]) and not pd.api.types.is_bool_dtype(rows[name]):
            return pa.Column(nullable=True)
        fits = read[name].notna() | _is_missing(rows[name])
        return pa.Column(checks=pa.Check(lambda _: fits, error="a number or null", ignore_na=False), nullable=True)

    def name_or_missing(name: str) -> "pa.Column":
        fits = read[name].notna() | _is_missing(rows[name])
        return pa.Column(checks=pa.Check(lambda _: fits, error="a name or null", ignore_na=False), nullable=True)

    return pa.DataFrameSchema(
        {
            "unique_id": known("unique_id", "a name"),
            "ds": known("ds", f"a timestamp in ISO 8601 of the years {FIRST_YEAR} to {LAST_YEAR}"),
            **{name: number_or_missing(name) for name in values},
            **{name: name_or_missing(name) for name in static},
        }
    )


def _limits(values: Sequence[str], static: Sequence[str]) -> "DataFrameSchema":
    """Return the rules of the second pass, asked of what was read."""
    import pandera.pandas as pa

    years = f"of the years {FIRST_YEAR} to {LAST_YEAR}"
    in_years = pa.Check(lambda ds: ds.dt.year.between(FIRST_YEAR, LAST_YEAR), error=years)
    finite = pa.Check(lambda y: np.isfinite(y), error="finite")
    return pa.DataFrameSchema(
        {
            "unique_id": _name_column(1),
            "ds": pa.Column("datetime64[us]", in_years),
            **{name: pa.Column(float, finite, nullable=True) for name in values},
            **{name: _name_column(0) for name in static},
        }
    )


def _name_column(shortest: int) -> Any:  # noqa: ANN401  (a pandera column, which is imported late)
    import pandera.pandas as pa

    what = f"{shortest} to {LONGEST_NAME} characters, none of them control characters"
    return pa.Column(object, pa.Check(lambda names: _are_names(names, shortest), error=what), nullable=True)


def _are_names(names: pd.Series, shortest: int) -> pd.Series:
    # There are few names and many rows.
    fits = {name: _is_name(name, shortest) for name in names.unique()}
    return names.map(fits).astype(bool)


def _is_name(name: str | None, shortest: int) -> bool:
    if name is None:
        return True
    return shortest <= len(name.strip()) and len(name) <= LONGEST_NAME and not _UNPRINTABLE.search(name)


def _find_failures(schema: "DataFrameSchema", rows: pd.DataFrame) -> pd.DataFrame:
    """Return what fails: `index` of the row, `column`, `check`, `failure_case`."""
    from pandera.errors import SchemaErrors

    try:
        schema.validate(rows, lazy=True)
    except SchemaErrors as error:
        return pd.DataFrame(error.failure_cases, columns=["index", "column", "check", "failure_case"])
    return pd.DataFrame({"index": pd.Series(dtype=np.int64), "column": [], "check": [], "failure_case": []})


def _tell(found: pd.DataFrame, names: pd.Series) -> tuple[Refusal, ...]:
    return tuple(
        Refusal(int(row), _shown(names.iloc[int(row)]), str(column), f"must be {check}, not {_describe(case)}")
        for row, column, check, case in found.itertuples(index=False)
    )


def _shown(name: Hashable) -> str | None:
    """Return a name that can be shown: one that is too long is cut, one that cannot be printed is escaped."""
    return None if name is None else _UNPRINTABLE.sub("?", str(name)[:LONGEST_NAME])


def _describe(case: Any) -> str:  # noqa: ANN401
    """Name what came without repeating all of it."""
    if isinstance(case, str):
        shown = _UNPRINTABLE.sub("?", case)
        return f"the text {shown!r}" if len(case) <= 40 else f"a text of {len(case)} characters"
    if isinstance(case, list | tuple | dict | set | np.ndarray):
        return "a list or an object"
    return "missing" if _is_nothing(case) else str(case)[:40]
