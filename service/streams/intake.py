"""From observations as they were sent to the columns streams take: checked once, kept as they are journalled.

B observations, P past columns, F future columns, S statics, T steps: the observed one and the horizon.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic_core import from_json, to_json

from forecasting.calendar import Calendar, format_timestamp, timestamps_after
from forecasting.covariates import encode_static
from forecasting.errors import InputError
from forecasting.spec import ForecasterSpec
from forecasting.stream import NOT_TOLD, Observed
from service.model_slot import LoadedModel
from service.problems import RefusedSeriesError
from service.schemas import RefusedObservation
from service.streams.messages import Message, StreamObservation

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

EPOCH = datetime(1970, 1, 1)
TOLERANCE = timedelta(days=1)
"""How far ahead of this service's clock an observation may be: clocks differ, and so do dates around the world."""

UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
"""What no name of the ledger has."""

MOST_CUTOFFS = 10_000
"""Most cutoffs whose steps ahead are remembered."""


@dataclass(eq=False)
class Rows:
    """Observations in columns, in their order."""

    unique_id: list[str] = field(default_factory=list)
    ds: list[int] = field(default_factory=list)
    """Microseconds since 1970."""
    y: list[float] = field(default_factory=list)
    told: dict[int, dict[str, Any]] = field(default_factory=dict)
    """What came with some of them, by place: past, future and static, by name."""
    group: list[int] = field(default_factory=list)
    """When a journal is read: the group each was part of."""

    def __len__(self) -> int:
        return len(self.unique_id)

    def add(self, other: "Rows") -> None:
        """Append observations."""
        before = len(self)
        self.unique_id += other.unique_id
        self.ds += other.ds
        self.y += other.y
        self.group += other.group
        self.told.update({before + i: told for i, told in other.told.items()})

    def take(self, places: Sequence[int]) -> "Rows":
        """Return some of the observations."""
        told = {i: self.told[place] for i, place in enumerate(places) if place in self.told} if self.told else {}
        return Rows(
            [self.unique_id[i] for i in places],
            [self.ds[i] for i in places],
            [self.y[i] for i in places],
            told,
            [self.group[i] for i in places] if self.group else [],
        )

    def write(self, model: str, group: int) -> bytes:
        """Return the record of these observations."""
        content = {"unique_id": self.unique_id, "ds": self.ds, "y": self.y, "told": self.told}
        return f"{model} {group}\n".encode() + to_json(content)


def read_head(record: bytes) -> tuple[str, int]:
    """Return model and group of a record."""
    model, _, group = record.partition(b"\n")[0].decode().partition(" ")
    return model, int(group)


def read_record(record: bytes) -> Rows:
    """Return the observations of a record."""
    content = from_json(record.partition(b"\n")[2], allow_inf_nan=True)
    told = {int(i): one for i, one in content["told"].items()}
    group = [read_head(record)[1]] * len(content["ds"])
    return Rows(content["unique_id"], content["ds"], content["y"], told, group)


class Timeline:
    """What follows each cutoff, as JSON carries it; the series of one model mostly share theirs."""

    def __init__(self, calendar: Calendar, horizon: int) -> None:
        self.calendar = calendar
        self.horizon = horizon
        self._known: dict[int, tuple[str, list[str]]] = {}

    def of(self, ds: int) -> tuple[str, list[str]]:
        """Return a cutoff and the steps ahead of it.

        Raises:
            InputError: there is no such step, or the horizon leaves the calendar.
        """
        if ds not in self._known:
            if len(self._known) >= MOST_CUTOFFS:
                self._known.clear()
            self._known[ds] = self._write(pd.Timestamp(np.datetime64(ds, "us")))
        return self._known[ds]

    def _write(self, cutoff: pd.Timestamp) -> tuple[str, list[str]]:
        try:
            ahead = timestamps_after(self.calendar, cutoff, self.horizon)
        except (OverflowError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"the horizon after {cutoff} leaves the calendar") from error
        texts = [format_timestamp(stamp, self.calendar) for stamp in ahead]
        return format_timestamp(cutoff, self.calendar), texts


@dataclass(eq=False)
class Checked:
    """A message whose observations can be told to streams."""

    rows: Rows
    place: list[int]
    """The place of each in the message."""
    refusals: list[RefusedObservation]


