"""Issued forecasts: immutable, each with all it takes to compute it again.

L input_size, H horizon, Q quantiles, P past and F future columns, T = L + H.
"""

import hashlib
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

import numpy as np
import pandas as pd
import sqlalchemy as sa
from numpy.typing import NDArray
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Engine, Row

from forecasting.covariates import Covariates
from forecasting.transforms import Transform
from ledger.bulk import FEW
from ledger.database import reading, writing
from ledger.moments import to_microseconds, to_moment
from ledger.rules import check_name
from ledger.schema import FALLBACK, forecasts

FloatArray = NDArray[np.float64]
StampArray = NDArray[np.datetime64]
Role = Literal["champion", "shadow"]

ISSUE_LOCK = 7_431_982


@dataclass(frozen=True, eq=False)
class ForecastInputs:
    """What a forecaster was shown of one series: the arguments of `Forecaster.predict`, for one row."""

    y_L: FloatArray
    has_covariates: bool = False
    """Whether covariates were given at all, be it the time of the cutoff alone."""
    past_LP: FloatArray | None = None
    future_TF: FloatArray | None = None
    static: dict[str, str] = field(default_factory=dict)

    def digest(self) -> str:
        """Return the SHA-256 of everything that was shown."""
        return hashlib.sha256(_pack_inputs(self, compress=False)).hexdigest()


@dataclass(frozen=True, eq=False)
class IssuedForecast:
    """One forecast of one series by one version of a model."""

    forecast_id: str
    """Names the answer it was part of."""
    position: int
    """Its place among the forecasts computed together (`batch_id`): they are computed again together."""
    batch_id: str
    issued_at: datetime
    dataset: str
    model: str
    version: str
    role: Role
    unique_id: str
    cutoff: np.datetime64
    ds_H: StampArray
    quantiles: tuple[float, ...]
    """The probabilities."""
    values_HQ: FloatArray
    """As issued, in observed units."""
    adjustment_HQ: FloatArray | None
    """What was added to the network's quantiles before they were issued; None for nothing."""
    inputs: ForecastInputs
    status: str = "ok"
    reason: str | None = None
    target: str = "y"
    """The column of the dataset that was forecast."""
    freq: str = ""
    """The frequency; without it a seasonal naive is known only where the inputs hold a season."""
    season_length: int = 1
    transform: Transform = "none"
    """The scale on which it is scored."""
    id: int | None = None
    """The ledger's number, once it is kept."""

    @property
    def horizon(self) -> int:
        """Return the steps forecast."""
        return len(self.ds_H)


