"""What travels over the wire in the foreign protocols.

Unlike our own requests these may hold keys nobody knows: clients of other versions send some.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

from service.schemas import CovariateColumn, Timestamp, UniqueId

Level = Annotated[FiniteFloat, Field(ge=0, lt=100)]
Levels = Annotated[list[Level], Field(fail_fast=True, max_length=200)]
Columns = Annotated[list[CovariateColumn], Field(fail_fast=True, max_length=256)]
Count = Annotated[int, Field(ge=1)]


class _Foreign(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)


class TimeGPTSeries(_Foreign):
    """Series one after the other, without names or timestamps."""

    y: Annotated[list[FiniteFloat], Field(fail_fast=True, min_length=1)] = Field(description="All values.")
    sizes: Annotated[list[Count], Field(fail_fast=True, min_length=1)] = Field(
        description="How many of them belong to each series."
    )
    X: Columns | None = Field(None, description="Exogenous columns, each as long as y: the model's in its order.")


class TimeGPTFutureSeries(TimeGPTSeries):
    """Series, and what is known of the steps ahead."""

    X_future: Columns | None = Field(
        None, description="The first of these columns over the steps ahead, h values a series."
    )


Texts = Annotated[list[str], Field(fail_fast=True, min_length=1)]


class TimeGPTParameters(BaseModel):
    """`model_parameters`: what the SDK has no word for. Other keys are static covariates, by name."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True)
    __pydantic_extra__: dict[str, Annotated[str, Field(max_length=256)] | Texts] = Field(init=False)

    cutoff: Timestamp | Annotated[list[Timestamp], Field(fail_fast=True, min_length=1)] | None = Field(
        None, description="Timestamp of the last value: of all series, or one a series."
    )
    unique_id: Annotated[list[UniqueId], Field(fail_fast=True, min_length=1)] | None = Field(
        None, description="The names of the series."
    )


class TimeGPTRequest(_Foreign):
    """What every request of the SDK says."""

    series: TimeGPTSeries
    model: Annotated[str, Field(max_length=256)] = Field("timegpt-1", description="Or the name of a model here.")
    freq: Annotated[str, Field(max_length=64)] = Field(description="Pandas alias of the steps.")
    finetune_steps: int = Field(0, description="0: models are not fine-tuned on a request.")
    finetuned_model_id: str | None = Field(None, description="null, for the same reason.")
    feature_contributions: bool = Field(False, description="false: there are none to tell.")
    multivariate: bool = Field(False, description="false: each series is forecast on its own.")
    model_parameters: TimeGPTParameters | None = None


class TimeGPTForecastRequest(TimeGPTRequest):
    """`NixtlaClient.forecast`."""

    series: TimeGPTFutureSeries
    h: Count = Field(description="Steps to forecast, at most the model's horizon.")
    level: Levels | None = Field(None, description="Prediction intervals in percent.")


class TimeGPTCrossValidationRequest(TimeGPTRequest):
    """`NixtlaClient.cross_validation`, and the history of `forecast(add_history=True)`."""

    h: Count = Field(description="Steps of each window.")
    n_windows: Count = Field(description="Windows, the last of which ends with the series.")
    step_size: Count = Field(description="Steps between two windows.")
    level: Levels | None = Field(None, description="Prediction intervals in percent.")
    hist_exog: list[Annotated[int, Field(ge=0)]] | None = Field(
        None, description="Which columns of X are not known ahead."
    )


class TimeGPTAnomalyRequest(TimeGPTRequest):
    """`NixtlaClient.detect_anomalies`."""

    level: Annotated[FiniteFloat, Field(gt=0, lt=100)] = Field(
        99.0, description="The interval outside of which a value is an anomaly, in percent."
    )


class TimeGPTSeriesStatus(BaseModel):
    """How a series was answered; the SDK does not look at it."""

    status: Literal["ok", "degraded", "fallback"]
    reason: str | None


