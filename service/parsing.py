"""From bytes to a typed request: the one place where the shape of outside input is checked.

The body is parsed once, and each series validated on its own: all the bad ones are found, no error list can
grow with the body, and other threads get their turn in between.
"""

from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, from_json

from service.problems import MALFORMED_JSON, FieldError, ProblemError, refuse
from service.schemas import ForecastOptions, ForecastRequest, SeriesHistory
from service.settings import ServiceSettings

M = TypeVar("M", bound=BaseModel)

MAX_KEYS = 16
"""Most keys an object of a request may have, and most complaints about one: more keys than there are."""


def parse_request(body: bytes, settings: ServiceSettings) -> ForecastRequest:
    """Read a forecast request.

    Raises:
        ProblemError: the body is not JSON, or not a request; every field that is wrong is named.
    """
    content = load_object(body)
    series = content.pop("series", None)
    errors: list[FieldError] = []
    histories = _parse_series(series, settings.max_series, errors)
    if not errors:
        # What was validated passes through as it is.
        request = validate(ForecastRequest, {**content, "series": histories}, "", errors)
        if request is not None:
            return request
        raise refuse(errors)
    of_options: list[FieldError] = []
    validate(ForecastOptions, content, "", of_options)
    raise refuse(of_options + errors)


def load_object(body: bytes) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ProblemError: the body is not JSON, or something else.
    """
    content = load_json(body)
    if not isinstance(content, dict):
        raise refuse([FieldError(path="", detail=f"the body must be an object, got {kind_of(content)}")])
    return content


def load_json(body: bytes) -> object:
    """Read any JSON.

    Raises:
        ProblemError: the body is not JSON.
    """
    try:
        content: object = from_json(body, allow_inf_nan=True)
    except ValueError as error:
        raise ProblemError(MALFORMED_JSON, f"the body is not valid JSON: {error}") from None
    return content


def _parse_series(series: object, limit: int, errors: list[FieldError]) -> list[SeriesHistory]:
    if not isinstance(series, list) or not series:
        got = "nothing" if series is None else "an empty one" if series == [] else kind_of(series)
        errors.append(FieldError(path="series", detail=f"series must be a list of series, got {got}"))
        return []
    if len(series) > limit:
        errors.append(FieldError(path="series", detail=f"{len(series)} series in one request; at most {limit}"))
        return []
    found = [validate(SeriesHistory, one, f"series[{i}]", errors) for i, one in enumerate(series)]
    histories = [history for history in found if history is not None]
    errors.extend(_repeated_names(histories))
    return histories


def _repeated_names(histories: Sequence[SeriesHistory]) -> list[FieldError]:
    first: dict[str, int] = {}
    repeated = []
    for i, history in enumerate(histories):
        if first.setdefault(history.unique_id, i) != i:
            detail = f"series {history.unique_id!r} is there twice; every unique_id must differ"
            repeated.append(FieldError(path=f"series[{i}].unique_id", unique_id=history.unique_id, detail=detail))
    return repeated


def validate(model: type[M], content: object, at: str, errors: list[FieldError]) -> M | None:
    """Read one object; what is wrong with it joins the errors."""
    name = content.get("unique_id") if isinstance(content, dict) else None
    name = name if isinstance(name, str) and len(name) <= 256 else None
    if not isinstance(content, dict):
        errors.append(FieldError(path=at, detail=f"{at} must be an object, got {kind_of(content)}"))
        return None
    if len(content) > MAX_KEYS:
        detail = f"{at or 'the body'} has {len(content)} keys; known are {', '.join(model.model_fields)}"
        errors.append(FieldError(path=at, unique_id=name, detail=detail))
        return None
    try:
        return model.model_validate(content)
    except ValidationError as error:
        errors.extend(_field_error(e, at, name) for e in error.errors(include_url=False)[:MAX_KEYS])
        return None


def _field_error(error: ErrorDetails, at: str, name: str | None) -> FieldError:
    path = _join(at, error["loc"])
    message = error["msg"].removeprefix("Value error, ")
    got = "" if error["type"] in ("missing", "value_error") else f", got {kind_of(error['input'])}"
    whose = f" of series {name!r}" if name is not None else ""
    return FieldError(path=path, unique_id=name, detail=f"{path or 'the body'}{whose}: {message}{got}")


def _join(at: str, location: Sequence[int | str]) -> str:
    path = at
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        else:
            path += f".{part[:64]}" if path else part[:64]
    return path


def kind_of(value: object) -> str:
    """Name a JSON value without repeating it: numbers and short strings are shown, the rest is not."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case float() | int():
            return str(value)[:40] if isinstance(value, float) or value.bit_length() < 128 else "a huge number"
        case str():
            return f"the string {value!r}" if len(value) <= 40 else f"a string of {len(value)} characters"
        case list():
            return "a list"
    return "an object"
