"""MLflow's own tools and the service read the same registered model, each in a process of its own."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import free_port
from tests.processes import HISTORY, run_to_end, running, wait_for_version, write_job

pytestmark = pytest.mark.slow

NO_PICKLE = {"MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}

LOAD_AND_PREDICT = """
import json, sys
import mlflow, pandas as pd
mlflow.set_tracking_uri(sys.argv[1])
y = json.loads(sys.argv[2])
ds = pd.date_range("2024-03-01", periods=len(y), freq="D")
history = pd.DataFrame({"unique_id": "pump-7", "ds": ds, "y": y})
forecast = mlflow.pyfunc.load_model("models:/pumps@champion").predict(history)
print(json.dumps(forecast.astype({"ds": str, "cutoff": str}).to_dict("list")))
"""


def test_mlflow_and_the_service_give_the_same_numbers(server: str, server_folder: Path, tmp_path: Path) -> None:
    port = free_port()
    served = {
        "HINDCAST_REGISTRY_URI": server,
        "HINDCAST_PORT": str(port),
        "HINDCAST_POLL_SECONDS": "0.5",
        "HINDCAST_MODELS": "pumps",
        **NO_PICKLE,
    }
    with running(["hindcast", "serve"], tmp_path / "service.log", served):
        job = write_job(tmp_path / "jobs", "0 0 1 1 *")
        trained = {"HINDCAST_TRACKING_URI": server, "HINDCAST_HOME": str(tmp_path / "home"), **NO_PICKLE}
        retrained = run_to_end(["hindcast", "retrain", str(job)], trained, cwd=tmp_path)
        assert retrained.returncode == 0, retrained.stderr

        # Outside the repository, so that the installed package is what MLflow imports.
        command = [sys.executable, "-c", LOAD_AND_PREDICT, server, json.dumps(HISTORY)]
        loaded = run_to_end(command, NO_PICKLE, cwd=tmp_path)
        assert loaded.returncode == 0, loaded.stderr
        over_http = wait_for_version(f"http://127.0.0.1:{port}", 1)["forecasts"][0]

    by_mlflow: dict[str, list[Any]] = json.loads(loaded.stdout.splitlines()[-1])
    assert by_mlflow["ds"] == over_http["ds"] == ["2024-03-15", "2024-03-16", "2024-03-17"]
    assert set(by_mlflow["cutoff"]) == {over_http["cutoff"]} == {"2024-03-14"}
    for column in ("mean", "lo-80", "hi-80"):
        assert by_mlflow[column] == over_http[column], column

    kept = [path.name for path in server_folder.rglob("*") if path.is_file()]
    assert "weights.safetensors" in kept, "the artefact store is where this test looks"
    assert not [name for name in kept if name.endswith((".pkl", ".pickle", ".pt", ".pth", ".joblib"))]
