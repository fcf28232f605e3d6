"""A worker that is killed wherever it was not killed yet, life after life, until a retraining comes to its end.

Run as `python -m tests.e2e.kill_driver JOB KEY WHERE [KEY WHERE ...]` with a worker's settings in the environment:
everything is imported once, and each life of the worker is a fork of this process. A life ends by SIGKILL at the
first point nobody died at; the point is printed. WHERE is `everywhere`, or the points to die at, separated by
semicolons; the next KEY is asked for when the one before has ended.

Points are the boundaries of the steps (a step is done and that is not remembered yet; it is remembered and the
next one has not begun) and both sides of each call in INSIDE, the first in each step. The baselines count as one.
"""

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from dbos import DBOS
from mlflow.tracking import MlflowClient

import ledger.decisions
import ledger.runs
import pipelines.fitting
import pipelines.schedule
from forecasting.mlflow_registry import MlflowRegistry
from forecasting.spec import BASELINE_KINDS
from ledger.ledger import open_ledger
from pipelines.settings import PipelineSettings
from training.job import load_job
from training.tracking import CandidateRun, Tracker

INSIDE: tuple[tuple[object, str], ...] = (
    (DBOS, "enqueue_workflow"),
    (ledger.runs.RunStore, "start"),
    (ledger.runs.RunStore, "finish"),
    (ledger.decisions.DecisionStore, "record"),
    (MlflowClient, "create_run"),
    (MlflowClient, "set_terminated"),
    (MlflowClient, "create_model_version"),
    (MlflowClient, "set_registered_model_alias"),
    (MlflowClient, "set_model_version_tag"),
    (MlflowRegistry, "publish"),
    (Tracker, "finish_training"),
    (Tracker, "decide"),
    (CandidateRun, "log_epoch"),
    (pipelines.fitting, "save_artifact"),
)
MOST_LIVES = 95
LIFE_SECONDS = 60


class Reaper:
    """Kills this process at the first point it reaches that is new."""

    def __init__(self, died_at: frozenset[str], wanted: frozenset[str] | None, told: int) -> None:
        self._died_at, self._wanted, self._told = died_at, wanted, told
        self._here = threading.local()

    def reach(self, point: str) -> None:
        if point in self._died_at or (self._wanted is not None and point not in self._wanted):
            return
        os.write(self._told, point.encode())
        os.kill(os.getpid(), signal.SIGKILL)

    def wait_in_steps(self) -> None:
        """Stand at the boundaries of the steps."""
        run_step, attempt = pipelines.schedule.durable_step, pipelines.schedule.DurableSteps._try

        def durable_step(name: str, function: Callable[..., Any], *args: object) -> Any:
            result = run_step(name, function, *args)
            self.reach(f"{short(name)}: remembered")
            return result

        def try_it(steps: Any, name: str, *args: Any) -> Any:
            self._here.step = short(name)
            result = attempt(steps, name, *args)
            self.reach(f"{short(name)}: done")
            del self._here.step
            return result

        pipelines.schedule.durable_step = durable_step
        setattr(pipelines.schedule.DurableSteps, "_try", try_it)  # noqa: B010  (mypy lets nobody assign it)

    def wait_inside(self) -> None:
        """Stand on both sides of the calls that change something."""
        for owner, name in INSIDE:
            setattr(owner, name, self._guarded(name, getattr(owner, name)))

    def _guarded(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def guarded(*args: Any, **kwargs: Any) -> Any:
            step = getattr(self._here, "step", "outside")
            self.reach(f"{step}, before {name}")
            result = function(*args, **kwargs)
            self.reach(f"{step}, after {name}")
            return result

        return guarded


def short(step: str) -> str:
    """Return the name of a step, the same for the fits of all baselines."""
    return "fit baseline" if step.removeprefix("fit ") in BASELINE_KINDS else step


def live(
    settings: PipelineSettings, key: str, died_at: frozenset[str], wanted: frozenset[str] | None, told: int
) -> None:
    """Be the worker, until the run has ended."""
    # Looks and beats come oftener than in earnest: most of the time would be spent waiting for them.
    pipelines.schedule.LOOK_SECONDS = 0.05
    register_queue = DBOS.register_queue
    DBOS.register_queue = lambda *args, **kwargs: register_queue(*args, polling_interval_sec=0.05, **kwargs)
    reaper = Reaper(died_at, wanted, told)
    reaper.wait_in_steps()
    reaper.wait_inside()
    worker = pipelines.schedule.Worker(settings, pipelines.schedule.find_jobs(settings.jobs_dir))

    def watch() -> None:
        while not is_over(worker, key):
            time.sleep(0.05)
        worker.stop()

    threading.Thread(target=watch, daemon=True).start()
    worker.run()
    os._exit(0)


def is_over(worker: pipelines.schedule.Worker, key: str) -> bool:
    """Return whether the run has ended, and its workflow with it."""
    record = worker.ledger.runs.get(key)
    if record is None or not record.ended:
        return False
    return not [found for found in DBOS.list_workflows(status=["PENDING", "ENQUEUED"]) if key in found.workflow_id]


def fork(act: Callable[[int], None]) -> tuple[int, str]:
    """Act in a child process; return its wait status and what it wrote before it died."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        signal.alarm(LIFE_SECONDS)
        try:
            act(writing)
        finally:
            os._exit(1)
    os.close(writing)
    with os.fdopen(reading) as told:
        point = told.read()
    return os.waitpid(child, 0)[1], point


def main(arguments: Sequence[str]) -> int:
    job, *rest = arguments
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(process)d %(levelname)s %(message)s")
    for chatty in ("mlflow", "alembic", "dbos"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    torch.set_num_threads(1)
    settings = PipelineSettings()
    for key, where in zip(rest[::2], rest[1::2], strict=True):
        # What only a first start does is not what is tried here.
        fork(partial(prepare, settings, job, key))
        code = live_on(settings, key, None if where == "everywhere" else frozenset(where.split(";")))
        if code != 0:
            return code
    return 0


def prepare(settings: PipelineSettings, job: str, key: str, told: int) -> None:
    """Make the databases where they are not there, and ask for the run."""
    del told
    Tracker(settings.tracking, load_job(settings.jobs_dir / f"{job}.yaml"), "")
    open_ledger(settings.ledger).runs.request(job, "request", "asked by a test", key, force=True)


def live_on(settings: PipelineSettings, key: str, wanted: frozenset[str] | None) -> int:
    """Live and die until the run has ended; return the last life's exit code."""
    died_at: list[str] = []
    for _ in range(MOST_LIVES):
        status, point = fork(partial(live, settings, key, frozenset(died_at), wanted))
        if os.WIFEXITED(status):
            tell(f"ended with {os.WEXITSTATUS(status)} after {len(died_at)} kills")
            return os.WEXITSTATUS(status)
        if not point:
            tell(f"ended by signal {os.WTERMSIG(status)}")
            return 1
        died_at.append(point)
        tell(f"killed at: {point}")
    tell(f"no end after {MOST_LIVES} lives")
    return 1


def tell(line: str) -> None:
    """Write a line for the test."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
