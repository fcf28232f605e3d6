"""/v1/jobs: which jobs are retrained, what became of it, and asking for it. The workers do the work."""

from typing import Annotated
from urllib.parse import quote

from fastapi import APIRouter, Header, Query, Response

from forecasting.errors import LedgerError, QueueFullError
from ledger.ledger import Ledger
from ledger.runs import KEY_PATTERN, JobRecord, RunRecord, State
from service.limits import clean_text
from service.openapi import problem_responses
from service.problems import (
    INVALID_REQUEST,
    KEY_TAKEN,
    LEDGER_UNAVAILABLE,
    QUEUE_FULL,
    UNKNOWN_JOB,
    UNKNOWN_RUN,
    ProblemError,
)
from service.runtime import RuntimeOf
from service.schemas import JobInfo, JobList, RunInfo, RunList

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

RETRY_AFTER = {"retry-after": "60"}


@router.get("", summary="List the jobs", responses=problem_responses(LEDGER_UNAVAILABLE))
async def list_jobs(runtime: RuntimeOf) -> JobList:
    """List the jobs of all workers that share the ledger."""
    jobs = await runtime.ask_ledger(lambda ledger: ledger.runs.jobs())
    return JobList(jobs=[_describe_job(job) for job in jobs])


@router.get("/{job}", summary="Describe a job", responses=problem_responses(UNKNOWN_JOB, LEDGER_UNAVAILABLE))
async def get_job(job: str, runtime: RuntimeOf) -> JobInfo:
    """Describe one job: when it is retrained, and when next."""
    return _describe_job(await runtime.ask_ledger(lambda ledger: _find_job(ledger, job)))


@router.get(
    "/{job}/runs",
    summary="List the retrainings of a job",
    responses=problem_responses(UNKNOWN_JOB, INVALID_REQUEST, LEDGER_UNAVAILABLE),
)
async def list_runs(
    job: str,
    runtime: RuntimeOf,
    state: Annotated[State | None, Query(description="Only those in this state.")] = None,
    limit: Annotated[int, Query(ge=1, le=1000, description="Most runs in the answer.")] = 100,
) -> RunList:
    """List what ran, runs, waits and failed, the newest first."""

    def find(ledger: Ledger) -> list[RunRecord]:
        runs = ledger.runs.list(clean_text(job), state, limit)
        if not runs:
            _find_job(ledger, job)
        return list(runs)

    return RunList(runs=[_describe_run(run) for run in await runtime.ask_ledger(find)])


@router.get(
    "/{job}/runs/{key}",
    summary="What became of a retraining?",
    responses=problem_responses(UNKNOWN_RUN, LEDGER_UNAVAILABLE),
)
async def get_run(job: str, key: str, runtime: RuntimeOf) -> RunInfo:
    """Tell whether a retraining waits, runs, is done, was skipped or failed, and why."""
    run = await runtime.ask_ledger(lambda ledger: ledger.runs.get(clean_text(key)))
    if run is None or run.job != job:
        raise ProblemError(UNKNOWN_RUN, f"job {job[:64]!r} has no run {key[:128]!r}")
    return _describe_run(run)


@router.post(
    "/{job}/retrain",
    status_code=202,
    summary="Ask for a retraining",
    responses={
        202: {
            "description": "It waits for a worker, or the key has been used before.",
            "headers": {"Location": {"description": "Where its state is.", "schema": {"type": "string"}}},
        },
        **problem_responses(UNKNOWN_JOB, KEY_TAKEN, INVALID_REQUEST, LEDGER_UNAVAILABLE, QUEUE_FULL),
    },
)
async def retrain(
    job: str,
    runtime: RuntimeOf,
    response: Response,
    idempotency_key: Annotated[
        str | None,
        Header(
            pattern=f"^{KEY_PATTERN}$", description="Names the run: asking again with it asks for nothing new."
        ),
    ] = None,
    force: Annotated[bool, Query(description="Train although neither data nor job changed.")] = False,
) -> RunInfo:
    """Have a worker retrain a job as soon as one is free, and answer at once where to look for what becomes of it.

    Asking again is safe. Without a key, a run of this job that still waits is returned instead of a second one.
    """
    try:
        run = await runtime.ask_ledger(lambda ledger: _request(ledger, job, idempotency_key, force=force))
    except QueueFullError as error:
        raise ProblemError(QUEUE_FULL, str(error), headers=RETRY_AFTER) from error
    except LedgerError as error:
        raise ProblemError(KEY_TAKEN, str(error)) from error
    response.headers["location"] = f"/v1/jobs/{quote(job)}/runs/{quote(run.key)}"
    return _describe_run(run)


def _request(ledger: Ledger, job: str, key: str | None, *, force: bool) -> RunRecord:
    _find_job(ledger, job)
    return ledger.runs.request(job, "request", "asked for over HTTP", key, force=force)


def _find_job(ledger: Ledger, name: str) -> JobRecord:
    found = ledger.runs.job(clean_text(name))
    if found is None:
        known = ", ".join(job.name for job in ledger.runs.jobs()[:20]) or "none"
        raise ProblemError(UNKNOWN_JOB, f"no worker runs a job named {name[:64]!r}; known: {known}")
    return found


def _describe_job(job: JobRecord) -> JobInfo:
    return JobInfo(
        job=job.name,
        schedule=job.schedule,
        next_tick=job.next_tick,
        config_digest=job.config_digest,
        updated_at=job.updated_at,
    )


def _describe_run(run: RunRecord) -> RunInfo:
    return RunInfo(
        job=run.job,
        key=run.key,
        state=run.state,
        trigger=run.trigger,
        cause=run.cause,
        requested_at=run.requested_at,
        started_at=run.started_at,
        ended_at=run.ended_at,
        version=run.version,
        decision=run.decision,
        reason=run.reason,
        error=run.error,
    )
