"""From a job's source into the ledger, and from there into a training."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sqlalchemy.pool import QueuePool

from forecasting.errors import InputError, JobError, SourceError
from ledger.ledger import Ledger, open_ledger
from pipelines.ingest import Ingested, ingest_job
from pipelines.load import load_data
from pipelines.report import LogReporter
from pipelines.run import Run, new_run
from pipelines.settings import PipelineSettings
from training.job import load_job

JOB = """
name: plant
source: {kind: csv, path: readings.csv}
target: {column: flow}
covariates: {past: [ambient], static: [site]}
freq: h
horizon: 2
candidates: [{kind: mlp, input_size: 6, hidden_size: 4}]
evaluation: {n_windows: 3, validation_size: 12}
"""
FROM_LEDGER = JOB.replace("name: plant", "name: pumps").replace(
    "{kind: csv, path: readings.csv}", "{kind: ledger, dataset: plant}"
)


def readings(n: int = 60) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "unique_id": np.repeat(["a", "b"], n),
            "ds": np.tile(pd.date_range("2024-01-01", periods=n, freq="h"), 2),
            "flow": rng.normal(size=2 * n).round(3),
            "ambient": rng.normal(size=2 * n).round(3),
            "site": np.repeat(["north", "south"], n),
            "note": "not a number",
        }
    )


@pytest.fixture
def ledger(settings: PipelineSettings) -> Iterator[Ledger]:
    with closing(open_ledger(settings.ledger)) as opened:
        yield opened


def ingest(folder: Path, ledger: Ledger, text: str = JOB) -> Ingested:
    path = folder / "job.yaml"
    path.write_text(text)
    return ingest_job(load_job(path), folder, folder, ledger, LogReporter())


def run_of(folder: Path, settings: PipelineSettings, text: str) -> Run:
    (folder / "train.yaml").write_text(text)
    return new_run(folder / "train.yaml", settings, LogReporter())


def test_what_was_ingested_trains_as_the_source_does(
    tmp_path: Path, settings: PipelineSettings, ledger: Ledger
) -> None:
    readings().to_csv(tmp_path / "readings.csv", index=False)
    done = ingest(tmp_path, ledger)
    again = ingest(tmp_path, ledger)

    direct, stored = run_of(tmp_path, settings, JOB), run_of(tmp_path, settings, FROM_LEDGER)
    load_data(direct)
    load_data(stored)

    assert (done.rows, done.new, done.revised, done.refused) == (120, 240, 0, 0)
    assert (again.new, again.revised, again.unchanged) == (0, 0, 240)
    assert stored.panel.digest() == direct.panel.digest()
    assert stored.panel.static["site"] == ("north", "south")


def test_a_step_that_is_repeated_reads_what_it_read(
    tmp_path: Path, settings: PipelineSettings, ledger: Ledger
) -> None:
    readings().to_csv(tmp_path / "readings.csv", index=False)
    ingest(tmp_path, ledger)
    run = run_of(tmp_path, settings, FROM_LEDGER)
    load_data(run)
    before = run.panel.digest()

    readings().assign(flow=7.0).to_csv(tmp_path / "readings.csv", index=False)
    assert ingest(tmp_path, ledger).revised == 120
    resumed = Run(run.job_text, run.base_dir, run.key, settings)
    load_data(resumed)
    later = run_of(tmp_path, settings, FROM_LEDGER)
    load_data(later)

    assert resumed.panel.digest() == before
    assert later.panel.digest() != before


def test_a_run_reads_the_ledger_over_connections_of_its_own_and_closes_them(
    tmp_path: Path, settings: PipelineSettings, ledger: Ledger
) -> None:
    readings().to_csv(tmp_path / "readings.csv", index=False)
    ingest(tmp_path, ledger)
    run = run_of(tmp_path, settings, FROM_LEDGER)
    load_data(run)
    opened = vars(run)["ledger"]
    assert connections_of(opened) == 1
    run.discard()
    assert connections_of(opened) == 0
    run.discard()  # which has nothing to close


def connections_of(ledger: Ledger) -> int:
    pool = ledger.engine.pool
    assert isinstance(pool, QueuePool)
    return pool.checkedin() + pool.checkedout()


def test_bad_rows_are_left_out_and_told(tmp_path: Path, ledger: Ledger) -> None:
    rows = readings().astype({"flow": object})
    rows.loc[3, "flow"] = "broken"
    rows.loc[70, "ambient"] = np.inf
    rows.to_csv(tmp_path / "readings.csv", index=False)

    done = ingest(tmp_path, ledger)

    assert (done.rows, done.refused, done.new) == (120, 2, 236)
    assert [(refusal.row, refusal.unique_id, refusal.column) for refusal in done.refusals] == [
        (3, "a", "flow"),
        (70, "b", "ambient"),
    ]


UNREAD = {
    "soon": "cannot be read: the timestamp 'soon' is not in ISO 8601",
    "2024-13-01": "cannot be read: the timestamp '2024-13-01' is not in ISO 8601",
    "2024-03-31T02:30": "cannot be read: 2024-03-31 02:30:00 does not exist in Europe/Berlin",
    "2024-10-27T02:30": "cannot be read: 2024-10-27 02:30:00 happened twice in Europe/Berlin",
}


@pytest.mark.parametrize("kind", ["csv", "parquet", "sql"])
@pytest.mark.parametrize("stamp", UNREAD)
def test_a_timestamp_that_cannot_be_read_fails_alone(
    tmp_path: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch, kind: str, stamp: str
) -> None:
    rows = readings().assign(ds=lambda told: told["ds"].dt.strftime("%Y-%m-%dT%H:%M"))
    rows.loc[70, "ds"] = stamp
    source = write_as(kind, rows, tmp_path, monkeypatch)
    text = JOB.replace("{kind: csv, path: readings.csv}", source)

    done = ingest(tmp_path, ledger, text)

    assert (done.rows, done.refused, done.new) == (120, 1, 238)
    (refusal,) = done.refusals
    assert (refusal.row, refusal.unique_id, refusal.column) == (70, "b", "ds")
    assert refusal.reason.startswith(UNREAD[stamp])
    assert str(ledger.observations.read("plant", column="flow").ds_R[1])[:16] == "2024-01-01T00:00"
    with pytest.raises(SourceError, match="series 'b': "):
        load_data(run_of(tmp_path, PipelineSettings(), text))


def write_as(kind: str, rows: pd.DataFrame, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Write rows as a kind of source has them; return the source."""
    if kind == "sql":
        url = f"sqlite:///{folder}/plant.db"
        monkeypatch.setenv("PLANT_DB", url)
        rows.assign(written=range(len(rows))).to_sql("readings", url, index=False)
        return "{kind: sql, url_env: PLANT_DB, table: readings, watermark: written, timezone: Europe/Berlin}"
    if kind == "parquet":
        rows.to_parquet(folder / "readings.parquet")
    else:
        rows.to_csv(folder / "readings.csv", index=False)
    return f"{{kind: {kind}, path: readings.{kind}, timezone: Europe/Berlin}}"


