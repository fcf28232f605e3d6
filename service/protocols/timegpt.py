"""TimeGPT's API, as the `nixtla` SDK speaks it: `NixtlaClient(base_url=...)` is answered by the models here.

The SDK sends values and nothing else: neither names nor timestamps, nor names of exogenous columns. Series are
known by their position then, columns by their order; `model_parameters` can tell the rest.
"""

from typing import Annotated, Any, TypeVar

import numpy as np
import pandas as pd
from fastapi import APIRouter, Query, Request, Response

from forecasting.calendar import Calendar, Sessions, parse_freq
from forecasting.errors import CalendarError
from service.limits import read_json_body
from service.model_slot import LoadedModel
from service.openapi import problem_responses
from service.problems import (
    BODY_TIMEOUT,
    BODY_TOO_LARGE,
    INVALID_REQUEST,
    MALFORMED_JSON,
    MODEL_NOT_LOADED,
    OVERLOADED,
    UNKNOWN_MODEL,
    UNSUPPORTED_MEDIA_TYPE,
)
from service.protocols.asking import beside, choose_model, read_json, refuse_field, write_json
from service.protocols.schemas import (
    TimeGPTAnomalies,
    TimeGPTAnomalyRequest,
    TimeGPTCrossValidationRequest,
    TimeGPTForecast,
    TimeGPTForecastRequest,
    TimeGPTHistory,
    TimeGPTKey,
    TimeGPTModel,
    TimeGPTModelParameters,
    TimeGPTRequest,
)
from service.protocols.windows import Cut, Forecasts, SentPanel, cut_back, cut_to_cover, forecast_windows
from service.runtime import Runtime, RuntimeOf

router = APIRouter(tags=["TimeGPT"])

A = TypeVar("A", bound=TimeGPTRequest)

REFUSALS = problem_responses(
    MALFORMED_JSON,
    UNKNOWN_MODEL,
    BODY_TIMEOUT,
    BODY_TOO_LARGE,
    UNSUPPORTED_MEDIA_TYPE,
    INVALID_REQUEST,
    MODEL_NOT_LOADED,
    OVERLOADED,
)

TIMEGPT = ("timegpt", "azureai")
"""How the names of Nixtla's own models begin."""

OLD_ALIASES = {"H": "h", "T": "min", "S": "s", "L": "ms", "U": "us", "M": "ME", "Q": "QE", "Y": "YE", "A": "YE"}
"""As pandas spelled them before 2.2."""

NOT_DONE = {
    "finetune_steps": "a model is retrained by its job, never on a request",
    "finetuned_model_id": "a model is retrained by its job, never on a request",
    "feature_contributions": "networks here tell none",
    "multivariate": "each series is forecast on its own",
}

HOW_TO_CHOOSE = "name one of them as model="


def _body_of(shape: type[TimeGPTRequest]) -> dict[str, Any]:
    schema = {"$ref": f"#/components/schemas/{shape.__name__}"}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


@router.get("/validate_api_key", summary="TimeGPT: is the key good?")
async def validate_api_key() -> TimeGPTKey:
    """Answer 200: where keys are asked for, a bad one does not come this far."""
    return TimeGPTKey(detail="Hindcast answers; the key is good, or none is needed.")


@router.get(
    "/model_params",
    summary="TimeGPT: how much history a model sees",
    responses=problem_responses(UNKNOWN_MODEL, INVALID_REQUEST, MODEL_NOT_LOADED),
)
async def model_params(
    runtime: RuntimeOf,
    model: Annotated[str, Query(max_length=256)] = "timegpt-1",
    freq: Annotated[str, Query(max_length=64)] = "",
) -> TimeGPTModel:
    """Tell the SDK how many of the last values it needs to send."""
    spec = _find_model(runtime, model, freq).spec
    return TimeGPTModel(detail=TimeGPTModelParameters(input_size=spec.input_size, horizon=spec.horizon))


@router.post(
    "/v2/forecast",
    summary="TimeGPT: forecast",
    response_model=TimeGPTForecast,
    responses=REFUSALS,
    openapi_extra=_body_of(TimeGPTForecastRequest),
)
async def forecast(request: Request, runtime: RuntimeOf) -> Response:
    """Answer `NixtlaClient.forecast`."""
    with runtime.admission():
        asked, panel = await _read(request, runtime, TimeGPTForecastRequest)
        futures = asked.series.X_future or []
        panel.take_columns(asked.series.X or [], range(len(futures)), futures, asked.h)
        cuts = [Cut(n, size, asked.h) for n, size in enumerate(panel.sizes)]
        answered = await forecast_windows(panel, cuts, asked.h, asked.level or [], runtime, record=panel.is_told)
        return await _respond(answered, {})


