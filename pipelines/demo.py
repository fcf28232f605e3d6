"""The demo: the whole way from data to a forecast over HTTP, on data that ships inside packages."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from forecasting.errors import HindcastError
from forecasting.panel import Panel
from pipelines.console import out, print_outcome, print_table, reporting
from pipelines.retrain import retrain
from pipelines.run import Run, new_run
from pipelines.settings import PipelineSettings

JOBS = Path(__file__).parent.parent / "jobs"
DEMO_JOBS = ("sp500", "co2")
START_SECONDS = 60.0
HOST = "127.0.0.1"


def run_demo(settings: PipelineSettings, *, port: int, once: bool) -> None:
    """Train, promote, serve and forecast; serve on until Ctrl-C unless `once`.

    Raises:
        HindcastError: the port is taken, or the service did not start, or did not answer.
    """
    _require_free(port)
    started = time.perf_counter()
    panels = {name: _train(JOBS / f"{name}.yaml", settings) for name in DEMO_JOBS}
    with _service(settings, port) as address:
        for name, (panel, history) in panels.items():
            _ask(settings, address, name, panel, history)
        _print_addresses(settings, address, time.perf_counter() - started)
        if not once:
            _wait()


def _require_free(port: int) -> None:
    """Look before the training: whoever holds the port would answer in the service's place."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise HindcastError(f"port {port} of {HOST} is taken; choose another with --port") from error


def _train(job_file: Path, settings: PipelineSettings) -> tuple[Panel, int]:
    """Retrain a job; return its panel and the history its champion needs."""
    with reporting() as reporter:
        run: Run = new_run(job_file, settings, reporter)
        try:
            outcome = retrain(run)
            panel = run.panel
        finally:
            run.discard()
    print_outcome(outcome, run.job.gate.metric)
    out.print()
    return panel, run.history_needed


@contextmanager
def _service(settings: PipelineSettings, port: int) -> Iterator[str]:
    """Run the service as a process of its own until the block ends."""
    environment = {
        **os.environ,
        "HINDCAST_HOME": str(settings.home.absolute()),
        "HINDCAST_REGISTRY_URI": settings.registry,
        "HINDCAST_HOST": HOST,
        "HINDCAST_PORT": str(port),
    }
    address = f"http://{HOST}:{port}"
    log_path = settings.home / "service.log"
    with log_path.open("w") as log_file:
        process = subprocess.Popen(
            [sys.executable, "-m", "service"], env=environment, stdout=log_file, stderr=subprocess.STDOUT
        )
        try:
            _wait_until_ready(address, process, log_path)
            yield address
        finally:
            process.terminate()
            process.wait(timeout=30)


def _wait_until_ready(address: str, process: "subprocess.Popen[bytes]", log_path: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            tail = "\n".join(log_path.read_text().splitlines()[-5:])
            raise HindcastError(f"the service stopped at once (exit {process.returncode}):\n{tail}")
        try:
            if httpx.get(f"{address}/health/ready", timeout=2).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise HindcastError(f"the service was not ready after {START_SECONDS:.0f} s; see {log_path}")


def _ask(settings: PipelineSettings, address: str, model: str, panel: Panel, history: int) -> None:
    """Ask for a forecast of every series and print it with its intervals; keep the request to ask again."""
    request = _request(model, panel, history)
    (settings.home / f"{model}-request.json").write_text(json.dumps(request))
    answer = httpx.post(f"{address}/v1/forecast", json=request, timeout=30)
    if answer.status_code != 200:
        raise HindcastError(f"the service answered {answer.status_code}: {answer.text[:500]}")
    body = answer.json()
    for forecast in body["forecasts"]:
        columns = [key for key in forecast if key in ("ds", "mean") or key[:3] in ("lo-", "hi-")]
        rows = [[_cell(v) for v in row] for row in zip(*(forecast[key] for key in columns), strict=True)]
        title = f"{model} version {body['version']}: {forecast['unique_id']} from {forecast['cutoff']}"
        print_table(f"{title} ({forecast['status']})", columns, rows)
    out.print()


def _request(model: str, panel: Panel, history: int) -> dict[str, Any]:
    series = []
    for unique_id, y_T, last in zip(panel.unique_ids, panel.y_NT, panel.spans()[1], strict=True):
        first = max(0, int(last) + 1 - history)
        y = [None if np.isnan(v) else float(v) for v in y_T[first : last + 1]]
        series.append({"unique_id": unique_id, "start": panel.ds[first].strftime("%Y-%m-%d"), "y": y})
    return {"model": model, "series": series}


def _cell(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:,.2f}"


def _print_addresses(settings: PipelineSettings, address: str, seconds: float) -> None:
    request = settings.home / f"{DEMO_JOBS[-1]}-request.json"
    out.print(f"from data to forecast in {seconds:.0f} s", markup=False)
    out.print(f"API docs:   {address}/docs", markup=False)
    out.print(
        f"ask again:  curl {address}/v1/forecast -H 'content-type: application/json' -d @{request}", markup=False
    )
    out.print(
        f"MLflow UI:  {Path(sys.executable).parent / 'mlflow'} ui --backend-store-uri {settings.tracking}",
        markup=False,
    )


def _wait() -> None:
    out.print("serving; Ctrl-C stops", markup=False)
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        out.print("stopped", markup=False)
