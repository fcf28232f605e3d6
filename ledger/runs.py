"""Runs: every retraining that was asked for, what became of it and why; the queue between asking and doing."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
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

TRIGGERS: tuple[Trigger, ...] = get_args(Trigger)
STATES: tuple[State, ...] = get_args(State)
ENDED: tuple[EndState, ...] = get_args(EndState)

MAX_QUEUED = 100
"""Runs that may wait at one time; more are refused."""

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
            waiting = connection.scalar(sa.select(sa.func.count()).where(runs.c.state == "queued")) or 0
            if waiting >= MAX_QUEUED:
                raise QueueFullError(
                    f"{waiting} retrainings wait already, which is the most there may be; ask again later"
                )
            return self._insert(connection, key, job, trigger, cause, force=force)

    def begin(
        self, job: str, trigger: Trigger, cause: str, key: str | None, worker: str, *, force: bool = False
    ) -> RunRecord:
        """Record a retraining that its caller runs at once; no worker picks it up.

        A key that is known returns the run it names, which may have ended, or be another's that runs still.

        Raises:
            LedgerError: the key cannot be used, or is that of another job's run.
        """
        with self._asking() as connection:
            known = None if key is None else _known(connection, job, key)
            if known is not None:
                return known
            return self._insert(connection, key, job, trigger, cause, force=force, worker=worker)

    def start(self, key: str, worker: str) -> RunRecord:
        """Note that a queued run is being run; one that runs or has ended is left as it is."""
        values = {"state": "running", "started_at": self._now(), "worker": worker}
        with writing(self._engine) as connection:
            connection.execute(sa.update(runs).where(runs.c.key == key, runs.c.state == "queued").values(values))
            return _one(connection, key)

    def take_over(self, key: str, worker: str) -> RunRecord:
        """Note that a run whose worker is gone goes on in another one."""
        with writing(self._engine) as connection:
            connection.execute(
                sa.update(runs).where(runs.c.key == key, runs.c.state == "running").values(worker=worker)
            )
            return _one(connection, key)

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
        """Return the runs that wait, in the order they were asked for."""
        return self._select(runs.c.state == "queued")[::-1]

    def last_done(self, job: str) -> RunRecord | None:
        """Return the newest run of a job that published a version."""
        done = self._select(runs.c.job == job, runs.c.state == "done", limit=1, order=runs.c.ended_at)
        return done[0] if done else None

    def running(self, job: str) -> Sequence[RunRecord]:
        """Return the runs of a job that are under way."""
        return self._select(runs.c.job == job, runs.c.state == "running")

    def begun_since(self, job: str, moment: datetime, *, but: str) -> RunRecord | None:
        """Return a run of a job that began at or after a moment and did not fail, leaving one key aside."""
        found = self._select(
            runs.c.job == job,
            runs.c.key != but,
            runs.c.started_at >= to_microseconds(moment),
            runs.c.state.in_(("running", "done")),
            limit=1,
        )
        return found[0] if found else None

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
        worker: str | None = None,
    ) -> RunRecord:
        asked_at = self._clock()
        key = key or f"{job}-{asked_at:%Y%m%dT%H%M%S%f}"
        values = {
            "key": key,
            "job": job,
            "trigger": trigger,
            "cause": cause,
            "state": "queued" if worker is None else "running",
            "requested_at": to_microseconds(asked_at),
            "started_at": None if worker is None else to_microseconds(asked_at),
            "worker": worker,
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
    query = sa.select(runs).where(runs.c.job == job, runs.c.state == "queued").order_by(runs.c.requested_at)
    row = connection.execute(query.limit(1)).one_or_none()
    return None if row is None else _run_of(row)


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
