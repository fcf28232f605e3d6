"""The closed loop between two retrainings: scores are kept, and have consequences.

What has matured is scored; then, job by job, forecasts are issued, the version in the shadow is judged by the
scores, and a retraining is asked for where there is a reason. A round may be gone at any time, by anybody, and
again: what is done already is not done twice.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path

from forecasting.errors import (
    HindcastError,
    LedgerUnavailableError,
    QueueFullError,
    RegistryUnavailableError,
)
from forecasting.registry import (
    SHADOW,
    Registry,
    champion_or_none,
    open_registry,
    resolve_or_none,
)
from ledger.database import alone
from ledger.ledger import Ledger
from pipelines.issue import IssueReport, issue
from pipelines.load import dataset_of
from pipelines.promotion import Decision
from pipelines.score import ScoreReport, score_matured
from pipelines.settings import PipelineSettings
from pipelines.trial import Court, judge_shadow, note_in
from pipelines.triggers import Trigger, check_triggers, request_retraining
from training.job import JobConfig, load_job

log = logging.getLogger("hindcast")

State = tuple[datetime | None, str]
"""What a turn depends on: the newest moment of a job's dataset, and its champion."""


@dataclass(frozen=True)
class Loop:
    """What the loop works with, and when it took each job's turn last."""

    settings: PipelineSettings
    ledger: Ledger
    turned_at: dict[str, State] = field(default_factory=dict)
    """What each job's last turn depended on: while that is the same, another turn would come to the same."""

    @cached_property
    def registry(self) -> Registry:
        """The registry in force, opened when it is first asked."""
        return open_registry(self.settings.registry, create=True)


@dataclass(frozen=True)
class Turn:
    """What a turn came to for one job."""

    job: str
    issued: IssueReport | None = None
    """None where there is no champion to forecast with, or nothing became known since the last turn."""
    decision: Decision | None = None
    """What the live scores say of the version in the shadow; None where there is none."""
    asked: tuple[Trigger, ...] = ()
    """Why a retraining was asked for."""


@dataclass
class Round:
    """What one round over all jobs came to."""

    scored: ScoreReport
    turns: list[Turn] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    """What went wrong, by job."""


def go_round(loop: Loop, job_files: Mapping[str, Path]) -> Round | None:
    """Score what has matured and take a turn of every job; a job that fails does not hold up the others.

    Returns:
        None where another process is going round already.

    Raises:
        LedgerUnavailableError: the ledger does not answer.
        RegistryUnavailableError: the registry does not answer.
    """
    with alone(loop.ledger.engine, "round") as free:
        if not free:
            return None
        done = Round(score_matured(loop.ledger))
        for name, path in job_files.items():
            try:
                done.turns.append(take_turn(loop, load_job(path)))
            except (LedgerUnavailableError, RegistryUnavailableError):
                raise
            except HindcastError as error:
                log.warning("%s: %s", name, error)
                done.failed[name] = str(error)
        return done


def take_turn(loop: Loop, job: JobConfig) -> Turn:
    """Issue a job's forecasts, judge by the scores there are, and ask for a retraining where there is a reason."""
    champion = champion_or_none(loop.registry, job.name)
    if champion is None:
        return Turn(job.name)
    state = (loop.ledger.observations.last_known_at(dataset_of(job)), champion.version)
    if loop.turned_at.get(job.name) == state and resolve_or_none(loop.registry, job.name, SHADOW) is None:
        return Turn(job.name)
    issued = issue(loop.ledger, loop.registry, job.name)
    court = Court(loop.registry, loop.ledger.decisions, loop.ledger.scores, note_in(loop.settings.tracking, job))
    decision = judge_shadow(court, job)
    asked = _ask(loop, job)
    loop.turned_at[job.name] = state
    return Turn(job.name, issued, decision, asked)


def _ask(loop: Loop, job: JobConfig) -> tuple[Trigger, ...]:
    """Queue a retraining where there is a reason, unless there was one just now."""
    if job.triggers is None:
        return ()
    last = next(iter(loop.ledger.runs.list(job.name, limit=1)), None)
    pause = timedelta(hours=job.triggers.pause_hours)
    if last is not None and (last.ended_at is None or loop.ledger.clock() - last.ended_at < pause):
        return ()
    found = check_triggers(job, loop.ledger, loop.registry)
    try:
        request_retraining(job, loop.ledger, found)
    except QueueFullError as error:
        log.warning("%s: %s", job.name, error)
        return ()
    for trigger in found:
        log.info("%s: a retraining is asked for: %s", job.name, trigger.cause)
    return tuple(found)
