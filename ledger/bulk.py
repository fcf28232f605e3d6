"""Many rows at once: what SQL drivers do slowly row by row.

PostgreSQL takes and gives rows with COPY, in binary, straight from and into arrays; SQLite takes and gives tuples.
"""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray
from sqlalchemy.engine import Connection

from ledger.database import lift_limit
from ledger.schema import observations, series

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
Rows = tuple[IntArray, IntArray, IntArray, FloatArray]
"""Series number, timestamp, moment, value."""

FEW = 500
"""Values one IN list may hold."""
CHUNK = 100_000
"""Rows turned into tuples at a time."""

_STAGED = sa.table("staged", sa.column("series_id"), sa.column("ds"), sa.column("value"))


def allow_time(connection: Connection, n_values: int) -> None:
    """Lift the limit of statements for a transaction that writes more than a lot of values, or waits to do so."""
    if n_values > CHUNK:
        lift_limit(connection)


class Stage(Protocol):
    """Rows of one transaction, to be compared with what is known."""

    def add(self, id_R: IntArray, ds_R: IntArray, value_R: FloatArray) -> None:
        """Take rows of series that were not taken yet; a series and timestamp comes once."""

    def merge(self, known_at: int) -> tuple[int, int, int]:
        """Append what is new or differs; return how many rows were offered, are new, and are revisions."""


@contextmanager
def staging(connection: Connection) -> Iterator[Stage]:
    """Open a stage for the rows of one transaction."""
    stage = _Stage(connection)
    yield stage
    stage.close()


class _Stage:
    """Rows beyond the last one known of their series are new; only the others are compared, in a table apart."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._postgres = connection.dialect.name == "postgresql"
        self._offered = 0
        self._ahead: list[tuple[IntArray, IntArray, FloatArray]] = []
        self._has_table = False

    def add(self, id_R: IntArray, ds_R: IntArray, value_R: FloatArray) -> None:
        self._offered += len(id_R)
        ahead_R = ds_R > self._last_known(id_R)
        # Nothing is known there, and a missing value says nothing.
        fresh_R = ahead_R & ~np.isnan(value_R)
        self._ahead.append((id_R[fresh_R], ds_R[fresh_R], value_R[fresh_R]))
        if not ahead_R.all():
            self._stage(id_R[~ahead_R], ds_R[~ahead_R], value_R[~ahead_R])

    def merge(self, known_at: int) -> tuple[int, int, int]:
        new, revised = self._merge_staged(known_at) if self._has_table else (0, 0)
        for id_R, ds_R, value_R in self._ahead:
            new += len(id_R)
            _insert(self._connection, "observations", (id_R, ds_R, np.full(len(id_R), known_at), value_R))
        return self._offered, new, revised

    def close(self) -> None:
        """Drop the table, so that the transaction can open another stage."""
        if self._has_table:
            self._connection.exec_driver_sql("DROP TABLE staged")

    def _last_known(self, id_R: IntArray) -> IntArray:
        """Return the last timestamp known of each row's series, the lowest number where nothing is."""
        ids, place_R = np.unique(id_R, return_inverse=True)
        last = (
            sa.select(observations.c.ds)
            .where(observations.c.series_id == series.c.id)
            .order_by(observations.c.ds.desc())
            .limit(1)
            .scalar_subquery()
        )
        known: dict[int, int | None] = {}
        for i in range(0, len(ids), FEW):
            query = sa.select(series.c.id, last).where(series.c.id.in_(ids[i : i + FEW].tolist()))
            known.update((number, ds) for number, ds in self._connection.execute(query))
        nothing = np.iinfo(np.int64).min
        found = [ds if (ds := known.get(number)) is not None else nothing for number in ids.tolist()]
        lasts: IntArray = np.array(found, dtype=np.int64)[place_R]
        return lasts

    def _stage(self, id_R: IntArray, ds_R: IntArray, value_R: FloatArray) -> None:
        if not self._has_table:
            end = " ON COMMIT DROP" if self._postgres else ""
            self._connection.exec_driver_sql(
                "CREATE TEMPORARY TABLE staged "
                f"(series_id INTEGER NOT NULL, ds BIGINT NOT NULL, value DOUBLE PRECISION){end}"
            )
            self._has_table = True
        _insert(self._connection, "staged", (id_R, ds_R, value_R))

    def _merge_staged(self, known_at: int) -> tuple[int, int]:
        """Append those staged rows that differ from what is known; return how many are new, and are revisions."""
        if self._postgres:
            self._connection.exec_driver_sql("ANALYZE staged")
        changed = _compare().subquery()
        differs = sa.select(changed).where(changed.c.value.is_distinct_from(changed.c.latest)).cte("differs")
        counts = sa.select(sa.func.count(), sa.func.coalesce(sa.func.sum(differs.c.known), 0)).select_from(differs)
        rows = sa.select(differs.c.series_id, differs.c.ds, sa.literal(known_at, sa.BigInteger), differs.c.value)
        insert = sa.insert(observations).from_select(["series_id", "ds", "known_at", "value"], rows)
        if self._postgres:
            # Both in one statement: they see one state, and compare once.
            counts = counts.add_cte(insert.cte("added"))
            found = self._connection.execute(counts).one()
        else:
            found = self._connection.execute(counts).one()
            self._connection.execute(insert)
        added, revised = int(found[0]), int(found[1])
        return added - revised, revised


