"""POST /v1/observe and WS /v1/stream/{model}, over real sockets."""

import json
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import httpx
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from service.streams.messages import StreamAnswer
from tests.service.conftest import Publish, Serve, build_forecaster
from tests.service.streams.conftest import LSTM, hour, row, walk


@pytest.fixture
def client(publish: Publish, serve: Serve, tmp_path: object) -> Iterator[httpx.Client]:
    publish(build_forecaster("pump", "h", LSTM))
    limits = {"stream_message_bytes": 4096, "stream_outstanding": 4, "stream_observations": 50}
    with serve(home=f"{tmp_path}/home", **limits) as client:
        yield client


@contextmanager
def socket_of(client: httpx.Client, path: str = "/v1/stream/pump") -> Iterator[ClientConnection]:
    with connect(f"ws://{client.base_url.host}:{client.base_url.port}{path}", close_timeout=5) as socket:
        yield socket


def tell(socket: ClientConnection, message: object) -> dict[str, object]:
    socket.send(json.dumps(message))
    return dict(json.loads(socket.recv(timeout=20)))


def test_observing_answers_a_forecast_for_every_series(client: httpx.Client) -> None:
    rows = [row(name, step, walk(12, seed)[step]) for step in range(12) for seed, name in enumerate("ab")]
    answer = client.post("/v1/observe", json={"model": "pump", "observations": rows, "level": [80]})
    assert answer.status_code == 200
    shown = StreamAnswer.model_validate_json(answer.content)
    assert [(one.unique_id, one.status, one.cutoff) for one in shown.forecasts] == [
        ("a", "ok", hour(11)),
        ("b", "ok", hour(11)),
    ]
    assert client.get("/v1/streams").json().keys() >= {"in_memory", "memory_bytes", "disk_bytes"}


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b"[]", 422),
        (b'{"model": "pump"}', 422),
        (b'{"model": "pump", "observations": []}', 422),
        (b'{"model": "nothing", "observations": [{"unique_id": "a", "ds": "2024-01-01", "y": 1}]}', 404),
        (b'{"model": "pump", "h": 99, "observations": [{"unique_id": "a", "ds": "2024-01-01", "y": 1}]}', 422),
    ],
)
def test_a_request_that_is_none_is_a_problem(client: httpx.Client, body: bytes, status: int) -> None:
    answer = client.post("/v1/observe", content=body, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")


def test_too_many_observations_in_one_message_are_refused(client: httpx.Client) -> None:
    rows = [row("a", step, 1.0) for step in range(51)]
    answer = client.post("/v1/observe", json={"model": "pump", "observations": rows})
    assert answer.json()["detail"] == "51 observations in one message; at most 50"


def test_a_socket_answers_every_message_in_order_and_calls_it_by_its_name(client: httpx.Client) -> None:
    with socket_of(client, "/v1/stream/pump?h=2&level=80") as socket:
        for step in range(20):
            socket.send(json.dumps({"id": step, **row("a", step, walk(20)[step])}))
        answers = [json.loads(socket.recv(timeout=20)) for _ in range(20)]
        assert [one["id"] for one in answers] == list(range(20))
        assert [one["forecasts"][0]["cutoff"] for one in answers] == [hour(step) for step in range(20)]
        assert len(answers[-1]["forecasts"][0]["lo-80"]) == 2
        listed = tell(socket, [row("b", 0, 1.0), row("c", 0, 1.0)])
        assert [one["unique_id"] for one in listed["forecasts"]] == ["b", "c"]
        named = tell(socket, {"id": "many", "observations": [row("b", 1, 1.0), row("c", 1, 1.0)]})
        assert (named["id"], len(named["forecasts"])) == ("many", 2)


def test_a_socket_and_a_request_speak_of_the_same_stream(client: httpx.Client) -> None:
    with socket_of(client) as socket:
        for step in range(10):
            shown = tell(socket, row("a", step, walk(20)[step]))
    body = {"model": "pump", "observations": [row("a", 9, walk(20)[9])]}
    assert client.post("/v1/observe", json=body).json()["forecasts"] == shown["forecasts"]


def test_an_error_is_answered_and_closes_nothing(client: httpx.Client) -> None:
    with socket_of(client) as socket:
        assert tell(socket, {"id": 7, "observations": 3})["status"] == 422
        assert tell(socket, "text")["type"] == "urn:hindcast:problem:invalid-request"
        socket.send("{")
        assert json.loads(socket.recv())["type"] == "urn:hindcast:problem:malformed-json"
        refused = tell(socket, {"id": 8, "unique_id": "a", "ds": "yesterday", "y": 1})
        assert (refused["id"], refused["refused"]) == (8, 1)
        assert tell(socket, row("a", 0, 1.0))["refused"] == 0
    with socket_of(client, "/v1/stream/nothing") as socket:
        assert tell(socket, row("a", 0, 1.0))["type"] == "urn:hindcast:problem:unknown-model"


@pytest.mark.parametrize(("message", "code"), [(b"\x00", 1003), ("x" * 5000, 1009)])
def test_what_breaks_the_protocol_closes_the_socket(client: httpx.Client, message: bytes | str, code: int) -> None:
    with socket_of(client) as socket:
        socket.send(message)
        with pytest.raises(ConnectionClosed) as closed:
            socket.recv(timeout=20)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == code


def test_a_socket_that_says_nothing_is_closed(publish: Publish, serve: Serve, tmp_path: object) -> None:
    publish(build_forecaster("pump", "h", LSTM))
    with serve(home=f"{tmp_path}/home", stream_idle_seconds=0.1) as client, socket_of(client) as socket:
        with pytest.raises(ConnectionClosed) as closed:
            socket.recv(timeout=20)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1001


def test_more_sockets_than_may_be_are_sent_away(publish: Publish, serve: Serve, tmp_path: object) -> None:
    publish(build_forecaster("pump", "h", LSTM))
    with serve(home=f"{tmp_path}/home", stream_sockets=1) as client, socket_of(client) as one:
        assert tell(one, row("a", 0, 1.0))["refused"] == 0
        with socket_of(client) as other, pytest.raises(ConnectionClosed) as closed:
            other.recv(timeout=20)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1013


def test_a_service_that_stops_closes_its_sockets_and_keeps_their_streams(
    publish: Publish, serve: Serve, tmp_path: object
) -> None:
    publish(build_forecaster("pump", "h", LSTM))
    with ExitStack() as stack:
        with serve(home=f"{tmp_path}/home") as client:
            socket = stack.enter_context(socket_of(client))
            for step in range(9):
                tell(socket, row("a", step, 1.0 + step))
        with pytest.raises(ConnectionClosed) as closed:
            socket.recv(timeout=20)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code in (1001, 1012)
    with serve(home=f"{tmp_path}/home") as client:
        body = {"model": "pump", "observations": [row("a", 9, 10.0)]}
        assert client.post("/v1/observe", json=body).json()["forecasts"][0]["status"] == "ok"


def test_many_sockets_are_answered_each_about_its_own_series(client: httpx.Client) -> None:
    wrong: list[object] = []

    def talk(name: str, seed: int) -> None:
        with socket_of(client) as socket:
            for step in range(15):
                (forecast,) = tell(socket, row(name, step, walk(15, seed)[step]))["forecasts"]
                if (forecast["unique_id"], forecast["cutoff"]) != (name, hour(step)):
                    wrong.append(forecast)

    threads = [threading.Thread(target=talk, args=(f"s{i}", i)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
