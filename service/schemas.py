"""What travels over the wire: typed requests and answers.

Requests are strict: a number is a JSON number, and a key nobody knows is an error rather than a typo that
passes. Limits that depend on the settings or on the model are checked where those are known.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, FiniteFloat, model_validator
from pydantic_core import to_json

from forecasting.spec import MODEL_NAME_PATTERN
from service.problems import Problem

TIMESTAMP_PATTERN = r"^(1[89]|2[01])\d{2}-\d{2}-\d{2}([T ]\d{2}:\d{2}(:\d{2}(\.\d{1,6})?)?(Z|[+-]\d{2}:?\d{2})?)?$"
"""ISO 8601, from 1800 to 2199: a wrong year is found here, and not by what it would cost."""

Timestamp = Annotated[str, Field(pattern=TIMESTAMP_PATTERN, max_length=40)]
LARGEST = 1e30
"""Covariates are worked with in single precision, which holds little more."""


def few_columns(columns: object) -> object:
    """Refuse too many at once: each would be validated first, and complained about on its own."""
    if isinstance(columns, dict) and len(columns) > MOST_COLUMNS:
        raise ValueError(f"{len(columns)} columns; at most {MOST_COLUMNS}")
    return columns


MOST_COLUMNS = 256
"""Most columns of one kind, as `forecasting.spec.CovariatesSpec` has it."""

Finite = Annotated[FiniteFloat, Field(ge=-LARGEST, le=LARGEST)]
CovariateColumn = Annotated[list[Finite | None], Field(fail_fast=True, min_length=1)]
CovariateColumns = Annotated[
    dict[str, CovariateColumn], Field(max_length=MOST_COLUMNS), BeforeValidator(few_columns)
]
NO_CONTROL = r"^[^\x00-\x1f\x7f]*$"
"""Text without control characters, as the ledger has it: no database would keep a name with a NUL."""

Statics = Annotated[
    dict[str, Annotated[str, Field(max_length=256, pattern=NO_CONTROL)]],
    Field(max_length=MOST_COLUMNS),
    BeforeValidator(few_columns),
]
UniqueId = Annotated[str, Field(min_length=1, max_length=256, pattern=NO_CONTROL)]


class _Request(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class SeriesHistory(_Request):
    """One series: its values, when they were observed (either `start` or `ds`), and what else is known."""

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [
                {"required": ["start"], "properties": {"start": {"type": "string"}}},
                {"required": ["ds"], "properties": {"ds": {"type": "array"}}},
            ]
        }
    )

    unique_id: UniqueId = Field(description="The name of the series; it comes back with its forecast.")
    start: Timestamp | None = Field(
        None, description="Timestamp of the first value; the others follow on the model's calendar."
    )
    ds: Annotated[list[Timestamp], Field(fail_fast=True, min_length=1)] | None = Field(
        None,
        description="Instead of start: one timestamp a value, in any order; a step left out is a missing "
        "value. Times of day without a zone are UTC.",
    )
    y: Annotated[list[FiniteFloat | None], Field(fail_fast=True, min_length=1)] = Field(
        description="Values, oldest first; null is a missing one."
    )
    past: CovariateColumns | None = Field(
        None, description="Columns known up to the last value, each as long as y; which, is up to the model."
    )
    future: CovariateColumns | None = Field(
        None,
        description="Columns known ahead, each as long as y and then as many steps ahead as are asked for; "
        "what is not known is null or left out at the end.",
    )
    static: Statics | None = Field(
        None, description="What the series is, by name; unique_id need not be repeated."
    )

    @model_validator(mode="after")
    def _is_dated_once(self) -> Self:
        if (self.start is None) == (self.ds is None):
            raise ValueError("give either start or ds")
        if self.ds is not None and len(self.ds) != len(self.y):
            raise ValueError(f"ds has {len(self.ds)} timestamps and y has {len(self.y)} values")
        return self


class ForecastOptions(_Request):
    """A forecast request without its series: what is asked for."""

    model: Annotated[str, Field(pattern=MODEL_NAME_PATTERN)] = Field(description="Name of the model.")
    h: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Steps to forecast, at most the model's horizon, which is the default."
    )
    level: Annotated[list[Annotated[FiniteFloat, Field(gt=0, lt=100)]], Field(fail_fast=True)] | None = Field(
        None, description="Prediction intervals in percent; default: the model's. [] asks for none."
    )
    record: bool = Field(
        True, description="Whether the ledger keeps the forecasts, to score them; false for something tried out."
    )
    fallback: bool = Field(
        True,
        description="Whether the seasonal naive answers where the model cannot or should not; false asks for the "
        "error instead, or for what the model says.",
    )


class ForecastRequest(ForecastOptions):
    """Histories in, forecasts out."""

    series: Annotated[list[SeriesHistory], Field(min_length=1)] = Field(
        description="The series to forecast, each on its own."
    )


Column = list[FiniteFloat | None]
Status = Literal["ok", "degraded", "fallback"]


class SeriesForecast(BaseModel):
    """The forecast of one series: `lo-80` and `hi-80` bound its 80 % interval, and so for every level."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Column] = Field(init=False)

    unique_id: str
    cutoff: str = Field(description="Timestamp of the last observed value; the forecast starts a step later.")
    status: Status = Field(
        description="ok; degraded: answered with less than was asked for; fallback: answered by a simpler method."
    )
    reason: str | None = Field(description="Why the status is not ok.")
    ds: list[str] = Field(description="The timestamps forecast.")
    mean: Column = Field(description="The mean forecast; null where there is none.")


