"""One answer, as it waits to be kept: handed over as arrays, written as one record, read as forecasts.

A record is a line of JSON and the arrays behind it, whole: what it takes to write one does not grow with the
number of series, but for their bytes. Only who brings it to the ledger takes it apart.

B series, L input_size, H horizon, Q quantiles.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic_core import to_json

from forecasting.calendar import Calendar, parse_freq, timestamps_after
from forecasting.covariates import Covariates
from forecasting.errors import InputError
from ledger.forecasts import ForecastInputs, IssuedForecast, inputs_of
from service.fallback import StandIn
from service.histories import Prepared
from service.schemas import Told

FloatArray = NDArray[np.float64]
StampArray = NDArray[np.datetime64]

BYTES_EACH = 500
"""About what the objects of one series hold besides arrays."""


@dataclass(frozen=True, eq=False)
class Answered:
    """The forecasts of one answer, as the request leaves them: nothing is copied or worked out."""

    forecast_id: str
    issued_at: datetime
    prepared: Prepared
    y_BL: FloatArray
    covariates: Covariates | None
    issued_BHQ: FloatArray
    """The whole horizon, whatever was asked for."""
    adjustment_BHQ: FloatArray | None
    forecasts: Sequence[Told]

    @property
    def nbytes(self) -> int:
        """Return about how much memory this holds."""
        histories = sum(one.history_T.nbytes for _, one in self.stand_ins)
        arrays = sum(array.nbytes for array in self.arrays if array is not None)
        return arrays + histories + BYTES_EACH * len(self.y_BL)

    @property
    def stand_ins(self) -> list[tuple[int, StandIn]]:
        """Return what the seasonal naive answered, and the place of each among the forecasts."""
        windows = enumerate(self.prepared.windows)
        return [(b, window.stand_in) for b, window in windows if window.stand_in is not None]

    @property
    def arrays(self) -> list[FloatArray | None]:
        """Return every array, in the order of a record."""
        told = self.covariates
        past_BLP, future_BTF = (None, None) if told is None else (told.past_BLP, told.future_BTF)
        return [self.y_BL, past_BLP, future_BTF, self.issued_BHQ, self.adjustment_BHQ]


def pack(answered: Answered) -> bytes:
    """Write an answer as a record."""
    prepared, model, told = answered.prepared, answered.prepared.model, answered.covariates
    head = {
        "forecast_id": answered.forecast_id,
        "issued_at": answered.issued_at.isoformat(),
        "dataset": model.dataset,
        "target": model.target,
        "model": model.name,
        "version": model.version,
        "freq": model.spec.freq,
        "season_length": model.spec.season_length,
        "transform": model.spec.transform,
        "quantiles": list(model.spec.quantiles),
        "h": prepared.h,
        "unique_ids": [window.unique_id for window in prepared.windows],
        "cutoffs": [window.last.isoformat() for window in prepared.windows],
        "stand_ins": {b: [len(one.history_T), one.gap] for b, one in answered.stand_ins},
        "statuses": [forecast.status for forecast in answered.forecasts],
        "reasons": [forecast.reason for forecast in answered.forecasts],
        "static": None if told is None else {name: list(labels) for name, labels in told.static.items()},
        "shapes": [None if array is None else array.shape for array in answered.arrays],
    }
    arrays = [array for array in answered.arrays if array is not None]
    arrays += [one.history_T for _, one in answered.stand_ins]
    body = [np.ascontiguousarray(array, dtype="<f8").tobytes() for array in arrays]
    return b"".join([to_json(head), b"\n", *body])


def unpack(record: bytes) -> Iterator[IssuedForecast]:
    """Yield the forecasts of a record, a series each.

    Raises:
        ValueError: these are not the bytes of an answer.
    """
    line, _, body = record.partition(b"\n")
    head = json.loads(line)
    stand_ins = head.get("stand_ins", {})
    lengths = [[length] for length, _ in stand_ins.values()]
    (y_BL, past_BLP, future_BTF, issued_BHQ, adjustment_BHQ), histories = _split(body, head["shapes"], lengths)
    seen = dict(zip(map(int, stand_ins), histories, strict=True))
    if y_BL is None or issued_BHQ is None:
        raise ValueError("an answer without histories or forecasts")
    cutoff_B = pd.DatetimeIndex(np.array(head["cutoffs"], dtype="datetime64[us]"))
    told = None if head["static"] is None else Covariates(cutoff_B, past_BLP, future_BTF, head["static"])
    calendar = parse_freq(head["freq"])
    ahead = {last: _steps_ahead(calendar, last, issued_BHQ.shape[1], head["h"]) for last in cutoff_B.unique()}
    for b, inputs in enumerate(inputs_of(y_BL, told)):
        ds_H = ahead[cutoff_B[b]]
        if b in seen:
            inputs = ForecastInputs(seen[b])
            ds_H = _steps_over_a_gap(calendar, cutoff_B[b], stand_ins[str(b)][1], issued_BHQ.shape[1], head["h"])
        yield IssuedForecast(
            **{name: head[name] for name in _SHARED},
            batch_id=head["forecast_id"],
            position=b,
            issued_at=datetime.fromisoformat(head["issued_at"]),
            role="champion",
            unique_id=head["unique_ids"][b],
            cutoff=cutoff_B[b].to_datetime64(),
            ds_H=ds_H,
            quantiles=tuple(head["quantiles"]),
            values_HQ=issued_BHQ[b, : len(ds_H)],
            adjustment_HQ=None if adjustment_BHQ is None else adjustment_BHQ[b, : len(ds_H)],
            inputs=inputs,
            status=head["statuses"][b],
            reason=head["reasons"][b],
        )


_SHARED = ("forecast_id", "dataset", "target", "model", "version", "freq", "season_length", "transform")


def _split(
    body: bytes, shapes: Sequence[Any], lengths: Sequence[Any]
) -> tuple[list[FloatArray | None], list[FloatArray]]:
    """Return the arrays of a record, and behind them what the seasonal naive was shown."""
    arrays: list[FloatArray | None] = []
    offset = 0
    for shape in [*shapes, *lengths]:
        count = 0 if shape is None else int(np.prod(shape))
        values = np.frombuffer(body, dtype="<f8", count=count, offset=offset) if shape is not None else None
        arrays.append(None if values is None else values.reshape(shape))
        offset += 8 * count
    told = len(shapes)
    return arrays[:told], [array for array in arrays[told:] if array is not None]


def _steps_ahead(calendar: Calendar, cutoff: pd.Timestamp, horizon: int, h: int) -> StampArray:
    """Return the timestamps forecast: the whole horizon, or what was asked for where the calendar ends."""
    try:
        ds = timestamps_after(calendar, cutoff, horizon)
    except (InputError, OverflowError, ValueError):
        ds = timestamps_after(calendar, cutoff, h)
    return ds.to_numpy().astype("datetime64[us]")


def _steps_over_a_gap(calendar: Calendar, cutoff: pd.Timestamp, gap: int, horizon: int, h: int) -> StampArray:
    return _steps_ahead(calendar, cutoff, gap + horizon, gap + h)[gap:]
