"""Requests at a fixed mean rate, whether answers come or not; the time of each counts from when it was due.

A closed loop waits for a slow server, and so never sees most of what its callers would have seen.
"""

import asyncio
import random
import time
from collections import deque
from collections.abc import Sequence
from statistics import quantiles

CONNECTIONS = 128


class _Connection(asyncio.Protocol):
    """Sends a request and tells when its answer is whole; answers have a content-length."""

    def __init__(self) -> None:
        self._received = b""
        self._answer: asyncio.Future[int] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101  (create_connection gives one)
        self._transport = transport

    def ask(self, request: bytes) -> "asyncio.Future[int]":
        """Return what becomes the status."""
        self._received, self._answer = b"", asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return self._answer

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, separator, body = self._received.partition(b"\r\n\r\n")
        if separator and self._answer is not None and not self._answer.done():
            length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0])
            if len(body) >= length:
                self._answer.set_result(int(head[9:12]))

    def connection_lost(self, error: Exception | None) -> None:  # noqa: ARG002  (asyncio's signature)
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(0)

    def close(self) -> None:
        """Hang up."""
        self._transport.close()


async def ask_at_rate(
    port: int, path: str, bodies: Sequence[bytes], rate: float, seconds: float
) -> dict[str, float]:
    """Ask for some seconds at random moments, at a mean rate, and return latencies and losses."""
    loop = asyncio.get_running_loop()
    requests = [_build_request(path, body) for body in bodies]
    made = [await loop.create_connection(_Connection, "127.0.0.1", port) for _ in range(CONNECTIONS)]
    free = deque(connection for _, connection in made)
    taken: list[float] = []
    statuses: list[int] = []
    late: list[float] = []
    pending: set[asyncio.Task[None]] = set()
    waiting: deque[tuple[float, bytes]] = deque()

    async def send(connection: _Connection, due: float, request: bytes) -> None:
        statuses.append(await connection.ask(request))
        taken.append(1000 * (time.perf_counter() - due))
        free.append(connection)
        if waiting:
            start(*waiting.popleft())

    def start(due: float, request: bytes) -> None:
        if not free:
            waiting.append((due, request))
            return
        task = loop.create_task(send(free.popleft(), due, request))
        pending.add(task)
        task.add_done_callback(pending.discard)

    due, until = time.perf_counter(), time.perf_counter() + seconds
    while due < until:
        due += random.expovariate(rate)
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        late.append(1000 * (time.perf_counter() - due))
        start(due, random.choice(requests))  # noqa: S311
    while pending:
        await asyncio.wait(pending)
    for _, connection in made:
        connection.close()
    centiles, lateness = quantiles(taken, n=100), quantiles(late, n=100)
    return {
        "requests/s": len(taken) / seconds,
        "p50, ms": centiles[49],
        "p99, ms": centiles[98],
        "refused": sum(status == 503 for status in statuses),
        "failed": sum(status not in (200, 503) for status in statuses),
        "sent late by the generator: p99, ms": lateness[98],
    }


def _build_request(path: str, body: bytes) -> bytes:
    head = (
        f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
    )
    return head.encode() + b"\r\n\r\n" + body
