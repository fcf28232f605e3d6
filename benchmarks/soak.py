"""What a long load does to the service: models swapped under it, more asked of it than it can give; its memory.

The service is a process of its own, over a real socket. In the first case the alias moves every second while every
connection asks as fast as it is answered, and each answer is compared with what the two versions say: it must be
wholly one of them. In the second, several times as many connections ask as may be in flight, and what is too much
must be turned away at once. The memory of the process is read every second.
"""

import asyncio
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import quantiles

import httpx
import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.recording import wait_until_ready
from benchmarks.report import Report, build_parser, finish, say
from forecasting.artifact import save_artifact
from forecasting.forecaster import Forecaster, summarise
from forecasting.registry import CHAMPION, DirectoryRegistry
from forecasting.spec import ForecasterSpec, RecurrentSpec, quantiles_for

FloatArray = NDArray[np.float64]

INPUT_SIZE, HORIZON, HIDDEN, SERIES = 96, 24, 64, 4
MAX_IN_FLIGHT = 16
SWAP, OVERLOAD = "alias moved every second", "four times as many as may be in flight"
CLOSE = 1e-6
"""Largest difference to what a version says, relative to its values: sums round otherwise in other company."""


@dataclass
class Tally:
    """What a load came to."""

    statuses: Counter[int] = field(default_factory=Counter)
    versions: Counter[str] = field(default_factory=Counter)
    mixed: int = 0
    """Answers that are not wholly those of the version they name."""
    broken: int = 0
    """Connections that were cut off."""
    moves: int = 0
    seconds: dict[int, list[float]] = field(default_factory=dict)
    """Of every request, by status."""
    resident: list[float] = field(default_factory=list)
    """MiB of memory, a second each."""

    @property
    def failed(self) -> int:
        """Return how many requests were neither answered nor turned away."""
        return self.broken + sum(n for status, n in self.statuses.items() if status not in (200, 503))


def main(argv: Sequence[str]) -> None:
    """Run the soak."""
    parser = build_parser("soak", "Swaps under load, overload, and memory over time.")
    parser.add_argument("--seconds", type=float, default=60.0, help="length of a case (%(default)s)")
    parser.add_argument("--connections", type=int, default=16, help="connections of the first case (%(default)s)")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    report = Report()
    for case, tally in run_cases(arguments):
        add_tally(report, case, tally)
    finish(report, "soak", argv, arguments.out)


def run_cases(arguments: Namespace) -> Iterator[tuple[str, Tally]]:
    """Yield what each case came to."""
    seconds = 3.0 if arguments.quick else arguments.seconds
    with tempfile.TemporaryDirectory() as name:
        registry, expected = publish_versions(Path(name))
        with serve(Path(name), registry.root) as (port, pid):
            say(SWAP)
            move = mover(registry, list(expected))
            load = Load(port, pid, seconds, arguments.connections, expected)
            yield SWAP, asyncio.run(load.run(move, seconds / 6 if arguments.quick else 1.0))
        with serve(Path(name), registry.root) as (port, pid):
            say(OVERLOAD)
            load = Load(port, pid, seconds, 4 * MAX_IN_FLIGHT, expected)
            yield OVERLOAD, asyncio.run(load.run(None, 1.0))


def mover(registry: DirectoryRegistry, versions: Sequence[str]) -> Callable[[int], None]:
    """Return a function that points the alias to the versions in turn."""
    return lambda turn: registry.set_alias("pump", CHAMPION, versions[turn % len(versions)])


def histories() -> FloatArray:
    """Return the histories everybody asks for."""
    return 100 + np.random.default_rng(0).normal(size=(SERIES, INPUT_SIZE)).cumsum(axis=1).round(3)


def publish_versions(folder: Path) -> tuple[DirectoryRegistry, Mapping[str, FloatArray]]:
    """Publish two versions of an LSTM, and return what each says of the histories."""
    registry = DirectoryRegistry(folder / "registry")
    spec = ForecasterSpec(
        name="pump",
        freq="h",
        season_length=24,
        horizon=HORIZON,
        quantiles=quantiles_for((80,)),
        level=(80.0,),
        network=RecurrentSpec(kind="lstm", input_size=INPUT_SIZE, hidden_size=HIDDEN),
    )
    expected = {}
    for seed in (1, 2):
        torch.manual_seed(seed)
        forecaster = Forecaster.untrained(spec)
        save_artifact(forecaster, folder / f"artifact-{seed}")
        version = registry.publish("pump", folder / f"artifact-{seed}", {}).version
        expected[version] = summarise(forecaster.predict(histories()), spec.quantiles, [])["mean"]
    registry.set_alias("pump", CHAMPION, "1")
    return registry, expected


