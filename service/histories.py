"""From typed series to windows a forecaster takes: laid out on the model's calendar, checked once.

B series, L input_size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from forecasting.calendar import OFF_GRID, Calendar
from forecasting.covariates import Covariates
from forecasting.errors import InputError
from forecasting.forecaster import format_level, interval_bounds
from forecasting.spec import ForecasterSpec
from forecasting.transforms import apply_transform
from service.covariates import (
    Slots,
    Told,
    build_covariates,
    count_numbers,
    find_shortfalls,
    lay_out_told,
    require_told,
)
from service.grid import Grid, grid_of
from service.model_slot import LoadedModel
from service.problems import FieldError, RefusedSeriesError, refuse
from service.schemas import ForecastRequest, SeriesHistory
from service.settings import ServiceSettings

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
MicrosecondArray = NDArray[np.datetime64]


@dataclass(frozen=True)
class Window:
    """The end of one series: `input_size` values up to the cutoff, and the timestamps that follow."""

    unique_id: str
    y_L: FloatArray
    last: pd.Timestamp
    """The cutoff, as the calendar has it."""
    cutoff: str
    ds: list[str]
    reason: str | None
    told: Told | None = None
    """What the model takes besides; None for one that takes nothing."""
    stand_in_HQ: FloatArray | None = None
    """Quantiles of the seasonal naive over the whole horizon, where the network cannot or should not answer."""


@dataclass(frozen=True)
class Prepared:
    """A request that can be answered, and the model that will answer it."""

    model: LoadedModel
    h: int
    level: tuple[float, ...]
    windows: list[Window]
    record: bool = True
    """Whether the ledger is to keep the forecasts."""

    @property
    def y_BL(self) -> FloatArray:  # noqa: N802  (tensors carry shape suffixes)
        """Return the windows as the forecaster takes them."""
        windows = self.windows
        return windows[0].y_L[None] if len(windows) == 1 else np.stack([window.y_L for window in windows])

    @property
    def covariates(self) -> Covariates | None:
        """Return what is known besides as the forecaster takes it, None where it takes nothing."""
        if not self.model.takes_covariates:
            return None
        told = [window.told for window in self.windows if window.told is not None]
        return build_covariates(told, self.model.spec.covariates)


def prepare(request: ForecastRequest, model: LoadedModel, settings: ServiceSettings) -> Prepared:
    """Check a request against its model and lay its series out.

    Raises:
        ProblemError: something cannot be forecast; every series that cannot is named.
    """
    h = model.spec.horizon if request.h is None else request.h
    level = tuple(model.spec.level if request.level is None else request.level)
    errors = _check_options(request, level, model.spec, settings)
    grid = grid_of(model.calendar)
    windows = []
    for i, history in enumerate(request.series):
        try:
            windows.append(_cut_window(history, model, grid, min(h, model.spec.horizon), settings))
        except RefusedSeriesError as error:
            path = f"series[{i}]{'.' if error.path else ''}{error.path}"
            errors.append(FieldError(path=path, unique_id=history.unique_id, detail=str(error)))
    if errors:
        raise refuse(errors)
    return Prepared(model, h, level, windows, request.record)


def _check_options(
    request: ForecastRequest, level: Sequence[float], spec: ForecasterSpec, settings: ServiceSettings
) -> list[FieldError]:
    errors = []
    if request.h is not None and request.h > spec.horizon:
        detail = f"h is {request.h}; model {spec.name!r} forecasts at most {spec.horizon} steps"
        errors.append(FieldError(path="h", detail=detail))
    if len(level) > settings.max_levels:
        errors.append(FieldError(path="level", detail=f"{len(level)} levels; at most {settings.max_levels}"))
        return errors
    errors.extend(_check_levels(tuple(level), spec.quantiles))
    each = max(spec.horizon * max(len(spec.quantiles), 1 + 2 * len(level)), count_numbers(spec))
    values = len(request.series) * each
    if values > settings.max_values:
        detail = f"the forecast would take {values} numbers; at most {settings.max_values}: send fewer series"
        errors.append(FieldError(path="series", detail=detail))
    return errors


@lru_cache(maxsize=1024)
def _check_levels(level: tuple[float, ...], quantiles: tuple[float, ...]) -> tuple[FieldError, ...]:
    errors = []
    names: set[str] = set()
    for i, lv in enumerate(level):
        try:
            interval_bounds(quantiles, lv)
        except InputError as error:
            errors.append(FieldError(path=f"level[{i}]", detail=str(error)))
        if format_level(lv) in names:
            errors.append(FieldError(path=f"level[{i}]", detail=f"level {format_level(lv)} is there twice"))
        names.add(format_level(lv))
    return tuple(errors)


def _cut_window(
    history: SeriesHistory, model: LoadedModel, grid: Grid, h: int, settings: ServiceSettings
) -> Window:
    spec = model.spec
    if len(history.y) > settings.max_length:
        raise RefusedSeriesError(
            "y", f"series {history.unique_id!r} has {len(history.y)} values; at most {settings.max_length}"
        )
    if history.past or history.future or history.static:
        require_told(history, spec, settings.max_length)
    y_T = np.array(history.y, dtype=np.float64)
    # The last value is nearly always there, and then nothing has to be looked for.
    if np.isnan(y_T[-1]) and np.isnan(y_T).all():
        raise RefusedSeriesError("y", f"series {history.unique_id!r} has no observed value: every y is null")
    y_L, cutoff, slots, ds = _lay_out(history, y_T, spec, grid, h)
    reason, told = _find_unusable(history.unique_id, y_L, spec), None
    if model.takes_covariates:
        told = lay_out_told(history, slots, cutoff, spec)
        reason = "; ".join(filter(None, [reason, *find_shortfalls(told, model, h)])) or None
    return Window(history.unique_id, y_L, cutoff, grid.text(cutoff), ds, reason, told)


def _lay_out(
    history: SeriesHistory, y_T: FloatArray, spec: ForecasterSpec, grid: Grid, h: int
) -> tuple[FloatArray, pd.Timestamp, Slots, list[str]]:
    """Return the window, its cutoff, the slots of all values, and the timestamps ahead."""
    try:
        if history.ds is None:
            y_L, cutoff, slots = _from_start(history, y_T, spec.input_size, grid)
        else:
            y_L, cutoff, slots = _from_ds(history, history.ds, y_T, spec.input_size, grid)
        if spec.covariates.calendar:
            # The network is told of its whole horizon, whatever was asked for.
            grid.last(cutoff, spec.horizon + 1)
        return y_L, cutoff, slots, grid.after(cutoff, h)
    except RefusedSeriesError:
        raise
    except InputError as error:
        path = "start" if history.ds is None else "ds"
        raise RefusedSeriesError(path, f"series {history.unique_id!r}: {error}") from error


def _from_start(
    history: SeriesHistory, y_T: FloatArray, input_size: int, grid: Grid
) -> tuple[FloatArray, pd.Timestamp, Slots]:
    """Return the window, its cutoff, and the slots of all values."""
    stamp = _parse_timestamp(history, "start", history.start or "")
    start = pd.Timestamp(_without_zone(stamp, grid.calendar))
    points = len(y_T) if not np.isnan(y_T[-1]) else int(np.flatnonzero(~np.isnan(y_T))[-1]) + 1
    cutoff = grid.last(start, points)
    _require_points(history, points, input_size)
    first = points - input_size
    return y_T[first:points], cutoff, range(-first, len(y_T) - first)


def _from_ds(
    history: SeriesHistory, texts: Sequence[str], y_T: FloatArray, input_size: int, grid: Grid
) -> tuple[FloatArray, pd.Timestamp, Slots]:
    """Return the window, its cutoff, and the slots of all values."""
    calendar = grid.calendar
    ds_T = _parse_all(history, texts, calendar)
    position_T = grid.positions(ds_T)
    if (position_T == OFF_GRID).any():
        i = int((position_T == OFF_GRID).argmax())
        raise RefusedSeriesError(
            f"ds[{i}]",
            f"series {history.unique_id!r}: {texts[i]} does not lie on the grid of {calendar.freq}",
        )
    _refuse_contradictions(history, texts, position_T, y_T)
    end = int(position_T[~np.isnan(y_T)].max())
    _require_points(history, end - int(position_T.min()) + 1, input_size)
    slot_T = position_T - (end - input_size + 1)
    inside_T = (slot_T >= 0) & (slot_T < input_size) & ~np.isnan(y_T)
    y_L = np.full(input_size, np.nan)
    y_L[slot_T[inside_T]] = y_T[inside_T]
    return y_L, pd.Timestamp(ds_T[position_T == end][0]), slot_T


def _refuse_contradictions(
    history: SeriesHistory, texts: Sequence[str], position_T: IntArray, y_T: FloatArray
) -> None:
    observed = np.flatnonzero(~np.isnan(y_T))
    order_T = observed[np.argsort(position_T[observed], kind="stable")]
    before, after = order_T[:-1], order_T[1:]
    differs = (position_T[before] == position_T[after]) & (y_T[before] != y_T[after])
    if differs.any():
        i = int(after[differs.argmax()])
        raise RefusedSeriesError(
            f"ds[{i}]", f"series {history.unique_id!r} has two different values at {texts[i]}"
        )


def _require_points(history: SeriesHistory, points: int, input_size: int) -> None:
    if points < input_size:
        raise RefusedSeriesError(
            "y",
            f"series {history.unique_id!r} has {points} points; this model needs {input_size} (input_size)",
        )


def _find_unusable(unique_id: str, y_L: FloatArray, spec: ForecasterSpec) -> str | None:
    """Return why a forecast sees less than was sent, or None; refuse a window in which it sees nothing."""
    if spec.transform == "none":
        return None
    observed_L = ~np.isnan(y_L)
    usable_L = np.isfinite(apply_transform(y_L, spec.transform))
    lost = int((observed_L & ~usable_L).sum())
    if not usable_L.any():
        raise RefusedSeriesError(
            "y", f"series {unique_id!r} has no value above zero, which {spec.transform} needs"
        )
    if lost == 0:
        return None
    return f"{lost} of the last {len(y_L)} values are not above zero; {spec.transform} takes them as missing"


def _parse_all(history: SeriesHistory, texts: Sequence[str], calendar: Calendar) -> MicrosecondArray:
    stamps = [_parse_timestamp(history, f"ds[{i}]", text) for i, text in enumerate(texts)]
    zoned = [stamp.tzinfo is not None for stamp in stamps]
    if any(zoned) and not all(zoned):
        raise RefusedSeriesError(
            "ds", f"series {history.unique_id!r}: some timestamps carry a UTC offset and some do not"
        )
    return np.array([_without_zone(stamp, calendar) for stamp in stamps], dtype="datetime64[us]")


def _parse_timestamp(history: SeriesHistory, path: str, text: str) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except ValueError as error:
        detail = f"series {history.unique_id!r}: {path} {text!r} is no timestamp: {error}"
        raise RefusedSeriesError(path, detail) from None


def _without_zone(stamp: datetime, calendar: Calendar) -> datetime:
    """Apply the rule of `forecasting.calendar`: instants become UTC, dates keep their wall clock's day."""
    if stamp.tzinfo is None:
        return stamp
    return (stamp if calendar.dated else stamp.astimezone(UTC)).replace(tzinfo=None)
