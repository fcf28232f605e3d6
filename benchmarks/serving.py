"""Forecasts a second and latency over HTTP: Hindcast beside what people would write or reach for.

Every server is a process of its own behind a real socket, asked by wrk from the same machine with many different
bodies. They are asked in turns, in alternating order, and stand still between them, for some are never idle.
Each is checked once for the right answer before anything is timed.
"""

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch

from benchmarks.open_loop import ask_at_rate
from benchmarks.peer_process import ROOT, find_peers_python
from benchmarks.peers.serving_network import COLUMNS, BareNetwork, forecast
from benchmarks.recording import INPUT_SIZE, publish_model
from benchmarks.report import Report, build_parser, finish, say
from forecasting.forecaster import Forecaster, summarise
from forecasting.registry import DirectoryRegistry, load_version

CONNECTIONS = (1, 8, 32, 128)
N_BODIES = 512
MANY = 1000
NEEDS_WRK = "this benchmark asks with wrk, which is not installed: `apt-get install wrk` (Debian, Ubuntu)"
HINDCAST, UNRECORDED, TWO = "Hindcast", "Hindcast, nothing recorded", "Hindcast, 2 workers"
EMPTY, FORWARD, LITSERVE, MLFLOW = (
    "empty FastAPI endpoint",
    "FastAPI, a pass a request",
    "LitServe",
    "mlflow serve",
)


@dataclass
class Server:
    """A server process, its address, and what it is sent."""

    name: str
    process: subprocess.Popen[bytes]
    port: int
    path: str
    bodies: Path

    @property
    def url(self) -> str:
        """Return the address forecasts are asked of."""
        return f"http://127.0.0.1:{self.port}{self.path}"

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process and to all it started."""
        for pid in family_of(self.process.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Let it run for as long as it is asked."""
        self.signal(signal.SIGCONT)
        try:
            yield
        finally:
            self.signal(signal.SIGSTOP)


