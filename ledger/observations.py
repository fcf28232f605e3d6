"""Observations: append-only, every value with the moment it became known.

A value that comes again changes nothing. A value that differs from the one known is a revision: a new row, the
old one stays. So the ledger can be asked what was known at any moment, and answers the same for ever.

R rows.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

import numpy as np
import pandas as pd
import sqlalchemy as sa
from numpy.typing import NDArray
from sqlalchemy.engine import Connection, Engine

from forecasting.errors import InputError
from ledger import bulk
from ledger.database import reading, writing
from ledger.moments import (
    Clock,
    microseconds_to_stamps,
    stamps_to_microseconds,
    to_microseconds,
    to_moment,
)
from ledger.rules import LONGEST_NAME, check_name, is_storable
from ledger.schema import datasets, labels, observations, series

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

Version = Literal["latest", "first"]
"""Which of a step's values: the one known last, or the one known first."""

TARGET = "y"
"""The column that holds the value of a series; every other column is a covariate."""


@dataclass(frozen=True)
class Appended:
    """What became of the values that were offered."""

    new: int
    """Values of steps of which nothing was known."""
    revised: int
    """Values that differ from the one known until now."""
    unchanged: int
    """Values that were known already, and missing ones where nothing was known."""
    known_at: datetime
    """The moment under which they are kept."""

    @property
    def added(self) -> int:
        """Return how many rows the ledger has more."""
        return self.new + self.revised


@dataclass(frozen=True)
class Readings:
    """Values of one column as they were known at one moment; rows by series and time."""

    unique_ids: tuple[str, ...]
    series_R: IntArray
    """Position of each row's series among `unique_ids`."""
    ds_R: NDArray[np.datetime64]
    value_R: FloatArray
    """NaN where a value was withdrawn."""
    as_of: datetime | None
    """The last moment at which something became known that counts here; None where nothing did."""

    def to_frame(self, name: str = TARGET) -> pd.DataFrame:
        """Return a long frame: `unique_id`, `ds` and the values."""
        ids = np.asarray(self.unique_ids, dtype=object)
        unique_id = pd.Series(ids[self.series_R] if len(ids) else [], dtype="str")
        return pd.DataFrame({"unique_id": unique_id, "ds": self.ds_R, name: self.value_R})


@dataclass(frozen=True)
class SeriesSummary:
    """One series of a dataset, in short."""

    unique_id: str
    columns: tuple[str, ...]
    first: np.datetime64
    last: np.datetime64


