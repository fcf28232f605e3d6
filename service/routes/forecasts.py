"""POST /v1/forecast."""

from fastapi import APIRouter, Request, Response

from service.answering import answer
from service.limits import read_json_body
from service.openapi import FORECAST_PATH, problem_responses
from service.problems import (
    BAD_ENCODING,
    BODY_TIMEOUT,
    BODY_TOO_LARGE,
    DEADLINE_EXCEEDED,
    INTERNAL_ERROR,
    INVALID_REQUEST,
    MALFORMED_JSON,
    MODEL_NOT_LOADED,
    OVERLOADED,
    UNKNOWN_MODEL,
    UNSUPPORTED_MEDIA_TYPE,
)
from service.runtime import Runtime, RuntimeOf
from service.schemas import ForecastAnswer

router = APIRouter(tags=["forecasts"])


@router.post(
    FORECAST_PATH,
    response_model=ForecastAnswer,
    summary="Forecast series from their history",
    responses=problem_responses(
        MALFORMED_JSON,
        BAD_ENCODING,
        UNKNOWN_MODEL,
        BODY_TIMEOUT,
        BODY_TOO_LARGE,
        UNSUPPORTED_MEDIA_TYPE,
        INVALID_REQUEST,
        INTERNAL_ERROR,
        MODEL_NOT_LOADED,
        OVERLOADED,
        DEADLINE_EXCEEDED,
    ),
)
async def forecast(request: Request, runtime: RuntimeOf) -> Response:
    """Forecast the steps after each series' last observed value.

    A series should have as many points as the model's `input_size` (see `/v1/models/{model}`), missing ones
    included; with fewer it is answered by the seasonal naive (`fallback`), or refused with `"fallback": false`.
    The request is answered whole or refused whole, naming every series that cannot be forecast.
    """
    return await answer_forecast(request, runtime)


async def answer_forecast(request: Request, runtime: Runtime) -> Response:
    """Read a request and answer it.

    Raises:
        ProblemError: it was refused.
    """
    with runtime.admission():
        body = await read_json_body(request, runtime.settings)
        return Response(await answer(body, runtime), media_type="application/json")
