"""SQL: a table or a query of another database, read whole or from a watermark on.

The address is not in the job file: it names the environment variable that holds it, for it may hold a password.
"""

import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import sqlalchemy as sa
from pydantic import Field, model_validator
from sqlalchemy.engine import Connection

from forecasting.errors import SourceError
from training.sources.base import SourceConfig, SourceContext
from training.sources.wall_clock import TimeZone, read_timestamps

ROWS_AT_A_TIME = 100_000
CONNECT_SECONDS = 10
NAMES = ("unique_id", "ds")

Mark = datetime | int
"""A value of the watermark column: a moment or a running number."""


class SqlSource(SourceConfig):
    """Rows of another database, long: one row an observation."""

    kind: Literal["sql"] = Field("sql", description="A table or query of another database.")
    url_env: str = Field(
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        description="Name of the environment variable that holds the database's URL, such as PLANT_DB.",
    )
    table: str | None = Field(
        None, description="Table or view to read, with its schema where needed: plant.readings."
    )
    query: str | None = Field(None, description="Instead of a table: one SELECT.")
    columns: dict[str, str] = Field(
        {},
        description="What a column is, and its name in the database: {unique_id: sensor, ds: time, y: value}. "
        "Naming value columns keeps only those; default all.",
    )
    timezone: TimeZone | None = Field(
        None,
        description="Zone of timestamps without one, such as Europe/Berlin. Default: UTC, and dates stay dates.",
    )
    timestamp_format: str | None = Field(
        None, description="How timestamps are written that are text or numbers; as for files. Default ISO 8601."
    )
    watermark: str | None = Field(
        None,
        description="Column that grows as rows are written: a moment of writing, or a running number. "
        "`hindcast ingest` then reads what is new. Default: everything, each time.",
    )
    overlap: float = Field(
        0.0,
        ge=0,
        description="How far before the watermark to begin again, for rows that became visible late: seconds of a "
        "moment, or so many numbers.",
    )

    @model_validator(mode="after")
    def _names_one_thing(self) -> "SqlSource":
        if (self.table is None) == (self.query is None):
            raise ValueError("give either table or query")
        if self.overlap and self.watermark is None:
            raise ValueError("overlap: how far before the watermark; there is no watermark")
        if len(set(self.columns.values())) < len(self.columns):
            raise ValueError("columns: one column of the database cannot be two things")
        return self

    def load(self, context: SourceContext) -> pd.DataFrame:
        """Return all rows as a long frame.

        Raises:
            SourceError: the database did not answer, or has no such table or column.
        """
        parts = [rows for rows, _ in self.read_from(None, row_by_row=context.row_by_row)]
        if not parts:
            raise SourceError(f"no rows in {self._what}")
        return pd.concat(parts, ignore_index=True)

    def read_from(
        self, mark: Mark | None, *, row_by_row: bool = False
    ) -> Generator[tuple[pd.DataFrame, Mark | None]]:
        """Yield rows a hundred thousand at a time, each lot with the watermark it reaches.

        Args:
            mark: rows before it, less the overlap, are not read; None reads all.
            row_by_row: a timestamp that cannot be read fails alone, see `read_timestamps`.

        Raises:
            SourceError: the database did not answer, or has no such table or column.
        """
        with self._answering() as connection:
            query = self._build_query(mark, as_text=connection.dialect.name == "sqlite")
            with connection.execution_options(yield_per=ROWS_AT_A_TIME).execute(query) as result:
                names = list(result.keys())
                for lot in result.partitions(ROWS_AT_A_TIME):
                    rows = [tuple(row) for row in lot]
                    table = pd.DataFrame.from_records(rows, columns=names, coerce_float=True)
                    yield self._to_long(table, row_by_row=row_by_row), self._mark_of(table)

    def _mark_of(self, table: pd.DataFrame) -> Mark | None:
        """Return the watermark of the last row."""
        return None if self.watermark is None else _as_mark(table[self.watermark].iloc[-1], self.watermark)

    @property
    def _what(self) -> str:
        return f"table {self.table!r}" if self.table else "the query"

    def _build_query(self, mark: Mark | None, *, as_text: bool) -> sa.Select[Any]:
        if self.query is not None:
            # A colon is SQLAlchemy's own sign for a parameter; here it is always the database's.
            text = self.query.strip().rstrip(";").replace(":", "\\:")
            rows: sa.FromClause = sa.text(text).columns().subquery("asked")
        else:
            schema, _, name = (self.table or "").rpartition(".")
            rows = sa.table(name, schema=schema or None)
        chosen: sa.Select[Any] = sa.select(sa.literal_column("*")).select_from(rows)
        if self.watermark is None:
            return chosen
        column: sa.ColumnClause[Any] = sa.column(self.watermark)
        chosen = chosen.where(column.is_not(None)).order_by(column)
        if mark is None:
            return chosen
        return chosen.where(column >= self._begin(mark, as_text=as_text))

    def _begin(self, mark: Mark, *, as_text: bool) -> Mark | str:
        if not isinstance(mark, datetime):
            return mark - int(self.overlap)
        before = mark - timedelta(seconds=self.overlap)
        # SQLite has no moments but text, and the shorter of two that begin alike is the earlier one.
        return str(before) if as_text else before

    @contextmanager
    def _answering(self) -> Iterator[Connection]:
        """Open a transaction that only reads; no address or password is in what it raises."""
        url = self._address()
        options = {"connect_timeout": CONNECT_SECONDS} if url.get_backend_name() == "postgresql" else {}
        if url.get_backend_name() == "sqlite" and not Path(url.database or "").is_file():
            raise SourceError(f"{self.url_env}: there is no SQLite file at its path")
        try:
            engine = sa.create_engine(url, connect_args=options, poolclass=sa.NullPool)
        except (sa.exc.ArgumentError, ImportError) as error:
            raise SourceError(f"{self.url_env}: no driver for {url.get_backend_name()!r} is installed") from error
        try:
            with engine.connect() as connection, connection.begin():
                _read_only(connection)
                yield connection
        except sa.exc.SQLAlchemyError as error:
            raise SourceError(f"{self._what} of {self.url_env} cannot be read: {_reason(error, url)}") from None
        finally:
            engine.dispose()

    def _address(self) -> sa.URL:
        text = os.environ.get(self.url_env)
        if not text:
            raise SourceError(f"the environment variable {self.url_env} is not set; it holds the database's URL")
        try:
            url = sa.make_url(text)
        except sa.exc.ArgumentError:
            raise SourceError(f"{self.url_env} holds no URL such as postgresql://user@host/database") from None
        return url.set(drivername="postgresql+psycopg") if url.drivername in ("postgresql", "postgres") else url

    def _to_long(self, table: pd.DataFrame, *, row_by_row: bool) -> pd.DataFrame:
        wanted = {"unique_id": "unique_id", "ds": "ds"} | self.columns
        for name, column in wanted.items():
            if column not in table.columns:
                there = ", ".join(map(repr, table.columns))
                mapped = f" (columns: {name})" if name != column else ""
                raise SourceError(f"{self._what} has no column {column!r}{mapped}; it has {there}")
        chosen = [column for name, column in wanted.items() if name not in NAMES]
        taken = {wanted["unique_id"], wanted["ds"], self.watermark}
        values = chosen or [column for column in table.columns if column not in taken]
        long = table[[wanted["unique_id"], wanted["ds"], *values]].rename(
            columns={column: name for name, column in wanted.items()}
        )
        names = long["unique_id"].astype(str)
        stamps = _as_stamps(long["ds"])
        ds = read_timestamps(stamps, names, self.timestamp_format, self.timezone, row_by_row=row_by_row)
        return long.assign(ds=ds)


