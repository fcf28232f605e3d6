"""What was backtested is what is served: the REST answer, the backtest row and MLflow's own answer agree."""

from pathlib import Path

import mlflow.pyfunc
import numpy as np
import pandas as pd
import pytest

from forecasting.calendar import format_timestamp
from forecasting.registry import open_registry, promote
from pipelines.retrain import backtest_of, retrain
from pipelines.run import Run, new_run
from pipelines.settings import PipelineSettings
from service.app import create_app
from service.settings import ServiceSettings
from tests.pipelines.test_retrain import Listener
from tests.service.conftest import serve_app
from training.backtest import Backtest

STOCKS = """
name: shares
source: {kind: sample, dataset: sp500}
target: {column: Close, transform: log_return}
freq: XNYS
horizon: 5
candidates:
  - {kind: lstm, input_size: 40, hidden_size: 8}
training: {max_epochs: 1, steps_per_epoch: 20}
evaluation: {n_windows: 12, validation_size: 300}
"""

SENSOR = """
name: sensor
source: {kind: sample, dataset: co2}
freq: W-SAT
horizon: 6
candidates:
  - {kind: mlp, input_size: 60, hidden_size: 8}
training: {max_epochs: 1, steps_per_epoch: 20}
evaluation: {n_windows: 12, step_size: 150}
"""


@pytest.fixture(params=[STOCKS, SENSOR], ids=["sessions", "weeks-with-gaps"])
def run(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A job that has been trained; its best candidate is the champion whatever the gate says."""
    monkeypatch.setenv("HINDCAST_HOME", str(tmp_path / "home"))
    job_file = tmp_path / "job.yaml"
    job_file.write_text(request.param)
    settings = PipelineSettings()
    run = new_run(job_file, settings, Listener())
    outcome = retrain(run)
    assert outcome.version is not None
    promote(open_registry(settings.registry), run.job.name, outcome.version)
    return run


def history(test: Backtest, b: int) -> tuple[pd.DatetimeIndex, np.ndarray]:
    """Return what a client would have known at a forecast's cutoff."""
    past = slice(test.cutoff_B[b] + 1 - test.spec.input_size, test.cutoff_B[b] + 1)
    return test.panel.ds[past], test.panel.y_NT[test.series_B[b], past]


def test_the_rest_answer_is_the_backtest_row(run: Run) -> None:
    candidate = run.job.candidates[0].name
    test = backtest_of(run, run.artifact(candidate), run.split.cutoffs)
    rows = test.to_frame()
    with serve_app(
        create_app(ServiceSettings(registry_uri=run.settings.registry, home=run.settings.home))
    ) as client:
        for b in range(len(test.cutoff_B)):
            ds, y = history(test, b)
            series = {
                "unique_id": test.panel.unique_ids[test.series_B[b]],
                "start": format_timestamp(ds[0], test.panel.calendar),
                "y": [None if np.isnan(value) else float(value) for value in y],
            }
            answer = client.post("/v1/forecast", json={"model": run.job.name, "series": [series]})
            assert answer.status_code == 200, answer.text
            forecast = answer.json()["forecasts"][0]
            expected = rows[b * run.job.horizon : (b + 1) * run.job.horizon]
            assert forecast["cutoff"] == format_timestamp(expected["cutoff"].iloc[0], test.panel.calendar)
            assert forecast["ds"] == [format_timestamp(d, test.panel.calendar) for d in expected["ds"]]
            for column in ("mean", "lo-80", "hi-80", "lo-95", "hi-95"):
                np.testing.assert_allclose(forecast[column], expected[column], rtol=1e-6)


def test_mlflows_own_tools_give_the_same_numbers(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    candidate = run.job.candidates[0].name
    test = backtest_of(run, run.artifact(candidate), run.split.cutoffs)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", run.settings.tracking)
    before = (mlflow.get_tracking_uri(), mlflow.get_registry_uri())
    mlflow.set_tracking_uri(run.settings.tracking)
    mlflow.set_registry_uri(run.settings.registry)
    try:
        model = mlflow.pyfunc.load_model(f"models:/{run.job.name}@champion")
    finally:
        mlflow.set_tracking_uri(before[0])
        mlflow.set_registry_uri(before[1])
    ds, y = history(test, 0)
    frame = pd.DataFrame({"unique_id": "a", "ds": ds, "y": y})
    found = model.predict(frame, params={"level": [80.0]})
    expected = test.to_frame()[: run.job.horizon]
    assert list(found.columns) == ["unique_id", "cutoff", "ds", "mean", "lo-80", "hi-80"]
    for column in ("mean", "lo-80", "hi-80"):
        np.testing.assert_allclose(found[column], expected[column], rtol=1e-6)
