"""What keeping forecasts costs whoever asks for them: with a ledger, with one that hangs, without any.

The service is a process of its own and the client another, over a real socket: one connection after the other for
the latency, several at a time for the throughput. The three services stand side by side and are asked in turns,
so that whatever else the machine does falls on all of them. The ledger that hangs is a port that takes connections
and never says a word.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from statistics import median, quantiles
from threading import Thread

import httpx
import torch

from benchmarks.report import Report, build_parser, finish, say
from forecasting.artifact import save_artifact
from forecasting.forecaster import Forecaster
from forecasting.registry import DirectoryRegistry, promote
from forecasting.spec import ForecasterSpec, RecurrentSpec, quantiles_for
from ledger.ledger import open_ledger

INPUT_SIZE, HORIZON, HIDDEN = 96, 24, 64
LEDGERS = ("off", "SQLite", "hanging")
CONNECTIONS = (1, 16)


def main(argv: Sequence[str]) -> None:
    """Run the benchmark."""
    parser = build_parser("recording", "Latency and throughput of the service with and without a ledger.")
    parser.add_argument("--rounds", type=int, default=7, help="turns of every case (%(default)s)")
    parser.add_argument("--seconds", type=float, default=4.0, help="length of a turn (%(default)s)")
    parser.add_argument("--series", type=int, nargs="+", default=[1, 100], help="series of a request (1 100)")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    rounds, seconds = (2, 1.0) if arguments.quick else (arguments.rounds, arguments.seconds)
    report = Report()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        registry = publish_model(Path(folder))
        silent = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=64))
        services = {
            name: stack.enter_context(serve(Path(folder), registry, name, silent.getsockname()[1]))
            for name in LEDGERS
        }
        for n_series in arguments.series:
            measure_case(report, services, n_series, rounds, seconds)
        add_losses(report, services, Path(folder))
    finish(report, "recording", argv, arguments.out)


def publish_model(folder: Path) -> Path:
    """Publish an LSTM as it comes from its seed: what it forecasts costs as much as if it were trained."""
    torch.manual_seed(1)
    spec = ForecasterSpec(
        name="pump",
        freq="h",
        season_length=24,
        horizon=HORIZON,
        quantiles=quantiles_for((80, 95)),
        network=RecurrentSpec(kind="lstm", input_size=INPUT_SIZE, hidden_size=HIDDEN),
    )
    save_artifact(Forecaster.untrained(spec), folder / "artifact")
    registry = DirectoryRegistry(folder / "registry")
    version = registry.publish("pump", folder / "artifact", {})
    promote(registry, "pump", version.version)
    return registry.root


@contextmanager
def serve(folder: Path, registry: Path, ledger: str, silent_port: int) -> Iterator[httpx.Client]:
    """Run a service with this kind of ledger, and yield a client once it answers."""
    home = folder / ledger.lower()
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    urls = {
        "off": "off",
        "SQLite": f"sqlite:///{home}/ledger.db",
        "hanging": f"postgresql://127.0.0.1:{silent_port}/ledger",
    }
    environment = {
        **os.environ,
        "HINDCAST_HOME": str(home),
        "HINDCAST_REGISTRY_URI": str(registry),
        "HINDCAST_LEDGER_URL": urls[ledger],
        "HINDCAST_PORT": str(port),
        "HINDCAST_LOG_LEVEL": "error",
        "HINDCAST_DRAIN_SECONDS": "0",
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "service"], env=environment, cwd=Path(__file__).parent.parent
    )
    limits = httpx.Limits(max_connections=max(CONNECTIONS))
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, limits=limits) as client:
            wait_until_ready(client)
            yield client
    finally:
        process.terminate()
        process.wait(timeout=60)


def wait_until_ready(client: httpx.Client) -> None:
    """Wait for a service to load its model."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            if client.get("/health/ready").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise TimeoutError("the service did not come up")


def measure_case(
    report: Report, services: dict[str, httpx.Client], n_series: int, rounds: int, seconds: float
) -> None:
    """Ask every service in turns, and add the medians of the turns and their ratio to no ledger."""
    body = build_body(n_series)
    for connections in CONNECTIONS:
        case = f"{n_series} series a request, {connections} at a time"
        say(case)
        found: dict[str, list[dict[str, float]]] = {name: [] for name in services}
        for client in services.values():
            load(client, body, connections, 0.5)
        for turn in range(rounds):
            order = list(services) if turn % 2 == 0 else list(services)[::-1]
            for name in order:
                found[name].append(load(services[name], body, connections, seconds))
        for name, turns in found.items():
            for metric in turns[0]:
                report.add_median(case, f"ledger {name}", metric, [turn[metric] for turn in turns])
            for metric in turns[0]:
                # Of the same turn: what the machine did meanwhile fell on both.
                ratios = [turn[metric] / other[metric] for turn, other in zip(turns, found["off"], strict=True)]
                if name != "off":
                    report.add(case, f"ledger {name}", f"{metric}, ratio to no ledger", median(ratios))


def build_body(n_series: int) -> bytes:
    """Return a request for forecasts of series that differ."""
    series = [
        {
            "unique_id": f"pump-{i}",
            "start": "2024-01-01",
            "y": [round(20 + (j * (i + 3)) % 17 / 7, 3) for j in range(96)],
        }
        for i in range(n_series)
    ]
    return json.dumps({"model": "pump", "series": series}).encode()


def load(client: httpx.Client, body: bytes, connections: int, seconds: float) -> dict[str, float]:
    """Ask for some seconds, each connection one request after the other; return rate and latencies."""
    taken: list[float] = []
    until = time.perf_counter() + seconds

    def ask() -> None:
        while (began := time.perf_counter()) < until:
            answer = client.post("/v1/forecast", content=body, headers={"content-type": "application/json"})
            answer.raise_for_status()
            taken.append(1000 * (time.perf_counter() - began))

    cpu, began = read_cpu_seconds(client), time.perf_counter()
    threads = [Thread(target=ask) for _ in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rate = len(taken) / (time.perf_counter() - began)
    cpu = read_cpu_seconds(client) - cpu
    return {
        "requests/s": rate,
        "CPU of the service, ms a request": 1000 * cpu / len(taken),
        "median, ms": median(taken),
        "95th percentile, ms": quantiles(taken, n=20)[-1],
    }


def read_cpu_seconds(client: httpx.Client) -> float:
    """Return the processor time a service has used: what else the machine does is not in it."""
    lines = client.get("/metrics").text.splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("process_cpu_seconds_total "))


def add_losses(report: Report, services: dict[str, httpx.Client], folder: Path) -> None:
    """Add what became of the forecasts, by the services' own count and by that of the ledger."""
    time.sleep(2)
    for name, client in services.items():
        lines = client.get("/metrics").text.splitlines()
        counts = {
            line.split('"')[1]: float(line.rsplit(" ", 1)[1])
            for line in lines
            if line.startswith("hindcast_forecasts_kept_total{")
        }
        series = sum(
            float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("hindcast_series_forecast_total{")
        )
        report.add("all of it", f"ledger {name}", "forecasts answered", series)
        for outcome, count in sorted(counts.items()):
            report.add("all of it", f"ledger {name}", f"forecasts {outcome}", count)
    with (
        closing(open_ledger(f"sqlite:///{folder}/sqlite/ledger.db")) as ledger,
        ledger.engine.connect() as connection,
    ):
        kept = connection.exec_driver_sql("SELECT count(*) FROM forecasts").scalar()
        report.add("all of it", "ledger SQLite", "forecasts in the ledger", float(kept or 0))


if __name__ == "__main__":
    main(sys.argv[1:])