def _as_stamps(ds: pd.Series) -> pd.Series:
    """Return timestamps where the driver gave them as objects, and text where it gave text."""
    kinds = {type(value) for value in ds.dropna()}
    if ds.dtype == object and kinds and not kinds & {str, int, float}:
        return ds.map(lambda value: value.isoformat(), na_action="ignore")
    return ds


def _as_mark(value: Any, column: str) -> Mark:  # noqa: ANN401  (whatever the driver gives)
    if isinstance(value, datetime):
        return value.to_pydatetime() if isinstance(value, pd.Timestamp) else value
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return int(value)
    if isinstance(value, str):
        try:
            return datetime.fromisoformat(value)
        except ValueError:
            pass
    raise SourceError(f"the watermark column {column!r} holds {value!r}; it takes a moment or a whole number")


def mark_to_text(mark: Mark) -> str:
    """Return a watermark as the ledger keeps it."""
    return mark.isoformat() if isinstance(mark, datetime) else str(mark)


def mark_from_text(text: str) -> Mark:
    """Return a watermark of the ledger."""
    return int(text) if text.lstrip("-").isdecimal() else datetime.fromisoformat(text)


def cap_mark(mark: Mark, now: datetime) -> Mark:
    """Return a watermark not ahead of the time: one wrong clock would hide all that is written until then."""
    if not isinstance(mark, datetime):
        return mark
    return min(mark, now if mark.tzinfo is not None else now.astimezone(UTC).replace(tzinfo=None))


def _read_only(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql("SET TRANSACTION READ ONLY")
    elif connection.dialect.name == "sqlite":
        connection.exec_driver_sql("PRAGMA query_only = ON")


def _reason(error: sa.exc.SQLAlchemyError, url: sa.URL) -> str:
    original = getattr(error, "orig", None) or error
    line = next(iter(str(original).splitlines()), type(original).__name__)
    return line.replace(str(url.password), "***") if url.password else line
