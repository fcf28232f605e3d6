"""Series one after the other, without names and timestamps -> windows of them, forecast.

L input_size, H horizon, Q quantiles, T values of all series, F future columns, P past columns.
"""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from forecasting.calendar import normalise_timestamps
from forecasting.errors import CalendarError
from forecasting.forecaster import interpolate_quantile, summarise
from service.answering import issue
from service.histories import Prepared, prepare
from service.model_slot import LoadedModel
from service.problems import FieldError, refuse
from service.protocols.asking import any_start, needs_time, refuse_field
from service.protocols.schemas import TimeGPTParameters
from service.runtime import Runtime
from service.schemas import ForecastRequest, SeriesHistory
from service.settings import ServiceSettings

FloatArray = NDArray[np.float64]

INLINE_VALUES = 8192
"""Values from which windows are laid out beside the event loop."""

MOST_TURNS = 50
"""Most times that as many windows are forecast for one request as a request may have series."""

NOTHING_TOLD = TimeGPTParameters.model_construct()


@dataclass(frozen=True)
class Cut:
    """A window to forecast: of which series, after how many of its values, and how many steps are wanted."""

    series: int
    end: int
    steps: int


@dataclass(frozen=True)
class Forecasts:
    """What was forecast, series after series and window after window."""

    model: LoadedModel
    columns: Mapping[str, FloatArray]
    """`mean`, then `lo-80`, `hi-80`...: the wanted steps of every cut, one after the other."""
    statuses: list[tuple[str, str | None]]


class SentPanel:
    """The series of a request, checked against one another, and what is known of them besides."""

    def __init__(
        self,
        model: LoadedModel,
        y: Sequence[float],
        sizes: Sequence[int],
        told: TimeGPTParameters | None,
        settings: ServiceSettings,
    ) -> None:
        """Check the series against one another and against the model.

        Raises:
            ProblemError: there are too many, sizes do not add up, or the model needs a time that is not told.
        """
        _check_sizes(len(y), sizes, settings)
        self.model = model
        self.y = np.array(y, dtype=np.float64)
        self.sizes = list(sizes)
        self.offsets = np.cumsum([0, *sizes])
        self._told = told or NOTHING_TOLD
        self._names = self._read_names()
        self._statics = self._spread_statics()
        self._ends = self._read_cutoffs()
        self._any_start = any_start(model)
        self._past: dict[str, FloatArray] = {}
        self._future: dict[str, FloatArray] = {}
        self._ahead: dict[str, FloatArray] = {}
        self._h = 0

    @property
    def is_told(self) -> bool:
        """Return whether names and timestamps are known: only then can anything be kept."""
        return self._told.cutoff is not None and self._told.unique_id is not None

    def take_columns(
        self,
        columns: Sequence[Sequence[float | None]],
        known_ahead: Sequence[int],
        ahead: Sequence[Sequence[float | None]] = (),
        h: int = 0,
    ) -> None:
        """Take exogenous columns, which have no names: those of the model, in its order.

        Args:
            columns: one value for every value of y.
            known_ahead: the positions of those that are known over the steps ahead.
            ahead: these columns over `h` steps after each series.

        Raises:
            ProblemError: these are not as many as the model takes, or of other lengths.
        """
        known = self.model.spec.covariates
        historic = [i for i in range(len(columns)) if i not in set(known_ahead)]
        for what, found, names in (
            ("known ahead", known_ahead, known.future),
            ("of the past", historic, known.past),
        ):
            if found and len(found) != len(names):
                raise refuse_field("series.X", self._say_columns(len(found), what, names))
        _check_lengths("series.X", columns, len(self.y))
        _check_lengths("series.X_future", ahead, len(self.sizes) * h)
        self._future = {name: _numbers(columns[i]) for i, name in zip(known_ahead, known.future, strict=False)}
        self._past = {name: _numbers(columns[i]) for i, name in zip(historic, known.past, strict=False)}
        self._ahead = {name: _numbers(column) for name, column in zip(known.future, ahead, strict=False)}
        self._h = h

    def history(self, cut: Cut) -> SeriesHistory:
        """Return the end of a series before a cut, as the service takes it: as much as the model sees."""
        first = max(0, cut.end - self.model.spec.input_size)
        begin = int(self.offsets[cut.series])
        seen = slice(begin + first, begin + cut.end)
        until = slice(seen.start, min(seen.stop + self.model.spec.horizon, int(self.offsets[cut.series + 1])))
        past = {name: _listed(column[seen]) for name, column in self._past.items()}
        future = {
            name: _listed(np.concatenate([column[until], self._steps_ahead(name, cut)]))
            for name, column in self._future.items()
        }
        return SeriesHistory.model_construct(
            unique_id=self._names[cut.series],
            start=self._start(cut.series, first),
            ds=None,
            y=self.y[seen].tolist(),
            past=past or None,
            future=future or None,
            static=self._statics[cut.series] or None,
        )

    def _steps_ahead(self, name: str, cut: Cut) -> FloatArray:
        return self._ahead[name][cut.series * self._h :][: self._h] if name in self._ahead else np.empty(0)

    def _start(self, series: int, first: int) -> str:
        end = self._ends[series]
        if end is None:
            return self._any_start
        try:
            start = self.model.calendar.ending(end, self.sizes[series] - first)[0]
        except (CalendarError, OverflowError, ValueError) as error:
            raise refuse_field("model_parameters.cutoff", f"cutoff {end}: {error}") from None
        return str(start.isoformat())

    def _read_names(self) -> list[str]:
        names = self._spread("unique_id", self._told.unique_id)
        if self._told.unique_id is not None and len(set(names)) < len(names):
            detail = "unique_id names a series twice; every unique_id must differ"
            raise refuse_field("model_parameters.unique_id", detail)
        return [f"#{n}" if name is None else name for n, name in enumerate(names)]

    def _read_cutoffs(self) -> list[pd.Timestamp | None]:
        texts = self._spread("cutoff", self._told.cutoff)
        if self._told.cutoff is None:
            if needs_time(self.model):
                raise refuse_field("model_parameters.cutoff", self._say_time_is_needed())
            return [None] * len(self.sizes)
        try:
            return list(normalise_timestamps(pd.Series(texts), self.model.calendar))
        except CalendarError as error:
            raise refuse_field("model_parameters.cutoff", f"cutoff: {error}") from None

    def _say_time_is_needed(self) -> str:
        return (
            f"model {self.model.name!r} looks at the time of each step, which the SDK does not send: give "
            "model_parameters={'cutoff': '2024-03-31T23:00'}, the timestamp of the last value, or one a series"
        )

    def _say_columns(self, n: int, what: str, names: Sequence[str]) -> str:
        takes = f"takes {len(names)}, in this order: {', '.join(names)}" if names else "takes none"
        return f"{n} exogenous columns {what} were sent, and model {self.model.name!r} {takes}"

    def _spread(self, name: str, told: str | Sequence[str] | None) -> list[str | None]:
        """Return what is told of each series: one text is told of all of them."""
        if told is None or isinstance(told, str):
            return [told] * len(self.sizes)
        if len(told) != len(self.sizes):
            detail = f"{name} has {len(told)} entries, and this request {len(self.sizes)} series"
            raise refuse_field(f"model_parameters.{name}", f"{detail}: they cannot be told part by part")
        return list(told)

    def _spread_statics(self) -> list[dict[str, str]]:
        columns = {name: self._spread(name, told) for name, told in (self._told.model_extra or {}).items()}
        of_each = [{name: column[n] for name, column in columns.items()} for n in range(len(self.sizes))]
        return [{name: text for name, text in one.items() if text is not None} for one in of_each]


