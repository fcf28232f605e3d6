"""What streams did, counted by the thread that does it, and read by whoever wants to know."""

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from forecasting.stream import Pass

Stage = Literal["check", "journal", "advance", "forecast"]
STAGES: tuple[Stage, ...] = ("check", "journal", "advance", "forecast")

SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096)


class Spread:
    """How amounts spread over buckets."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        """Amounts up to each bound and above the one before it; the last is without bound."""
        self.total = 0.0

    def add(self, amount: float) -> None:
        """Count an amount."""
        self.counts[bisect_left(self.bounds, amount)] += 1
        self.total += amount


@dataclass(frozen=True)
class StreamCounts:
    """How many streams there are, and what they take."""

    in_memory: int = 0
    on_disk: int = 0
    memory_bytes: int = 0
    disk_bytes: int = 0
    journal_bytes: int = 0


@dataclass(eq=False)
class StreamTally:
    """Counts since the process began; one thread writes, others may read at any time."""

    kept: StreamCounts = StreamCounts()
    observations: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By model and what became of them."""
    forecasts: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    """By model, status and why it is not ok, in one word."""
    evicted: Counter[str] = field(default_factory=Counter)
    """Series that had to leave memory, or the disk."""
    seconds: dict[Stage, Spread] = field(default_factory=lambda: {stage: Spread(SECONDS) for stage in STAGES})
    """Of a group, or of a round of it: two messages about one series take two, and so do two models."""
    passes: dict[tuple[str, Pass], Spread] = field(default_factory=dict)
    """Series in one forward pass, by model and what the pass was for."""
    snapshot_at: float | None = None
    """When everything was last on disk, by the monotonic clock."""

    def note_pass(self, model: str, kind: Pass, n: int) -> None:
        """Count a forward pass over so many series."""
        spread = self.passes.get((model, kind))
        if spread is None:
            spread = self.passes[model, kind] = Spread(SIZES)
        spread.add(n)

    @contextmanager
    def timed(self, stage: Stage) -> Iterator[None]:
        """Time a stage."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage].add(time.perf_counter() - began)