def test_timestamps_with_and_without_an_offset_are_kept_and_refused_row_by_row(
    tmp_path: Path, ledger: Ledger
) -> None:
    stamps = readings()["ds"].dt.strftime("%Y-%m-%dT%H:%M") + ["+01:00", "+02:00"] * 60
    stamps[[3, 4, 70]] = ["2024-01-01T03:00", "2024-01-01T04:00", "soon"]
    readings().assign(ds=stamps).to_csv(tmp_path / "readings.csv", index=False)

    done = ingest(tmp_path, ledger)

    assert [refusal.row for refusal in done.refusals] == [3, 4, 70]
    assert "carries no UTC offset, and other timestamps do" in done.refusals[0].reason
    assert ledger.observations.read("plant", column="flow").ds_R[0] == np.datetime64("2023-12-31T23:00")


def test_a_row_without_a_name_fails_alone(tmp_path: Path, ledger: Ledger) -> None:
    rows = readings()
    rows.loc[5, "unique_id"] = ""
    rows.to_csv(tmp_path / "readings.csv", index=False)
    done = ingest(tmp_path, ledger)
    assert (done.new, [(refusal.row, refusal.column) for refusal in done.refusals]) == (238, [(5, "unique_id")])


def test_of_many_timestamps_that_cannot_be_read_the_first_are_told(tmp_path: Path, ledger: Ledger) -> None:
    rows = readings(n=200).astype({"ds": object})
    rows.loc[10:, "ds"] = "soon"
    rows.to_csv(tmp_path / "readings.csv", index=False)
    done = ingest(tmp_path, ledger)
    assert (done.refused, len(done.refusals)) == (390, 100)
    assert {refusal.reason.split(",")[0] for refusal in done.refusals} == {UNREAD["soon"]}


def test_nothing_that_can_be_kept_is_an_error(tmp_path: Path, ledger: Ledger) -> None:
    readings().assign(flow="broken").to_csv(tmp_path / "readings.csv", index=False)
    with pytest.raises(InputError, match="none of 120 rows can be kept; the first, series 'a': flow must be"):
        ingest(tmp_path, ledger)
    assert ledger.observations.datasets() == []


def test_a_source_without_the_target_is_named(tmp_path: Path, ledger: Ledger) -> None:
    readings().drop(columns="flow").to_csv(tmp_path / "readings.csv", index=False)
    with pytest.raises(SourceError, match="'plant': the source has no column 'flow'; it has ambient, site, note"):
        ingest(tmp_path, ledger)


def test_a_job_that_reads_the_ledger_is_fed_by_what_it_names(tmp_path: Path, ledger: Ledger) -> None:
    readings().to_csv(tmp_path / "readings.csv", index=False)
    with pytest.raises(
        JobError, match="'pumps' reads dataset 'plant' from the ledger: there is nothing to ingest"
    ):
        ingest(tmp_path, ledger, FROM_LEDGER)

    feed = FROM_LEDGER.replace("dataset: plant}", "dataset: plant, feed: {kind: csv, path: readings.csv}}")
    assert ingest(tmp_path, ledger, feed).dataset == "plant"
    assert ledger.observations.datasets() == ["plant"]
