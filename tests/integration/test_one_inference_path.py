"""What was backtested is what is served: the REST answer, the backtest row and MLflow's own answer agree."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import numpy as np
import pandas as pd
import pytest

from forecasting.calendar import format_timestamp
from forecasting.registry import open_registry, promote
from pipelines.asking import backtest_of
from pipelines.retrain import retrain
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

COVARIATES = """
name: sensors
source: {kind: simulate, n_sensors: 3, n_steps: 400, freq: h, seed: 7, covariates: true}
freq: h
horizon: 6
covariates:
  past: [ambient]
  future: [setpoint]
  static: [unique_id, site]
  calendar: [hour, holiday]
  country: DE
candidates:
  - {kind: lstm, input_size: 24, hidden_size: 8}
training: {max_epochs: 1, steps_per_epoch: 20}
evaluation: {n_windows: 4}
"""


RANGES = """
name: ranges
source: {kind: sample, dataset: sp500}
target: {column: Close, transform: log_return}
freq: XNYS
horizon: 5
covariates:
  ranges: [parkinson, garman_klass, overnight, intraday]
  calendar: [session_gap]
candidates:
  - {kind: lstm, input_size: 40, hidden_size: 8}
training: {max_epochs: 1, steps_per_epoch: 20}
evaluation: {n_windows: 4, validation_size: 300}
"""

VOLATILITY = """
name: spread
source: {kind: sample, dataset: sp500}
target: {column: Close, transform: log_return}
freq: XNYS
horizon: 2
covariates: {ranges: [parkinson, garman_klass]}
candidates:
  - {kind: volatility_lstm, input_size: 60, hidden_size: 4}
training: {max_epochs: 1, steps_per_epoch: 5, members: 2}
evaluation: {n_windows: 4, validation_size: 300}
"""


@pytest.fixture(
    params=[STOCKS, SENSOR, COVARIATES, RANGES, VOLATILITY],
    ids=["sessions", "weeks-with-gaps", "covariates", "ranges", "volatility"],
)
def run(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    lay_store: Callable[[Path], str],
) -> Run:
    """A job that has been trained; its best candidate is the champion whatever the gate says."""
    lay_store(tmp_path / "home")
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


def told(test: Backtest, b: int) -> dict[str, dict[str, Any]]:
    """Return what else a client would have known, the steps ahead included where they are known."""
    panel, n = test.panel, test.series_B[b]
    first, cutoff = test.cutoff_B[b] + 1 - test.spec.input_size, test.cutoff_B[b]
    past_LP, future_TF = (
        panel.past_NTP[n, first : cutoff + 1],
        panel.future_NUF[n, first : cutoff + 1 + test.spec.horizon],
    )
    return {
        "past": {name: nulls(past_LP[:, p]) for p, name in enumerate(panel.columns.past)},
        "future": {name: nulls(future_TF[:, f]) for f, name in enumerate(panel.columns.future)},
        "static": {name: labels[n] for name, labels in panel.static.items() if name != "unique_id"},
    }


def nulls(values: np.ndarray) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in values]


def frame_of(test: Backtest, b: int) -> pd.DataFrame:
    """Return the same as rows: those of the steps ahead have no value, and no past column."""
    ds, y = history(test, b)
    frame = pd.DataFrame({"unique_id": test.panel.unique_ids[test.series_B[b]], "ds": ds, "y": y})
    known = told(test, b)
    if not known["past"]:
        return frame
    ahead = pd.DataFrame(
        {
            "unique_id": frame["unique_id"].iloc[0],
            "ds": test.panel.calendar.range(ds[-1], test.spec.horizon + 1)[1:],
            "y": np.nan,
        }
    )
    rows = pd.concat([frame.assign(**known["past"]), ahead], ignore_index=True)
    return rows.assign(**known["future"], **known["static"])


def assert_same(found: list[float] | pd.Series, expected: pd.Series, y: np.ndarray) -> None:
    """Compare in single precision: to a millionth of the value, or of the history where the value is near zero."""
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6 * np.nanmax(np.abs(y)))


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
                "y": nulls(y),
                **told(test, b),
            }
            answer = client.post("/v1/forecast", json={"model": run.job.name, "series": [series]})
            assert answer.status_code == 200, answer.text
            forecast = answer.json()["forecasts"][0]
            assert forecast["status"] == "ok", forecast["reason"]
            expected = rows[b * run.job.horizon : (b + 1) * run.job.horizon]
            assert forecast["cutoff"] == format_timestamp(expected["cutoff"].iloc[0], test.panel.calendar)
            assert forecast["ds"] == [format_timestamp(d, test.panel.calendar) for d in expected["ds"]]
            for column in ("mean", "lo-80", "hi-80", "lo-95", "hi-95"):
                assert_same(forecast[column], expected[column], y)


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
    found = model.predict(frame_of(test, 0), params={"level": [80.0]})
    expected = test.to_frame()[: run.job.horizon]
    assert list(found.columns) == ["unique_id", "cutoff", "ds", "mean", "lo-80", "hi-80"]
    for column in ("mean", "lo-80", "hi-80"):
        assert_same(found[column], expected[column], history(test, 0)[1])
    if test.spec.covariates:
        names = [name for known in told(test, 0).values() for name in known]
        less = model.predict(frame_of(test, 0).drop(columns=names))
        assert not np.allclose(less["mean"], expected["mean"], rtol=1e-6), "they reach the network"
