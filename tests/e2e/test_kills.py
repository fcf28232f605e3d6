"""Killed at every turn, a retraining comes to its end: one version, one decision, and nothing half done.

With HINDCAST_TEST_ALL_KILLS set every point there is is tried, else those that differ from their neighbours.
"""

import os
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from urllib.parse import urlsplit

import mlflow
import pytest
from dbos import DBOSClient, DBOSPortableJSONSerializer

from forecasting.registry import open_registry
from ledger.ledger import Ledger, open_ledger
from pipelines.retrain import TAG_RUN_KEY
from tests.conftest import free_port
from tests.processes import Process, mlflow_process, run_to_end, running, write_job

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
DOOR = Path(__file__).with_name("door.py")
NEVER = "0 0 1 1 *"
FORECASTERS = ("naive", "seasonal_naive", "drift", "ridge", "mlp")

TURNS = (
    *("outside, before enqueue_workflow", "outside, after enqueue_workflow"),
    *("read: done", "read: remembered", "begin, after start", "begin: remembered"),
    *("load: done", "load: remembered", "compare: done", "compare: remembered"),
    *("track, after create_run", "track: done", "track: remembered"),
    *("fit baseline, after create_run", "fit baseline, after save_artifact", "fit baseline: remembered"),
    *("fit mlp, after create_run", "fit mlp, after log_epoch", "fit mlp, after save_artifact"),
    *("fit mlp: done", "fit mlp: remembered", "backtest: done", "backtest: remembered"),
    *("publish, after finish_training", "publish, before create_model_version"),
    *("publish, after create_model_version", "publish, after set_registered_model_alias", "publish: remembered"),
    *("decide, before record", "decide, after record", "decide, after decide", "decide: remembered"),
    *("promote, after set_model_version_tag", "promote, after set_registered_model_alias", "promote: remembered"),
    *("close, after set_terminated", "close: remembered", "finish, after finish", "finish: remembered"),
)
WITH_A_CHAMPION = (
    *("promote, after set_model_version_tag", "promote, before set_registered_model_alias"),
    *("promote, after set_registered_model_alias", "promote: done"),
)
"""Where there is a champion to take the place of, and an alias more to move."""


@pytest.fixture(autouse=True)
def store(tmp_path: Path, lay_store: Callable[[Path], str]) -> str:
    """MLflow's store in the home of every process here, made beforehand."""
    return lay_store(tmp_path)


def test_a_retraining_killed_at_every_turn_comes_to_one_end(tmp_path: Path) -> None:
    write_job(tmp_path / "jobs", NEVER)
    everywhere = bool(os.environ.get("HINDCAST_TEST_ALL_KILLS"))
    turns = "everywhere" if everywhere else ";".join(TURNS)
    environment = {
        "HINDCAST_HOME": str(tmp_path),
        "HINDCAST_JOBS_DIR": str(tmp_path / "jobs"),
        "HINDCAST_ROUND_SECONDS": "0",
    }
    driver = [sys.executable, "-m", "tests.e2e.kill_driver", "pumps"]
    command = [*driver, "first", turns, "second", ";".join(WITH_A_CHAMPION)]
    done = run_to_end(command, environment, cwd=ROOT, seconds=290)
    assert done.returncode == 0, done.stdout + done.stderr[-5000:]
    kills = [line.removeprefix("killed at: ") for line in done.stdout.splitlines() if line.startswith("killed")]
    first, second = kills[: -len(WITH_A_CHAMPION)], kills[-len(WITH_A_CHAMPION) :]
    assert set(first) >= set(TURNS), "a point in the list was not reached"
    assert len(first) >= 30
    assert set(second) == set(WITH_A_CHAMPION)

    ledger = open_ledger(f"sqlite:///{tmp_path}/ledger.db")
    assert_one_of_each(tmp_path, ledger, ["first", "second"])
    versions = open_registry(f"sqlite:///{tmp_path}/mlflow.db").versions("pumps")
    assert [(v.version, v.aliases) for v in versions] == [("2", ("challenger", "champion")), ("1", ("shadow",))]
    assert done.stderr.count("2 series, 576 points") == 3, (
        "loaded once by each run, and again after the kill there"
    )


def test_a_retraining_side_by_side_killed_comes_to_one_end(tmp_path: Path) -> None:
    write_job(tmp_path / "jobs", NEVER)
    environment = {
        "HINDCAST_HOME": str(tmp_path),
        "HINDCAST_JOBS_DIR": str(tmp_path / "jobs"),
        "HINDCAST_ROUND_SECONDS": "0",
        "HINDCAST_FAN_OUT": "2",
    }
    command = [sys.executable, "-m", "tests.e2e.kill_driver", "pumps", "only", "fit: done"]
    done = run_to_end(command, environment, cwd=ROOT, seconds=120)
    assert done.returncode == 0, done.stdout + done.stderr[-5000:]
    assert "killed at: fit: done" in done.stdout
    assert done.stderr.count("mlp: best epoch") == 1, "what was fitted before the kill is not fitted again"
    with closing(open_ledger(f"sqlite:///{tmp_path}/ledger.db")) as ledger:
        assert_one_of_each(tmp_path, ledger, ["only"])


