"""Where streams' messages arrive: what comes together is answered together, and nobody waits for company.

All of it happens in one thread, which waits for the disk and runs the network; what arrives meanwhile makes up the
next group. Beside it, and never waited for, the ledger is told what was observed.
"""

import asyncio
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

import torch

from service.problems import OVERLOADED, ProblemError
from service.streams.engine import Engine
from service.streams.ledger_feed import LedgerFeed
from service.streams.messages import Message

log = logging.getLogger("hindcast.streams")

MOST_TOGETHER = 20_000
"""Most observations of one group, unless one message has more."""
MOST_WAITING = 200_000
"""Most observations that wait; more are asked to come back."""
TIDY_SECONDS = 1.0


@dataclass(eq=False)
class _Waiting:
    message: Message
    answer: "asyncio.Future[bytes]"


class Desk:
    """Hands messages over to the engine, group by group."""

    def __init__(self, engine: Engine, feed: LedgerFeed) -> None:
        self.engine = engine
        self.sockets = 0
        self._feed = feed
        self._worker: ThreadPoolExecutor | None = None
        self._waiting: list[_Waiting] = []
        self._n_waiting = 0
        self._running: asyncio.Task[None] | None = None
        self._tidying: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        """Return how many observations wait for the group that is being answered."""
        return self._n_waiting

    def start(self) -> None:
        """Begin to answer; to be called on the event loop."""
        self._feed.start()
        # torch counts its threads by thread, and would take every core in a new one.
        n_threads = self.engine.settings.torch_threads
        self._worker = ThreadPoolExecutor(
            1, thread_name_prefix="streams", initializer=torch.set_num_threads, initargs=(n_threads,)
        )
        self._tidying = asyncio.get_running_loop().create_task(self._tidy())

    async def stop(self) -> None:
        """Answer what was accepted, save everything and let go of the folder."""
        if self._tidying is not None:
            self._tidying.cancel()
            with suppress(asyncio.CancelledError):
                await self._tidying
        while self._running is not None:
            await asyncio.wait([self._running])
        if self._worker is not None:
            await asyncio.get_running_loop().run_in_executor(self._worker, self.engine.close)
            self._worker.shutdown(wait=False)
        await asyncio.to_thread(self._feed.stop)

    async def observe(self, message: Message) -> bytes:
        """Return the answer to a message.

        Raises:
            ProblemError: it was refused, or too many wait.
        """
        n = len(message.observations)
        if self._waiting and self._n_waiting + n > MOST_WAITING:
            detail = f"{self._n_waiting} observations wait already; try again in a second"
            raise ProblemError(OVERLOADED, detail, headers={"retry-after": "1"})
        loop = asyncio.get_running_loop()
        waiting = _Waiting(message, loop.create_future())
        self._waiting.append(waiting)
        self._n_waiting += n
        if self._running is None:
            # Begun in the next turn of the loop: what arrives in this one comes along.
            self._running = loop.create_task(self._run())
        return await waiting.answer

    async def _run(self) -> None:
        try:
            while self._waiting:
                group = self._next_group()
                outcomes = await self._answer(group)
                _hand_out(group, outcomes)
        finally:
            self._running = None

    async def _answer(self, group: Sequence[_Waiting]) -> Sequence[bytes | Exception]:
        messages = [one.message for one in group]
        try:
            return await asyncio.get_running_loop().run_in_executor(self._worker, self.engine.answer, messages)
        except Exception as error:
            if not isinstance(error, ProblemError):
                log.exception("streams cannot be answered")
            return [error] * len(group)

    def _next_group(self) -> list[_Waiting]:
        """Take what waits, up to a bound, and drop what nobody waits for any more."""
        taken, n = 0, 0
        while taken < len(self._waiting) and (n < MOST_TOGETHER or taken == 0):
            n += len(self._waiting[taken].message.observations)
            taken += 1
        group, self._waiting = self._waiting[:taken], self._waiting[taken:]
        self._n_waiting -= n
        return [one for one in group if not one.answer.done()]

    async def _tidy(self) -> None:
        """Do what need not be done at once while nothing waits."""
        more = False
        while True:
            await asyncio.sleep(0 if more else TIDY_SECONDS)
            if self._running is None:
                try:
                    more = await asyncio.get_running_loop().run_in_executor(self._worker, self.engine.tidy)
                except Exception:
                    log.exception("streams cannot be saved")
                    more = False


def _hand_out(group: Sequence[_Waiting], outcomes: Sequence[bytes | Exception]) -> None:
    for one, outcome in zip(group, outcomes, strict=True):
        if one.answer.done():
            continue
        if isinstance(outcome, Exception):
            one.answer.set_exception(outcome)
        else:
            one.answer.set_result(outcome)
