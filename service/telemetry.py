"""What can be measured from outside: the one room of `prometheus_client`."""

import time
from collections.abc import Iterable, Iterator

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from service.inference import InferenceThread
from service.ledger_link import LedgerLink
from service.model_slot import LoadedModel, ModelSlot, ModelSlots
from service.recorder import Recorder

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

_WINDOWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096)


class Telemetry:
    """The counters of one service; each service has its own, so that two can live in one process."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._requests = Counter(
            "hindcast_http_requests", "Requests answered.", ["route", "status"], registry=self.registry
        )
        self._request_seconds = Histogram(
            "hindcast_http_request_seconds",
            "Time from the first byte to the last.",
            ["route"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._series = Counter(
            "hindcast_series_forecast",
            "Series forecast, by status and why it is not ok.",
            ["model", "status", "reason"],
            registry=self.registry,
        )
        self._inference_seconds = Histogram(
            "hindcast_inference_seconds",
            "Time of the network alone.",
            ["model"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._batch_windows = Histogram(
            "hindcast_batch_windows",
            "Windows in one forward pass: requests that arrive together share one.",
            ["model"],
            buckets=_WINDOWS,
            registry=self.registry,
        )
        self._swaps = Counter(
            "hindcast_model_swaps",
            "Attempts to follow the registry to another version.",
            ["model", "outcome"],
            registry=self.registry,
        )

        self._kept = Counter(
            "hindcast_forecasts_kept",
            "Forecasts answered, by what became of them: written to the ledger; dropped, because memory, files or "
            "disk are full; refused by the ledger.",
            ["outcome"],
            registry=self.registry,
        )

    def watch(self, slots: ModelSlots) -> None:
        """Show the state of the models, as it is at every scrape."""
        self.registry.register(_SlotCollector(slots))

    def watch_inference(self, inference: InferenceThread) -> None:
        """Show how often the thread that runs networks had to be started again."""
        restarts = Gauge(
            "hindcast_inference_restarts", "How often the inference thread died.", registry=self.registry
        )
        restarts.set_function(lambda: inference.restarts)

    def watch_ledger(self, link: LedgerLink, recorder: Recorder) -> None:
        """Show whether the ledger answers and what waits for it, as it is at every scrape."""
        self.registry.register(_LedgerCollector(link, recorder))

    def record_kept(self, outcome: str, count: int) -> None:
        """Count what became of answered forecasts."""
        self._kept.labels(outcome).inc(count)

    def record_request(self, route: str, status: int, seconds: float) -> None:
        """Count one answered request; `route` is a template, never an address somebody made up."""
        self._requests.labels(route, str(status)).inc()
        self._request_seconds.labels(route).observe(seconds)

    def record_series(self, model: str, outcomes: Iterable[tuple[str, str]]) -> None:
        """Count forecast series, each by its status and why it is not ok: a word, empty where it is."""
        for status, reason in outcomes:
            self._series.labels(model, status, reason).inc()

    def record_inference(self, model: LoadedModel, windows: int, seconds: float) -> None:
        """Record one forward pass of a network over so many windows."""
        self._inference_seconds.labels(model.name).observe(seconds)
        self._batch_windows.labels(model.name).observe(windows)

    def record_swap(self, model: str, succeeded: bool) -> None:
        """Count an attempt to load a version."""
        self._swaps.labels(model, "success" if succeeded else "failure").inc()

    def expose(self) -> bytes:
        """Return every metric in Prometheus' text format."""
        return generate_latest(self.registry)


class _SlotCollector(Collector):
    """Reads the slots when scraped, so that no label of a replaced version lingers."""

    def __init__(self, slots: ModelSlots) -> None:
        self.slots = slots

    def collect(self) -> Iterator[Metric]:
        slots = self.slots.all()
        info = GaugeMetricFamily(
            "hindcast_model_info", "The version that answers.", labels=["model", "version", "digest"]
        )
        age = GaugeMetricFamily("hindcast_model_age_seconds", "Time since it was loaded.", labels=["model"])
        stale = GaugeMetricFamily(
            "hindcast_model_stale", "1 while the registry cannot be followed.", labels=["model"]
        )
        copy = GaugeMetricFamily(
            "hindcast_model_from_disk",
            "1 while the last good copy from disk answers and the registry has not confirmed it.",
            labels=["model"],
        )
        for slot in slots:
            stale.add_metric([slot.name], float(slot.failure is not None))
            copy.add_metric([slot.name], float(slot.current is not None and slot.current.from_disk))
            _add_loaded(slot, info, age)
        ready = GaugeMetricFamily("hindcast_ready", "1 while every required model answers.")
        ready.add_metric([], float(not self.slots.missing()))
        trouble = GaugeMetricFamily("hindcast_registry_failing", "1 while the registry does not answer.")
        trouble.add_metric([], float(self.slots.registry_trouble is not None))
        yield from (info, age, stale, copy, ready, trouble)


class _LedgerCollector(Collector):
    """Asks whether the ledger answers when scraped; nothing is shown where there is none."""

    def __init__(self, link: LedgerLink, recorder: Recorder) -> None:
        self.link = link
        self.recorder = recorder

    def collect(self) -> Iterator[Metric]:
        if self.link.enabled:
            failing = GaugeMetricFamily("hindcast_ledger_failing", "1 while the ledger does not answer.")
            failing.add_metric([], float(self.link.trouble is not None))
            yield failing
        if self.recorder.enabled:
            waiting = GaugeMetricFamily(
                "hindcast_forecasts_waiting_bytes", "Forecasts that wait to be written.", labels=["where"]
            )
            waiting.add_metric(["memory"], float(self.recorder.waiting_bytes))
            waiting.add_metric(["file"], float(self.recorder.unwritten.nbytes))
            yield waiting


def _add_loaded(slot: ModelSlot, info: GaugeMetricFamily, age: GaugeMetricFamily) -> None:
    model = slot.current
    if model is not None:
        info.add_metric([slot.name, model.version, model.digest], 1.0)
        age.add_metric([slot.name], time.time() - model.loaded_at.timestamp())