@router.post(
    "/v2/cross_validation",
    summary="TimeGPT: forecast windows of the past",
    response_model=TimeGPTHistory,
    responses=REFUSALS,
    openapi_extra=_body_of(TimeGPTCrossValidationRequest),
)
async def cross_validation(request: Request, runtime: RuntimeOf) -> Response:
    """Answer `NixtlaClient.cross_validation`.

    The model is fitted already, and nothing is refitted: windows before the end of its training are in-sample.
    """
    with runtime.admission():
        asked, panel = await _read(request, runtime, TimeGPTCrossValidationRequest)
        columns, historic = asked.series.X or [], set(asked.hist_exog or [])
        panel.take_columns(columns, [i for i in range(len(columns)) if i not in historic])
        cuts = cut_back(panel, asked.h, asked.n_windows, asked.step_size, runtime.settings)
        answered = await forecast_windows(panel, cuts, asked.h, asked.level or [], runtime)
        return await _respond(answered, _where(panel, cuts))


@router.post(
    "/v2/anomaly_detection",
    summary="TimeGPT: which values were outside their interval",
    response_model=TimeGPTAnomalies,
    responses=REFUSALS,
    openapi_extra=_body_of(TimeGPTAnomalyRequest),
)
async def anomaly_detection(request: Request, runtime: RuntimeOf) -> Response:
    """Answer `NixtlaClient.detect_anomalies`.

    The history is forecast in windows as long as the model's horizon, each from the values before it; a value
    outside its interval is an anomaly. The first `input_size` values of a series have no forecast.
    """
    with runtime.admission():
        asked, panel = await _read(request, runtime, TimeGPTAnomalyRequest)
        columns, n_future = asked.series.X or [], len(panel.model.spec.covariates.future)
        panel.take_columns(columns, range(min(n_future, len(columns))))
        cuts = cut_to_cover(panel, runtime.settings)
        horizon = panel.model.spec.horizon
        answered = await forecast_windows(panel, cuts, horizon, [asked.level], runtime)
        where = _where(panel, cuts)
        low, high = (column for name, column in answered.columns.items() if name != "mean")
        observed = panel.y[where["idxs"]]
        outside = (observed < low) | (observed > high)
        return await _respond(answered, {**where, "anomaly": outside.tolist()})


async def _read(request: Request, runtime: Runtime, shape: type[A]) -> tuple[A, SentPanel]:
    body = await read_json_body(request, runtime.settings)

    def read() -> tuple[A, SentPanel]:
        asked = read_json(body, shape)
        _refuse_what_is_not_done(asked)
        model = _find_model(runtime, asked.model, asked.freq)
        return asked, SentPanel(
            model, asked.series.y, asked.series.sizes, asked.model_parameters, runtime.settings
        )

    return await beside(len(body), read)


def _refuse_what_is_not_done(asked: TimeGPTRequest) -> None:
    for name, reason in NOT_DONE.items():
        if getattr(asked, name):
            raise refuse_field(name, f"{name} is not supported: {reason}")


def _find_model(runtime: Runtime, name: str, freq: str) -> LoadedModel:
    """Return the model of that name, or the one that stands in for TimeGPT.

    Raises:
        ProblemError: there is none, or its steps are others than those sent.
    """
    if name.lower().startswith(TIMEGPT):
        what = f"on the steps of freq {freq!r}"
        model = choose_model(runtime, lambda one: _has_steps(one, freq), what, HOW_TO_CHOOSE)
    else:
        model = runtime.model(name)
    # Pandas has no word for the sessions of an exchange: who names such a model knows what they send.
    named_sessions = isinstance(model.calendar, Sessions)
    if not named_sessions and not _has_steps(model, freq):
        detail = f"freq is {freq!r}; model {model.name!r} forecasts steps of {model.spec.freq!r}"
        raise refuse_field("freq", detail)
    return model


def _has_steps(model: LoadedModel, freq: str) -> bool:
    if isinstance(model.calendar, Sessions):
        return freq in ("B", model.spec.freq)
    return bool(_step_of(freq) == _step_of(model.spec.freq))


def _step_of(freq: str) -> object:
    """Return what stands for a step, however it is spelled; the text where nobody knows it."""
    try:
        return pd.tseries.frequencies.to_offset(_calendar_of(freq).freq)
    except CalendarError:
        return freq


def _calendar_of(freq: str) -> Calendar:
    try:
        return parse_freq(OLD_ALIASES.get(freq, freq))
    except CalendarError:
        return parse_freq(freq.lower())  # polars writes 1h and 1d


def _where(panel: SentPanel, cuts: list[Cut]) -> dict[str, Any]:
    """Return how many forecasts each series has, and which value of y each is of."""
    sizes = np.bincount([cut.series for cut in cuts], [cut.steps for cut in cuts], len(panel.sizes))
    idxs = [np.arange(cut.steps) + panel.offsets[cut.series] + cut.end for cut in cuts]
    return {"sizes": sizes.astype(int).tolist(), "idxs": np.concatenate(idxs).tolist()}


async def _respond(answered: Forecasts, more: dict[str, Any]) -> Response:
    def write() -> bytes:
        columns = {name: column.tolist() for name, column in answered.columns.items()}
        mean = columns.pop("mean")
        return write_json(
            {
                "mean": mean,
                "intervals": columns or None,
                "weights_x": None,
                "feature_contributions": None,
                "model": answered.model.name,
                "version": answered.model.version,
                "forecasts": [{"status": status, "reason": reason} for status, reason in answered.statuses],
                **more,
            }
        )

    return Response(await beside(answered.columns["mean"].nbytes, write), media_type="application/json")
