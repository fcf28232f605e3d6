"""Who is let in by a real service: keys, scopes, rates, WebSockets, strangers' pages; and what the log has."""

import asyncio
import io
import json
import logging
import re
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import pytest
import tritonclient.http as triton
from starlette.types import Message, Receive, Scope, Send
from tritonclient.utils import InferenceServerException
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from forecasting.registry import DirectoryRegistry
from service import key_ring
from service.access import ACCESS
from service.app import create_app
from service.key_ring import KeyRing
from service.key_store import create_key, revoke_key
from service.logs import TextFormatter
from service.middleware import SecurityHeaders
from service.problems import INVALID_REQUEST, MALFORMED_JSON, Problem
from service.rate_limit import BYTES_OF_A_UNIT
from service.redaction import redact_logs
from service.security import LONGEST_ADDRESS, MOST_HEADERS, AccessControl
from service.settings import ServiceSettings
from tests.service.conftest import Publish, Serve, build_forecaster, publish_into, serve_app, wait_until

NOW = datetime.now(UTC)
JSON = {"content-type": "application/json"}
GOOD = b'{"model":"pump","series":[{"unique_id":"a","start":"2024-01-01","y":[1,2,3,4,5,6,7,8,9,1,2,3]}]}'


class Keyed:
    """A service that asks for keys, and one key of each kind."""

    def __init__(self, client: httpx.Client, keys: dict[str, str], path: Path) -> None:
        self.client, self.keys, self.path = client, keys, path

    def get(self, path: str, key: str) -> httpx.Response:
        return self.client.get(path, headers=bearer(self.keys[key]))

    def forecast(self, key: str) -> httpx.Response:
        return self.client.post("/v1/forecast", content=GOOD, headers=JSON | bearer(self.keys[key]))


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def slug(answer: httpx.Response) -> tuple[int, str]:
    assert answer.headers["content-type"] == "application/problem+json"
    problem = Problem.model_validate_json(answer.content, strict=True)
    assert problem.instance == answer.headers["x-request-id"]
    return answer.status_code, problem.type.rpartition(":")[2]


def make_keys(path: Path) -> dict[str, str]:
    keys = {scope: create_key(path, scope, [scope], NOW)[1] for scope in ("read", "forecast", "write", "admin")}
    keys["expired"] = create_key(path, "old", ["admin"], NOW, expires=NOW - timedelta(days=1))[1]
    revoked, keys["revoked"] = create_key(path, "gone", ["admin"], NOW)
    revoke_key(path, revoked.id, NOW)
    keys["slow"] = create_key(path, "slow", ["admin"], NOW, rate=0.3)[1]
    return keys


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keyed]:
    """A service with keys that the tests of this module share."""
    folder = tmp_path_factory.mktemp("keyed")
    registry = DirectoryRegistry(folder / "registry")
    publish_into(registry, folder)(build_forecaster("pump"))
    keys = make_keys(folder / "keys.json")
    settings = ServiceSettings(
        registry_uri=str(registry.root), home=folder, ledger_url="off", poll_seconds=0.05, log_requests="all"
    )
    with serve_app(create_app(settings)) as client:
        yield Keyed(client, keys, folder / "keys.json")


def test_a_key_opens_by_either_header(keyed: Keyed) -> None:
    assert keyed.forecast("forecast").status_code == 200
    by_name = {"x-api-key": keyed.keys["forecast"]}
    assert keyed.client.post("/v1/forecast", content=GOOD, headers=JSON | by_name).status_code == 200
    both = by_name | bearer(keyed.keys["forecast"])
    assert keyed.client.post("/v1/forecast", content=GOOD, headers=JSON | both).status_code == 200
    beside_a_proxys = by_name | {"authorization": "Basic cHJveHk6cHJveHk="}
    assert keyed.client.post("/v1/forecast", content=GOOD, headers=JSON | beside_a_proxys).status_code == 200