class ForecastStore:
    """Keeps issued forecasts."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def append(self, issued: Sequence[IssuedForecast]) -> int:
        """Keep forecasts, all or none; those kept already are left as they are. Return how many are new.

        Raises:
            InputError: a name cannot be kept; the message says of which forecast.
            LedgerUnavailableError: the database does not answer; nothing was kept.
        """
        if not issued:
            return 0
        rows = [_to_row(forecast) for forecast in issued]
        dialect = postgresql if self._engine.dialect.name == "postgresql" else sqlite
        insert = dialect.insert(forecasts).on_conflict_do_nothing(index_elements=["forecast_id", "position"])
        with writing(self._engine) as connection:
            before = _count(connection, issued)
            connection.execute(insert, rows)
            return _count(connection, issued) - before

    def append_once(self, issued: Sequence[IssuedForecast]) -> int:
        """Keep forecasts whose `forecast_id` nobody has kept, at whatever position. Return how many are new."""
        if not issued:
            return 0
        with writing(self._engine) as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(ISSUE_LOCK)))
            there = _kept(connection, [one.forecast_id for one in issued])
            rows = [_to_row(one) for one in issued if one.forecast_id not in there]
            if rows:
                connection.execute(sa.insert(forecasts), rows)
        return len(rows)

    def kept(self, forecast_ids: Sequence[str]) -> set[str]:
        """Return which of these answers the ledger holds."""
        with reading(self._engine) as connection:
            return _kept(connection, forecast_ids)

    def unshadowed(
        self, model: str, version: str, since: datetime, *, after: int = 0, limit: int = 500
    ) -> list[IssuedForecast]:
        """Return champions' forecasts beside which a version has made none yet, over the same steps, by number.

        Args:
            model: the registered model.
            version: the version in the shadow.
            since: the moment from which forecasts issued count.
            after: the number of the forecast to go on after.
            limit: how many at most.
        """
        beside = sa.alias(forecasts)
        made = sa.exists().where(
            beside.c.model == model,
            beside.c.version == version,
            *(beside.c[name] == forecasts.c[name] for name in ("unique_id", "cutoff", "horizon")),
        )
        return self._select(
            forecasts.c.model == model,
            forecasts.c.role == "champion",
            forecasts.c.version != version,
            forecasts.c.status != FALLBACK,
            forecasts.c.issued_at >= to_microseconds(since),
            forecasts.c.id > after,
            ~made,
            limit=limit,
        )

    def find(self, forecast_id: str) -> list[IssuedForecast]:
        """Return every forecast of an answer, in its order; empty where there is none."""
        return self._select(forecasts.c.forecast_id == forecast_id)

    def batch(self, batch_id: str) -> list[IssuedForecast]:
        """Return the forecasts that were computed together, in order."""
        return self._select(forecasts.c.batch_id == batch_id)

    def of_series(
        self, model: str, unique_id: str, *, role: Role | None = None, limit: int = 100
    ) -> list[IssuedForecast]:
        """Return the newest forecasts of a series, newest cutoff first."""
        wanted = [forecasts.c.model == model, forecasts.c.unique_id == unique_id]
        if role is not None:
            wanted.append(forecasts.c.role == role)
        newest = (forecasts.c.cutoff.desc(), forecasts.c.id.desc())
        return self._select(*wanted, order=newest, limit=limit)

    def numbered(self, numbers: Sequence[int]) -> list[IssuedForecast]:
        """Return forecasts by the ledger's numbers, in that order; those it does not hold are left out."""
        found = {one.id: one for one in self._select(forecasts.c.id.in_([int(number) for number in numbers]))}
        return [found[int(number)] for number in numbers if int(number) in found]

    def select(self, *conditions: sa.ColumnElement[bool], limit: int | None = None) -> list[IssuedForecast]:
        """Return the forecasts that meet conditions on `ledger.schema.forecasts`, oldest first."""
        return self._select(*conditions, limit=limit)

    def newest_cutoff(self, model: str) -> np.datetime64 | None:
        """Return the newest cutoff anything was forecast at by any version of a model."""
        query = sa.select(sa.func.max(forecasts.c.cutoff)).where(forecasts.c.model == model)
        with reading(self._engine) as connection:
            found = connection.scalar(query)
        return None if found is None else np.datetime64(found, "us")

    def _select(
        self, *conditions: sa.ColumnElement[bool], order: Iterable[Any] | None = None, limit: int | None = None
    ) -> list[IssuedForecast]:
        query = sa.select(forecasts).where(*conditions)
        query = query.order_by(*(order or (forecasts.c.id,))).limit(limit)
        with reading(self._engine) as connection:
            return [_from_row(row) for row in connection.execute(query)]


def restore_covariates(shown: Sequence[IssuedForecast]) -> Covariates | None:
    """Return the covariates of forecasts computed together, as `Forecaster.predict` takes them."""
    first = shown[0].inputs
    if not first.has_covariates:
        return None
    return Covariates(
        cutoff_B=pd.DatetimeIndex(np.array([one.cutoff for one in shown], dtype="datetime64[us]")),
        past_BLP=_stack([one.inputs.past_LP for one in shown]),
        future_BTF=_stack([one.inputs.future_TF for one in shown]),
        static={name: tuple(one.inputs.static[name] for one in shown) for name in first.static},
    )


def inputs_of(y_BL: FloatArray, covariates: Covariates | None) -> Iterator[ForecastInputs]:
    """Yield what was shown of each series, from the arguments of `Forecaster.predict`."""
    for b, y_L in enumerate(y_BL):
        if covariates is None:
            yield ForecastInputs(y_L)
        else:
            static = {name: labels[b] for name, labels in covariates.static.items()}
            past, future = covariates.past_BLP, covariates.future_BTF
            past_LP, future_TF = None if past is None else past[b], None if future is None else future[b]
            yield ForecastInputs(y_L, True, past_LP, future_TF, static)


def _stack(rows: Sequence[FloatArray | None]) -> FloatArray | None:
    given = [row for row in rows if row is not None]
    return np.stack(given) if given else None


def _kept(connection: sa.engine.Connection, forecast_ids: Sequence[str]) -> set[str]:
    query = sa.select(forecasts.c.forecast_id)
    parts = [forecast_ids[i : i + FEW] for i in range(0, len(forecast_ids), FEW)]
    return {
        found for part in parts for found in connection.scalars(query.where(forecasts.c.forecast_id.in_(part)))
    }


