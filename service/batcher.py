"""Many requests, one forward pass: what arrives together is forecast together, and nobody waits for company.

A request hands its windows over and waits. Everything that was handed over in one turn of the event loop goes
through each model's network at once: at low load a request goes alone, at high load batches grow by themselves.
A small batch runs right there, since a hop to a thread costs more than the work; a large one runs in the
inference thread, and what arrives meanwhile makes up the next batch.

B windows, L input_size, H horizon, Q quantiles.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from forecasting.covariates import Covariates
from service.journey import Journey, current_journey
from service.model_slot import LoadedModel
from service.problems import OVERLOADED, ProblemError

FloatArray = NDArray[np.float64]

Outcome = FloatArray | Exception
"""What becomes of one request's windows: quantiles, or why there are none."""

INLINE_VALUES = 8_192
"""Most values (windows times their length) of a batch that runs on the event loop."""

RunListener = Callable[[LoadedModel, int, float, float, Sequence[Journey]], None]
"""Told of every forward pass: the model, its windows, its begin and end, and the requests that shared it."""


@dataclass(frozen=True, eq=False)
class _Asked:
    model: LoadedModel
    y_BL: FloatArray
    covariates: Covariates | None
    answer: "asyncio.Future[FloatArray]"
    journey: Journey | None

    @property
    def is_wanted(self) -> bool:
        """Return whether anybody still waits for it."""
        return not self.answer.done()


class Batcher:
    """Collects windows by arrival and runs them, batch by batch."""

    def __init__(self, executor: Executor, max_waiting: int, on_run: RunListener) -> None:
        self.waiting = 0
        """Windows that were handed over and are not answered yet."""
        self._executor = executor
        self._max_waiting = max_waiting
        self._on_run = on_run
        self._arrived: list[_Asked] = []

    async def predict(self, model: LoadedModel, y_BL: FloatArray, covariates: Covariates | None) -> FloatArray:
        """Return what `Forecaster.predict` says of these windows, computed together with those of others.

        Raises:
            ProblemError: as many windows wait as may.
            InputError: these windows cannot be forecast; those of others are.
        """
        if self.waiting and self.waiting + len(y_BL) > self._max_waiting:
            detail = f"{self.waiting} series wait to be forecast already; try again in a second"
            raise ProblemError(OVERLOADED, detail, headers={"retry-after": "1"})
        loop = asyncio.get_running_loop()
        asked = _Asked(model, y_BL, covariates, loop.create_future(), current_journey())
        if not self._arrived:
            loop.call_soon(self._begin)
        self._arrived.append(asked)
        self.waiting += len(y_BL)
        try:
            return await asked.answer
        finally:
            self.waiting -= len(y_BL)

    def _begin(self) -> None:
        """Run what arrived since the last turn, a batch a model; what nobody waits for any more is dropped."""
        arrived, self._arrived = self._arrived, []
        batches: dict[int, list[_Asked]] = {}
        for asked in arrived:
            if asked.is_wanted:
                batches.setdefault(id(asked.model), []).append(asked)
        for batch in batches.values():
            if sum(asked.y_BL.size for asked in batch) <= INLINE_VALUES:
                _hand_out(batch, self._run(batch))
            else:
                running = asyncio.get_running_loop().run_in_executor(self._executor, self._run, batch)
                running.add_done_callback(partial(_hand_out_later, batch))

    def _run(self, batch: Sequence[_Asked]) -> list[Outcome]:
        """Forecast a batch; where that fails, each request alone: nobody's input touches another's answer."""
        try:
            return self._run_together(batch)
        except SystemExit as error:  # on the event loop it would end the service
            return [RuntimeError(f"the network gave up: {error!r}")] * len(batch)
        except Exception as error:  # noqa: BLE001  (whoever waits is told)
            return [error] if len(batch) == 1 else [self._run([asked])[0] for asked in batch]

    def _run_together(self, batch: Sequence[_Asked]) -> list[Outcome]:
        began = time.perf_counter()
        model, y_BL = batch[0].model, np.concatenate([asked.y_BL for asked in batch])
        told = [asked.covariates for asked in batch if asked.covariates is not None]
        quantiles_BHQ = model.forecaster.predict(y_BL, Covariates.join(told) if told else None)
        journeys = [asked.journey for asked in batch if asked.journey is not None]
        self._on_run(model, len(y_BL), began, time.perf_counter(), journeys)
        ends = np.cumsum([len(asked.y_BL) for asked in batch])
        return list(np.split(quantiles_BHQ, ends[:-1]))


def _hand_out_later(batch: Sequence[_Asked], done: "asyncio.Future[list[Outcome]]") -> None:
    error = done.exception()
    _hand_out(
        batch, done.result() if error is None else [RuntimeError("the inference thread failed")] * len(batch)
    )


def _hand_out(batch: Sequence[_Asked], outcomes: Sequence[Outcome]) -> None:
    for asked, outcome in zip(batch, outcomes, strict=True):
        if not asked.is_wanted:
            continue
        if isinstance(outcome, Exception):
            asked.answer.set_exception(outcome)
        else:
            asked.answer.set_result(outcome)