def test_two_different_keys_are_refused_though_both_are_good(keyed: Keyed) -> None:
    both = {"x-api-key": keyed.keys["admin"]} | bearer(keyed.keys["forecast"])
    answer = keyed.client.get("/v1/models", headers=both)
    assert slug(answer) == (401, "unauthenticated")
    twice = [("x-api-key", keyed.keys["admin"]), ("x-api-key", keyed.keys["read"])]
    assert slug(keyed.client.get("/v1/models", headers=twice)) == (401, "unauthenticated")


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": ""},
        {"authorization": "Bearer"},
        {"authorization": "Basic aGM6aGM="},
        {"authorization": "Bearer hc_"},
        {"authorization": b"Bearer \xff\xfe"},
        {"authorization": f"Bearer hc_{'0' * 12}_{'0' * 64}"},
        {"x-api-key": ""},
        {"x-api-key": "x" * 5000},
    ],
)
def test_without_a_good_key_the_answer_is_401_and_says_how(keyed: Keyed, headers: dict[str, str]) -> None:
    answer = keyed.client.post("/v1/forecast", content=GOOD, headers=JSON | headers)
    assert slug(answer) == (401, "unauthenticated")
    assert answer.headers["www-authenticate"].startswith('Bearer realm="hindcast"')


@pytest.mark.parametrize(("kind", "reason"), [("expired", "expired at"), ("revoked", "was revoked at")])
def test_a_key_that_has_ended_is_told_why(keyed: Keyed, kind: str, reason: str) -> None:
    answer = keyed.get("/v1/models", kind)
    assert slug(answer) == (401, "unauthenticated")
    assert reason in answer.json()["detail"]


def test_a_scope_that_is_missing_is_named(keyed: Keyed) -> None:
    answer = keyed.forecast("read")
    assert slug(answer) == (403, "missing-scope")
    assert "needs the scope 'forecast'" in answer.json()["detail"]
    assert answer.headers["www-authenticate"].endswith('error="insufficient_scope", scope="forecast"')


def test_a_client_of_triton_shows_why_it_was_refused(keyed: Keyed) -> None:
    client = triton.InferenceServerClient(str(keyed.client.base_url).removeprefix("http://"))
    with closing(client), pytest.raises(InferenceServerException) as refused:
        client.get_model_metadata("pump", headers={"authorization": f"Bearer {keyed.keys['write']}"})
    assert (refused.value.status(), "needs the scope 'read'" in refused.value.message()) == ("403", True)
    assert "error" not in keyed.get("/v1/models", "write").json()


def test_admin_is_every_scope_and_the_others_are_themselves_alone(keyed: Keyed) -> None:
    asked = {"read": "/v1/models", "forecast": "/v1/models/pump/series/a/forecast", "any": "/version"}
    let_in = {
        (key, needed)
        for key in ("read", "forecast", "write", "admin")
        for needed, path in asked.items()
        if keyed.get(path, key).status_code != 403
    }
    everybody = {(key, "any") for key in ("read", "forecast", "write", "admin")}
    assert let_in == everybody | {
        ("read", "read"),
        ("forecast", "forecast"),
        ("admin", "read"),
        ("admin", "forecast"),
    }


def test_every_address_of_the_table_is_shut_but_for_health(keyed: Keyed) -> None:
    for template, methods in ACCESS.items():
        path = re.sub(r"\{\w+(:path)?\}", "a", template)
        for method in methods.keys() - {"WS"}:
            status = keyed.client.request(method, path).status_code
            assert (status == 401) == (methods[method] != "open"), (method, path, status)


def test_what_is_not_in_the_table_is_not_there_even_for_an_admin(keyed: Keyed) -> None:
    headers = bearer(keyed.keys["admin"])
    assert slug(keyed.client.get("/v1/nowhere", headers=headers)) == (404, "not-found")
    answer = keyed.client.delete("/v1/models", headers=headers)
    assert slug(answer) == (405, "method-not-allowed")
    assert answer.headers["allow"] == "GET"


def test_a_forwarded_address_opens_nothing(keyed: Keyed) -> None:
    headers = {"x-forwarded-for": "127.0.0.1", "forwarded": "for=127.0.0.1", "x-real-ip": "127.0.0.1"}
    assert keyed.client.get("/v1/models", headers=headers).status_code == 401


def test_a_key_that_is_used_too_much_is_told_when_to_come_back_and_others_are_not(keyed: Keyed) -> None:
    answers = [keyed.get("/v1/models", "slow") for _ in range(5)]
    assert [answer.status_code for answer in answers[:3]] == [200, 200, 200]
    assert slug(answers[4]) == (429, "rate-limited")
    assert 1 <= int(answers[4].headers["retry-after"]) <= 4
    assert keyed.get("/v1/models", "admin").status_code == 200


