"""Ledger: one database of observations, forecasts and what became of them; SQLite or PostgreSQL."""

import fcntl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy.engine import Connection, Engine

from forecasting.errors import InputError, LedgerError, LedgerUnavailableError
from ledger.rules import is_storable, make_storable

BUSY_SECONDS = 30.0
"""Seconds a writer waits for another one before it gives up (SQLite)."""
STATEMENT_SECONDS = 600
"""Seconds a statement may take, waiting for locks too (PostgreSQL); `options` in the URL may say otherwise."""
GIVEN_UP = {
    "connect_timeout": 5,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}
"""When a PostgreSQL that is away or hangs is given up, as libpq has it; the URL may say otherwise.

Seconds, and milliseconds for the last, which is of what was sent and not acknowledged."""
SCHEMA = "ledger"
"""Where the tables are in PostgreSQL: MLflow, which may share the database, has tables of the same names."""
MIGRATION_LOCK = 7_431_980
"""Number of the lock that lets one process at a time change the tables (PostgreSQL)."""


def open_database(url: str) -> Engine:
    """Connect to a ledger's database and bring its tables up to date.

    Args:
        url: `sqlite:///path` or `postgresql://...`.

    Raises:
        LedgerError: the URL names another kind of database, or one newer than this program.
        LedgerUnavailableError: the database does not answer.
    """
    engine = _create_engine(url)
    try:
        with answering(engine):
            _migrate(engine)
    except sa.exc.DatabaseError as error:
        engine.dispose()
        raise LedgerError(f"the ledger cannot be opened: {_first_line(error)}") from error
    except LedgerError:
        engine.dispose()
        raise
    return engine


def _create_engine(url: str) -> Engine:
    engine = _engine_of(url)
    sa.event.listen(engine, "before_cursor_execute", _refuse_unstorable)
    return engine


def _refuse_unstorable(
    connection: Connection,
    cursor: Any,  # noqa: ANN401  (whatever the driver hands out)
    statement: str,
    parameters: Any,  # noqa: ANN401  (one row or many, by name or by place)
    context: Any,  # noqa: ANN401
    executemany: bool,
) -> None:
    """Refuse texts that cannot be kept, also as something to look for: SQLite takes what PostgreSQL does not."""
    del connection, cursor, statement, context
    for row in parameters if executemany else [parameters]:
        for value in row.values() if isinstance(row, Mapping) else row:
            if isinstance(value, str) and not is_storable(value):
                shown = make_storable(value)[:80]
                raise InputError(f"{shown!r} has a NUL or half a character in it; nothing here has")


def _engine_of(url: str) -> Engine:
    """Make an engine whose errors do not quote what was written: they end up in logs."""
    try:
        parsed = sa.make_url(url)
    except sa.exc.ArgumentError as error:
        raise LedgerError("the ledger's URL cannot be read; use sqlite:///path or postgresql://host/db") from error
    if parsed.get_backend_name() == "sqlite":
        if parsed.database and parsed.database != ":memory:":
            Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
        connect_args = {"timeout": BUSY_SECONDS, "check_same_thread": False}
        engine = sa.create_engine(parsed, hide_parameters=True, connect_args=connect_args)
        sa.event.listen(engine, "connect", _prepare_sqlite)
        sa.event.listen(engine, "begin", _begin_sqlite)
        return engine
    if parsed.get_backend_name() == "postgresql":
        return sa.create_engine(
            parsed.set(drivername="postgresql+psycopg"),
            pool_pre_ping=True,
            hide_parameters=True,
            connect_args=_options_of(parsed),
        )
    raise LedgerError(f"a ledger is kept in SQLite or PostgreSQL, not in {parsed.get_backend_name()!r}")


def _options_of(url: sa.URL) -> dict[str, Any]:
    """Return what PostgreSQL is told beside the URL, which is in the right where it says something itself."""
    limit = f"-cstatement_timeout={STATEMENT_SECONDS}s"
    options = [limit, *url.normalized_query.get("options", ()), f"-csearch_path={SCHEMA}"]
    own = {name: value for name, value in GIVEN_UP.items() if name not in url.query}
    return {**own, "options": " ".join(options)}


def _prepare_sqlite(connection: Any, record: Any) -> None:  # noqa: ANN401  (whatever the driver hands out)
    del record
    # Transactions are begun by _begin_sqlite: the driver's own begin too late to read and then write safely.
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in (
        "journal_mode=WAL",
        "synchronous=FULL",
        "foreign_keys=ON",
        f"busy_timeout={BUSY_SECONDS * 1000:.0f}",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """Open a transaction that writes, and commit it where the block ends well.

    Raises:
        LedgerUnavailableError: the database does not answer; nothing of the block was kept.
    """
    with answering(engine), engine.connect().execution_options(writes=True) as connection, connection.begin():
        yield connection


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """Open a transaction that reads one state of the database.

    Raises:
        LedgerUnavailableError: the database does not answer.
    """
    options = {"isolation_level": "REPEATABLE READ"} if engine.dialect.name == "postgresql" else {}
    with answering(engine), engine.connect().execution_options(**options) as connection, connection.begin():
        yield connection


def lift_limit(connection: Connection) -> None:
    """Let the statements of this transaction take what time they need: it depends on how much there is."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql("SET LOCAL statement_timeout = 0")


@contextmanager
def alone(engine: Engine, name: str) -> Iterator[bool]:
    """Yield whether nobody else is doing what `name` says; nobody else is told so until the block ends.

    It ends with the process too, however that dies. Threads and processes count alike, on this machine (SQLite)
    or anywhere (PostgreSQL).
    """
    if engine.dialect.name == "postgresql":
        with answering(engine), engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            number = sa.func.hashtextextended(f"alone: {name}", 0)
            try:
                yield bool(connection.scalar(sa.select(sa.func.pg_try_advisory_lock(number))))
            finally:
                # The lock is the connection's: it goes with it, and not back to the pool.
                connection.invalidate()
        return
    with Path(f"{engine.url.database}.{name}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True


@contextmanager
def answering(engine: Engine) -> Iterator[None]:
    """Turn the driver's errors of connection into the ledger's own; no address or password is in the message."""
    # Rows in bulk go to the driver directly, and its errors come as they are.
    driver = engine.dialect.loaded_dbapi
    away = (sa.exc.OperationalError, sa.exc.InterfaceError, driver.OperationalError, driver.InterfaceError)
    try:
        yield
    except (*away, sa.exc.TimeoutError) as error:
        kind = engine.dialect.name
        raise LedgerUnavailableError(
            f"the ledger's {kind} database does not answer: {_first_line(error)}"
        ) from error


def _first_line(error: Exception) -> str:
    original = getattr(error, "orig", None) or error
    return next(iter(str(original).splitlines()), type(original).__name__)


def _migrate(engine: Engine) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    with writing(engine) as connection:
        lift_limit(connection)
        if engine.dialect.name == "postgresql":
            # Two processes that start at once would both create the tables.
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(MIGRATION_LOCK)))
            if not sa.inspect(connection).has_schema(SCHEMA):
                connection.execute(sa.schema.CreateSchema(SCHEMA))
        config.attributes["connection"] = connection
        try:
            command.upgrade(config, "head")
        except CommandError as error:
            raise LedgerError(f"this ledger was written by a newer version of Hindcast: {error}") from error
