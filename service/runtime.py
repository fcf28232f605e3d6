"""Runtime: what one service process holds while it runs, handed to the routes."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, TypeVar

import torch
from fastapi import Depends, Request

from forecasting.registry import Registry
from ledger.ledger import Ledger
from service.adjustments import AdjustmentBook
from service.batcher import Batcher
from service.heap import set_aside_what_stays
from service.inference import InferenceThread, Watchdog
from service.journey import Journey
from service.ledger_link import LedgerLink
from service.model_slot import LoadedModel, ModelSlot, ModelSlots
from service.problems import MODEL_NOT_LOADED, OVERLOADED, UNKNOWN_MODEL, ProblemError
from service.recorder import Recorder
from service.settings import ServiceSettings
from service.streams.desk import Desk
from service.streams.engine import Engine
from service.streams.ledger_feed import LedgerFeed
from service.telemetry import GcPauses, Telemetry
from service.tracing import open_tracing
from service.workers import Siblings

T = TypeVar("T")


class Runtime:
    """Settings, models, metrics, the ledger and the inference thread of one service."""

    def __init__(
        self, settings: ServiceSettings, open_registry: Callable[[], Registry], version: str = "0"
    ) -> None:
        self.settings = settings
        self.telemetry = Telemetry()
        self.tracing = open_tracing(version)
        self._gc_pauses = GcPauses()
        self.telemetry.watch_collections(self._gc_pauses)
        self.siblings = Siblings(self.telemetry.expose)
        self.slots = ModelSlots(settings, open_registry, choose_device(settings.device), self._on_swap)
        self.telemetry.watch(self.slots)
        self.ledger_link = LedgerLink(settings)
        self.adjustments = AdjustmentBook(self.slots.loaded)
        if settings.adjust_intervals:
            self.ledger_link.on_look = self.adjustments.refresh
        self.recorder = Recorder(self.ledger_link, self.telemetry.record_kept, lambda: self._in_flight > 0)
        self.telemetry.watch_ledger(self.ledger_link, self.recorder)
        feed = LedgerFeed(self.ledger_link)
        engine = Engine(settings, self.model, self.adjustments.adjust, self.ledger_link.clock, feed)
        self.streams = Desk(engine, feed)
        self.telemetry.watch_streams(self.streams)
        self.draining = False
        self._in_flight = 0
        # torch counts its threads by thread: without this, the first thread's number is not that of this one, and
        # its kernels spin on every core, beside the event loop.
        self._worker = InferenceThread(lambda: torch.set_num_threads(settings.torch_threads))
        self.watchdog = Watchdog(self._worker, settings.hang_seconds, settings.drain_seconds)
        self.telemetry.watch_inference(self._worker)
        self.batcher = Batcher(self._worker, settings.max_waiting_series, self._note_run)
        self.telemetry.watch_load(lambda: self._in_flight, lambda: self.batcher.waiting)

    def start(self) -> None:
        """Begin to follow the registry and to answer."""
        torch.set_num_threads(self.settings.torch_threads)
        self._gc_pauses.start()
        self.watchdog.start(asyncio.get_running_loop())
        self.slots.start()
        self.ledger_link.start()
        self.recorder.start()

    def stop(self) -> None:
        """End the threads; every accepted request has been answered by now."""
        self.draining = True
        self.watchdog.stop()
        self.slots.stop()
        self._worker.shutdown(cancel_futures=True)
        self.recorder.stop()
        self.ledger_link.stop()
        self.tracing.stop()
        self._gc_pauses.stop()

    def _note_run(
        self, model: LoadedModel, windows: int, began: float, ended: float, journeys: Sequence[Journey]
    ) -> None:
        self.telemetry.record_inference(model, windows, ended - began)
        self.tracing.note_batch(journeys, model.name, windows, began, ended)
        for journey in journeys:
            journey.end_stage("queue", began)
            journey.end_stage("predict", ended)

    def missing(self) -> list[str]:
        """Return why the service is not ready: nothing when it is."""
        if self.draining:
            return ["the service is shutting down"]
        if self.watchdog.trouble is not None:
            return [self.watchdog.trouble]
        return self.slots.missing()

    def _on_swap(self, model: str, succeeded: bool) -> None:
        self.telemetry.record_swap(model, succeeded)
        if succeeded:
            set_aside_what_stays()

    @property
    def ledger(self) -> Ledger | None:
        """Return the ledger; None where there is none, or as long as it could not be opened."""
        return self.ledger_link.ledger

    async def ask_ledger(self, work: Callable[[Ledger], T], *, seconds: float | None = None) -> T:
        """Do something with the ledger, in a thread, and within a time limit.

        Raises:
            ProblemError: there is no ledger, or it does not answer.
        """
        return await self.ledger_link.ask(work, seconds=seconds)

    async def infer(self, work: Callable[[], T]) -> T:
        """Run work in the one thread that runs networks, in order of arrival."""
        return await asyncio.get_running_loop().run_in_executor(self._worker, work)

    @contextmanager
    def admission(self) -> Iterator[None]:
        """Let a request in, or turn it away while as many as may are in; give it up when it takes too long.

        Raises:
            ProblemError: the service is overloaded, or the request was not answered in time.
        """
        if self._in_flight >= self.settings.max_in_flight:
            detail = f"{self._in_flight} requests are being answered already; try again in a second"
            raise ProblemError(OVERLOADED, detail, headers={"retry-after": "1"})
        self._in_flight += 1
        try:
            yield
        finally:
            self._in_flight -= 1

    def slot(self, name: str) -> ModelSlot:
        """Return the slot of a model.

        Raises:
            ProblemError: the service knows no such model.
        """
        slot = self.slots.get(name)
        if slot is None:
            known = ", ".join(slot.name for slot in self.slots.all()[:20]) or "none"
            raise ProblemError(UNKNOWN_MODEL, f"no model is named {name[:64]!r}; known: {known}")
        return slot

    def model(self, name: str, *, or_stand_in: bool = False) -> LoadedModel:
        """Return the model that answers now.

        Args:
            name: of the model.
            or_stand_in: take one without a network, which the seasonal naive answers for, where there is no other.

        Raises:
            ProblemError: it is unknown, or not loaded yet.
        """
        slot = self.slot(name)
        if slot.current is None and or_stand_in and slot.stand_in is not None:
            return slot.stand_in
        if slot.current is None:
            why = "it is being loaded" if slot.failure is None else slot.failure.detail
            raise ProblemError(
                MODEL_NOT_LOADED, f"model {name!r} cannot answer: {why}", headers={"retry-after": "5"}
            )
        return slot.current


def choose_device(wanted: str) -> str:
    """Return the torch device to run networks on.

    Raises:
        ValueError: a GPU is asked for, and torch finds none.
    """
    found = torch.cuda.is_available()
    if wanted == "cuda" and not found:
        raise ValueError("device is cuda, and torch finds no GPU; use auto or cpu")
    return "cuda" if found and wanted != "cpu" else "cpu"


async def _runtime_of(request: Request) -> Runtime:
    runtime: Runtime = request.app.state.runtime
    return runtime


RuntimeOf = Annotated[Runtime, Depends(_runtime_of)]
"""The runtime of the application that received the request."""
