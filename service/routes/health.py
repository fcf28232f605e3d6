"""Is the process alive, can it answer, and how is it doing."""

from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse, RedirectResponse

from service.openapi import problem_responses
from service.problems import NOT_READY, FieldError, describe, respond
from service.runtime import Runtime, RuntimeOf
from service.schemas import Liveness, ModelReadiness, NotReady, Readiness
from service.telemetry import CONTENT_TYPE

router = APIRouter()


@router.get("/", include_in_schema=False)
async def root() -> RedirectResponse:
    """Lead a browser to the documentation."""
    return RedirectResponse("/docs")


@router.get("/health/live", tags=["health"], summary="Is the process alive?")
async def live() -> Liveness:
    """Answer as long as the process runs: restart it when this fails."""
    return Liveness()


@router.get(
    "/health/ready",
    tags=["health"],
    summary="Can it answer?",
    response_model=Readiness,
    responses=problem_responses(NOT_READY, model=NotReady),
)
async def ready(request: Request, runtime: RuntimeOf) -> Readiness | Response:
    """Answer 200 when every required model is loaded and the service is not shutting down.

    A model that goes on serving although the registry could not be followed stays ready, marked `stale`.
    Forecasts need no ledger: one that does not answer is shown, and takes nothing away.
    """
    reasons = runtime.missing()
    models, registry = _describe_models(runtime), runtime.slots.registry_trouble
    ledger, keys = runtime.ledger_link.trouble, request.app.state.key_ring.trouble
    if not reasons:
        return Readiness(models=models, registry=registry, ledger=ledger, keys=keys)
    errors = [FieldError(path="", detail=reason) for reason in reasons]
    problem = describe(NOT_READY, reasons[0], str(request.scope.get("hindcast.request_id", "")), errors)
    return respond(NotReady(**problem.model_dump(), models=models, registry=registry, ledger=ledger, keys=keys))


def _describe_models(runtime: Runtime) -> list[ModelReadiness]:
    return [
        ModelReadiness(
            model=slot.name,
            status=slot.status,
            version=slot.current and slot.current.version,
            source=slot.source,
            failure=slot.failure,
        )
        for slot in runtime.slots.all()
    ]


@router.get("/metrics", tags=["health"], summary="Metrics for Prometheus", response_class=PlainTextResponse)
async def metrics(runtime: RuntimeOf) -> Response:
    """Answer in Prometheus' text format; of several workers, whichever is asked tells of all of them."""
    return Response(await runtime.siblings.expose(), media_type=CONTENT_TYPE)
