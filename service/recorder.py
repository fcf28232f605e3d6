"""Every answered forecast is kept: handed over in the request, written beside it.

A request hands over references to its arrays and goes on; that is all it pays. One thread makes records of them
and has a second one write them to the ledger, many in one transaction. What the ledger does not take within
`PATIENCE` is written to files below home and brought to the ledger later, at the next start at the latest. So an
answer is lost only if the process is killed, or the machine stops, within `LINGER` and the time of one
transaction after it (`LINGER + PATIENCE` and one write to the disk where the ledger does not answer), or if the
bounds of memory and of the files are reached: then it is counted and logged.

B series, L input_size, H horizon, Q quantiles.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from forecasting.calendar import timestamps_after
from forecasting.covariates import Covariates
from forecasting.errors import InputError, LedgerUnavailableError
from ledger.forecasts import IssuedForecast, inputs_of
from ledger.ledger import Ledger
from service.histories import Prepared
from service.ledger_link import DaemonPool, LedgerLink
from service.schemas import SeriesForecast
from service.unwritten import UnwrittenForecasts

log = logging.getLogger("hindcast.recorder")

FloatArray = NDArray[np.float64]
StampArray = NDArray[np.datetime64]
Outcome = Literal["written", "spilled", "dropped", "refused"]
Listener = Callable[[Outcome, int], None]
"""Told what became of how many forecasts; one that was spilled is written later."""

LINGER = 0.05
"""Seconds forecasts are collected for one transaction."""
PATIENCE = 1.0
"""Seconds a transaction may take before the forecasts go to a file."""
RETRY = 1.0
"""Seconds for which a ledger that failed is left alone."""
MOST = 1000
"""Most forecasts in one transaction, unless a single answer has more."""
SILENCE = 10.0
"""Seconds between two log lines about what is lost; the metrics have every one."""
FLUSH = 20.0
"""Most seconds that ending takes."""


@dataclass(frozen=True, eq=False)
class Answered:
    """The forecasts of one answer, as the request leaves them: nothing is copied or worked out."""

    forecast_id: str
    issued_at: datetime
    prepared: Prepared
    y_BL: FloatArray
    covariates: Covariates | None
    issued_BHQ: FloatArray
    """The whole horizon, whatever was asked for."""
    adjustment_BHQ: FloatArray | None
    forecasts: Sequence[SeriesForecast]

    @property
    def nbytes(self) -> int:
        """Return about how much memory this holds."""
        told = self.covariates
        arrays = [self.y_BL, self.issued_BHQ, self.adjustment_BHQ]
        arrays += [] if told is None else [told.past_BLP, told.future_BTF]
        return sum(array.nbytes for array in arrays if array is not None) + 500 * len(self.y_BL)


class Recorder:
    """Brings answered forecasts to the ledger, in threads of its own."""

    def __init__(self, link: LedgerLink, on_outcome: Listener) -> None:
        settings = link.settings
        self.enabled = link.enabled and settings.record_forecasts
        self.waiting_bytes = 0
        self.unwritten = UnwrittenForecasts(settings.home / "unwritten", settings.unwritten_bytes)
        self._link = link
        self._on_outcome = on_outcome
        self._most_bytes = settings.record_memory_bytes
        self._queue: deque[Answered] = deque()
        self._changed = threading.Condition()
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._writer = DaemonPool(1, "recorder-ledger")
        self._stuck: Future[int] | None = None
        self._rest_until = 0.0
        self._silent_until = 0.0
        self._backlog: Iterator[Sequence[IssuedForecast]] | None = None

    def start(self) -> None:
        """Begin to write."""
        if self.enabled:
            self._stopping = False
            self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Write what waits, to the ledger or to the disk."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(timeout=FLUSH)
            if self._thread.is_alive():
                log.error("the forecasts that waited could not be written within %g s", FLUSH)

    def offer(self, answered: Answered) -> None:
        """Take an answer over; never waits for anything but another one that does this too."""
        if not self.enabled:
            return
        with self._changed:
            if self.waiting_bytes + answered.nbytes > self._most_bytes:
                full = True
            else:
                full = False
                self.waiting_bytes += answered.nbytes
                self._queue.append(answered)
                self._changed.notify()
        if full:
            self._drop(len(answered.forecasts), "more waits in memory than may")

    def _run(self) -> None:
        while self._wait():
            if not self._stopping:
                time.sleep(LINGER)
            self._write_waiting()
            try:
                self._write_backlog()
            except Exception:
                # Whatever is wrong with a file, the next forecasts are another matter.
                log.exception("forecasts in files could not be brought to the ledger")
                self._backlog, self._rest_until = None, time.monotonic() + RETRY
        self.unwritten.close()
        self._writer.stop()

    def _wait(self) -> bool:
        """Wait until there is something to do; return False when there never will be."""
        with self._changed:
            while not self._queue:
                if self._stopping:
                    return False
                self._changed.wait(timeout=RETRY)
                if not self.unwritten.is_empty() and self._can_try():
                    return True
            return True

    def _write_waiting(self) -> None:
        while taken := self._take():
            try:
                self._write([one for answered in taken for one in build_forecasts(answered)])
            except Exception:
                log.exception("forecasts could not be kept")
                self._on_outcome("dropped", sum(len(answered.forecasts) for answered in taken))
            finally:
                with self._changed:
                    self.waiting_bytes -= sum(answered.nbytes for answered in taken)

    def _take(self) -> list[Answered]:
        """Take what waits off the queue, as much as goes into one transaction."""
        taken: list[Answered] = []
        count = 0
        with self._changed:
            while self._queue and (not taken or count + len(self._queue[0].forecasts) <= MOST):
                taken.append(self._queue.popleft())
                count += len(taken[-1].forecasts)
        return taken

    def _write(self, forecasts: Sequence[IssuedForecast]) -> None:
        """Write to the ledger or else to a file."""
        self._link.looked.wait(timeout=PATIENCE)
        if self._to_ledger(forecasts):
            return
        try:
            if self.unwritten.append(forecasts):
                self._on_outcome("spilled", len(forecasts))
            else:
                self._drop(len(forecasts), "the files of unwritten forecasts are as large as they may be")
        except OSError as error:
            self._drop(len(forecasts), f"they could not be written to the disk: {error.strerror}")

    def _write_backlog(self) -> None:
        """Bring some of what is in files to the ledger, if it takes it."""
        if self.unwritten.is_empty() or not self._can_try():
            return
        self._backlog = self._backlog or self.unwritten.drain(MOST // 4)
        some = next(self._backlog, None)
        if some is None or not self._to_ledger(some):
            self._backlog.close()  # type: ignore[attr-defined]  # a generator, which lets go of its file
            self._backlog = None

    def _can_try(self) -> bool:
        if self._stuck is not None and self._stuck.done():
            self._stuck = None
        return self._stuck is None and self._link.ledger is not None and time.monotonic() >= self._rest_until

    def _to_ledger(self, forecasts: Sequence[IssuedForecast]) -> bool:
        """Write to the ledger; return whether it took them, or never will."""
        ledger = self._link.ledger
        if ledger is None or not self._can_try():
            return False
        future = self._writer.submit(lambda: self._append(ledger, forecasts))
        try:
            self._on_outcome("written", future.result(timeout=PATIENCE))
        except TimeoutError:
            self._stuck = future
        except LedgerUnavailableError as error:
            self._rest_until = time.monotonic() + RETRY
            log.warning("forecasts wait in files: %s", error)
        else:
            return True
        return False

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

    def _drop(self, count: int, why: str) -> None:
        self._on_outcome("dropped", count)
        if time.monotonic() >= self._silent_until:
            self._silent_until = time.monotonic() + SILENCE
            log.error("%d forecasts are not kept, and those that follow may not be: %s", count, why)


def build_forecasts(answered: Answered) -> Iterator[IssuedForecast]:
    """Yield the records of an answer, a series each."""
    prepared, model = answered.prepared, answered.prepared.model
    horizon = model.spec.horizon
    ahead: dict[pd.Timestamp, StampArray] = {}
    shown = inputs_of(answered.y_BL, answered.covariates)
    for b, (window, forecast, inputs) in enumerate(zip(prepared.windows, answered.forecasts, shown, strict=True)):
        if window.last not in ahead:
            ahead[window.last] = _steps_ahead(answered, window.last, horizon)
        ds_H = ahead[window.last]
        adjustment_BHQ = answered.adjustment_BHQ
        yield IssuedForecast(
            forecast_id=answered.forecast_id,
            position=b,
            batch_id=answered.forecast_id,
            issued_at=answered.issued_at,
            dataset=model.dataset,
            model=model.name,
            version=model.version,
            role="champion",
            unique_id=window.unique_id,
            cutoff=window.last.to_datetime64(),
            ds_H=ds_H,
            quantiles=model.spec.quantiles,
            values_HQ=answered.issued_BHQ[b, : len(ds_H)],
            adjustment_HQ=None if adjustment_BHQ is None else adjustment_BHQ[b, : len(ds_H)],
            inputs=inputs,
            status=forecast.status,
            reason=forecast.reason,
            target=model.target,
            freq=model.spec.freq,
            season_length=model.spec.season_length,
            transform=model.spec.transform,
        )


def _steps_ahead(answered: Answered, cutoff: pd.Timestamp, horizon: int) -> StampArray:
    """Return the timestamps forecast: those of the whole horizon, or as many as the calendar has."""
    calendar = answered.prepared.model.calendar
    try:
        ds = timestamps_after(calendar, cutoff, horizon)
    except (InputError, OverflowError, ValueError):
        ds = timestamps_after(calendar, cutoff, answered.prepared.h)
    return ds.to_numpy().astype("datetime64[us]")
