"""The worker: every job's `schedule:` as a durable workflow (DBOS), on SQLite or PostgreSQL.

A tick becomes a workflow whose id is the schedule and the time, so that however many workers look at one
database it runs once. Its steps are remembered as they finish: a worker that is killed and started again goes on
in the step it was in. One retraining runs at a time in each worker.
"""

import fcntl
import logging
import re
import signal
import threading
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Any, TextIO, TypeVar
from zoneinfo import ZoneInfo

import pandas as pd
from dbos import DBOS, DBOSConfig, DBOSPortableJSONSerializer, ScheduleInput, StepOptions

from forecasting.calendar import OFF_GRID, parse_freq
from forecasting.errors import HindcastError, JobError
from pipelines.report import LogReporter
from pipelines.retrain import retrain
from pipelines.run import Run
from pipelines.settings import PipelineSettings
from training.job import JobConfig, load_job, parse_job

log = logging.getLogger("hindcast")

APPLICATION = "hindcast"
QUEUE = "retrain"
BEAT_SECONDS = 10.0
"""Seconds between two signs of life."""

T = TypeVar("T")


class Worker:
    """Runs the schedules of a folder of job files until it is told to stop."""

    def __init__(self, settings: PipelineSettings, job_files: Mapping[str, Path]) -> None:
        """Prepare a worker.

        Args:
            settings: where to work, and the scheduler's database.
            job_files: job file by job name; only jobs with a `schedule:` are run.
        """
        self.settings = settings
        self.job_files = {name: path for name, path in job_files.items() if load_job(path).schedule}
        self._stop = threading.Event()
        self._lock: TextIO | None = None

    def run(self) -> None:
        """Launch the scheduler and wait for SIGTERM, SIGINT or `stop`.

        A retraining under way is not waited for: it goes on in its current step when the worker next starts.
        The scheduler is not shut down either, for a step that fails because its scheduler went away would be
        taken for a retraining that failed: the caller ends the process, as a power cut would.

        Raises:
            JobError: no job has a schedule, or a cron cannot be read.
            HindcastError: another worker with this name is running here, or the database cannot be used.
        """
        if not self.job_files:
            raise JobError("no job file has a schedule: nothing for a worker to do")
        self._take_name()
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)
        self._launch()
        threading.Thread(target=self._beat, name="beat", daemon=True).start()
        for name, path in self.job_files.items():
            schedule = load_job(path).schedule
            log.info("scheduled %s: %s %s", name, schedule and schedule.cron, schedule and schedule.timezone)
        self._stop.wait()
        log.info("worker %s stops", self.settings.worker_id)

    def stop(self) -> None:
        """Make `run` return."""
        self._stop.set()

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
            raise HindcastError(
                f"a worker named {self.settings.worker_id!r} is already running; "
                "give this one another HINDCAST_WORKER_ID"
            ) from error

    def _beat(self) -> None:
        """Touch `<worker_id>.alive` as long as the scheduler's database answers; a health check looks at it."""
        alive = self.settings.home / f"{self.settings.worker_id}.alive"
        while not self._stop.is_set():
            try:
                DBOS.list_schedules()
                alive.touch()
            except Exception as error:  # noqa: BLE001  (whatever the driver raises, there is no sign of life)
                log.warning("worker %s: %s", self.settings.worker_id, _first_line(error))
            self._stop.wait(BEAT_SECONDS)

    def _launch(self) -> None:
        try:
            self._start_scheduler()
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
        workflow = _build_workflow(self.settings)
        DBOS.launch()
        DBOS.register_queue(QUEUE, worker_concurrency=1)
        DBOS.apply_schedules([self._schedule(name, path, workflow) for name, path in self.job_files.items()])
        # The database remembers the schedules of jobs that are gone, and would go on firing them.
        for gone in {str(known["schedule_name"]) for known in DBOS.list_schedules()} - set(self.job_files):
            DBOS.delete_schedule(gone)
            log.info("no longer scheduled: %s", gone)

    def _schedule(self, name: str, path: Path, workflow: Callable[[datetime, Any], None]) -> ScheduleInput:
        schedule = load_job(path).schedule
        if schedule is None:
            raise JobError(f"job {name!r} has no schedule")
        return {
            "schedule_name": name,
            "workflow_fn": workflow,
            "schedule": schedule.cron,
            "cron_timezone": schedule.timezone,
            "context": str(path.absolute()),
            "queue_name": QUEUE,
        }


def _build_workflow(settings: PipelineSettings) -> Callable[[datetime, Any], None]:
    """Register the one workflow there is: a tick of a job's schedule."""

    def scheduled_retrain(tick: datetime, job_file: Any) -> None:  # noqa: ANN401  (what the schedule stored)
        path = Path(str(job_file))
        # The text as it was at the tick: a file edited half way through changes the next run, not this one.
        text = durable_step("read", path.read_text)
        run = Run(text, path.parent, _run_key(parse_job(text), tick), settings, LogReporter())
        if not is_session_day(run.job, tick):
            log.info("%s: no session on %s, nothing to do", run.job.name, _local_time(run.job, tick).date())
            return
        try:
            retrain(run, durable_step)
        except HindcastError as error:
            log.error("%s: the retraining of %s failed: %s", run.job.name, tick, error)
            run.discard()
            raise
        run.discard()

    workflow: Callable[[datetime, Any], None] = DBOS.workflow(name="scheduled_retrain")(scheduled_retrain)
    return workflow


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def durable_step(name: str, function: Callable[..., T], *args: object) -> T:
    """Run a step once and remember what it returned; after a restart, return what is remembered."""
    options: StepOptions = {"name": name}
    result: T = DBOS.run_step(options, function, *args)
    return result


def _run_key(job: JobConfig, tick: datetime | str) -> str:
    return f"{job.name}-{re.sub(r'[^0-9T]', '', str(tick).replace(' ', 'T'))}"


def is_session_day(job: JobConfig, tick: datetime | str) -> bool:
    """Return whether a tick falls on a session of the exchange the job follows; True where it follows none."""
    if job.session_calendar is None:
        return True
    day = pd.Timestamp(_local_time(job, tick).date())
    sessions = parse_freq(job.session_calendar)
    return bool(sessions.locate(day, pd.DatetimeIndex([day]))[0] != OFF_GRID)


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
