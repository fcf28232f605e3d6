"""From bytes to rows that can be kept: observations as JSON, as lines of JSON, or as Parquet.

What is wrong with the body as a whole refuses it; what is wrong with a row refuses that row. Nothing here takes
more memory than a few times the limits, whatever the body unpacks to.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
from numpy.typing import NDArray
from pydantic_core import from_json

from forecasting.errors import InputError
from ledger.rules import MOST_CELLS, MOST_COLUMNS, MOST_REPORTED, Refusal, build_rows, check_dataset, check_rows
from service.limits import JSON
from service.problems import INVALID_REQUEST, MALFORMED_JSON, FieldError, ProblemError, refuse
from service.schemas import RefusedObservation

NDJSON = "application/x-ndjson"
PARQUET = "application/vnd.apache.parquet"
TAKEN = (JSON, NDJSON, PARQUET)

MOST_ROWS = 500_000
MOST_UNPACKED = 128 * 1024**2
ROWS_AT_A_TIME = 50_000

BoolArray = NDArray[np.bool_]


@dataclass(frozen=True)
class Declared:
    """What the address says of the body."""

    dataset: str | None = None
    static: Sequence[str] = ()


@dataclass(frozen=True)
class Intake:
    """Observations that can be kept, and what is wrong with the others."""

    dataset: str
    rows: pd.DataFrame
    static: tuple[str, ...]
    given: Mapping[str, BoolArray]
    """Which rows say something of a column."""
    refused: int
    refusals: list[RefusedObservation]


@dataclass
class _Offered:
    """Rows as they came."""

    dataset: object
    """As the body has it; nothing has looked at it."""
    rows: pd.DataFrame
    static: tuple[str, ...] = ()
    given: dict[str, BoolArray] = field(default_factory=dict)
    places: Sequence[int] | None = None
    """What a row is called in a refusal; default its position."""
    unread: list[RefusedObservation] = field(default_factory=list)
    """Rows that did not come so far as to be rows."""
    n_unread: int = 0

    def refuse(self, row: int, unique_id: str | None, field: str, reason: str, rows: int = 1) -> None:
        """Take note of rows that cannot even be read."""
        self.n_unread += rows
        if len(self.unread) < MOST_REPORTED:
            self.unread.append(RefusedObservation(row=row, unique_id=unique_id, field=field, reason=reason))


def read_observations(media_type: str, body: bytes, declared: Declared) -> Intake:
    """Read the observations of a request.

    Raises:
        ProblemError: the body is not what it is declared to be, names no dataset, or has no row to keep.
    """
    try:
        offered = _READERS[media_type](body, declared)
        dataset = _choose_dataset(offered.dataset, declared.dataset)
        return _check(offered, dataset)
    except InputError as error:
        raise refuse([FieldError(path="", detail=str(error))]) from error


def _check(offered: _Offered, dataset: str) -> Intake:
    checked = check_rows(offered.rows, static=offered.static)
    refused = checked.refused + offered.n_unread
    told = [*offered.unread, *(_refused(one, offered.places) for one in checked.refusals)]
    told.sort(key=lambda one: one.row)
    if not len(checked.rows):
        raise _none_is_good(told, refused)
    given = {name: told_R[checked.good_R] for name, told_R in offered.given.items()}
    return Intake(dataset, checked.rows, offered.static, given, refused, told[:MOST_REPORTED])


def _refused(refusal: Refusal, places: Sequence[int] | None) -> RefusedObservation:
    row = refusal.row if places is None else places[refusal.row]
    return RefusedObservation(row=row, unique_id=refusal.unique_id, field=refusal.column, reason=refusal.reason)


def _none_is_good(told: Sequence[RefusedObservation], refused: int) -> ProblemError:
    if not refused:
        return refuse([FieldError(path="", detail="there is no observation in the body")])
    errors = [
        FieldError(path=f"row {one.row}, {one.field}", unique_id=one.unique_id, detail=f"{one.field} {one.reason}")
        for one in told[:MOST_REPORTED]
    ]
    detail = f"none of {refused} rows can be kept; the first: {errors[0].detail}"
    return ProblemError(INVALID_REQUEST, detail, errors)


def _choose_dataset(told: object, declared: str | None) -> str:
    dataset = declared if told is None else told
    if dataset is None:
        raise InputError("which dataset: give it in the body, or in the address as ?dataset=plant")
    if not isinstance(dataset, str):
        raise InputError("dataset must be a text")
    if declared is not None and dataset != declared:
        raise InputError(f"the body is for dataset {dataset[:64]!r}, and the address says {declared[:64]!r}")
    return check_dataset(dataset)


def _read_json(body: bytes, declared: Declared) -> _Offered:
    try:
        content = from_json(body, allow_inf_nan=True)
    except ValueError as error:
        raise ProblemError(MALFORMED_JSON, f"the body is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise InputError("the body must be an object")
    unknown = sorted(set(content) - {"dataset", "observations", "series", "static"})
    if unknown:
        raise InputError(
            f"there is no field {unknown[0][:64]!r}; known are dataset, static, and observations or series"
        )
    rows, series = content.get("observations"), content.get("series")
    if (rows is None) == (series is None):
        raise InputError("give either observations or series")
    if series is not None:
        if "static" in content:
            raise InputError("static: each of the series has its own")
        return _read_series(_list_of(series, "series"), content.get("dataset"))
    static = _names_of(content["static"]) if "static" in content else tuple(declared.static)
    return _read_rows(content.get("dataset"), list(enumerate(_list_of(rows, "observations"))), static)


def _list_of(value: object, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise InputError(f"{name} must be a list")
    return value


def _names_of(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise InputError("static must be a list of columns")
    return tuple(dict.fromkeys(value))


def _read_lines(body: bytes, declared: Declared) -> _Offered:
    rows: list[tuple[int, Any]] = []
    for number, line in enumerate(body.split(b"\n"), start=1):
        if line.strip():
            try:
                rows.append((number, from_json(line, allow_inf_nan=True)))
            except ValueError as error:
                rows.append((number, error))
    return _read_rows(None, rows, tuple(declared.static))


def _read_rows(dataset: object, rows: Sequence[tuple[int, Any]], static: tuple[str, ...]) -> _Offered:
    """Read objects, one an observation; a key that is not there says nothing, and null says that it is missing."""
    _limit(len(rows))
    offered = _Offered(dataset, pd.DataFrame(), static)
    good: list[dict[str, Any]] = []
    places: list[int] = []
    for place, row in rows:
        if not isinstance(row, dict):
            reason = f"must be JSON: {row}" if isinstance(row, ValueError) else "must be an object"
            offered.refuse(place, None, "row", reason)
            continue
        good.append(row)
        places.append(place)
    offered.rows, offered.given = build_rows(good, static)
    offered.places = places
    if not good:
        raise _none_is_good(offered.unread, offered.n_unread)
    return offered


def _read_series(series: Sequence[Any], dataset: object) -> _Offered:
    """Read histories: timestamps and, beside them, columns of values as long."""
    offered = _Offered(dataset, pd.DataFrame())
    values: dict[str, list[Any]] = {}
    static: dict[str, list[Any]] = {}
    names: list[Any] = []
    ds: list[Any] = []
    places: list[int] = []
    for one in series:
        told = _validate_series(one, offered)
        if told is None:
            continue
        length = len(one["ds"])
        _limit(len(ds) + length, len(values) + len(static) + len(told) + 2)
        for found, columns in (
            (told, values),
            ({k: [v] * length for k, v in (one.get("static") or {}).items()}, static),
        ):
            for name, column in found.items():
                into = columns.setdefault(name, [])
                into.extend([_ABSENT] * (len(ds) - len(into)))
                into.extend(column)
        names.extend([one.get("unique_id")] * length)
        ds.extend(one["ds"])
        places.extend(range(length))
    for column in (*values.values(), *static.values()):
        column.extend([_ABSENT] * (len(ds) - len(column)))
    if not values:
        raise _none_is_good(offered.unread, offered.n_unread)
    offered.given = {
        name: np.array([value is not _ABSENT for value in column], dtype=bool) for name, column in values.items()
    }
    frame = {"unique_id": names, "ds": ds, **values, **static}
    offered.rows = pd.DataFrame(
        {name: pd.Series([None if v is _ABSENT else v for v in column]) for name, column in frame.items()}
    )
    offered.static, offered.places = tuple(static), places
    return offered


_ABSENT = object()


class _RefusedSeriesError(Exception):
    """One series is refused as a whole."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(reason)
        self.field = field


