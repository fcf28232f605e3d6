"""A service that is killed in the middle of a load goes on where it acknowledged, as if nothing had happened."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np

from forecasting.artifact import save_artifact
from forecasting.forecaster import summarise
from forecasting.registry import DirectoryRegistry, promote
from forecasting.stream import Observed, Streams
from tests.conftest import free_port
from tests.processes import Process, running
from tests.service.conftest import build_forecaster
from tests.service.streams.conftest import LSTM, row, walk

ROOT = Path(__file__).parents[2]
SERIES = 12
WALKS = np.array([walk(4000, i) for i in range(SERIES)])
HOUR = 3_600_000_000
START = np.datetime64("2024-01-01", "us").astype(np.int64)


@contextmanager
def serving(tmp_path: Path) -> Iterator[tuple[Process, httpx.Client]]:
    """Run a service whose journal is so small that snapshots are taken all the time."""
    port = free_port()
    environment = {
        "HINDCAST_HOME": str(tmp_path / "home"),
        "HINDCAST_REGISTRY_URI": str(tmp_path / "registry"),
        "HINDCAST_LEDGER_URL": "off",
        "HINDCAST_STREAM_JOURNAL_BYTES": "4096",
        "HINDCAST_STREAM_MEMORY_BYTES": str(64 * 1024),
    }
    command = [sys.executable, "-m", "service", "--port", str(port)]
    address = f"http://127.0.0.1:{port}"
    with (
        running(command, tmp_path / "service.log", environment, cwd=ROOT) as process,
        httpx.Client(base_url=address, timeout=30) as client,
    ):
        process.wait_for_http(f"{address}/health/ready")
        yield process, client


def send(client: httpx.Client, step: int) -> dict[str, object]:
    rows = [row(f"s{i}", step, float(WALKS[i, step])) for i in range(SERIES)]
    answer = client.post("/v1/observe", json={"model": "pump", "observations": rows, "level": []})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def load_until_killed(process: Process, client: httpx.Client, first: int, seconds: float) -> int:
    """Send step after step until the process is killed; return the first step that was not acknowledged."""
    threading.Timer(seconds, process.kill).start()
    step = first
    try:
        while step < 3999:
            send(client, step)
            step += 1
    except httpx.TransportError:
        pass
    return step


def test_what_was_acknowledged_before_the_kill_is_all_there(tmp_path: Path) -> None:
    forecaster = build_forecaster("pump", "h", LSTM)
    save_artifact(forecaster, tmp_path / "artifact")
    registry = DirectoryRegistry(tmp_path / "registry")
    promote(registry, "pump", registry.publish("pump", tmp_path / "artifact", {}).version)
    with serving(tmp_path) as (process, client):
        step = load_until_killed(process, client, 0, 0.8)
    assert step > 20
    with serving(tmp_path) as (_, client):
        shown = send(client, step)
    streams = Streams(forecaster, capacity=SERIES)
    slots = np.arange(SERIES)
    for t in range(step + 1):
        streams.observe(Observed(slots, np.full(SERIES, START + t * HOUR), WALKS[:, t]))
        streams.settle(slots)
    forecasts = shown["forecasts"]
    assert isinstance(forecasts, list)
    assert [forecast["status"] for forecast in forecasts] == ["ok"] * SERIES
    columns = summarise(streams.forecast(slots), forecaster.spec.quantiles, ())
    means_BH = np.array([forecast["mean"] for forecast in forecasts])
    np.testing.assert_allclose(means_BH, columns["mean"], rtol=1e-6)
