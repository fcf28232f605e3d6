"""Forecasts in parts: the same as in one piece, resumable after a kill, and bad series fail alone."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from forecasting.artifact import save_artifact
from forecasting.errors import InputError, SourceError
from forecasting.frame import forecast_frame
from forecasting.registry import CHAMPION, open_registry
from pipelines.batch import BatchOrder, forecast_batch
from pipelines.settings import PipelineSettings
from tests.conftest import make_forecaster
from tests.pipelines.test_fanout import Listener, is_alive


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PipelineSettings:
    monkeypatch.setenv("HINDCAST_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HINDCAST_REGISTRY_URI", f"file://{tmp_path}/registry")
    return PipelineSettings()


@pytest.fixture
def model(settings: PipelineSettings, tmp_path: Path) -> str:
    publish(settings, tmp_path, seed=0)
    return "pumps"


def publish(settings: PipelineSettings, tmp_path: Path, seed: int) -> None:
    save_artifact(make_forecaster(seed=seed), tmp_path / f"artifact-{seed}")
    registry = open_registry(settings.registry)
    version = registry.publish("pumps", tmp_path / f"artifact-{seed}", {})
    registry.set_alias("pumps", CHAMPION, version.version)


def make_rows(n_series: int = 40, n_steps: int = 30) -> pd.DataFrame:
    """Return series in the order of time, as a database hands them out: no series lies in one piece."""
    rng = np.random.default_rng(0)
    ds = pd.date_range("2024-01-01", periods=n_steps, freq="D")
    names = [f"pump-{i}" for i in range(n_series)]
    return pd.DataFrame(
        {
            "ds": np.repeat(ds.to_numpy(), n_series),
            "unique_id": names * n_steps,
            "y": rng.normal(50, 5, n_series * n_steps),
        }
    )


def ordered(forecasts: pd.DataFrame) -> pd.DataFrame:
    return forecasts.sort_values(["unique_id", "ds"], ignore_index=True)


def test_the_parts_together_are_the_forecast_in_one_piece(
    model: str, settings: PipelineSettings, tmp_path: Path
) -> None:
    rows = make_rows()
    (tmp_path / "input").mkdir()
    rows.iloc[:700].to_parquet(tmp_path / "input/a.parquet")
    rows.iloc[700:].to_parquet(tmp_path / "input/b.parquet")
    order = BatchOrder(model, tmp_path / "input", tmp_path / "out", level=(80.0,), part_rows=300)
    result = forecast_batch(order, settings, Listener())
    assert (result.version, result.parts, result.series, result.rejects) == ("1", 4, 40, 0)
    assert len(list((tmp_path / "out").glob("part-*.parquet"))) == 4
    found = ordered(pd.read_parquet(tmp_path / "out"))
    expected = ordered(forecast_frame(make_forecaster(), rows, (80.0,)))
    assert list(found) == ["unique_id", "cutoff", "ds", "mean", "lo-80", "hi-80"]
    pd.testing.assert_frame_equal(found, expected, check_dtype=False, rtol=1e-6)
    manifest = json.loads((tmp_path / "out/_manifest.json").read_text())
    assert manifest["artifact_digest"] == open_registry(settings.registry).version("pumps", "1").digest
    assert not (tmp_path / "out/_work").exists()


def test_bad_series_fail_alone_and_are_listed(model: str, settings: PipelineSettings, tmp_path: Path) -> None:
    rows = make_rows(6)
    rows.loc[(rows["unique_id"] == "pump-1") & (rows["ds"] == "2024-01-09"), "y"] = np.inf
    rows = rows[(rows["unique_id"] != "pump-2") | (rows["ds"] > "2024-01-25")]
    rows.loc[rows["unique_id"] == "pump-3", "y"] = np.nan
    rows.to_parquet(tmp_path / "in.parquet")
    result = forecast_batch(
        BatchOrder(model, tmp_path / "in.parquet", tmp_path / "out", part_rows=40), settings, Listener()
    )
    assert (result.series, result.rejects) == (3, 3)
    rejects = pd.read_csv(tmp_path / "out/_rejects.csv").set_index("unique_id")["reason"]
    assert rejects["pump-1"] == "series 'pump-1' holds inf at 2024-01-09, which is not finite"
    assert rejects["pump-2"] == "series 'pump-2' has 5 points; this model needs 10 (input_size)"
    assert rejects["pump-3"] == "series 'pump-3' has no observed value"
    assert set(pd.read_parquet(tmp_path / "out")["unique_id"]) == {"pump-0", "pump-4", "pump-5"}


def test_after_a_kill_no_finished_part_is_made_again(
    model: str, settings: PipelineSettings, tmp_path: Path
) -> None:
    make_rows(400).to_parquet(tmp_path / "in.parquet")
    arguments = [model, "--input", str(tmp_path / "in.parquet"), "--output", str(tmp_path / "out")]
    command = [
        *(sys.executable, "-c", "from pipelines.cli import main; main()"),
        *("forecast", *arguments, "--batch", "--part-rows", "60"),
    ]
    environment = {**os.environ, "HINDCAST_FAN_OUT": "2", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as popen:
        notes = tmp_path / "out/_work/done"
        deadline = time.monotonic() + 120
        while not notes.is_dir() or len(list(notes.glob("[0-9]*.json"))) < 3:
            assert time.monotonic() < deadline
            assert popen.poll() is None
            time.sleep(0.005)
        children = Path(f"/proc/{popen.pid}/task/{popen.pid}/children").read_text().split()
        popen.kill()
    while any(is_alive(int(child)) for child in children):  # they follow their parent within a second
        assert time.monotonic() < deadline
        time.sleep(0.05)
    done = {path.stem for path in notes.glob("[0-9]*.json")}
    assert 3 <= len(done) < 200
    before = {
        path: (path.stat().st_ino, path.stat().st_mtime_ns)
        for number in done
        if (path := tmp_path / f"out/part-{number}.parquet").exists()
    }
    listener = Listener()
    order = BatchOrder(model, tmp_path / "in.parquet", tmp_path / "out", part_rows=60)
    assert forecast_batch(order, settings, listener).series == 400
    assert f"{len(done)} of 200 parts are there already" in listener.lines
    assert before == {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in before}
    expected = ordered(forecast_frame(make_forecaster(), make_rows(400)))
    pd.testing.assert_frame_equal(
        ordered(pd.read_parquet(tmp_path / "out")), expected, check_dtype=False, rtol=1e-6
    )


def test_a_folder_takes_forecasts_of_one_model_and_one_input_only(
    model: str, settings: PipelineSettings, tmp_path: Path
) -> None:
    make_rows(4).to_parquet(tmp_path / "in.parquet")
    order = BatchOrder(model, tmp_path / "in.parquet", tmp_path / "out")
    forecast_batch(order, settings, Listener())
    again = Listener()
    forecast_batch(order, settings, again)
    assert again.lines == [f"{tmp_path / 'out'} is complete already"]
    publish(settings, tmp_path, seed=1)
    with pytest.raises(InputError, match=r"begun with version '1', and this is version '2'.*--alias 1 to go on"):
        forecast_batch(order, settings, Listener())
    make_rows(5).to_parquet(tmp_path / "in.parquet")
    with pytest.raises(InputError, match="begun with input_digest"):
        forecast_batch(BatchOrder(model, order.source, order.folder, alias="1"), settings, Listener())
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "notes.txt").touch()
    with pytest.raises(InputError, match="give an empty folder"):
        forecast_batch(BatchOrder(model, order.source, foreign), settings, Listener())


def test_what_is_no_panel_is_named(model: str, settings: PipelineSettings, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no Parquet file"):
        forecast_batch(BatchOrder(model, tmp_path / "absent", tmp_path / "a"), settings, Listener())
    (tmp_path / "in.parquet").write_text("unique_id,ds,y")
    with pytest.raises(SourceError, match="cannot be read as Parquet"):
        forecast_batch(BatchOrder(model, tmp_path / "in.parquet", tmp_path / "a"), settings, Listener())
    make_rows(2).drop(columns="y").to_parquet(tmp_path / "in.parquet")
    with pytest.raises(InputError, match="has no column y; it has ds, unique_id"):
        forecast_batch(BatchOrder(model, tmp_path / "in.parquet", tmp_path / "b"), settings, Listener())
