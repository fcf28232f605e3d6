"""docker-compose.yml, run without Docker: each service's own command and environment as a plain process.

Nothing is changed but what a container brings with it: the names of hosts, ports and folders. PostgreSQL is
reached through a door that can be shut.
"""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import psycopg
import pytest

from forecasting.registry import open_registry
from tests.conftest import free_port
from tests.e2e.compose import COMPOSE, load_services
from tests.processes import (
    Process,
    answers,
    ask,
    clean_environment,
    run_to_end,
    running,
    wait_for_version,
    write_job,
)

pytestmark = [pytest.mark.slow, pytest.mark.postgres]


DOOR = Path(__file__).with_name("door.py")


@dataclass(frozen=True)
class Here:
    """What the names inside the containers are on this machine."""

    services: Mapping[str, Any]
    folder: Path
    postgres: str
    ports: Mapping[str, int]

    @property
    def postgres_through_door(self) -> str:
        to = urlsplit(self.postgres)
        who = to.netloc.rpartition("@")[0]
        return to._replace(netloc=f"{who}@127.0.0.1:{self.ports['postgres']}").geturl()

    def localised(self, service: str, text: str) -> str:
        """Replace host names, ports and folders in a part of a service's definition."""
        for inside, here in (
            ("postgresql://hindcast@postgres:5432/hindcast", self.postgres_through_door),
            ("http://mlflow:5000", f"http://127.0.0.1:{self.ports['mlflow']}"),
            ("http://127.0.0.1:5000", f"http://127.0.0.1:{self.ports['mlflow']}"),
            ("http://127.0.0.1:8000", f"http://127.0.0.1:{self.ports['service']}"),
            ("--port=5000", f"--port={self.ports['mlflow']}"),
            ("0.0.0.0", "127.0.0.1"),  # noqa: S104  (this is where it is taken away)
            ("/var/lib/hindcast", str(self.folder / service)),
            ("/srv/hindcast", str(self.folder)),
        ):
            text = text.replace(inside, here)
        return str(self.ports["service"]) if text == "8000" else text

    def environment(self, service: str) -> dict[str, str]:
        """Return the environment a service is given, and nothing else."""
        return {k: self.localised(service, v) for k, v in self.services[service]["environment"].items()}

    def open_door(self) -> AbstractContextManager[Process]:
        """Let PostgreSQL be reached, for as long as the process lives."""
        to = urlsplit(self.postgres)
        where = [str(self.ports["postgres"]), to.hostname or "127.0.0.1", str(to.port or 5432)]
        return running([sys.executable, str(DOOR), *where], self.folder / "door.log", {})

    def start(self, service: str) -> AbstractContextManager[Process]:
        """Run a service's command."""
        command = [self.localised(service, part) for part in self.services[service]["command"]]
        (self.folder / service).mkdir()
        return running(command, self.folder / f"{service}.log", self.environment(service), cwd=self.folder)

    def make_key(self) -> str:
        """Make a key as somebody does who runs the stack, with the command that operations.md gives."""
        page = (COMPOSE.parent / "docs" / "operations.md").read_text()
        (words,) = re.findall(r"^docker compose exec service (python -m service.keys create .*)$", page, re.M)
        done = run_to_end(words.split(), self.environment("service"), cwd=self.folder)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def is_healthy(self, service: str) -> bool:
        """Run a service's health check."""
        kind, *test = (self.localised(service, part) for part in self.services[service]["healthcheck"]["test"])
        command = ["sh", "-c", *test] if kind == "CMD-SHELL" else test
        done = subprocess.run(command, env=clean_environment({}), capture_output=True, timeout=30, check=False)
        return done.returncode == 0

    def wait_until_healthy(self, service: str, seconds: float = 30) -> None:
        """Wait until a service's health check says yes."""
        deadline = time.monotonic() + seconds
        while not self.is_healthy(service):
            assert time.monotonic() < deadline, f"{service} did not get well within {seconds:.0f} s"
            time.sleep(0.5)


