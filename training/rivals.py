"""Rivals asked where forecasters are asked, so that leaderboards, tests and pictures take them alike.

B questions (a series and a cutoff each), H horizon, Q quantiles, N series, T steps.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from forecasting.errors import TrainingError
from forecasting.panel import Panel
from forecasting.spec import ForecasterSpec
from forecasting.transforms import apply_transform, invert_transform
from training.backtest import Backtest, build_backtest, find_questions
from training.econometrics import (
    Note,
    RivalForecast,
    forecast_rival,
    has_density,
    join_forecasts,
    validate_rival,
)
from training.skewed_t import SkewedT

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


class SeriesQuestions(NamedTuple):
    """What a rival is asked of one series: plain data, to be handed to another process."""

    name: str
    """Of the rival."""
    returns_T: FloatArray
    variances_T: FloatArray | None
    cutoffs_K: IntArray
    horizon: int
    quantiles: tuple[float, ...]
    refit_every: int
    seed: int


class SeriesAnswers(NamedTuple):
    """What a rival answers: NaN where it cannot."""

    forecast: RivalForecast
    notes: tuple[str, ...]
    """What could not be fitted, and what answered instead."""


class MapSeries(Protocol):
    """How the series are gone through: the built-in `map`, or one that does them side by side, in order."""

    def __call__(
        self, answer: Callable[[SeriesQuestions], SeriesAnswers], questions: Iterable[SeriesQuestions], /
    ) -> Iterable[SeriesAnswers]:
        """Return the answers in the order of the questions."""


def answer_series(questions: SeriesQuestions) -> SeriesAnswers:
    """Ask a rival about one series; one that is too short for it fails alone."""
    name, returns_T, variances_T, cutoffs_K, horizon, quantiles, refit_every, seed = questions
    notes: list[str] = []
    try:
        forecast = forecast_rival(
            name,
            returns_T,
            cutoffs_K,
            horizon,
            quantiles,
            refit_every=refit_every,
            variances_T=variances_T,
            seed=seed,
            note=notes.append,
        )
    except TrainingError as error:
        none_KH = np.full((len(cutoffs_K), horizon), np.nan)
        none_KHQ = np.full((*none_KH.shape, len(quantiles)), np.nan)
        density = SkewedT(*np.full((4, len(cutoffs_K)), np.nan))
        forecast = RivalForecast(none_KHQ, none_KH, density if has_density(name) else None)
        notes.append(str(error))
    return SeriesAnswers(forecast, tuple(notes))


def log_returns(prices_NT: FloatArray) -> FloatArray:
    """Return log returns in percent since the last price there was, as `(N, T)`; NaN where there is no price.

    The first return after missing sessions is that of all of them.
    """
    x_TN = pd.DataFrame(apply_transform(prices_NT, "log_return").T)
    return (x_TN - x_TN.ffill().shift()).to_numpy().T


def ask_rival(
    name: str,
    panel: Panel,
    spec: ForecasterSpec,
    series_B: IntArray,
    cutoff_B: IntArray,
    *,
    refit_every: int,
    variances_NT: FloatArray | None = None,
    seed: int = 1,
    note: Note | None = None,
    map_series: MapSeries = map,
) -> RivalForecast:
    """Return a rival's forecasts, `(B, ...)`, of cumulated log returns in percent; NaN for a series too short.

    Args:
        name: one of `RIVALS`.
        panel: prices; nothing after a cutoff is used at it.
        spec: for its horizon and quantiles.
        series_B: whom to ask about, with `cutoff_B` as `find_questions` returns them.
        cutoff_B: when.
        refit_every: steps between refits.
        variances_NT: for `har`, daily range variances in percent squared on the panel's grid.
        seed: of simulated paths.
        note: told, with the name of the series, what could not be fitted and what answered instead.
        map_series: how the series are gone through.

    Raises:
        TrainingError: there is no such rival, or `har` is given no variances.
    """
    validate_rival(name, has_variances=variances_NT is not None)
    tell = note or (lambda _: None)
    returns_NT = log_returns(panel.y_NT)
    rows = [np.flatnonzero(series_B == n) for n in np.unique(series_B)]
    questions = [
        SeriesQuestions(
            name,
            returns_NT[series_B[row[0]]],
            None if variances_NT is None else variances_NT[series_B[row[0]]],
            cutoff_B[row],
            spec.horizon,
            spec.quantiles,
            refit_every,
            seed,
        )
        for row in rows
    ]
    answers = list(map_series(answer_series, questions))
    for row, answer in zip(rows, answers, strict=True):
        for text in answer.notes:
            tell(f"series {panel.unique_ids[series_B[row[0]]]!r}: {text}")
    order_B = np.argsort(np.concatenate(rows))
    return join_forecasts([answer.forecast for answer in answers]).take(order_B)


def rival_backtest(
    name: str,
    panel: Panel,
    spec: ForecasterSpec,
    cutoffs: Sequence[int],
    *,
    refit_every: int,
    history_needed: int,
    in_sample: int,
    variances_NT: FloatArray | None = None,
    seed: int = 1,
    note: Note | None = None,
    map_series: MapSeries = map,
) -> Backtest:
    """Ask a rival at every series and cutoff a forecaster would be asked; see `run_backtest` and `ask_rival`.

    Raises:
        TrainingError: the target is no price, there is no such rival, `har` is given no variances, or no series
            can be asked at any cutoff.
    """
    if spec.transform != "log_return":
        raise TrainingError(f"rival {name!r} forecasts returns: the target takes transform log_return")
    series_B, cutoff_B = find_questions(panel, cutoffs, spec.horizon, history_needed)
    answer = ask_rival(
        name,
        panel,
        spec,
        series_B,
        cutoff_B,
        refit_every=refit_every,
        variances_NT=variances_NT,
        seed=seed,
        note=note,
        map_series=map_series,
    )
    x_B = apply_transform(panel.y_NT[series_B, cutoff_B], spec.transform)
    quantiles_BHQ = invert_transform(x_B[:, None, None] + answer.quantiles_KHQ, spec.transform)
    return build_backtest(spec, panel, series_B, cutoff_B, quantiles_BHQ, in_sample=in_sample)
