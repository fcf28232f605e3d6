"""Rivals: the econometric forecasts of returns that a network has to beat, refitted on a rolling schedule.

Returns are log returns in percent. A forecast at a cutoff is of the return cumulated over 1, 2, ... steps.

    random_walk      normal, mean zero; the mean square of all returns known at the refit, times the steps
    historical       the empirical distribution of the last 1000 returns known at every cutoff; over several steps
                     of the sums of overlapping blocks of theirs
    ewma             RiskMetrics: normal, mean zero, exponentially weighted variance (decay 0.94), times the steps
    garch            GARCH(1,1), constant mean, normal shocks
    garch_t          the same with Student-t shocks
    gjr_garch_t      GJR-GARCH(1,1), which answers losses more than gains, with Student-t shocks
    gjr_garch_skewt  the same with Hansen's skewed t
    har              log-HAR on a daily range variance, a regression and a Student-t for every horizon

What is fitted is fitted on all returns known at the refit; between refits parameters stay, and variances follow
every return up to the cutoff. Missing returns are skipped: the variance waits. Beyond one step the GARCH family's
quantiles are simulated; everything else is in closed form. Where a model cannot be fitted it keeps the parameters
it had, or, without any, falls to `ewma`, and says so.

T steps, N known returns, K cutoffs, H horizon, Q quantiles.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from forecasting.errors import TrainingError
from training.garch import (
    FEWEST_TO_FIT,
    VARIANCE_FLOOR,
    GarchFit,
    GarchModel,
    cumulated_variance,
    filter_ewma,
    filter_garch,
    fit_garch,
    next_density,
    sample_quantiles,
    simulate_quantiles,
)
from training.har import HarFit, fit_har, har_density, har_variance, sessions_needed
from training.skewed_t import SkewedT

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
Note = Callable[[str], None]

GARCH_MODELS = {
    "garch": GarchModel(asymmetric=False, shocks="normal"),
    "garch_t": GarchModel(asymmetric=False, shocks="t"),
    "gjr_garch_t": GarchModel(asymmetric=True, shocks="t"),
    "gjr_garch_skewt": GarchModel(asymmetric=True, shocks="skewt"),
}
RIVALS = ("random_walk", "historical", "ewma", *GARCH_MODELS, "har")

FEWEST_RETURNS = 20
"""Known returns, or block sums of them, below which there is no distribution to speak of."""

HISTORICAL_WINDOW = 1000
"""Returns the historical distribution looks back on, about four years of sessions."""


class RivalForecast(NamedTuple):
    """What a rival says at each cutoff of the cumulated returns, in percent."""

    quantiles_KHQ: FloatArray
    variance_KH: FloatArray
    first: SkewedT | None
    """The one-step density, of shape `(K,)`; None for a rival that has none."""

    def take(self, rows: IntArray) -> "RivalForecast":
        """Return the forecasts at these positions."""
        first = None if self.first is None else SkewedT(*(part_K[rows] for part_K in self.first))
        return RivalForecast(self.quantiles_KHQ[rows], self.variance_KH[rows], first)


class _Asked(NamedTuple):
    """The cutoffs between two refits, and what is known at them."""

    returns_N: FloatArray
    """Known returns up to the last of the cutoffs."""
    variances_N: FloatArray
    """Range variances of the same steps for `har`, empty for others."""
    counts_K: IntArray
    """Returns known at each cutoff."""
    n_fit: int
    """Returns known at the refit."""
    horizon: int
    quantiles: tuple[float, ...]
    seed: int


def forecast_rival(
    name: str,
    returns_T: FloatArray,
    cutoffs_K: IntArray,
    horizon: int,
    quantiles: Sequence[float],
    *,
    refit_every: int,
    variances_T: FloatArray | None = None,
    first_fit: int | None = None,
    seed: int = 1,
    note: Note | None = None,
) -> RivalForecast:
    """Forecast the cumulated returns of one series at every cutoff.

    Args:
        name: one of `RIVALS`.
        returns_T: log returns in percent, NaN where none is known.
        cutoffs_K: positions of the last known return, strictly ascending.
        horizon: steps ahead.
        quantiles: probabilities, ascending.
        refit_every: steps between fits; each is at the first cutoff that is due.
        variances_T: for `har`, a daily range variance in percent squared; NaN where none is known.
        first_fit: position of the last return the first fit sees; the first cutoff unless it is given.
        seed: of the simulated paths.
        note: told where a model could not be fitted and what answered instead.

    Raises:
        TrainingError: too few returns are known at the first fit, `har` is given no variances, or the cutoffs
            do not ascend from the first fit to the end of the returns.
    """
    first_fit = int(cutoffs_K[0]) if first_fit is None else first_fit
    validate_rival(name, has_variances=variances_T is not None)
    _validate_cutoffs(cutoffs_K, first_fit, len(returns_T))
    known_T = np.isfinite(returns_T)
    if name == "har" and variances_T is not None:
        known_T &= np.isfinite(variances_T)
    counts_T = np.cumsum(known_T)
    _require_returns(name, int(counts_T[first_fit]), horizon)
    answer = _Answerer(name, note)
    parts = []
    for refit, chosen_K in _schedule(cutoffs_K, first_fit, refit_every):
        counts_K = counts_T[chosen_K]
        known_N = np.flatnonzero(known_T)[: counts_K[-1]]
        variances_N = np.empty(0) if variances_T is None else variances_T[known_N]
        n_fit = int(counts_T[refit])
        asked = _Asked(returns_T[known_N], variances_N, counts_K, n_fit, horizon, tuple(quantiles), seed)
        parts.append(answer(asked, refit))
    return join_forecasts(parts)


def has_density(name: str) -> bool:
    """Return whether a rival tells the one-step density, and not quantiles alone."""
    return name != "historical"


def join_forecasts(parts: Sequence[RivalForecast]) -> RivalForecast:
    """Put forecasts of one rival one after the other."""
    quantiles, variances, densities = zip(*parts, strict=True)
    told = [density for density in densities if density is not None]
    first = SkewedT(*map(np.concatenate, zip(*told, strict=True))) if told else None
    return RivalForecast(np.concatenate(quantiles), np.concatenate(variances), first)


def validate_rival(name: str, *, has_variances: bool) -> None:
    """Check that there is such a rival, and that it is given what it takes.

    Raises:
        TrainingError: one of them is not so.
    """
    if name not in RIVALS:
        raise TrainingError(f"no rival is called {name!r}; there are {', '.join(RIVALS)}")
    if name == "har" and not has_variances:
        raise TrainingError("rival 'har' takes a daily range variance, such as garman_klass, and was given none")


def _validate_cutoffs(cutoffs_K: IntArray, first_fit: int, n_returns: int) -> None:
    ascending = bool((np.diff(cutoffs_K) > 0).all())
    if not ascending or not 0 <= first_fit <= cutoffs_K[0] or cutoffs_K[-1] >= n_returns:
        raise TrainingError(
            f"cutoffs must ascend from the first fit ({first_fit}) to the last return ({n_returns - 1}); "
            f"they run from {cutoffs_K[0]} to {cutoffs_K[-1]}"
        )


def _require_returns(name: str, count: int, horizon: int) -> None:
    needed = FEWEST_RETURNS + (horizon - 1 if name == "historical" else 0)
    if count < needed:
        raise TrainingError(f"rival {name!r} has {count} known returns at its first fit; it needs {needed}")


def _schedule(cutoffs_K: IntArray, first_fit: int, refit_every: int) -> Iterator[tuple[int, IntArray]]:
    """Yield each refit, as the position of the last return it sees, and the cutoffs up to the next one.

    The second refit is at the first cutoff that lies `refit_every` steps or more after the first fit, the third
    at the first that lies twice as many after it: the folds of a walk-forward evaluation.
    """
    fold_K = (cutoffs_K - first_fit) // refit_every
    for fold in np.unique(fold_K):
        chosen_K = cutoffs_K[fold_K == fold]
        yield int(first_fit if fold == 0 else chosen_K[0]), chosen_K


class _Answerer:
    """A rival with the parameters of its last fit."""

    def __init__(self, name: str, note: Note | None) -> None:
        self._name = name
        self._note = note or (lambda _: None)
        self._garch: GarchFit | None = None
        self._har: HarFit | None = None

    def __call__(self, asked: _Asked, refit: int) -> RivalForecast:
        """Fit on what was known at the refit, and answer."""
        match self._name:
            case "random_walk":
                return _random_walk(asked)
            case "historical":
                return _historical(asked)
            case "ewma":
                return _ewma(asked)
            case "har":
                self._refit_har(asked, refit)
                return _ewma(asked) if self._har is None else _har(asked, self._har)
        self._refit_garch(asked, refit)
        return _ewma(asked) if self._garch is None else _garch(asked, self._garch)

    def _refit_garch(self, asked: _Asked, refit: int) -> None:
        if asked.n_fit < FEWEST_TO_FIT:
            self._say(refit, f"{asked.n_fit} known returns, {FEWEST_TO_FIT} are needed", self._garch)
            return
        found = fit_garch(GARCH_MODELS[self._name], asked.returns_N[: asked.n_fit])
        if found is None:
            self._say(refit, "nothing moved, or the likelihood has no sound maximum", self._garch)
        self._garch = found or self._garch

    def _refit_har(self, asked: _Asked, refit: int) -> None:
        needed = sessions_needed(asked.horizon)
        if asked.n_fit < needed:
            self._say(refit, f"{asked.n_fit} sessions with return and variance, {needed} are needed", self._har)
            return
        found = fit_har(asked.returns_N[: asked.n_fit], asked.variances_N[: asked.n_fit], asked.horizon)
        if found is None:
            self._say(refit, "nothing moved", self._har)
        self._har = found or self._har

    def _say(self, refit: int, why: str, before: GarchFit | HarFit | None) -> None:
        instead = "ewma answers" if before is None else "the parameters of the last fit stay"
        self._note(f"{self._name} could not be fitted at step {refit}: {why}; {instead}")


def _random_walk(asked: _Asked) -> RivalForecast:
    variance = max(float(np.square(asked.returns_N[: asked.n_fit]).mean()), VARIANCE_FLOOR)
    return _normal(np.full(len(asked.counts_K), variance), asked)


def _ewma(asked: _Asked) -> RivalForecast:
    return _normal(filter_ewma(asked.returns_N, asked.n_fit)[asked.counts_K - 1], asked)


def _normal(variance_K: FloatArray, asked: _Asked) -> RivalForecast:
    """Return normal forecasts of mean zero whose variance grows with the steps."""
    variance_KH = variance_K[:, None] * np.arange(1, asked.horizon + 1)
    zeros_KH = np.zeros_like(variance_KH)
    return _densities(SkewedT(zeros_KH, np.sqrt(variance_KH), zeros_KH, zeros_KH), variance_KH, asked)


def _har(asked: _Asked, fit: HarFit) -> RivalForecast:
    variance_KH = np.maximum(har_variance(fit, asked.variances_N, asked.counts_K), VARIANCE_FLOOR)
    return _densities(har_density(fit, variance_KH), variance_KH, asked)


def _densities(density: SkewedT, variance_KH: FloatArray, asked: _Asked) -> RivalForecast:
    """Return forecasts whose densities of every step, `(K, H)`, are known."""
    each = SkewedT(*(part_KH[..., None] for part_KH in density))
    first = SkewedT(*(part_KH[:, 0] for part_KH in density))
    return RivalForecast(each.quantile(np.array(asked.quantiles)), variance_KH, first)


def _garch(asked: _Asked, fit: GarchFit) -> RivalForecast:
    variance_K = filter_garch(fit, asked.returns_N, asked.n_fit)[asked.counts_K - 1]
    first = next_density(fit, variance_K)
    quantiles_KQ = SkewedT(*(part_K[:, None] for part_K in first)).quantile(np.array(asked.quantiles))
    quantiles_KHQ = quantiles_KQ[:, None]
    if asked.horizon > 1:
        quantiles_KHQ = simulate_quantiles(fit, variance_K, asked.horizon, asked.quantiles, seed=asked.seed)
        quantiles_KHQ[:, 0] = quantiles_KQ
    return RivalForecast(quantiles_KHQ, cumulated_variance(fit, variance_K, asked.horizon), first)


def _historical(asked: _Asked) -> RivalForecast:
    shape = len(asked.counts_K), asked.horizon
    quantiles_KHQ, variance_KH = np.empty((*shape, len(asked.quantiles))), np.empty(shape)
    for length in np.unique(np.minimum(asked.counts_K, HISTORICAL_WINDOW)):
        at_K = np.flatnonzero(np.minimum(asked.counts_K, HISTORICAL_WINDOW) == length)
        windows_KW = asked.returns_N[asked.counts_K[at_K][:, None] + np.arange(-length, 0)]
        sums_KW = np.zeros_like(windows_KW)
        for h in range(asked.horizon):
            sums_KW = sums_KW[:, : length - h] + windows_KW[:, h:]
            quantiles_KHQ[at_K, h] = sample_quantiles(sums_KW, asked.quantiles)
            variance_KH[at_K, h] = np.maximum(sums_KW.var(axis=1), VARIANCE_FLOOR)
    return RivalForecast(quantiles_KHQ, variance_KH, None)
