"""What gets in: JSON, within its size and its time, whatever the headers say."""

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest

from tests.service.conftest import Publish, Serve, build_forecaster, wait_until

JSON = {"content-type": "application/json"}
GOOD = b'{"model":"pump","series":[{"unique_id":"a","start":"2024-01-01","y":[1,2,3,4,5,6,7,8,9,1,2,3]}]}'


@pytest.fixture
def small(publish: Publish, serve: Serve) -> Iterator[httpx.Client]:
    """A service that takes 2000 bytes in half a second."""
    publish(build_forecaster("pump"))
    with serve(max_body_bytes=2000, body_seconds=0.5) as client:
        yield client


def slug(answer: httpx.Response) -> str:
    assert answer.headers["content-type"] == "application/problem+json"
    return str(answer.json()["type"]).rpartition(":")[2]


def pad(body: bytes, size: int) -> bytes:
    return body + b" " * (size - len(body))


def test_a_body_of_exactly_the_limit_is_taken(small: httpx.Client) -> None:
    assert small.post("/v1/forecast", content=pad(GOOD, 2000), headers=JSON).status_code == 200


def test_a_body_declared_too_large_is_refused(small: httpx.Client) -> None:
    answer = small.post("/v1/forecast", content=pad(GOOD, 2001), headers=JSON)
    assert (answer.status_code, slug(answer)) == (413, "body-too-large")
    assert answer.json()["detail"] == "the body is larger than 2000 bytes, the most this service takes"


def test_a_body_of_undeclared_size_is_counted_while_it_arrives(small: httpx.Client) -> None:
    answer = small.post("/v1/forecast", content=iter([b" " * 1000] * 3), headers=JSON)
    assert (answer.status_code, slug(answer)) == (413, "body-too-large")
    in_chunks = small.post("/v1/forecast", content=iter([GOOD[:10], GOOD[10:]]), headers=JSON)
    assert in_chunks.status_code == 200


def raw_request(client: httpx.Client, head: bytes, body: bytes) -> bytes:
    with socket.create_connection((client.base_url.host, client.base_url.port), timeout=10) as connection:
        connection.sendall(b"POST /v1/forecast HTTP/1.1\r\nHost: x\r\n" + head + b"\r\n\r\n" + body)
        answer = b""
        while part := connection.recv(65536):
            answer += part
        return answer


def test_a_body_that_never_ends_times_out(small: httpx.Client) -> None:
    began = time.monotonic()
    head = b"Content-Type: application/json\r\nContent-Length: 500\r\nConnection: close"
    answer = raw_request(small, head, b'{"model":')
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"urn:hindcast:problem:body-timeout" in answer
    assert 0.4 < time.monotonic() - began < 5


def test_a_client_that_leaves_midway_is_no_failure_of_the_service(
    small: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_connection((small.base_url.host, small.base_url.port)) as connection:
        connection.sendall(b"POST /v1/forecast HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n")
        connection.sendall(b"Content-Length: 500\r\n\r\n{")
    wait_until(lambda: 'route="/v1/forecast",status="499"' in small.get("/metrics").text)
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"content-type": "text/plain"},
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": "application/json; charset=latin-1"},
        {"content-type": "application/jsonx"},
        {"content-type": "application/json", "content-encoding": "gzip"},
    ],
)
def test_a_body_that_is_not_declared_as_plain_json_is_refused(
    client: httpx.Client, headers: dict[str, str]
) -> None:
    answer = client.post("/v1/forecast", content=GOOD, headers=headers)
    assert (answer.status_code, slug(answer)) == (415, "unsupported-media-type")


@pytest.mark.parametrize("content_type", ["application/json", "Application/JSON; charset=UTF-8"])
def test_json_may_say_that_it_is_utf8(small: httpx.Client, content_type: str) -> None:
    assert small.post("/v1/forecast", content=GOOD, headers={"content-type": content_type}).status_code == 200


@contextmanager
def admitted_request(client: httpx.Client) -> Iterator[socket.socket]:
    """Send the head of a request and wait until the service asks for its body: then it is admitted."""
    with socket.create_connection((client.base_url.host, client.base_url.port), timeout=30) as connection:
        connection.sendall(b"POST /v1/forecast HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n")
        connection.sendall(b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(GOOD))
        assert connection.recv(1000).startswith(b"HTTP/1.1 100")
        yield connection


def test_more_requests_than_can_wait_are_asked_to_come_back(publish: Publish, serve: Serve) -> None:
    publish(build_forecaster("pump"))
    with serve(max_in_flight=2) as client:
        with admitted_request(client) as first, admitted_request(client) as second:
            turned_away = client.post("/v1/forecast", content=GOOD, headers=JSON)
            for connection in (first, second):
                connection.sendall(GOOD)
                assert connection.recv(1000).startswith(b"HTTP/1.1 200")
        assert (turned_away.status_code, slug(turned_away)) == (503, "overloaded")
        assert turned_away.headers["retry-after"] == "1"
        assert client.post("/v1/forecast", content=GOOD, headers=JSON).status_code == 200


def test_a_body_declared_too_large_is_refused_before_it_is_sent(small: httpx.Client) -> None:
    head = b"Content-Type: application/json\r\nContent-Length: 2001\r\nConnection: close"
    assert raw_request(small, head, b"").startswith(b"HTTP/1.1 413")
