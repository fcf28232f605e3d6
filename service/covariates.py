"""What a request tells besides values: laid out on the steps of its window, and named where it falls short.

B series, L input_size, H horizon, T = L + H, V values sent, P past columns, F future columns.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from forecasting.calendar_features import n_columns
from forecasting.covariates import Covariates
from forecasting.price_panel import make_past
from forecasting.spec import TARGET_COLUMN, CovariatesSpec, ForecasterSpec
from service.model_slot import LoadedModel
from service.problems import RefusedSeriesError
from service.schemas import SeriesHistory

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

Slots = range | IntArray
"""The step of the window that each value of a history belongs to: 0 is the first, what is before is negative."""

MOST_REASONS = 10
"""Most shortcomings of one series that are spelled out; the others are counted."""

MOST_NAMES = 20
"""Most of the columns a model takes that an error lists."""


@dataclass(frozen=True)
class Told:
    """What is known of one series besides its values, in the order of the model's spec; NaN where missing."""

    cutoff: pd.Timestamp
    past_LP: FloatArray
    future_TF: FloatArray
    static: tuple[str, ...]
    """Empty where there is none."""


def require_told(history: SeriesHistory, spec: ForecasterSpec, max_length: int) -> None:
    """Check that the model knows every column that is told, and that each is as long as it must be.

    Raises:
        RefusedSeriesError: one is unknown, too short or too long.
    """
    known, points = spec.covariates, len(history.y)
    _require_known(history, "past", history.past or (), known.past_taken, spec)
    _require_known(history, "future", history.future or (), known.future, spec)
    _require_known(history, "static", history.static or (), [static.name for static in known.static], spec)
    for name, values in (history.past or {}).items():
        if len(values) != points:
            rule = f"and y has {points}: past columns are as long as y"
            raise _refuse_length(history, "past", name, len(values), rule)
    for name, values in (history.future or {}).items():
        if len(values) < points:
            rule = f"and y has {points}: future columns are as long as y, and go on over the steps ahead"
            raise _refuse_length(history, "future", name, len(values), rule)
        if len(values) > max_length + spec.horizon:
            raise _refuse_length(history, "future", name, len(values), f"of at most {max_length + spec.horizon}")


def _require_known(
    history: SeriesHistory, kind: str, told: Collection[str], known: Collection[str], spec: ForecasterSpec
) -> None:
    for name in told:
        if name not in known:
            raise RefusedSeriesError(
                f"{kind}.{name[:64]}",
                f"series {history.unique_id!r} comes with {kind} {name[:64]!r}, which model {spec.name!r} does "
                f"not take; it takes {_describe_known(spec.covariates)}",
            )


def _describe_known(known: CovariatesSpec) -> str:
    names = [f"past {name!r}" for name in known.past_taken] + [f"future {name!r}" for name in known.future]
    names += [f"static {static.name!r}" for static in known.static]
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return (", ".join(names[:MOST_NAMES]) or "none") + more


def _refuse_length(history: SeriesHistory, kind: str, name: str, length: int, rule: str) -> RefusedSeriesError:
    detail = f"{kind} {name!r} of series {history.unique_id!r} has {length} values {rule}"
    return RefusedSeriesError(f"{kind}.{name}", detail)


def lay_out_told(
    history: SeriesHistory, y_L: FloatArray, slots: Slots, cutoff: pd.Timestamp, spec: ForecasterSpec
) -> Told:
    """Lay covariates out on the steps of the window, which ends at the cutoff, and of the horizon.

    Range features that are not sent are made of the prices that are; `y_L` may be one of them.
    """
    known, length = spec.covariates, spec.input_size
    past, future = history.past or {}, history.future or {}
    given = {"unique_id": history.unique_id, **(history.static or {})}
    names = [given.get(static.name, "") for static in known.static]
    future_TF = np.full((length + spec.horizon, len(known.future)), np.nan)
    sent = {name: np.full(length, np.nan) for name in known.past_taken if name in past}
    for name, column_L in sent.items():
        _lay_out(column_L, past[name], slots, history, f"past.{name}")
    made = make_past(known.past, known.prices, {TARGET_COLUMN: y_L, **sent})
    past_LP = np.full((length, len(known.past)), np.nan)
    for name, column_L in made.items():
        past_LP[:, known.past.index(name)] = column_L
    for f, name in enumerate(known.future):
        if name in future:
            _lay_out(future_TF[:, f], future[name], slots, history, f"future.{name}")
    return Told(cutoff, past_LP, future_TF, tuple(name if name.strip() else "" for name in names))


