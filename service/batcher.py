"""Many requests, one forward pass: what arrives together is forecast together, and nobody waits for company.

A request hands its windows over and waits. Everything that was handed over, turn after turn of the event loop as
long as each turn brings more, goes through each model's network at once: a request that comes alone goes alone,
and under load batches grow by themselves, for a pass over ten windows takes little longer than one over a single.
What takes little time runs right there, since a hop to a thread costs more than the work; the rest queues for the
inference thread, which works in rounds of bounded length and gives every request that waits its share of each.

B windows, L input_size, H horizon, Q quantiles.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from forecasting.covariates import Covariates
from forecasting.forecaster import Forecaster
from service.journey import Journey, current_journey
from service.model_slot import LoadedModel
from service.problems import OVERLOADED, ProblemError

FloatArray = NDArray[np.float64]

Outcome = FloatArray | Exception
"""What becomes of one request's windows: quantiles, or why there are none."""

INLINE_SECONDS = 0.008
"""Most time that networks hold the event loop in one turn."""
ROUND_SECONDS = 0.020
"""About how long the inference thread works before it looks who waits."""
UNKNOWN_ROUND = 64
"""Windows in the first round of a model of which nothing was measured yet."""

ENOUGH_TOGETHER = 32
"""Requests for which a pass does not wait any more: with more of them a window takes hardly less."""
GATHER_SECONDS = 0.004
"""Longest that a request waits because every turn of the event loop brings others."""

RunListener = Callable[[LoadedModel, int, float, float, Sequence[Journey]], None]
"""Told of every forward pass: the model, its windows, its begin and end, and the requests that shared it."""


@dataclass(eq=False)
class _Asked:
    model: LoadedModel
    y_BL: FloatArray
    covariates: Covariates | None
    answer: "asyncio.Future[FloatArray]"
    journey: Journey | None
    done: int = 0
    """Windows that are forecast already."""
    parts: list[FloatArray] = field(default_factory=list)

    @property
    def is_wanted(self) -> bool:
        """Return whether anybody still waits for it."""
        return not self.answer.done()

    @property
    def left(self) -> int:
        return len(self.y_BL) - self.done

    def take(self, outcome: Outcome) -> None:
        """Take over what became of the next windows, and answer where they were the last."""
        if not self.is_wanted:
            return
        if isinstance(outcome, Exception):
            self.answer.set_exception(outcome)
            return
        self.parts.append(outcome)
        self.done += len(outcome)
        if self.left == 0:
            self.answer.set_result(self.parts[0] if len(self.parts) == 1 else np.concatenate(self.parts))


@dataclass(frozen=True, eq=False)
class _Piece:
    """Windows of one request that go through the network together."""

    asked: _Asked
    y_BL: FloatArray
    covariates: Covariates | None

    @classmethod
    def of(cls, asked: _Asked, size: int) -> "_Piece":
        """Cut the next windows of a request off."""
        rows = slice(asked.done, asked.done + size)
        if size == len(asked.y_BL):
            return cls(asked, asked.y_BL, asked.covariates)
        return cls(asked, asked.y_BL[rows], None if asked.covariates is None else asked.covariates.rows(rows))


