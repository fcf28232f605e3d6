"""From streams' newest states to what a client reads: forecasts, and why one is not all it could be.

B series, H horizon, Q quantiles, L input_size.
"""

import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic_core import to_json

from forecasting.forecaster import summarise
from forecasting.stream import Streams
from service.covariates import Told, find_shortfalls, name_cause
from service.fallback import Cause, is_unusual, shortest_run
from service.model_slot import LoadedModel
from service.schemas import RefusedObservation, Status
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


Reasons = dict[int, list[tuple[Cause, str]]]
"""By place, why a forecast is made with less than it could be: a word and a sentence; the gravest first."""


@dataclass(frozen=True, eq=False)
class Answers:
    """What messages are told."""

    bodies: list[bytes]
    outcomes: Counter[tuple[Status, str]]
    """Forecasts by status and cause, empty where there is none."""


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
    stuck_share: float,
) -> Answers:
    """Return an answer a message; every network runs once for all of them."""
    slot_B = np.concatenate([np.empty(0, dtype=np.int64), *slots])
    names = [name for one in asked for name in one.unique_ids]
    quantiles_BHQ = adjust(model, names, streams.forecast(slot_B)) if names else streams.forecast(slot_B)
    ends = np.cumsum([len(one.unique_ids) for one in asked])[:-1]
    stuck = np.split(_find_stuck(slot_B, streams, model, stuck_share), ends)
    answers = Answers([], Counter())
    for one, own_B, own_BHQ, run_B in zip(asked, slots, np.split(quantiles_BHQ, ends), stuck, strict=True):
        reasons = _find_reasons(one, own_B, run_B, streams, model, restarted)
        stamps = streams.rows["ds"][own_B].tolist()
        answers.bodies.append(_encode(one, own_BHQ, stamps, reasons, model, timeline, answers.outcomes))
    return answers


def _find_stuck(slot_B: IntArray, streams: Streams, model: LoadedModel, share: float) -> IntArray:
    """Return how many equal values each stream ends in although it otherwise moves, else 0."""
    run_B = np.zeros(len(slot_B), dtype=np.int64)
    if share == 0 or len(slot_B) == 0:
        return run_B
    shortest = shortest_run(model.spec, share)
    place_C, found = streams.standstill(slot_B, shortest)
    for c in np.flatnonzero((found.run_C >= shortest) & ~found.rests_C).tolist():
        if is_unusual(int(found.run_C[c]), int(found.runs_C[c]), int(found.longest_C[c])):
            run_B[place_C[c]] = found.run_C[c]
    return run_B


def _find_reasons(
    asked: Asked,
    slot_B: IntArray,
    run_B: IntArray,
    streams: Streams,
    model: LoadedModel,
    restarted: frozenset[str],
) -> Reasons:
    reasons: Reasons = {}
    size, length_B = model.spec.input_size, streams.lengths(slot_B)
    for i in np.flatnonzero(length_B < size).tolist():
        why = f"the stream has {length_B[i]} of the {size} steps this model needs (input_size)"
        if asked.unique_ids[i] in restarted:
            why = f"the stream begins again after a gap of more than {streams.gap} steps; {why}"
        reasons.setdefault(i, []).append(("short_history", why))
    for i in np.flatnonzero(run_B).tolist():
        why = f"series {asked.unique_ids[i]!r} has stood still for its last {run_B[i]} values"
        reasons.setdefault(i, []).append(("stuck", why))
    for i, cause, why in _lost_values(slot_B, streams, model):
        reasons.setdefault(i, []).append((cause, why))
    if model.takes_covariates:
        for i, told in enumerate(_told_of(asked.unique_ids, slot_B, streams, model)):
            if found := find_shortfalls(told, model, asked.h):
                cause = name_cause(told, model, found) or "covariates"
                reasons.setdefault(i, []).extend((cause, why) for why in found)
    return reasons


def _lost_values(slot_B: IntArray, streams: Streams, model: LoadedModel) -> Iterator[tuple[int, Cause, str]]:
    """Find windows that end in nothing observed, and values the transform has no use for."""
    size, horizon = model.spec.input_size, model.spec.horizon
    unclear = np.flatnonzero(~np.isfinite(streams.newest_values(slot_B)))
    if model.spec.transform != "none":
        unclear = np.arange(len(slot_B))
    if len(unclear) == 0:
        return
    observed_BL = np.isfinite(streams.observed_windows(slot_B[unclear]))
    usable_BL = np.isfinite(streams.windows(slot_B[unclear]))
    empty_B = ~observed_BL.any(axis=1)
    gap_B = np.where(empty_B, 0, observed_BL[:, ::-1].argmax(axis=1))
    for i in np.flatnonzero(empty_B):
        yield int(unclear[i]), "stale", f"none of the last {size} steps was observed"
    for i in np.flatnonzero(gap_B > horizon):
        old = f"nothing was observed in the last {gap_B[i]} steps, and the horizon is {horizon} steps"
        yield int(unclear[i]), "stale", old
    missing = f"{model.spec.transform} takes them as missing"
    lost_B = (observed_BL & ~usable_BL).sum(axis=1)
    for i in np.flatnonzero(lost_B):
        lost = f"{lost_B[i]} of the last {size} values are not above zero; {missing}"
        yield int(unclear[i]), "values", lost


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
    reasons: Reasons,
    model: LoadedModel,
    timeline: Timeline,
    outcomes: Counter[tuple[Status, str]],
) -> bytes:
    columns = summarise(quantiles_BHQ[:, : asked.h], model.spec.quantiles, asked.level)
    finite_B = np.asarray(np.isfinite(columns["mean"]).all(axis=1)).tolist()
    listed = {name: column_BH.tolist() for name, column_BH in columns.items()}
    series = []
    for i, unique_id in enumerate(asked.unique_ids):
        cutoff, ahead = timeline.of(ds[i])
        why = reasons.get(i, [])
        if not finite_B[i] and not why:
            why = [("not_finite", NOT_FINITE)]
        status: Status = "degraded" if why else "ok"
        outcomes[status, why[0][0] if why else ""] += 1
        forecast: dict[str, Any] = {
            "unique_id": unique_id,
            "cutoff": cutoff,
            "status": status,
            "reason": "; ".join(sentence for _, sentence in why) or None,
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