@dataclass(slots=True)
class Told:
    """A `SeriesForecast` as the service makes it, which needs no check: a tenth of the time."""

    unique_id: str
    cutoff: str
    status: Status
    reason: str | None
    ds: list[str]
    columns: Mapping[str, list[float] | list[None]]

    def to_json(self) -> bytes:
        """Write it as JSON."""
        return to_json(
            {
                "unique_id": self.unique_id,
                "cutoff": self.cutoff,
                "status": self.status,
                "reason": self.reason,
                "ds": self.ds,
                **self.columns,
            }
        )


class ForecastAnswer(BaseModel):
    """The forecasts of a request, in its order, all by one version of one model."""

    forecast_id: str = Field(description="Names this answer.")
    model: str
    version: str = Field(description="The registry version that answered.")
    alias: str = Field(description="The alias through which it was chosen.")
    forecasts: list[SeriesForecast]


class Failure(BaseModel):
    """Something that keeps failing while the service goes on."""

    model_config = ConfigDict(frozen=True)

    version: str | None = Field(description="The version that was tried, where it is known.")
    error: str = Field(description="The kind of error.")
    detail: str = Field(description="The error, without paths and addresses.")
    since: datetime = Field(description="When it failed first.")
    attempts: int = Field(description="How often it failed since then.")


class ModelCovariates(BaseModel):
    """What a model is told besides the values of a series."""

    past: list[str] = Field(description="Columns known up to the last value.")
    prices: list[str] = Field(description="Columns that may be sent as past ones, for others to be made of them.")
    future: list[str] = Field(description="Columns known over the steps ahead too.")
    static: dict[str, int] = Field(description="What a series is: how many names of each were in training.")
    calendar: list[str] = Field(description="What the timestamps tell; nothing is to be sent for it.")
    country: str | None = Field(description="Whose public holidays are in the calendar.")


class ModelInfo(BaseModel):
    """A model, as the service holds it; what only a loaded model has is null until one is."""

    model: str
    status: Literal["ok", "stale", "loading", "failed"] = Field(
        description="ok; stale: serving, but the newest state of the registry could not be followed; "
        "loading: not looked at yet; failed: nothing to serve."
    )
    alias: str
    version: str | None
    source: Literal["registry", "disk"] | None = Field(
        description="Where what answers came from: disk is the last good copy, until the registry answers."
    )
    digest: str | None = Field(description="SHA-256 of the artefact.")
    loaded_at: datetime | None
    kind: str | None = Field(
        description="The architecture: naive, seasonal_naive, drift, ridge, mlp, rnn, gru, lstm, segment_rnn, "
        "segment_gru, segment_lstm, volatility_rnn, volatility_gru, volatility_lstm, ensemble."
    )
    head: str | None = Field(
        description="What its network says of each step: quantile, student_t, skewed_t, point; "
        "null for a baseline."
    )
    freq: str | None = Field(description="Pandas alias or exchange calendar.")
    season_length: int | None
    input_size: int | None = Field(description="Points of history the model needs.")
    horizon: int | None = Field(description="Most steps it forecasts.")
    level: list[float] | None = Field(description="Intervals answered when none are asked for.")
    max_level: float | None = Field(description="The widest interval it can answer.")
    transform: str | None
    covariates: ModelCovariates | None
    failure: Failure | None = Field(description="Why the model is stale or failed.")


class ModelList(BaseModel):
    """Every model of this service."""

    models: list[ModelInfo]


class LedgerSeries(BaseModel):
    """A series the ledger has observations of."""

    unique_id: str
    first: str = Field(description="Timestamp of the first observation.")
    last: str = Field(description="Timestamp of the last observation.")


class LedgerSeriesList(BaseModel):
    """Series of the dataset a model reads, by name."""

    model: str
    dataset: str = Field(description="The ledger's dataset the model reads.")
    series: list[LedgerSeries]
    next: str | None = Field(description="Ask again with this as `after`; null when there are no more.")


class Accuracy(BaseModel):
    """How right some forecasts were; null where a figure cannot be told."""

    model: str | None = Field(None, description="Null where models are taken together; so are the next four.")
    version: str | None = None
    role: str | None = Field(None, description="champion, or shadow: issued beside the champion, for nobody.")
    unique_id: str | None = None
    step: int | None = Field(None, description="Steps after the cutoff, counted from 1.")
    n: int = Field(description="Steps that were forecast and then observed.")
    mae: float | None = Field(description="Mean absolute error.")
    mase: float | None = Field(
        description="Mean absolute error over that of the seasonal naive issued at the same cutoffs."
    )
    skill: float | None = Field(description="One less mase: above 0 is better than the seasonal naive.")
    crps: float | None = Field(description="Continuous ranked probability score: the whole distribution's error.")
    coverage: dict[str, float | None] = Field(
        description="By level, the share of what was observed that lay inside the interval."
    )