def test_a_large_body_costs_more_than_a_small_one(keyed: Keyed, tmp_path: Path) -> None:
    made = create_key(keyed.path, "large", ["admin"], NOW, rate=1.0)[1]
    headers = JSON | bearer(made)
    wait_until(lambda: keyed.client.get("/v1/models", headers=headers).status_code == 200)
    body = GOOD + b" " * 400_000
    assert keyed.client.post("/v1/forecast", content=body, headers=headers).status_code == 200
    answer = keyed.client.post("/v1/forecast", content=GOOD, headers=headers)
    assert slug(answer) == (429, "rate-limited")
    assert int(answer.headers["retry-after"]) > 80


def test_a_revoked_key_opens_nothing_within_two_seconds(keyed: Keyed) -> None:
    made, key = create_key(keyed.path, "short", ["read"], NOW)
    headers = bearer(key)
    wait_until(lambda: keyed.client.get("/v1/models", headers=headers).status_code == 200, 5)
    revoke_key(keyed.path, made.id, NOW)
    wait_until(lambda: keyed.client.get("/v1/models", headers=headers).status_code == 401, 5)
    assert key_ring.LOOK_SECONDS <= 1


def test_readiness_says_when_the_keys_cannot_be_read(
    publish: Publish, serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_ring, "LOOK_SECONDS", 0.02)
    publish(build_forecaster("pump"))
    path = tmp_path / "keys.json"
    keys = make_keys(path)
    with serve(keys_file=path) as client:
        assert client.get("/health/ready").json()["keys"] is None
        path.write_text("{")
        wait_until(lambda: client.get("/health/ready").json()["keys"] is not None)
        assert client.get("/v1/models", headers=bearer(keys["read"])).status_code == 200
        assert client.get("/health/ready").status_code == 200


def test_on_loopback_nobody_is_asked_until_there_is_a_key(
    publish: Publish, serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_ring, "LOOK_SECONDS", 0.02)
    publish(build_forecaster("pump"))
    with serve(home=tmp_path) as client:
        assert client.get("/v1/models").status_code == 200
        assert client.get("/v1/models", headers=bearer("anything")).status_code == 200
        make_keys(tmp_path / "keys.json")
        wait_until(lambda: client.get("/v1/models").status_code == 401)


