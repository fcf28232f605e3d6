"""Runs: every retraining that was asked for, what became of it and why; the queue between asking and doing."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal, get_args

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection, Engine, Row

from forecasting.errors import LedgerError, QueueFullError
from ledger.database import reading, writing
from ledger.moments import Clock, to_microseconds, to_moment
from ledger.schema import jobs, runs

Trigger = Literal["schedule", "request", "command", "skill", "coverage", "drift", "new_data"]
State = Literal["queued", "running", "done", "skipped", "failed"]
EndState = Literal["done", "skipped", "failed"]

SELF_RUN: tuple[Trigger, ...] = ("schedule", "command")
"""Triggers that bring who runs them along: no worker looks for them in the queue, and they do not fill it."""

TRIGGERS: tuple[Trigger, ...] = get_args(Trigger)
STATES: tuple[State, ...] = get_args(State)
ENDED: tuple[EndState, ...] = get_args(EndState)

MAX_QUEUED = 100
"""Requests that may wait at one time; more are refused."""
PATIENCE = timedelta(seconds=60)
"""A worker that gave no sign of life for so long is taken for gone."""

KEY_PATTERN = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}"
"""A key names a folder, a workflow and a tag."""


@dataclass(frozen=True)
class RunRecord:
    """One retraining, from the moment it was asked for."""

    key: str
    job: str
    trigger: Trigger
    cause: str
    """Why it was asked for, as a sentence."""
    state: State
    requested_at: datetime
    started_at: datetime | None = None
    ended_at: datetime | None = None
    worker: str | None = None
    """Who runs it or ran it."""
    seen_at: datetime | None = None
    """The last sign of life from who runs it."""
    forced: bool = False
    """Whether it is to run although nothing changed."""
    data_digest: str | None = None
    config_digest: str | None = None
    version: str | None = None
    """The version it published."""
    decision: str | None = None
    """What the gate said of that version: promoted, not promoted."""
    reason: str | None = None
    """Why that was decided, or why the run was skipped."""
    error: str | None = None
    """What it failed with."""

    @property
    def ended(self) -> bool:
        """Return whether nothing more will become of it."""
        return self.state in ENDED


@dataclass(frozen=True)
class JobRecord:
    """A job as the worker that runs it knows it."""

    name: str
    config_digest: str
    schedule: str | None
    """When it is retrained, in words; None for only when asked."""
    next_tick: datetime | None
    updated_at: datetime


class RunStore:
    """Keeps the runs and the jobs they are runs of."""

    def __init__(self, engine: Engine, clock: Clock) -> None:
        self._engine, self._clock = engine, clock

    def request(
        self, job: str, trigger: Trigger, cause: str, key: str | None = None, *, force: bool = False
    ) -> RunRecord:
        """Ask for a retraining; a worker runs it as soon as one is free.

        Asking again is safe: a key that is known returns the run it names, whatever became of it, and without a
        key a run of the job that is still queued is returned instead of a second one.

        Args:
            job: the job's name; whether there is such a job is the caller's to know (`jobs`).
            trigger: what asks.
            cause: why, as a sentence a person reads.
            key: names the run; letters, digits, `_`, `.` and `-`. Default: made of the job and this moment.
            force: run although nothing changed since the last run.

        Raises:
            LedgerError: the key cannot be used, or is that of another job's run.
            QueueFullError: too many runs wait already.
        """
        with self._asking() as connection:
            known = _waiting(connection, job) if key is None else _known(connection, job, key)
            if known is not None:
                return known
            if trigger not in SELF_RUN and _count_waiting(connection) >= MAX_QUEUED:
                raise QueueFullError(
                    f"{MAX_QUEUED} retrainings wait already, which is the most there may be; ask again later"
                )
            return self._insert(connection, key, job, trigger, cause, force=force)

    def start(self, key: str, worker: str) -> RunRecord:
        """Let a worker run what waits, if nothing is in its way; what is returned says whether it may.

        It may where the state is `running` and the worker is this one. One run of a job at a time: while another
        one is under way it stays `queued`. A run is `skipped` when another of its job began after it was asked
        for, and is done: that one has seen all there was to see. A run whose worker gave no sign of life for
        PATIENCE is taken over.

        Raises:
            LedgerError: no run has this key.
        """
        with self._asking() as connection:
            record = _one(connection, key)
            now = self._now()
            gone = now - PATIENCE // timedelta(microseconds=1)
            if record.ended:
                return record
            if record.state == "running":
                mine = sa.or_(runs.c.worker == worker, runs.c.seen_at < gone)
                connection.execute(
                    sa.update(runs).where(runs.c.key == key, mine).values(worker=worker, seen_at=now)
                )
                return _one(connection, key)
            # What a person forces is run; the ticks of a schedule that does must not pile up.
            forced = record.forced and record.trigger != "schedule"
            overtaker = None if forced else _done_since(connection, record)
            if overtaker is not None:
                reason = f"run {overtaker} of the same job began later and is done"
                values = {"state": "skipped", "ended_at": now, "worker": worker, "reason": reason}
            elif _under_way(connection, record.job, gone):
                return record
            else:
                values = {"state": "running", "started_at": now, "seen_at": now, "worker": worker}
            connection.execute(sa.update(runs).where(runs.c.key == key).values(values))
            return _one(connection, key)

    def touch(self, key: str) -> None:
        """Give a sign of life for a run."""
        with writing(self._engine) as connection:
            connection.execute(sa.update(runs).where(runs.c.key == key).values(seen_at=self._now()))

    def describe(self, key: str, data_digest: str, config_digest: str) -> None:
        """Note what a run is made of."""
        with writing(self._engine) as connection:
            values = {"data_digest": data_digest, "config_digest": config_digest}
            connection.execute(sa.update(runs).where(runs.c.key == key).values(values))

    def finish(
        self,
        key: str,
        state: EndState,
        *,
        version: str | None = None,
        decision: str | None = None,
        reason: str | None = None,
        error: str | None = None,
    ) -> RunRecord:
        """Note how a run ended; one that has ended stays as it ended.

        Raises:
            LedgerError: no run has this key.
        """
        values = {
            "state": state,
            "ended_at": self._now(),
            "version": version,
            "decision": decision,
            "reason": reason,
            "error": error,
        }
        with writing(self._engine) as connection:
            connection.execute(
                sa.update(runs).where(runs.c.key == key, runs.c.state.in_(("queued", "running"))).values(values)
            )
            return _one(connection, key)

    def get(self, key: str) -> RunRecord | None:
        """Return a run, None where there is none of this key."""
        with reading(self._engine) as connection:
            return _find(connection, key)

    def list(
        self, job: str | None = None, state: State | None = None, limit: int | None = 100
    ) -> Sequence[RunRecord]:
        """Return runs, the newest first."""
        wanted = [] if job is None else [runs.c.job == job]
        if state is not None:
            wanted.append(runs.c.state == state)
        return self._select(*wanted, limit=limit)

    def queued(self) -> Sequence[RunRecord]:
        """Return the runs that wait for a worker, in the order they were asked for."""
        return self._select(runs.c.state == "queued", runs.c.trigger.not_in(SELF_RUN))[::-1]

    def last_done(self, job: str) -> RunRecord | None:
        """Return the newest run of a job that published a version."""
        done = self._select(runs.c.job == job, runs.c.state == "done", limit=1, order=runs.c.ended_at)
        return done[0] if done else None

    def running(self, worker: str) -> Sequence[RunRecord]:
        """Return the runs a worker has under way."""
        return self._select(runs.c.worker == worker, runs.c.state == "running")

    def jobs(self) -> Sequence[JobRecord]:
        """Return the jobs the workers know, by name."""
        with reading(self._engine) as connection:
            return [_job_of(row) for row in connection.execute(sa.select(jobs).order_by(jobs.c.name))]

    def job(self, name: str) -> JobRecord | None:
        """Return a job, None where no worker knows it."""
        with reading(self._engine) as connection:
            row = connection.execute(sa.select(jobs).where(jobs.c.name == name)).one_or_none()
        return None if row is None else _job_of(row)

    def set_job(self, name: str, config_digest: str, schedule: str | None, next_tick: datetime | None) -> None:
        """Make a job known, or what has changed of it."""
        values = {
            "name": name,
            "config_digest": config_digest,
            "schedule": schedule,
            "next_tick": None if next_tick is None else to_microseconds(next_tick),
            "updated_at": self._now(),
        }
        dialect = postgresql if self._engine.dialect.name == "postgresql" else sqlite
        insert = dialect.insert(jobs).values(values)
        with writing(self._engine) as connection:
            connection.execute(insert.on_conflict_do_update(index_elements=["name"], set_=values))

    def forget_job(self, name: str) -> None:
        """Take a job off the list; its runs stay."""
        with writing(self._engine) as connection:
            connection.execute(sa.delete(jobs).where(jobs.c.name == name))

    @contextmanager
    def _asking(self) -> Iterator[Connection]:
        """Open a transaction in which nobody else asks: what it looks up is so until it ends."""
        with writing(self._engine) as connection:
            if connection.dialect.name == "postgresql":
                connection.exec_driver_sql("LOCK TABLE runs IN SHARE ROW EXCLUSIVE MODE")
            yield connection

    def _insert(
        self,
        connection: Connection,
        key: str | None,
        job: str,
        trigger: Trigger,
        cause: str,
        *,
        force: bool,
    ) -> RunRecord:
        asked_at = self._clock()
        key = key or f"{job}-{asked_at:%Y%m%dT%H%M%S%f}"
        values = {
            "key": key,
            "job": job,
            "trigger": trigger,
            "cause": cause,
            "state": "queued",
            "requested_at": to_microseconds(asked_at),
            "forced": int(force),
        }
        connection.execute(sa.insert(runs).values(values))
        return _one(connection, key)

    def _select(
        self,
        *wanted: sa.ColumnElement[bool],
        limit: int | None = None,
        order: sa.Column[Any] = runs.c.requested_at,
    ) -> Sequence[RunRecord]:
        query = sa.select(runs).where(*wanted).order_by(order.desc(), runs.c.key.desc()).limit(limit)
        with reading(self._engine) as connection:
            return [_run_of(row) for row in connection.execute(query)]

    def _now(self) -> int:
        return to_microseconds(self._clock())


def _known(connection: Connection, job: str, key: str) -> RunRecord | None:
    if not re.fullmatch(KEY_PATTERN, key):
        raise LedgerError(
            f"{key!r} cannot be the key of a run: use at most 128 letters, digits, dashes, dots and underscores"
        )
    known = _find(connection, key)
    if known is not None and known.job != job:
        raise LedgerError(f"the key {key!r} is that of a run of job {known.job!r}, not of {job!r}")
    return known


def _waiting(connection: Connection, job: str) -> RunRecord | None:
    # A command waits for its own caller only, who may be gone.
    waits = sa.and_(runs.c.job == job, runs.c.state == "queued", runs.c.trigger != "command")
    query = sa.select(runs).where(waits).order_by(runs.c.requested_at)
    row = connection.execute(query.limit(1)).one_or_none()
    return None if row is None else _run_of(row)


def _count_waiting(connection: Connection) -> int:
    waits = sa.and_(runs.c.state == "queued", runs.c.trigger.not_in(SELF_RUN))
    return connection.scalar(sa.select(sa.func.count()).select_from(runs).where(waits)) or 0


def _under_way(connection: Connection, job: str, gone: int) -> bool:
    lives = sa.and_(runs.c.job == job, runs.c.state == "running", runs.c.seen_at >= gone)
    return connection.scalar(sa.select(sa.func.count()).select_from(runs).where(lives)) != 0


def _done_since(connection: Connection, asked: RunRecord) -> str | None:
    later = sa.and_(
        runs.c.job == asked.job,
        runs.c.key != asked.key,
        runs.c.state == "done",
        runs.c.started_at >= to_microseconds(asked.requested_at),
    )
    return connection.scalar(sa.select(runs.c.key).where(later).limit(1))


def _find(connection: Connection, key: str) -> RunRecord | None:
    row = connection.execute(sa.select(runs).where(runs.c.key == key)).one_or_none()
    return None if row is None else _run_of(row)


def _one(connection: Connection, key: str) -> RunRecord:
    found = _find(connection, key)
    if found is None:
        raise LedgerError(f"no run has the key {key!r}")
    return found


def _run_of(row: Row[Any]) -> RunRecord:
    return RunRecord(
        key=row.key,
        job=row.job,
        trigger=row.trigger,
        cause=row.cause,
        state=row.state,
        requested_at=to_moment(row.requested_at),
        started_at=_moment_or_none(row.started_at),
        ended_at=_moment_or_none(row.ended_at),
        worker=row.worker,
        seen_at=_moment_or_none(row.seen_at),
        forced=bool(row.forced),
        data_digest=row.data_digest,
        config_digest=row.config_digest,
        version=row.version,
        decision=row.decision,
        reason=row.reason,
        error=row.error,
    )


def _job_of(row: Row[Any]) -> JobRecord:
    moment = to_moment(row.updated_at)
    return JobRecord(row.name, row.config_digest, row.schedule, _moment_or_none(row.next_tick), moment)


def _moment_or_none(microseconds: int | None) -> datetime | None:
    return None if microseconds is None else to_moment(microseconds)
