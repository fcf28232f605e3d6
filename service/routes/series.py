"""GET /v1/models/{model}/series/...: what the ledger knows of a model's series, and forecasts from it alone."""

from datetime import datetime
from typing import Annotated

import pandas as pd
from fastapi import APIRouter, Path, Query, Response
from pydantic import FiniteFloat

from forecasting.calendar import format_timestamp
from service.answering import answer_from_ledger
from service.ledger_histories import LedgerForecastRequest
from service.limits import clean_text, parse_moment
from service.openapi import problem_responses
from service.problems import (
    DEADLINE_EXCEEDED,
    INTERNAL_ERROR,
    INVALID_REQUEST,
    LEDGER_UNAVAILABLE,
    MODEL_NOT_LOADED,
    OVERLOADED,
    UNKNOWN_MODEL,
    UNKNOWN_SERIES,
)
from service.runtime import RuntimeOf
from service.schemas import ForecastAnswer, LedgerSeries, LedgerSeriesList

router = APIRouter(prefix="/v1/models/{model}/series", tags=["series"])

UniqueId = Annotated[str, Path(max_length=256, description="The name of the series.")]
Level = Annotated[FiniteFloat, Query(gt=0, lt=100)]


@router.get(
    "",
    summary="List the series the ledger knows",
    responses=problem_responses(UNKNOWN_MODEL, INVALID_REQUEST, MODEL_NOT_LOADED, LEDGER_UNAVAILABLE),
)
async def list_series(
    model: str,
    runtime: RuntimeOf,
    prefix: Annotated[str, Query(max_length=256, description="Names begin with this.")] = "",
    after: Annotated[str, Query(max_length=256, description="Begin after this name: `next` of a page.")] = "",
    limit: Annotated[int, Query(ge=1, le=1000, description="Most series in the answer.")] = 100,
) -> LedgerSeriesList:
    """List the series of the dataset the model reads, by name, a page at a time."""
    loaded = runtime.model(model)
    dataset, target = loaded.dataset, loaded.target
    found = await runtime.ask_ledger(
        lambda ledger: ledger.observations.page(
            dataset, column=target, prefix=clean_text(prefix), after=clean_text(after), limit=limit + 1
        )
    )
    series = [
        LedgerSeries(
            unique_id=one.unique_id,
            first=format_timestamp(pd.Timestamp(one.first), loaded.calendar),
            last=format_timestamp(pd.Timestamp(one.last), loaded.calendar),
        )
        for one in found[:limit]
    ]
    more = series[-1].unique_id if len(found) > limit else None
    return LedgerSeriesList(model=model, dataset=dataset, series=series, next=more)


@router.get(
    "/{unique_id:path}/forecast",
    response_model=ForecastAnswer,
    summary="Forecast a series from the ledger",
    responses=problem_responses(
        UNKNOWN_MODEL,
        UNKNOWN_SERIES,
        INVALID_REQUEST,
        INTERNAL_ERROR,
        MODEL_NOT_LOADED,
        OVERLOADED,
        DEADLINE_EXCEEDED,
        LEDGER_UNAVAILABLE,
    ),
)
async def forecast_series(
    model: str,
    unique_id: UniqueId,
    runtime: RuntimeOf,
    h: Annotated[int | None, Query(ge=1, description="Steps to forecast; default: the model's horizon.")] = None,
    level: Annotated[
        list[Level] | None, Query(description="Prediction intervals in percent; default: the model's.")
    ] = None,
    as_of: Annotated[
        datetime | None,
        Query(description="Forecast with what was known at this moment (UTC unless it says otherwise)."),
    ] = None,
    record: Annotated[
        bool, Query(description="Whether the ledger keeps the forecast; never kept with as_of.")
    ] = True,
    fallback: Annotated[
        bool, Query(description="Whether the seasonal naive answers where the model cannot or should not.")
    ] = True,
) -> Response:
    """Forecast the steps after the newest observation, from the ledger's history alone.

    Covariates and names are read from the ledger too, under the names the model takes; future ones as far ahead
    as they are known. Where the newest observation is older than the horizon, the seasonal naive goes on from
    there to the steps that are still ahead (`fallback`).
    """
    moment = parse_moment("as_of", as_of)
    asked = LedgerForecastRequest(model, clean_text(unique_id), h, level, moment, record, fallback)
    with runtime.admission():
        return Response(await answer_from_ledger(asked, runtime), media_type="application/json")
