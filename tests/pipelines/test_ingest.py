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
