"""What the foreign protocols share: reading a body, choosing a model, and a time where a client tells none."""

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

import pandas as pd
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, to_json

from forecasting.calendar import format_timestamp
from service.answering import LARGE_BODY
from service.model_slot import LoadedModel
from service.problems import MALFORMED_JSON, MODEL_NOT_LOADED, FieldError, ProblemError, refuse
from service.runtime import Runtime

M = TypeVar("M", bound=BaseModel)
T = TypeVar("T")

MOST_COMPLAINTS = 16
MOST_NAMED = 20

_ANY_MOMENT = pd.Timestamp("1970-01-05")


async def beside(size: int, work: Callable[[], T]) -> T:
    """Work on the event loop, or in a thread where so many bytes would hold the loop up."""
    return work() if size < LARGE_BODY else await asyncio.to_thread(work)


def read_json(body: bytes, shape: type[M]) -> M:
    """Read a body of a known shape.

    Raises:
        ProblemError: it is not JSON, or not of that shape; the first fields that are wrong are named.
    """
    try:
        return shape.model_validate_json(body)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False, include_context=False)[:MOST_COMPLAINTS]
        if found[0]["type"] == "json_invalid":
            detail = f"the body is not valid JSON: {found[0]['msg'].removeprefix('Invalid JSON: ')}"
            raise ProblemError(MALFORMED_JSON, detail) from None
        raise refuse([_field_error(one) for one in found]) from None


def _field_error(error: ErrorDetails) -> FieldError:
    path = ".".join(str(part)[:64] for part in error["loc"])
    message = error["msg"].removeprefix("Value error, ")
    return FieldError(path=path, detail=f"{path or 'the body'}: {message}")


def write_json(content: dict[str, Any]) -> bytes:
    """Write an answer; what is not finite becomes null, which every client reads."""
    return to_json(content, inf_nan_mode="null")


def refuse_field(path: str, detail: str) -> ProblemError:
    """Build the error that refuses a request for one reason."""
    return refuse([FieldError(path=path, detail=detail)])


def choose_model(runtime: Runtime, fits: Callable[[LoadedModel], bool], what: str, how: str) -> LoadedModel:
    """Return the model for a client that named none: that of the settings, or else the only one that fits.

    Args:
        runtime: that of the service.
        fits: whether a model could answer.
        what: what a model must be to fit, for the refusal.
        how: how this client can name one, for the refusal.

    Raises:
        ProblemError: none fits, or several do, or none is loaded.
    """
    if runtime.settings.default_model is not None:
        return runtime.model(runtime.settings.default_model)
    loaded = runtime.slots.loaded()
    if not loaded:
        raise ProblemError(MODEL_NOT_LOADED, "no model is loaded yet", headers={"retry-after": "5"})
    fitting = [model for model in loaded if fits(model)]
    if len(fitting) == 1:
        return fitting[0]
    known = ", ".join(f"{model.name} ({model.spec.freq})" for model in loaded[:MOST_NAMED])
    found = f"{len(fitting)} models are" if fitting else "no model is"
    raise refuse_field("model", f"{found} {what}: {how}, or set HINDCAST_DEFAULT_MODEL; there are {known}")


def needs_time(model: LoadedModel) -> bool:
    """Return whether a model looks at the time of its steps, beyond their order."""
    return model.spec.has_cycle or bool(model.spec.covariates.calendar)


def any_start(model: LoadedModel) -> str:
    """Return some step of a model's calendar, for a history without timestamps.

    Nothing it leads to is kept or shown, and only models that do not look at the time may be given it.
    """
    return format_timestamp(model.calendar.first_after(_ANY_MOMENT), model.calendar)
