"""Whoever asks in whatever protocol: an overloaded service says so in its words, and when to come back."""

import json
from typing import Any

import httpx

from forecasting.registry import DirectoryRegistry
from service.app import create_app
from service.settings import ServiceSettings
from tests.service.conftest import Publish, Serve, build_forecaster, serve_app

Y = [float(i) for i in range(12)]
REQUESTS: list[tuple[str, dict[str, Any]]] = [
    ("/v2/forecast", {"series": {"y": Y, "sizes": [12]}, "freq": "h", "h": 1}),
    (
        "/v2/cross_validation",
        {"series": {"y": Y, "sizes": [12]}, "freq": "h", "h": 1, "n_windows": 1, "step_size": 1},
    ),
    ("/v2/anomaly_detection", {"series": {"y": Y, "sizes": [12]}, "freq": "h"}),
    ("/v2/models/pump/infer", {"inputs": [{"name": "y", "datatype": "FP64", "shape": [1, 12], "data": Y}]}),
    ("/invocations", {"inputs": {"unique_id": ["a"], "ds": ["2024-01-01"], "y": [1.0]}}),
]


def reason_of(answer: httpx.Response) -> str:
    told = answer.json()
    return str(told.get("detail") or told.get("error") or told["message"])


def test_a_full_service_says_when_to_come_back(publish: Publish, registry: DirectoryRegistry) -> None:
    publish(build_forecaster("pump", "h"))
    settings = ServiceSettings(registry_uri=str(registry.root), ledger_url="off", max_in_flight=1)
    app = create_app(settings, registry)
    with serve_app(app) as client, app.state.runtime.admission():
        for path, body in REQUESTS:
            answer = client.post(path, json=body)
            assert answer.status_code == 503, path
            assert answer.headers["retry-after"] == "1"
            assert reason_of(answer).startswith("1 requests are being answered already")


def test_a_body_that_is_too_large_is_refused(publish: Publish, serve: Serve) -> None:
    publish(build_forecaster("pump", "h"))
    with serve(max_body_bytes=1024) as client:
        for path, _ in REQUESTS:
            answer = client.post(path, content=b" " * 2000, headers={"content-type": "application/json"})
            assert answer.status_code == 413, path
            assert reason_of(answer) == "the body is larger than 1024 bytes, the most this service takes"


def test_a_model_that_is_not_loaded_is_said_to_be(serve: Serve) -> None:
    with serve(ready=False, models="pump") as client:
        for path, body in REQUESTS:
            answer = client.post(path, content=json.dumps(body), headers={"content-type": "application/json"})
            assert answer.status_code == 503, path
            assert answer.headers["retry-after"] == "5"