def _check_sizes(n_values: int, sizes: Sequence[int], settings: ServiceSettings) -> None:
    if sum(sizes) != n_values:
        raise refuse_field("series.sizes", f"sizes add up to {_short(sum(sizes))}, and y has {n_values} values")
    if len(sizes) > settings.max_series:
        detail = f"{len(sizes)} series in one request; at most {settings.max_series}: set num_partitions"
        raise refuse_field("series.sizes", detail)
    if max(sizes) > settings.max_length:
        raise refuse_field("series.sizes", f"a series has {max(sizes)} values; at most {settings.max_length}")


def _check_lengths(path: str, columns: Sequence[Sequence[float | None]], wanted: int) -> None:
    for i, column in enumerate(columns):
        if len(column) != wanted:
            raise refuse_field(f"{path}[{i}]", f"{path}[{i}] has {len(column)} values; expected {_short(wanted)}")


def _short(number: int) -> str:
    """Write a number that may be far too large to be written."""
    return str(number) if abs(number) < 10**18 else "a huge number"


def _numbers(column: Sequence[float | None]) -> FloatArray:
    return np.array(column, dtype=np.float64)


def _listed(column: FloatArray) -> list[float | None]:
    values: list[float | None] = column.tolist()
    return values


def cut_back(panel: SentPanel, h: int, n_windows: int, step_size: int, settings: ServiceSettings) -> list[Cut]:
    """Return `n_windows` windows of each series, the last of which ends with it.

    Raises:
        ProblemError: a series is too short for them, or they are too many.
    """
    spec = panel.model.spec
    needed = spec.input_size + h + (n_windows - 1) * step_size
    errors = [
        FieldError(path=f"series.sizes[{n}]", detail=_say_short(n, size, needed, spec.input_size))
        for n, size in enumerate(panel.sizes)
        if size < needed
    ]
    if errors:
        raise refuse(errors)
    _check_work(panel, n_windows * len(panel.sizes), settings)
    ends = [h + step_size * (n_windows - 1 - w) for w in range(n_windows)]
    return [Cut(n, size - end, h) for n, size in enumerate(panel.sizes) for end in ends]


