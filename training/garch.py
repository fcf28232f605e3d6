"""The GARCH family: fitted by `arch`, filtered and simulated here.

`GARCH(1,1)` (Bollerslev, 1986) and `GJR-GARCH(1,1)` (Glosten, Jagannathan and Runkle, 1993) with a constant mean
and normal, Student-t or skewed t shocks (Hansen, 1994). Returns are log returns in percent.

N known returns, K cutoffs, H horizon, Q quantiles, P simulated paths.
"""

import warnings
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter
from scipy.stats import qmc

from training.skewed_t import SkewedT

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

Shocks = Literal["normal", "t", "skewt"]

FEWEST_TO_FIT = 250
"""Known returns, about a year of sessions, below which the likelihood tells too little of the parameters."""

VARIANCE_FLOOR = 1e-8
"""Smallest variance said, in percent squared: a hundredth of a basis point a step, for prices that stand still."""

PATHS = 4096
"""Simulated paths; a power of two, as Sobol's sequence is balanced there."""

MOST_SHOCKS = 2**24
"""Shocks held at once (128 MiB); long horizons get fewer paths."""

CHUNK = 2**17
"""Values simulated at once: what stays in a processor's cache."""

MOST_VARIANCE = 100.0
"""Largest mean of the fitted variances, in mean squares of the returns: where most returns are alike, the most
likely parameters can let the variance explode."""

DECIMALS = 10
"""Of returns in units of their root mean square, as the optimiser sees them."""

BACKCAST = 75
"""Returns whose decaying mean square starts the recursion, as in `arch`."""

DECAY = 0.94
"""Decay of EWMA variances a step (RiskMetrics, 1996), and of the mean that starts a recursion."""


class GarchModel(NamedTuple):
    """Which member of the family."""

    asymmetric: bool
    shocks: Shocks


class GarchFit(NamedTuple):
    """Parameters of `variance = omega + (alpha + gamma [shock < 0]) shock^2 + beta variance`, in percent."""

    mean: float
    omega: float
    alpha: float
    gamma: float
    beta: float
    tail: float
    """Inverse degrees of freedom of the shocks, 0 for normal ones."""
    skew: float
    downside: float
    """Share of the shocks' variance that lies below zero: one half where they are symmetric."""


def fit_garch(model: GarchModel, returns_N: FloatArray) -> GarchFit | None:
    """Fit by maximum likelihood; None where nothing varies, the optimiser does not converge, or variances explode.

    Returns are divided by their root mean square and rounded first, so that the optimiser sees the same problem,
    to the last bit, whatever the units.
    """
    if float(np.var(returns_N)) <= VARIANCE_FLOOR:
        return None
    unit = float(np.sqrt(np.square(returns_N).mean()))
    scaled_N = np.round(returns_N / unit, DECIMALS)
    for start in (None, _usual_start(model)):
        fit = _maximise(model, scaled_N, start)
        if fit is not None and is_sound(fit, scaled_N):
            return fit._replace(mean=fit.mean * unit, omega=fit.omega * unit**2)
    return None


def _usual_start(model: GarchModel) -> FloatArray:
    """Return the parameters daily returns of unit variance usually have, where the optimiser's own start fails."""
    dynamics = [0.0, 0.03, 0.02, 0.08, 0.9] if model.asymmetric else [0.0, 0.03, 0.07, 0.9]
    shocks: dict[Shocks, list[float]] = {"normal": [], "t": [8.0], "skewt": [8.0, 0.0]}
    return np.array(dynamics + shocks[model.shocks])


def _maximise(model: GarchModel, scaled_N: FloatArray, start: FloatArray | None) -> GarchFit | None:
    from arch import arch_model  # takes a second to import, which a command that fits nothing need not wait

    order = int(model.asymmetric)
    built = arch_model(scaled_N, mean="Constant", vol="GARCH", o=order, dist=model.shocks, rescale=False)
    # What it warns of is convergence, which is asked for below, and steps the optimiser takes back itself.
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            result = built.fit(disp="off", show_warning=False, starting_values=start)
        except (ValueError, ArithmeticError, np.linalg.LinAlgError):
            return None
    if result.convergence_flag or not np.isfinite(result.params).all():
        return None
    found = result.params.to_dict()
    shocks = np.array([found[name] for name in ("nu", "eta", "lambda") if name in found])
    downside = float(built.distribution.partial_moment(2, 0.0, shocks)) if len(shocks) == 2 else 0.5
    return GarchFit(
        mean=found["mu"],
        omega=found["omega"],
        alpha=found["alpha[1]"],
        gamma=found.get("gamma[1]", 0.0),
        beta=found["beta[1]"],
        tail=1.0 / shocks[0] if len(shocks) else 0.0,
        skew=found.get("lambda", 0.0),
        downside=downside,
    )


def is_sound(fit: GarchFit, returns_N: FloatArray) -> bool:
    """Return whether the variances of a fit stay within sight of the returns."""
    fitted_N = filter_garch(fit, returns_N, len(returns_N))
    return bool(fitted_N.mean() <= MOST_VARIANCE * np.square(returns_N).mean())


def backcast(shocks_N: FloatArray) -> float:
    """Return the variance a recursion starts from: the decaying mean square of the first shocks."""
    first = shocks_N[:BACKCAST]
    weights = DECAY ** np.arange(len(first))
    return float(weights @ np.square(first) / weights.sum())


