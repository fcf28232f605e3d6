"""The real process: `python -m service`, its exit codes, and how it leaves."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from forecasting.registry import DirectoryRegistry
from forecasting.spec import RecurrentSpec
from service.__main__ import main
from tests.service.conftest import Publish, build_forecaster, wait_until
from tests.service.test_answering import big_body

ROOT = Path(__file__).parents[2]
JSON = {"content-type": "application/json"}


class Process:
    """A service process whose log is read as it is written."""

    module = "service"

    def __init__(self, **environment: str) -> None:
        env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error", **environment}
        self.popen = subprocess.Popen(
            [sys.executable, "-m", self.module], cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        wait_until(lambda: self.port is not None or self.popen.poll() is not None, 60)
        assert self.port is not None, self.log
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=60)

    def _read(self) -> None:
        assert self.popen.stderr is not None
        self.lines.extend(iter(self.popen.stderr.readline, ""))

    @property
    def log(self) -> str:
        return "".join(self.lines)

    @property
    def port(self) -> int | None:
        found = re.search(r"running on http://127.0.0.1:(\d+)", self.log)
        return int(found.group(1)) if found else None

    def close(self) -> None:
        self.client.close()
        with suppress(ProcessLookupError):
            self.popen.kill()
        self.popen.wait(timeout=30)
        self._reader.join()
        if self.popen.stderr is not None:
            self.popen.stderr.close()

    def is_ready(self) -> bool:
        return self.client.get("/health/ready").status_code == 200


@pytest.fixture
def start(registry: DirectoryRegistry) -> Iterator[Callable[..., Process]]:
    started: list[Process] = []

    def run(**environment: str) -> Process:
        defaults = {
            "HINDCAST_REGISTRY_URI": str(registry.root),
            "HINDCAST_PORT": "0",
            "HINDCAST_HOME": str(registry.root.parent),
            "HINDCAST_POLL_SECONDS": "0.1",
        }
        started.append(Process(**{**defaults, **environment}))
        return started[-1]

    yield run
    for process in started:
        process.close()


@pytest.mark.slow
def test_it_starts_from_the_environment_alone_answers_and_exits_with_0_on_sigterm(
    publish: Publish, start: Callable[..., Process]
) -> None:
    publish(build_forecaster("pump"))
    process = start(HINDCAST_DRAIN_SECONDS="0", HINDCAST_LOG_REQUESTS="all")
    wait_until(process.is_ready)
    answer = process.client.post("/v1/forecast", content=big_body(1, 12), headers=JSON)
    assert answer.status_code == 200
    assert answer.json()["version"] == "1"
    assert process.client.get("/docs").status_code == 200
    process.popen.send_signal(signal.SIGTERM)
    assert process.popen.wait(timeout=20) == 0
    lines = [json.loads(line) for line in process.lines]
    told = next(line for line in lines if line.get("request_id") == answer.headers["x-request-id"])
    assert (told["method"], told["path"], told["status"], told["version"]) == ("POST", "/v1/forecast", 200, "1")
    assert {line["logger"] for line in lines} >= {"uvicorn.error", "hindcast.models", "hindcast.requests"}
    assert "Traceback" not in process.log


@pytest.mark.slow
def test_on_sigterm_readiness_flips_first_and_accepted_requests_are_answered(
    publish: Publish, start: Callable[..., Process]
) -> None:
    network = RecurrentSpec(kind="lstm", input_size=1000, hidden_size=128, layers=2)
    publish(build_forecaster("pump", network=network))
    process = start(HINDCAST_DRAIN_SECONDS="1.5")
    wait_until(process.is_ready)
    with ThreadPoolExecutor(1) as thread:
        body = big_body(450, 1000)
        accepted = thread.submit(process.client.post, "/v1/forecast", content=body, headers=JSON)
        time.sleep(0.3)
        process.popen.send_signal(signal.SIGTERM)
        time.sleep(0.3)  # longer than uvicorn alone would take to close its socket
        ready = httpx.get(f"{process.client.base_url}/health/ready")
        assert ready.status_code == 503
        assert ready.json()["detail"] == "the service is shutting down"
        assert httpx.get(f"{process.client.base_url}/health/live").status_code == 200
        answer = accepted.result(timeout=60)
    assert answer.status_code == 200
    assert len(answer.json()["forecasts"]) == 450
    assert process.popen.wait(timeout=20) == 0


@pytest.mark.slow
def test_ctrl_c_leaves_at_once_and_cleanly(publish: Publish, start: Callable[..., Process]) -> None:
    publish(build_forecaster("pump"))
    process = start(HINDCAST_DRAIN_SECONDS="60")
    process.popen.send_signal(signal.SIGINT)
    assert process.popen.wait(timeout=20) == 0
    assert "Traceback" not in process.log


def test_a_file_of_keys_it_cannot_read_ends_it_with_2_and_the_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "keys.json").write_text("{")
    for host in ("127.0.0.1", "0.0.0.0"):  # noqa: S104  (refused)
        assert main(["--home", str(tmp_path), "--host", host]) == 2
        assert "keys.json is not a file of keys" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--host", "0.0.0.0"], "no API keys"),  # noqa: S104
        (["--port", "x"], "HINDCAST_PORT: Input should be a valid integer"),
        (["--models", "No Such"], "HINDCAST_MODELS: no model can be named 'No Such'"),
    ],
)
def test_settings_it_cannot_honour_end_it_with_2_and_the_reason(
    arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("hindcast cannot start: ")
    assert reason in shown
