"""The streams of one service: observations in, forecasts out, and nothing that was acknowledged is lost.

One thread owns all of this. What arrived together is a group: it is checked, put in the journal with one write,
told to the streams, and answered from one forward pass. A series lives in one place, in memory or in the store,
with the version that made its state; another version rebuilds it from the observations that are kept of it.
"""

import logging
import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from forecasting.calendar import Calendar
from forecasting.errors import InputError
from forecasting.forecaster import interval_bounds
from forecasting.stream import Outcome
from service.model_slot import LoadedModel
from service.problems import STREAMS_UNAVAILABLE, FieldError, ProblemError, refuse
from service.schemas import RefusedObservation
from service.settings import ServiceSettings
from service.streams.answers import Adjust, Asked, describe_streams
from service.streams.bank import Bank, names_of
from service.streams.intake import Checked, Rows, Timeline, check_message, read_head, read_record, to_observed
from service.streams.journal import Folder, Journal
from service.streams.messages import Message
from service.streams.store import Kept, Origin, Store
from service.streams.tally import StreamCounts, StreamTally

log = logging.getLogger("hindcast.streams")

IntArray = NDArray[np.int64]

SLICE = 512
"""Rows saved at a time, between groups."""
REPLAYED = 20_000
"""Observations of the journal that are told to streams at a time."""
COUNT_SECONDS = 1.0
"""Seconds between two looks at what is kept, under load."""
MALFORMED = "malformed"
"""What becomes of an observation that no stream of the model can be told."""
MOST_PENDING = 4
"""Journals may hold observations of models that are not there up to so many times their bound."""

Resolve = Callable[[str], LoadedModel]
Outcomes = list[bytes | Exception]


@dataclass(eq=False)
class _Item:
    """A message on its way through a group."""

    place: int
    """Where its answer goes."""
    asked: Asked
    checked: Checked
    round: int = 0


class Feed(Protocol):
    """Where observations go besides."""

    def offer(self, model: LoadedModel, rows: Rows, group: int) -> None:
        """Take observations over; never waits."""

    def has_all_until(self, group: int) -> bool:
        """Return whether what was observed up to the end of a group may go from the journal."""


