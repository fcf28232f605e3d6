"""What clients do to connections, over real sockets: none of it stops the service, and nothing is left of it."""

import gc
import json
import os
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from forecasting.registry import DirectoryRegistry
from service.app import create_app
from service.settings import ServiceSettings
from tests.service.conftest import build_forecaster, publish_into, serve_app, wait_until

BODY = json.dumps(
    {"model": "pump", "series": [{"unique_id": "a", "start": "2024-01-01", "y": [1.5] * 12}]}
).encode()
HEAD = b"POST /v1/forecast HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
GOOD = HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
LAST = b"Connection: close\r\n"


@dataclass
class Target:
    """A service that is about to have a bad day."""

    app: FastAPI
    client: httpx.Client

    @contextmanager
    def connect(self, seconds: float = 10.0) -> Iterator[socket.socket]:
        where = (self.client.base_url.host, self.client.base_url.port)
        with socket.create_connection(where, timeout=seconds) as connection:
            yield connection

    def send(self, data: bytes) -> bytes:
        """Send bytes, and return all that comes until the service closes the connection."""
        with self.connect() as connection:
            with suppress(ConnectionError):
                connection.sendall(data)
            return read_all(connection)

    def open_connections(self) -> int:
        return len(self.app.state.server.server_state.connections)


def read_all(connection: socket.socket) -> bytes:
    answer = b""
    with suppress(ConnectionError):
        while part := connection.recv(65536):
            answer += part
    return answer


def statuses(answer: bytes) -> list[int]:
    return [int(found) for found in re.findall(rb"HTTP/1\.1 (\d{3})", answer)]


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """A service with a ledger that waits a second for a body."""

    folder = tmp_path_factory.mktemp("hostile")
    registry = DirectoryRegistry(folder / "registry")
    publish_into(registry, folder)(build_forecaster("pump"))
    settings = ServiceSettings(registry_uri=str(registry.root), home=folder / "home", body_seconds=1.0)
    app = create_app(settings)
    with serve_app(app) as client:
        yield Target(app, client)


def settle(target: Target) -> None:
    wait_until(lambda: target.open_connections() <= 1 and not target.app.state.server.server_state.tasks)
    gc.collect()