class ObservationStore:
    """Keeps observations, and reads them as they were known."""

    def __init__(self, engine: Engine, clock: Clock) -> None:
        self._engine = engine
        self._clock = clock

    def append(
        self,
        dataset: str,
        rows: pd.DataFrame,
        *,
        static: Sequence[str] = (),
        given: Mapping[str, NDArray[np.bool_]] | None = None,
    ) -> Appended:
        """Add values, whole or not at all.

        Args:
            dataset: the name series are kept under; several jobs may read one.
            rows: `unique_id`, `ds` (naive, as a panel has it) and one or more columns of numbers, NaN where
                missing. A missing value withdraws the one known; where nothing is known it says nothing.
                Where a series has a step twice, the later row counts.
            static: columns of names, one a series; kept as they change. A missing name says nothing.
            given: which rows say something of a column, missing or not; default all of them.

        Raises:
            InputError: a column is absent or holds no numbers, or a name cannot be kept.
            LedgerUnavailableError: the database does not answer; nothing was kept.
        """
        with writing(self._engine) as connection:
            return self.append_in(connection, dataset, rows, static=static, given=given)

    def append_in(
        self,
        connection: Connection,
        dataset: str,
        rows: pd.DataFrame,
        *,
        static: Sequence[str] = (),
        given: Mapping[str, NDArray[np.bool_]] | None = None,
    ) -> Appended:
        """Add values as `append` does, in a transaction that writes something else besides."""
        values = _columns_of(rows, static)
        told = given or {}
        parts = [_part(rows[told[name]] if name in told else rows, name) for name in values]
        bulk.allow_time(connection, rows.size)
        lock_dataset(connection, dataset, exclusive=True)
        known_at = self._next_moment(connection, dataset)
        ids = _number_series(connection, dataset, parts)
        offered = 0
        with bulk.staging(connection) as stage:
            for part in parts:
                stage.add(*part.numbered(ids))
            offered, new, revised = stage.merge(known_at)
        said = _append_labels(connection, dataset, rows, static, known_at)
        if new or revised or said:
            _note_moment(connection, dataset, known_at)
        return Appended(new, revised, offered - new - revised, to_moment(known_at))

    def read(
        self,
        dataset: str,
        *,
        column: str = TARGET,
        unique_ids: Sequence[str] | None = None,
        as_of: datetime | None = None,
        start: np.datetime64 | None = None,
        end: np.datetime64 | None = None,
        version: Version = "latest",
    ) -> Readings:
        """Return a column exactly as it was known at a moment.

        Args:
            dataset: the name the series are kept under.
            column: which values.
            unique_ids: series wanted; default all. Those without a row are left out.
            as_of: the moment; default now.
            start: first timestamp wanted.
            end: last timestamp wanted.
            version: `latest` known by then, or the `first` that was ever known.
        """
        if as_of is not None:
            self._let_writers_finish(dataset)
        with reading(self._engine) as connection:
            known = _find_series(connection, dataset, column, unique_ids)
            limit = None if as_of is None else to_microseconds(as_of)
            wanted = _select(bulk.value_of(connection), list(known), limit, start, end)
            id_R, ds_R, _, value_R = bulk.fetch(connection, wanted)
            last = _last_moment(connection, dataset)
        keep_R = _of_each_step(id_R, ds_R, version)
        present, number_R = np.unique(id_R[keep_R], return_inverse=True)
        names = [known[number] for number in present.tolist()]
        place = {name: position for position, name in enumerate(sorted(names))}
        series_R = np.array([place[name] for name in names], dtype=np.int64)[number_R]
        by_name = np.argsort(series_R, kind="stable")
        moments = [m for m in (last, limit) if m is not None]
        return Readings(
            unique_ids=tuple(place),
            series_R=series_R[by_name],
            ds_R=microseconds_to_stamps(ds_R[keep_R][by_name]),
            value_R=value_R[keep_R][by_name],
            as_of=None if last is None else to_moment(min(moments)),
        )

    def frame(
        self,
        dataset: str,
        columns: Sequence[str] = (TARGET,),
        *,
        static: Sequence[str] = (),
        unique_ids: Sequence[str] | None = None,
        as_of: datetime | None = None,
        start: np.datetime64 | None = None,
    ) -> pd.DataFrame:
        """Return a long frame of several columns and names, as known at a moment; rows by series and time.

        The default moment is the last at which anything became known, whatever the clock says: all columns are
        read as of that one.
        """
        as_of = as_of or self.last_known_at(dataset) or self._clock()
        frame: pd.DataFrame | None = None
        for name in columns:
            readings = self.read(dataset, column=name, unique_ids=unique_ids, as_of=as_of, start=start)
            part = readings.to_frame(name)
            frame = part if frame is None else frame.merge(part, on=["unique_id", "ds"], how="outer", sort=True)
        if frame is None:
            raise InputError("a frame takes at least one column")
        said = self.labels(dataset, as_of=as_of)
        for name in static:
            frame[name] = (
                frame["unique_id"].map({uid: names.get(name, "") for uid, names in said.items()}).fillna("")
            )
        return frame

    def labels(
        self, dataset: str, *, unique_ids: Sequence[str] | None = None, as_of: datetime | None = None
    ) -> dict[str, dict[str, str]]:
        """Return the names told of each series, as known at a moment: `{unique_id: {name: label}}`."""
        query = sa.select(labels).where(labels.c.dataset == dataset).order_by(labels.c.known_at)
        if unique_ids is not None:
            query = query.where(labels.c.unique_id.in_(unique_ids))
        if as_of is not None:
            query = query.where(labels.c.known_at <= to_microseconds(as_of))
        found: dict[str, dict[str, str]] = {}
        with reading(self._engine) as connection:
            for row in connection.execute(query):
                found.setdefault(row.unique_id, {})[row.name] = row.label
        return found

    def revisions(self, dataset: str, unique_id: str, *, column: str = TARGET) -> pd.DataFrame:
        """Return every value a series ever had: `ds`, `known_at`, `value`, in that order."""
        query = (
            sa.select(observations.c.ds, observations.c.known_at, observations.c.value)
            .join(series, series.c.id == observations.c.series_id)
            .where(series.c.dataset == dataset, series.c.unique_id == unique_id, series.c.column == column)
            .order_by(observations.c.ds, observations.c.known_at)
        )
        with reading(self._engine) as connection:
            rows = connection.execute(query).all()
        return pd.DataFrame(
            {
                "ds": np.array([row.ds for row in rows], dtype="datetime64[us]"),
                "known_at": [to_moment(row.known_at) for row in rows],
                "value": np.array([row.value for row in rows], dtype=np.float64),
            }
        )

    def datasets(self) -> list[str]:
        """Return the names of all datasets, sorted."""
        with reading(self._engine) as connection:
            return list(connection.scalars(sa.select(datasets.c.dataset).order_by(datasets.c.dataset)))

    def series(self, dataset: str, prefix: str = "", limit: int | None = None) -> list[SeriesSummary]:
        """Return the series of a dataset whose name begins with `prefix`, sorted by name."""
        query = (
            sa.select(
                series.c.unique_id, series.c.column, sa.func.min(observations.c.ds), sa.func.max(observations.c.ds)
            )
            .join(observations, observations.c.series_id == series.c.id)
            .where(series.c.dataset == dataset, series.c.unique_id.startswith(prefix, autoescape=True))
            .group_by(series.c.unique_id, series.c.column)
            .order_by(series.c.unique_id)
        )
        found: dict[str, list[tuple[str, int, int]]] = {}
        with reading(self._engine) as connection:
            for unique_id, column, first, last in connection.execute(query):
                found.setdefault(unique_id, []).append((column, first, last))
        summaries = [
            SeriesSummary(
                unique_id,
                tuple(sorted(column for column, _, _ in parts)),
                np.datetime64(min(first for _, first, _ in parts), "us"),
                np.datetime64(max(last for _, _, last in parts), "us"),
            )
            for unique_id, parts in found.items()
        ]
        return summaries if limit is None else summaries[:limit]

    def page(
        self, dataset: str, *, column: str = TARGET, prefix: str = "", after: str = "", limit: int = 100
    ) -> list[SeriesSummary]:
        """Return some series that have a column, by name, beginning after one; costs what the page has.

        `first` and `last` are of that column alone.
        """
        of_series = observations.c.series_id == series.c.id
        query = (
            sa.select(
                series.c.unique_id,
                sa.select(sa.func.min(observations.c.ds)).where(of_series).scalar_subquery().label("first"),
                sa.select(sa.func.max(observations.c.ds)).where(of_series).scalar_subquery().label("last"),
            )
            .where(series.c.dataset == dataset, series.c.column == column, series.c.unique_id > after)
            .where(series.c.unique_id.startswith(prefix, autoescape=True))
            .order_by(series.c.unique_id)
            .limit(limit)
        )
        with reading(self._engine) as connection:
            rows = connection.execute(query).all()
        return [
            SeriesSummary(row.unique_id, (column,), np.datetime64(row.first, "us"), np.datetime64(row.last, "us"))
            for row in rows
            if row.first is not None
        ]

    def last_known_at(self, dataset: str) -> datetime | None:
        """Return the moment something became known last; None for a dataset without observations."""
        with reading(self._engine) as connection:
            last = _last_moment(connection, dataset)
        return None if last is None else to_moment(last)

    def count_since(self, dataset: str, moment: datetime, *, column: str = TARGET) -> int:
        """Return how many values of a column became known after a moment."""
        query = (
            sa.select(sa.func.count())
            .select_from(observations.join(series, series.c.id == observations.c.series_id))
            .where(series.c.dataset == dataset, series.c.column == column)
            .where(observations.c.known_at > to_microseconds(moment))
        )
        with reading(self._engine) as connection:
            return int(connection.scalar(query) or 0)

    def _next_moment(self, connection: Connection, dataset: str) -> int:
        """Return now, or just after the last moment where the clock went back: moments of a dataset ascend."""
        last = _last_moment(connection, dataset)
        now = to_microseconds(self._clock())
        return now if last is None else max(now, last + 1)

    def _let_writers_finish(self, dataset: str) -> None:
        """Wait for whoever is writing under an earlier moment, or the same question had two answers."""
        with writing(self._engine) as connection:
            lock_dataset(connection, dataset, exclusive=False)


