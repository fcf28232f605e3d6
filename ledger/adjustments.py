"""Adjustments: what the scores taught of each series' intervals, as it was known at every moment of late.

Kept apart for every version: what was learned of one network says nothing of the next, which was calibrated on
newer data.

H horizon, Q quantiles.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

import numpy as np
import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine, Row

from forecasting.conformal import Adjustment
from ledger.bulk import FEW
from ledger.database import reading
from ledger.moments import Clock, to_microseconds, to_moment
from ledger.schema import adjustments

KEPT = timedelta(days=2)
"""How long a state that was replaced is remembered: a shadow's forecast uses what was known at the champion's."""

Key = tuple[str, str, str]
"""Model, version, unique_id."""


class AdjustmentStore:
    """Reads adjustments; `ScoreStore.keep` writes them, together with the scores they were learned from."""

    def __init__(self, engine: Engine, clock: Clock) -> None:
        self._engine = engine
        self._clock = clock

    def read(
        self,
        model: str,
        version: str | None = None,
        *,
        unique_ids: Sequence[str] | None = None,
        as_of: datetime | None = None,
    ) -> Mapping[str, Adjustment]:
        """Return the adjustment of every series of a model, by its name.

        Args:
            model: the registered model.
            version: whose network the adjustments are for; default, of each series, the version that learned
                last.
            unique_ids: series wanted; default all.
            as_of: the moment; default now. More than KEPT ago, what was replaced since is forgotten.
        """
        newest = sa.func.max(adjustments.c.made_at).over(partition_by=adjustments.c.unique_id)
        query = sa.select(adjustments, newest.label("newest")).where(adjustments.c.model == model)
        if version is not None:
            query = query.where(adjustments.c.version == version)
        if as_of is not None:
            query = query.where(adjustments.c.made_at <= to_microseconds(as_of))
        found: dict[str, Adjustment] = {}
        with reading(self._engine) as connection:
            for part in _parts(unique_ids):
                chosen = query if part is None else query.where(adjustments.c.unique_id.in_(part))
                ranked = chosen.subquery()
                rows = connection.execute(sa.select(ranked).where(ranked.c.made_at == ranked.c.newest))
                found |= {row.unique_id: _from_row(row) for row in rows}
        return found

    def changed_at(self, model: str) -> datetime | None:
        """Return the moment an adjustment of a model changed last; None where there is none."""
        query = sa.select(sa.func.max(adjustments.c.made_at)).where(adjustments.c.model == model)
        with reading(self._engine) as connection:
            last = connection.scalar(query)
        return None if last is None else to_moment(last)


def read_states(
    connection: Connection, model: str, version: str, unique_ids: Sequence[str]
) -> dict[Key, Adjustment]:
    """Return the newest adjustments of these series, inside a transaction."""
    query = (
        sa.select(adjustments)
        .where(adjustments.c.model == model, adjustments.c.version == version)
        .order_by(adjustments.c.made_at)
    )
    found: dict[Key, Adjustment] = {}
    for part in _parts(unique_ids):
        for row in connection.execute(query.where(adjustments.c.unique_id.in_(part or ()))):
            found[model, version, row.unique_id] = _from_row(row)
    return found


def write_states(connection: Connection, states: Mapping[Key, Adjustment], made_at: int) -> None:
    """Add the states of a moment, and forget what was replaced long ago."""
    if not states:
        return
    forgotten = made_at - KEPT // timedelta(microseconds=1)
    keys = [{"m": model, "v": version, "u": unique_id} for model, version, unique_id in states]
    of_series = (
        (adjustments.c.model == sa.bindparam("m"))
        & (adjustments.c.version == sa.bindparam("v"))
        & (adjustments.c.unique_id == sa.bindparam("u"))
    )
    old = (adjustments.c.made_at < forgotten) | (adjustments.c.made_at == made_at)
    connection.execute(sa.delete(adjustments).where(of_series, old), keys)
    connection.execute(
        sa.insert(adjustments),
        [
            {
                "model": model,
                "version": version,
                "unique_id": unique_id,
                "made_at": made_at,
                "quantiles": np.asarray(state.quantiles, dtype="<f8").tobytes(),
                "stretch": state.stretch_HQ.astype("<f4").tobytes(),
                "cutoffs": state.cutoff_H.astype("datetime64[us]").astype("<i8").tobytes(),
            }
            for (model, version, unique_id), state in states.items()
        ],
    )


def _parts(unique_ids: Sequence[str] | None) -> list[Sequence[str] | None]:
    if unique_ids is None:
        return [None]
    return [unique_ids[i : i + FEW] for i in range(0, len(unique_ids), FEW)]


def _from_row(row: Row[tuple[object, ...]]) -> Adjustment:
    quantiles = np.frombuffer(row.quantiles, dtype="<f8")
    cutoff_H = np.frombuffer(row.cutoffs, dtype="<i8").astype("datetime64[us]")
    stretch_HQ = np.frombuffer(row.stretch, dtype="<f4").reshape(len(cutoff_H), len(quantiles))
    return Adjustment(tuple(quantiles.tolist()), stretch_HQ.astype(np.float64), cutoff_H)
