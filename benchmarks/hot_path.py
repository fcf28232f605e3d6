"""Where the time of a small forecast goes: processor time by stage, inside one process, without sockets.

The application is called as a server would call it; the ledger is off, so that only the way of the request is
measured. An empty FastAPI endpoint called the same way is the ceiling.
"""

import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fastapi import FastAPI, Request, Response

from benchmarks.recording import INPUT_SIZE, publish_model
from benchmarks.report import Report, build_parser, finish
from service.app import create_app
from service.histories import prepare
from service.parsing import parse_request
from service.runtime import Runtime
from service.settings import ServiceSettings

N_BODIES = 64


def main(argv: Sequence[str]) -> None:
    """Run the benchmark."""
    parser = build_parser("hot_path", "Processor time of a small forecast, by stage.")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    report = Report()
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(measure(report, Path(folder), 100 if arguments.quick else 2000))
    finish(report, "hot_path", argv, arguments.out)


async def measure(report: Report, folder: Path, n: int) -> None:
    """Time the stages on their own, and whole requests alone and 32 at a time."""
    settings = ServiceSettings(home=folder / "home", registry_uri=str(publish_model(folder)), ledger_url="off")
    app, bodies = create_app(settings), build_bodies()
    async with app.router.lifespan_context(app):
        runtime: Runtime = app.state.runtime
        while runtime.slots.missing():  # noqa: ASYNC110  (nothing tells)
            await asyncio.sleep(0.05)
        await call_many(app, "/v1/forecast", bodies, 8, 400)
        for stage, taken in time_stages(runtime, bodies, n).items():
            report.add("stages", "Hindcast", f"{stage}, us", taken)
        for at_a_time in (1, 32):
            case = f"whole request, {at_a_time} at a time"
            for system, asked, path in (("Hindcast", app, "/v1/forecast"), ("empty FastAPI endpoint", EMPTY, "/")):
                taken = await time_async(partial(call_many, asked, path, bodies, at_a_time, n))
                report.add(case, system, "us", 1e6 * taken / n)


def build_bodies() -> list[bytes]:
    """Return requests that differ in their values and their time."""
    generator = np.random.default_rng(5)
    series = [
        {"unique_id": f"pump-{i}", "start": f"2024-01-{1 + i % 28:02d}T{i % 24:02d}:00", "y": walk}
        for i in range(N_BODIES)
        if (walk := (50 + generator.normal(size=INPUT_SIZE).cumsum()).round(3).tolist())
    ]
    return [json.dumps({"model": "pump", "h": 24, "level": [80, 95], "series": [one]}).encode() for one in series]


def time_stages(runtime: Runtime, bodies: Sequence[bytes], n: int) -> dict[str, float]:
    """Return the microseconds of each stage on its own."""
    settings, model = runtime.settings, runtime.model("pump")
    requests = [parse_request(body, settings) for body in bodies]
    windows_BL = np.concatenate([prepare(request, model, settings).y_BL for request in requests])
    return {
        "parse": time_each(lambda i: parse_request(bodies[i % N_BODIES], settings), n),
        "prepare": time_each(lambda i: prepare(requests[i % N_BODIES], model, settings).y_BL, n),
        "network, 1 window": time_each(lambda _: model.forecaster.predict(windows_BL[:1]), n // 4),
        "network, a window of 32": time_each(lambda _: model.forecaster.predict(windows_BL[:32]), n // 8) / 32,
    }


def time_each(work: Callable[[int], object], n: int) -> float:
    """Return the microseconds of processor time that one of many calls takes; the best of three rounds."""
    rounds = []
    for _ in range(3):
        began = time.thread_time()
        for i in range(n):
            work(i)
        rounds.append(time.thread_time() - began)
    return 1e6 * min(rounds) / n


async def time_async(work: Callable[[], Awaitable[None]]) -> float:
    """Return the seconds of processor time of this thread; the best of three rounds."""
    rounds = []
    for _ in range(3):
        began = time.thread_time()
        await work()
        rounds.append(time.thread_time() - began)
    return min(rounds)


EMPTY = FastAPI()


@EMPTY.post("/")
async def _empty(request: Request) -> Response:
    await request.body()
    return Response(b"x" * 3000, media_type="application/json")


async def call_many(app: FastAPI, path: str, bodies: Sequence[bytes], at_a_time: int, n: int) -> None:
    """Call an application as so many clients would, each one request after the other."""

    async def call_some(first: int) -> None:
        for i in range(first, n, at_a_time):
            await call(app, path, bodies[i % len(bodies)])

    await asyncio.gather(*(call_some(first) for first in range(at_a_time)))


async def call(app: FastAPI, path: str, body: bytes) -> None:
    """Call an application with one request, as a server would.

    Raises:
        ValueError: the answer is not 200.
    """
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())],
        "client": ("127.0.0.1", 50000),
        "server": ("127.0.0.1", 8000),
    }
    statuses: list[int] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:  # noqa: ANN401
        statuses.append(message.get("status", 200))

    await app(scope, receive, send)
    if statuses[0] != 200:
        raise ValueError(f"{path} answered {statuses[0]}")


if __name__ == "__main__":
    main(sys.argv[1:])