def _validate_series(one: object, offered: _Offered) -> dict[str, list[Any]] | None:
    """Return the columns of one series; None where it is refused as a whole."""
    if not isinstance(one, dict):
        offered.refuse(0, None, "series", "must be an object")
        return None
    name, ds = one.get("unique_id"), one.get("ds")
    try:
        return _columns_of(one)
    except _RefusedSeriesError as error:
        shown = name[:256] if isinstance(name, str) and name.isprintable() else None
        offered.refuse(0, shown, error.field, str(error), rows=len(ds) if isinstance(ds, list) and ds else 1)
        return None


def _columns_of(one: Mapping[str, Any]) -> dict[str, list[Any]]:
    if set(one) - {"unique_id", "ds", "y", "columns", "static"}:
        raise _RefusedSeriesError("series", "must have no field but unique_id, ds, y, columns and static")
    ds, more, static = one.get("ds"), one.get("columns") or {}, one.get("static") or {}
    if not isinstance(ds, list) or not ds:
        raise _RefusedSeriesError("ds", "must be a list of timestamps")
    for name, value in (("columns", more), ("static", static)):
        if not isinstance(value, dict):
            raise _RefusedSeriesError(name, "must be an object")
    told = {**({} if one.get("y") is None else {"y": one["y"]}), **more}
    if not told:
        raise _RefusedSeriesError("y", "must be there, or columns")
    names = ["unique_id", "ds", *(() if one.get("y") is None else ("y",)), *more, *static]
    if len(set(names)) < len(names):
        raise _RefusedSeriesError("columns", "must each have a name of its own")
    for name, column in told.items():
        if not isinstance(column, list) or len(column) != len(ds):
            got = f"one of {len(column)}" if isinstance(column, list) else "something else"
            raise _RefusedSeriesError(name[:64], f"must be a list of {len(ds)} values, as ds is, not {got}")
    return told


