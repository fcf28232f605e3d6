"""What can be measured from outside: the one room of `prometheus_client`."""

import gc
import time
from bisect import bisect_left
from collections import Counter as Tally
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from service.inference import InferenceThread
from service.journey import STAGES, Journey
from service.ledger_link import LedgerLink
from service.model_slot import LoadedModel, ModelSlot, ModelSlots
from service.recorder import Recorder
from service.streams.desk import Desk
from service.streams.telemetry import StreamCollector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_STAGE_SECONDS = (0.00005, 0.0001, 0.00025, 0.0005, *_SECONDS)

_WINDOWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096)

M = TypeVar("M", Counter, Histogram)


class _FastHistogram(Histogram):
    """A histogram that finds its bucket by bisection, and asks nothing twice: half the time of an observation."""

    def observe(self, amount: float, exemplar: dict[str, str] | None = None) -> None:
        """Observe an amount; there are no exemplars."""
        del exemplar
        self._sum.inc(amount)
        self._buckets[bisect_left(self._upper_bounds, amount)].inc(1)


class _Children(dict[tuple[str, ...], M]):
    """The children of a metric by their labels: a dictionary finds one in a tenth of the time."""

    def __init__(self, make: Callable[..., M]) -> None:
        super().__init__()
        self._make: Callable[..., M] = make

    def __missing__(self, labels: tuple[str, ...]) -> M:
        child = self[labels] = self._make(*labels)
        return child