def _lay_out(
    column: FloatArray, values: Sequence[float | None], slots: Slots, history: SeriesHistory, path: str
) -> None:
    """Set a column to the values at its steps; those beyond the values of `y` follow the latest of these."""
    value_V = np.array(values, dtype=np.float64)
    if isinstance(slots, range):
        begin = max(slots.start, 0)  # later than the window's where the series is short
        inside_V = value_V[begin - slots.start :][: len(column) - begin]
        column[begin : begin + len(inside_V)] = inside_V
        return
    beyond = np.arange(1, len(value_V) - len(slots) + 1)
    slot_V = np.concatenate([slots, slots.max() + beyond])
    inside = np.flatnonzero((slot_V >= 0) & (slot_V < len(column)) & ~np.isnan(value_V))
    # Backwards: of two at one step the first is kept, and the second complained about.
    column[slot_V[inside][::-1]] = value_V[inside][::-1]
    differs = inside[column[slot_V[inside]] != value_V[inside]]
    if len(differs) and history.ds is not None:
        i = int(differs[0])
        detail = f"series {history.unique_id!r} has two different values of {path} at {history.ds[i]}"
        raise RefusedSeriesError(f"{path}[{i}]", detail)


def find_shortfalls(told: Told, model: LoadedModel, h: int) -> list[str]:
    """Return what a model was trained with and this forecast goes without, over `h` steps ahead."""
    found = list(_shortfalls(told, model, h))
    others = len(found) - MOST_REASONS
    return [*found[:MOST_REASONS], f"and {others} more"] if others > 0 else found


def _shortfalls(told: Told, model: LoadedModel, h: int) -> Iterator[str]:
    spec = model.spec.covariates
    for p in np.flatnonzero(np.isnan(told.past_LP).all(axis=0)):
        yield f"past {spec.past[p]!r} is missing"
    lost_TF = np.isnan(told.future_TF[: model.spec.input_size + h])
    for f in np.flatnonzero(lost_TF[-h:].any(axis=0) | lost_TF[:-h].all(axis=0)):
        yield f"future {spec.future[f]!r} is missing{_describe_loss(lost_TF[:, f], h)}"
    for static, name in zip(spec.static, told.static, strict=True):
        what = "series" if static.name == "unique_id" else static.name
        if not name:
            yield f"static {static.name!r} is missing: answered as an unknown one"
        elif name not in model.known_names[static.name]:
            yield f"{what} {name!r} was not in training: answered as an unknown one"


def name_cause(
    told: Told, model: LoadedModel, shortfalls: Sequence[str]
) -> Literal["unknown_series", "covariates"] | None:
    """Return the shortfalls in one word: an unknown series, or covariates it goes without."""
    names = dict(zip((static.name for static in model.spec.covariates.static), told.static, strict=True))
    if "unique_id" in names and names["unique_id"] not in model.known_names["unique_id"]:
        return "unknown_series"
    return "covariates" if shortfalls else None


def _describe_loss(lost_T: NDArray[np.bool_], h: int) -> str:
    if lost_T.all():
        return ""
    n_lost = int(lost_T[-h:].sum())
    return f" in {n_lost} of {h} steps ahead" if n_lost else " in the whole window"


def build_covariates(told: Sequence[Told], spec: CovariatesSpec) -> Covariates:
    """Put what is told of each series together, as the forecaster takes it."""
    return Covariates(
        cutoff_B=pd.DatetimeIndex([one.cutoff for one in told]).as_unit("us"),
        past_BLP=np.stack([one.past_LP for one in told]),
        future_BTF=np.stack([one.future_TF for one in told]),
        static={static.name: tuple(one.static[s] for one in told) for s, static in enumerate(spec.static)},
    )


def count_numbers(spec: ForecasterSpec) -> int:
    """Return how many numbers a model is told of one series besides its values."""
    known, n_steps = spec.covariates, spec.input_size + spec.horizon
    return len(known.past) * spec.input_size + (len(known.future) + n_columns(known.calendar)) * n_steps
