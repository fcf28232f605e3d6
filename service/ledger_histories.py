"""From the ledger to a typed request: what it knows of one series, as a client would have sent it.

R rows of the series, a step each.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache

import numpy as np
import pandas as pd

from forecasting.calendar import format_timestamp, parse_freq, timestamps_after
from forecasting.errors import InputError
from forecasting.stillness import SEASONS
from ledger.ledger import Ledger
from service.grid import first_step
from service.model_slot import LoadedModel
from service.problems import UNKNOWN_SERIES, ProblemError
from service.schemas import ForecastRequest, SeriesHistory

GENEROUS = 2
"""How many times the steps that are needed are read first: exchanges rest, and data are late."""


@dataclass(frozen=True)
class LedgerForecastRequest:
    """What is asked for, and of which series."""

    model: str
    unique_id: str
    h: int | None = None
    level: Sequence[float] | None = None
    as_of: datetime | None = None
    """The moment as of which the ledger is read; None for now."""
    record: bool = True
    fallback: bool = True
    """Whether the seasonal naive may answer in the model's place."""


def read_history(
    ledger: Ledger, model: LoadedModel, asked: LedgerForecastRequest, moment: datetime
) -> SeriesHistory:
    """Return the end of a series as the ledger knew it, with all else the model takes.

    Raises:
        ProblemError: the ledger knows no observation of it.
    """
    recent = _naive(moment) - GENEROUS * (model.spec.input_size + model.spec.horizon) * _rough_step(
        model.spec.freq
    )
    rows = _read_rows(ledger, model, asked, recent.to_datetime64())
    if int(rows["y"].notna().sum()) < model.spec.input_size:
        # Not enough lately; what there is may lie further back.
        rows = _read_rows(ledger, model, asked, None)
    if not rows["y"].notna().any():
        when = "" if asked.as_of is None else f" as of {asked.as_of.isoformat()}"
        detail = f"the ledger has no observation of series {asked.unique_id!r} in dataset {model.dataset!r}{when}"
        raise ProblemError(UNKNOWN_SERIES, detail)
    return _to_history(_cut(rows, model), model, asked.unique_id, _read_names(ledger, model, asked))


def build_request(asked: LedgerForecastRequest, history: SeriesHistory) -> ForecastRequest:
    """Return the request as a client would have sent it.

    What is asked for as of a moment that passed is not recorded: the version may have been trained on what
    happened since, and a score of it would say nothing.
    """
    return ForecastRequest.model_construct(
        model=asked.model,
        h=asked.h,
        level=None if asked.level is None else list(asked.level),
        record=asked.record and asked.as_of is None,
        fallback=asked.fallback,
        series=[history],
    )


def _naive(moment: datetime) -> pd.Timestamp:
    return pd.Timestamp(moment.astimezone(UTC).replace(tzinfo=None))


@lru_cache(maxsize=64)
def _rough_step(freq: str) -> pd.Timedelta:
    calendar = parse_freq(freq)
    steps = calendar.range(first_step(calendar), 3)
    return pd.Timedelta((steps[1:] - steps[:-1]).max())


def _read_rows(
    ledger: Ledger, model: LoadedModel, asked: LedgerForecastRequest, start: np.datetime64 | None
) -> pd.DataFrame:
    """Return a row a step, by time: `y` and the covariates, NaN where nothing is known."""
    told = model.spec.covariates
    columns = {"y": model.target} | {name: name for name in (*told.past_read, *told.future)}
    parts = {name: _read_column(ledger, model.dataset, column, asked, start) for name, column in columns.items()}
    return pd.DataFrame(parts).sort_index()


def _read_column(
    ledger: Ledger, dataset: str, column: str, asked: LedgerForecastRequest, start: np.datetime64 | None
) -> pd.Series:
    found = ledger.observations.read(
        dataset, column=column, unique_ids=[asked.unique_id], as_of=asked.as_of, start=start
    )
    return pd.Series(found.value_R, index=pd.DatetimeIndex(found.ds_R))


def _read_names(ledger: Ledger, model: LoadedModel, asked: LedgerForecastRequest) -> dict[str, str]:
    names = [static.name for static in model.spec.covariates.static if static.name != "unique_id"]
    if not names:
        return {}
    said = ledger.observations.labels(model.dataset, unique_ids=[asked.unique_id], as_of=asked.as_of)
    known = said.get(asked.unique_id, {})
    return {name: known[name] for name in names if known.get(name)}


def _cut(rows: pd.DataFrame, model: LoadedModel) -> pd.DataFrame:
    """Return the rows a forecast can use: as many as the window has steps, and those over the horizon."""
    cutoff = rows.index[rows["y"].notna()][-1]
    try:
        last = timestamps_after(model.calendar, cutoff, model.spec.horizon)[-1]
    except (InputError, OverflowError, ValueError, IndexError):
        last = cutoff
    before, after = rows.loc[:cutoff], rows.loc[rows.index > cutoff]
    most = max(model.spec.input_size, SEASONS * model.spec.season_length)
    kept: pd.DataFrame = pd.concat([before.tail(most), after.loc[:last]])
    return kept


def _to_history(rows: pd.DataFrame, model: LoadedModel, unique_id: str, names: dict[str, str]) -> SeriesHistory:
    told = model.spec.covariates
    return SeriesHistory.model_construct(
        unique_id=unique_id,
        start=None,
        ds=[format_timestamp(stamp, model.calendar) for stamp in rows.index],
        y=_nulls(rows["y"]),
        past={name: _nulls(rows[name]) for name in told.past_read} or None,
        future={name: _nulls(rows[name]) for name in told.future} or None,
        static=names or None,
    )


def _nulls(values: pd.Series) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in values]
