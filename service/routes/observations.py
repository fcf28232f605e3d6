"""POST /v1/observations."""

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request

from ledger.ledger import Ledger
from ledger.observations import Appended
from service.intake import NDJSON, PARQUET, TAKEN, Declared, read_observations
from service.limits import JSON, read_body
from service.openapi import REFERENCE, problem_responses
from service.problems import (
    BAD_ENCODING,
    BODY_TIMEOUT,
    BODY_TOO_LARGE,
    INTERNAL_ERROR,
    INVALID_REQUEST,
    LEDGER_UNAVAILABLE,
    MALFORMED_JSON,
    OVERLOADED,
    UNSUPPORTED_MEDIA_TYPE,
)
from service.runtime import RuntimeOf
from service.schemas import ObservationsAnswer

router = APIRouter(tags=["observations"])

_ROW = {"unique_id": "pump-7", "ds": "2024-03-01T00:00:00Z", "y": 20.1}
_SERIES = {"unique_id": "pump-7", "ds": ["2024-03-01T00:00:00Z", "2024-03-01T01:00:00Z"], "y": [20.1, 20.4]}

_REQUEST_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        JSON: {
            "schema": {"$ref": REFERENCE.format(model="ObservationsRequest")},
            "examples": {
                "rows": {"value": {"dataset": "example", "observations": [_ROW]}},
                "series": {"value": {"dataset": "example", "series": [_SERIES]}},
            },
        },
        NDJSON: {"schema": {"type": "string", "description": "One observation a line."}},
        PARQUET: {"schema": {"type": "string", "format": "binary"}},
    },
}


@router.post(
    "/v1/observations",
    response_model=ObservationsAnswer,
    summary="Keep what was observed",
    responses=problem_responses(
        MALFORMED_JSON,
        BAD_ENCODING,
        BODY_TIMEOUT,
        BODY_TOO_LARGE,
        UNSUPPORTED_MEDIA_TYPE,
        INVALID_REQUEST,
        INTERNAL_ERROR,
        OVERLOADED,
        LEDGER_UNAVAILABLE,
    ),
    openapi_extra={"requestBody": _REQUEST_BODY},
)
async def post_observations(
    request: Request,
    runtime: RuntimeOf,
    dataset: Annotated[
        str | None, Query(description="The name they are kept under, where the body does not say it.")
    ] = None,
    static: Annotated[list[str] | None, Query(description="Columns that hold names instead of values.")] = None,
) -> ObservationsAnswer:
    """Append observations to the ledger, whole or not at all, but for rows that are refused and told.

    What is known already changes nothing, so a request may be sent again. A value that differs from the one known
    is kept as a revision, beside the old one.
    """
    with runtime.admission():
        media_type, body = await read_body(request, runtime.settings, TAKEN)
        declared = Declared(dataset, tuple(static or ()))
        intake = await asyncio.to_thread(read_observations, media_type, body, declared)

    def append(ledger: Ledger) -> Appended:
        return ledger.observations.append(intake.dataset, intake.rows, static=intake.static, given=intake.given)

    appended = await runtime.ask_ledger(append)
    return ObservationsAnswer(
        dataset=intake.dataset,
        known_at=appended.known_at,
        new=appended.new,
        revised=appended.revised,
        unchanged=appended.unchanged,
        refused=intake.refused,
        refusals=intake.refusals,
    )
