"""GET /v1/accuracy: how right the forecasts were, once what happened is known."""

from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import FiniteFloat

from forecasting.forecaster import format_level
from forecasting.spec import MODEL_NAME_PATTERN
from service.limits import clean_text, parse_moment
from service.openapi import problem_responses
from service.problems import INVALID_REQUEST, LEDGER_UNAVAILABLE
from service.runtime import RuntimeOf
from service.schemas import Accuracy, AccuracyList

router = APIRouter(prefix="/v1/accuracy", tags=["accuracy"])

Group = Literal["model", "version", "role", "unique_id", "step"]
Level = Annotated[FiniteFloat, Query(gt=0, lt=100)]

MOST_LEVELS = 20


@router.get(
    "",
    summary="How right were the forecasts?",
    responses=problem_responses(INVALID_REQUEST, LEDGER_UNAVAILABLE),
)
async def get_accuracy(
    runtime: RuntimeOf,
    model: Annotated[str | None, Query(pattern=MODEL_NAME_PATTERN, description="Default: all.")] = None,
    version: Annotated[str | None, Query(pattern=r"^[0-9]{1,9}$", description="Default: all.")] = None,
    role: Annotated[
        Literal["champion", "shadow"] | None,
        Query(description="champion: what was answered; shadow: issued beside it. Default: both."),
    ] = None,
    unique_id: Annotated[str | None, Query(max_length=256, description="Default: every series.")] = None,
    since: Annotated[
        datetime | None, Query(description="The first cutoff that counts (UTC unless it says otherwise).")
    ] = None,
    against: Annotated[
        Literal["latest", "first"],
        Query(description="What happened, as it is known latest or as it was known first."),
    ] = "latest",
    by: Annotated[
        list[Group], Query(max_length=5, description="What a row is of; the rest is taken together.")
    ] = ["model", "version", "role"],  # noqa: B006  (FastAPI copies it)
    level: Annotated[
        list[Level], Query(max_length=MOST_LEVELS, description="Intervals whose coverage is wanted, in percent.")
    ] = [80.0, 90.0, 95.0],  # noqa: B006
    limit: Annotated[int, Query(ge=1, le=10_000, description="Most rows in the answer.")] = 1000,
) -> AccuracyList:
    """Compare every forecast step that was observed since with what was observed, group by group.

    Forecasts are scored when the worker, or `hindcast score`, looks at what came in: the newest observations may
    not be in it yet.
    """
    first, name = parse_moment("since", since), unique_id and clean_text(unique_id)
    groups = list(dict.fromkeys(by))
    rows = await runtime.ask_ledger(
        lambda ledger: ledger.scores.summary(
            model, version, role, name, first, against, groups, level=level, limit=limit
        )
    )
    return AccuracyList(rows=[_describe(row, level) for row in rows])


def _describe(row: dict[str, Any], level: list[float]) -> Accuracy:
    coverage = {format_level(lv): row[f"coverage_{format_level(lv)}"] for lv in level}
    told = {name: value for name, value in row.items() if not name.startswith("coverage_")}
    return Accuracy(**told, coverage=coverage)
