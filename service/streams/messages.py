"""What a client of streams sends and is sent: typed, each observation checked on its own."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, FiniteFloat, TypeAdapter, ValidationError

from forecasting.spec import MODEL_NAME_PATTERN
from service.parsing import kind_of, load_json, load_object, validate
from service.problems import FieldError, ProblemError, refuse
from service.schemas import (
    MOST_COLUMNS,
    CovariateColumns,
    Finite,
    ForecastAnswer,
    RefusedObservation,
    Statics,
    Timestamp,
    UniqueId,
    few_columns,
)

JsonObject = dict[str, Any]


class _Sent(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class StreamObservation(_Sent):
    """One value of one series, and what else is known with it."""

    unique_id: UniqueId = Field(description="The name of the series.")
    ds: Timestamp = Field(description="When it was observed; times of day without a zone are UTC.")
    y: FiniteFloat | None = Field(description="The value; null is a missing one.")
    past: Annotated[
        dict[str, Finite | None] | None, Field(max_length=MOST_COLUMNS), BeforeValidator(few_columns)
    ] = Field(None, description="What was observed beside it, by name.")
    future: CovariateColumns | None = Field(
        None,
        description="Columns known ahead, by name: the value at ds itself, then those of the steps ahead.",
    )
    static: Statics | None = Field(None, description="What the series is, by name.")


class ObserveOptions(_Sent):
    """What is asked for, without the observations."""

    model: Annotated[str, Field(pattern=MODEL_NAME_PATTERN)] = Field(description="Name of the model.")
    h: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Steps to forecast, at most the model's horizon, which is the default."
    )
    level: Annotated[list[Annotated[FiniteFloat, Field(gt=0, lt=100)]], Field(fail_fast=True)] | None = Field(
        None, description="Prediction intervals in percent; default: the model's. [] asks for none."
    )


class ObserveRequest(ObserveOptions):
    """Observations in, the forecasts that follow them out."""

    observations: list[StreamObservation] = Field(
        min_length=1, description="Of several series, and of several steps of one in their order."
    )


class StreamAnswer(ForecastAnswer):
    """The forecast of every series of which an observation was taken in, and what was refused."""

    id: str | int | None = Field(None, description="What the message was called by its sender, if it was.")
    refused: int = Field(description="Observations that were not taken in.")
    refusals: list[RefusedObservation] = Field(description="The first hundred of them.")


@dataclass(frozen=True, eq=False)
class Message:
    """A request that could be read: the observations that are well formed, and why others are not."""

    options: ObserveOptions
    observations: list[StreamObservation]
    row: list[int]
    """The place of each observation in the message."""
    refusals: list[RefusedObservation]
    id: str | int | None = None


_MANY = TypeAdapter(list[StreamObservation])


def parse_observe(body: bytes, most: int) -> Message:
    """Read the body of a request.

    Raises:
        ProblemError: the body is not JSON, or not a request.
    """
    content = load_object(body)
    sent = content.pop("observations", None)
    errors: list[FieldError] = []
    options = validate(ObserveOptions, content, "", errors)
    if errors or options is None:
        raise refuse(errors)
    return _read(options, sent, most)


def parse_socket_message(body: bytes, options: ObserveOptions, most: int) -> Message:
    """Read one message of a socket: an observation, a list of them, or either with an `id`.

    Raises:
        ProblemError: the message is not JSON, or nothing of that kind.
    """
    content = load_json(body)
    if not isinstance(content, dict):
        return _read(options, content, most)
    name = content.pop("id", None)
    if isinstance(name, bool) or not isinstance(name, str | int | None) or len(str(name)[:65]) > 64:
        raise refuse([FieldError(path="id", detail="id must be a number or a string of at most 64 characters")])
    sent = content.pop("observations") if set(content) == {"observations"} else [content]
    return _read(options, sent, most, name)


def id_of(body: bytes) -> str | int | None:
    """Return the `id` of a message that could not be answered, where it has one that can be told."""
    try:
        content = load_json(body)
    except ProblemError:
        return None
    name = content.get("id") if isinstance(content, dict) else None
    return name if isinstance(name, str | int) and len(str(name)[:65]) <= 64 else None


def _read(options: ObserveOptions, sent: object, most: int, name: str | int | None = None) -> Message:
    if not isinstance(sent, list) or not sent:
        got = "nothing" if sent is None else "an empty one" if sent == [] else kind_of(sent)
        raise refuse([FieldError(path="observations", detail=f"observations must be a list, got {got}")])
    if len(sent) > most:
        detail = f"{len(sent)} observations in one message; at most {most}"
        raise refuse([FieldError(path="observations", detail=detail)])
    try:
        return Message(options, _MANY.validate_python(sent), list(range(len(sent))), [], name)
    except ValidationError:
        return _read_each(options, sent, name)


def _read_each(options: ObserveOptions, sent: Sequence[object], name: str | int | None) -> Message:
    """Read observations one by one: each that is not well formed is refused alone."""
    message = Message(options, [], [], [], name)
    for i, one in enumerate(sent):
        errors: list[FieldError] = []
        observation = validate(StreamObservation, one, f"observations[{i}]", errors)
        if observation is not None:
            message.observations.append(observation)
            message.row.append(i)
            continue
        field = errors[0].path.partition(".")[2]
        refusal = RefusedObservation(row=i, unique_id=errors[0].unique_id, field=field, reason=errors[0].detail)
        message.refusals.append(refusal)
    return message
