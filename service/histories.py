"""From typed series to windows a forecaster takes: laid out on the model's calendar, checked once.

B series, L input_size.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
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
    name_cause,
    require_told,
)
from service.fallback import Cause, Sent, StandIn, count_steps_over, find_weakness, stand_in
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
    cause: Cause | None = None
    """The reason in one word."""
    stand_in: StandIn | None = None
    """What is answered where the network cannot or should not."""

    @property
    def stand_in_HQ(self) -> FloatArray | None:  # noqa: N802  (tensors carry shape suffixes)
        """Return the quantiles that stand in for the network's, over the whole horizon."""
        return None if self.stand_in is None else self.stand_in.values_HQ


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


def prepare(
    request: ForecastRequest, model: LoadedModel, settings: ServiceSettings, moment: datetime | None = None
) -> Prepared:
    """Check a request against its model and lay its series out.

    Args:
        request: as it was sent.
        model: who answers.
        settings: of the service.
        moment: when it was asked, where the end of a series is to be measured against the clock.

    Raises:
        ProblemError: something cannot be forecast; every series that cannot is named.
    """
    h = model.spec.horizon if request.h is None else request.h
    level = tuple(model.spec.level if request.level is None else request.level)
    errors = _check_options(request, level, model.spec, settings)
    asked = _Asked(min(h, model.spec.horizon), request.fallback, moment)
    grid = grid_of(model.calendar)
    windows = []
    for i, history in enumerate(request.series):
        try:
            windows.append(_cut_window(history, model, grid, asked, settings))
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


@dataclass(frozen=True)
class _Asked:
    """What is asked for of every series."""

    h: int
    fallback: bool
    moment: datetime | None


def _cut_window(
    history: SeriesHistory, model: LoadedModel, grid: Grid, asked: _Asked, settings: ServiceSettings
) -> Window:
    spec, h = model.spec, asked.h
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
    cause: Cause | None = None if reason is None else "values"
    if model.takes_covariates:
        told = lay_out_told(history, y_L, slots, cutoff, spec)
        shortfalls = find_shortfalls(told, model, h)
        cause = cause or name_cause(told, model, shortfalls)
        reason = "; ".join(filter(None, [reason, *shortfalls])) or None
    text = grid.text(cutoff)
    window = Window(history.unique_id, y_L, cutoff, text, ds, reason, told, cause)
    return _weigh(window, Sent(history, y_T, slots, spec.input_size), model, grid, asked, settings)


def _weigh(
    window: Window, sent: Sent, model: LoadedModel, grid: Grid, asked: _Asked, settings: ServiceSettings
) -> Window:
    """Let the seasonal naive answer where the network cannot or should not, and say why."""
    spec = model.spec
    over = 0 if asked.moment is None else count_steps_over(grid.calendar, window.last, asked.moment, spec)
    gap = max(over, sent.gap if sent.gap > spec.horizon else 0)
    weakness = find_weakness(sent, window.y_L, model, gap, settings.stuck_share)
    if weakness is None and gap:  # too long to be bridged
        old = f"the newest observation, {window.cutoff}, is older than the horizon of {spec.horizon} steps"
        return _note(window, old, "stale")
    if weakness is None:
        return window
    if not asked.fallback:
        if weakness.cause == "short_history":
            raise RefusedSeriesError("y", weakness.reason)
        return _note(window, weakness.reason, weakness.cause)
    found, reason = stand_in(sent, spec, weakness)
    ds = window.ds if found.gap == 0 else grid.after(window.last, found.gap + asked.h)[found.gap :]
    return replace(window, ds=ds, reason=reason, cause=weakness.cause, stand_in=found)


def _note(window: Window, reason: str, cause: Cause) -> Window:
    told = reason if window.reason is None else f"{reason}; {window.reason}"
    return replace(window, reason=told, cause=cause)


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
    first = points - input_size
    y_L = y_T[max(first, 0) : points]
    if first < 0:
        y_L = np.append(np.full(-first, np.nan), y_L)
    return y_L, cutoff, range(-first, len(y_T) - first)


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
