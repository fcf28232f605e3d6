"""What is kept of scores when their forecasts are retired: sums by series, step and month, and a histogram.

The histogram is of the probability at which the actual lay among the quantiles; the coverage of any level follows
from it, exactly for 80, 90, 95, 98 and 99 %, and every other one whose bounds are multiples of 2.5 %.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import sqlalchemy as sa
from numpy.typing import NDArray
from sqlalchemy.engine import Connection

from forecasting.forecaster import format_level
from ledger.schema import FALLBACK, forecasts, score_totals, scores

FloatArray = NDArray[np.float64]

Against = Literal["latest", "first"]
AGAINST: Mapping[Against, int] = {"latest": 0, "first": 1}
"""Which actual a score is against, as the tables hold it."""

GROUPS = ("model", "version", "role", "unique_id", "step")

_EDGES = np.array([0.0, 0.005, 0.01, *np.arange(1, 40) / 40, 0.99, 0.995, 1.0])
_SUMS = ("n", "absolute_error", "crps", "n_naive", "naive_error", "rival_error")
_KEY = (*GROUPS, "month", "against")


@dataclass
class Sums:
    """The sums of a group of scores."""

    n: int = 0
    absolute_error: float = 0.0
    crps: float = 0.0
    n_naive: int = 0
    naive_error: float = 0.0
    rival_error: float = 0.0
    """The absolute error where the seasonal naive is known."""
    tail: float = 0.0
    inside: tuple[float, ...] = ()
    """How many actuals were inside the interval of each level."""

    def told(self, group: Mapping[str, Any], level: Sequence[float]) -> dict[str, Any]:
        """Return the group with the figures that follow from its sums."""
        mase = self.rival_error / self.naive_error if self.naive_error > 0 else None
        figures: dict[str, Any] = {
            **group,
            "n": self.n,
            "mae": self.absolute_error / self.n,
            "mase": mase,
            "crps": self.crps / self.n,
            "skill": None if mase is None else 1.0 - mase,
        }
        for lv, inside in zip(level, self.inside, strict=True):
            measured = 0.5 - lv / 200 >= self.tail - 1e-9
            figures[f"coverage_{format_level(lv)}"] = inside / self.n if measured else None
        return figures


def add_totals(
    connection: Connection,
    groups: dict[tuple[Any, ...], Sums],
    chosen: Mapping[str, str],
    since: int | None,
    against: Against,
    by: Sequence[str],
    level: Sequence[float],
) -> None:
    """Add the sums of what was retired to the groups."""
    where = [score_totals.c[name] == value for name, value in chosen.items()]
    where.append(score_totals.c.against == AGAINST[against])
    if since is not None:
        where.append(score_totals.c.month >= since)
    columns = [*(score_totals.c[name] for name in (*by, *_SUMS)), score_totals.c.tail, score_totals.c.pit]
    for row in connection.execute(sa.select(*columns).where(*where)):
        sums = groups.setdefault(tuple(row[: len(by)]), Sums(inside=(0.0,) * len(level)))
        told = row._mapping
        for name in _SUMS:
            setattr(sums, name, getattr(sums, name) + told[name])
        sums.tail = max(sums.tail, row.tail)
        inside = _inside(np.frombuffer(row.pit, dtype="<u4"), level)
        sums.inside = tuple(a + b for a, b in zip(sums.inside, inside, strict=True))


def _inside(counts: NDArray[np.uint32], level: Sequence[float]) -> list[float]:
    """Return how many actuals lay within each level; a bin is shared out where a bound is inside it."""
    below = np.concatenate([[0.0], np.cumsum(counts)])
    bounds = [np.interp([0.5 - lv / 200, 0.5 + lv / 200], _EDGES, below) for lv in level]
    return [float(high - low) for low, high in bounds]


def retire(connection: Connection, numbers: Sequence[int]) -> None:
    """Add the scores of forecasts to the totals; the caller deletes them in the same transaction."""
    frame = _read_scores(connection, numbers)
    if frame.empty:
        return
    sums = frame.groupby(list(_KEY), sort=True).agg(
        **{name: (name, "sum") for name in _SUMS}, tail=("tail", "max"), pit=("pit", _histogram)
    )
    known = _read_totals(connection, frame)
    rows = []
    for key, record in zip(sums.index.to_list(), sums.to_dict("records"), strict=True):
        row: dict[str, Any] = {str(name): value for name, value in record.items()}
        before = known.get(key)
        if before is not None:
            row = {**row, **{name: row[name] + before[name] for name in _SUMS}}
            row["tail"] = max(row["tail"], before["tail"])
            row["pit"] = row["pit"] + np.frombuffer(before["pit"], dtype="<u4")
        row["pit"] = row["pit"].astype("<u4").tobytes()
        rows.append({**dict(zip(_KEY, key, strict=True)), **row})
    matches = [score_totals.c[name] == sa.bindparam(f"k_{name}") for name in _KEY]
    keys = [{f"k_{name}": row[name] for name in _KEY} for row in rows]
    connection.execute(sa.delete(score_totals).where(*matches), keys)
    connection.execute(sa.insert(score_totals), rows)


def _read_scores(connection: Connection, numbers: Sequence[int]) -> pd.DataFrame:
    told = [forecasts.c[name] for name in ("model", "version", "role", "unique_id", "cutoff", "tail")]
    own = [scores.c[name] for name in ("step", "against", "error", "naive_error", "crps", "pit")]
    query = (
        sa.select(*told, *own)
        .join(forecasts, forecasts.c.id == scores.c.forecast)
        .where(scores.c.forecast.in_(list(numbers)), forecasts.c.status != FALLBACK)
    )
    frame = pd.DataFrame(connection.execute(query).all(), columns=[c.name for c in (*told, *own)])
    cutoff = frame.pop("cutoff").to_numpy(dtype=np.int64).astype("datetime64[us]")
    known = frame["naive_error"].notna()
    error = frame.pop("error").astype(float).abs()
    return frame.assign(
        month=cutoff.astype("datetime64[M]").astype("datetime64[us]").astype(np.int64),
        n=1,
        absolute_error=error,
        n_naive=known.astype(int),
        naive_error=frame["naive_error"].astype(float).fillna(0.0),
        rival_error=error.where(known, 0.0),
    )


def _read_totals(connection: Connection, frame: pd.DataFrame) -> dict[tuple[Any, ...], Mapping[str, Any]]:
    query = sa.select(score_totals).where(
        *(score_totals.c[name].in_(frame[name].unique().tolist()) for name in ("model", "unique_id", "month"))
    )
    return {tuple(row[name] for name in _KEY): dict(row) for row in connection.execute(query).mappings()}


def _histogram(pit: "pd.Series[float]") -> NDArray[np.int64]:
    """Count by the edges; an actual on a bound counts towards the middle, where intervals include it."""
    values = pit.to_numpy(dtype=np.float64)
    nudged = values - np.sign(values - 0.5) * 1e-9
    place = np.clip(np.searchsorted(_EDGES, nudged, side="right") - 1, 0, len(_EDGES) - 2)
    return np.bincount(place, minlength=len(_EDGES) - 1)
