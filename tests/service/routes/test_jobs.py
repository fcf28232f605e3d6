"""/v1/jobs: what the workers wrote to the ledger is shown, and what is asked for waits there for them."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from ledger.ledger import Ledger, open_ledger
from ledger.runs import MAX_QUEUED
from service.app import create_app
from service.settings import ServiceSettings
from tests.service.conftest import serve_app, wait_until


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    ledger = open_ledger(f"sqlite:///{tmp_path}/ledger.db")
    ledger.runs.set_job("co2", "c0ffee", "every Monday at 06:00", datetime(2024, 3, 4, 6, tzinfo=UTC))
    ledger.runs.set_job("sp500", "decade", None, None)
    yield ledger
    ledger.close()


@pytest.fixture
def served(tmp_path: Path, ledger: Ledger) -> Iterator[httpx.Client]:
    assert ledger
    app = create_app(ServiceSettings(home=tmp_path, registry_uri=str(tmp_path / "registry")))
    with serve_app(app, ready=False) as client:
        wait_until(lambda: app.state.runtime.ledger is not None)
        yield client


def test_jobs_are_listed_and_described(served: httpx.Client) -> None:
    jobs = served.get("/v1/jobs").json()["jobs"]
    assert [(job["job"], job["schedule"]) for job in jobs] == [("co2", "every Monday at 06:00"), ("sp500", None)]
    job = served.get("/v1/jobs/co2").json()
    assert (job["next_tick"], job["config_digest"]) == ("2024-03-04T06:00:00Z", "c0ffee")
    unknown = served.get("/v1/jobs/pumps")
    assert unknown.status_code == 404
    assert unknown.json()["detail"] == "no worker runs a job named 'pumps'; known: co2, sp500"


def test_a_retraining_is_asked_for_once_and_can_be_followed(served: httpx.Client, ledger: Ledger) -> None:
    asked = served.post("/v1/jobs/co2/retrain", headers={"idempotency-key": "tuesday"})
    assert asked.status_code == 202
    assert asked.headers["location"] == "/v1/jobs/co2/runs/tuesday"
    run = served.get(asked.headers["location"]).json()
    assert (run["state"], run["trigger"], run["cause"]) == ("queued", "request", "asked for over HTTP")
    again = served.post("/v1/jobs/co2/retrain", headers={"idempotency-key": "tuesday"})
    assert (again.status_code, again.json()) == (202, run)
    assert [one.key for one in ledger.runs.queued()] == ["tuesday"]
    ledger.runs.start("tuesday", "worker-1")
    ledger.runs.finish("tuesday", "done", version="3", decision="promoted", reason="better")
    run = served.get(asked.headers["location"]).json()
    assert (run["state"], run["version"], run["decision"]) == ("done", "3", "promoted")


def test_without_a_key_the_run_that_waits_is_returned(served: httpx.Client, ledger: Ledger) -> None:
    first, second = (served.post("/v1/jobs/co2/retrain", params={"force": True}) for _ in range(2))
    assert first.headers["location"] == second.headers["location"]
    (run,) = ledger.runs.queued()
    assert run.forced


def test_runs_are_listed_the_newest_first_and_by_state(served: httpx.Client, ledger: Ledger) -> None:
    for key in ("one", "two", "three"):
        served.post("/v1/jobs/co2/retrain", headers={"idempotency-key": key})
    ledger.runs.start("one", "worker-1")
    ledger.runs.finish("one", "failed", error="no usable model")
    runs = served.get("/v1/jobs/co2/runs").json()["runs"]
    assert [run["key"] for run in runs] == ["three", "two", "one"]
    failed = served.get("/v1/jobs/co2/runs", params={"state": "failed"}).json()["runs"]
    assert [(run["key"], run["error"]) for run in failed] == [("one", "no usable model")]
    assert served.get("/v1/jobs/sp500/runs").json() == {"runs": []}
    assert served.get("/v1/jobs/pumps/runs").status_code == 404


def test_a_key_of_another_job_or_that_cannot_be_one_is_refused(served: httpx.Client) -> None:
    served.post("/v1/jobs/co2/retrain", headers={"idempotency-key": "tuesday"})
    taken = served.post("/v1/jobs/sp500/retrain", headers={"idempotency-key": "tuesday"})
    assert (taken.status_code, taken.json()["type"]) == (409, "urn:hindcast:problem:key-taken")
    wrong = served.post("/v1/jobs/co2/retrain", headers={"idempotency-key": "../../etc"})
    assert (wrong.status_code, wrong.json()["errors"][0]["path"]) == (422, "header.idempotency-key")
    assert served.post("/v1/jobs/pumps/retrain").status_code == 404
    assert served.get("/v1/jobs/sp500/runs/tuesday").status_code == 404, "a run of another job"


def test_the_queue_is_bounded(served: httpx.Client, ledger: Ledger) -> None:
    for i in range(MAX_QUEUED):
        ledger.runs.request("co2", "request", "asked for", f"run-{i}")
    full = served.post("/v1/jobs/sp500/retrain")
    assert (full.status_code, full.json()["type"]) == (503, "urn:hindcast:problem:queue-full")
    assert full.headers["retry-after"] == "60"