class Telemetry:
    """The counters of one service; each service has its own, so that two can live in one process."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self._requests = self._count("hindcast_http_requests", "Requests answered.", "route", "status")
        self._request_seconds = self._distribute(
            "hindcast_http_request_seconds", "Time from the head of a request to the end of its answer.", "route"
        )
        stage_seconds = self._distribute(
            "hindcast_stage_seconds",
            "Time of one stage of a request; those of a request add up to the whole.",
            "stage",
            buckets=_STAGE_SECONDS,
        )
        self._observe_stage = {stage: stage_seconds[(stage,)].observe for stage in STAGES}
        self._refusals = self._count(
            "hindcast_refusals", "Requests answered with a problem, by the kind of problem.", "reason"
        )
        self._series = self._count(
            "hindcast_series_forecast",
            "Series forecast, by status and why it is not ok.",
            "model",
            "status",
            "reason",
        )
        self._inference_seconds = self._distribute(
            "hindcast_inference_seconds", "Time of the network alone.", "model"
        )
        self._batch_windows = self._distribute(
            "hindcast_batch_windows",
            "Windows in one forward pass: requests that arrive together share one.",
            "model",
            buckets=_WINDOWS,
        )
        self._swaps = self._count(
            "hindcast_model_swaps", "Attempts to follow the registry to another version.", "model", "outcome"
        )
        self._kept = self._count(
            "hindcast_forecasts_kept",
            "Forecasts answered, by what became of them: written to the ledger; dropped, because memory, files or "
            "disk are full; refused by the ledger.",
            "outcome",
        )

    def _count(self, name: str, help_text: str, *labels: str) -> _Children[Counter]:
        return _Children(Counter(name, help_text, labels, registry=self.registry).labels)

    def _distribute(
        self, name: str, help_text: str, *labels: str, buckets: tuple[float, ...] = _SECONDS
    ) -> _Children[Histogram]:
        return _Children(_FastHistogram(name, help_text, labels, buckets=buckets, registry=self.registry).labels)

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

    def watch_load(self, in_flight: Callable[[], int], waiting: Callable[[], int]) -> None:
        """Show how much is being worked on, as it is at every scrape."""
        self.registry.register(_LoadCollector(in_flight, waiting))

    def watch_connections(self, open_now: Callable[[], int], turned_away: Callable[[], int]) -> None:
        """Show how many connections there are, and how many there was no room for."""
        self.registry.register(_ConnectionCollector(open_now, turned_away))

    def watch_streams(self, desk: Desk) -> None:
        """Show what streams did and what they take, as it is at every scrape."""
        self.registry.register(StreamCollector(desk))

    def watch_collections(self, pauses: "GcPauses") -> None:
        """Show how long garbage collection held everything up."""
        self.registry.register(_GcCollector(pauses))

    def record_kept(self, outcome: str, count: int) -> None:
        """Count what became of answered forecasts."""
        self._kept[(outcome,)].inc(count)

    def record_request(self, route: str, journey: Journey, seconds: float) -> None:
        """Count one answered request; `route` is a template, never an address somebody made up."""
        self._requests[route, str(journey.status)].inc()
        self._request_seconds[(route,)].observe(seconds)
        if journey.problem is not None:
            self._refusals[(journey.problem,)].inc()
        if len(journey.laps) > 1:
            began = journey.began
            for stage, ended in journey.laps:
                self._observe_stage[stage](ended - began)
                began = ended

    def record_series(self, model: str, outcomes: Iterable[tuple[str, str]]) -> None:
        """Count forecast series, each by its status and why it is not ok: a word, empty where it is."""
        for (status, reason), count in Tally(outcomes).items():
            self._series[model, status, reason].inc(count)

    def record_inference(self, model: LoadedModel, windows: int, seconds: float) -> None:
        """Record one forward pass of a network over so many windows."""
        self._inference_seconds[(model.name,)].observe(seconds)
        self._batch_windows[(model.name,)].observe(windows)

    def record_swap(self, model: str, succeeded: bool) -> None:
        """Count an attempt to load a version."""
        self._swaps[model, "success" if succeeded else "failure"].inc()

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


class _LoadCollector(Collector):
    """Reads how much is being worked on when scraped, instead of counting it up and down."""

    def __init__(self, in_flight: Callable[[], int], waiting: Callable[[], int]) -> None:
        self.in_flight = in_flight
        self.waiting = waiting

    def collect(self) -> Iterator[Metric]:
        in_flight = GaugeMetricFamily("hindcast_requests_in_flight", "Forecast requests that are being answered.")
        in_flight.add_metric([], float(self.in_flight()))
        waiting = GaugeMetricFamily(
            "hindcast_queue_series", "Series that wait for the network, or are in it: the depth of the queue."
        )
        waiting.add_metric([], float(self.waiting()))
        yield from (in_flight, waiting)


class _ConnectionCollector(Collector):
    def __init__(self, open_now: Callable[[], int], turned_away: Callable[[], int]) -> None:
        self.open_now = open_now
        self.turned_away = turned_away

    def collect(self) -> Iterator[Metric]:
        connections = GaugeMetricFamily("hindcast_connections", "Connections that are open.")
        connections.add_metric([], float(self.open_now()))
        refused = CounterMetricFamily("hindcast_connections_turned_away", "Connections there was no room for.")
        refused.add_metric([], float(self.turned_away()))
        yield from (connections, refused)


class GcPauses:
    """Adds up the time of Python's garbage collections: it begins one in the midst of anything."""

    def __init__(self) -> None:
        self.seconds = {0: 0.0, 1: 0.0, 2: 0.0}
        """By generation; the oldest takes longest."""
        self._began = 0.0

    def start(self) -> None:
        """Begin to listen."""
        gc.callbacks.append(self._note)

    def stop(self) -> None:
        """Listen no longer."""
        if self._note in gc.callbacks:
            gc.callbacks.remove(self._note)

    def _note(self, phase: str, info: dict[str, int]) -> None:
        # No metric is touched here: its lock may be held by what the collection interrupted.
        if phase == "start":
            self._began = time.perf_counter()
        else:
            self.seconds[info["generation"]] += time.perf_counter() - self._began


class _GcCollector(Collector):
    def __init__(self, pauses: GcPauses) -> None:
        self.pauses = pauses

    def collect(self) -> Iterator[Metric]:
        seconds = CounterMetricFamily(
            "hindcast_gc_seconds",
            "Time of garbage collections; nothing else runs meanwhile.",
            labels=["generation"],
        )
        for generation, spent in self.pauses.seconds.items():
            seconds.add_metric([str(generation)], spent)
        yield seconds


class _LedgerCollector(Collector):
    """Asks whether the ledger answers when scraped; nothing is shown where there is none."""

    def __init__(self, link: LedgerLink, recorder: Recorder) -> None:
        self.link = link
        self.recorder = recorder

    def collect(self) -> Iterator[Metric]:
        if self.link.enabled:
            failing = GaugeMetricFamily("hindcast_ledger_failing", "1 while the ledger does not answer.")
            failing.add_metric([], float(self.link.trouble is not None))
            questions = GaugeMetricFamily(
                "hindcast_ledger_questions", "Questions to the ledger that are not answered yet."
            )
            questions.add_metric([], float(self.link.waiting))
            yield from (failing, questions)
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
