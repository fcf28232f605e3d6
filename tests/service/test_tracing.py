"""Traces, as a collector receives them: a real OTLP receiver reads what a real service sends."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from service.journey import STAGES
from service.tracing import Tracing, open_tracing
from tests.service.conftest import Publish, Serve, build_forecaster

SERIES = {"unique_id": "secret-pump", "start": "2024-01-01", "y": [1234.5] * 12}
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


class Collector:
    """What arrived at an OTLP endpoint."""

    def __init__(self) -> None:
        self.requests: list[ExportTraceServiceRequest] = []
        self.address = ""

    @property
    def spans(self) -> list[Span]:
        return [s for r in self.requests for rs in r.resource_spans for ss in rs.scope_spans for s in ss.spans]

    def of(self, name: str) -> list[Span]:
        return [span for span in self.spans if span.name == name]


@contextmanager
def collecting() -> Iterator[Collector]:
    """Receive traces over OTLP/HTTP until the block ends."""
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.path == "/v1/traces" and self.headers["content-type"] == "application/x-protobuf":
                collector.requests.append(ExportTraceServiceRequest.FromString(body))
            self.send_response(200)
            self.send_header("content-type", "application/x-protobuf")
            self.end_headers()
            self.wfile.write(ExportTraceServiceResponse().SerializeToString())

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    collector.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield collector
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    with collecting() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.address)
        monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=test")
        yield collector


def attributes(span: Span) -> dict[str, object]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in span.attributes}


def test_a_request_and_its_stages_reach_the_collector_within_the_callers_trace(
    publish: Publish, serve: Serve, collector: Collector
) -> None:
    publish(build_forecaster("pump"))
    with serve() as client:
        sent = {"traceparent": f"00-{TRACE}-{PARENT}-01", "x-request-id": "abc"}
        body = {"model": "pump", "series": [SERIES]}
        assert client.post("/v1/forecast?secret=1", json=body, headers=sent).status_code == 200
    (request,) = collector.of("POST /v1/forecast")
    assert (request.trace_id.hex(), request.parent_span_id.hex()) == (TRACE, PARENT)
    assert request.kind == Span.SPAN_KIND_SERVER
    assert attributes(request) == {
        "http.request.method": "POST",
        "http.route": "/v1/forecast",
        "http.response.status_code": 200,
        "hindcast.request_id": "abc",
        "hindcast.model": "pump",
        "hindcast.model.version": "1",
        "hindcast.series": 1,
    }
    stages = [span for span in collector.spans if span.parent_span_id == request.span_id]
    assert [span.name for span in stages] == list(STAGES)
    moments = [request.start_time_unix_nano, *(span.end_time_unix_nano for span in stages)]
    assert moments == sorted(moments)
    resource = collector.requests[0].resource_spans[0].resource.attributes
    known = {one.key: one.value.string_value for one in resource}
    assert (known["service.name"], known["deployment.environment"]) == ("hindcast", "test")
    assert b"secret" not in b"".join(one.SerializeToString() for one in collector.requests)
    assert not [span for span in collector.spans if "/health" in span.name]


def test_requests_and_the_batch_they_shared_are_linked(
    publish: Publish, serve: Serve, collector: Collector
) -> None:
    publish(build_forecaster("pump"))
    with serve() as client:
        for _ in range(2):
            client.post("/v1/forecast", json={"model": "pump", "series": [SERIES]})
    requests, batches = collector.of("POST /v1/forecast"), collector.of("batch")
    shared = {link.span_id for batch in batches for link in batch.links}
    assert shared == {request.span_id for request in requests}
    used = {link.span_id for span in collector.of("predict") for link in span.links}
    assert used == {batch.span_id for batch in batches}
    assert all(attributes(batch)["hindcast.batch.windows"] == len(batch.links) for batch in batches)


def test_a_caller_that_does_not_sample_is_not_traced(publish: Publish, serve: Serve, collector: Collector) -> None:
    publish(build_forecaster("pump"))
    with serve() as client:
        client.get("/v1/models", headers={"traceparent": f"00-{TRACE}-{PARENT}-00"})
        client.get("/v1/models", headers={"traceparent": "garbage"})
    assert len(collector.of("GET /v1/models")) == 1


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_SDK_DISABLED": "true"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_TRACES_EXPORTER": "none"},
    ],
)
def test_nothing_is_traced_unless_it_is_configured(environment: dict[str, str]) -> None:
    assert type(open_tracing("1", environment)) is Tracing


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "OTEL_EXPORTER_OTLP_PROTOCOL is 'grpc'; .* http/protobuf"),
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "OTEL_TRACES_EXPORTER is 'zipkin'"),
    ],
)
def test_what_cannot_be_sent_is_refused_at_the_start(more: dict[str, str], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        open_tracing("1", {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", **more})


def test_traces_without_the_package_are_refused_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(
        ValueError, match=r"is set, and opentelemetry\S+ is not installed: pip install 'hindcast\[otel\]'"
    ):
        open_tracing("1", {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"})
