"""What streams observed, on its way to the ledger: beside the answers, and none waits for it.

Rows wait in memory; the journal they are in stays until the ledger has them, so that a crash loses none. What the
ledger knows already changes nothing there, so it may be told twice.
"""

import logging
import threading
from collections import deque
from dataclasses import dataclass

import numpy as np
import pandas as pd

from forecasting.errors import HindcastError, LedgerUnavailableError
from ledger.ledger import Ledger
from service.ledger_link import LedgerLink
from service.model_slot import LoadedModel
from service.streams.intake import Rows

log = logging.getLogger("hindcast.streams")

LINGER = 0.2
"""Seconds observations are collected for one transaction."""
RETRY = 0.5
AT_ONCE = 20_000
MOST_WAITING = 500_000
"""Observations that may wait; a ledger that is down for longer is told of no more."""
PATIENCE = 5.0


@dataclass(frozen=True, eq=False)
class _Waiting:
    dataset: str
    target: str
    past: tuple[str, ...]
    future: tuple[str, ...]
    rows: Rows
    group: int


class LedgerFeed:
    """Brings observations to the ledger, in a thread of its own."""

    def __init__(self, link: LedgerLink) -> None:
        self.enabled = link.enabled and link.settings.stream_to_ledger
        self._link = link
        self._queue: deque[_Waiting] = deque()
        self._n_waiting = 0
        self._changed = threading.Condition()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to bring."""
        if self.enabled:
            self._stopping.clear()
            self._thread = threading.Thread(target=self._run, name="streams-ledger", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Bring what waits if the ledger answers; the rest is in the journal."""
        self._stopping.set()
        with self._changed:
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(timeout=PATIENCE)

    def offer(self, model: LoadedModel, rows: Rows, group: int) -> None:
        """Take observations over; never waits."""
        if not self.enabled or not len(rows):
            return
        known = model.spec.covariates
        waiting = _Waiting(model.dataset, model.target, known.past, known.future, rows, group)
        with self._changed:
            if self._n_waiting + len(rows) > MOST_WAITING:
                log.error("%d observations do not reach the ledger: too many wait for it", len(rows))
                return
            self._queue.append(waiting)
            self._n_waiting += len(rows)
            self._changed.notify()

    def has_all_until(self, group: int) -> bool:
        """Return whether the ledger knows what was observed up to the end of a group."""
        with self._changed:
            return not self._queue or self._queue[0].group > group

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._stopping.is_set())
                if not self._queue:
                    return
            self._stopping.wait(LINGER)
            if not self._bring() and self._stopping.wait(RETRY):
                return

    def _bring(self) -> bool:
        """Bring what waits of one dataset; return whether the ledger took it."""
        ledger = self._link.ledger
        if ledger is None:
            return False
        batch = self._next_batch()
        try:
            _append_all(ledger, batch)
        except LedgerUnavailableError:
            return False
        with self._changed:
            for one in batch:
                self._queue.popleft()
                self._n_waiting -= len(one.rows)
        return True

    def _next_batch(self) -> list[_Waiting]:
        """Return the first that wait, as long as they belong together."""
        batch: list[_Waiting] = []
        with self._changed:
            for one in self._queue:
                first = batch[0] if batch else one
                alike = (one.dataset, one.target, one.past, one.future) == (
                    first.dataset,
                    first.target,
                    first.past,
                    first.future,
                )
                if not alike or sum(len(other.rows) for other in batch) >= AT_ONCE:
                    break
                batch.append(one)
        return batch


def _append_all(ledger: Ledger, batch: list[_Waiting]) -> None:
    """Append a batch; where the ledger refuses it, each message alone."""
    try:
        append(ledger, batch)
    except LedgerUnavailableError:
        raise
    except Exception as error:
        if len(batch) > 1:
            for one in batch:
                _append_all(ledger, [one])
        else:
            expected = isinstance(error, HindcastError)
            log.error(
                "the ledger refuses observations of dataset %s: %s",
                batch[0].dataset,
                error,
                exc_info=None if expected else error,
            )


def append(ledger: Ledger, batch: list[_Waiting]) -> None:
    """Append the observations of a batch.

    Raises:
        LedgerUnavailableError: the database does not answer.
    """
    rows, first = Rows(), batch[0]
    for one in batch:
        rows.add(one.rows)
    ds = np.array(rows.ds, dtype=np.int64).view("datetime64[us]")
    frame = pd.DataFrame({"unique_id": rows.unique_id, "ds": ds, first.target: rows.y})
    for kind, names in (("past", first.past), ("future", first.future)):
        for name in names:
            if name not in frame:
                frame[name] = _column(rows, kind, name)
    given = {name: frame[name].notna().to_numpy() for name in (*first.past, *first.future)}
    ledger.observations.append(first.dataset, frame, given=given)


def _column(rows: Rows, kind: str, name: str) -> list[float]:
    """Return what was told of a column at the step itself."""
    column = [np.nan] * len(rows)
    for i, told in rows.told.items():
        value = (told[kind] or {}).get(name)
        value = value[0] if isinstance(value, list) else value
        if value is not None:
            column[i] = value
    return column