@pytest.fixture
def here(tmp_path: Path, postgres_url: str) -> Here:
    """The services of docker-compose.yml, with places for them on this machine."""
    password = {"HINDCAST_POSTGRES_PASSWORD": "not asked for here"}
    services = load_services(password)
    write_job(tmp_path / "jobs", "*/10 * * * * *", schedule={"force": True})
    return Here(services, tmp_path, postgres_url, {n: free_port() for n in ("mlflow", "service", "postgres")})


@pytest.fixture
def stack(here: Here) -> Iterator[dict[str, Process]]:
    """MLflow, service and worker, in the order their health lets them start."""
    with ExitStack() as started:
        processes = {"door": started.enter_context(here.open_door())}
        processes["door"].wait_for("open")
        for service in ("mlflow", "service", "worker"):
            assert not here.is_healthy(service), f"{service} is called healthy before it runs"
            processes[service] = started.enter_context(here.start(service))
            if service == "mlflow":
                processes[service].wait_for_http(f"http://127.0.0.1:{here.ports['mlflow']}/health")
        yield processes


def test_a_scheduled_retraining_answers_over_http_whatever_stops_in_between(
    here: Here, stack: dict[str, Process], postgres_url: str
) -> None:
    mlflow, address = (f"http://127.0.0.1:{here.ports[name]}" for name in ("mlflow", "service"))
    key = here.make_key()
    assert wait_for_version(address, 1, key=key)["version"] == "1"
    assert httpx.get(f"{address}/v1/models").status_code == 401
    second = wait_for_version(address, 2, key=key)
    assert second["forecasts"][0]["status"] == "ok"
    assert [here.is_healthy(name) for name in ("mlflow", "service", "worker")] == [True, True, True]

    assert httpx.get(f"{mlflow}/", headers={"host": "mlflow:5000"}).status_code == 200
    assert httpx.get(f"{mlflow}/", headers={"host": "example.org"}).status_code == 403
    assert "pumps" in open_registry(mlflow).models()
    assert tables(postgres_url) == {
        ("public", "model_versions"),
        ("dbos", "workflow_status"),
        ("ledger", "observations"),
    }

    stack["door"].kill()
    assert answers(f"{mlflow}/health"), "MLflow's own answer, which says nothing about its database"
    assert not here.is_healthy("mlflow")
    os.utime(here.folder / "worker" / "worker.alive", (0, 0))
    time.sleep(0.2)
    assert not here.is_healthy("worker")
    meanwhile = ask(address, key=key)
    assert int(meanwhile["version"]) >= 2, "the service answers on"
    assert here.is_healthy("service")
    newest = newest_version(postgres_url)
    with here.open_door():
        wait_for_version(address, newest + 1, key=key)
        for name in ("mlflow", "worker"):
            here.wait_until_healthy(name)
        wait_until_recorded(postgres_url, [second["forecast_id"], meanwhile["forecast_id"]])
        assert [stack[name].stop() for name in ("worker", "service", "mlflow")] == [0, 0, 0]


def tables(url: str) -> set[tuple[str, str]]:
    """Return which of the tables that must be there are."""
    with psycopg.connect(url) as connection:
        found = connection.execute(
            "SELECT table_schema, table_name FROM information_schema.tables "
            "WHERE table_name IN ('model_versions', 'workflow_status', 'observations')"
        )
        return {(str(schema), str(table)) for schema, table in found}


def wait_until_recorded(url: str, forecast_ids: list[str], seconds: float = 60) -> None:
    """Wait until the ledger holds these forecasts, the one included that was issued while it was away."""
    deadline = time.monotonic() + seconds
    query = "SELECT count(*) FROM ledger.forecasts WHERE forecast_id = ANY(%s)"
    with psycopg.connect(url) as connection:
        while (connection.execute(query, (forecast_ids,)).fetchone() or (0,))[0] < len(forecast_ids):
            assert time.monotonic() < deadline, f"not recorded within {seconds:.0f} s"
            time.sleep(0.3)


def newest_version(url: str) -> int:
    """Ask PostgreSQL itself for the newest version, while nobody else can."""
    with psycopg.connect(url) as connection:
        row = connection.execute("SELECT max(version) FROM model_versions").fetchone()
        return int(row[0]) if row else 0
