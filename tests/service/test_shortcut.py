"""The short way to a forecast answers as the route does, and leaves everything else alone."""

import httpx
import pytest
from fastapi import FastAPI

from tests.service.conftest import serve_app

BODY = {
    "model": "pump",
    "series": [{"unique_id": "pump-7", "start": "2024-01-01", "y": [float(i) for i in range(24)]}],
}


@pytest.fixture
def around(shared_app: FastAPI, client: httpx.Client) -> httpx.Client:
    return client


def test_it_is_counted_under_its_route(around: httpx.Client) -> None:
    def count() -> float:
        lines = around.get("/metrics").text.splitlines()
        wanted = 'hindcast_http_requests_total{route="/v1/forecast",status="200"}'
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(wanted))

    before = count()
    assert around.post("/v1/forecast", json=BODY).status_code == 200
    assert count() == before + 1


def test_a_refusal_is_a_problem_with_the_id_of_the_request(around: httpx.Client) -> None:
    refused = around.post("/v1/forecast", json={**BODY, "model": "nobody"}, headers={"x-request-id": "abc-1"})
    assert refused.status_code == 404
    assert refused.headers["content-type"] == "application/problem+json"
    assert refused.headers["x-request-id"] == "abc-1"
    assert "nobody" in refused.json()["detail"]


def test_another_method_is_refused_by_the_route(around: httpx.Client) -> None:
    refused = around.get("/v1/forecast")
    assert (refused.status_code, refused.headers["allow"]) == (405, "POST")


def test_both_ways_give_the_same_answer(shared_app: FastAPI, around: httpx.Client) -> None:
    """Mounted below another path, the request takes the route."""
    outer = FastAPI()
    outer.mount("/below", shared_app)
    with serve_app(outer, ready=False) as other:
        answers = [around.post("/v1/forecast", json=BODY), other.post("/below/v1/forecast", json=BODY)]
    first, second = (answer.json()["forecasts"] for answer in answers)
    assert first == second
