"""What can be measured from outside."""

import gc
import re
import shutil
import subprocess
from pathlib import Path

import httpx
import pytest
from prometheus_client import Histogram
from prometheus_client.parser import text_string_to_metric_families

from service.journey import STAGES
from service.telemetry import _FastHistogram
from tests.conftest import missing_service
from tests.service.conftest import Publish, Serve, build_forecaster, wait_until
from tests.service.test_limits import admitted_request
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


def test_the_stages_of_a_request_are_measured_and_add_up_to_the_whole(publish: Publish, serve: Serve) -> None:
    publish(build_forecaster("pump"))
    with serve() as client:
        client.post("/v1/forecast", json={"model": "pump", "series": [SERIES]})
        wait_until(lambda: sample(client, "hindcast_http_request_seconds_count", route="/v1/forecast") == 1)
        seen = {stage: sample(client, "hindcast_stage_seconds_count", stage=stage) for stage in STAGES}
        assert seen == dict.fromkeys(STAGES, 1)
        whole = sample(client, "hindcast_http_request_seconds_sum", route="/v1/forecast")
        assert sample(client, "hindcast_stage_seconds_sum") == pytest.approx(whole)


def test_refusals_are_counted_by_reason(publish: Publish, serve: Serve) -> None:
    publish(build_forecaster("pump"))
    with serve() as client:
        client.post("/v1/forecast", json={"model": "pump", "series": [{**SERIES, "y": []}]})
        client.post("/v1/forecast", content=b"{", headers={"content-type": "application/json"})
        client.post("/v1/forecast", content=b"{", headers={"content-type": "text/plain"})
        wait_until(lambda: sample(client, "hindcast_http_request_seconds_count", route="/v1/forecast") == 3)
        for reason in ("invalid-request", "malformed-json", "unsupported-media-type"):
            assert sample(client, "hindcast_refusals_total", reason=reason) == 1


def test_what_is_being_worked_on_is_shown(publish: Publish, serve: Serve) -> None:
    publish(build_forecaster("pump"))
    with serve() as client:
        assert sample(client, "hindcast_requests_in_flight") == 0
        with admitted_request(client):
            assert sample(client, "hindcast_requests_in_flight") == 1
        assert sample(client, "hindcast_queue_series") == 0


def test_garbage_collections_are_timed_and_no_longer_once_the_service_ended(
    publish: Publish, serve: Serve
) -> None:
    publish(build_forecaster("pump"))
    listening = list(gc.callbacks)
    with serve() as client:
        before = sample(client, "hindcast_gc_seconds_total", generation="2")
        gc.collect()
        assert sample(client, "hindcast_gc_seconds_total", generation="2") > before
        assert sample(client, "python_gc_collections_total", generation="2") > 0
        assert len(gc.callbacks) == len(listening) + 1
    assert gc.callbacks == listening


def test_a_histogram_puts_amounts_where_prometheus_does() -> None:
    """The faster way of observing relies on how the library keeps its buckets."""
    edges = (0.1, 1.0, 10.0)
    fast, plain = (kind("x_seconds", "X.", buckets=edges, registry=None) for kind in (_FastHistogram, Histogram))
    for amount in (0.0, 0.05, 0.1, 0.100001, 1.0, 5, 10.0, 11, 1e9):
        fast.observe(amount)
        plain.observe(amount)
    assert next(iter(fast.collect())).samples == next(iter(plain.collect())).samples


def test_metrics_are_named_as_prometheus_asks_and_listed_in_the_handbook(client: httpx.Client) -> None:
    """What `promtool check metrics` looks at, and that docs/operations.md leaves nothing out."""
    client.post("/v1/forecast", json={})
    families = list(text_string_to_metric_families(client.get("/metrics").text))
    page = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    listed = set(re.findall(r"^\| `(hindcast_\w+)", page, re.MULTILINE))
    for family in families:
        assert re.fullmatch(r"[a-z][a-z0-9_]*", family.name)
        assert family.documentation.strip(), family.name
        assert not re.search(
            r"_(total|count|sum|bucket|ms|millis|milliseconds|minutes|gauge|counter)$", family.name
        )
        samples = {sample.name for sample in family.samples}
        if family.type == "counter":
            assert samples <= {f"{family.name}_total", f"{family.name}_created"}
        if family.type == "histogram":
            assert family.name.endswith(("_seconds", "_windows")), family.name
    shown = {f.name + "_total" * (f.type == "counter") for f in families if f.name.startswith("hindcast_")}
    assert shown <= listed, f"docs/operations.md does not list {sorted(shown - listed)}"


def test_promtool_finds_nothing_to_complain_of(client: httpx.Client) -> None:
    promtool = shutil.which("promtool") or ""
    if not promtool:
        missing_service("needs promtool (Debian: prometheus); the test above looks at the same rules")
    metrics = client.get("/metrics").text
    checked = subprocess.run([promtool, "check", "metrics"], input=metrics, capture_output=True, text=True)
    assert (checked.returncode, checked.stderr) == (0, "")
