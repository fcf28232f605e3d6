"""Drift: whether what is observed of late moves unlike what came before.

N series, T steps, F features, W steps of a window.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

LONGEST = 2000
"""Steps of the past that are looked at; the distances of all pairs are held."""
MOST_SERIES = 25
"""Series that are looked at, evenly spread among all."""
FEWEST_WINDOWS = 8
"""Windows the past must hold: with fewer there is nothing to say what is usual."""
STRIDES = 4
"""Windows of the past begin so many times within one."""


@dataclass(frozen=True)
class Drift:
    """What the newest window is beside those of the past."""

    statistic: float
    """Its energy distance from the past, the mean over series."""
    usual: float
    """The median of that of the windows of the past."""
    p_value: float
    """The share of windows that are as far or farther; itself counts. NaN where the past is too short."""


def measure_drift(x_NT: FloatArray, window: int, season: int, gap: int = 0) -> Drift:
    """Compare the newest window with the past by the energy distance (Szekely and Rizzo, 2004).

    Of every series it looks at the changes from step to step, and at how they differ from those a season ago, in
    units of their spread in the past: what a network sees that takes the level off. What distance is usual is
    told by subsampling (Politis, Romano and Wolf, 1999): every window of the same length in the past is compared
    with the rest of the past just so, and windows keep whatever dependence there is within them. All series share
    the windows, and so what they have in common.

    Args:
        x_NT: the past and, at its end, the newest window, on the modelling scale; NaN where missing.
        window: steps of the newest window.
        season: steps of a season.
        gap: steps between the past and the newest window that belong to neither.
    """
    x_NT = _spread_over(x_NT)[:, -(LONGEST + gap + window + season + 1) :]
    features_NTF = _features(x_NT, season)
    between = slice(features_NTF.shape[1] - window - gap, features_NTF.shape[1] - window)
    features_NTF = np.delete(features_NTF, between, axis=1)
    past = features_NTF.shape[1] - window
    if past < FEWEST_WINDOWS * window:
        return Drift(float("nan"), float("nan"), float("nan"))
    starts = np.arange(0, past - window + 1, max(1, window // STRIDES))
    distances = np.array([_distances(f_TF, past, window, starts) for f_TF in _scaled(features_NTF, past)])
    usable_N = np.isfinite(distances[:, -1])
    if not usable_N.any():
        return Drift(float("nan"), float("nan"), float("nan"))
    with np.errstate(invalid="ignore"):
        known = np.isfinite(distances[usable_N])
        means = np.where(known, distances[usable_N], 0.0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    usual, newest = means[:-1], float(means[-1])
    p_value = (1 + int((usual >= newest).sum())) / (1 + len(usual))
    return Drift(newest, float(np.median(usual)), p_value)


def _spread_over(x_NT: FloatArray) -> FloatArray:
    chosen = np.unique(np.linspace(0, len(x_NT) - 1, min(MOST_SERIES, len(x_NT))).round().astype(int))
    spread: FloatArray = x_NT[chosen]
    return spread


def _features(x_NT: FloatArray, season: int) -> FloatArray:
    """Return the changes from step to step, and by how much they differ from those a season ago.

    `(N, T - season - 1, F)`. Neither wanders, even where the level does.
    """
    by_step = np.diff(x_NT, axis=1)
    return np.stack([by_step[:, season:], by_step[:, season:] - by_step[:, :-season]], axis=-1)


def _scaled(features_NTF: FloatArray, past: int) -> FloatArray:
    """Divide by the spread in the past; a feature that never moved there says nothing."""
    known = np.isfinite(features_NTF[:, :past])
    count = np.maximum(known.sum(axis=1, keepdims=True), 1)
    mean = np.where(known, features_NTF[:, :past], 0.0).sum(axis=1, keepdims=True) / count
    squares = np.where(known, features_NTF[:, :past] - mean, 0.0) ** 2
    spread = np.sqrt(squares.sum(axis=1, keepdims=True) / count)
    return features_NTF / np.where(spread > 0, spread, np.nan)


def _distances(f_TF: FloatArray, past: int, window: int, starts: NDArray[np.int64]) -> FloatArray:
    """Return the energy distance of each window from the rest of the past, and last that of the newest."""
    known_T: NDArray[np.bool_] = np.asarray(np.isfinite(f_TF).all(axis=1))
    f_TF = np.where(known_T[:, None], f_TF, 0.0)
    apart_TT = np.sqrt(np.square(f_TF[:, None] - f_TF[None]).sum(axis=2)) * (known_T[:, None] & known_T[None])
    # Sums over rectangles of pairs, each by four look-ups.
    sums = np.zeros((len(f_TF) + 1, len(f_TF) + 1))
    np.cumsum(np.cumsum(apart_TT, axis=0), axis=1, out=sums[1:, 1:])
    counts = np.concatenate([[0], np.cumsum(known_T)])
    stops = starts + window
    own = sums[stops, stops] - sums[starts, stops] - sums[stops, starts] + sums[starts, starts]
    with_past = sums[stops, past] - sums[starts, past]
    whole = sums[past, past]
    n_own, n_past = counts[stops] - counts[starts], counts[past]
    rest, n_rest = whole - 2 * with_past + own, n_past - n_own
    usual = _energy(own, with_past - own, rest, n_own, n_rest)
    last = len(f_TF)
    newest_own = sums[last, last] - 2 * sums[past, last] + whole
    newest = _energy(newest_own, sums[last, past] - whole, whole, counts[last] - n_past, n_past)
    return np.append(usual, newest)


def _energy(
    within: FloatArray, between: FloatArray, rest: FloatArray, n_own: NDArray[np.int64], n_rest: NDArray[np.int64]
) -> FloatArray:
    """Return the energy distance from the sums over pairs; NaN with fewer than two values on a side."""
    enough = (n_own > 1) & (n_rest > 1)
    n, m = np.maximum(n_own, 1).astype(np.float64), np.maximum(n_rest, 1).astype(np.float64)
    return np.where(enough, 2.0 * between / (n * m) - within / n**2 - rest / m**2, np.nan)
