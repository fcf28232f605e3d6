"""The worker: every job's `schedule:` and every request as a durable workflow (DBOS), on SQLite or PostgreSQL.

A tick becomes a workflow whose id is the schedule and the time, so that however many workers look at one
database it runs once; a request's id is the key of its run. Steps are remembered as they finish: a worker that is
killed and started again goes on in the step it was in. One retraining runs at a time in each worker. The ledger
has the record of each: who asked, what became of it, why.
"""

import dataclasses
import fcntl
import logging
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path
from types import FrameType
from typing import Any, TextIO, TypeVar
from zoneinfo import ZoneInfo

import pandas as pd
from dbos import (
    DBOS,
    DBOSConfig,
    DBOSPortableJSONSerializer,
    ScheduleInput,
    SetWorkflowID,
    StepOptions,
    WorkflowStatus,
)

from forecasting.calendar import OFF_GRID, parse_freq
from forecasting.errors import (
    HindcastError,
    JobError,
    LedgerUnavailableError,
    RegistryUnavailableError,
    SourceError,
)
from ledger.ledger import Ledger, open_ledger
from ledger.runs import JobRecord, RunRecord
from pipelines.loop import Loop, go_round
from pipelines.recorded import retrain_recorded
from pipelines.report import LogReporter
from pipelines.run import Run
from pipelines.settings import PipelineSettings
from training.job import JobConfig, load_job, parse_job
from training.timetable import Timetable, timetable_of

log = logging.getLogger("hindcast")

APPLICATION = "hindcast"
QUEUE = "retrain"
SCHEDULED, REQUESTED = "scheduled_retrain", "requested_retrain"
"""The workflows."""
BEAT_SECONDS = 10.0
"""Seconds between two signs of life."""
LOOK_SECONDS = 1.0
"""Seconds between two looks at what was asked for."""
GRACE = timedelta(seconds=20)
"""How late a tick may be before it is taken for missed; the scheduler spreads them over up to ten seconds."""
LATE = timedelta(minutes=1)
"""How late a run may begin before its record says so."""
LONGEST_PAUSE = 60.0
"""Seconds between two tries of a step at the most."""

WORTH_ANOTHER_TRY = (RegistryUnavailableError, LedgerUnavailableError, SourceError)

T = TypeVar("T")


class StepFailedError(HindcastError):
    """A step failed, now or in an earlier life of this worker."""