class Batcher:
    """Collects windows by arrival and runs them, batch by batch; used from one event loop."""

    def __init__(self, executor: Executor, max_waiting: int, on_run: RunListener) -> None:
        self.waiting = 0
        """Windows that were handed over and are not answered yet."""
        self._executor = executor
        self._max_waiting = max_waiting
        self._on_run = on_run
        self._arrived: list[_Asked] = []
        self._queues: OrderedDict[int, list[_Asked]] = OrderedDict()
        """What waits for the inference thread, by model; the first is next."""
        self._is_running = False
        self._costs = _Costs()

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
            loop.call_soon(self._gather, 0, loop.time() + GATHER_SECONDS)
        self._arrived.append(asked)
        self.waiting += len(y_BL)
        try:
            return await asked.answer
        finally:
            self.waiting -= len(y_BL)

    def _gather(self, seen: int, until: float) -> None:
        """Begin once a turn of the event loop brings nothing more, many are there, or the first waits long."""
        loop = asyncio.get_running_loop()
        if seen < len(self._arrived) < ENOUGH_TOGETHER and loop.time() < until:
            loop.call_soon(self._gather, len(self._arrived), until)
        else:
            self._begin()

    def _begin(self) -> None:
        """Run what arrived, or queue it; what nobody waits for any more is dropped."""
        arrived, self._arrived = self._arrived, []
        patience = INLINE_SECONDS
        for batch in _by_model(asked for asked in arrived if asked.is_wanted).values():
            key = id(batch[0].model)
            seconds = self._costs.estimate(batch[0].model.forecaster, sum(asked.left for asked in batch))
            if seconds <= patience and key not in self._queues:
                patience -= seconds
                pieces = [_Piece.of(asked, asked.left) for asked in batch]
                _hand_out(pieces, self._run(pieces))
            else:
                self._queues.setdefault(key, []).extend(batch)
        if self._queues and not self._is_running:
            self._run_round()

    def _run_round(self) -> None:
        """Send the next windows to the inference thread; it comes back here as long as any wait."""
        pieces = self._choose()
        self._is_running = bool(pieces)
        if not pieces:
            return
        try:
            running = asyncio.get_running_loop().run_in_executor(self._executor, self._run, pieces)
        except RuntimeError as error:  # the executor was shut down
            self._end_round(pieces, [error] * len(pieces))
        else:
            running.add_done_callback(lambda done: self._end_round(pieces, _outcomes_of(done, len(pieces))))

    def _end_round(self, pieces: Sequence[_Piece], outcomes: Sequence[Outcome]) -> None:
        _hand_out(pieces, outcomes)
        self._run_round()

    def _choose(self) -> list[_Piece]:
        """Return the windows of the next round: models take turns, and requests share the round of theirs."""
        while self._queues:
            key, queue = self._queues.popitem(last=False)
            wanted = [asked for asked in queue if asked.is_wanted and asked.left]
            if not wanted:
                continue
            pieces = _share(wanted, self._costs.windows_within(wanted[0].model.forecaster, ROUND_SECONDS))
            # Those with windows left come back after the other models; the oldest stays the oldest.
            self._queues[key] = wanted
            return pieces
        return []

    def _run(self, pieces: Sequence[_Piece]) -> list[Outcome]:
        """Forecast a batch; where that fails, its halves: nobody's input touches another's answer."""
        try:
            return self._run_together(pieces)
        except SystemExit as error:  # on the event loop it would end the service
            return [RuntimeError(f"the network gave up: {error!r}")] * len(pieces)
        except Exception as error:  # noqa: BLE001  (whoever waits is told)
            middle = len(pieces) // 2
            return [error] if middle == 0 else self._run(pieces[:middle]) + self._run(pieces[middle:])

    def _run_together(self, pieces: Sequence[_Piece]) -> list[Outcome]:
        model, told = pieces[0].asked.model, [one.covariates for one in pieces if one.covariates is not None]
        y_BL = pieces[0].y_BL if len(pieces) == 1 else np.concatenate([one.y_BL for one in pieces])
        began, busy = time.perf_counter(), time.thread_time()
        quantiles_BHQ = model.forecaster.predict(y_BL, Covariates.join(told) if told else None)
        # Learned is what the pass itself takes: waiting for the interpreter, beside a busy loop, is no reason to
        # go on waiting there.
        self._costs.learn(model.forecaster, len(y_BL), time.thread_time() - busy)
        journeys = [one.asked.journey for one in pieces if one.asked.journey is not None]
        self._on_run(model, len(y_BL), began, time.perf_counter(), journeys)
        outcomes: list[Outcome] = []
        end = 0
        for one in pieces:
            begin, end = end, end + len(one.y_BL)
            outcomes.append(quantiles_BHQ[begin:end])
        return outcomes


class _Costs:
    """What forward passes of each forecaster take, learned from those that ran, by powers of two of windows."""

    WEIGHT = 0.1
    """Of the newest figure in the running one: a pass that was interrupted says little."""

    def __init__(self) -> None:
        self._each: WeakKeyDictionary[Forecaster, dict[int, float]] = WeakKeyDictionary()
        """Seconds a window."""

    def learn(self, forecaster: Forecaster, windows: int, seconds: float) -> None:
        """Take note of a forward pass."""
        each = self._each.setdefault(forecaster, {})
        size, new = windows.bit_length(), seconds / max(windows, 1)
        each[size] = each.get(size, new) + self.WEIGHT * (new - each.get(size, new))

    def estimate(self, forecaster: Forecaster, windows: int) -> float:
        """Return the seconds that a pass over so many windows takes; infinity before the first."""
        each = self._each.get(forecaster)
        if not each:
            return float("inf")
        size = windows.bit_length()
        return windows * each[min(each, key=lambda known: abs(known - size))]

    def windows_within(self, forecaster: Forecaster, seconds: float) -> int:
        """Return how many windows a pass of so many seconds may have."""
        each = self._each.get(forecaster)
        return max(1, int(seconds / max(min(each.values()), 1e-9))) if each else UNKNOWN_ROUND


def _by_model(arrived: Iterable[_Asked]) -> dict[int, list[_Asked]]:
    batches: dict[int, list[_Asked]] = {}
    for asked in arrived:
        batches.setdefault(id(asked.model), []).append(asked)
    return batches


def _share(queue: Sequence[_Asked], windows: int) -> list[_Piece]:
    """Share a round: what a small request does not need goes to larger ones; the oldest is always in it."""
    pieces = []
    for i, asked in enumerate([queue[0], *sorted(queue[1:], key=lambda asked: asked.left)]):
        if windows <= 0:
            break
        size = min(asked.left, max(1, windows // (len(queue) - i)))
        pieces.append(_Piece.of(asked, size))
        windows -= size
    return pieces


def _outcomes_of(done: "asyncio.Future[list[Outcome]]", count: int) -> list[Outcome]:
    if done.cancelled() or done.exception() is not None:
        return [RuntimeError("the inference thread failed")] * count
    return done.result()


def _hand_out(pieces: Sequence[_Piece], outcomes: Sequence[Outcome]) -> None:
    for piece, outcome in zip(pieces, outcomes, strict=True):
        piece.asked.take(outcome)