def filter_garch(fit: GarchFit, returns_N: FloatArray, n_known: int) -> FloatArray:
    """Return, after each return, the variance of the next one.

    The recursion starts from the first `n_known` returns alone, those a fit may look at.
    """
    shocks_N = returns_N - fit.mean
    before = backcast(shocks_N[:n_known])
    start = fit.omega + (fit.alpha + 0.5 * fit.gamma + fit.beta) * before
    response_N = np.where(shocks_N < 0, fit.alpha + fit.gamma, fit.alpha)
    drive_N = fit.omega + response_N * np.square(shocks_N)
    return _recurse(drive_N, fit.beta, start)


def filter_ewma(returns_N: FloatArray, n_known: int) -> FloatArray:
    """Return, after each return, the exponentially weighted mean square (RiskMetrics, 1996), begun as above."""
    return _recurse((1 - DECAY) * np.square(returns_N), DECAY, backcast(returns_N[:n_known]))


def _recurse(drive_N: FloatArray, decay: float, start: float) -> FloatArray:
    variance_N, _ = lfilter([1.0], [1.0, -decay], drive_N, zi=[decay * start])
    floored: FloatArray = np.maximum(variance_N, VARIANCE_FLOOR)
    return floored


def cumulated_variance(fit: GarchFit, variance_K: FloatArray, horizon: int) -> FloatArray:
    """Return the `(K, H)` expected variance of returns cumulated over 1, 2, ... steps, in closed form."""
    persistence = fit.alpha + fit.gamma * fit.downside + fit.beta
    expected_HK = [variance_K]
    for _ in range(1, horizon):
        expected_HK.append(fit.omega + persistence * expected_HK[-1])
    return np.cumsum(expected_HK, axis=0).T


def next_density(fit: GarchFit, variance_K: FloatArray) -> SkewedT:
    """Return the density of the next return at each cutoff."""
    zeros_K = np.zeros_like(variance_K)
    return SkewedT(zeros_K + fit.mean, np.sqrt(variance_K), zeros_K + fit.tail, zeros_K + fit.skew)


def count_paths(horizon: int) -> int:
    """Return how many paths are simulated, a power of two."""
    return int(min(PATHS, 2 ** int(np.log2(MOST_SHOCKS / horizon))))


def draw_shocks(fit: GarchFit, horizon: int, seed: int) -> FloatArray:
    """Return `(H, P)` shocks of mean zero and variance one, from a scrambled Sobol sequence (Owen, 1998).

    Evenly spread points give tail quantiles that independent ones need many times as many for.
    """
    paths = count_paths(horizon)
    uniform_HP = qmc.Sobol(horizon, rng=seed).random(paths).T
    uniform_HP = np.clip(uniform_HP, 0.5 / paths**2, 1 - 0.5 / paths**2)
    return SkewedT(*np.array([0.0, 1.0, fit.tail, fit.skew])[:, None]).quantile(uniform_HP)


def simulate_quantiles(
    fit: GarchFit, variance_K: FloatArray, horizon: int, quantiles: Sequence[float], *, seed: int
) -> FloatArray:
    """Return `(K, H, Q)` quantiles of the cumulated return from simulated paths.

    Every cutoff is given the same shocks, so that a forecast depends on nothing but its own variance.
    """
    shocks_HP = draw_shocks(fit, horizon, seed)
    size = max(1, CHUNK // shocks_HP.shape[1])
    chunks = [variance_K[k : k + size] for k in range(0, len(variance_K), size)]
    return np.concatenate([_simulate(fit, chunk_K, shocks_HP, quantiles) for chunk_K in chunks])


def _simulate(
    fit: GarchFit, variance_K: FloatArray, shocks_HP: FloatArray, quantiles: Sequence[float]
) -> FloatArray:
    variance_KP = np.repeat(variance_K[:, None], shocks_HP.shape[1], axis=1)
    total_KP = np.zeros_like(variance_KP)
    found_KHQ = np.empty((len(variance_K), len(shocks_HP), len(quantiles)))
    for h, shock_P in enumerate(shocks_HP):
        shock_KP = np.sqrt(variance_KP) * shock_P
        total_KP += fit.mean + shock_KP
        found_KHQ[:, h] = sample_quantiles(total_KP, quantiles)
        response_P = np.where(shock_P < 0, fit.alpha + fit.gamma, fit.alpha)
        variance_KP = fit.omega + response_P * np.square(shock_KP) + fit.beta * variance_KP
    return found_KHQ


def sample_quantiles(samples_KP: FloatArray, quantiles: Sequence[float]) -> FloatArray:
    """Return `(K, Q)` quantiles of samples, each standing for the middle of its share (Hazen, 1914)."""
    ordered_KP = np.sort(samples_KP, axis=1)
    last = ordered_KP.shape[1] - 1
    position_Q = np.clip(np.asarray(quantiles) * (last + 1) - 0.5, 0, last)
    below_Q = np.floor(position_Q).astype(np.int64)
    low_KQ, high_KQ = ordered_KP[:, below_Q], ordered_KP[:, np.minimum(below_Q + 1, last)]
    found_KQ: FloatArray = low_KQ + (position_Q - below_Q) * (high_KQ - low_KQ)
    return found_KQ
