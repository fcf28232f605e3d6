"""Clients that send or read so slowly that they never end: their connections are closed, and nobody else's."""

import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest
import uvicorn
from fastapi import FastAPI, WebSocket
from starlette.responses import Response
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from service.__main__ import build_config, build_server
from service.app import create_app
from service.connections import LARGEST_HEAD, SPARE_FILES, BoundedProtocol, bound_by
from service.settings import ServiceSettings
from tests.service.conftest import wait_until

HEAD = b"GET /quick HTTP/1.1\r\nHost: x\r\n"
LARGE = 64 * 1024**2


def small_app() -> FastAPI:
    app = FastAPI()

    @app.get("/quick")
    async def quick() -> str:
        return "done"

    @app.post("/deaf")
    async def deaf() -> str:
        return "not read"

    @app.get("/large")
    async def large() -> Response:
        return Response(b"x" * LARGE)

    @app.websocket("/socket")
    async def echo(socket: WebSocket) -> None:
        await socket.accept()
        async for text in socket.iter_text():
            await socket.send_text(text)

    return app


@contextmanager
def serving(**settings: float) -> Iterator[uvicorn.Server]:
    chosen = ServiceSettings(port=0, keep_alive_seconds=60, shutdown_seconds=1, **settings)
    server = uvicorn.Server(build_config(small_app(), chosen, bound_by(chosen)))
    thread = threading.Thread(target=server.run)
    thread.start()
    wait_until(lambda: server.started)
    try:
        yield server
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def server() -> Iterator[uvicorn.Server]:
    with serving(head_seconds=1.0, stall_seconds=1.0) as server:
        yield server


def port_of(server: uvicorn.Server) -> int:
    return int(server.servers[0].sockets[0].getsockname()[1])


@pytest.fixture
def connection(server: uvicorn.Server) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port_of(server)), timeout=10) as connection:
        yield connection


def read_to_end(connection: socket.socket) -> bytes:
    answer = b""
    while part := connection.recv(65536):
        answer += part
    return answer


def dribble(connection: socket.socket, content: bytes, seconds: float) -> float:
    """Send a byte every so often until the other side closes; return how long that took."""
    began = time.monotonic()
    connection.settimeout(seconds)
    for byte in content:
        try:
            connection.sendall(bytes([byte]))
            if connection.recv(1000) == b"":
                break
        except TimeoutError:
            continue
        except ConnectionError:
            break
    return time.monotonic() - began


def test_a_client_that_sends_nothing_is_not_waited_for(connection: socket.socket) -> None:
    began = time.monotonic()
    assert connection.recv(1) == b""
    assert 0.8 < time.monotonic() - began < 10


def test_a_head_that_comes_a_byte_at_a_time_is_not_waited_for(connection: socket.socket) -> None:
    assert 0.8 < dribble(connection, HEAD + b"X: y\r\n" * 1000, 0.05) < 10


def test_a_second_head_that_comes_a_byte_at_a_time_is_not_waited_for_either(connection: socket.socket) -> None:
    connection.sendall(HEAD + b"\r\n")
    assert connection.recv(1000).startswith(b"HTTP/1.1 200")
    assert 0.8 < dribble(connection, HEAD + b"X: y\r\n" * 1000, 0.05) < 10


def test_a_body_nobody_reads_is_not_waited_for(connection: socket.socket) -> None:
    connection.sendall(b"POST /deaf HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n")
    assert connection.recv(1000).startswith(b"HTTP/1.1 200")
    assert 0.8 < dribble(connection, b"x" * 1000, 0.05) < 10


def test_a_head_in_two_pieces_is_answered_and_the_connection_kept(connection: socket.socket) -> None:
    for _ in range(2):
        connection.sendall(HEAD[:10])
        time.sleep(0.1)
        connection.sendall(HEAD[10:] + b"\r\n")
        assert connection.recv(1000).startswith(b"HTTP/1.1 200")
        time.sleep(1.2)


def test_a_head_without_an_end_is_refused_when_it_is_too_large(connection: socket.socket) -> None:
    connection.sendall(HEAD + b"X: ")
    try:
        for _ in range(64):
            connection.sendall(b"y" * 65536)
            time.sleep(0.001)
    except ConnectionError:
        return
    pytest.fail("four megabytes of one header were taken")


@pytest.mark.parametrize(("size", "status"), [(LARGEST_HEAD - 100, b"200"), (LARGEST_HEAD, b"431")])
def test_a_head_that_is_whole_is_measured_too(connection: socket.socket, size: int, status: bytes) -> None:
    connection.sendall(HEAD + b"Connection: close\r\nX: " + b"y" * size + b"\r\n\r\n")
    answer = read_to_end(connection)
    assert answer.startswith(b"HTTP/1.1 " + status)
    assert (b"urn:hindcast:problem:head-too-large" in answer) == (status == b"431")


def test_a_large_body_is_no_large_head(server: uvicorn.Server) -> None:
    with httpx.Client(base_url=f"http://127.0.0.1:{port_of(server)}") as client:
        for _ in range(2):
            assert client.post("/deaf", content=b"x" * 3 * LARGEST_HEAD).status_code == 200


def test_what_is_no_http_is_answered_with_a_problem(connection: socket.socket) -> None:
    connection.sendall(b"\x16\x03\x01 this is TLS\r\n\r\n")
    answer = read_to_end(connection)
    assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/problem+json")
    assert b"urn:hindcast:problem:bad-request" in answer


