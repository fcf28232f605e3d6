"""What is around every request costs: its id, its stages, its metrics, its log line; in processor time.

The layer is called as the server calls it, around an application that does nothing, so that the difference to that
application alone is its cost. Lines are written to /dev/null: what a terminal or a collector costs comes on top.
"""

import asyncio
import logging
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from benchmarks.report import OURS, Report, build_parser, finish, say
from service.journey import STAGES, end_stage
from service.logs import JsonFormatter, RequestLog, TextFormatter
from service.middleware import RequestMiddleware
from service.telemetry import Telemetry
from service.tracing import Tracing

MICRO = 1e6


@dataclass(frozen=True)
class Route:
    """What a router leaves in the scope."""

    path: str = "/v1/forecast"


def main(argv: Sequence[str]) -> None:
    """Run the benchmark."""
    parser = build_parser("telemetry", "Processor time of what is around a request.")
    parser.add_argument("--requests", type=int, default=20_000, help="requests of a turn (%(default)s)")
    parser.add_argument("--rounds", type=int, default=7, help="turns of every case (%(default)s)")
    arguments = parser.parse_args(argv)
    requests, rounds = (1000, 2) if arguments.quick else (arguments.requests, arguments.rounds)
    report = Report()
    for case, application in applications().items():
        say(case)
        taken = [asyncio.run(measure(application, requests)) for _ in range(rounds)]
        # The least: whatever else the machine did, the request did not.
        report.add(case, OURS, "us of processor time a request", min(taken))
    finish(report, "telemetry", argv, arguments.out)


def applications() -> dict[str, ASGIApp]:
    """Return what is measured, by name."""
    nothing = Path(os.devnull).open("w")  # noqa: SIM115  (open as long as the process)
    root = logging.getLogger()
    root.setLevel(logging.INFO)

    def wrapped(logged: RequestLog, formatter: logging.Formatter | None = None) -> ASGIApp:
        layer = RequestMiddleware(answer, Telemetry(), Tracing(), logged)
        handler = logging.StreamHandler(nothing)
        handler.setFormatter(formatter)

        async def call(scope: Scope, receive: Receive, send: Send) -> None:
            root.handlers[:] = [handler]
            await layer(scope, receive, send)

        return call

    return {
        "nothing around it": answer,
        "ids, stages, metrics; no line (the default)": wrapped(RequestLog("notable", 1.0)),
        "the same and a line of JSON": wrapped(RequestLog("all", 1.0), JsonFormatter()),
        "the same and a line of text": wrapped(RequestLog("all", 1.0), TextFormatter()),
    }


async def measure(application: ASGIApp, requests: int) -> float:
    """Return the microseconds of processor time of a request."""
    headers = [(b"host", b"x"), (b"content-type", b"application/json"), (b"content-length", b"700")]
    scope = {"type": "http", "method": "POST", "path": "/v1/forecast", "headers": headers, "route": Route()}
    began = time.process_time()
    for _ in range(requests):
        await application(dict(scope), receive_nothing, send_nowhere)
    return (time.process_time() - began) / requests * MICRO


async def answer(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer as a forecast does, with every stage over at once."""
    del scope, receive
    for stage in STAGES[:-1]:
        end_stage(stage)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": b"{}"})


async def receive_nothing() -> Message:
    """Have no body."""
    return {"type": "http.request"}


async def send_nowhere(message: Message) -> None:
    """Forget an answer."""
    del message


if __name__ == "__main__":
    main(sys.argv[1:])