class AccuracyList(BaseModel):
    """How right forecasts were, group by group."""

    rows: list[Accuracy]


class JobInfo(BaseModel):
    """A job, as the workers that run it know it."""

    job: str
    schedule: str | None = Field(description="When it is retrained; null for only when asked.")
    next_tick: datetime | None = Field(description="When it is due next.")
    config_digest: str = Field(description="SHA-256 of its job file.")
    updated_at: datetime


class JobList(BaseModel):
    """Every job a worker runs."""

    jobs: list[JobInfo]


class RunInfo(BaseModel):
    """One retraining, from the moment it was asked for."""

    job: str
    key: str = Field(description="Names the run.")
    state: Literal["queued", "running", "done", "skipped", "failed"]
    trigger: str = Field(description="What asked: schedule, request, command, skill, coverage, drift, new_data.")
    cause: str = Field(description="Why it was asked for.")
    requested_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    version: str | None = Field(description="The version it published.")
    decision: str | None = Field(description="What the gate said of that version.")
    reason: str | None = Field(description="Why that was decided, or why the run was skipped.")
    error: str | None = Field(description="What it failed with.")


class RunList(BaseModel):
    """Retrainings, the newest first."""

    runs: list[RunInfo]


class Observation(BaseModel):
    """One observation; every further field is a column of values."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, FiniteFloat | str | None] = Field(init=False)

    unique_id: str = Field(description="The name of the series.")
    ds: str = Field(description="Timestamp in ISO 8601: a date, or a time, in UTC where it has no offset.")
    y: FiniteFloat | None = Field(
        None, description="The value; null withdraws the one known. Left out, nothing is said of it."
    )


class SeriesObservations(BaseModel):
    """Observations of one series: lists of one length."""

    unique_id: str = Field(description="The name of the series.")
    ds: list[str] = Field(description="Timestamps in ISO 8601.", min_length=1)
    y: list[FiniteFloat | None] | None = Field(None, description="Values; null withdraws the one known.")
    columns: dict[str, list[FiniteFloat | None]] | None = Field(
        None, description="More columns of values, by name: what covariates are made of."
    )
    static: dict[str, str] | None = Field(None, description="What the series is, by name.")


class ObservationsRequest(BaseModel):
    """Observations to keep: row by row, or series by series."""

    dataset: str | None = Field(
        None, pattern=MODEL_NAME_PATTERN, description="The name they are kept under; or ?dataset= in the address."
    )
    observations: list[Observation] | None = Field(None, description="Rows, one an observation.")
    static: list[str] | None = Field(None, description="Columns of the rows that hold names instead of values.")
    series: list[SeriesObservations] | None = Field(None, description="Instead of rows: series.")


class RefusedObservation(BaseModel):
    """A row that was not kept, and why."""

    row: int = Field(
        description="Its position from 0 among the observations, in the file or in the lists of its series; of "
        "application/x-ndjson the line, from 1."
    )
    unique_id: str | None = Field(description="The series; null where the row names none that can be used.")
    field: str = Field(description="The column.")
    reason: str = Field(description="What was expected and what came.")


class ObservationsAnswer(BaseModel):
    """What became of the observations of a request; the same request again changes nothing."""

    dataset: str
    known_at: datetime = Field(description="The moment under which they are kept.")
    new: int = Field(description="Values of steps of which nothing was known.")
    revised: int = Field(description="Values that differ from the one known until now.")
    unchanged: int = Field(description="Values that were known already.")
    refused: int = Field(description="Rows that were not kept.")
    refusals: list[RefusedObservation] = Field(description="The first hundred of them.")


class Liveness(BaseModel):
    """The process runs."""

    status: Literal["alive"] = "alive"


class ModelReadiness(BaseModel):
    """A model, in short."""

    model: str
    status: Literal["ok", "stale", "loading", "failed"]
    version: str | None
    source: Literal["registry", "disk"] | None = Field(description="disk: the last good copy answers.")
    failure: Failure | None


class Readiness(BaseModel):
    """The service answers forecasts."""

    status: Literal["ready"] = "ready"
    registry: Failure | None = Field(description="Why the registry cannot be followed; null when it can.")
    ledger: Failure | None = Field(
        description="Why the ledger does not answer; null when it does, and when there is none."
    )
    keys: Failure | None = Field(
        description="Why the file of API keys cannot be read, those known before being in force; null when it can."
    )
    models: list[ModelReadiness]


class NotReady(Problem):
    """The problem that readiness answers with, and the state behind it."""

    registry: Failure | None = Field(description="Why the registry cannot be followed; null when it can.")
    ledger: Failure | None = Field(
        description="Why the ledger does not answer; null when it does, and when there is none."
    )
    keys: Failure | None = Field(
        description="Why the file of API keys cannot be read, those known before being in force; null when it can."
    )
    models: list[ModelReadiness]