def _say_short(n: int, size: int, needed: int, input_size: int) -> str:
    return (
        f"series #{n} has {size} values; these windows need {_short(needed)}, {input_size} of them (input_size) "
        "before the first"
    )


def cut_to_cover(panel: SentPanel, settings: ServiceSettings) -> list[Cut]:
    """Return windows that follow one another up to the end of each series, over all that can be forecast.

    Raises:
        ProblemError: a series is too short for any, or they are too many.
    """
    spec = panel.model.spec
    errors = [
        FieldError(path=f"series.sizes[{n}]", detail=_say_short(n, size, spec.input_size + 1, spec.input_size))
        for n, size in enumerate(panel.sizes)
        if size <= spec.input_size
    ]
    if errors:
        raise refuse(errors)
    _check_work(panel, sum(-(-(size - spec.input_size) // spec.horizon) for size in panel.sizes), settings)
    return [
        Cut(n, end, steps)
        for n, size in enumerate(panel.sizes)
        for end, steps in _stretches(spec.input_size, size, spec.horizon)
    ]


def _stretches(first: int, last: int, length: int) -> Iterator[tuple[int, int]]:
    """Yield stretches from `first` to `last`, all but the first of them of full length."""
    odd = (last - first) % length
    if odd:
        yield first, odd
    yield from ((begin, length) for begin in range(first + odd, last, length))


def _check_work(panel: SentPanel, n_windows: int, settings: ServiceSettings) -> None:
    spec = panel.model.spec
    n_values = n_windows * max(spec.horizon * len(spec.quantiles), spec.input_size)
    most = MOST_TURNS * settings.max_series
    if n_windows > most or n_values > settings.max_values:
        detail = f"{_short(n_windows)} windows would take {_short(n_values)} numbers"
        rule = f"at most {most} and {settings.max_values}"
        raise refuse_field("series", f"{detail}; {rule}: send fewer or shorter series")


async def forecast_windows(
    panel: SentPanel,
    cuts: Sequence[Cut],
    h: int,
    level: Sequence[float],
    runtime: Runtime,
    *,
    record: bool = False,
) -> Forecasts:
    """Forecast every window, as many at a time as a request may have series.

    Raises:
        ProblemError: something cannot be forecast, or the service is overloaded.
    """
    at_once = runtime.settings.max_series
    parts: list[Mapping[str, FloatArray]] = []
    statuses: list[tuple[str, str | None]] = []
    for i in range(0, len(cuts), at_once):
        some = cuts[i : i + at_once]
        issued = await issue(await _prepare(panel, some, h, level, runtime.settings, record), runtime)
        parts.append(_columns(issued.quantiles_BHQ[:, :h], panel.model.spec.quantiles, level, some))
        statuses.extend((one.status, one.reason) for one in issued.forecasts)
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return Forecasts(panel.model, columns, statuses)


async def _prepare(
    panel: SentPanel, cuts: Sequence[Cut], h: int, level: Sequence[float], settings: ServiceSettings, record: bool
) -> Prepared:
    # The SDK asks for level 0 where it wants a median, and for a level twice where for both of its quantiles.
    wanted = sorted({lv for lv in level if lv > 0})

    def work() -> Prepared:
        series = [panel.history(cut) for cut in cuts]
        request = ForecastRequest.model_construct(
            model=panel.model.name, h=h, level=wanted, record=record, series=series
        )
        return prepare(request, panel.model, settings)

    large = len(cuts) * panel.model.spec.input_size > INLINE_VALUES
    return await asyncio.to_thread(work) if large else work()


def _columns(
    quantiles_BHQ: FloatArray, quantiles: Sequence[float], level: Sequence[float], cuts: Sequence[Cut]
) -> Mapping[str, FloatArray]:
    columns_BH = dict(summarise(quantiles_BHQ, quantiles, sorted({lv for lv in level if lv > 0})))
    if 0 in level:
        median_BH = interpolate_quantile(quantiles_BHQ, quantiles, 0.5)
        columns_BH |= {"lo-0": median_BH, "hi-0": median_BH}
    wanted_BH = np.arange(quantiles_BHQ.shape[1]) < np.array([cut.steps for cut in cuts])[:, None]
    return {name: column_BH[wanted_BH] for name, column_BH in columns_BH.items()}
