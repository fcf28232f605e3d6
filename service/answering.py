"""A request's life, stage by stage: parse, prepare, predict, hand over to be kept, encode.

Nothing here runs on the event loop. A small request goes through all stages in the inference thread, which
costs one hop; the stages of a large one that need no network run beside it.
"""

import asyncio
import time
import uuid
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forecasting import conformal
from forecasting.forecaster import summarise
from service.answered import Answered
from service.histories import Prepared, Window, prepare
from service.ledger_histories import LedgerForecastRequest, build_request, note_age, read_history
from service.parsing import parse_request
from service.runtime import Runtime
from service.schemas import ForecastAnswer, SeriesForecast

FloatArray = NDArray[np.float64]

LARGE_BODY = 64 * 1024

NOT_FINITE = "the network's forecast is not finite; are the values far outside what it was trained on?"


async def answer(body: bytes, runtime: Runtime) -> bytes:
    """Turn a raw request into a raw answer.

    Raises:
        ProblemError: the request was refused.
    """
    if len(body) < LARGE_BODY:
        return await runtime.infer(lambda: _encode(_predict(_decode(body, runtime), runtime)))
    prepared = await asyncio.to_thread(_decode, body, runtime)
    forecast = await runtime.infer(lambda: _predict(prepared, runtime))
    return await asyncio.to_thread(_encode, forecast)


async def answer_from_ledger(asked: LedgerForecastRequest, runtime: Runtime) -> bytes:
    """Forecast one series from what the ledger knows of it.

    Raises:
        ProblemError: the request was refused, or the ledger does not answer.
    """
    model = runtime.model(asked.model)
    moment = runtime.ledger_link.clock() if asked.as_of is None else asked.as_of
    history = await runtime.ask_ledger(lambda ledger: read_history(ledger, model, asked, moment))

    def forecast() -> bytes:
        prepared = prepare(build_request(asked, history), model, runtime.settings)
        return _encode(_predict(note_age(prepared, moment), runtime))

    return await runtime.infer(forecast)


def _decode(body: bytes, runtime: Runtime) -> Prepared:
    request = parse_request(body, runtime.settings)
    return prepare(request, runtime.model(request.model), runtime.settings)


def _predict(prepared: Prepared, runtime: Runtime) -> ForecastAnswer:
    began = time.perf_counter()
    y_BL, covariates = prepared.y_BL, prepared.covariates
    quantiles_BHQ = prepared.model.forecaster.predict(y_BL, covariates)
    runtime.telemetry.record_inference(prepared.model.name, time.perf_counter() - began)
    adjustment_BHQ = _adjust(prepared, quantiles_BHQ, runtime)
    if adjustment_BHQ is not None:
        quantiles_BHQ = quantiles_BHQ + adjustment_BHQ
    columns = summarise(quantiles_BHQ[:, : prepared.h], prepared.model.spec.quantiles, prepared.level)
    forecasts = _describe(prepared.windows, columns)
    runtime.telemetry.record_series(prepared.model.name, (forecast.status for forecast in forecasts))
    forecast_id = str(uuid.uuid4())
    if prepared.record:
        issued_at = runtime.ledger_link.clock()
        runtime.recorder.offer(
            Answered(forecast_id, issued_at, prepared, y_BL, covariates, quantiles_BHQ, adjustment_BHQ, forecasts)
        )
    return ForecastAnswer.model_construct(
        forecast_id=forecast_id,
        model=prepared.model.name,
        version=prepared.model.version,
        alias=prepared.model.alias,
        forecasts=forecasts,
    )


def _adjust(prepared: Prepared, quantiles_BHQ: FloatArray, runtime: Runtime) -> FloatArray | None:
    """Return what is added to the network's quantiles; None for nothing."""
    model = prepared.model
    known = runtime.adjustments.of(model, [window.unique_id for window in prepared.windows])
    if known is None:
        return None
    return conformal.apply(quantiles_BHQ, model.spec.quantiles, known, model.spec.transform)


def _describe(windows: list[Window], columns: Mapping[str, FloatArray]) -> list[SeriesForecast]:
    finite_B = np.logical_and.reduce([np.isfinite(column_BH).all(axis=1) for column_BH in columns.values()])
    return [
        _describe_series(window, {name: column_BH[i] for name, column_BH in columns.items()}, bool(finite))
        for i, (window, finite) in enumerate(zip(windows, finite_B, strict=True))
    ]


def _describe_series(window: Window, columns: Mapping[str, FloatArray], finite: bool) -> SeriesForecast:
    reason = window.reason if finite else NOT_FINITE
    values: dict[str, Any] = {
        name: column_H.tolist() if finite else [None] * len(column_H) for name, column_H in columns.items()
    }
    return SeriesForecast.model_construct(
        unique_id=window.unique_id,
        cutoff=window.cutoff,
        status="ok" if reason is None else "degraded",
        reason=reason,
        ds=window.ds,
        **values,
    )


def _encode(forecast: ForecastAnswer) -> bytes:
    """Write the answer series by series, so that other threads get their turn in between."""
    head = forecast.model_dump_json(exclude={"forecasts"}).removesuffix("}")
    series = ",".join([one.model_dump_json() for one in forecast.forecasts])
    return f'{head},"forecasts":[{series}]}}'.encode()
