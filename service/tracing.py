"""Traces of requests for whoever collects them: the one room of `opentelemetry`, entered only when configured.

OpenTelemetry's own variables say where traces go (`OTEL_EXPORTER_OTLP_ENDPOINT`), which are sampled, and how many
wait. Stages become spans once the request is over, of what its journey knows: nothing on the way waits for them.
"""

import os
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from starlette.types import Scope

from service.journey import Journey

if TYPE_CHECKING:
    from opentelemetry.trace import Span

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL")
PROTOCOL = "http/protobuf"
UNTRACED = ("/health/", "/metrics")
"""What asks every few seconds how the service is."""


class Tracing:
    """Nothing is traced: what a service has when nothing was configured."""

    def begin(self, journey: Journey, scope: Scope) -> None:
        """Begin the span of a request, within the trace of who sent it."""

    def end(self, journey: Journey, method: str, route: str | None) -> None:
        """End the span of a request, and show its stages."""

    def note_batch(
        self, journeys: Iterable[Journey], model: str, windows: int, began: float, ended: float
    ) -> None:
        """Show one forward pass, linked to the requests that shared it and they to it."""

    def stop(self) -> None:
        """Send what waits to be sent."""


def open_tracing(version: str, environment: Mapping[str, str] = os.environ) -> Tracing:
    """Return what traces requests as the environment has it; the SDK reads the rest of it by itself.

    Raises:
        ValueError: traces are configured, and cannot be sent.
    """
    named = next((name for name in ENDPOINTS if environment.get(name)), None)
    off = environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    exporter = environment.get("OTEL_TRACES_EXPORTER", "otlp").strip() or "otlp"
    if named is None or off or exporter == "none":
        return Tracing()
    if exporter != "otlp":
        raise ValueError(f"OTEL_TRACES_EXPORTER is {exporter!r}; this service sends otlp, or none")
    for name in PROTOCOLS:
        if environment.get(name, PROTOCOL) != PROTOCOL:
            raise ValueError(f"{name} is {environment[name]!r}; this service speaks {PROTOCOL}")
    try:
        return _OpenTelemetry(version)
    except ImportError as error:
        detail = f"{named} is set, and {error.name} is not installed"
        raise ValueError(f"{detail}: pip install 'hindcast[otel]', or unset it") from error


class _OpenTelemetry(Tracing):
    """Sends spans over OTLP/HTTP, from a thread of its own."""

    def __init__(self, version: str) -> None:
        from opentelemetry import propagate, trace
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        told = OTELResourceDetector().detect().attributes
        resource = Resource.create({"service.name": "hindcast", "service.version": version, **told})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("hindcast", version)
        self._trace = trace
        self._extract = propagate.extract

    def begin(self, journey: Journey, scope: Scope) -> None:
        if scope["path"].startswith(UNTRACED):
            return
        carrier = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        journey.span = self._tracer.start_span(
            scope["method"], self._extract(carrier), self._trace.SpanKind.SERVER, start_time=_epoch(journey.began)
        )

    def end(self, journey: Journey, method: str, route: str | None) -> None:
        span: Span | None = journey.span
        if span is None:
            return
        if span.is_recording():
            self._describe(span, journey, method, route)
            self._show_stages(span, journey)
        span.end()

    def _describe(self, span: "Span", journey: Journey, method: str, route: str | None) -> None:
        span.update_name(f"{method} {route}" if route else method)
        known = {
            "http.request.method": method,
            "http.route": route,
            "http.response.status_code": journey.status,
            "error.type": journey.problem,
            "hindcast.request_id": journey.request_id,
            "hindcast.model": journey.model,
            "hindcast.model.version": journey.version,
            "hindcast.series": journey.series or None,
        }
        span.set_attributes({name: value for name, value in known.items() if value is not None})
        if journey.status >= 500:
            span.set_status(self._trace.StatusCode.ERROR)

    def _show_stages(self, span: "Span", journey: Journey) -> None:
        inside = self._trace.set_span_in_context(span)
        for stage, began, ended in journey.stages():
            links = [self._trace.Link(batch) for batch in journey.batches] if stage == "predict" else []
            child = self._tracer.start_span(stage, inside, links=links, start_time=_epoch(began))
            child.end(_epoch(ended))

    def note_batch(
        self, journeys: Iterable[Journey], model: str, windows: int, began: float, ended: float
    ) -> None:
        served = [journey for journey in journeys if journey.span is not None and journey.span.is_recording()]
        if not served:
            return
        attributes: dict[str, Any] = {"hindcast.model": model, "hindcast.batch.windows": windows}
        links = [self._trace.Link(journey.span.get_span_context()) for journey in served]
        nowhere = self._trace.set_span_in_context(self._trace.INVALID_SPAN)
        batch = self._tracer.start_span(
            "batch", nowhere, attributes=attributes, links=links, start_time=_epoch(began)
        )
        batch.end(_epoch(ended))
        for journey in served:
            journey.batches.append(batch.get_span_context())

    def stop(self) -> None:
        self._provider.shutdown()


def _epoch(moment: float) -> int:
    """Return a moment of `time.perf_counter` in nanoseconds since 1970."""
    return time.time_ns() - int((time.perf_counter() - moment) * 1e9)