@pytest.fixture(autouse=True)
def it_goes_on(target: Target, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Hold after every test: the service answers, nothing of it failed, and the connections are gone."""
    yield
    assert target.client.post(
        "/v1/forecast", content=BODY, headers={"content-type": "application/json"}
    ).is_success
    settle(target)
    assert "Traceback" not in caplog.text
    assert 'status="500"' not in target.client.get("/metrics").text


@pytest.mark.parametrize(
    "smuggled",
    [
        HEAD + b"Content-Length: %d\r\nContent-Length: 5\r\n\r\n" % len(BODY) + BODY,
        HEAD + b"Content-Length: 5, %d\r\n\r\n" % len(BODY) + BODY,
        HEAD + b"Content-Length: 40\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\n\r\n",
        HEAD + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        HEAD + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        HEAD + b"Content-Length: +5\r\n\r\nhello",
        HEAD + b"Content-Length: 0x5\r\n\r\nhello",
        HEAD + b"Content-Length: -1\r\n\r\n",
        HEAD + b"Content-Length: 99999999999999999999999\r\n\r\n",
        HEAD + b"X-A: b\r\n folded\r\n\r\n",
        HEAD + b"X-A: a\0b\r\n\r\n",
        HEAD + b"X-A: a\rb\r\n\r\n",
        CHUNKED + b"zz\r\nhello\r\n0\r\n\r\n",
        CHUNKED + b"-1\r\nhello\r\n0\r\n\r\n",
        CHUNKED + b"ffffffffffffffffff\r\nhello\r\n0\r\n\r\n",
        b"GET /health/live HTTP/1.1\nHost: x\n\n",
    ],
)  # fmt: skip
def test_a_request_that_two_parsers_could_read_in_two_ways_is_refused_and_nothing_after_it_is_read(
    target: Target, smuggled: bytes
) -> None:
    answer = target.send(smuggled + b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n")
    assert statuses(answer) == [400]


@pytest.mark.parametrize(
    "garbage",
    [
        bytes(range(256)) * 8,
        b"\0" * 1000,
        bytes.fromhex("16030100c8010000c40303") + b"\0" * 200,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n",
        b"CONNECT example.org:80 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"BREW /v1/forecast HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /v1/stream HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
    ],
)
def test_what_is_no_request_is_refused(target: Target, garbage: bytes) -> None:
    assert all(400 <= status < 500 for status in statuses(target.send(garbage)))


def test_a_request_of_1991_is_answered_and_the_connection_closed(target: Target) -> None:
    assert statuses(target.send(b"GET /\r\n\r\n"))[0] < 400


@pytest.mark.parametrize(
    "head",
    [
        b"X-A: " + b"a" * 1_000_000 + b"\r\n",
        b"".join(b"X-%d: a\r\n" % i for i in range(20_000)),
        b"Cookie: " + b"a=b; " * 40_000 + b"\r\n",
    ],
)
def test_oversized_headers_are_no_failure(target: Target, head: bytes) -> None:
    answer = target.send(HEAD + LAST + head + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY)
    assert all(status < 500 for status in statuses(answer))


def test_an_oversized_address_is_refused(target: Target) -> None:
    answer = target.send(b"GET /" + b"a" * 300_000 + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert all(400 <= status < 500 for status in statuses(answer))


def test_requests_sent_ahead_are_answered_in_their_order(target: Target) -> None:
    ahead = [GOOD, b"GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n", HEAD + b"Content-Length: 1\r\n\r\n{"] * 5
    last = b"GET /health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    assert statuses(target.send(b"".join(ahead) + last)) == [200, 404, 400] * 5 + [200]


def test_a_client_that_sends_a_byte_at_a_time_is_answered(target: Target) -> None:
    with target.connect() as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in GOOD.replace(b"Host: x\r\n", b"Host: x\r\n" + LAST):
            connection.sendall(bytes([byte]))
        assert statuses(read_all(connection)) == [200]


def test_a_body_that_trickles_ends_with_its_time_and_keeps_nobody_waiting(target: Target) -> None:
    began = time.monotonic()
    with target.connect() as connection:
        connection.sendall(HEAD + b"Content-Length: 100000\r\n\r\n")
        slowest = 0.0
        with suppress(ConnectionError):
            while time.monotonic() - began < 5:
                connection.sendall(b" ")
                asked = time.monotonic()
                assert target.client.get("/health/live").is_success
                slowest = max(slowest, time.monotonic() - asked)
                connection.settimeout(0.05)
                with suppress(TimeoutError):
                    if found := connection.recv(65536):
                        assert statuses(found) == [408]
                        break
    assert 0.9 < time.monotonic() - began < 4
    assert slowest < 1


def leave_midway(target: Target, data: bytes) -> None:
    with target.connect() as connection:
        connection.sendall(data)


def leave_half_closed(target: Target, data: bytes) -> None:
    with target.connect() as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        read_all(connection)


def leave_with_a_reset(target: Target, data: bytes) -> None:
    with target.connect() as connection:
        connection.sendall(data)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


WAYS_TO_LEAVE = [leave_midway, leave_half_closed, leave_with_a_reset]


@pytest.mark.parametrize("leave", WAYS_TO_LEAVE)
@pytest.mark.parametrize(
    "sent", [b"", b"POST", HEAD, GOOD[:-5], GOOD, GOOD * 8, CHUNKED + b"5\r\nhel"],
    ids=["nothing", "method", "head", "most", "all", "many", "chunk"],
)  # fmt: skip
def test_a_client_that_leaves_at_any_moment_is_no_failure(
    target: Target, leave: Callable[[Target, bytes], None], sent: bytes
) -> None:
    for _ in range(5):
        leave(target, sent)


def resident_bytes() -> int:
    return int(re.findall(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())[0]) * 1024


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs Linux's /proc")
def test_nothing_is_left_of_hostile_connections(target: Target) -> None:
    def round_of_them() -> None:
        for i, data in enumerate((b"", HEAD, GOOD[:-5], GOOD, GOOD * 4, b"\0" * 100, CHUNKED)):
            WAYS_TO_LEAVE[i % 3](target, data)

    for _ in range(30):
        round_of_them()
    settle(target)
    before = (threading.active_count(), open_files())
    memory = resident_bytes()
    for _ in range(120):
        round_of_them()
    settle(target)
    after = (threading.active_count(), open_files())
    # Of 840 connections: one thread or file in a hundred would be seen, or ten kilobytes on each.
    assert all(now < then + 8 for now, then in zip(after, before, strict=True)), (before, after)
    assert resident_bytes() - memory < 8 * 1024**2
