"""A request's life, stage by stage: parse, prepare, predict, hand over to be kept, encode.

A small request goes through all stages on the event loop, where a hop to a thread would cost more than the
stage; the stages of a large one run beside it. The network runs many requests at once: see `service.batcher`.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic_core import to_json

from forecasting import conformal
from forecasting.covariates import Covariates
from forecasting.forecaster import summary_of
from service.answered import Answered
from service.histories import Prepared, Window, prepare
from service.identifiers import new_identifier
from service.journey import end_stage, note_model
from service.ledger_histories import LedgerForecastRequest, build_request, read_history
from service.parsing import parse_request
from service.runtime import Runtime
from service.schemas import Status, Told

FloatArray = NDArray[np.float64]

LARGE_BODY = 64 * 1024
LARGE_ANSWER = 64
"""Series from which an answer is put together beside the event loop."""

NOT_FINITE = "the network's forecast is not finite; are the values far outside what it was trained on?"


@dataclass(frozen=True, eq=False)
class Issued:
    """What a request is answered with, before it is written in anyone's format."""

    forecast_id: str
    prepared: Prepared
    quantiles_BHQ: FloatArray
    """The whole horizon, adjusted, whatever was asked for; NaN where there is none."""
    forecasts: list[Told]


async def answer(body: bytes, runtime: Runtime) -> bytes:
    """Turn a raw request into a raw answer.

    Raises:
        ProblemError: the request was refused.
    """
    if len(body) < LARGE_BODY:
        return _encode(await issue(_decode(body, runtime), runtime))
    issued = await issue(await asyncio.to_thread(_decode, body, runtime), runtime)
    return await asyncio.to_thread(_encode, issued)


async def answer_from_ledger(asked: LedgerForecastRequest, runtime: Runtime) -> bytes:
    """Forecast one series from what the ledger knows of it.

    Raises:
        ProblemError: the request was refused, or the ledger does not answer.
    """
    model = runtime.model(asked.model, or_stand_in=asked.fallback)
    moment = runtime.ledger_link.clock() if asked.as_of is None else asked.as_of
    history = await runtime.ask_ledger(lambda ledger: read_history(ledger, model, asked, moment))
    prepared = prepare(build_request(asked, history), model, runtime.settings, moment)
    return _encode(await issue(prepared, runtime))


async def issue(prepared: Prepared, runtime: Runtime) -> Issued:
    """Forecast what was prepared, together with what others ask for, and hand it over to be kept.

    This is the one way to a forecast: every protocol prepares its requests for it and writes what it returns.

    Raises:
        ProblemError: the service is overloaded.
    """
    end_stage("decode")
    note_model(prepared.model.name, prepared.model.version, len(prepared.windows))
    y_BL, covariates = prepared.y_BL, prepared.covariates
    quantiles_BHQ = await _predict(prepared, y_BL, covariates, runtime)

    def tell() -> Issued:
        return _tell(prepared, y_BL, covariates, quantiles_BHQ, runtime)

    return tell() if len(prepared.windows) < LARGE_ANSWER else await asyncio.to_thread(tell)


def _decode(body: bytes, runtime: Runtime) -> Prepared:
    request = parse_request(body, runtime.settings)
    model = runtime.model(request.model, or_stand_in=request.fallback)
    return prepare(request, model, runtime.settings)


async def _predict(
    prepared: Prepared, y_BL: FloatArray, covariates: Covariates | None, runtime: Runtime
) -> FloatArray:
    """Return the quantiles of every window: the network's, or those that stand in for it."""
    model = prepared.model
    stand_ins = {
        b: window.stand_in_HQ for b, window in enumerate(prepared.windows) if window.stand_in_HQ is not None
    }
    if not stand_ins:
        return await runtime.batcher.predict(model, y_BL, covariates)
    quantiles_BHQ = np.empty((len(y_BL), model.spec.horizon, len(model.spec.quantiles)))
    for b, stand_in_HQ in stand_ins.items():
        quantiles_BHQ[b] = stand_in_HQ
    rows = np.array([b for b in range(len(y_BL)) if b not in stand_ins], dtype=np.int64)
    if len(rows):
        told = None if covariates is None else covariates.rows(rows)
        quantiles_BHQ[rows] = await runtime.batcher.predict(model, y_BL[rows], told)
    return quantiles_BHQ