def _compare() -> sa.Select[tuple[int, int, float, float, int]]:
    """Return the staged rows, the latest value known of each, and 1 where one is known, missing or not."""
    there = observations.c.series_id == _STAGED.c.series_id, observations.c.ds == _STAGED.c.ds
    newest = sa.select(observations.c.value).where(*there).order_by(observations.c.known_at.desc()).limit(1)
    known = sa.case((sa.exists().where(*there), 1), else_=0)
    return sa.select(
        _STAGED.c.series_id,
        _STAGED.c.ds,
        _STAGED.c.value,
        newest.scalar_subquery().label("latest"),
        known.label("known"),
    )


def _insert(connection: Connection, table: str, columns: tuple[IntArray | FloatArray, ...]) -> None:
    """Add rows to a table whose columns are whole numbers and, last, a value; a missing value is NULL."""
    write = _copy_in if connection.dialect.name == "postgresql" else _insert_tuples
    for i in range(0, len(columns[0]), CHUNK):
        write(connection, table, tuple(column[i : i + CHUNK] for column in columns))


def _insert_tuples(connection: Connection, table: str, columns: tuple[IntArray | FloatArray, ...]) -> None:
    *keys, value_R = columns
    values = value_R.tolist()
    if np.isnan(value_R).any():
        values = [None if math.isnan(value) else value for value in values]
    cursor = connection.connection.cursor()
    marks = ", ".join("?" * len(columns))
    rows = list(zip(*(key_R.tolist() for key_R in keys), values, strict=True))
    cursor.executemany(f"INSERT INTO {table} VALUES ({marks})", rows)  # noqa: S608  (a table of this module)
    cursor.close()


_COPIED_OUT = np.dtype(
    [
        *[("n", ">i2"), ("l1", ">i4"), ("id", ">i4"), ("l2", ">i4"), ("ds", ">i8")],
        *[("l4", ">i4"), ("known_at", ">i8"), ("l3", ">i4"), ("value", ">f8")],
    ]
)
_HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_TRAILER = b"\xff\xff"


_WIDTHS = {"staged": (4, 8, 8), "observations": (4, 8, 8, 8)}
"""Bytes of the columns of the tables that are copied into."""


def _copy_in(connection: Connection, table: str, columns: tuple[IntArray | FloatArray, ...]) -> None:
    """Write rows in PostgreSQL's binary COPY format; those with a missing value apart, for they are shorter."""
    missing_R = np.isnan(columns[-1])
    parts = [tuple(column[~missing_R] for column in columns)]
    if missing_R.any():
        parts.append(tuple(column[missing_R] for column in columns))
    driver = connection.connection.driver_connection
    with driver.cursor() as cursor, cursor.copy(f"COPY {table} FROM STDIN (FORMAT BINARY)") as copy:  # type: ignore[union-attr]
        copy.write(_HEADER)
        for part in parts:
            copy.write(_pack(part, _WIDTHS[table]))
        copy.write(_TRAILER)