def _count(connection: sa.engine.Connection, issued: Sequence[IssuedForecast]) -> int:
    ids = {forecast.forecast_id for forecast in issued}
    query = sa.select(sa.func.count()).where(forecasts.c.forecast_id.in_(ids))
    return int(connection.scalar(query) or 0)


def _to_row(one: IssuedForecast) -> dict[str, Any]:
    whose = f"forecast {one.forecast_id!r}, number {one.position + 1}:"
    return {
        "forecast_id": one.forecast_id,
        "position": one.position,
        "batch_id": one.batch_id,
        "issued_at": to_microseconds(one.issued_at),
        "dataset": one.dataset,
        "model": one.model,
        "version": one.version,
        "role": one.role,
        "unique_id": check_name(one.unique_id, f"{whose} unique_id"),
        "cutoff": _stamp(one.cutoff),
        "ends": _stamp(one.ds_H[-1]),
        "horizon": one.horizon,
        "status": one.status,
        "reason": one.reason,
        "data_digest": one.inputs.digest(),
        "ds": one.ds_H.astype("datetime64[us]").astype("<i8").tobytes(),
        "quantiles": np.asarray(one.quantiles, dtype="<f8").tobytes(),
        "issued": one.values_HQ.astype("<f8").tobytes(),
        "adjustment": None if one.adjustment_HQ is None else one.adjustment_HQ.astype("<f8").tobytes(),
        "inputs": _pack_inputs(one.inputs),
        "target": check_name(one.target, f"{whose} the column"),
        "freq": one.freq,
        "season_length": one.season_length,
        "transform": one.transform,
        "tail": max(one.quantiles[0], 1.0 - one.quantiles[-1]),
    }


def _stamp(stamp: np.datetime64) -> int:
    return int(stamp.astype("datetime64[us]").astype(np.int64))


def _from_row(row: Row[Any]) -> IssuedForecast:
    quantiles = np.frombuffer(row.quantiles, dtype="<f8")
    shape = (row.horizon, len(quantiles))
    adjustment = None if row.adjustment is None else np.frombuffer(row.adjustment, dtype="<f8").reshape(shape)
    return IssuedForecast(
        forecast_id=row.forecast_id,
        position=row.position,
        batch_id=row.batch_id,
        issued_at=to_moment(row.issued_at),
        dataset=row.dataset,
        model=row.model,
        version=row.version,
        role=row.role,
        unique_id=row.unique_id,
        cutoff=np.datetime64(row.cutoff, "us"),
        ds_H=np.frombuffer(row.ds, dtype="<i8").astype("datetime64[us]"),
        quantiles=tuple(quantiles.tolist()),
        values_HQ=np.frombuffer(row.issued, dtype="<f8").reshape(shape),
        adjustment_HQ=adjustment,
        inputs=_unpack_inputs(row.inputs),
        status=row.status,
        reason=row.reason,
        target=row.target,
        freq=row.freq,
        season_length=row.season_length,
        transform=row.transform,
        id=row.id,
    )


def _pack_inputs(inputs: ForecastInputs, *, compress: bool = True) -> bytes:
    """Write inputs as one line of JSON with the shapes, and the numbers behind it."""
    told = [inputs.y_L, inputs.past_LP, inputs.future_TF]
    shapes = [None if values is None else list(values.shape) for values in told]
    head = json.dumps(
        {"shapes": shapes, "static": inputs.static, "has_covariates": inputs.has_covariates}, sort_keys=True
    ).encode()
    body = b"".join(np.ascontiguousarray(values, dtype="<f8").tobytes() for values in told if values is not None)
    packed = head + b"\n" + body
    return zlib.compress(packed, 1) if compress else packed


def _unpack_inputs(packed: bytes) -> ForecastInputs:
    head, _, body = zlib.decompress(packed).partition(b"\n")
    told = json.loads(head)
    values: list[FloatArray | None] = []
    offset = 0
    for shape in told["shapes"]:
        if shape is None:
            values.append(None)
            continue
        count = int(np.prod(shape))
        values.append(np.frombuffer(body, dtype="<f8", count=count, offset=offset).reshape(shape))
        offset += 8 * count
    y_L, past_LP, future_TF = values
    if y_L is None:
        raise ValueError("inputs without a history")
    return ForecastInputs(y_L, told["has_covariates"], past_LP, future_TF, told["static"])
