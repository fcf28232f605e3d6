"""Every answered forecast is kept: handed over in the request, written beside it.

A request hands over references to its arrays and goes on. One thread writes what was handed over to a file below
home, many answers at a time, and makes sure that it is on the disk. Another one brings files to the ledger,
whenever that answers, and gives way to requests. So an answer is lost only if the process is killed, or the
machine stops, within `LINGER` and one write to the disk after it, whatever the ledger does meanwhile; or if the
bounds of memory and of the files are reached: then it is counted and logged.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Literal

from forecasting.errors import LedgerUnavailableError
from ledger.forecasts import IssuedForecast
from ledger.ledger import Ledger
from service.answered import Answered, pack, unpack
from service.ledger_link import LedgerLink
from service.unwritten import UnwrittenFiles

log = logging.getLogger("hindcast.recorder")

Outcome = Literal["written", "dropped", "refused"]
Listener = Callable[[Outcome, int], None]
"""Told what became of how many forecasts."""

LINGER = 0.05
"""Seconds answers are collected for one write."""
RETRY = 0.5
"""Seconds for which a ledger that does not answer is left alone."""
AT_ONCE = 20
"""Forecasts in one transaction, unless a single answer has more."""
SHARE = 0.05
"""Share of its time that bringing takes while requests are being answered."""
SILENCE = 10.0
"""Seconds between two log lines about what is lost; the metrics have every one."""
FLUSH = 15.0
"""Most seconds that ending takes; files that are left are brought at the next start."""


class Recorder:
    """Brings answered forecasts to the ledger, in threads of its own."""

    def __init__(self, link: LedgerLink, on_outcome: Listener, is_busy: Callable[[], bool]) -> None:
        settings = link.settings
        self.enabled = link.enabled and settings.record_forecasts
        self.waiting_bytes = 0
        self.unwritten = UnwrittenFiles(settings.home / "unwritten", settings.unwritten_bytes)
        self._link = link
        self._on_outcome = on_outcome
        self._is_busy = is_busy
        self._most_bytes = settings.record_memory_bytes
        self._queue: deque[Answered] = deque()
        self._changed = threading.Condition()
        self._arrived = threading.Event()
        self._stopping = threading.Event()
        self._all_written = threading.Event()
        self._silent_until = 0.0
        self._threads = [
            threading.Thread(target=self._write_files, name="recorder-files", daemon=True),
            threading.Thread(target=self._bring_files, name="recorder-ledger", daemon=True),
        ]

    def start(self) -> None:
        """Begin to write."""
        if self.enabled:
            for thread in self._threads:
                thread.start()

    def stop(self) -> None:
        """Write what waits to the disk, and to the ledger if it answers."""
        if not self.enabled or not self._threads[0].is_alive():
            return
        until = time.monotonic() + FLUSH
        with self._changed:
            self._stopping.set()
            self._changed.notify()
        for thread in self._threads:
            thread.join(timeout=max(0.1, until - time.monotonic()))

    def offer(self, answered: Answered) -> None:
        """Take an answer over; never waits for anything but another one that does this too."""
        if not self.enabled:
            return
        nbytes = answered.nbytes
        with self._changed:
            fits = self.waiting_bytes + nbytes <= self._most_bytes
            if fits:
                self.waiting_bytes += nbytes
                self._queue.append(answered)
                self._changed.notify()
        if not fits:
            self._drop([answered], "more waits in memory than may")

    def _write_files(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._stopping.is_set())
            self._stopping.wait(LINGER)
            with self._changed:
                taken, self._queue = list(self._queue), deque()
            if taken:
                self._write_file(taken)
            elif self._stopping.is_set():
                self.unwritten.close()
                self._all_written.set()
                self._arrived.set()
                return

    def _write_file(self, taken: Sequence[Answered]) -> None:
        try:
            if not self.unwritten.append([pack(answered) for answered in taken]):
                self._drop(taken, "the files that wait for the ledger are as large as they may be")
        except Exception as error:
            log.exception("forecasts could not be written to the disk")
            self._drop(taken, f"they could not be written to the disk: {type(error).__name__}")
        finally:
            with self._changed:
                self.waiting_bytes -= sum(answered.nbytes for answered in taken)
            self._arrived.set()

    def _bring_files(self) -> None:
        """Bring what is in files to the ledger, until the last was written and brought, or cannot be."""
        while True:
            self._arrived.wait(RETRY)
            self._arrived.clear()
            last_look = self._all_written.is_set()
            brought = self.unwritten.is_empty() or self._bring_all()
            if last_look:
                return
            if not brought:
                self._stopping.wait(RETRY)

    def _bring_all(self) -> bool:
        """Bring every file to the ledger; return whether it took them."""
        ledger = self._link.ledger
        if ledger is None:
            return False
        try:
            for records in self.unwritten.drain():
                for chunk in _chunks(records):
                    began = time.perf_counter()
                    self._on_outcome("written", self._append(ledger, chunk))
                    self._give_way(time.perf_counter() - began)
        except LedgerUnavailableError as error:
            log.warning("forecasts wait in files: %s", error)
            return False
        except Exception:
            log.exception("forecasts in files could not be brought to the ledger")
            return False
        return True

    def _give_way(self, seconds: float) -> None:
        """Rest after work that took so long, as long as requests are being answered and there is room for more."""
        room = 1 - 2 * self.unwritten.nbytes / max(self.unwritten.max_bytes, 1)
        if room > 0 and self._is_busy():
            self._stopping.wait(seconds * room * (1 - SHARE) / SHARE)

    def _append(self, ledger: Ledger, forecasts: Sequence[IssuedForecast]) -> int:
        """Append all in one transaction; where the ledger refuses one, answer by answer."""
        try:
            ledger.forecasts.append(forecasts)
        except LedgerUnavailableError:
            raise
        except Exception as error:
            answers = [list(group) for _, group in groupby(forecasts, lambda one: one.forecast_id)]
            if len(answers) > 1:
                return sum(self._append(ledger, answer) for answer in answers)
            log.error("the ledger refuses forecast %s", forecasts[0].forecast_id, exc_info=error)
            self._on_outcome("refused", len(forecasts))
            return 0
        return len(forecasts)

    def _drop(self, answers: Sequence[Answered], why: str) -> None:
        count = sum(len(answered.forecasts) for answered in answers)
        self._on_outcome("dropped", count)
        if time.monotonic() >= self._silent_until:
            self._silent_until = time.monotonic() + SILENCE
            log.error("%d forecasts are not kept, and those that follow may not be: %s", count, why)


def _chunks(records: Sequence[bytes]) -> Iterator[list[IssuedForecast]]:
    """Yield forecasts by transactions: whole answers."""
    chunk: list[IssuedForecast] = []
    for record in records:
        try:
            chunk.extend(unpack(record))
        except (ValueError, KeyError, TypeError):
            log.exception("a record of %d bytes is no answer of this version; it is left out", len(record))
        if len(chunk) >= AT_ONCE:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