@dataclass(frozen=True)
class _Part:
    """One column of the rows offered, without those of no timestamp."""

    column: str
    names: tuple[str, ...]
    code_R: IntArray
    ds_R: IntArray
    value_R: FloatArray

    def numbered(self, ids: dict[tuple[str, str], int]) -> tuple[IntArray, IntArray, FloatArray]:
        """Return series number, timestamp and value of each row, each step once and the last row of it."""
        numbers = np.array([ids[name, self.column] for name in self.names], dtype=np.int64)
        id_R = numbers[self.code_R]
        order = np.lexsort((np.arange(len(id_R)), self.ds_R, id_R))
        id_R, ds_R, value_R = id_R[order], self.ds_R[order], self.value_R[order]
        keep_R = _of_each_step(id_R, ds_R, "latest")
        return id_R[keep_R], ds_R[keep_R], value_R[keep_R]


def _columns_of(rows: pd.DataFrame, static: Sequence[str]) -> list[str]:
    absent = [name for name in ("unique_id", "ds", *static) if name not in rows.columns]
    if absent:
        raise InputError(
            f"observations need the column {absent[0]!r}; there are {', '.join(map(str, rows.columns))}"
        )
    values = [str(name) for name in rows.columns if name not in ("unique_id", "ds", *static)]
    if not values:
        raise InputError("observations need a column of values, such as 'y'")
    for name in values:
        check_name(name, "the column")
        if not pd.api.types.is_numeric_dtype(rows[name]):
            raise InputError(f"column {name!r} holds {rows[name].dtype} values, not numbers")
    return values