def test_a_client_that_does_not_read_its_answer_is_let_go(server: uvicorn.Server) -> None:
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", port_of(server)))
        connection.sendall(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
        wait_until(lambda: bool(server.server_state.connections), 5)
        wait_until(lambda: not server.server_state.connections, 15)


def test_a_client_that_reads_slowly_is_served_to_the_end(server: uvicorn.Server) -> None:
    with socket.create_connection(("127.0.0.1", port_of(server)), timeout=10) as connection:
        connection.sendall(b"GET /large HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        size = 0
        for _ in range(8):
            time.sleep(0.3)  # in all twice what would be too long for one that reads nothing
            while size % (LARGE // 8) < LARGE // 8 - 2**20 and (part := connection.recv(2**20)):
                size += len(part)
            size += len(connection.recv(2**20))
        while part := connection.recv(2**20):
            size += len(part)
    assert size > LARGE


def test_a_websocket_may_be_silent_for_longer(server: uvicorn.Server) -> None:
    with connect(f"ws://127.0.0.1:{port_of(server)}/socket") as websocket:
        time.sleep(1.5)
        websocket.send("still here")
        assert websocket.recv(timeout=5) == "still here"


def test_the_process_is_started_with_all_of_it() -> None:
    settings = ServiceSettings(
        head_seconds=3, stall_seconds=4, keep_alive_seconds=5, stream_message_bytes=6000, max_connections=70
    )
    server = build_server(create_app(settings), settings)
    config = server.config
    config.load()
    protocol = config.http_protocol_class
    assert issubclass(protocol, BoundedProtocol)
    assert (protocol.head_seconds, protocol.stall_seconds, protocol.most_connections) == (3, 4, 70)
    assert (config.timeout_keep_alive, config.ws_max_size) == (5, 6000)
    assert not config.proxy_headers, "a header would say who is calling"


@pytest.mark.parametrize("compression", ["deflate", None])
def test_a_message_of_a_websocket_is_bounded_packed_or_not(compression: str | None) -> None:
    with (
        serving(stream_message_bytes=6000) as server,
        connect(f"ws://127.0.0.1:{port_of(server)}/socket", compression=compression) as websocket,
    ):
        websocket.send("x" * 6000)
        assert len(websocket.recv(timeout=5)) == 6000
        websocket.send("x" * 6001)
        with pytest.raises(ConnectionClosed) as closed:
            websocket.recv(timeout=5)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1009


def test_connections_beyond_the_bound_are_turned_away_and_the_others_go_on() -> None:
    with serving(max_connections=3) as server:
        place = ("127.0.0.1", port_of(server))
        with (
            connect(f"ws://127.0.0.1:{place[1]}/socket") as websocket,
            socket.create_connection(place, timeout=10) as one,
            socket.create_connection(place, timeout=10) as other,
        ):
            wait_until(lambda: len(server.server_state.connections) == 3)
            for _ in range(50):
                with socket.create_connection(place, timeout=10) as late:
                    answer = read_to_end(late)
                assert answer.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
                assert b"\r\nretry-after: 1\r\n" in answer
                assert b"urn:hindcast:problem:overloaded" in answer
            for connection in (one, other, one):
                connection.sendall(HEAD + b"\r\n")
                assert connection.recv(1000).startswith(b"HTTP/1.1 200")
            websocket.send("still here")
            assert websocket.recv(timeout=5) == "still here"
            assert server.config.http.turned_away == 50  # type: ignore[union-attr]  # it is the class
            one.close()
            wait_until(lambda: len(server.server_state.connections) == 2)
            with socket.create_connection(place, timeout=10) as next_one:
                next_one.sendall(HEAD + b"\r\n")
                assert next_one.recv(1000).startswith(b"HTTP/1.1 200")


def test_connections_leave_files_to_everything_else_where_few_may_be_open() -> None:
    program = (
        "import resource; from service.connections import allow_files, bound_by; "
        "from service.settings import ServiceSettings; "
        "resource.setrlimit(resource.RLIMIT_NOFILE, (300, 700)); allow_files(1000); "
        "print(resource.getrlimit(resource.RLIMIT_NOFILE)[0], "
        "*(bound_by(ServiceSettings(max_connections=n)).most_connections for n in (1000, 5)))"
    )
    asked = [sys.executable, "-c", program]
    found = subprocess.run(asked, capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["700", str(700 - SPARE_FILES), "5"]


def test_connections_are_among_the_metrics_of_the_process() -> None:
    settings = ServiceSettings(port=0, ledger_url="off", max_connections=2, drain_seconds=0, shutdown_seconds=1)
    app = create_app(settings)
    server = build_server(app, settings)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_until(lambda: server.started)
        place = ("127.0.0.1", port_of(server))
        with httpx.Client(base_url=f"http://127.0.0.1:{place[1]}") as client, socket.create_connection(place):
            wait_until(lambda: "hindcast_connections 2.0" in client.get("/metrics").text)
            with socket.create_connection(place, timeout=10) as late:
                read_to_end(late)
            text = client.get("/metrics").text
    finally:
        server.should_exit = True
        thread.join()
    assert re.search(r"^hindcast_connections_turned_away_total 1.0$", text, re.MULTILINE)
