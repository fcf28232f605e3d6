"""MLflow's scoring protocol: what asked `mlflow models serve` of a registered model may ask here instead."""

from importlib.metadata import version as version_of
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import PlainTextResponse
from starlette.responses import JSONResponse

from forecasting.forecaster import summarise
from service.answering import Issued, issue
from service.histories import Prepared, prepare
from service.limits import JSON, read_body
from service.model_slot import LoadedModel
from service.protocols.asking import beside, choose_model, write_json
from service.protocols.errors import TranslatedRoute
from service.protocols.frames import build_series, read_frame
from service.protocols.schemas import ScoringAnswer, ScoringError
from service.runtime import Runtime, RuntimeOf
from service.schemas import ForecastRequest
from service.settings import ServiceSettings

CSV = "text/csv"

ERROR_CODES = {
    400: "BAD_REQUEST",
    404: "RESOURCE_DOES_NOT_EXIST",
    408: "REQUEST_TIMEOUT",
    413: "REQUEST_LIMIT_EXCEEDED",
    415: "BAD_REQUEST",
    503: "TEMPORARILY_UNAVAILABLE",
}
"""MLflow's names of what can go wrong."""

MEANING = {
    400: "The request cannot be answered as it is",
    404: "No such model",
    408: "The body did not arrive in time",
    413: "The body is too large",
    415: "The body is neither JSON nor CSV",
    503: "The model is not loaded, or too many requests at one time",
}


class ScoringRoute(TranslatedRoute):
    """A route whose problems are told as MLflow's scoring server tells errors."""

    @staticmethod
    def tell(status: int, detail: str, headers: dict[str, str]) -> Response:
        """Return an error with MLflow's name of it."""
        told = {"error_code": ERROR_CODES.get(status, "INTERNAL_ERROR"), "message": detail}
        return JSONResponse(told, status, headers)


router = APIRouter(tags=["MLflow scoring"], route_class=ScoringRoute)


@router.get(
    "/ping",
    summary="MLflow: can it answer?",
    response_class=PlainTextResponse,
    responses={404: {"description": "Not yet", "content": {"text/plain": {"schema": {"type": "string"}}}}},
)
@router.get("/health", include_in_schema=False)  # another name of /ping; /health/ready says more
async def ping(runtime: RuntimeOf) -> Response:
    """Answer 200 when every required model is loaded and the service is not shutting down."""
    is_ready = not runtime.draining and not runtime.slots.missing()
    return PlainTextResponse("\n", 200 if is_ready else 404)


@router.get("/version", summary="MLflow: its version", response_class=PlainTextResponse)
async def version() -> Response:
    """Answer with the version of MLflow whose protocol this is."""
    return PlainTextResponse(version_of("mlflow"))


@router.post(
    "/invocations",
    summary="MLflow: score a long frame",
    response_model=ScoringAnswer,
    responses={status: {"model": ScoringError, "description": told} for status, told in MEANING.items()},
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                JSON: {"schema": {"$ref": "#/components/schemas/ScoringRequest"}},
                CSV: {"schema": {"type": "string"}},
            },
        }
    },
)
async def invocations(
    request: Request,
    runtime: RuntimeOf,
    model: Annotated[
        str | None, Query(max_length=256, description="Default: HINDCAST_DEFAULT_MODEL, or the only model.")
    ] = None,
) -> Response:
    """Answer as `mlflow models serve` of the registered model would, with the whole horizon of every series."""
    with runtime.admission():
        found = _find_model(runtime, model)
        media_type, body = await read_body(request, runtime.settings, (JSON, CSV))
        is_csv = media_type == CSV
        prepared = await beside(len(body), lambda: _read(body, is_csv, found, runtime.settings))
        issued = await issue(prepared, runtime)
        content = await beside(issued.quantiles_BHQ.nbytes, lambda: write_json(_describe(issued)))
        return Response(content, media_type=JSON)


def _find_model(runtime: Runtime, name: str | None) -> LoadedModel:
    if name is not None:
        return runtime.model(name)
    return choose_model(runtime, lambda _: True, "here", "name one as /invocations?model=NAME")


def _read(body: bytes, is_csv: bool, model: LoadedModel, settings: ServiceSettings) -> Prepared:
    known = model.spec.covariates
    frame, level = read_frame(body, is_csv=is_csv, known=known, max_values=settings.max_values)
    series = build_series(frame, known, settings)
    request = ForecastRequest.model_construct(model=model.name, h=None, level=level, record=True, series=series)
    return prepare(request, model, settings)


def _describe(issued: Issued) -> dict[str, Any]:
    prepared = issued.prepared
    columns = summarise(issued.quantiles_BHQ, prepared.model.spec.quantiles, prepared.level)
    predictions = [
        {
            "unique_id": window.unique_id,
            "cutoff": window.last.isoformat(),
            "ds": _without_zone(ds),
            **{name: column_BH[b, step] for name, column_BH in columns.items()},
        }
        for b, window in enumerate(prepared.windows)
        for step, ds in enumerate(window.ds)
    ]
    degraded = {one.unique_id: one.reason for one in issued.forecasts if one.reason is not None}
    return {"predictions": predictions, **({"degraded": degraded} if degraded else {})}


def _without_zone(ds: str) -> str:
    """Write a timestamp as the registered model has it: without a zone, and dates with their midnight."""
    return ds.removesuffix("Z") if "T" in ds else f"{ds}T00:00:00"