def _part(rows: pd.DataFrame, column: str) -> _Part:
    codes, names = pd.factorize(rows["unique_id"])
    ds = rows["ds"].to_numpy().astype("datetime64[us]")
    if len(rows) and ((codes < 0).any() or np.isnat(ds).any()):
        raise InputError("every observation needs a unique_id and a ds")
    named = tuple(map(str, names))
    _check_names(named, codes)
    value_R = rows[column].to_numpy(dtype=np.float64, na_value=np.nan)
    # Infinity is no observation; it would not be the same in both databases either.
    value_R = np.where(np.isfinite(value_R), value_R, np.nan)
    return _Part(column, named, codes.astype(np.int64), stamps_to_microseconds(ds), value_R)


def _check_names(names: Sequence[str], code_R: IntArray) -> None:
    for code, name in enumerate(names):
        if len(name) > LONGEST_NAME or not is_storable(name):
            check_name(name, f"row {int(np.argmax(code_R == code)) + 1}: unique_id")


def _number_series(connection: Connection, dataset: str, parts: Sequence[_Part]) -> dict[tuple[str, str], int]:
    """Return the number of every series and column, new ones entered."""
    wanted = {(name, part.column) for part in parts for name in part.names}
    columns, names = {column for _, column in wanted}, {name for name, _ in wanted}
    known = _known_numbers(connection, dataset, columns, names)
    fresh = sorted(wanted - known.keys())
    if fresh:
        connection.execute(
            sa.insert(series),
            [{"dataset": dataset, "unique_id": name, "column": column} for name, column in fresh],
        )
        known = _known_numbers(connection, dataset, columns, names)
    return known


def _known_numbers(
    connection: Connection, dataset: str, columns: set[str], names: set[str]
) -> dict[tuple[str, str], int]:
    query = sa.select(series.c.unique_id, series.c.column, series.c.id).where(
        series.c.dataset == dataset, series.c.column.in_(columns)
    )
    if len(names) <= bulk.FEW:
        query = query.where(series.c.unique_id.in_(names))
    return {(name, column): number for name, column, number in connection.execute(query)}


