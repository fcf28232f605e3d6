"""Every error leaves in one shape."""

import logging

import httpx
import pytest
from fastapi import HTTPException, Query

from forecasting.registry import DirectoryRegistry
from service.app import create_app
from service.problems import KINDS, MAX_ERRORS, Problem
from service.settings import ServiceSettings
from tests.service.conftest import Publish, Serve, build_forecaster, serve_app

JSON = {"content-type": "application/json"}


def one_series(**changes: object) -> dict[str, object]:
    return {"model": "pump", "series": [{"unique_id": "a", "start": "2024-01-01", "y": [1.0], **changes}]}


@pytest.mark.parametrize(
    ("method", "path", "content", "headers", "status", "slug"),
    [
        ("GET", "/nowhere", b"", {}, 404, "not-found"),
        ("GET", "/static-offline-docs/nowhere.js", b"", {}, 404, "not-found"),
        ("GET", "/static-offline-docs/../../settings.py", b"", {}, 404, "not-found"),
        ("GET", "/v1/models/nope", b"", {}, 404, "unknown-model"),
        ("GET", "/v1/forecast", b"", {}, 405, "method-not-allowed"),
        ("DELETE", "/v1/models/pump", b"", {}, 405, "method-not-allowed"),
        ("POST", "/health/live", b"", {}, 405, "method-not-allowed"),
        ("POST", "/v1/forecast", b"{}", {}, 415, "unsupported-media-type"),
        ("POST", "/v1/forecast", b"{", JSON, 400, "malformed-json"),
        ("POST", "/v1/forecast", b"[" * 9999, JSON, 400, "malformed-json"),
        ("POST", "/v1/forecast", b'{"model":"\xff"}', JSON, 400, "malformed-json"),
        ("POST", "/v1/forecast", b"{}", JSON, 422, "invalid-request"),
        ("POST", "/v1/forecast", b" " * (9 * 1024**2), JSON, 413, "body-too-large"),
    ],
)
def test_every_error_has_the_one_shape(
    client: httpx.Client, method: str, path: str, content: bytes, headers: dict[str, str], status: int, slug: str
) -> None:
    answer = client.request(method, path, content=content, headers=headers)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    problem = Problem.model_validate_json(answer.content, strict=True)
    assert problem.type == f"urn:hindcast:problem:{slug}"
    assert problem.status == status
    assert problem.instance == answer.headers["x-request-id"]
    assert list(answer.json()) == ["type", "title", "status", "detail", "instance", "errors"]


def test_a_method_that_is_not_allowed_names_those_that_are(client: httpx.Client) -> None:
    answer = client.put("/v1/forecast")
    assert answer.headers["allow"] == "POST"
    assert answer.json()["detail"] == "PUT is not answered here; POST is"


def test_the_list_of_errors_is_bounded_and_the_rest_is_counted(publish: Publish, serve: Serve) -> None:
    publish(build_forecaster("pump"))
    with serve() as client:
        series = [{"unique_id": str(i), "start": "2024-01-01", "y": [None]} for i in range(150)]
        problem = client.post("/v1/forecast", json={"model": "pump", "series": series}).json()
    assert len(problem["errors"]) == MAX_ERRORS
    assert problem["detail"].endswith("(and 149 more problems)")


@pytest.mark.parametrize("sent", ["job-42.retry_1", "A" * 64])
def test_a_sane_request_id_is_kept(client: httpx.Client, sent: str) -> None:
    answer = client.get("/nowhere", headers={"x-request-id": sent})
    assert answer.headers["x-request-id"] == answer.json()["instance"] == sent


@pytest.mark.parametrize("sent", ["", "a b", "a/b", "A" * 65, "<script>", "a\tb"])
def test_any_other_request_id_is_replaced(client: httpx.Client, sent: str) -> None:
    answer = client.get("/nowhere", headers={"x-request-id": sent})
    assert len(answer.headers["x-request-id"]) == 32
    assert answer.headers["x-request-id"].isalnum()


def test_an_error_nobody_foresaw_says_nothing_and_is_in_the_log(
    registry: DirectoryRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    app = create_app(ServiceSettings(registry_uri=str(registry.root), ledger_url="off"))

    @app.get("/broken")
    async def broken() -> None:
        raise RuntimeError("the secret of /var/lib")

    with caplog.at_level(logging.INFO), serve_app(app, ready=False) as client:
        answer = client.get("/broken", headers={"x-request-id": "find-me"})
    assert answer.status_code == 500
    problem = Problem.model_validate_json(answer.content)
    assert (problem.type, problem.instance) == ("urn:hindcast:problem:internal-error", "find-me")
    assert "secret" not in answer.text
    assert "Traceback" not in answer.text
    assert "the secret of /var/lib" in caplog.text
    assert "request find-me failed" in caplog.text


def test_errors_of_the_framework_have_the_shape_too(registry: DirectoryRegistry) -> None:
    app = create_app(ServiceSettings(registry_uri=str(registry.root), ledger_url="off"))

    @app.get("/picky")
    async def picky(n: int = Query()) -> int:
        return n

    @app.get("/teapot")
    async def teapot() -> None:
        raise HTTPException(418)

    with serve_app(app, ready=False) as client:
        wrong, teapot_answer = client.get("/picky?n=x"), client.get("/teapot")
    assert (wrong.status_code, wrong.json()["errors"][0]["path"]) == (422, "query.n")
    assert teapot_answer.json()["type"] == "urn:hindcast:problem:bad-request"


def test_kinds_are_told_apart_by_their_type() -> None:
    assert len({kind.type for kind in KINDS}) == len(KINDS)
