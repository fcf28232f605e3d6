"""The whole way with real processes and nothing but SQLite: what runs on a newcomer's machine.

MLflow server, service and worker: the schedule fires, the winner is promoted, the service answers with it, the
next one takes its place without a restart, and every process leaves cleanly when told to.
"""

import signal
import sqlite3
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from forecasting.registry import open_registry
from tests.conftest import free_port
from tests.processes import Process, answers, ask, mlflow_process, running, wait_for_version, write_job

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Stack:
    """Three processes and the addresses of two."""

    mlflow: Process
    service: Process
    worker: Process
    folder: Path
    registry: str
    address: str

    def start_mlflow_again(self) -> AbstractContextManager[tuple[str, Process]]:
        """Start another MLflow server in the place of the first."""
        return mlflow_process(self.folder, store_in(self.folder), int(self.registry.rsplit(":", 1)[1]))


def store_in(folder: Path) -> str:
    return f"sqlite:///{folder}/server.db"


def newest_version(folder: Path) -> int:
    """Ask the store itself, while no server does."""
    with closing(sqlite3.connect(folder / "server.db")) as connection:
        return int(connection.execute("SELECT max(version) FROM model_versions").fetchone()[0])


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    """An MLflow server, a service and a worker, started at the same time."""
    port = free_port()
    jobs = write_job(tmp_path / "jobs", "*/5 * * * * *", schedule={"force": True}).parent
    with ExitStack() as started:
        registry, mlflow = started.enter_context(mlflow_process(tmp_path, store_in(tmp_path)))
        served = {"HINDCAST_REGISTRY_URI": registry, "HINDCAST_PORT": str(port), "HINDCAST_POLL_SECONDS": "0.5"}
        service = started.enter_context(running(["hindcast", "serve"], tmp_path / "service.log", served))
        mlflow.wait_for_http(f"{registry}/health")
        # What lets a retraining outlast a restart of MLflow, as in docker-compose.yml, in less time.
        trained = {
            "HINDCAST_TRACKING_URI": registry,
            "HINDCAST_HOME": str(tmp_path / "home"),
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "7",
            "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
        }
        command = ["hindcast", "worker", "--jobs", str(jobs)]
        worker = started.enter_context(running(command, tmp_path / "worker.log", trained))
        yield Stack(mlflow, service, worker, tmp_path, registry, f"http://127.0.0.1:{port}")


def test_a_schedule_becomes_a_forecast_and_then_another(stack: Stack) -> None:
    stack.service.wait_for_http(f"{stack.address}/health/live")
    assert httpx.get(f"{stack.address}/health/ready").status_code == 503, "nothing is promoted yet"

    first = wait_for_version(stack.address, 1)
    second = wait_for_version(stack.address, int(first["version"]) + 1)
    assert second["alias"] == "champion"
    forecast = second["forecasts"][0]
    assert forecast["cutoff"] == "2024-03-14"
    assert forecast["ds"] == ["2024-03-15", "2024-03-16", "2024-03-17"]
    bounds = zip(forecast["lo-80"], forecast["mean"], forecast["hi-80"], strict=True)
    assert all(low < mean < high for low, mean, high in bounds)

    champion = open_registry(stack.registry).resolve("pumps")
    assert champion.tags["hindcast.decision"] == "promoted"
    assert "Traceback" not in stack.worker.log

    assert stack.mlflow.stop(signal.SIGTERM) == 0
    assert int(ask(stack.address)["version"]) >= 2, "without its registry the service answers on"
    assert answers(f"{stack.address}/health/ready")
    newest = newest_version(stack.folder)
    with stack.start_mlflow_again() as (_, mlflow):
        wait_for_version(stack.address, newest + 1)
        assert stack.worker.stop(signal.SIGINT) == 0, "Ctrl-C"
        assert mlflow.stop(signal.SIGINT) == 0, "Ctrl-C"
    assert stack.service.stop(signal.SIGTERM) == 0
