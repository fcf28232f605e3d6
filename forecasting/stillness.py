"""How long a stream has stood still, and how it moved before: a few numbers, however long it is.

A stream's ring holds its latest values, which may still be revised. What leaves the ring cannot be any more, and
is remembered here: the run of equal values it ended in, and the runs before that one in two spans, so that one
that was once stuck for a month is not the measure of all that comes.

C streams, R values in a ring, F values of all rings one after the other, N runs of equal values.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
RowArray = NDArray[np.void]

SEASONS = 12
"""How many seasons of a history are looked at to see how it moves; at least as many values as the network sees."""

REMEMBERED = np.dtype(
    [
        ("last", "<f8"),
        ("run", "<i8"),
        ("values", "<i8", (2,)),
        ("runs", "<i8", (2,)),
        ("longest", "<i8", (2,)),
        ("lowest", "<f8"),
    ],
    align=True,
)
"""What is remembered: the last value that left the ring and how many equal ones it ends; of the runs before, in
this span and in the one before it, how many values and runs there were and the longest; the lowest value of all,
at most 0. Zeros remember nothing."""


@dataclass(frozen=True, eq=False)
class Standstill:
    """How streams stand still, and moved before."""

    run_C: IntArray
    """Values at the end that are the same, missing ones left out."""
    runs_C: IntArray
    """Runs of equal values before that one; a value that differs from both its neighbours is one."""
    longest_C: IntArray
    """Values of the longest of those runs; 0 without any."""
    rests_C: NDArray[np.bool_]
    """Whether the stream is at zero, and was never below it."""


def remember(kept_C: RowArray, y_C: FloatArray, span: int) -> None:
    """Take in the value that leaves each ring, in order, NaN where there is none.

    Args:
        kept_C: what is remembered, which is changed.
        y_C: the values.
        span: values after which the runs of a span are the earlier ones.
    """
    told_C = ~np.isnan(y_C)
    same_C = told_C & (kept_C["run"] > 0) & (y_C == kept_C["last"])
    ended = np.flatnonzero(told_C & ~same_C & (kept_C["run"] > 0))
    if len(ended):
        kept_C[ended] = _end_runs(kept_C[ended], span)
    kept_C["run"] = np.where(same_C, kept_C["run"] + 1, np.where(told_C, 1, kept_C["run"]))
    kept_C["last"] = np.where(told_C, y_C, kept_C["last"])
    kept_C["lowest"] = np.fmin(kept_C["lowest"], y_C)


def _end_runs(kept_C: RowArray, span: int) -> RowArray:
    """Count runs that ended among those of this span, or of a new one where it is full."""
    full_C = kept_C["values"][:, 0] >= span
    for name in ("values", "runs", "longest"):
        kept_C[name][full_C] = np.stack([np.zeros(full_C.sum(), np.int64), kept_C[name][full_C, 0]], axis=1)
    kept_C["values"][:, 0] += kept_C["run"]
    kept_C["runs"][:, 0] += 1
    kept_C["longest"][:, 0] = np.maximum(kept_C["longest"][:, 0], kept_C["run"])
    return kept_C


def may_stand_still(y_CR: FloatArray) -> NDArray[np.bool_]:
    """Return whether the values of each row are all the same, missing ones left out."""
    told_CR = ~np.isnan(y_CR)
    lowest_C = np.where(told_CR, y_CR, np.inf).min(axis=1)
    highest_C = np.where(told_CR, y_CR, -np.inf).max(axis=1)
    still_C: NDArray[np.bool_] = lowest_C >= highest_C
    return still_C


def measure(kept_C: RowArray, y_CR: FloatArray) -> Standstill:
    """Return how streams stand still, from what is remembered and the values of their rings, oldest first."""
    n = len(y_CR)
    before_C = np.where(kept_C["run"] > 0, kept_C["last"], np.nan)
    value_CR = np.column_stack([before_C, y_CR])
    weight_CR = np.column_stack([kept_C["run"], np.ones(y_CR.shape, dtype=np.int64)])
    row_F, place_F = np.nonzero(~np.isnan(value_CR))
    value_F, weight_F = value_CR[row_F, place_F], weight_CR[row_F, place_F]
    begins_F = np.append(True, (row_F[1:] != row_F[:-1]) | (value_F[1:] != value_F[:-1]))[: len(row_F)]
    start_N = np.flatnonzero(begins_F)
    length_N = np.add.reduceat(weight_F, start_N) if len(start_N) else np.empty(0, dtype=np.int64)
    row_N = row_F[start_N]
    is_last_N = np.append(row_N[1:] != row_N[:-1], True)[: len(row_N)]
    run_C, end_C = np.zeros(n, dtype=np.int64), np.full(n, np.nan)
    run_C[row_N[is_last_N]] = length_N[is_last_N]
    end_C[row_N[is_last_N]] = value_F[start_N[is_last_N]]
    runs_C = np.bincount(row_N[~is_last_N], minlength=n) + kept_C["runs"].sum(axis=1)
    longest_C = kept_C["longest"].max(axis=1)
    np.maximum.at(longest_C, row_N[~is_last_N], length_N[~is_last_N])
    lowest_C = np.fmin(kept_C["lowest"], np.fmin.reduce(y_CR, axis=1))
    return Standstill(run_C, runs_C, longest_C, (end_C == 0) & (lowest_C >= 0))
