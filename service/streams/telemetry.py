"""What can be measured of streams from outside: read from their tally when scraped."""

import time
from collections.abc import Iterable, Iterator
from itertools import accumulate

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from service.streams.desk import Desk
from service.streams.tally import Spread, StreamTally


class StreamCollector(Collector):
    """Shows a tally; nothing of a model that was never spoken of."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk

    def collect(self) -> Iterator[Metric]:
        tally = self.desk.engine.tally
        yield from self._levels(tally)
        yield _count(
            "hindcast_stream_observations",
            "Observations of streams, by what became of them.",
            ("model", "outcome"),
            tally.observations.copy().items(),
        )
        yield _count(
            "hindcast_stream_forecasts",
            "Forecasts of streams, by status and why it is not ok.",
            ("model", "status", "reason"),
            tally.forecasts.copy().items(),
        )
        yield _count(
            "hindcast_stream_evictions",
            "Series that had to leave memory for the disk, and the disk for good.",
            ("where",),
            (((where,), count) for where, count in tally.evicted.copy().items()),
        )
        seconds = HistogramMetricFamily(
            "hindcast_stream_stage_seconds", "Time of one stage of a group of messages.", labels=["stage"]
        )
        for stage, spread in tally.seconds.items():
            _add(seconds, (stage,), spread)
        passes = HistogramMetricFamily(
            "hindcast_stream_pass_windows",
            "Series in one forward pass of streams.",
            labels=["model", "kind"],
        )
        for labels, spread in tally.passes.copy().items():
            _add(passes, labels, spread)
        yield from (seconds, passes)

    def _levels(self, tally: StreamTally) -> Iterator[Metric]:
        kept = tally.kept
        series = GaugeMetricFamily("hindcast_stream_series", "Series of streams that are kept.", labels=["where"])
        series.add_metric(["memory"], float(kept.in_memory))
        series.add_metric(["disk"], float(kept.on_disk))
        size = GaugeMetricFamily("hindcast_stream_bytes", "What streams take.", labels=["where"])
        size.add_metric(["memory"], float(kept.memory_bytes))
        size.add_metric(["disk"], float(kept.disk_bytes))
        size.add_metric(["journal"], float(kept.journal_bytes))
        sockets = GaugeMetricFamily("hindcast_stream_sockets", "Sockets of streams that are open.")
        sockets.add_metric([], float(self.desk.sockets))
        waiting = GaugeMetricFamily("hindcast_stream_waiting", "Observations that wait for the next group.")
        waiting.add_metric([], float(self.desk.waiting))
        yield from (series, size, sockets, waiting)
        if tally.snapshot_at is not None:
            age = GaugeMetricFamily(
                "hindcast_stream_snapshot_age_seconds",
                "Time since the states were last saved as a whole, or read back at the start.",
            )
            age.add_metric([], time.monotonic() - tally.snapshot_at)
            yield age


def _count(
    name: str, help_text: str, labels: tuple[str, ...], counts: Iterable[tuple[tuple[str, ...], int]]
) -> Metric:
    family = CounterMetricFamily(name, help_text, labels=labels)
    for values, count in counts:
        family.add_metric(values, float(count))
    return family


def _add(family: HistogramMetricFamily, labels: tuple[str, ...], spread: Spread) -> None:
    bounds = [floatToGoString(bound) for bound in (*spread.bounds, float("inf"))]  # type: ignore[no-untyped-call]
    family.add_metric(labels, list(zip(bounds, map(float, accumulate(spread.counts)), strict=True)), spread.total)
