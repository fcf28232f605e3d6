"""The OpenAPI document: what FastAPI finds out by itself, and what it cannot see.

The forecast route reads its body itself (strictly, and off the event loop), so its schema is added here. The
request examples are made from the models that are loaded: "Try it out" in /docs gets a real forecast.
"""

import math
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from forecasting.calendar import format_timestamp
from service.access import ACCESS
from service.grid import first_step
from service.model_slot import LoadedModel, ModelSlots
from service.problems import (
    INVALID_REQUEST,
    MEDIA_TYPE,
    MISSING_SCOPE,
    RATE_LIMITED,
    UNAUTHENTICATED,
    FieldError,
    Kind,
    Problem,
    describe,
)
from service.protocols.schemas import REQUESTS
from service.schemas import ForecastRequest, NotReady, ObservationsRequest
from service.streams.messages import ObserveRequest

JsonObject = dict[str, Any]

REFERENCE = "#/components/schemas/{model}"
MOST_EXAMPLES = 5
LONGEST_EXAMPLE = 500

FORECAST_PATH = "/v1/forecast"

KEY_SCHEMES: JsonObject = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}

EXAMPLE_ANSWER: JsonObject = {
    "forecast_id": "0b0f6f5e-6f0c-4d2b-9a53-2f1f0d6c3c55",
    "model": "sp500",
    "version": "12",
    "alias": "champion",
    "forecasts": [
        {
            "unique_id": "^GSPC",
            "cutoff": "2018-12-31",
            "status": "ok",
            "reason": None,
            "ds": ["2019-01-02", "2019-01-03"],
            "mean": [2507.1, 2507.9],
            "lo-80": [2480.0, 2469.2],
            "hi-80": [2531.9, 2544.0],
        }
    ],
}


def problem_responses(*kinds: Kind, model: type[Problem] = Problem) -> dict[int | str, JsonObject]:
    """Document the problems a route answers with, an example of each."""
    responses: dict[int | str, JsonObject] = {}
    for kind in kinds:
        entry = responses.setdefault(kind.status, _problem_response(model))
        entry["description"] = "; or: ".join(filter(None, [entry["description"], kind.title]))
        if model is Problem:
            examples = entry["content"][MEDIA_TYPE].setdefault("examples", {})
            examples[kind.slug] = {"summary": kind.title, "value": _example_problem(kind)}
    return responses


def _problem_response(model: type[Problem]) -> JsonObject:
    schema = {"$ref": REFERENCE.format(model=model.__name__)}
    return {"description": "", "content": {MEDIA_TYPE: {"schema": schema}}}


def _example_problem(kind: Kind) -> JsonObject:
    errors = []
    if kind is INVALID_REQUEST:
        errors = [FieldError(path="series[0].y", unique_id="pump-7", detail=kind.example)]
    return describe(kind, kind.example, "3f6c2c1e9d524a50b1a2a6f1c4f3f0aa", errors).model_dump()


def build_openapi(app: FastAPI, slots: ModelSlots) -> JsonObject:
    """Build the document as it is now, with examples for the models that are loaded now."""
    document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    documented: tuple[type[BaseModel], ...] = (
        ForecastRequest,
        ObservationsRequest,
        ObserveRequest,
        *REQUESTS,
        Problem,
        NotReady,
    )
    for model in documented:
        _add_schema(schemas, model)
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    for path in document["paths"].values():
        for operation in path.values():
            operation["responses"] = {k: v for k, v in operation["responses"].items() if not _is_fastapis(v)}
    if app.state.key_ring.enforced:
        _add_keys(document)
    operation = document["paths"][FORECAST_PATH]["post"]
    operation["requestBody"] = _request_body(slots)
    operation["responses"]["200"]["content"]["application/json"]["example"] = EXAMPLE_ANSWER
    return document


def _add_keys(document: JsonObject) -> None:
    """Tell of the keys: how they are sent, which scope each route needs, and what is said without one."""
    document["components"]["securitySchemes"] = KEY_SCHEMES
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            needed = ACCESS.get(path, {}).get(method.upper(), "admin")
            if needed != "open":
                operation["security"] = [{scheme: []} for scheme in KEY_SCHEMES]
                operation["description"] = f"{operation.get('description', '')}\n\nNeeds a key ({needed}).".strip()
                refusals = problem_responses(UNAUTHENTICATED, MISSING_SCOPE, RATE_LIMITED)
                operation["responses"] |= {str(status): told for status, told in refusals.items()}


def _add_schema(schemas: JsonObject, model: type[BaseModel]) -> None:
    schema = model.model_json_schema(ref_template=REFERENCE)
    schemas.update(schema.pop("$defs", {}))
    schemas[model.__name__] = schema


def _is_fastapis(response: Mapping[str, Any]) -> bool:
    """Return whether a response is the one FastAPI adds for its own validation, which is not used here."""
    return "HTTPValidationError" in str(response.get("content", ""))


def _request_body(slots: ModelSlots) -> JsonObject:
    loaded = [slot.current for slot in slots.all() if slot.current is not None]
    short = [model for model in loaded if model.spec.input_size <= LONGEST_EXAMPLE][:MOST_EXAMPLES]
    examples = {model.name: {"value": example_request(model)} for model in short}
    content: JsonObject = {"schema": {"$ref": REFERENCE.format(model="ForecastRequest")}}
    if examples:
        content["examples"] = examples
    return {"required": True, "content": {"application/json": content}}


def example_request(model: LoadedModel) -> JsonObject:
    """Build a request the model can answer: a season that grows, exactly as long as the model needs."""
    start = first_step(model.calendar)
    season = max(model.spec.season_length, 5)
    steps = range(model.spec.input_size)
    y = [round(100 + 5 * math.sin(2 * math.pi * i / season) + 0.1 * i, 2) for i in steps]
    series: JsonObject = {"unique_id": "example", "start": format_timestamp(start, model.calendar), "y": y}
    series |= _example_covariates(model)
    level = [float(lv) for lv in model.spec.level[:1]]
    h = min(model.spec.horizon, 7)
    # Made up: nothing that happens could ever say how right its forecast was.
    return {"model": model.name, "h": h, "level": level, "record": False, "series": [series]}


def _example_covariates(model: LoadedModel) -> JsonObject:
    """Tell everything the model takes, as it was in training: its first series, and the first of every name."""
    told, length = model.spec.covariates, model.spec.input_size
    wave = [round(20 + 3 * math.cos(2 * math.pi * i / 12), 2) for i in range(length + model.spec.horizon)]
    statics = {static.name: static.categories[0] for static in told.static}
    unique_id = statics.pop("unique_id", None)
    covariates: JsonObject = {
        "unique_id": unique_id,
        "past": dict.fromkeys(told.past, wave[:length]),
        "future": dict.fromkeys(told.future, wave),
        "static": statics,
    }
    return {field: known for field, known in covariates.items() if known}
