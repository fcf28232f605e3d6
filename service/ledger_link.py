"""How the service holds its ledger: opened off the event loop, asked within limits, and never waited for.

A database that is down, or hangs, takes nothing from forecasts. Threads are daemons: one that is stuck in a driver
must not keep the process from ending.
"""

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from forecasting.errors import LedgerError, LedgerUnavailableError
from ledger.database import reading
from ledger.ledger import Ledger, open_ledger
from ledger.moments import Clock, utc_now
from service.failures import next_failure
from service.problems import LEDGER_UNAVAILABLE, ProblemError
from service.schemas import Failure
from service.settings import LEDGER_OFF, ServiceSettings

log = logging.getLogger("hindcast.ledger")

T = TypeVar("T")

THREADS = 4
MOST_WAITING = 32
"""Most questions to the ledger at one time, those included that are being answered."""
LONGEST_PAUSE = 30.0
"""Most seconds between two attempts to open it."""
PATIENCE = 2.0
"""Seconds to wait at shutdown for a look at the ledger to end."""


class LedgerLink:
    """The ledger of one service process, or its absence."""

    def __init__(self, settings: ServiceSettings, clock: Clock = utc_now) -> None:
        self.settings = settings
        self.clock = clock
        self.enabled = settings.ledger_url != LEDGER_OFF
        self.ledger: Ledger | None = None
        self.failure: Failure | None = None
        self.on_look: Callable[[Ledger], None] = _nothing_else
        """Called at every look at a ledger that answers, in the thread that looks."""
        self.looked = threading.Event()
        """Set once it is known whether the ledger can be opened."""
        self._look_began: float | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._pool = DaemonPool(THREADS, "ledger")
        self.waiting = 0
        """Questions that are not answered yet."""

    def start(self) -> None:
        """Begin to open the ledger, in a thread of its own."""
        if self.enabled:
            self._stop = threading.Event()
            self._thread = threading.Thread(target=self._follow, name="ledger", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Close the ledger; a question that hangs is left behind."""
        self._stop.set()
        if self._thread is None:
            return
        self._thread.join(timeout=PATIENCE)
        self._pool.stop()
        if self.ledger is not None and not self._thread.is_alive() and not self.waiting:
            self.ledger.close()

    @property
    def trouble(self) -> Failure | None:
        """Return why the ledger does not answer, a look that hangs included; None where there is none to ask."""
        began, limit = self._look_began, self.settings.ledger_seconds
        if began is None or time.monotonic() - began < limit:
            return self.failure
        error = TimeoutError(f"the ledger has not answered for {limit:g} seconds")
        return next_failure(self.failure, error, trusted=True)

    async def ask(self, work: Callable[[Ledger], T], *, seconds: float | None = None) -> T:
        """Do something with the ledger in one of its threads.

        Args:
            work: what to do; it goes on after the time limit, so it is done whole or can be done again.
            seconds: the time limit; default that of the settings.

        Raises:
            ProblemError: there is no ledger, or it does not answer.
        """
        ledger = self._require()
        if self.waiting >= MOST_WAITING:
            raise _unavailable(f"{self.waiting} questions are waiting for the ledger already")
        limit = self.settings.ledger_seconds if seconds is None else seconds
        self.waiting += 1
        future = self._pool.submit(lambda: work(ledger))
        wrapped = asyncio.wrap_future(future)
        wrapped.add_done_callback(self._note_answered)
        try:
            return await asyncio.wait_for(asyncio.shield(wrapped), limit)
        except TimeoutError:
            # What nobody began yet need not be done any more.
            future.cancel()
            raise _unavailable(f"the ledger has not answered for {limit:g} seconds") from None
        except LedgerUnavailableError as error:
            raise _unavailable(next_failure(None, error).detail) from error

    def _note_answered(self, answered: "asyncio.Future[Any]") -> None:
        self.waiting -= 1
        if not answered.cancelled():
            answered.exception()  # Looked at, lest asyncio complains of one that came too late.

    def _require(self) -> Ledger:
        if not self.enabled:
            raise ProblemError(LEDGER_UNAVAILABLE, "this service has no ledger: HINDCAST_LEDGER_URL is off")
        if self.ledger is None:
            raise _unavailable("it is being opened" if self.failure is None else self.failure.detail)
        return self.ledger

    def _follow(self) -> None:
        while not self._stop.is_set():
            self._look()
            failed = 0 if self.failure is None else self.failure.attempts
            pause = self.settings.poll_seconds * 2.0 ** min(max(failed - 1, 0), 20)
            self._stop.wait(min(pause, max(LONGEST_PAUSE, self.settings.poll_seconds)))

    def _look(self) -> None:
        """Open the ledger, or see whether it still answers."""
        self._look_began = time.monotonic()
        try:
            if self.ledger is None:
                self.ledger = open_ledger(self.settings.ledger_url, self.clock)
                log.info("the ledger is open")
            else:
                with reading(self.ledger.engine):
                    pass
            self.on_look(self.ledger)
        except Exception as error:
            # Whatever a database does, forecasts go on.
            if self.failure is None:
                expected = isinstance(error, LedgerError)
                log.warning("the ledger does not answer: %s", error, exc_info=None if expected else error)
            self.failure = next_failure(self.failure, error)
        else:
            if self.failure is not None:
                log.info("the ledger answers again")
            self.failure = None
        finally:
            self._look_began = None
            self.looked.set()


def _nothing_else(ledger: Ledger) -> None:
    del ledger


def _unavailable(detail: str) -> ProblemError:
    return ProblemError(LEDGER_UNAVAILABLE, detail, headers={"retry-after": "5"})


class DaemonPool:
    """A few threads that do what is submitted, in order, and that nobody waits for at the end."""

    def __init__(self, size: int, name: str) -> None:
        self._size = size
        self._name = name
        self._work: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """Have something done; the threads are begun with the first."""
        while len(self._threads) < self._size:
            name = f"{self._name}_{len(self._threads)}"
            self._threads.append(threading.Thread(target=self._run, name=name, daemon=True))
            self._threads[-1].start()
        future: Future[T] = Future()
        self._work.put((future, work))
        return future

    def stop(self) -> None:
        """End each thread after what was submitted until now; wait for none."""
        for _ in self._threads:
            self._work.put(None)
        self._threads = []

    def _run(self) -> None:
        while (item := self._work.get()) is not None:
            future, work = item
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(work())
            except BaseException as error:  # noqa: BLE001  (whoever waits is told)
                future.set_exception(error)