def check_message(message: Message, model: LoadedModel, timeline: Timeline, now: datetime) -> Checked:
    """Refuse the observations that can belong to no stream of this model, each alone."""
    checked = Checked(Rows(), [], list(message.refusals))
    stamps: dict[str, int | RefusedSeriesError] = {}
    latest = _latest(now)
    for place, one in zip(message.row, message.observations, strict=True):
        try:
            if UNPRINTABLE.search(one.unique_id):
                raise RefusedSeriesError("unique_id", "a name has no control characters")
            if one.ds not in stamps:
                stamps[one.ds] = _stamp_or_error(one.ds, timeline, latest)
            stamp = stamps[one.ds]
            if isinstance(stamp, RefusedSeriesError):
                raise stamp
            told = _told(one, model.spec) if one.past or one.future or one.static else None
        except RefusedSeriesError as error:
            detail = f"series {one.unique_id!r}: {error}"
            checked.refusals.append(
                RefusedObservation(row=place, unique_id=one.unique_id, field=error.path, reason=detail)
            )
            continue
        if told is not None:
            checked.rows.told[len(checked.rows)] = told
        checked.rows.unique_id.append(one.unique_id)
        checked.rows.ds.append(stamp)
        checked.rows.y.append(np.nan if one.y is None else one.y)
        checked.place.append(place)
    return checked


def _latest(now: datetime) -> int:
    """Return the last moment an observation may be of: a typo must not send a stream into the future."""
    return _microseconds((now + TOLERANCE).astimezone(UTC).replace(tzinfo=None))


def _microseconds(stamp: datetime) -> int:
    return (stamp - EPOCH) // timedelta(microseconds=1)


def _stamp_or_error(text: str, timeline: Timeline, latest: int) -> int | RefusedSeriesError:
    try:
        return _read_stamp(text, timeline, latest)
    except RefusedSeriesError as error:
        return error


def _read_stamp(text: str, timeline: Timeline, latest: int) -> int:
    try:
        stamp = datetime.fromisoformat(text)
    except ValueError as error:
        raise RefusedSeriesError("ds", f"{text!r} is no timestamp: {error}") from None
    if stamp.tzinfo is not None:
        # The rule of forecasting.calendar: instants become UTC, dates keep their wall clock's day.
        stamp = (stamp if timeline.calendar.dated else stamp.astimezone(UTC)).replace(tzinfo=None)
    ds = _microseconds(stamp)
    if ds > latest:
        raise RefusedSeriesError("ds", f"{text} lies in the future: an observation is of the past")
    try:
        timeline.of(ds)
    except InputError as error:
        raise RefusedSeriesError("ds", str(error)) from None
    return ds


def _told(one: StreamObservation, spec: ForecasterSpec) -> dict[str, Any]:
    known = spec.covariates
    statics = [static.name for static in known.static]
    for kind, told, taken in (
        ("past", one.past, known.past),
        ("future", one.future, known.future),
        ("static", one.static, statics),
    ):
        for name in told or ():
            if name not in taken:
                detail = f"{kind} {name[:64]!r} is not taken by model {spec.name!r}"
                raise RefusedSeriesError(f"{kind}.{name[:64]}", detail)
    for name, values in (one.future or {}).items():
        if len(values) > spec.horizon + 1:
            detail = f"future {name!r} has {len(values)} values; at most {spec.horizon + 1}, the first that of ds"
            raise RefusedSeriesError(f"future.{name}", detail)
    return {"past": one.past, "future": one.future, "static": one.static}


def to_observed(rows: Rows, slot_B: IntArray, spec: ForecasterSpec) -> Observed:
    """Return observations of different series as their streams take them; what is not known of is left out."""
    ds_B, y_B = np.array(rows.ds, dtype=np.int64), np.array(rows.y, dtype=np.float64)
    known = spec.covariates
    past_BP, future_BTF = None, None
    if rows.told and known.past:
        past_BP = np.full((len(rows), len(known.past)), np.nan)
        for i, told in rows.told.items():
            for name, value in (told["past"] or {}).items():
                if name in known.past and value is not None:
                    past_BP[i, known.past.index(name)] = value
    if rows.told and known.future:
        future_BTF = np.full((len(rows), spec.horizon + 1, len(known.future)), np.nan)
        for i, told in rows.told.items():
            for name, values in (told["future"] or {}).items():
                if name in known.future:
                    kept = np.array(values[: spec.horizon + 1], dtype=np.float64)
                    future_BTF[i, : len(kept), known.future.index(name)] = kept
    return Observed(slot_B, ds_B, y_B, past_BP, future_BTF, _static_codes(rows, spec))


def _static_codes(rows: Rows, spec: ForecasterSpec) -> IntArray | None:
    statics = spec.covariates.static
    if not statics:
        return None
    code_BS = np.full((len(rows), len(statics)), NOT_TOLD, dtype=np.int64)
    for s, static in enumerate(statics):
        if static.name == "unique_id":
            code_BS[:, s] = encode_static(rows.unique_id, static)
        for i, told in rows.told.items():
            if static.name in (told["static"] or {}):
                (code_BS[i, s],) = encode_static([told["static"][static.name]], static)
    return code_BS
