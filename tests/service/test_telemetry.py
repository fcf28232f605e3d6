"""What can be seen from outside: metrics and log lines, and no data in either."""

import logging

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.service.conftest import Publish, Serve, build_forecaster, wait_until
from tests.service.test_model_slot import truncate_weights

SERIES = {"unique_id": "secret-pump", "start": "2024-01-01", "y": [1234.5] * 6 + [5432.25] * 6}


def sample(client: httpx.Client, name: str, **labels: str) -> float | None:
    families = text_string_to_metric_families(client.get("/metrics").text)
    found = [s.value for f in families for s in f.samples if s.name == name and labels.items() <= s.labels.items()]
    return sum(found) if found else None


def test_requests_series_and_inference_are_counted(publish: Publish, serve: Serve) -> None:
    publish(build_forecaster("pump"))
    with serve() as client:
        two = [SERIES, {**SERIES, "unique_id": "b", "y": [(-1) ** i * 1e300 for i in range(12)]}]
        client.post("/v1/forecast", json={"model": "pump", "series": two})
        client.post("/v1/forecast", json={"model": "nope", "series": two})
        wait_until(lambda: sample(client, "hindcast_http_request_seconds_count", route="/v1/forecast") == 2)
        assert sample(client, "hindcast_http_requests_total", route="/v1/forecast", status="200") == 1
        assert sample(client, "hindcast_http_requests_total", route="/v1/forecast", status="404") == 1
        assert sample(client, "hindcast_series_forecast_total", model="pump", status="ok") == 1
        assert sample(client, "hindcast_series_forecast_total", model="pump", status="degraded") == 1
        assert sample(client, "hindcast_inference_seconds_count", model="pump") == 1


def test_swaps_versions_and_staleness_are_shown(publish: Publish, serve: Serve) -> None:
    first = publish(build_forecaster("pump", seed=1))
    with serve() as client:
        assert sample(client, "hindcast_model_info", model="pump", version="1", digest=first.digest or "") == 1
        assert sample(client, "hindcast_model_age_seconds", model="pump") >= 0
        assert sample(client, "hindcast_model_stale", model="pump") == 0
        publish(build_forecaster("pump", seed=2), damage=truncate_weights)
        wait_until(lambda: sample(client, "hindcast_model_stale", model="pump") == 1)
        assert sample(client, "hindcast_model_swaps_total", model="pump", outcome="failure") >= 1
        assert sample(client, "hindcast_ready") == 1
        publish(build_forecaster("pump", seed=3))
        wait_until(lambda: sample(client, "hindcast_model_info", model="pump", version="3") == 1)
        assert sample(client, "hindcast_model_info", version="1") is None, "a version that is gone is not shown"
        assert sample(client, "hindcast_model_swaps_total", model="pump", outcome="success") == 2
        assert sample(client, "hindcast_model_stale", model="pump") == 0


def test_made_up_addresses_make_no_new_labels(client: httpx.Client) -> None:
    for path in ("/a", "/b", "/v1/models/c/d"):
        client.get(path)
    text = client.get("/metrics").text
    assert 'route="other"' in text
    assert 'route="/a"' not in text
    assert "/c/d" not in text


def request_lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the lines of all requests but those with which the fixture waits for readiness."""
    lines = [record.getMessage() for record in caplog.records if record.name == "hindcast.requests"]
    return [line for line in lines if "/health/ready" not in line]


def test_one_line_a_request_with_id_path_status_and_duration_and_no_data(
    publish: Publish, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    publish(build_forecaster("pump"))
    with caplog.at_level(logging.INFO, logger="hindcast"), serve() as client:
        body = {"model": "pump", "series": [SERIES]}
        client.post("/v1/forecast", json=body, headers={"x-request-id": "abc"})
        client.post("/v1/forecast", json={**body, "h": 99})
        client.get("/no%0Awhere")
        # A line is written once the answer is out, which may be after the client has read it.
        wait_until(lambda: len(request_lines(caplog)) >= 3)
    lines = request_lines(caplog)
    assert len(lines) == 3
    assert lines[0].startswith("id=abc POST /v1/forecast status=200 ms=")
    assert "POST /v1/forecast status=422" in lines[1]
    assert "GET /no%0Awhere status=404" in lines[2]
    assert "secret-pump" not in caplog.text
    assert "1234.5" not in caplog.text