@contextmanager
def serve(folder: Path, registry: Path) -> Iterator[tuple[int, int]]:
    """Run a service, and yield its port and its process once it answers."""

    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    settings = {
        "HOME": str(folder / "home"),
        "REGISTRY_URI": str(registry),
        "LEDGER_URL": "off",
        "PORT": str(port),
        "POLL_SECONDS": "0.1",
        "MAX_IN_FLIGHT": str(MAX_IN_FLIGHT),
        "LOG_LEVEL": "error",
        "DRAIN_SECONDS": "0",
    }
    environment = {**os.environ, **{f"HINDCAST_{name}": value for name, value in settings.items()}}
    process = subprocess.Popen(
        [sys.executable, "-m", "service"], env=environment, cwd=Path(__file__).parent.parent
    )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            wait_until_ready(client)
        yield port, process.pid
    finally:
        process.terminate()
        process.wait(timeout=60)


class Load:
    """Connections that ask as fast as they are answered, for so many seconds."""

    def __init__(
        self, port: int, pid: int, seconds: float, connections: int, expected: Mapping[str, FloatArray]
    ) -> None:
        self.tally = Tally()
        self._port, self._pid, self._connections, self._expected = port, pid, connections, expected
        self._seconds = seconds
        series = [
            {"unique_id": f"s{i}", "start": "2024-01-01", "y": y_L.tolist()} for i, y_L in enumerate(histories())
        ]
        body = json.dumps({"model": "pump", "level": [], "series": series}).encode()
        head = "POST /v1/forecast HTTP/1.1\r\nhost: soak\r\ncontent-type: application/json\r\n"
        self._request = f"{head}content-length: {len(body)}\r\n\r\n".encode() + body

    async def run(self, move: Callable[[int], None] | None, pause: float) -> Tally:
        """Ask until the time is over, and move the alias after every pause."""
        end = time.monotonic() + self._seconds
        asking = [asyncio.create_task(self._ask(end)) for _ in range(self._connections)]
        watching = asyncio.create_task(self._watch(end))
        while time.monotonic() + pause < end:
            await asyncio.sleep(pause)
            if move is not None:
                self.tally.moves += 1
                await asyncio.to_thread(move, self.tally.moves)
        await asyncio.gather(*asking, watching)
        return self.tally

    async def _watch(self, end: float) -> None:
        while time.monotonic() < end:
            self.tally.resident.append(resident_mib(self._pid))
            await asyncio.sleep(min(1.0, self._seconds / 10))

    async def _ask(self, end: float) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            while time.monotonic() < end:
                began = time.perf_counter()
                writer.write(self._request)
                status, body = await read_answer(reader)
                self._count(status, body, time.perf_counter() - began)
                if status == 503:  # as its Retry-After says, and not all of them at once
                    await asyncio.sleep(random.uniform(0.5, 1.5))  # noqa: S311
        except (OSError, asyncio.IncompleteReadError):
            self.tally.broken += 1
        finally:
            writer.close()

    def _count(self, status: int, body: bytes, seconds: float) -> None:
        tally = self.tally
        tally.statuses[status] += 1
        tally.seconds.setdefault(status, []).append(seconds)
        if status == 200:
            answer = json.loads(body)
            said = np.array([one["mean"] for one in answer["forecasts"]])
            tally.versions[answer["version"]] += 1
            tally.mixed += not np.allclose(said, self._expected[answer["version"]], rtol=CLOSE)


async def read_answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Return status and body of the next answer of a connection."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    length = int(head.split("content-length:")[1].split("\r\n")[0])
    return int(head.split(" ", 2)[1]), await reader.readexactly(length)


def resident_mib(pid: int) -> float:
    """Return the memory a process holds."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def add_tally(report: Report, case: str, tally: Tally) -> None:
    """Add the figures of a case."""

    def add(metric: str, value: float) -> None:
        report.add(case, "hindcast", metric, value)

    add("requests answered (200)", tally.statuses[200])
    add("turned away (503)", tally.statuses[503])
    add("failed", tally.failed)
    add("answers not wholly of one version", tally.mixed)
    add("times the alias moved", tally.moves)
    for version, n in sorted(tally.versions.items()):
        add(f"answers of version {version}", n)
    for status, seconds in sorted(tally.seconds.items()):
        cuts = quantiles(seconds, n=100) if len(seconds) > 1 else seconds * 99
        add(f"status {status}: median, ms", 1000 * cuts[49])
        add(f"status {status}: 99th percentile, ms", 1000 * cuts[98])
    settled = tally.resident[len(tally.resident) // 5 :] or tally.resident
    add("memory after a fifth of the time, MiB", settled[0])
    add("memory at the end, MiB", settled[-1])
    add("memory at most, MiB", max(tally.resident))


if __name__ == "__main__":
    main(sys.argv[1:])
