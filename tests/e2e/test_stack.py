"""docker-compose.yml, run without Docker: each service's own command and environment as a plain process.

Nothing is changed but what a container brings with it: the names of hosts, ports and folders.
"""

import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from forecasting.registry import open_registry
from tests.conftest import POSTGRES, free_port
from tests.e2e.compose import load_services
from tests.processes import Process, answers, ask, clean_environment, running, wait_for_version, write_job

pytestmark = [pytest.mark.slow, pytest.mark.postgres]


@dataclass(frozen=True)
class Here:
    """What the names inside the containers are on this machine."""

    services: Mapping[str, Any]
    folder: Path
    postgres: str
    ports: Mapping[str, int]

    def localised(self, service: str, text: str) -> str:
        """Replace host names, ports and folders in a part of a service's definition."""
        for inside, here in (
            ("postgresql://hindcast@postgres:5432/hindcast", self.postgres),
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

    def start(self, service: str) -> AbstractContextManager[Process]:
        """Run a service's command."""
        command = [self.localised(service, part) for part in self.services[service]["command"]]
        (self.folder / service).mkdir()
        return running(command, self.folder / f"{service}.log", self.environment(service), cwd=self.folder)

    def is_healthy(self, service: str) -> bool:
        """Run a service's health check."""
        kind, *test = (self.localised(service, part) for part in self.services[service]["healthcheck"]["test"])
        command = ["sh", "-c", *test] if kind == "CMD-SHELL" else test
        done = subprocess.run(command, env=clean_environment({}), capture_output=True, timeout=30, check=False)
        return done.returncode == 0


@pytest.fixture
def here(tmp_path: Path, postgres_url: str) -> Here:
    """The services of docker-compose.yml, with places for them on this machine."""
    password = {"HINDCAST_POSTGRES_PASSWORD": "not asked for here"}
    services = load_services(password)
    write_job(tmp_path / "jobs", "*/10 * * * * *")
    return Here(services, tmp_path, postgres_url, {"mlflow": free_port(), "service": free_port()})


@pytest.fixture
def stack(here: Here) -> Iterator[dict[str, Process]]:
    """MLflow, service and worker, in the order their health lets them start."""
    with ExitStack() as started:
        processes = {}
        for service in ("mlflow", "service", "worker"):
            assert not here.is_healthy(service), f"{service} is called healthy before it runs"
            processes[service] = started.enter_context(here.start(service))
            if service == "mlflow":
                processes[service].wait_for_http(f"http://127.0.0.1:{here.ports['mlflow']}/health")
        yield processes


def test_a_scheduled_retraining_answers_over_http_and_the_next_takes_its_place(
    here: Here, stack: dict[str, Process], postgres_url: str
) -> None:
    mlflow, address = (f"http://127.0.0.1:{here.ports[name]}" for name in ("mlflow", "service"))
    assert wait_for_version(address, 1)["version"] == "1"
    second = wait_for_version(address, 2)
    assert second["forecasts"][0]["status"] == "ok"
    assert {name: here.is_healthy(name) for name in stack} == {"mlflow": True, "service": True, "worker": True}

    assert httpx.get(f"{mlflow}/", headers={"host": "mlflow:5000"}).status_code == 200
    assert httpx.get(f"{mlflow}/", headers={"host": "example.org"}).status_code == 403
    assert "pumps" in open_registry(mlflow).models()
    assert tables(postgres_url) == {("public", "model_versions"), ("dbos", "workflow_status")}

    drop(postgres_url)
    assert answers(f"{mlflow}/health"), "MLflow's own answer, which says nothing about its database"
    assert not here.is_healthy("mlflow")
    os.utime(here.folder / "worker" / "worker.alive", (0, 0))
    assert not here.is_healthy("worker")
    assert int(ask(address)["version"]) >= 2, "the service answers on"
    assert here.is_healthy("service")

    assert stack["worker"].stop() == 0
    assert stack["service"].stop() == 0
    assert stack["mlflow"].stop() == 0


def tables(url: str) -> set[tuple[str, str]]:
    """Return which of the tables that must be there are."""
    with psycopg.connect(url) as connection:
        found = connection.execute(
            "SELECT table_schema, table_name FROM information_schema.tables "
            "WHERE table_name IN ('model_versions', 'workflow_status')"
        )
        return {(str(schema), str(table)) for schema, table in found}


def drop(url: str) -> None:
    """Take the database away from everybody who uses it."""
    name = url.rsplit("/", 1)[1]
    with psycopg.connect(POSTGRES, autocommit=True) as admin:
        admin.execute(f'DROP DATABASE "{name}" WITH (FORCE)'.encode())