class TimeGPTIntervals(BaseModel):
    """`lo-80` and `hi-80` for every level; null where no level was asked for."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, list[float | None]] = Field(init=False)


class TimeGPTForecast(BaseModel):
    """Forecasts, series after series."""

    mean: list[float | None] = Field(description="h values a series.")
    intervals: TimeGPTIntervals | None
    weights_x: None = Field(None, description="Always null: there are no such weights.")
    feature_contributions: None = Field(None, description="Always null.")
    model: str = Field(description="The model that answered.")
    version: str
    forecasts: list[TimeGPTSeriesStatus] = Field(description="How each series, or window, was answered.")


class TimeGPTHistory(TimeGPTForecast):
    """Forecasts of what is known already."""

    sizes: list[int] = Field(description="How many values of `mean` belong to each series.")
    idxs: list[int] = Field(description="The value of y that each one forecasts.")


class TimeGPTAnomalies(TimeGPTHistory):
    """And whether what was observed is outside the interval."""

    anomaly: list[bool]


class TimeGPTModelParameters(BaseModel):
    """What the SDK cuts histories by."""

    input_size: int
    horizon: int


class TimeGPTModel(BaseModel):
    """`/model_params`."""

    detail: TimeGPTModelParameters


class TimeGPTKey(BaseModel):
    """`/validate_api_key`."""

    detail: str


class InferenceError(BaseModel):
    """An error of the Open Inference Protocol."""

    error: str


class ServerMetadata(BaseModel):
    """`/v2`."""

    name: str
    version: str
    extensions: list[str]


class TensorMetadata(BaseModel):
    """A tensor of a model; -1 is any size."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(BaseModel):
    """What a model takes and gives."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class Live(BaseModel):
    """Whether the server lives."""

    live: bool


class Ready(BaseModel):
    """Whether the server, or a model, is ready."""

    ready: bool
    name: str | None = None


class RepositoryModel(BaseModel):
    """A model of the repository index."""

    name: str
    version: str
    state: Literal["READY", "UNAVAILABLE"]
    reason: str


class InputTensor(_Foreign):
    """A tensor that is sent: its values here, or as bytes behind the JSON."""

    name: Annotated[str, Field(max_length=256)]
    datatype: Annotated[str, Field(max_length=16)]
    shape: Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(max_length=8)]
    data: list[Any] | None = Field(None, description="Values, flat or in rows.")
    parameters: dict[str, Any] | None = Field(None, description="binary_data_size: bytes behind the JSON.")


class RequestedOutput(_Foreign):
    """A tensor that is asked for."""

    name: Annotated[str, Field(max_length=256)]
    parameters: dict[str, Any] | None = Field(None, description="binary_data: as bytes behind the JSON.")


class InferenceRequest(_Foreign):
    """The JSON of `/infer`."""

    id: Annotated[str, Field(max_length=256)] | None = None
    inputs: Annotated[list[InputTensor], Field(min_length=1, max_length=1024, fail_fast=True)]
    outputs: Annotated[list[RequestedOutput], Field(max_length=64, fail_fast=True)] | None = Field(
        None, description="Default: all."
    )
    parameters: dict[str, Any] | None = Field(
        None, description="binary_data_output: every output as bytes; record: whether the ledger keeps it."
    )


class OutputTensor(BaseModel):
    """A tensor of the answer."""

    name: str
    datatype: str
    shape: list[int]
    data: list[Any] | None = None
    parameters: dict[str, Any] | None = None


class InferenceAnswer(BaseModel):
    """The JSON of an answer."""

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[OutputTensor]


class ScoringSplit(_Foreign):
    """A frame as `DataFrame.to_dict("split")` writes it."""

    columns: Annotated[list[str], Field(fail_fast=True, max_length=1024)]
    data: Annotated[list[list[Any]], Field(fail_fast=True)]


class ScoringParams(_Foreign):
    """Parameters of the registered model."""

    level: Annotated[list[FiniteFloat], Field(fail_fast=True, max_length=200)] | None = Field(
        None, description="Prediction intervals in percent; default: the model's."
    )


Record = Annotated[dict[str, Any], Field(max_length=1024)]


class ScoringRequest(_Foreign):
    """The body of `/invocations`: one long frame (`unique_id`, `ds`, `y`, covariates), in one of four forms."""

    dataframe_split: ScoringSplit | None = None
    dataframe_records: Annotated[list[Record], Field(fail_fast=True)] | None = None
    instances: Annotated[list[Record], Field(fail_fast=True)] | None = None
    inputs: Annotated[dict[str, list[Any]], Field(max_length=1024)] | None = None
    params: ScoringParams | None = None


class ScoringAnswer(BaseModel):
    """One record a series and step: `unique_id`, `cutoff`, `ds`, `mean` and two bounds for each level."""

    predictions: list[dict[str, str | float | None]]
    degraded: dict[str, str] | None = Field(None, description="Series answered with less, and why; else left out.")


class ScoringError(BaseModel):
    """An error as MLflow's scoring server words it."""

    error_code: str
    message: str


REQUESTS: tuple[type[BaseModel], ...] = (
    TimeGPTForecastRequest,
    TimeGPTCrossValidationRequest,
    TimeGPTAnomalyRequest,
    InferenceRequest,
    ScoringRequest,
)
"""For the OpenAPI document: routes read these bodies themselves."""
