"""One request on its way through the service: what happened to it, and when each stage of it ended.

Whatever is found out of a request on its way is noted here, wherever that happens; metrics, log lines and spans
are made of it once the request is over. A stage lasts from the end of the one before: they add up to the whole.
"""

import time
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any, Literal, get_args

Stage = Literal["read", "decode", "queue", "predict", "encode", "send"]
"""The body arrives, becomes a request, waits for the network, is forecast, becomes an answer, and that leaves."""

STAGES: tuple[Stage, ...] = get_args(Stage)


class Journey:
    """What is known of one request."""

    __slots__ = (
        "batches",
        "began",
        "laps",
        "model",
        "problem",
        "request_id",
        "series",
        "span",
        "status",
        "version",
    )

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        self.began = time.perf_counter()
        self.laps: list[tuple[Stage, float]] = []
        """Stages, each with the moment of its end, in order."""
        self.status = 0
        """The HTTP status; 0 as long as there is none."""
        self.problem: str | None = None
        """The slug of the problem it was answered with."""
        self.model: str | None = None
        self.version: str | None = None
        self.series = 0
        self.span: Any = None
        """What `service.tracing` knows it by; None for nothing."""
        self.batches: list[Any] = []
        """What `service.tracing` knows the batches by that it was part of."""

    def end_stage(self, stage: Stage, at: float | None = None) -> None:
        """Note that a stage is over, now or at a moment of `time.perf_counter`."""
        self.laps.append((stage, time.perf_counter() if at is None else at))

    def stages(self) -> Iterator[tuple[Stage, float, float]]:
        """Yield every stage with its begin and its end."""
        began = self.began
        for stage, ended in self.laps:
            yield stage, began, ended
            began = ended


CURRENT: ContextVar[Journey | None] = ContextVar("journey", default=None)
"""The journey of the request that is being answered; None outside of one."""

current_journey = CURRENT.get


def end_stage(stage: Stage) -> None:
    """Note that a stage of the request that is being answered is over; outside of one do nothing."""
    journey = CURRENT.get()
    if journey is not None:
        journey.laps.append((stage, time.perf_counter()))


def note_model(model: str, version: str, series: int) -> None:
    """Note which version forecasts how many series for the request that is being answered."""
    journey = CURRENT.get()
    if journey is not None:
        journey.model, journey.version = model, version
        journey.series += series


def note_problem(slug: str) -> None:
    """Note why the request that is being answered is refused."""
    journey = CURRENT.get()
    if journey is not None:
        journey.problem = slug