def main(argv: Sequence[str]) -> int:
    """Run the benchmark."""
    parser = build_parser("serving", "Requests a second and latency of the service beside other servers.")
    parser.add_argument("--rounds", type=int, default=3, help="turns of every case (%(default)s)")
    parser.add_argument("--seconds", type=float, default=3.0, help="length of a turn (%(default)s)")
    parser.add_argument(
        "--peers-python", type=Path, metavar="PYTHON", help="interpreter of the peers' environment"
    )
    arguments = parser.parse_args(argv)
    if shutil.which("wrk") is None:
        print(NEEDS_WRK, file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    rounds, seconds = (1, 0.5) if arguments.quick else (arguments.rounds, arguments.seconds)
    report = Report()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        servers = start_all(Path(folder), stack, find_peers_python(arguments.peers_python))
        measure_throughput(report, servers, rounds, seconds)
        measure_open_loop(report, servers[HINDCAST], 2.0 if arguments.quick else 15.0)
        measure_many_series(report, servers[HINDCAST], 3 if arguments.quick else 15)
    add_expectations(report)
    finish(report, "serving", argv, arguments.out)
    return 0


def start_all(folder: Path, stack: ExitStack, peers: Path | None) -> dict[str, Server]:
    """Start every server, check what each answers, and make all stand still."""
    registry = publish_model(folder)
    ours, inputs = write_bodies(folder)
    home = {"HINDCAST_HOME": str(folder / "home"), "HINDCAST_REGISTRY_URI": str(registry)}
    alone, script = (
        {"HINDCAST_HOME": str(folder / "off"), "HINDCAST_LEDGER_URL": "off"},
        "benchmarks/peers/serving_",
    )
    two = {"HINDCAST_HOME": str(folder / "two"), "HINDCAST_WORKERS": "2"}
    service, path, own = ("-m", "service"), "/v1/forecast", sys.executable
    plan: list[tuple[str, tuple[str, ...], str, Path, dict[str, str]]] = [
        (HINDCAST, (own, *service), path, ours, home),
        (UNRECORDED, (own, *service), path, ours, {**home, **alone}),
        (EMPTY, (own, f"{script}fastapi.py", "empty"), "/forecast", ours, {}),
        (FORWARD, (own, f"{script}fastapi.py", "forward"), "/forecast", ours, {}),
    ]
    if not torch.cuda.is_available():
        plan.insert(2, (TWO, (own, *service), path, ours, {**home, **two}))
    if peers is not None:
        plan.append((LITSERVE, (str(peers), f"{script}litserve.py"), "/predict", ours, {}))
        plan.append((MLFLOW, (str(peers), f"{script}mlflow.py"), "/invocations", inputs, {}))
    servers = {}
    for name, command, at, bodies, settings in plan:
        say(f"starting {name}")
        server = stack.enter_context(run_server(name, command, at, bodies, settings, folder))
        check(server, registry)
        server.signal(signal.SIGSTOP)
        servers[name] = server
    return servers


@contextmanager
def run_server(
    name: str, command: Sequence[str], path: str, bodies: Path, settings: dict[str, str], folder: Path
) -> Iterator[Server]:
    """Run a server in a process group of its own, and end the whole group afterwards."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "SERVING_FOLDER": str(folder),
        "HINDCAST_PORT": str(port),
        "HINDCAST_LOG_LEVEL": "warning",
        **settings,
    }
    told = [] if settings else [str(port)]
    with (folder / f"{re.sub(r'[^a-z0-9]+', '-', name.lower())}.log").open("wb") as log:
        process = subprocess.Popen(  # noqa: S603  (servers of our own)
            [*command, *told], env=environment, cwd=ROOT, stdout=log, stderr=log, start_new_session=True
        )
        server = Server(name, process, port, path, bodies)
        try:
            wait_until_it_answers(server, Path(log.name))
            yield server
        finally:
            # They have nothing to lose, and some stand still.
            server.signal(signal.SIGKILL)
            process.wait(timeout=30)


def family_of(ancestor: int) -> list[int]:
    """Return a process and all that descend from it, whatever group they are in."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(stat.parent.name))
    family = [ancestor]
    for pid in family:
        family.extend(children.get(pid, []))
    return family


def write_bodies(folder: Path) -> tuple[Path, Path]:
    """Write the bodies all servers are sent, and the same histories as MLflow wants them, a line each."""
    generator = np.random.default_rng(7)
    ours, inputs = folder / "bodies.txt", folder / "inputs.txt"
    histories = [build_history(generator) for _ in range(N_BODIES)]
    ours.write_text("\n".join(json.dumps(build_body(i, y)) for i, y in enumerate(histories)) + "\n")
    inputs.write_text("\n".join(json.dumps({"inputs": [y]}) for y in histories) + "\n")
    return ours, inputs


def build_history(generator: np.random.Generator) -> list[float]:
    """Return a random walk of three decimals, as sensors send them."""
    walk: list[float] = (50 + generator.normal(size=INPUT_SIZE).cumsum()).round(3).tolist()
    return walk


def build_body(i: int, y: list[float]) -> dict[str, Any]:
    """Return a request for the forecast of one series."""
    start = f"2024-{1 + i % 12:02d}-{1 + i % 28:02d}T{i % 24:02d}:00"
    series = [{"unique_id": f"pump-{i}", "start": start, "y": y}]
    return {"model": "pump", "h": 24, "level": [80, 95], "series": series}


def wait_until_it_answers(server: Server, log: Path, seconds: float = 90.0) -> None:
    """Send a forecast until it is answered; MLflow takes its time."""
    body = server.bodies.read_text().partition("\n")[0]
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and server.process.poll() is None:
        try:
            if httpx.post(server.url, content=body, headers=JSON, timeout=10).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise TimeoutError(f"{server.name} does not answer:\n{log.read_text()[-2000:]}")


JSON = {"content-type": "application/json"}


def check(server: Server, registry: Path) -> None:
    """Compare what a server says of several histories with the network called here.

    Raises:
        ValueError: it says something else.
    """
    if server.name == EMPTY:
        return
    for body in server.bodies.read_text().splitlines()[:5]:
        asked, said = json.loads(body), httpx.post(server.url, content=body, headers=JSON, timeout=30).json()
        y = asked["inputs"][0] if "inputs" in asked else asked["series"][0]["y"]
        told = (said.get("forecasts") or said["predictions"])[0]
        expected = expect(server.name, y, registry)
        for column in COLUMNS:
            if not np.allclose(told[column], expected[column], rtol=1e-4):
                raise ValueError(f"{server.name} answers {column} wrongly")


def expect(name: str, y: list[float], registry: Path) -> dict[str, Any]:
    """Return the columns that are right."""
    if not name.startswith("Hindcast"):
        return forecast(BareNetwork(), [y])[0]
    forecaster = load_pump(registry)
    columns = summarise(forecaster.predict(np.array([y])), forecaster.spec.quantiles, (80, 95))
    return {name: column_BH[0] for name, column_BH in columns.items()}


def load_pump(registry: Path) -> Forecaster:
    """Load the model that Hindcast serves."""
    directory = DirectoryRegistry(registry)
    return load_version(directory, directory.resolve("pump", "champion"))


def measure_throughput(report: Report, servers: dict[str, Server], rounds: int, seconds: float) -> None:
    """Ask every server in turns with every number of connections, and add the medians of the turns."""
    for server in servers.values():
        with server.turn():
            ask(server, 8, min(seconds, 1.0))
    for connections in CONNECTIONS:
        case = f"{connections} connection{'s' * (connections > 1)}"
        say(case)
        found: dict[str, list[dict[str, float]]] = {name: [] for name in servers}
        for turn in range(rounds):
            for name in list(servers)[:: -1 if turn % 2 else 1]:
                with servers[name].turn():
                    found[name].append(ask(servers[name], connections, seconds))
        for name, turns in found.items():
            for metric in ("requests/s", "p50, ms", "p99, ms"):
                report.add_median(case, name, metric, [turn[metric] for turn in turns])
            for metric in ("refused", "broken"):
                report.add(case, name, metric, sum(turn[metric] for turn in turns))


def ask(server: Server, connections: int, seconds: float) -> dict[str, float]:
    """Let wrk ask for some seconds, each connection one request after the other."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--timeout", "10s"]
    done = subprocess.run(  # noqa: S603  (wrk)
        [*command, "-s", "benchmarks/peers/serving.lua", server.url],
        env={**os.environ, "SERVING_BODIES": str(server.bodies)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    figures = json.loads(done.stdout.partition("FIGURES ")[2].partition("\n")[0])
    return {
        "requests/s": (figures["requests"] - figures["refused"]) / figures["seconds"],
        "p50, ms": figures["p50"],
        "p99, ms": figures["p99"],
        "refused": figures["refused"],
        "broken": figures["broken"],
    }


def measure_open_loop(report: Report, server: Server, seconds: float) -> None:
    """Ask at half of the measured capacity, whether answers come or not, as callers do who know of no other."""
    capacity = max(report.value(f"{n} connections", HINDCAST, "requests/s") or 0 for n in CONNECTIONS[1:])
    case = "half of capacity, open loop"
    say(f"{case}: {capacity / 2:.0f} requests/s")
    bodies = [line.encode() for line in server.bodies.read_text().splitlines()]
    with server.turn():
        asyncio.run(ask_at_rate(server.port, server.path, bodies, capacity / 2, min(seconds, 2.0)))
        found = asyncio.run(ask_at_rate(server.port, server.path, bodies, capacity / 2, seconds))
    for metric, value in found.items():
        report.add(case, HINDCAST, metric, value)


def measure_many_series(report: Report, server: Server, turns: int) -> None:
    """Ask for many series in one request, and compare with the forward pass of as many windows alone."""
    case, generator = f"{MANY} series in one request", np.random.default_rng(8)
    say(case)
    histories = [build_history(generator) for _ in range(MANY)]
    series = [build_body(i, y)["series"][0] | {"unique_id": f"pump-{i}"} for i, y in enumerate(histories)]
    body = json.dumps({"model": "pump", "h": 24, "level": [80, 95], "series": series}).encode()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network, windows_BL = BareNetwork().to(device), torch.tensor(histories)
    asked, alone = [], []
    with server.turn(), httpx.Client(timeout=60) as client, torch.inference_mode():
        for _ in range(turns + 1):
            asked.append(timed(lambda: client.post(server.url, content=body, headers=JSON).raise_for_status()))
            alone.append(timed(lambda: network(windows_BL.to(device)).cpu()))
    report.add_median(case, HINDCAST, "series/s", [MANY / taken for taken in asked[1:]])
    report.add_median(case, "forward pass alone", "series/s", [MANY / taken for taken in alone[1:]])


def timed(work: Any) -> float:  # noqa: ANN401
    """Return the seconds that work takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def add_expectations(report: Report) -> None:
    """Add a row for each expectation: the ratio found, and in its name the one expected; say which hold."""
    at_1, at_32, many = "1 connection", "32 connections", f"{MANY} series in one request"
    ratios = (
        (at_32, "requests/s", EMPTY, 0.8),
        (at_32, "requests/s", MLFLOW, 10.0),
        (at_32, "requests/s", LITSERVE, 4.0),
        (at_1, "requests/s", FORWARD, 3.0),
        (many, "series/s", "forward pass alone", 0.7),
    )
    for case, metric, other, least in ratios:
        ours, theirs = report.value(case, HINDCAST, metric), report.value(case, other, metric)
        if ours and theirs:
            expect_least(report, f"{case}: times {other}", ours / theirs, least)
    p99 = report.value("half of capacity, open loop", HINDCAST, "p99, ms")
    if p99 is not None:
        say(f"{'holds' if p99 < 20 else 'MISSED'}: open loop p99 {p99:.1f} ms, expected under 20")


def expect_least(report: Report, what: str, found: float, least: float) -> None:
    """Add a ratio beside the least expected of it."""
    say(f"{'holds' if found >= least else 'MISSED'}: {what}: {found:.2f}, expected at least {least:g}")
    report.add("expectations", HINDCAST, f"{what} (expected {least:g})", found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
