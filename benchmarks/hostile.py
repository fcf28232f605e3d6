"""What thousands of idle connections cost the service, and whether it still answers others in time.

The service is a process of its own; this one holds the connections. A silent one says nothing at all, a begun one
has sent half of the head of a request and stops. Every connection is a file on either side: see `ulimit -n`.
"""

import os
import re
import resource
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles

import httpx
import torch

from benchmarks.recording import build_body, publish_model, wait_until_ready
from benchmarks.report import OURS, Report, build_parser, finish, say

KINDS = {"silent": b"", "begun": b"POST /v1/forecast HTTP/1.1\r\nHost: x\r\nContent-Type: "}
SPARE = 500
"""Files a process needs besides connections."""
REQUESTS = 500
SETTLE_SECONDS = 60.0


@dataclass(frozen=True)
class Service:
    """A service process, and a client of it."""

    client: httpx.Client
    pid: int

    @property
    def resident(self) -> int:
        """Return its memory in bytes."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return 1024 * int(re.findall(r"VmRSS:\s+(\d+)", status)[0])

    @property
    def files(self) -> int:
        """Return how many files it has open, connections among them."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))  # noqa: PTH208

    @property
    def threads(self) -> int:
        """Return how many threads it has."""
        return len(os.listdir(f"/proc/{self.pid}/task"))  # noqa: PTH208

    @property
    def address(self) -> tuple[str, int]:
        """Return where it listens."""
        port = self.client.base_url.port
        if port is None:
            raise ValueError("the service has no port")
        return self.client.base_url.host, port


def main(argv: Sequence[str]) -> None:
    """Run the benchmark."""
    parser = build_parser("hostile", "Idle connections: memory, and latency for everybody else.")
    parser.add_argument("--connections", type=int, default=10_000, help="idle connections (%(default)s)")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    count = 500 if arguments.quick else arguments.connections
    allow_files(count)
    report = Report()
    with tempfile.TemporaryDirectory() as folder, serve(Path(folder)) as service:
        for kind in KINDS:
            measure(report, service, kind, count)
    finish(report, "hostile", argv, arguments.out)


def allow_files(count: int) -> None:
    """Raise this process' limit of open files, and that of those it starts, to what is needed.

    Raises:
        ValueError: the machine does not allow it.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if count + SPARE > hard:
        raise ValueError(f"{count} connections need {count + SPARE} open files; ulimit -n allows {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, count + SPARE), hard))


@contextmanager
def serve(folder: Path) -> Iterator[Service]:
    """Run a service with one model; yield it once it answers."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("HINDCAST_", "OTEL_"))},
        "HINDCAST_HOME": str(folder / "home"),
        "HINDCAST_REGISTRY_URI": str(publish_model(folder)),
        "HINDCAST_LEDGER_URL": "off",
        "HINDCAST_PORT": str(port),
        "HINDCAST_LOG_LEVEL": "error",
        "HINDCAST_DRAIN_SECONDS": "0",
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "service"], env=environment, cwd=Path(__file__).parent.parent
    )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            wait_until_ready(client)
            yield Service(client, process.pid)
    finally:
        process.terminate()
        process.wait(timeout=60)


def measure(report: Report, service: Service, kind: str, count: int) -> None:
    """Hold idle connections of a kind, ask for forecasts meanwhile, and see what is left afterwards."""
    case = f"{count} {kind} connections"
    say(case)
    ask(service.client, REQUESTS)
    files, memory, alone = service.files, service.resident, ask(service.client, REQUESTS)
    began = time.perf_counter()
    with ExitStack() as held:
        for _ in range(count):
            connection = held.enter_context(socket.create_connection(service.address, timeout=10))
            connection.sendall(KINDS[kind])
        opened = time.perf_counter() - began
        meanwhile = ask(service.client, REQUESTS)
        open_now, grown = service.files - files, service.resident - memory
    report.add(case, OURS, "seconds to open them", opened)
    report.add(case, OURS, "of them open after the requests", open_now)
    report.add(case, OURS, "KiB of the service's memory each", grown / count / 1024)
    for name, taken in (("before", alone), ("meanwhile", meanwhile)):
        report.add(case, OURS, f"ms, median {name}", median(taken))
        report.add(case, OURS, f"ms, p99 {name}", quantiles(taken, n=100)[98])
    wait_for_files(service, files)
    report.add(case, OURS, "files left open afterwards", service.files - files)
    report.add(case, OURS, "MiB more than before, afterwards", (service.resident - memory) / 1024**2)


def ask(client: httpx.Client, requests: int) -> list[float]:
    """Ask for forecasts one after the other; return the milliseconds each took."""
    body, taken = build_body(1), []
    for _ in range(requests):
        began = time.perf_counter()
        answer = client.post("/v1/forecast", content=body, headers={"content-type": "application/json"})
        answer.raise_for_status()
        taken.append(1000 * (time.perf_counter() - began))
    return taken


def wait_for_files(service: Service, files: int) -> None:
    """Wait for the service to notice that its connections were closed."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while service.files > files and time.monotonic() < deadline:
        time.sleep(0.05)


if __name__ == "__main__":
    main(sys.argv[1:])