def _tell(
    prepared: Prepared,
    y_BL: FloatArray,
    covariates: Covariates | None,
    quantiles_BHQ: FloatArray,
    runtime: Runtime,
) -> Issued:
    adjustment_BHQ = _adjust(prepared, quantiles_BHQ, runtime)
    if adjustment_BHQ is not None:
        quantiles_BHQ = quantiles_BHQ + adjustment_BHQ
    forecasts = _describe(prepared, quantiles_BHQ)
    runtime.telemetry.record_series(prepared.model.name, map(_label, forecasts, prepared.windows))
    issued = Issued(new_identifier(), prepared, quantiles_BHQ, forecasts)
    if prepared.record:
        issued_at = runtime.ledger_link.clock()
        runtime.recorder.offer(
            Answered(
                issued.forecast_id,
                issued_at,
                prepared,
                y_BL,
                covariates,
                quantiles_BHQ,
                adjustment_BHQ,
                forecasts,
            )
        )
    return issued


def _adjust(prepared: Prepared, quantiles_BHQ: FloatArray, runtime: Runtime) -> FloatArray | None:
    """Return what is added to the network's quantiles; None for nothing."""
    model = prepared.model
    known = runtime.adjustments.of(model, [window.unique_id for window in prepared.windows])
    if known is None:
        return None
    adjustment_BHQ = conformal.apply(quantiles_BHQ, model.spec.quantiles, known, model.spec.transform)
    # What was learned of the network's errors says nothing of the seasonal naive's.
    adjustment_BHQ[[window.stand_in is not None for window in prepared.windows]] = 0.0
    return adjustment_BHQ


def _describe(prepared: Prepared, quantiles_BHQ: FloatArray) -> list[Told]:
    summary = summary_of(prepared.model.spec.quantiles, prepared.level)
    names, columns_BCH = summary.names, summary.columns(quantiles_BHQ[:, : prepared.h])
    finite_B: list[bool] = np.logical_and.reduce(np.isfinite(columns_BCH), axis=(1, 2)).tolist()
    return [
        _describe_series(window, dict(zip(names, columns_CH, strict=True)), finite)
        for window, columns_CH, finite in zip(prepared.windows, columns_BCH.tolist(), finite_B, strict=True)
    ]


def _describe_series(window: Window, columns: Mapping[str, list[float]], finite: bool) -> Told:
    reason = window.reason if finite else NOT_FINITE
    values: Mapping[str, Any] = columns if finite else {name: [None] * len(window.ds) for name in columns}
    if window.stand_in is not None and not window.stand_in.has_interval:
        values = {**dict.fromkeys(values, [None] * len(window.ds)), "mean": values["mean"]}
    status: Status = "ok" if reason is None else "degraded" if window.stand_in is None else "fallback"
    return Told(window.unique_id, window.cutoff, status, reason, window.ds, values)


def _label(forecast: Told, window: Window) -> tuple[str, str]:
    """Return the status of a forecast and its cause, as metrics count them."""
    if forecast.reason is None:
        return forecast.status, ""
    return forecast.status, window.cause if forecast.reason == window.reason and window.cause else "not_finite"


def _encode(issued: Issued) -> bytes:
    """Write the answer of the JSON API series by series, so that other threads get their turn in between."""
    model = issued.prepared.model
    head = {
        "forecast_id": issued.forecast_id,
        "model": model.name,
        "version": model.version,
        "alias": model.alias,
    }
    series = b",".join([told.to_json() for told in issued.forecasts])
    raw = b"".join((to_json(head)[:-1], b',"forecasts":[', series, b"]}"))
    end_stage("encode")
    return raw
