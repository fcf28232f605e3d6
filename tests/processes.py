"""Real processes for tests: started, watched through their log, and ended."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.conftest import free_port

BIN = Path(sys.executable).parent
START_SECONDS = 90.0


class Process:
    """One running process, and what it wrote."""

    def __init__(self, popen: "subprocess.Popen[bytes]", log: Path) -> None:
        self.popen, self._log = popen, log

    @property
    def log(self) -> str:
        return self._log.read_text()

    @property
    def is_running(self) -> bool:
        return self.popen.poll() is None

    def wait_for(self, pattern: str, seconds: float = START_SECONDS) -> "re.Match[str]":
        """Wait until the log has a match of the pattern."""
        deadline = time.monotonic() + seconds
        while (match := re.search(pattern, self.log)) is None:
            assert self.is_running, f"ended with {self.popen.returncode} before {pattern!r}:\n{self.log[-3000:]}"
            assert time.monotonic() < deadline, f"no {pattern!r} within {seconds:.0f} s:\n{self.log[-3000:]}"
            time.sleep(0.02)
        return match

    def wait_for_http(self, url: str, seconds: float = START_SECONDS) -> None:
        """Wait until a URL answers 200."""
        deadline = time.monotonic() + seconds
        while not answers(url):
            assert self.is_running, f"ended with {self.popen.returncode}:\n{self.log[-3000:]}"
            assert time.monotonic() < deadline, f"no {url} within {seconds:.0f} s:\n{self.log[-3000:]}"
            time.sleep(0.2)

    def stop(self, number: signal.Signals = signal.SIGTERM, seconds: float = 30) -> int:
        """Send a signal to this one process, and return the code it ended with."""
        self.popen.send_signal(number)
        return self.popen.wait(timeout=seconds)

    def kill(self) -> None:
        """End the process and its children as a power cut would."""
        with suppress(ProcessLookupError):
            os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.wait(timeout=10)


@cache
def _client() -> httpx.Client:
    """Return one client for all: making one costs more than a request. Every request gets its own connection."""
    return httpx.Client(timeout=10, limits=httpx.Limits(max_keepalive_connections=0))


def answers(url: str) -> bool:
    """Return whether a URL answers 200 now."""
    try:
        return _client().get(url).status_code == 200
    except httpx.TransportError:
        return False


def clean_environment(changes: Mapping[str, str]) -> dict[str, str]:
    """Return this environment without anybody's settings, one thread for each process, and the changes."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("HINDCAST_", "MLFLOW_", "PG"))}
    path = f"{BIN}{os.pathsep}{inherited.get('PATH', '')}"
    return {**inherited, "PATH": path, "OMP_NUM_THREADS": "1", "HINDCAST_TRAINING_THREADS": "1", **changes}


@contextmanager
def running(
    command: Sequence[str], log: Path, environment: Mapping[str, str], *, cwd: Path | None = None
) -> Iterator[Process]:
    """Run a command until the block ends; whatever is left of it then is killed."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as file:
        popen = subprocess.Popen(
            command, stdout=file, stderr=file, env=clean_environment(environment), cwd=cwd, start_new_session=True
        )
    process = Process(popen, log)
    try:
        yield process
    finally:
        process.kill()


def run_to_end(
    command: Sequence[str], environment: Mapping[str, str], *, cwd: Path | None = None, seconds: float = 120
) -> "subprocess.CompletedProcess[str]":
    """Run a command to its end and return what it printed."""
    return subprocess.run(
        command,
        env=clean_environment(environment),
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )


def write_job(
    folder: Path,
    cron: str | None,
    *,
    name: str = "pumps",
    max_epochs: int = 2,
    schedule: Mapping[str, Any] | None = None,
) -> Path:
    """Write a job file that trains in a second, and return its path."""
    job = {
        "name": name,
        "source": {"kind": "simulate", "n_sensors": 2, "n_steps": 300, "freq": "D"},
        "freq": "D",
        "horizon": 3,
        "level": [80],
        "candidates": [{"kind": "mlp", "input_size": 14, "hidden_size": 8}],
        "training": {"max_epochs": max_epochs, "patience": max_epochs},
        "evaluation": {"n_windows": 5},
        "schedule": {**({} if cron is None else {"cron": cron}), **(schedule or {})},
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(job, sort_keys=False))
    return path


HISTORY = [20.0, 20.5, 21.0, 20.0, 19.5, 20.0, 21.5, 22.0, 21.0, 20.5, 20.0, 19.0, 20.0, 21.0]
"""As many days as the model of `write_job` needs."""


def ask(address: str, model: str = "pumps", *, key: str | None = None) -> dict[str, Any]:
    """Ask a service for a forecast of HISTORY, with an API key where it wants one, and return its answer."""
    series = [{"unique_id": "pump-7", "start": "2024-03-01", "y": HISTORY}]
    headers = {} if key is None else {"x-api-key": key}
    answer = _client().post(f"{address}/v1/forecast", json={"model": model, "series": series}, headers=headers)
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def wait_for_version(
    address: str, version: int, model: str = "pumps", seconds: float = START_SECONDS, *, key: str | None = None
) -> dict[str, Any]:
    """Wait until a service answers with this version of a model or a later one, and return its answer."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if answers(f"{address}/health/ready"):
            answer = ask(address, model, key=key)
            if int(answer["version"]) >= version:
                return answer
        time.sleep(0.2)
    raise AssertionError(f"version {version} of {model!r} did not answer within {seconds:.0f} s")


@contextmanager
def mlflow_process(
    folder: Path, store: str, port: int | None = None, also_as: int | None = None
) -> Iterator[tuple[str, Process]]:
    """Start a real MLflow server with proxied artefacts; yield its URI, silent at first, and its process.

    `also_as` is a port that leads to the server.
    """
    port = port or free_port()
    folder.mkdir(parents=True, exist_ok=True)
    command = [
        *("mlflow", "server", "--backend-store-uri", store, "--workers", "1"),
        *("--artifacts-destination", (folder / "proxied").as_uri(), "--serve-artifacts"),
        *("--host", "127.0.0.1", "--port", str(port), "--allowed-hosts"),
        f"127.0.0.1:{port},127.0.0.1:{also_as or port}",
    ]
    environment = {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # what nobody asks for would be two more processes
    }
    with running(command, folder / "mlflow.log", environment, cwd=folder) as process:
        yield f"http://127.0.0.1:{port}", process


@contextmanager
def mlflow_server(folder: Path, store: str) -> Iterator[str]:
    """Run a real MLflow server with proxied artefacts; yield its URI."""
    with mlflow_process(folder, store) as (uri, process):
        process.wait_for_http(f"{uri}/health")
        yield uri
