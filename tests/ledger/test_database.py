"""The database: its tables are those of the schema, however old it was, and it comes back after an outage."""

import multiprocessing
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from forecasting.errors import LedgerError, LedgerUnavailableError
from ledger.database import alone, open_database, reading, writing
from ledger.ledger import Ledger, open_ledger
from ledger.schema import metadata
from tests.conftest import POSTGRES

ONE = pd.DataFrame({"unique_id": ["a"], "ds": [pd.Timestamp("2024-01-01")], "y": [1.0]})


def test_the_migrations_make_the_tables_of_the_schema(ledger: Ledger) -> None:
    with ledger.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []


def test_a_ledger_of_a_newer_version_is_refused(ledger: Ledger, ledger_url: str) -> None:
    with writing(ledger.engine) as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(LedgerError, match="newer version of Hindcast"):
        open_database(ledger_url)


def _open_and_append(url: str, k: int) -> None:
    opened = open_ledger(url)
    opened.observations.append("plant", ONE.assign(y=float(k)))
    opened.close()


def test_processes_that_open_a_new_ledger_at_one_time_do_not_collide(ledger_url: str) -> None:
    forks = multiprocessing.get_context("forkserver")
    forks.set_forkserver_preload(["ledger.ledger"])  # imported once, so that they all begin at one time
    processes = [forks.Process(target=_open_and_append, args=(ledger_url, k)) for k in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    opened = open_ledger(ledger_url)
    assert len(opened.observations.revisions("plant", "a")) == 3
    opened.close()


@pytest.mark.postgres
def test_a_database_is_shared_with_tables_of_the_same_names(postgres_url: str) -> None:
    """MLflow has a table `runs`, a table `datasets` and an `alembic_version` of its own."""
    import psycopg

    with psycopg.connect(postgres_url) as connection:
        for name in ("runs", "datasets", "alembic_version"):
            connection.execute(f"CREATE TABLE {name} (version_num TEXT)")
            connection.execute(f"INSERT INTO {name} VALUES ('theirs')")  # noqa: S608  (names of ours)
    ledger = open_ledger(postgres_url)
    ledger.observations.append("plant", ONE)
    assert ledger.observations.datasets() == ["plant"]
    ledger.close()


@pytest.mark.postgres
def test_a_database_that_was_away_is_found_again(postgres_url: str) -> None:
    import psycopg

    name = postgres_url.rsplit("/", 1)[1]
    ledger = open_ledger(postgres_url)
    ledger.observations.append("plant", ONE)
    with psycopg.connect(POSTGRES, autocommit=True) as admin:
        admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
        admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,))
        with pytest.raises(LedgerUnavailableError):
            ledger.observations.append("plant", ONE.assign(y=2.0))
        admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')
    ledger.observations.append("plant", ONE.assign(y=3.0))
    np.testing.assert_array_equal(ledger.observations.revisions("plant", "a")["value"], [1.0, 3.0])
    ledger.close()


@pytest.fixture
def hasty_url(postgres_url: str) -> str:
    """A PostgreSQL where a statement may take a fifth of a second."""
    return f"{postgres_url}?options=-cstatement_timeout%3D200"


@pytest.mark.postgres
def test_a_database_that_hangs_is_given_up_and_asked_again(hasty_url: str) -> None:
    ledger = open_ledger(hasty_url)
    with pytest.raises(LedgerUnavailableError, match="statement timeout"), reading(ledger.engine) as connection:
        connection.execute(sa.text("SELECT pg_sleep(20)"))
    with locked(hasty_url), pytest.raises(LedgerUnavailableError, match="statement timeout"):
        ledger.observations.append("plant", ONE)
    assert ledger.observations.append("plant", ONE).new == 1
    ledger.close()


@pytest.mark.postgres
def test_many_values_take_what_time_they_need(hasty_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ledger.bulk.CHUNK", 2)
    ledger = open_ledger(hasty_url)
    with locked(hasty_url) as unlock:
        threading.Timer(0.5, unlock).start()
        assert ledger.observations.append("plant", ONE).new == 1
    ledger.close()


@pytest.mark.postgres
def test_changing_the_tables_takes_what_time_it_needs(hasty_url: str) -> None:
    open_ledger(hasty_url).close()
    with locked(hasty_url, "alembic_version", "ACCESS EXCLUSIVE") as unlock:
        threading.Timer(0.5, unlock).start()
        open_ledger(hasty_url).close()


@contextmanager
def locked(url: str, table: str = "observations", mode: str = "EXCLUSIVE") -> Iterator[Callable[[], None]]:
    """Let nobody write to a table until the block ends, or what is given is called."""
    import psycopg

    with psycopg.connect(url) as other:
        other.execute(f"LOCK TABLE ledger.{table} IN {mode} MODE")
        yield other.rollback


@pytest.mark.postgres
def test_postgres_is_given_up_when_it_hangs_unless_the_url_says_otherwise(postgres_url: str) -> None:
    ledger = open_ledger(f"{postgres_url}?tcp_user_timeout=7000")
    with reading(ledger.engine) as connection:
        assert connection.scalar(sa.text("SHOW statement_timeout")) == "10min"
        assert connection.scalar(sa.text("SHOW search_path")) == "ledger"
        driver = connection.connection.driver_connection
        assert driver is not None
        told = driver.info.get_parameters()
    assert (told["tcp_user_timeout"], told["connect_timeout"], told["keepalives_idle"]) == ("7000", "5", "30")
    ledger.close()


def test_one_at_a_time_is_alone_with_a_name(ledger: Ledger, ledger_url: str) -> None:
    other = open_database(ledger_url)
    with alone(ledger.engine, "round") as first:
        with alone(other, "round") as second, alone(other, "retire") as third:
            assert (first, second, third) == (True, False, True)
        with alone(other, "round") as again:
            assert not again
    with pytest.raises(ValueError, match="on the way"), alone(other, "round"):
        raise ValueError("on the way")
    with alone(ledger.engine, "round") as after:
        assert after
    other.dispose()


def test_a_transaction_that_fails_leaves_nothing(ledger: Ledger) -> None:
    def fail_half_way() -> None:
        with writing(ledger.engine) as connection:
            connection.execute(sa.text("INSERT INTO datasets VALUES ('plant', 1)"))
            raise ValueError("half way")

    with pytest.raises(ValueError, match="half way"):
        fail_half_way()
    assert ledger.observations.datasets() == []


def test_a_file_that_is_no_database_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "ledger.db").write_text("not a database, and long enough to be looked at" * 50)
    with pytest.raises(LedgerError, match="cannot be opened: file is not a database"):
        open_ledger(f"sqlite:///{tmp_path}/ledger.db")


def test_what_is_read_in_one_transaction_is_of_one_moment(ledger: Ledger) -> None:
    count = sa.text("SELECT count(*) FROM datasets")
    with reading(ledger.engine) as connection:
        before = connection.scalar(count)
        ledger.observations.append("plant", ONE)
        assert connection.scalar(count) == before == 0
    with reading(ledger.engine) as connection:
        assert connection.scalar(count) == 1