class Worker:
    """Runs the schedules of a folder of job files, and what else is asked for, until it is told to stop."""

    def __init__(self, settings: PipelineSettings, job_files: Mapping[str, Path]) -> None:
        """Prepare a worker.

        Args:
            settings: where to work, and the scheduler's database.
            job_files: job file by job name; those without a `schedule:` are run when asked for.
        """
        self.settings = settings
        self.job_files = dict(job_files)
        jobs = {name: load_job(path) for name, path in job_files.items()}
        self._digests = {name: job.digest() for name, job in jobs.items()}
        found = {name: timetable_of(job) for name, job in jobs.items()}
        self._timetables = {name: timetable for name, timetable in found.items() if timetable is not None}
        self._steps = DurableSteps(settings.retries, settings.retry_seconds)
        self._handed_over: set[str] = set()
        self._noted: set[str] = set()
        self._stop = threading.Event()
        self._lock: TextIO | None = None

    @cached_property
    def ledger(self) -> Ledger:
        """The record of what was asked for."""
        return open_ledger(self.settings.ledger)

    @cached_property
    def loop(self) -> Loop:
        """What happens between two retrainings."""
        return Loop(self.settings, self.ledger)

    def run(self) -> None:
        """Launch the scheduler and wait for SIGTERM, SIGINT or `stop`.

        A retraining under way is not waited for: it goes on in its current step when the worker next starts.
        The scheduler is not shut down either, for a step that fails because its scheduler went away would be
        taken for a retraining that failed: the caller ends the process, as a power cut would.

        Raises:
            JobError: no job has a schedule, or a cron cannot be read.
            HindcastError: another worker with this name is running here, or a database cannot be used.
        """
        if not self._timetables:
            raise JobError("no job file has a schedule: nothing for a worker to do")
        self._take_name()
        with self._heeding_signals():
            try:
                self._launch()
            except BaseException:
                self._give_name_back()
                raise
            self._work()

    def _work(self) -> None:
        """Start what goes on beside the retrainings, and wait until told to stop."""
        threading.Thread(target=self._repeat, args=(BEAT_SECONDS, self._beat), name="beat", daemon=True).start()
        threading.Thread(target=self._repeat, args=(LOOK_SECONDS, self._look), name="look", daemon=True).start()
        if self.settings.round_seconds:
            going = (self.settings.round_seconds, self._go_round)
            threading.Thread(target=self._repeat, args=going, name="round", daemon=True).start()
        for name, timetable in self._timetables.items():
            log.info("scheduled %s: %s", name, timetable.describe())
        self._stop.wait()
        log.info("worker %s stops", self.settings.worker_id)

    def stop(self) -> None:
        """Make `run` return."""
        self._stop.set()

    @contextmanager
    def _heeding_signals(self) -> Iterator[None]:
        """Let SIGTERM and SIGINT stop the worker until the block ends; then they mean what they meant before."""
        before = {number: signal.signal(number, self._on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self.stop()

    def _take_name(self) -> None:
        """Hold a lock on this worker's name: recovery belongs to one process of a name at a time."""
        self.settings.home.mkdir(parents=True, exist_ok=True)
        self._lock = (self.settings.home / f"{self.settings.worker_id}.lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._give_name_back()
            raise HindcastError(
                f"a worker named {self.settings.worker_id!r} is already running; "
                "give this one another HINDCAST_WORKER_ID"
            ) from error

    def _give_name_back(self) -> None:
        if self._lock is not None:
            self._lock.close()

    def _repeat(self, seconds: float, act: Callable[[], None]) -> None:
        """Act again and again; what is wrong is said once, and again when something else is."""
        said = ""
        while not self._stop.is_set():
            try:
                act()
                said = ""
            except Exception as error:  # noqa: BLE001  (whatever the driver raises, the worker lives on)
                if (line := _first_line(error)) != said:
                    log.warning("worker %s: %s", self.settings.worker_id, line)
                said = line
            self._stop.wait(seconds)

    def _beat(self) -> None:
        """Touch `<worker_id>.alive` as long as the scheduler's database answers; a health check looks at it.

        Then see to ticks nobody fired.
        """
        DBOS.list_schedules()
        (self.settings.home / f"{self.settings.worker_id}.alive").touch()
        self._catch_up()

    def _go_round(self) -> None:
        """Keep score: issue, score, judge, and ask for what the scores ask for."""
        go_round(self.loop, self.job_files)

    def _look(self) -> None:
        """Take note of ticks that wait, and hand over what was asked for."""
        for record in self.ledger.runs.queued():
            if record.key not in self._handed_over:
                self._hand_over(record)
        for found in DBOS.list_workflows(status="ENQUEUED", name=SCHEDULED):
            if found.workflow_id not in self._noted and found.input:
                self._noted.add(found.workflow_id)
                tick, job_file = found.input["args"]
                job = load_job(Path(str(job_file)))
                if is_due(job, tick):
                    self._record_tick(job, tick)

    def _hand_over(self, record: RunRecord) -> None:
        """Make a workflow of a request; whoever else does so makes the same one."""
        if record.job not in self.job_files:
            if self.ledger.runs.job(record.job) is None:
                self.ledger.runs.finish(record.key, "failed", error=f"no worker knows a job named {record.job!r}")
            return
        with SetWorkflowID(f"run-{record.key}"):
            DBOS.enqueue_workflow(QUEUE, self._requested, record.key, str(self.job_files[record.job].absolute()))
        self._handed_over.add(record.key)

    def _launch(self) -> None:
        try:
            self._start_scheduler()
        except HindcastError:
            raise
        except Exception as error:
            raise HindcastError(f"the scheduler's database cannot be used: {_first_line(error)}") from error

    def _start_scheduler(self) -> None:
        config: DBOSConfig = {
            "name": APPLICATION,
            "system_database_url": self.settings.scheduler,
            "serializer": DBOSPortableJSONSerializer(),
            # Both are fixed, or a restarted worker would not find its unfinished work.
            "application_version": "1",
            "executor_id": self.settings.worker_id,
            "log_level": "WARNING",
            "scheduler_polling_interval_sec": 1.0,
        }
        DBOS(config=config)
        self._build_workflows()
        DBOS.launch()
        self._give_up_lost_runs()
        DBOS.register_queue(QUEUE, worker_concurrency=1)
        DBOS.apply_schedules([self._schedule(name, self.job_files[name]) for name in self._timetables])
        self._catch_up()
        # The database remembers the schedules of jobs that are gone, and would go on firing them.
        for gone in {str(known["schedule_name"]) for known in DBOS.list_schedules()} - set(self._timetables):
            DBOS.delete_schedule(gone)
            log.info("no longer scheduled: %s", gone)
        for known in self.ledger.runs.jobs():
            if known.name not in self.job_files:
                self.ledger.runs.forget_job(known.name)

    def _schedule(self, name: str, path: Path) -> ScheduleInput:
        return {
            "schedule_name": name,
            "workflow_fn": self._scheduled,
            "schedule": self._timetables[name].cron,
            "cron_timezone": self._timetables[name].timezone,
            "context": str(path.absolute()),
            "queue_name": QUEUE,
        }

    def _catch_up(self) -> None:
        """Make every job known, with its next tick; where that one passed and nobody fired it, fire the last."""
        now = self.ledger.clock()
        known = {job.name: job for job in self.ledger.runs.jobs()}
        for name, digest in self._digests.items():
            timetable, before = self._timetables.get(name), known.get(name)
            words = timetable.describe() if timetable is not None else None
            expected = before.next_tick if before is not None and before.schedule == words else None
            if timetable is not None and expected is not None and expected < now - GRACE:
                self._fire_missed(name, timetable, expected, now - GRACE)
                expected = timetable.next(now - GRACE)
            elif timetable is not None and expected is None:
                expected = timetable.next(now)
            record = JobRecord(name, digest, words, expected, now)
            if before is None or dataclasses.replace(before, updated_at=now) != record:
                self.ledger.runs.set_job(name, digest, words, expected)

    def _fire_missed(self, name: str, timetable: Timetable, first: datetime, until: datetime) -> None:
        """Fire the last of the ticks from `first` on, unless the scheduler did; once for all that were missed."""
        last = timetable.previous(until)
        if last is None or last < first:
            return
        tick_id = f"sched-{name}-{timetable.local(last).isoformat()}"
        if DBOS.get_workflow_status(tick_id) is None:
            log.warning("%s: no worker fired the tick of %s; it is caught up now", name, timetable.local(last))
            second = timedelta(seconds=1)
            DBOS.backfill_schedule(name, last - second, last + second)

    def _give_up_lost_runs(self) -> None:
        """Note that a run of this worker failed where the scheduler does not go on with it."""
        under_way = {_key_of(found) for found in DBOS.list_workflows(status=["ENQUEUED", "PENDING"])}
        waiting = [run for run in self.ledger.runs.list(state="queued", limit=None) if run.trigger == "schedule"]
        for record in (*self.ledger.runs.running(self.settings.worker_id), *waiting):
            if record.key not in under_way:
                log.error("%s: run %s was lost", record.job, record.key)
                self.ledger.runs.finish(record.key, "failed", error="its worker ended, and does not go on with it")

    def _build_workflows(self) -> None:
        """Register the two workflows there are: a tick of a job's schedule, and a request."""

        def scheduled_retrain(tick: datetime, job_file: Any) -> None:  # noqa: ANN401  (what the schedule stored)
            # The text as it was at the tick: a file edited half way through changes the next run, not this one.
            path = Path(str(job_file))
            try:
                text = self._steps("read", read_job, path)
            except StepFailedError as error:
                self._fail_tick(path, tick, error)
                raise
            job = parse_job(text)
            if not is_due(job, tick):
                if not is_session_day(job, tick):
                    log.info("%s: no session on %s, nothing to do", job.name, _local_time(job, tick).date())
                return
            key = self._steps("record", self._record_tick, job, tick)
            self._retrain(Run(text, path.parent, key, self.settings, LogReporter()), str(tick))

        def requested_retrain(key: str, job_file: str) -> None:
            path = Path(job_file)
            try:
                text = self._steps("read", read_job, path)
            except StepFailedError as error:
                self.ledger.runs.finish(key, "failed", error=str(error))
                raise
            self._retrain(Run(text, path.parent, key, self.settings, LogReporter()), key)

        self._scheduled: Callable[[datetime, Any], None] = DBOS.workflow(name=SCHEDULED)(scheduled_retrain)
        self._requested: Callable[[str, str], None] = DBOS.workflow(name=REQUESTED)(requested_retrain)

    def _fail_tick(self, path: Path, tick: datetime | str, error: StepFailedError) -> None:
        """Note that a tick came to nothing because its job cannot be read; the job's name is the one it had."""
        name = next((name for name, known in self.job_files.items() if known.absolute() == path), path.stem)
        log.error("%s: the tick of %s failed: %s", name, tick, error)
        key = self.ledger.runs.request(name, "schedule", f"the tick of {_moment(tick)}", _run_key(name, tick)).key
        self.ledger.runs.finish(key, "failed", error=str(error))

    def _record_tick(self, job: JobConfig, tick: datetime | str) -> str:
        """Note in the ledger, once, that a tick asks for a run, and return its key."""
        key = _run_key(job.name, tick)
        late = self.ledger.clock() - _moment(tick) > LATE
        cause = f"the tick of {_moment(tick)}" + (
            ", which is late: no worker was there or free to run it" if late else ""
        )
        force = job.schedule is not None and job.schedule.force
        self.ledger.runs.request(job.name, "schedule", cause, key, force=force)
        return key

    def _retrain(self, run: Run, what: str) -> None:
        try:
            retrain_recorded(run, self.ledger.runs, self.settings.worker_id, self._steps)
        except HindcastError as error:
            log.error("%s: the retraining of %s failed: %s", run.job.name, what, error)
            raise
        finally:
            run.discard()


@dataclass(frozen=True)
class DurableSteps:
    """Runs each step until it is done, once for good: after a restart, what it returned is remembered.

    A step that fails because something did not answer is tried again, ever more slowly, `retries` times.
    """

    retries: int
    pause: float
    """Seconds before the first of these tries."""

    def __call__(self, name: str, function: Callable[..., T], *args: object) -> T:
        answer = durable_step(name, self._try, name, function, *args)
        if answer["failed"] is not None:
            raise StepFailedError(answer["failed"])
        value: T = answer["value"]
        return value

    def _try(self, name: str, function: Callable[..., T], *args: object) -> dict[str, Any]:
        """Return what came of the step, as plain data: an error would be remembered as another kind."""
        attempt = 0
        while True:
            attempt += 1
            try:
                return {"value": function(*args), "failed": None}
            except WORTH_ANOTHER_TRY as error:
                if attempt > self.retries:
                    return {"failed": str(error)}
                pause = min(self.pause * 2 ** (attempt - 1), LONGEST_PAUSE)
                log.warning("step %s: %s; try %d of %d in %.3g s", name, error, attempt, self.retries, pause)
                time.sleep(pause)
            except HindcastError as error:
                return {"failed": str(error)}
            except Exception as error:
                log.exception("step %s", name)
                return {"failed": f"unexpected {type(error).__name__}: {_first_line(error)}"}


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def durable_step(name: str, function: Callable[..., T], *args: object) -> T:
    """Run a step once and remember what it returned; after a restart, return what is remembered."""
    options: StepOptions = {"name": name}
    result: T = DBOS.run_step(options, function, *args)
    return result


def read_job(path: Path) -> str:
    """Return the text of a job file that is valid.

    Raises:
        JobError: it is not there, or not valid.
    """
    load_job(path)
    return path.read_text(encoding="utf-8")


def _run_key(name: str, tick: datetime | str) -> str:
    return f"{name}-{re.sub(r'[^0-9T]', '', str(_moment(tick)).replace(' ', 'T'))}"


def _moment(tick: datetime | str) -> datetime:
    """Return a tick in UTC, in whichever of two ways the scheduler wrote it."""
    return pd.Timestamp(tick).tz_convert("UTC").to_pydatetime()


def _key_of(found: WorkflowStatus) -> str:
    """Return the key of the run a workflow is of."""
    first = found.input["args"][0] if found.input else ""
    return str(first) if found.name == REQUESTED else _run_key(str(found.schedule_name), first)


def is_session_day(job: JobConfig, tick: datetime | str) -> bool:
    """Return whether a tick falls on a session of the exchange the job follows; True where it follows none."""
    if job.session_calendar is None:
        return True
    day = pd.Timestamp(_local_time(job, tick).date())
    sessions = parse_freq(job.session_calendar)
    return bool(sessions.locate(day, pd.DatetimeIndex([day]))[0] != OFF_GRID)


def is_due(job: JobConfig, tick: datetime | str) -> bool:
    """Return whether a tick counts: on a session day, or at the very moment after a close."""
    timetable = timetable_of(job)
    return timetable is None or timetable.is_due(_moment(tick))


def _local_time(job: JobConfig, tick: datetime | str) -> pd.Timestamp:
    return pd.Timestamp(tick).tz_convert(ZoneInfo(job.schedule.timezone if job.schedule else "UTC"))


def find_jobs(folder: Path) -> dict[str, Path]:
    """Return the job files of a folder by job name.

    Raises:
        JobError: a file is not valid, two have the same name, or there is none.
    """
    found: dict[str, Path] = {}
    for path in sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")]):
        name = load_job(path).name
        if name in found:
            raise JobError(f"{path} and {found[name]} are both named {name!r}")
        found[name] = path
    if not found:
        raise JobError(f"no job file (*.yaml) in {folder}")
    return found