def test_a_named_file_that_is_not_there_lets_nobody_in(
    serve: Serve, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with serve(keys_file=tmp_path / "later.json", ready=False) as client:
        assert client.get("/v1/models").status_code == 401
        assert client.get("/health/live").status_code == 200
    assert "later.json has no key yet: nobody is let in" in caplog.text


def test_the_ledger_is_not_asked_who_is_calling(publish: Publish, serve: Serve, tmp_path: Path) -> None:
    publish(build_forecaster("pump"))
    keys = make_keys(tmp_path / "keys.json")
    nowhere = "postgresql://nobody@127.0.0.1:9/none"
    with serve(keys_file=tmp_path / "keys.json", ledger_url=nowhere) as client:
        assert client.get("/v1/models", headers=bearer(keys["read"])).status_code == 200


def test_no_secret_is_logged_whatever_it_is_sent_in(keyed: Keyed, caplog: pytest.LogCaptureFixture) -> None:
    secret = keyed.keys["admin"].rpartition("_")[2]
    half = secret[: len(secret) // 2]
    sent: list[tuple[str, dict[str, str]]] = [
        ("/v1/models", bearer(keyed.keys["admin"])),
        ("/v1/models", {"x-api-key": keyed.keys["admin"]}),
        ("/v1/models", bearer(keyed.keys["admin"] + "0")),
        ("/v1/models", bearer(secret)),
        ("/v1/models", {"authorization": keyed.keys["admin"]}),
        ("/v1/models", {"x-api-key": f"hc_000000000000_{secret}"}),
        (f"/v1/models?api_key={keyed.keys['admin']}", {}),
        (f"/v1/models?api_key={keyed.keys['admin']}", bearer(keyed.keys["admin"])),
        (f"/v1/accuracy?since={keyed.keys['admin']}", bearer(keyed.keys["admin"])),
    ]
    with caplog.at_level(logging.DEBUG):
        answers = [keyed.client.get(path, headers=headers) for path, headers in sent]
    assert {answer.status_code for answer in answers} == {200, 401, 422}
    written = TextFormatter()
    ours = "\n".join(written.format(r) for r in caplog.records if not r.name.startswith(("httpx", "httpcore")))
    assert "method=GET path=/v1/models status=200" in ours
    assert half not in ours
    assert not [answer for answer in answers if half in answer.text and "since" not in str(answer.url)]


def test_a_key_that_is_logged_all_the_same_is_not_written(
    registry: DirectoryRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """uvicorn logs the whole address of a WebSocket, and an error may repeat anything."""
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    monkeypatch.setattr(logging.getLogger(), "handlers", [handler])
    monkeypatch.setattr(logging.getLogger("uvicorn.error"), "level", logging.INFO)
    redact_logs()
    _, key = create_key(tmp_path / "keys.json", "sensor", ["forecast"], NOW)
    with stream_service(registry, keys_file=tmp_path / "keys.json") as address:
        with connect(f"{address}?api_key={key}", additional_headers=bearer(key)) as socket:
            tell(socket, "1")
        try:
            raise RuntimeError(key)
        except RuntimeError:
            logging.getLogger("hindcast").exception("failed with %s", key)
    assert f"/v1/stream/pump?api_key={key[:15]}_..." in written.getvalue()
    assert f"RuntimeError: {key[:15]}_..." in written.getvalue()
    assert key[16:] not in written.getvalue()


def test_pages_of_strangers_can_change_nothing_where_no_key_is_asked_for(client: httpx.Client) -> None:
    """A browser sends a plain POST to this machine for any page; this one would begin a retraining."""
    own = f"{client.base_url}".rstrip("/")
    for origin in ("https://evil.example", "null", "http://127.0.0.1:1", own.replace("http", "x")[:-1]):
        answer = client.post("/v1/jobs/nope/retrain", headers={"origin": origin})
        assert slug(answer) == (403, "foreign-origin"), origin
    assert slug(client.post("/v1/jobs/nope/retrain", headers={"origin": own})) == (404, "unknown-job")
    assert client.get("/v1/models", headers={"origin": "https://evil.example"}).status_code == 200


def test_a_good_key_needs_no_origin(keyed: Keyed) -> None:
    """A dashboard's own server may pass on what the browser told it."""
    headers = JSON | bearer(keyed.keys["forecast"]) | {"origin": "https://dashboard.example"}
    assert keyed.client.post("/v1/forecast", content=GOOD, headers=headers).status_code == 200


def test_where_nobody_is_asked_no_header_of_a_key_is_looked_at(client: httpx.Client) -> None:
    twice = [("x-api-key", "a"), ("x-api-key", "b"), ("authorization", "Bearer c")]
    assert client.get("/v1/models", headers=twice).status_code == 200


def test_no_other_origin_may_read_unless_it_is_allowed(client: httpx.Client, serve: Serve) -> None:
    preflight = {"origin": "https://plant.example", "access-control-request-method": "POST"}
    off = client.get("/v1/models", headers=preflight)
    assert not [name for name in off.headers if name.startswith("access-control")]
    with serve(cors_origins="https://plant.example", ready=False) as allowing:
        asked = allowing.options("/v1/forecast", headers=preflight)
        assert asked.headers["access-control-allow-origin"] == "https://plant.example"
        assert asked.headers["x-content-type-options"] == "nosniff"
        answer = allowing.post("/v1/forecast", headers=preflight)
        assert answer.status_code == 415
        assert answer.headers["access-control-allow-origin"] == "https://plant.example"
        other = allowing.options("/v1/forecast", headers=preflight | {"origin": "https://evil.example"})
        assert "access-control-allow-origin" not in other.headers


def test_a_star_never_allows_credentials(serve: Serve) -> None:
    with serve(cors_origins="*", ready=False) as client:
        answer = client.get("/v1/models", headers={"origin": "https://evil.example", "cookie": "a=b"})
        assert answer.headers["access-control-allow-origin"] == "*"
        assert "access-control-allow-credentials" not in answer.headers


def test_a_preflight_needs_no_key(serve: Serve, tmp_path: Path) -> None:
    headers = {
        "origin": "https://plant.example",
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,x-api-key,content-type,content-encoding",
    }
    make_keys(tmp_path / "keys.json")
    with serve(cors_origins="https://plant.example", keys_file=tmp_path / "keys.json", ready=False) as client:
        assert client.options("/v1/forecast", headers=headers).status_code == 200
        refused = client.post("/v1/forecast", headers=headers)
        assert refused.status_code == 401
        assert refused.headers["access-control-allow-origin"] == "https://plant.example"


def test_so_many_headers_and_so_long_an_address_are_taken_and_no_more(client: httpx.Client) -> None:
    usual = len(client.get("/v1/models").request.headers)
    few = {f"x-{i}": "y" for i in range(MOST_HEADERS - usual)}
    assert client.get("/v1/models", headers=few).status_code == 200
    assert slug(client.get("/v1/models", headers=few | {"x-more": "y"})) == (431, "head-too-large")
    room = LONGEST_ADDRESS - len("/v1/models") - len("x=")
    assert client.get(f"/v1/models?x={'y' * room}").status_code == 200
    assert slug(client.get(f"/v1/models?x={'y' * (room + 1)}")) == (431, "head-too-large")


USUAL = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
}


@pytest.mark.parametrize(
    "path", ["/v1/models", "/health/live", "/metrics", "/nowhere", "/openapi.json", "/docs", "/v1/models/nope"]
)
def test_every_answer_tells_browsers_what_not_to_do(client: httpx.Client, path: str) -> None:
    headers = client.get(path).headers
    assert {name: headers[name] for name in USUAL} == USUAL
    assert headers["cache-control"] == "no-store"
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert ("script-src" in headers["content-security-policy"]) == (path == "/docs")


def test_an_error_nobody_foresaw_has_the_headers_too(registry: DirectoryRegistry) -> None:
    app = create_app(ServiceSettings(registry_uri=str(registry.root), ledger_url="off"))

    @app.get("/broken")
    async def broken() -> None:
        raise RuntimeError

    with serve_app(app, ready=False) as client:
        answer = client.get("/broken")
    assert answer.status_code == 500
    assert {name: answer.headers[name] for name in USUAL} == USUAL


def test_the_page_of_the_documentation_may_run_its_own_scripts_and_no_others(client: httpx.Client) -> None:
    page = client.get("/docs")
    policy = dict(part.strip().partition(" ")[::2] for part in page.headers["content-security-policy"].split(";"))
    inline = re.findall(r"<script>(.*?)</script>", page.text, re.DOTALL)
    assert len(inline) == 1
    digests = {f"'sha256-{b64encode(sha256(script.encode()).digest()).decode()}'" for script in inline}
    assert set(policy["script-src"].split()) == {"'self'", *digests}
    assert policy["default-src"] == "'none'"
    assert not re.search(r"\son\w+=", page.text), "the policy allows no handlers in attributes"
    for script in re.findall(r'<script[^>]* src="([^"]+)"', page.text):
        assert script.startswith("/")
        asset = client.get(script)
        assert asset.headers["x-content-type-options"] == "nosniff"
        assert "javascript" in asset.headers["content-type"]
        assert "cache-control" not in asset.headers


@contextmanager
def stream_service(registry: DirectoryRegistry, **settings: object) -> Iterator[str]:
    """Run a service without a model; yield the address of a stream, which answers every message with a problem."""
    app = create_app(ServiceSettings(registry_uri=str(registry.root), ledger_url="off", **settings))
    with serve_app(app, ready=False) as client:
        yield f"ws://127.0.0.1:{client.base_url.port}/v1/stream/pump"


def tell(socket: ClientConnection, message: str, seconds: float = 5) -> str:
    """Send a message; return the kind of problem it is answered with."""
    socket.send(message)
    return str(json.loads(socket.recv(timeout=seconds))["type"])


def test_a_websocket_is_refused_before_it_is_accepted(registry: DirectoryRegistry, tmp_path: Path) -> None:
    keys = make_keys(tmp_path / "keys.json")
    with stream_service(registry, keys_file=tmp_path / "keys.json") as address:
        with connect(address, additional_headers=bearer(keys["forecast"])) as socket:
            assert tell(socket, "21.5") == INVALID_REQUEST.type
        for key, status in ((None, 401), ("revoked", 401), ("read", 403)):
            with pytest.raises(InvalidStatus) as refused:
                connect(address, additional_headers=bearer(keys[key]) if key else None)
            assert refused.value.response.status_code == status
            assert b"urn:hindcast:problem:" in refused.value.response.body
        with pytest.raises(InvalidStatus) as refused:
            connect(address.replace("/v1/stream/pump", "/v1/forecast"), additional_headers=bearer(keys["admin"]))
        assert refused.value.response.status_code == 404


def is_refused(address: str, key: str) -> bool:
    try:
        with connect(address, additional_headers=bearer(key)):
            return False
    except InvalidStatus:
        return True


def test_a_websocket_ends_when_its_key_is_revoked(
    registry: DirectoryRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_ring, "LOOK_SECONDS", 0.02)
    made, key = create_key(tmp_path / "keys.json", "sensor", ["forecast"], NOW)
    with (
        stream_service(registry, keys_file=tmp_path / "keys.json") as address,
        connect(address, additional_headers=bearer(key)) as socket,
    ):
        assert tell(socket, "1") == INVALID_REQUEST.type
        revoke_key(tmp_path / "keys.json", made.id, NOW)
        wait_until(lambda: is_refused(address, key))
        socket.send("2")
        with pytest.raises(ConnectionClosed) as closed:
            socket.recv(timeout=5)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1008


def test_a_stream_is_slowed_down_to_its_rate(registry: DirectoryRegistry, tmp_path: Path) -> None:
    _, key = create_key(tmp_path / "keys.json", "sensor", ["forecast"], NOW, rate=4.0)
    with (
        stream_service(registry, keys_file=tmp_path / "keys.json") as address,
        connect(address, additional_headers=bearer(key)) as socket,
    ):
        large = "x" * 44 * BYTES_OF_A_UNIT  # 40 units are saved: the next message has two seconds to wait
        assert tell(socket, large) == MALFORMED_JSON.type
        with pytest.raises(TimeoutError):
            tell(socket, "1", seconds=0.5)
        assert INVALID_REQUEST.type in socket.recv(timeout=15)


def test_a_websocket_of_a_strangers_page_is_refused(registry: DirectoryRegistry, tmp_path: Path) -> None:
    """Browsers ask nobody before they open one."""
    with stream_service(registry, cors_origins="https://plant.example") as address:
        with pytest.raises(InvalidStatus) as refused:
            connect(address, origin="https://evil.example")
        assert refused.value.response.status_code == 403
        for origin in ("https://plant.example", address.replace("ws", "http").removesuffix("/v1/stream/pump")):
            with connect(address, origin=origin) as socket:
                assert tell(socket, "1") == INVALID_REQUEST.type


def test_all_of_it_takes_microseconds_of_a_request(tmp_path: Path) -> None:
    """Held to five times what was measured, for machines that do other things too."""
    _, key = create_key(tmp_path / "keys.json", "fast", ["forecast"], NOW, rate=1e9)
    ring = KeyRing(tmp_path / "keys.json", 1.0, always=False)
    ring.open()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def receive() -> Message:
        raise AssertionError

    async def send(message: Message) -> None:
        pass

    def scope() -> dict[str, Any]:
        headers = [
            (name, b"x") for name in (b"host", b"user-agent", b"accept", b"content-type", b"content-length")
        ]
        headers.append((b"authorization", f"Bearer {key}".encode()))
        return {
            "type": "http",
            "method": "POST",
            "path": "/v1/forecast",
            "query_string": b"",
            "headers": headers,
        }

    async def seconds(asked: Callable[..., Any], n: int = 2000) -> float:
        scopes = [scope() for _ in range(n)]
        began = time.process_time()
        for one in scopes:
            await asked(one, receive, send)
        return (time.process_time() - began) / n

    guarded = SecurityHeaders(AccessControl(app, ring, ()), {}, "/static-offline-docs")
    best = min(asyncio.run(seconds(guarded)) for _ in range(5))
    assert best < 50e-6
