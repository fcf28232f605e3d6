"""The closed loop between two retrainings: scores are kept, and have consequences.

What has matured is scored; then, job by job, forecasts are issued, the version in the shadow is judged by the
scores, and a retraining is asked for where there is a reason. A round may be gone at any time, by anybody, and
again: what is done already is not done twice.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from forecasting.errors import HindcastError, LedgerUnavailableError, RegistryUnavailableError
from forecasting.registry import ModelVersion, Registry, champion_or_none, open_registry
from ledger.database import alone
from ledger.ledger import Ledger
from pipelines.issue import IssueReport, issue
from pipelines.promotion import Decision
from pipelines.score import ScoreReport, score_matured
from pipelines.settings import PipelineSettings
from pipelines.trial import Court, Note, judge_shadow, tags_of
from training.job import JobConfig, load_job
from training.tracking import Tracker

log = logging.getLogger("hindcast")

TAG_TRACKING_RUN = "hindcast.tracking_run"


@dataclass(frozen=True)
class Loop:
    """What the loop works with."""

    settings: PipelineSettings
    ledger: Ledger

    @cached_property
    def registry(self) -> Registry:
        """The registry in force, opened when it is first asked."""
        return open_registry(self.settings.registry)


@dataclass(frozen=True)
class Turn:
    """What a turn came to for one job."""

    job: str
    issued: IssueReport | None = None
    """None where there is no champion to forecast with."""
    decision: Decision | None = None
    """What the live scores say of the version in the shadow; None where there is none."""


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
    """Issue a job's forecasts, and judge by the scores there are."""
    if champion_or_none(loop.registry, job.name) is None:
        return Turn(job.name)
    issued = issue(loop.ledger, loop.registry, job.name)
    court = Court(loop.registry, loop.ledger.decisions, loop.ledger.scores, _note_for(loop, job))
    return Turn(job.name, issued, judge_shadow(court, job))


def _note_for(loop: Loop, job: JobConfig) -> Note:
    """Return what writes a decision to the training of the version it is about."""

    def note(version: ModelVersion, decision: Decision) -> None:
        run_id = version.tags.get(TAG_TRACKING_RUN)
        if run_id:
            Tracker(loop.settings.tracking, job, "").decide(run_id, tags_of(decision))

    return note
