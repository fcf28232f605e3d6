"""A retraining on record: asked for, begun once, skipped where nothing changed, ended as the ledger tells.

Whoever runs it, the worker or the command, goes through `retrain_recorded`; the steps here are steps like those of
`retrain`, so that a run that was killed goes on where it stopped.
"""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from forecasting.errors import HindcastError, LedgerError, ModelNotFoundError
from ledger.runs import EndState, RunRecord, RunStore
from pipelines.load import load_data
from pipelines.promotion import VERDICTS
from pipelines.retrain import Outcome, retrain_loaded
from pipelines.run import Run
from pipelines.steps import StepRunner, run_now

log = logging.getLogger("hindcast")

BEAT_SECONDS = 10.0
"""Seconds between two signs of life of a run."""
LOOK_SECONDS = 1.0
"""Seconds between two looks at a run that is in the way."""


def retrain_recorded(run: Run, runs: RunStore, worker: str, step: StepRunner = run_now) -> Outcome | None:
    """Run what was asked for under the run's key; None where it has ended already, or there was nothing to do.

    Raises:
        HindcastError: the retraining failed; the record says so too.
    """
    if not step("begin", begin, run, runs, worker):
        return None
    with _beating(runs, run.key):
        try:
            data = step("load", load_data, run)
            unchanged = step("compare", nothing_changed, run, runs)
            if unchanged is not None:
                step("skip", end, run, runs, "skipped", {"reason": unchanged})
                return None
            outcome = retrain_loaded(run, data, step)
            step("finish", end, run, runs, "done", _told(outcome))
        except HindcastError as error:
            with suppress(LedgerError):
                step("fail", end, run, runs, "failed", {"error": str(error)})
            raise
        except KeyboardInterrupt:
            with suppress(LedgerError):
                end(run, runs, "failed", {"error": "interrupted"})
            raise
    return outcome


def begin(run: Run, runs: RunStore, worker: str) -> bool:
    """Wait until the run may begin, and return whether it is this worker's to run."""
    waiting = False
    while True:
        record = runs.start(run.key, worker)
        if record.state == "skipped":
            run.reporter.say(f"{run.job.name}: run {run.key} is skipped: {record.reason}")
        if record.ended:
            return False
        if record.state == "running" and record.worker == worker:
            run.reporter.say(f"{run.job.name}: run {run.key} begins ({record.cause})")
            return True
        if not waiting:
            run.reporter.say(f"{run.job.name}: run {run.key} waits for the one that is under way")
            waiting = True
        time.sleep(LOOK_SECONDS)


def nothing_changed(run: Run, runs: RunStore) -> str | None:
    """Return why the run would make what there is already; None where it would not, or is forced."""
    data, config = run.panel.digest(), run.job.digest()
    runs.describe(run.key, data, config)
    record, last = runs.get(run.key), runs.last_done(run.job.name)
    if last is None or last.version is None or (record is not None and record.forced):
        return None
    if (last.data_digest, last.config_digest) != (data, config):
        return None
    try:
        run.registry.version(run.job.name, last.version)
    except ModelNotFoundError:
        return None
    return f"nothing changed since run {last.key}, which made version {last.version}: same data, same job"


def end(run: Run, runs: RunStore, state: EndState, told: dict[str, str | None]) -> None:
    """Note how the run ended."""
    record = runs.finish(run.key, state, **told)
    if record.state == "skipped":
        run.reporter.say(f"{run.job.name}: run {run.key} is skipped: {record.reason}")


def _told(outcome: Outcome) -> dict[str, str | None]:
    decision = outcome.decision
    if decision is None:
        return {"version": outcome.version}
    return {"version": outcome.version, "decision": VERDICTS[decision.action], "reason": decision.reason}


def describe(record: RunRecord) -> str:
    """Return what became of a run in a line."""
    made = f"version {record.version} {record.decision or 'published'}: " if record.version else ""
    why = record.error or record.reason or f"{record.cause}"
    return f"run {record.key} of {record.job} is {record.state}: {made}{why}"


@contextmanager
def _beating(runs: RunStore, key: str) -> Iterator[None]:
    """Give signs of life for a run until the block ends."""
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(BEAT_SECONDS):
            try:
                runs.touch(key)
            except LedgerError as error:
                log.warning("run %s: %s", key, error)

    threading.Thread(target=beat, name=f"beat {key}", daemon=True).start()
    try:
        yield
    finally:
        ended.set()
