"""What gets in: JSON, within its size and its time, packed or not, whatever the headers say."""

import gzip
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx
import pytest
import zstandard

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
        {"content-type": "application/json", "content-encoding": "br"},
        {"content-type": "application/json", "content-encoding": "gzip, gzip"},
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


PACK = {"gzip": gzip.compress, "zstd": zstandard.ZstdCompressor().compress}
each_encoding = pytest.mark.parametrize("encoding", PACK)


def post_packed(client: httpx.Client, encoding: str, packed: bytes, path: str = "/v1/forecast") -> httpx.Response:
    return client.post(path, content=packed, headers=JSON | {"content-encoding": encoding})


@each_encoding
def test_a_packed_body_is_answered_like_the_plain_one(small: httpx.Client, encoding: str) -> None:
    packed, plain = (
        post_packed(small, encoding, PACK[encoding](GOOD)),
        small.post("/v1/forecast", content=GOOD, headers=JSON),
    )
    assert (packed.status_code, packed.json()["forecasts"]) == (200, plain.json()["forecasts"])


@each_encoding
def test_observations_may_be_packed_too(client: httpx.Client, encoding: str) -> None:
    body = b'{"dataset":"packed","observations":[{"unique_id":"a","ds":"2024-01-01","y":1}]}'
    assert post_packed(client, encoding, PACK[encoding](body), "/v1/observations").json()["refused"] == 0


@each_encoding
def test_what_is_packed_has_the_limit_of_what_is_not(small: httpx.Client, encoding: str) -> None:
    assert post_packed(small, encoding, PACK[encoding](pad(GOOD, 2000))).status_code == 200
    answer = post_packed(small, encoding, PACK[encoding](pad(GOOD, 2001)))
    assert (answer.status_code, slug(answer)) == (413, "body-too-large")
    assert answer.json()["detail"] == "the body unpacks to more than 2000 bytes, the most this service takes"


@each_encoding
@pytest.mark.parametrize("path", ["/v1/forecast", "/v1/observations"])
def test_a_bomb_is_refused_at_once_and_the_service_answers_on(
    client: httpx.Client, encoding: str, path: str
) -> None:
    bomb = PACK[encoding](b" " * 64 * 1024**2)
    began = time.monotonic()
    answer = post_packed(client, encoding, bomb, path)
    assert (answer.status_code, slug(answer)) == (413, "body-too-large")
    assert time.monotonic() - began < 5
    assert client.get("/health/live").status_code == 200


@each_encoding
@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda packed: packed[:-5], "it ends too early"),
        (lambda _: b"", "it ends too early"),
        (lambda packed: packed + b"x", "something follows it"),
        (lambda _: GOOD, "it is damaged"),
    ],
)
def test_a_packed_body_that_is_not_whole_is_refused(
    client: httpx.Client, encoding: str, damage: Callable[[bytes], bytes], reason: str
) -> None:
    answer = post_packed(client, encoding, damage(PACK[encoding](GOOD)))
    assert (answer.status_code, slug(answer)) == (400, "bad-encoding")
    assert answer.json()["detail"] == f"the body is not what content-encoding: {encoding} says: {reason}"


def test_a_body_is_packed_once(client: httpx.Client) -> None:
    twice = [("content-type", "application/json"), ("content-encoding", "gzip"), ("content-encoding", "gzip")]
    answer = client.post("/v1/forecast", content=gzip.compress(gzip.compress(GOOD)), headers=twice)
    assert (answer.status_code, slug(answer)) == (415, "unsupported-media-type")


def test_an_encoding_that_is_not_taken_is_answered_with_those_that_are(client: httpx.Client) -> None:
    answer = post_packed(client, "br", GOOD)
    assert (answer.status_code, answer.headers["accept-encoding"]) == (415, "gzip, zstd")


DEEP = 100_000
NESTS = [
    b"[" * DEEP + b"]" * DEEP,
    b'{"a":' * DEEP + b"1" + b"}" * DEEP,
    b"[" * DEEP,
    b'{"model":"pump","series":[{"unique_id":"a","start":"2024-01-01","y":' + b"[" * DEEP + b"]" * DEEP + b"}]}",
    b'{"dataset":"d","observations":[{"unique_id":"a","ds":"2024-01-01","y":' + b"[" * DEEP + b"]" * DEEP + b"}]}",
]


@pytest.mark.parametrize("nest", NESTS, ids=["lists", "objects", "open", "values", "rows"])
@pytest.mark.parametrize(
    ("path", "media_type"),
    [
        ("/v1/forecast", "application/json"),
        ("/v1/observations", "application/json"),
        ("/v1/observations?dataset=d", "application/x-ndjson"),
    ],
)
def test_json_in_json_in_json_is_refused(client: httpx.Client, path: str, media_type: str, nest: bytes) -> None:
    answer = client.post(path, content=nest, headers={"content-type": media_type})
    assert answer.status_code in (400, 422)
    assert slug(answer) in ("malformed-json", "invalid-request")
    assert len(answer.content) < 10_000
