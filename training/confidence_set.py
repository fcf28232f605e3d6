"""Which of many forecasters may be the best: the Model Confidence Set. The room of `arch`'s bootstrap.

K cutoffs, M forecasters.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

RESAMPLES = 1000
"""Bootstrap samples: a p-value is known to about 0.01."""


@dataclass(frozen=True)
class ConfidenceSet:
    """The forecasters among which the best one is, with the promised confidence."""

    p_values: dict[str, float]
    """For each forecaster, the smallest alpha at which it is left out; 1 for the one that seems best."""
    included: tuple[str, ...]
    """Those that may be the best: all whose p-value is above alpha, as they were given."""
    block: int
    """Mean length of the bootstrap's blocks, in cutoffs."""
    n_cutoffs: int


def model_confidence_set(
    losses: Mapping[str, FloatArray], alpha: float = 0.1, *, lags: int = 0, seed: int = 1
) -> ConfidenceSet:
    """Return which forecasters cannot be told from the best one: Hansen, Lunde and Nason (2011, Econometrica 79).

    The range statistic and a stationary bootstrap of `RESAMPLES` samples. The mean block is K^(1/3) cutoffs, and
    twice as long as forecasts overlap at least. Data that tell little give a large set: being in it is no praise.

    Forecasters of equal losses share a p-value. One that is worse than another by the same amount at every cutoff,
    or whose loss is infinite at one while another's never is, is out at p = 0, as the bootstrap cannot say.
    With fewer cutoffs than two blocks nothing can be told, and everyone is in at p = 1.

    Args:
        losses: each forecaster's `(K,)` losses by name, in time order; a cutoff where any is NaN is left out.
        alpha: probability of leaving out the best one.
        lags: cutoffs whose forecasts overlap: horizon over step, less one.
        seed: of the bootstrap; the same one gives the same p-values.
    """
    names = list(losses)
    loss_KM = np.column_stack([losses[name] for name in names])
    loss_KM = loss_KM[~np.isnan(loss_KM).any(axis=1)]
    n_cutoffs = len(loss_KM)
    block = max(2 * (lags + 1), math.ceil(n_cutoffs ** (1 / 3)))
    p_M = np.ones(len(names)) if n_cutoffs < 2 * block else _p_values(loss_KM, block, alpha, seed)
    p_values = {name: float(p) for name, p in zip(names, p_M, strict=True)}
    included = tuple(name for name in names if p_values[name] > alpha)
    return ConfidenceSet(p_values, included, block, n_cutoffs)


def _p_values(loss_KM: FloatArray, block: int, alpha: float, seed: int) -> FloatArray:
    from arch.bootstrap import MCS  # takes a second to import, which a command that compares nothing need not wait

    like_M = _stand_ins(loss_KM)
    tested = np.unique(like_M[like_M >= 0])
    p_M = np.zeros(loss_KM.shape[1])
    p_M[tested] = 1.0
    if len(tested) > 1:
        found = MCS(loss_KM[:, tested], size=alpha, reps=RESAMPLES, block_size=block, method="R", seed=seed)
        found.compute()
        p_M[tested[found.pvalues.index.to_numpy()]] = found.pvalues["Pvalue"].to_numpy()
    shared_M: FloatArray = np.where(like_M >= 0, p_M[like_M], 0.0)
    return shared_M


def _stand_ins(loss_KM: FloatArray) -> NDArray[np.int64]:
    """Return for each forecaster the one whose p-value is its own: mostly itself, or -1 for one surely worse.

    The bootstrap divides by the spread of each pair's difference, so no pair may have none.
    """
    mean_M = loss_KM.mean(axis=0)
    like_M = np.full(loss_KM.shape[1], -1)
    if not np.isfinite(mean_M).any():
        # Everyone failed once: nobody is better.
        return np.zeros_like(like_M)
    kept: list[int] = []
    for m in np.argsort(mean_M, kind="stable"):
        if not np.isfinite(mean_M[m]):
            continue
        spread = [float(np.ptp(loss_KM[:, m] - loss_KM[:, k])) for k in kept]
        size = float(np.abs(loss_KM[:, m]).max())
        steady = [k for k, s in zip(kept, spread, strict=True) if s <= 1e-12 * size]
        if not steady:
            kept.append(int(m))
            like_M[m] = m
        elif mean_M[m] - mean_M[steady[0]] <= 1e-12 * size:
            like_M[m] = steady[0]
    return like_M
