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

from ledger.schema import observations

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
Rows = tuple[IntArray, IntArray, IntArray, FloatArray]
"""Series number, timestamp, moment, value."""

FEW = 500
"""Values one IN list may hold."""
CHUNK = 100_000
"""Rows turned into tuples at a time."""

_STAGED = sa.table("staged", sa.column("series_id"), sa.column("ds"), sa.column("value"))


class Stage(Protocol):
    """A table of this transaction alone, in which rows wait to be compared with what is known."""

    def add(self, id_R: IntArray, ds_R: IntArray, value_R: FloatArray) -> None:
        """Put rows in; a series and timestamp comes once."""

    def merge(self, known_at: int) -> tuple[int, int, int]:
        """Append what is new or differs; return how many rows were offered, are new, and are revisions."""


@contextmanager
def staging(connection: Connection) -> Iterator[Stage]:
    """Open a stage for the rows of one transaction."""
    postgres = connection.dialect.name == "postgresql"
    kind = "TEMPORARY TABLE" if not postgres else "TEMP TABLE"
    end = " ON COMMIT DROP" if postgres else ""
    connection.exec_driver_sql(
        f"CREATE {kind} staged (series_id INTEGER NOT NULL, ds BIGINT NOT NULL, value DOUBLE PRECISION){end}"
    )
    yield _Stage(connection, postgres=postgres)
    connection.exec_driver_sql("DROP TABLE staged")


class _Stage:
    def __init__(self, connection: Connection, *, postgres: bool) -> None:
        self._connection = connection
        self._postgres = postgres
        self._offered = 0

    def add(self, id_R: IntArray, ds_R: IntArray, value_R: FloatArray) -> None:
        self._offered += len(id_R)
        for i in range(0, len(id_R), CHUNK):
            rows = slice(i, i + CHUNK)
            if self._postgres:
                _copy_in(self._connection, id_R[rows], ds_R[rows], value_R[rows])
            else:
                _insert_tuples(self._connection, id_R[rows], ds_R[rows], value_R[rows])

    def merge(self, known_at: int) -> tuple[int, int, int]:
        if self._postgres:
            self._connection.exec_driver_sql("ANALYZE staged")
        latest = (
            sa.select(observations.c.value)
            .where(observations.c.series_id == _STAGED.c.series_id, observations.c.ds == _STAGED.c.ds)
            .order_by(observations.c.known_at.desc())
            .limit(1)
            .scalar_subquery()
        )
        before = self._connection.scalar(sa.select(sa.func.count()).select_from(_known_steps())) or 0
        changed = sa.select(
            _STAGED.c.series_id, _STAGED.c.ds, sa.literal(known_at, sa.BigInteger), _STAGED.c.value
        ).where(_STAGED.c.value.is_distinct_from(latest))
        insert = sa.insert(observations).from_select(["series_id", "ds", "known_at", "value"], changed)
        added = self._connection.execute(insert, execution_options={"preserve_rowcount": True}).rowcount
        after = self._connection.scalar(sa.select(sa.func.count()).select_from(_known_steps())) or 0
        new = after - before
        return self._offered, new, added - new


def _known_steps() -> sa.Subquery:
    """Return the staged steps of which the ledger has a value."""
    there = sa.exists().where(observations.c.series_id == _STAGED.c.series_id, observations.c.ds == _STAGED.c.ds)
    return sa.select(_STAGED.c.ds).where(there).subquery()


def _insert_tuples(connection: Connection, id_R: IntArray, ds_R: IntArray, value_R: FloatArray) -> None:
    values = [None if math.isnan(value) else value for value in value_R.tolist()]
    cursor = connection.connection.cursor()
    cursor.executemany(
        "INSERT INTO staged VALUES (?, ?, ?)", list(zip(id_R.tolist(), ds_R.tolist(), values, strict=True))
    )
    cursor.close()


_COPIED_IN = np.dtype(
    [("n", ">i2"), ("l1", ">i4"), ("id", ">i4"), ("l2", ">i4"), ("ds", ">i8"), ("l3", ">i4"), ("value", ">f8")]
)
_COPIED_OUT = np.dtype(
    [
        *[("n", ">i2"), ("l1", ">i4"), ("id", ">i4"), ("l2", ">i4"), ("ds", ">i8")],
        *[("l4", ">i4"), ("known_at", ">i8"), ("l3", ">i4"), ("value", ">f8")],
    ]
)
_HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_TRAILER = b"\xff\xff"


def _copy_in(connection: Connection, id_R: IntArray, ds_R: IntArray, value_R: FloatArray) -> None:
    """Write rows in PostgreSQL's binary COPY format; a missing value is a NaN until it is in the stage."""
    rows = np.zeros(len(id_R), dtype=_COPIED_IN)
    rows["n"], rows["l1"], rows["l2"], rows["l3"] = 3, 4, 8, 8
    rows["id"], rows["ds"], rows["value"] = id_R, ds_R, value_R
    driver = connection.connection.driver_connection
    with driver.cursor() as cursor, cursor.copy("COPY staged FROM STDIN (FORMAT BINARY)") as copy:  # type: ignore[union-attr]
        copy.write(_HEADER + rows.tobytes() + _TRAILER)
    connection.exec_driver_sql("UPDATE staged SET value = NULL WHERE value = 'NaN'")


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
