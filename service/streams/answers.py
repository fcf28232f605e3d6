"""From streams' newest states to what a client reads: forecasts, and why one is not all it could be.

B series, H horizon, Q quantiles, L input_size.
"""

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic_core import to_json

from forecasting.forecaster import summarise
from forecasting.stream import Streams
from service.covariates import Told, find_shortfalls
from service.model_slot import LoadedModel
from service.schemas import RefusedObservation
from service.streams.intake import Timeline
from service.streams.messages import StreamAnswer

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

Adjust = Callable[[LoadedModel, Sequence[str], FloatArray], FloatArray]
"""Widens and narrows the intervals of series by what was learned of them."""

NOT_FINITE = "the network's forecast is not finite; is the value far outside what it was trained on?"
MOST_REFUSALS = 100
STATIC_UNKNOWN = "(another)"
"""Stands for a name that was not in training: which one it was is not kept."""


@dataclass(frozen=True, eq=False)
class Asked:
    """What one message wants to know."""

    h: int
    level: tuple[float, ...]
    unique_ids: list[str]
    refusals: list[RefusedObservation]
    id: str | int | None


def describe_streams(
    asked: Sequence[Asked],
    slots: Sequence[IntArray],
    streams: Streams,
    model: LoadedModel,
    timeline: Timeline,
    restarted: frozenset[str],
    adjust: Adjust,
) -> list[bytes]:
    """Return an answer a message; every network runs once for all of them."""
    slot_B = np.concatenate([np.empty(0, dtype=np.int64), *slots])
    names = [name for one in asked for name in one.unique_ids]
    quantiles_BHQ = adjust(model, names, streams.forecast(slot_B)) if names else streams.forecast(slot_B)
    ends = np.cumsum([len(one.unique_ids) for one in asked])[:-1]
    answers = []
    for one, own_B, own_BHQ in zip(asked, slots, np.split(quantiles_BHQ, ends), strict=True):
        reasons = _find_reasons(one, own_B, streams, model, restarted)
        answers.append(_encode(one, own_BHQ, streams.rows["ds"][own_B].tolist(), reasons, model, timeline))
    return answers


def _find_reasons(
    asked: Asked, slot_B: IntArray, streams: Streams, model: LoadedModel, restarted: frozenset[str]
) -> dict[int, list[str]]:
    """Return by place why a forecast is made with less than it could be."""
    reasons: dict[int, list[str]] = {}
    size, length_B = model.spec.input_size, streams.lengths(slot_B)
    for i in np.flatnonzero(length_B < size).tolist():
        why = f"the stream has {length_B[i]} of the {size} steps this model needs (input_size)"
        if asked.unique_ids[i] in restarted:
            why = f"the stream begins again after a gap of more than {streams.gap} steps; {why}"
        reasons.setdefault(i, []).append(why)
    for i, why in _lost_values(slot_B, streams, model):
        reasons.setdefault(i, []).append(why)
    if model.takes_covariates:
        for i, told in enumerate(_told_of(asked.unique_ids, slot_B, streams, model)):
            if found := find_shortfalls(told, model, asked.h):
                reasons.setdefault(i, []).extend(found)
    return reasons


def _lost_values(slot_B: IntArray, streams: Streams, model: LoadedModel) -> list[tuple[int, str]]:
    """Find windows in which nothing was observed, and values the transform has no use for."""
    size = model.spec.input_size
    unclear = np.flatnonzero(~np.isfinite(streams.newest_values(slot_B)))
    if model.spec.transform != "none":
        unclear = np.arange(len(slot_B))
    if len(unclear) == 0:
        return []
    observed_BL = np.isfinite(streams.observed_windows(slot_B[unclear]))
    usable_BL = np.isfinite(streams.windows(slot_B[unclear]))
    found = [(int(i), f"none of the last {size} steps was observed") for i in unclear[~observed_BL.any(axis=1)]]
    missing = f"{model.spec.transform} takes them as missing"
    lost_B = (observed_BL & ~usable_BL).sum(axis=1)
    return found + [
        (int(unclear[i]), f"{lost_B[i]} of the last {size} values are not above zero; {missing}")
        for i in np.flatnonzero(lost_B)
    ]


def _told_of(unique_ids: Sequence[str], slot_B: IntArray, streams: Streams, model: LoadedModel) -> list[Told]:
    """Return what is known of each window, as a request with a history would have told it."""
    past_BLP, future_BTF = streams.covariate_windows(slot_B)
    cutoffs, statics = streams.cutoffs(slot_B), model.spec.covariates.static
    code_BS = streams.rows["static"][slot_B] if statics else np.empty((len(slot_B), 0), dtype=np.int64)
    told = []
    for i, unique_id in enumerate(unique_ids):
        names = [
            unique_id
            if static.name == "unique_id"
            else static.categories[code - 1]
            if code > 0
            else STATIC_UNKNOWN
            if code == 0
            else ""
            for static, code in zip(statics, code_BS[i].tolist(), strict=True)
        ]
        told.append(Told(cutoffs[i], past_BLP[i], future_BTF[i], tuple(names)))
    return told


def _encode(
    asked: Asked,
    quantiles_BHQ: FloatArray,
    ds: list[int],
    reasons: dict[int, list[str]],
    model: LoadedModel,
    timeline: Timeline,
) -> bytes:
    columns = summarise(quantiles_BHQ[:, : asked.h], model.spec.quantiles, asked.level)
    finite_B = np.asarray(np.isfinite(columns["mean"]).all(axis=1)).tolist()
    listed = {name: column_BH.tolist() for name, column_BH in columns.items()}
    series = []
    for i, unique_id in enumerate(asked.unique_ids):
        cutoff, ahead = timeline.of(ds[i])
        why = reasons.get(i, [])
        if not finite_B[i] and not why:
            why = [NOT_FINITE]
        forecast: dict[str, Any] = {
            "unique_id": unique_id,
            "cutoff": cutoff,
            "status": "degraded" if why else "ok",
            "reason": "; ".join(why) or None,
            "ds": ahead[: asked.h],
        }
        for name, rows in listed.items():
            forecast[name] = rows[i] if finite_B[i] else [None] * asked.h
        series.append(forecast)
    # Written at once, and not as models: of a thousand series that would be most of the work.
    return _head(asked, model) + to_json(series) + b"}"


def _head(asked: Asked, model: LoadedModel) -> bytes:
    head = StreamAnswer.model_construct(
        id=asked.id,
        forecast_id=str(uuid.uuid4()),
        model=model.name,
        version=model.version,
        alias=model.alias,
        refused=len(asked.refusals),
        refusals=asked.refusals[:MOST_REFUSALS],
        forecasts=[],
    )
    text = head.model_dump_json(exclude={"forecasts"}, exclude_none=False)
    return text.removesuffix("}").encode() + b',"forecasts":'