def _append_labels(
    connection: Connection, dataset: str, rows: pd.DataFrame, static: Sequence[str], known_at: int
) -> int:
    """Add the names that differ from those known; return how many."""
    if not static:
        return 0
    query = sa.select(labels).where(labels.c.dataset == dataset).order_by(labels.c.known_at)
    known = {(row.unique_id, row.name): row.label for row in connection.execute(query)}
    told: dict[tuple[str, str], str] = {}
    for name in static:
        last = rows[rows[name].notna()].drop_duplicates("unique_id", keep="last")
        for unique_id, label in zip(last["unique_id"], last[name], strict=True):
            told[str(unique_id), name] = check_name(str(label), f"series {unique_id!r}: {name}")
    changed = [key for key, label in told.items() if known.get(key, "") != label]
    if changed:
        connection.execute(
            sa.insert(labels),
            [
                {
                    "dataset": dataset,
                    "unique_id": uid,
                    "name": name,
                    "known_at": known_at,
                    "label": told[uid, name],
                }
                for uid, name in changed
            ],
        )
    return len(changed)


def _find_series(
    connection: Connection, dataset: str, column: str, unique_ids: Sequence[str] | None
) -> dict[int, str]:
    """Return the series wanted: name by number."""
    query = sa.select(series.c.id, series.c.unique_id).where(
        series.c.dataset == dataset, series.c.column == column
    )
    if unique_ids is not None and len(unique_ids) <= bulk.FEW:
        query = query.where(series.c.unique_id.in_(unique_ids))
    found = {row.id: row.unique_id for row in connection.execute(query)}
    if unique_ids is None:
        return found
    wanted = set(unique_ids)
    return {number: name for number, name in found.items() if name in wanted}


def _select(
    value: sa.ColumnElement[float],
    numbers: Sequence[int],
    limit: int | None,
    start: np.datetime64 | None,
    end: np.datetime64 | None,
) -> Iterator[sa.Select[tuple[int, int, int, float]]]:
    """Yield queries for the rows of these series in the order of the key, few series in each."""
    ordered = sorted(numbers)
    for i in range(0, len(ordered), bulk.FEW):
        query = (
            sa.select(
                observations.c.series_id,
                observations.c.ds,
                observations.c.known_at,
                value,
            )
            .where(observations.c.series_id.in_(ordered[i : i + bulk.FEW]))
            .order_by(observations.c.series_id, observations.c.ds, observations.c.known_at)
        )
        if limit is not None:
            query = query.where(observations.c.known_at <= limit)
        if start is not None:
            query = query.where(observations.c.ds >= int(start.astype("datetime64[us]").astype(np.int64)))
        if end is not None:
            query = query.where(observations.c.ds <= int(end.astype("datetime64[us]").astype(np.int64)))
        yield query


def _of_each_step(id_R: IntArray, ds_R: IntArray, version: Version) -> NDArray[np.bool_]:
    """Mark the first or the last row of each series and timestamp; rows are sorted by both."""
    if not len(id_R):
        return np.empty(0, dtype=bool)
    changes = (id_R[1:] != id_R[:-1]) | (ds_R[1:] != ds_R[:-1])
    return np.append(changes, True) if version == "latest" else np.insert(changes, 0, True)


def lock_dataset(connection: Connection, dataset: str, *, exclusive: bool) -> None:
    """Hold the dataset until the transaction ends; SQLite has one writer anyway."""
    if connection.dialect.name != "postgresql":
        return
    lock = sa.func.pg_advisory_xact_lock if exclusive else sa.func.pg_advisory_xact_lock_shared
    connection.execute(sa.select(lock(sa.func.hashtextextended(dataset, 0))))


def _last_moment(connection: Connection, dataset: str) -> int | None:
    return connection.scalar(sa.select(datasets.c.last_known_at).where(datasets.c.dataset == dataset))


def _note_moment(connection: Connection, dataset: str, known_at: int) -> None:
    told = sa.update(datasets).where(datasets.c.dataset == dataset).values(last_known_at=known_at)
    if connection.execute(told).rowcount == 0:
        connection.execute(sa.insert(datasets).values(dataset=dataset, last_known_at=known_at))
