"""Rows of another database: what is new, from the watermark on, with what became visible late."""

from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

import training.sources.sql as sql
from forecasting.errors import InputError, JobError, LedgerUnavailableError, SourceError
from ledger.ingested import IngestedStore
from ledger.ledger import Ledger, open_ledger
from pipelines.ingest import Ingested, ingest_job
from pipelines.pull import read_mark
from pipelines.report import LogReporter
from training.job import load_job, parse_job
from training.sources import SourceContext, SqlSource

JOB = """
name: plant
source:
  kind: sql
  url_env: PLANT_DB
  table: readings
  columns: {unique_id: sensor, ds: taken, y: reading}
  watermark: written
  overlap: 3600
freq: h
horizon: 2
candidates: [{kind: mlp, input_size: 6, hidden_size: 4}]
"""
START = datetime(2024, 1, 1)


class Plant:
    """The database of a plant, whose rows are written hour by hour."""

    def __init__(self, url: str) -> None:
        self.engine = sa.create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
        kind = "TIMESTAMP" if self.engine.dialect.name == "postgresql" else "TEXT"
        self.run(f"CREATE TABLE readings (sensor TEXT, taken {kind}, reading NUMERIC, written {kind}, n INTEGER)")

    def run(self, statement: str, **values: object) -> None:
        with self.engine.begin() as connection:
            connection.execute(sa.text(statement), values)

    def write(self, hour: int, value: float | None, written: float | None = None, sensor: str = "pump-7") -> None:
        at = START + timedelta(hours=hour if written is None else written)
        taken = START + timedelta(hours=hour)
        values = {"sensor": sensor, "taken": str(taken), "value": value, "at": str(at), "n": hour}
        self.run("INSERT INTO readings VALUES (:sensor, :taken, :value, :at, :n)", **values)


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def plant(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Plant]:
    url = f"sqlite:///{tmp_path}/plant.db"
    if request.param == "postgres":
        url = request.getfixturevalue("postgres_url")
    monkeypatch.setenv("PLANT_DB", url)
    plant = Plant(url)
    yield plant
    plant.engine.dispose()


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with closing(open_ledger(f"sqlite:///{tmp_path}/ledger.db")) as opened:
        yield opened


def pull(tmp_path: Path, ledger: Ledger, text: str = JOB) -> Ingested:
    (tmp_path / "job.yaml").write_text(text)
    return ingest_job(load_job(tmp_path / "job.yaml"), tmp_path, tmp_path, ledger, LogReporter())


def known(ledger: Ledger) -> list[float]:
    return ledger.observations.read("plant").value_R.tolist()


def test_a_pull_reads_what_is_new_and_what_came_late(plant: Plant, tmp_path: Path, ledger: Ledger) -> None:
    for hour in range(4):
        plant.write(hour, hour + 0.5)
    first = pull(tmp_path, ledger)
    nothing = pull(tmp_path, ledger)
    plant.write(9, 9.5, written=2.5)  # committed after the pull, and written before its watermark
    plant.write(8, 8.5, written=1.5)  # later than the overlap reaches
    plant.write(4, 4.5)
    then = pull(tmp_path, ledger)

    assert (first.rows, first.new) == (4, 4)
    assert (nothing.rows, nothing.new) == (2, 0), "the overlap is read again"
    assert (then.rows, then.new) == (4, 2)
    assert known(ledger) == [0.5, 1.5, 2.5, 3.5, 4.5, 9.5]


def test_a_revision_in_the_plant_is_one_in_the_ledger(plant: Plant, tmp_path: Path, ledger: Ledger) -> None:
    plant.write(0, 1)
    plant.write(1, None)
    pull(tmp_path, ledger)
    plant.run("UPDATE readings SET reading = 2, written = :at WHERE n = 0", at=str(START + timedelta(hours=5)))
    assert pull(tmp_path, ledger).revised == 1
    assert known(ledger) == [2.0]


def test_a_running_number_is_a_watermark_too(plant: Plant, tmp_path: Path, ledger: Ledger) -> None:
    text = JOB.replace("watermark: written", "watermark: n").replace("overlap: 3600", "overlap: 1")
    for hour in range(4):
        plant.write(hour, 1.5)
    assert pull(tmp_path, ledger, text).rows == 4
    assert pull(tmp_path, ledger, text).rows == 2


def test_a_query_may_hold_colons_and_percent_signs(plant: Plant, tmp_path: Path, ledger: Ledger) -> None:
    plant.write(0, 1)
    plant.write(1, 2, sensor="ghost")
    query = "SELECT * FROM readings WHERE sensor LIKE 'p%' AND sensor <> ':x 12:30' ORDER BY n;"
    assert pull(tmp_path, ledger, JOB.replace("table: readings", f'query: "{query}"')).new == 1


