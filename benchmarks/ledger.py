"""Observations a second into the ledger, and what was known at a moment back out, on SQLite and PostgreSQL.

Peers are the plain ways to do the same with the same drivers, in the same run: SQLAlchemy's executemany into a
table without versions, one INSERT and commit a row, and pandas.read_sql of that table.
"""

import os
import secrets
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from time import perf_counter

import numpy as np
import pandas as pd
import sqlalchemy as sa

from benchmarks.report import OURS, Report, build_parser, finish, say
from ledger.database import reading, writing
from ledger.ledger import Ledger, open_ledger
from ledger.schema import observations, series

POSTGRES = os.environ.get("HINDCAST_TEST_POSTGRES", "postgresql://postgres@127.0.0.1:5432/postgres")
EXECUTEMANY, ROW_BY_ROW, READ_SQL = "SQLAlchemy executemany", "INSERT and commit", "pandas.read_sql"
FIRST = pd.Timestamp("2024-01-01")

plain = sa.Table(
    "plain",
    sa.MetaData(),
    sa.Column("unique_id", sa.String(256), primary_key=True),
    sa.Column("ds", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("y", sa.Double),
)


def main(argv: Sequence[str]) -> None:
    """Run the benchmark on every database that answers."""
    parser = build_parser("ledger", "Observations a second into and out of the ledger.")
    parser.add_argument("--series", type=int, default=1_000, help="series (%(default)s)")
    parser.add_argument(
        "--points", type=int, default=1_000, help="points appended to each at one time (%(default)s)"
    )
    parser.add_argument("--read-points", type=int, default=10_000, help="points of a series read (%(default)s)")
    arguments = parser.parse_args(argv)
    n_series, points, read_points = arguments.series, arguments.points, arguments.read_points
    if arguments.quick:
        n_series, points, read_points = min(n_series, 200), min(points, 500), min(read_points, 1_000)
    report = Report()
    for name, urls in (("SQLite", sqlite_url()), ("PostgreSQL", postgres_url())):
        with urls as url:
            if url is None:
                say(f"{name} does not answer; left out")
                continue
            say(f"{name}: {n_series:,} series")
            with closing(open_ledger(url)) as ledger:
                measure(report, name, ledger, n_series, points, read_points)
    finish(report, "ledger", argv, arguments.out)


def measure(report: Report, name: str, ledger: Ledger, n_series: int, points: int, read_points: int) -> None:
    """Measure one database, and add the figures."""
    rows = build_rows(n_series, points)
    n = len(rows)
    case = f"{name}, append {n_series:,} x {points:,}"
    seconds = timed(lambda: ledger.observations.append("bench", rows))
    report.add(case, OURS, "observations/s", n / seconds)
    peer = timed(lambda: insert_plainly(ledger, rows))
    report.add(case, EXECUTEMANY, "observations/s", n / peer)
    report.add(case, OURS, f"ratio to {EXECUTEMANY}", peer / seconds)
    again = timed(lambda: ledger.observations.append("bench", rows))
    report.add(f"{name}, the same again", OURS, "observations/s", n / again)
    revised = rows.assign(y=rows["y"] + 1)
    report.add(
        f"{name}, all revised",
        OURS,
        "observations/s",
        n / timed(lambda: ledger.observations.append("bench", revised)),
    )
    measure_single_rows(report, name, ledger, points)
    moment = ledger.clock()
    total = points
    while total < read_points:
        step = min(points * 5, read_points - total)
        ledger.observations.append("bench", build_rows(n_series, step, first=total))
        total += step
    copy_plainly(ledger, points, total)
    measure_reads(report, name, ledger, n_series, total)
    early = timed(lambda: ledger.observations.frame("bench", as_of=moment))
    report.add(f"{name}, as of an earlier moment", OURS, "observations/s", n / early)


def measure_single_rows(report: Report, name: str, ledger: Ledger, first: int, n: int = 200) -> None:
    """Measure rows that come one by one, each durable before the next."""
    case = f"{name}, one row at a time"
    single = [build_rows(1, 1, first=first + 1_000_000 + i) for i in range(n)]
    seconds = timed(lambda: [ledger.observations.append("bench", row) for row in single])
    peer = timed(lambda: insert_plainly(ledger, *single))
    report.add(case, OURS, "observations/s", n / seconds)
    report.add(case, ROW_BY_ROW, "observations/s", n / peer)
    report.add(case, OURS, f"ratio to {ROW_BY_ROW}", peer / seconds)


def measure_reads(report: Report, name: str, ledger: Ledger, n_series: int, points: int) -> None:
    """Measure reading everything as it is known now."""
    case = f"{name}, read {n_series:,} x {points:,} as of now"
    frame: list[pd.DataFrame] = []
    seconds = timed(lambda: frame.append(ledger.observations.frame("bench", as_of=ledger.clock())))
    n = len(frame.pop())
    report.add(case, OURS, "observations/s", n / seconds)
    peer = timed(lambda: read_plainly(ledger))
    report.add(case, READ_SQL, "observations/s", n / peer)
    report.add(case, OURS, f"ratio to {READ_SQL}", peer / seconds)


def build_rows(n_series: int, points: int, first: int = 0) -> pd.DataFrame:
    """Return minute readings of sensors, series after series."""
    ds = (FIRST + pd.to_timedelta(np.arange(first, first + points), unit="min")).as_unit("us")
    names = np.array([f"pump-{i}" for i in range(n_series)], dtype=object)
    values = np.random.default_rng(first).normal(size=n_series * points)
    return pd.DataFrame({"unique_id": names.repeat(points), "ds": np.tile(ds.to_numpy(), n_series), "y": values})


def insert_plainly(ledger: Ledger, *parts: pd.DataFrame) -> None:
    """Insert rows as one does who has no ledger, each part in a transaction."""
    for rows in parts:
        numbers = rows.assign(ds=rows["ds"].astype("int64")).itertuples(index=False)
        records = [{"unique_id": name, "ds": ds, "y": y} for name, ds, y in numbers]
        with writing(ledger.engine) as connection:
            plain.create(connection, checkfirst=True)
            connection.execute(sa.insert(plain), records)


def copy_plainly(ledger: Ledger, first: int, stop: int) -> None:
    """Fill the table without versions with points that were never revised, inside the database."""
    since, until = (int((FIRST + pd.Timedelta(minutes=n)).value // 1000) for n in (first, stop))
    rows = (
        sa.select(series.c.unique_id, observations.c.ds, observations.c.value)
        .join(series, series.c.id == observations.c.series_id)
        .where(observations.c.ds >= since, observations.c.ds < until)
    )
    with writing(ledger.engine) as connection:
        connection.execute(sa.insert(plain).from_select(["unique_id", "ds", "y"], rows))


def read_plainly(ledger: Ledger) -> pd.DataFrame:
    """Read the table without versions, in order."""
    with reading(ledger.engine) as connection:
        return pd.read_sql(sa.select(plain).order_by(plain.c.unique_id, plain.c.ds), connection)


def timed(work: Callable[[], object]) -> float:
    """Return the seconds something takes."""
    began = perf_counter()
    work()
    return perf_counter() - began


@contextmanager
def sqlite_url() -> Iterator[str | None]:
    """Yield the URL of a database in a file that is deleted afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        yield f"sqlite:///{Path(folder)}/ledger.db"


@contextmanager
def postgres_url() -> Iterator[str | None]:
    """Yield the URL of a database that is dropped afterwards; None where no PostgreSQL answers."""
    import psycopg

    name = f"hindcast_bench_{secrets.token_hex(4)}"
    try:
        admin = psycopg.connect(POSTGRES, autocommit=True, connect_timeout=3)
    except psycopg.OperationalError:
        yield None
        return
    with closing(admin):
        admin.execute(f'CREATE DATABASE "{name}"')
        try:
            yield f"{POSTGRES.rsplit('/', 1)[0]}/{name}"
        finally:
            admin.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


if __name__ == "__main__":
    main(sys.argv[1:])