def _read_parquet(body: bytes, declared: Declared) -> _Offered:
    try:
        file = pyarrow.parquet.ParquetFile(BytesIO(body), read_dictionary=_text_columns(body))
        _limit(file.metadata.num_rows, file.metadata.num_columns)
        _limit_bytes(file.metadata)
        kinds = {column.name: column.type for column in file.schema_arrow}
        _check_kinds(kinds, declared.static)
        parts = [_to_frame(batch) for batch in file.iter_batches(ROWS_AT_A_TIME, use_threads=False)]
    except (pa.ArrowException, OSError, OverflowError) as error:
        line = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(f"the body is not Parquet that can be read: {line[:200]}") from error
    if not parts:
        raise InputError("there is no observation in the body")
    return _Offered(None, pd.concat(parts, ignore_index=True), tuple(declared.static))


def _text_columns(body: bytes) -> list[str]:
    """Return the columns of text: read as the few texts they repeat, for one may be the size of the file."""
    schema = pyarrow.parquet.read_schema(BytesIO(body))
    return [
        column.name
        for column in schema
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
    ]


def _check_kinds(kinds: Mapping[str, pa.DataType], static: Sequence[str]) -> None:
    for name, kind in kinds.items():
        if name == "ds":
            fits = pa.types.is_timestamp(kind) or pa.types.is_date(kind) or _is_text(kind)
            wanted = "timestamps, dates or text in ISO 8601"
        elif name == "unique_id" or name in static:
            fits, wanted = _is_text(kind) or pa.types.is_integer(kind), "text or whole numbers"
        else:
            fits = pa.types.is_integer(kind) or pa.types.is_floating(kind)
            wanted = f"numbers; name it in the address, ?static={name[:64]}, where it holds names"
        if not fits:
            raise InputError(f"column {name[:64]!r} holds {str(kind)[:80]}; it is to hold {wanted}")


def _is_text(kind: pa.DataType) -> bool:
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(value) or pa.types.is_large_string(value))


def _to_frame(batch: pa.RecordBatch) -> pd.DataFrame:
    return pd.DataFrame(
        {name: _to_series(column) for name, column in zip(batch.schema.names, batch.columns, strict=True)}
    )


def _to_series(column: pa.Array) -> pd.Series:
    """Return a column as the rules take it; of texts the rows share the few there are."""
    if pa.types.is_dictionary(column.type):
        texts = np.array([*column.dictionary.to_pylist(), None], dtype=object)
        return pd.Series(
            texts[column.indices.fill_null(len(texts) - 1).to_numpy(zero_copy_only=False)], dtype=object
        )
    if pa.types.is_date(column.type):
        column = column.cast(pa.timestamp("us" if pa.types.is_date32(column.type) else "ms"))
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.timestamp("us", column.type.tz), safe=False)
    series: pd.Series = column.to_pandas()
    return series


def _limit(rows: int, columns: int = 1) -> None:
    if columns > MOST_COLUMNS:
        raise InputError(f"{columns} columns; at most {MOST_COLUMNS}")
    if rows > MOST_ROWS or rows * columns > MOST_CELLS:
        raise InputError(
            f"{rows} rows of {columns} columns in one request; at most {MOST_ROWS} rows and {MOST_CELLS} values"
        )


def _limit_bytes(metadata: pyarrow.parquet.FileMetaData) -> None:
    groups = (metadata.row_group(i) for i in range(metadata.num_row_groups))
    unpacked = sum(group.column(i).total_uncompressed_size for group in groups for i in range(group.num_columns))
    if unpacked > MOST_UNPACKED:
        raise InputError(f"the file unpacks to {unpacked} bytes; at most {MOST_UNPACKED}")


_READERS = {JSON: _read_json, NDJSON: _read_lines, PARQUET: _read_parquet}