def test_each_lot_is_kept_with_its_watermark(
    plant: Plant, tmp_path: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ledger goes away between two lots: the next pull goes on where it stopped."""
    monkeypatch.setattr(sql, "ROWS_AT_A_TIME", 2)
    for hour in range(5):
        plant.write(hour, hour)
    append, lots = IngestedStore.append_until, []

    def fail_at_the_second(self: IngestedStore, *args: object, **kwargs: object) -> object:
        lots.append(1)
        if len(lots) == 2:
            raise LedgerUnavailableError("gone")
        return append(self, *args, **kwargs)

    monkeypatch.setattr(IngestedStore, "append_until", fail_at_the_second)
    with pytest.raises(LedgerUnavailableError):
        pull(tmp_path, ledger)
    assert known(ledger) == [0, 1]
    source = parse_job(JOB).source
    assert isinstance(source, SqlSource)
    assert read_mark(ledger.ingested, source, "plant") == START + timedelta(hours=1)

    pull(tmp_path, ledger)
    assert known(ledger) == [0, 1, 2, 3, 4]


def test_a_clock_that_is_ahead_does_not_hide_what_comes(plant: Plant, tmp_path: Path, ledger: Ledger) -> None:
    plant.write(0, 1, written=24 * 365 * 100)
    pull(tmp_path, ledger)
    later = (datetime.now(UTC).replace(tzinfo=None) - START) / timedelta(hours=1) + 0.5
    plant.write(1, 2, written=later)
    assert pull(tmp_path, ledger).new == 1


def test_without_a_watermark_everything_is_read(plant: Plant, tmp_path: Path, ledger: Ledger) -> None:
    text = JOB.replace("  watermark: written\n  overlap: 3600\n", "")
    plant.write(0, 1)
    assert (pull(tmp_path, ledger, text).rows, pull(tmp_path, ledger, text).rows) == (1, 1)
    source = parse_job(text).source
    assert source.load(SourceContext(tmp_path, tmp_path))["y"].tolist() == [1]


def test_a_bad_row_fails_alone(plant: Plant, tmp_path: Path, ledger: Ledger) -> None:
    plant.write(0, 1)
    plant.write(1, 2, sensor="")
    done = pull(tmp_path, ledger)
    assert (done.new, done.refused) == (1, 1)
    plant.run("DELETE FROM readings WHERE sensor <> ''")
    with pytest.raises(InputError, match="none of 1 rows can be kept"):
        pull(tmp_path, ledger)


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("", "PLANT_DB is not set"),
        ("not a url", "PLANT_DB holds no URL"),
        ("sqlite:////nowhere/plant.db", "there is no SQLite file"),
        ("nodb://me:secret@127.0.0.1/x", "no driver for 'nodb'"),
        ("postgresql://me:secret@127.0.0.1:1/x", "cannot be read"),
    ],
)
def test_a_database_that_cannot_be_read_is_named_without_its_password(
    url: str, why: str, tmp_path: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLANT_DB", url)
    with pytest.raises(SourceError, match=why) as raised:
        pull(tmp_path, ledger)
    assert "secret" not in str(raised.value)


def test_a_missing_table_or_column_is_named(plant: Plant, tmp_path: Path, ledger: Ledger) -> None:
    plant.write(0, 1)
    with pytest.raises(SourceError, match=r"table 'nothing' of PLANT_DB cannot be read: .*nothing"):
        pull(tmp_path, ledger, JOB.replace("table: readings", "table: nothing"))
    with pytest.raises(
        SourceError, match=r"table 'readings' has no column 'value' \(columns: y\); it has 'sensor'"
    ):
        pull(tmp_path, ledger, JOB.replace("y: reading", "y: value"))


def test_the_plant_is_only_read(plant: Plant, tmp_path: Path, ledger: Ledger) -> None:
    plant.write(0, 1)
    with pytest.raises(SourceError):
        pull(tmp_path, ledger, JOB.replace("table: readings", 'query: "DELETE FROM readings RETURNING *"'))
    with plant.engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM readings").scalar() == 1


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (("table: readings", "{}"), "give either table or query"),
        (("watermark: written", "timezone: UTC"), "overlap: how far before the watermark"),
        (("url_env: PLANT_DB", "url_env: postgresql://me:secret@host/db"), "source.sql.url_env"),
    ],
)
def test_a_section_that_cannot_be_meant_is_refused(change: tuple[str, str], why: str) -> None:
    old, new = change
    text = JOB.replace("  table: readings\n", "") if new == "{}" else JOB.replace(old, new)
    with pytest.raises(JobError, match=why):
        parse_job(text)