def assert_one_of_each(home: Path, ledger: Ledger, keys: list[str]) -> None:
    """Assert that each run left one version, one decision and one finished MLflow run, and nothing under way."""
    records = ledger.runs.list("pumps")
    assert [(record.key, record.state) for record in records] == [(key, "done") for key in reversed(keys)]
    versions = {
        v.tags[TAG_RUN_KEY]: v.version for v in open_registry(f"sqlite:///{home}/mlflow.db").versions("pumps")
    }
    assert {record.key: record.version for record in records} == versions
    decisions = ledger.decisions.of_model("pumps")
    assert sorted(decision.key for decision in decisions) == sorted(f"{key}:gate" for key in keys)
    assert {decision.version: decision.action for decision in decisions} == dict.fromkeys(
        versions.values(), "promote"
    )
    for key in keys:
        parents = [run for run in runs_of(home) if run.data.tags.get(TAG_RUN_KEY) == key]
        assert sorted(run.info.status for run in parents if run.info.status != "KILLED") == ["FINISHED"], key
        parent = next(run.info.run_id for run in parents if run.info.status == "FINISHED")
        children = [run for run in runs_of(home) if run.data.tags.get("mlflow.parentRunId") == parent]
        finished = [run.data.tags["hindcast.candidate"] for run in children if run.info.status == "FINISHED"]
        assert sorted(finished) == sorted(FORECASTERS), key
    assert {run.info.status for run in runs_of(home)} <= {"FINISHED", "KILLED"}
    assert not list((home / "runs").iterdir()), "the run's folder is gone"


def runs_of(home: Path) -> list[mlflow.entities.Run]:
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{home}/mlflow.db")
    experiment = client.get_experiment_by_name("pumps")
    return list(client.search_runs([experiment.experiment_id]))


@pytest.mark.postgres
def test_a_retraining_outlasts_restarts_of_mlflow_and_postgres(tmp_path: Path, postgres_url: str) -> None:
    """Both stand behind doors: MLflow is killed, and another of it takes its place; PostgreSQL is cut off."""
    write_job(tmp_path / "jobs", NEVER, max_epochs=60)
    to, ports = urlsplit(postgres_url), {name: free_port() for name in ("postgres", "mlflow", "first", "second")}
    to_postgres = [str(ports["postgres"]), to.hostname or "127.0.0.1", str(to.port or 5432)]
    through_door = to._replace(netloc=f"{to.netloc.rpartition('@')[0]}@127.0.0.1:{ports['postgres']}").geturl()
    environment = {
        "HINDCAST_HOME": str(tmp_path),
        "HINDCAST_SCHEDULER_DB": through_door,
        "HINDCAST_LEDGER_URL": through_door,
        "HINDCAST_TRACKING_URI": f"http://127.0.0.1:{ports['mlflow']}",
        "HINDCAST_RETRY_SECONDS": "0.5",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    }
    ledger = open_ledger(postgres_url)
    ledger.runs.request("pumps", "request", "asked by a test", "long")
    with ExitStack() as started:

        def open_door(*where: str) -> Process:
            command = [sys.executable, str(DOOR), *where]
            return started.enter_context(running(command, tmp_path / f"door-{where[0]}.log", {}))

        def start_mlflow(name: str) -> Process:
            store = f"sqlite:///{tmp_path}/mlflow.db"
            serving = mlflow_process(tmp_path / "server", store, ports[name], ports["mlflow"])
            uri, process = started.enter_context(serving)
            process.wait_for_http(f"{uri}/health")
            return process

        postgres = open_door(*to_postgres)
        server, mlflow_door = (
            start_mlflow("first"),
            open_door(str(ports["mlflow"]), "127.0.0.1", str(ports["first"])),
        )
        command = ["hindcast", "worker", "--jobs", str(tmp_path / "jobs")]
        worker = started.enter_context(running(command, tmp_path / "worker.log", environment))
        start_mlflow("second")
        worker.wait_for("fit|mlp: epoch|2 series")
        server.kill()
        mlflow_door.kill()
        worker.wait_for("WARNING step (track|fit [a-z_]+): MLflow did not answer")
        assert "mlp: best epoch" not in worker.log, "it ended too early to mean anything"
        open_door(str(ports["mlflow"]), "127.0.0.1", str(ports["second"]))
        worker.wait_for("mlp: epoch 10 of 60")
        postgres.kill()
        worker.wait_for("mlp: best epoch")
        time.sleep(1)
        assert "pumps: mlp is version" not in worker.log, (
            "what a step came to is remembered before the next begins"
        )
        open_door(*to_postgres)
        worker.wait_for("pumps version 1 promoted")
        wait_until_over(ledger, postgres_url, "long")
    assert_one_of_each(tmp_path, ledger, ["long"])
    ledger.close()


def wait_until_over(ledger: Ledger, scheduler: str, key: str, seconds: float = 60) -> None:
    """Wait until a run has ended well, and its workflow with it."""
    deadline = time.monotonic() + seconds
    while (
        (record := ledger.runs.get(key)) is None
        or record.state != "done"
        or set(workflows(scheduler)) != {"SUCCESS"}
    ):
        assert time.monotonic() < deadline, record
        time.sleep(0.2)


def workflows(url: str) -> list[str]:
    """Return the status of every workflow."""
    client = DBOSClient(system_database_url=url, serializer=DBOSPortableJSONSerializer())
    try:
        return [found.status for found in client.list_workflows()]
    finally:
        client.destroy()