class Engine:
    """All streams; only `answer`, `tidy`, `open` and `close` are for others, and for one thread at a time."""

    def __init__(
        self,
        settings: ServiceSettings,
        resolve: Resolve,
        adjust: Adjust,
        clock: Callable[[], datetime],
        feed: Feed,
    ) -> None:
        self.settings = settings
        self._resolve = resolve
        self._adjust = adjust
        self._clock = clock
        self._feed = feed
        self._folder = Folder(settings.home / "streams")
        self._banks: dict[str, list[Bank]] = {}
        """By model, the version that answers first; those before it hold what was not asked for since."""
        self._timelines: dict[str, Timeline] = {}
        self._pending: dict[str, list[bytes]] = {}
        self._group = 0
        self._snapshot: tuple[int, int] | None = None
        self._journal: Journal | None = None
        self._store: Store | None = None
        self.tally = StreamTally()
        self._counted_at = 0.0

    @property
    def path(self) -> Path:
        """Where streams are kept."""
        return self._folder.path

    def open(self) -> None:
        """Own the folder, and read what was acknowledged since the last snapshot.

        Raises:
            ProblemError: another process owns it, or the disk refuses.
        """
        if self._journal is not None:
            return
        try:
            if not self._folder.take():
                raise ProblemError(STREAMS_UNAVAILABLE, STREAMS_UNAVAILABLE.example, headers={"retry-after": "5"})
            self._store = Store(self.path / "streams.db")
            self._group = self._store.last_group
            journal = Journal(self.path)
            for record in journal.read():
                model, group = read_head(record)
                self._pending.setdefault(model, []).append(record)
                self._group = max(self._group, group)
            self._journal = journal
            self.tally.snapshot_at = time.monotonic()
        except (OSError, sqlite3.Error) as error:
            raise _disk_refused(error) from error

    def close(self) -> None:
        """Save everything, and let another process own the folder."""
        if self._journal is not None and self._store is not None:
            if any(map(len, self._all_banks())):
                self._begin_snapshot()
            while self._snapshot is not None:
                self._save_slice()
            self._journal.rotate()
            self._store.close()
        self._journal = self._store = None
        self._banks.clear()
        self._pending.clear()
        self._folder.release()

    # Answering

    def answer(self, messages: Sequence[Message]) -> Outcomes:
        """Take a group in; return an answer a message, or why there is none.

        What is answered is on the disk. One message's fault is not another's.
        """
        outcomes: Outcomes = [ValueError("not answered")] * len(messages)
        self.open()
        self._group += 1
        by_model: dict[str, list[tuple[int, Message]]] = {}
        for place, message in enumerate(messages):
            by_model.setdefault(message.options.model, []).append((place, message))
        ready: dict[str, tuple[LoadedModel, list[_Item]]] = {}
        with self.tally.timed("check"):
            for name, sent in by_model.items():
                try:
                    model = self._resolve(name)
                    self._recover(model)
                except ProblemError as error:
                    for place, _ in sent:
                        outcomes[place] = error
                else:
                    ready[name] = (model, self._check(model, sent, outcomes))
        with self.tally.timed("journal"):
            self._write_journal(ready)
        for model, items in ready.values():
            self._answer_model(model, items, outcomes)
        self._keep_up()
        return outcomes

    def _check(self, model: LoadedModel, sent: Sequence[tuple[int, Message]], outcomes: Outcomes) -> list[_Item]:
        items, timeline, now = [], self._timeline(model), self._clock()
        for place, message in sent:
            try:
                asked = _check_options(message, model, self.settings)
            except ProblemError as error:
                outcomes[place] = error
                continue
            checked = check_message(message, model, timeline, now)
            self.tally.observations[model.name, MALFORMED] += len(checked.refusals)
            items.append(_Item(place, asked, checked))
        return items

    def _write_journal(self, ready: dict[str, tuple[LoadedModel, list[_Item]]]) -> None:
        records = []
        for name, (_, items) in ready.items():
            rows = Rows()
            for item in items:
                rows.add(item.checked.rows)
            if len(rows):
                records.append(rows.write(name, self._group))
        if records and self._journal is not None:
            try:
                self._journal.append(records)
            except OSError as error:
                raise _disk_refused(error) from error

    def _answer_model(self, model: LoadedModel, items: list[_Item], outcomes: Outcomes) -> None:
        """Answer in rounds: two messages about one series are answered one after the other."""
        latest: dict[str, int] = {}
        for item in items:
            names = set(item.checked.rows.unique_id)
            item.round = max((latest.get(name, -1) for name in names), default=-1) + 1
            latest.update(dict.fromkeys(names, item.round))
        items.sort(key=lambda item: item.round)
        for _, together in groupby(items, key=lambda item: item.round):
            chosen = list(together)
            try:
                answers = self._answer_round(model, chosen)
            except Exception as error:
                log.exception("streams of model %s cannot be advanced", model.name)
                for item in chosen:
                    outcomes[item.place] = error
            else:
                for item, answer in zip(chosen, answers, strict=True):
                    outcomes[item.place] = answer

    def _answer_round(self, model: LoadedModel, items: Sequence[_Item]) -> list[bytes]:
        rows = Rows()
        for item in items:
            rows.add(item.checked.rows)
        with self.tally.timed("advance"):
            bank = self._admit(model, rows.unique_id)
            outcome_R = self._tell(bank, rows)
        for outcome, count in zip(*np.unique(outcome_R, return_counts=True), strict=True):
            self.tally.observations[model.name, Outcome(outcome).name.lower()] += int(count)
        restarted = frozenset(rows.unique_id[i] for i in np.flatnonzero(outcome_R == Outcome.RESTARTED))
        start, slots = 0, []
        for item in items:
            own_R = outcome_R[start : start + len(item.checked.rows)]
            start += len(own_R)
            slots.append(bank.slots(_settle_item(item, own_R, bank), self._group))
        asked = [item.asked for item in items]
        timeline = self._timeline(model)
        share = self.settings.stuck_share
        with self.tally.timed("forecast"):
            told = describe_streams(asked, slots, bank.streams, model, timeline, restarted, self._adjust, share)
        for (status, cause), count in told.outcomes.items():
            self.tally.forecasts[model.name, status, cause] += count
        return told.bodies

    def _tell(self, bank: Bank, rows: Rows) -> NDArray[np.int8]:
        """Tell streams their observations, each series' in order; return what became of each."""
        outcome_R = np.empty(len(rows), dtype=np.int8)
        for places in _waves(rows.unique_id):
            wave = rows.take(places) if len(places) < len(rows) else rows
            slot_B = bank.slots(wave.unique_id, self._group)
            outcome_B = bank.streams.observe(to_observed(wave, slot_B, bank.model.spec))
            outcome_R[places] = outcome_B
            group_B = np.array(wave.group or [self._group] * len(wave))
            changed = (outcome_B <= Outcome.RESTARTED) & (outcome_B != Outcome.KNOWN)
            bank.streams.rows["group"][slot_B[changed]] = group_B[changed]
        if len(rows):
            taken = np.flatnonzero(
                (outcome_R == Outcome.NEW) | (outcome_R == Outcome.REVISED) | (outcome_R == Outcome.RESTARTED)
            )
            self._feed.offer(bank.model, rows.take(taken.tolist()), self._group)
            bank.streams.settle(np.unique(bank.slots(rows.unique_id, self._group)))
        return outcome_R

    # Who is where

    def _bank(self, model: LoadedModel) -> Bank:
        """Return where this version's streams are; those of other versions become its predecessors."""
        banks = self._banks.setdefault(model.name, [])
        for bank in banks:
            if (bank.model.version, bank.model.digest) == (model.version, model.digest):
                banks.remove(bank)
                banks.insert(0, bank)
                return bank
        bank = Bank(
            model,
            rewind=self.settings.stream_rewind,
            gap=self.settings.stream_gap,
            note_pass=partial(self.tally.note_pass, model.name),
        )
        banks.insert(0, bank)
        self._timelines[model.name] = Timeline(model.calendar, model.spec.horizon)
        return bank

    def _timeline(self, model: LoadedModel) -> Timeline:
        known = self._timelines.get(model.name)
        if known is None or not _same(known, model.calendar, model.spec.horizon):
            known = self._timelines[model.name] = Timeline(model.calendar, model.spec.horizon)
        return known

    def _admit(self, model: LoadedModel, unique_ids: Sequence[str]) -> Bank:
        """Bring series to memory, from wherever they are; those there are none of begin."""
        bank = self._bank(model)
        missing = bank.missing(unique_ids)
        if not missing:
            return bank
        self._make_room(bank, len(missing))
        for other in self._banks[model.name][1:]:
            held = set(other.names())
            self._move(bank, other, [name for name in missing if name in held])
        missing = bank.missing(missing)
        loaded = self._load(model.name, missing)
        for origin, kept in loaded:
            self._unpack(bank, origin, kept)
        bank.admit(bank.missing(missing), self._group)
        return bank

    def _move(self, bank: Bank, other: Bank, names: list[str]) -> None:
        """Rebuild series of another version."""
        if not names:
            return
        rows = other.streams.rows[other.slots(names, self._group)]
        told = names_of(rows, other.streams.layout, other.origin, names)
        bank.streams.take_over(bank.admit(names, self._group), rows, other.streams.layout, told)
        other.release(names, None)
        if not len(other):
            self._banks[bank.model.name].remove(other)

    def _load(self, model: str, names: Sequence[str]) -> list[tuple[Origin, list[Kept]]]:
        """Return the series that are in the store, by what made them."""
        if self._store is None or not names:
            return []
        try:
            found = self._store.load(model, names)
        except sqlite3.Error as error:
            self._store.start_afresh(error)
            return []
        by_origin: dict[str, tuple[Origin, list[Kept]]] = {}
        for origin, kept in found:
            by_origin.setdefault(origin.content, (origin, []))[1].append(kept)
        return list(by_origin.values())

    def _unpack(self, bank: Bank, origin: Origin, kept: list[Kept]) -> None:
        names = [one.unique_id for one in kept]
        rows = np.frombuffer(b"".join(one.content for one in kept), dtype=origin.layout.dtype)
        slots_B = bank.admit(names, self._group)
        if origin.content == bank.origin.content:
            bank.streams.rows[slots_B] = rows
            bank.mark_saved(slots_B)
        else:
            bank.streams.take_over(slots_B, rows, origin.layout, names_of(rows, origin.layout, origin, names))

    def _make_room(self, bank: Bank, n: int) -> None:
        """Let a bank hold n series more: it grows within the bound, and beyond it the least recently used go."""
        if bank.n_free >= n:
            return
        each = bank.streams.bytes_each
        most = (self.settings.stream_memory_bytes - self._bytes_beside(bank)) // each
        if len(bank) + n > most:
            self._shrink_others(bank)
            most = (self.settings.stream_memory_bytes - self._bytes_beside(bank)) // each
        self._evict(bank, len(bank) + n - most)
        needed = len(bank) + n
        if bank.n_free < n:
            bank.resize(max(needed, min(2 * needed, most)))

    def _bytes_beside(self, bank: Bank) -> int:
        return sum(other.nbytes for other in self._all_banks() if other is not bank)

    def _shrink_others(self, bank: Bank) -> None:
        """Leave every other bank its share of the memory at most."""
        banks = self._all_banks()
        share = self.settings.stream_memory_bytes // len(banks)
        for other in banks:
            if other is not bank and other.nbytes > share:
                rows = max(share // other.streams.bytes_each, 1)
                self._evict(other, len(other) - rows)
                other.resize(max(rows, len(other)))

    def _evict(self, bank: Bank, n: int) -> None:
        """Bring the least recently used to the store, and some more: it is not to be done every time."""
        if n > 0 and self._store is not None:
            names = bank.oldest(n + len(bank) // 8, self._group)
            try:
                bank.release(names, self._store)
                self.tally.evicted["memory"] += len(names)
            except sqlite3.Error as error:
                self._store.start_afresh(error)
                raise _disk_refused(error) from error

    def _all_banks(self) -> list[Bank]:
        return [bank for banks in self._banks.values() for bank in banks]

    # Surviving

    def _recover(self, model: LoadedModel) -> None:
        """Tell streams what was acknowledged since they were saved."""
        records = self._pending.pop(model.name, [])
        try:
            self._replay_all(model, records)
        except Exception:
            log.exception("some of what was observed for model %s cannot be brought back", model.name)

    def _replay_all(self, model: LoadedModel, records: Sequence[bytes]) -> None:
        waiting = Rows()
        for i, record in enumerate(records):
            waiting.add(read_record(record))
            if len(waiting) >= REPLAYED or i + 1 == len(records):
                self._replay(model, waiting)
                waiting = Rows()
        if records:
            log.info("streams of model %s were brought up to date from %d records", model.name, len(records))

    def _replay(self, model: LoadedModel, rows: Rows) -> None:
        bank = self._admit(model, rows.unique_id)
        done_R = bank.streams.rows["group"][bank.slots(rows.unique_id, self._group)]
        is_left_R = np.array(rows.group) > done_R
        # What was saved need not have reached the ledger.
        self._feed.offer(model, rows.take(np.flatnonzero(~is_left_R).tolist()), self._group)
        self._tell(bank, rows.take(np.flatnonzero(is_left_R).tolist()))

    def tidy(self) -> bool:
        """Do a little of what need not be done at once; return whether there is more of it."""
        if not self._is_open():
            return False
        for name in list(self._pending):
            try:
                self._recover(self._resolve(name))
            except ProblemError:
                continue
        if (
            self._snapshot is None
            and self._journal is not None
            and self._journal.nbytes > self.settings.stream_journal_bytes
        ):
            self._begin_snapshot()
        if self._snapshot is not None:
            self._save_slice()
        self._count()
        return self._snapshot is not None

    def _is_open(self) -> bool:
        """Return whether streams are kept here; those of an earlier process are opened before anyone asks."""
        if self._journal is None and self.path.exists():
            with suppress(ProblemError):
                self.open()
        return self._journal is not None

    def _keep_up(self) -> None:
        """Under load nothing is idle: save rows between groups when the journal is twice what it may be."""
        if self._journal is not None and self._journal.nbytes > 2 * self.settings.stream_journal_bytes:
            if self._snapshot is None:
                self._begin_snapshot()
            self._save_slice()
        if time.monotonic() - self._counted_at > COUNT_SECONDS:
            self._count()

    def _begin_snapshot(self) -> None:
        if self._journal is not None:
            self._snapshot = (self._journal.rotate(), self._group + 1)

    def _save_slice(self) -> None:
        """Save some rows of the snapshot; when there are none left, the journal before it goes."""
        if self._snapshot is None or self._store is None:
            return
        before, group = self._snapshot
        try:
            for bank in self._all_banks():
                slots_B = bank.unsaved(group, SLICE)
                if len(slots_B):
                    bank.save(slots_B, self._store)
                    return
            self._store.sync()
            self._end_snapshot(before, group)
        except (OSError, sqlite3.Error) as error:
            log.error("streams cannot be saved; the journal stays: %s", error)
            self._snapshot = None

    def _end_snapshot(self, before: int, group: int) -> None:
        self._snapshot = None
        if self._journal is None or self._store is None:
            return
        if self._pending and self._journal.nbytes > MOST_PENDING * self.settings.stream_journal_bytes:
            log.error("observations of models that are not there are dropped: %s", ", ".join(self._pending))
            self._pending.clear()
        too_large = self._journal.nbytes > MOST_PENDING * self.settings.stream_journal_bytes
        if not self._pending and (too_large or self._feed.has_all_until(group)):
            self._journal.discard(before)
        self.tally.snapshot_at = time.monotonic()
        if forgotten := self._store.trim(self.settings.stream_disk_bytes):
            self.tally.evicted["disk"] += forgotten
            log.warning("%d streams were forgotten: the disk may hold no more of them", forgotten)

    def _count(self) -> None:
        banks = self._all_banks()
        self._counted_at = time.monotonic()
        if self._journal is None or self._store is None:
            return
        with suppress(sqlite3.Error):  # a damaged file is noticed by who needs it, and put aside
            self.tally.kept = StreamCounts(
                in_memory=sum(map(len, banks)),
                on_disk=self._store.count(),
                memory_bytes=sum(bank.nbytes for bank in banks),
                disk_bytes=self._store.nbytes,
                journal_bytes=self._journal.nbytes,
            )


def _same(timeline: Timeline, calendar: Calendar, horizon: int) -> bool:
    return timeline.calendar.freq == calendar.freq and timeline.horizon == horizon


def _check_options(message: Message, model: LoadedModel, settings: ServiceSettings) -> Asked:
    options, spec = message.options, model.spec
    h = spec.horizon if options.h is None else options.h
    level = tuple(spec.level if options.level is None else options.level)
    errors = []
    if h > spec.horizon:
        detail = f"h is {h}; model {spec.name!r} forecasts at most {spec.horizon} steps"
        errors.append(FieldError(path="h", detail=detail))
    if len(level) > settings.max_levels or len(set(level)) < len(level):
        detail = f"{len(level)} levels; at most {settings.max_levels}, each once"
        errors.append(FieldError(path="level", detail=detail))
    try:
        for one in level:
            interval_bounds(spec.quantiles, one)
    except InputError as error:
        errors.append(FieldError(path="level", detail=str(error)))
    if errors:
        raise refuse(errors)
    return Asked(h, level, [], [], message.id)


def _settle_item(item: _Item, outcome_R: NDArray[np.int8], bank: Bank) -> list[str]:
    """Note what became of a message's observations, and return the series it is answered about."""
    rows, asked = item.checked.rows, item.asked
    asked.refusals.extend(item.checked.refusals)
    told = []
    for i, outcome in enumerate(outcome_R.tolist()):
        if Outcome(outcome).is_refused:
            asked.refusals.append(_refusal(item, i, Outcome(outcome), bank))
        else:
            told.append(rows.unique_id[i])
    asked.refusals.sort(key=lambda refusal: refusal.row)
    asked.unique_ids.extend(dict.fromkeys(told))
    return asked.unique_ids


def _refusal(item: _Item, i: int, outcome: Outcome, bank: Bank) -> RefusedObservation:
    rows, rewind = item.checked.rows, bank.streams.layout.rewind
    stamp = np.datetime_as_string(np.datetime64(rows.ds[i], "us"), unit="s")
    if outcome == Outcome.TOO_LATE:
        why = f"{stamp} is {rewind} steps or more before the newest observation: the stream went on without it"
    else:
        why = f"{stamp} does not lie on the stream's grid of {bank.model.calendar.freq}"
    unique_id = rows.unique_id[i]
    reason = f"series {unique_id!r}: {why}"
    return RefusedObservation(row=item.checked.place[i], unique_id=unique_id, field="ds", reason=reason)


def _waves(unique_ids: Sequence[str]) -> list[list[int]]:
    """Return places so that each series is there once in each list, its observations in their order."""
    if len(set(unique_ids)) == len(unique_ids):
        return [list(range(len(unique_ids)))] if unique_ids else []
    count: dict[str, int] = {}
    waves: list[list[int]] = []
    for place, name in enumerate(unique_ids):
        k = count[name] = count.get(name, -1) + 1
        if k == len(waves):
            waves.append([])
        waves[k].append(place)
    return waves


def _disk_refused(error: Exception) -> ProblemError:
    log.error("streams cannot be kept: %s", error)
    detail = "streams cannot be kept: the disk refuses; the service's log has the reason"
    return ProblemError(STREAMS_UNAVAILABLE, detail, headers={"retry-after": "5"})