def _pack(columns: tuple[IntArray | FloatArray, ...], widths: tuple[int, ...]) -> bytes:
    """Return rows as COPY has them: a count of fields, and before each its length, which is -1 for NULL."""
    missing = bool(len(columns[-1])) and bool(np.isnan(columns[-1][0]))
    kinds: list[tuple[str, str]] = [("n", ">i2")]
    for k, width in enumerate(widths):
        last = k == len(widths) - 1
        kinds.append((f"l{k}", ">i4"))
        if not (last and missing):
            kinds.append((f"c{k}", ">f8" if last else f">i{width}"))
    rows = np.zeros(len(columns[0]), dtype=np.dtype(kinds))
    rows["n"] = len(widths)
    for k, (column, width) in enumerate(zip(columns, widths, strict=True)):
        null = missing and k == len(widths) - 1
        rows[f"l{k}"] = -1 if null else width
        if not null:
            rows[f"c{k}"] = column
    return rows.tobytes()


def value_of(connection: Connection) -> sa.ColumnElement[float]:
    """Return the value of an observation as it is to be fetched: binary rows are all of one width without NULL."""
    if connection.dialect.name != "postgresql":
        return observations.c.value
    return sa.func.coalesce(observations.c.value, sa.literal_column("'NaN'::float8"))


def fetch(connection: Connection, queries: Iterable[sa.Select[tuple[int, int, int, float]]]) -> Rows:
    """Return the rows of all queries, in order; a missing value is NaN."""
    read = _copy_out if connection.dialect.name == "postgresql" else _read_tuples
    parts = [read(connection, query) for query in queries]
    if not parts:
        nothing = np.empty(0, dtype=np.int64)
        return nothing, nothing, nothing, np.empty(0)
    ids, ds, known_at, values = zip(*parts, strict=True)
    return np.concatenate(ids), np.concatenate(ds), np.concatenate(known_at), np.concatenate(values)


def _copy_out(connection: Connection, query: sa.Select[tuple[int, int, int, float]]) -> Rows:
    text = query.compile(connection, compile_kwargs={"literal_binds": True})
    driver = connection.connection.driver_connection
    received = bytearray()
    with driver.cursor() as cursor, cursor.copy(f"COPY ({text}) TO STDOUT (FORMAT BINARY)") as copy:  # type: ignore[union-attr]
        for data in copy:
            received += data
    content = memoryview(received)[len(_HEADER) : len(received) - len(_TRAILER)]
    rows = np.frombuffer(content, dtype=_COPIED_OUT)
    return (
        rows["id"].astype(np.int64),
        rows["ds"].astype(np.int64),
        rows["known_at"].astype(np.int64),
        rows["value"].astype(np.float64),
    )


def _read_tuples(connection: Connection, query: sa.Select[tuple[int, int, int, float]]) -> Rows:
    text = query.compile(connection, compile_kwargs={"literal_binds": True})
    cursor = connection.connection.cursor()
    cursor.execute(str(text))
    ids, ds, known_at, values = [], [], [], []
    while rows := cursor.fetchmany(CHUNK):
        columns = list(zip(*rows, strict=True))
        ids.append(np.array(columns[0], dtype=np.int64))
        ds.append(np.array(columns[1], dtype=np.int64))
        known_at.append(np.array(columns[2], dtype=np.int64))
        values.append(np.array(columns[3], dtype=np.float64))
    cursor.close()
    if not ids:
        nothing = np.empty(0, dtype=np.int64)
        return nothing, nothing, nothing, np.empty(0)
    return np.concatenate(ids), np.concatenate(ds), np.concatenate(known_at), np.concatenate(values)
