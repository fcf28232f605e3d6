"""Long horizons of a few sensors, by the protocol of the ETT data set.

Three blocks of rows in the order of time; each channel standardised by the training rows; squared and absolute
error on the standardised values, one mean over windows, horizon and channels; every test window, none dropped.

C channels, T rows, L input_size, H horizon.
"""

import statistics
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from benchmarks.recipes import ETT_MODELS, RECOMMENDED, Recipe
from benchmarks.report import OURS, Report, finish, say
from forecasting.calendar import parse_freq
from forecasting.covariates import Covariates
from forecasting.forecaster import Forecaster
from forecasting.panel import Columns, Panel
from forecasting.spec import (
    CovariatesSpec,
    ForecasterSpec,
    NaiveSpec,
    NetworkSpec,
    RidgeSpec,
    SeasonalNaiveSpec,
    StaticSpec,
)
from training.baselines import fit_baseline
from training.fit import fit, pick_device
from training.windows import PanelTensors, Windows

FloatArray = NDArray[np.float64]
AT_ONCE = 1024
Predict = Callable[[FloatArray, str], FloatArray]


class Data(NamedTuple):
    """Standardised channels and where training and validation end and the test block ends."""

    panel: Panel
    borders: tuple[int, int, int]


class Task(NamedTuple):
    """One horizon: the windows to fit on and the question to answer."""

    data: Data
    input_size: int
    horizon: int
    season: int
    train: Windows
    validation: Windows

    def spec(self, network: NetworkSpec, covariates: CovariatesSpec | None = None) -> ForecasterSpec:
        """Return the spec of a point forecaster of this task."""
        return ForecasterSpec(
            name="ett",
            freq=self.data.panel.calendar.freq,
            season_length=self.season,
            horizon=self.horizon,
            quantiles=(0.5,),
            level=(),
            covariates=covariates or CovariatesSpec(),
            network=network,
        )


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def add_arguments(parser: ArgumentParser) -> None:
    """Add what the protocol needs to know."""
    parser.add_argument("--csv", type=Path, required=True, help="a column of dates and one a channel")
    parser.add_argument("--borders", type=_numbers, default=(8640, 11520, 14400), help="rows each block ends at")
    parser.add_argument("--input-size", type=int, default=336, help="look-back, fixed before looking")
    parser.add_argument("--horizons", type=_numbers, default=(96, 192, 336, 720), help="steps forecast")
    parser.add_argument("--season", type=int, default=None, help="steps; default the frequency's own")
    parser.add_argument("--seeds", type=int, default=5, help="networks, each of a seed of its own")
    parser.add_argument(
        "--model", choices=[*ETT_MODELS, "none"], default=RECOMMENDED, help="default %(default)s; none: baselines"
    )


def run(arguments: Namespace, argv: Sequence[str]) -> None:
    """Fit and score every model at every horizon, and print the table."""
    torch.set_num_threads(arguments.threads)
    data = load(arguments.csv, arguments.borders)
    season = arguments.season or data.panel.calendar.season_length
    horizons, seeds = (arguments.horizons[:1], 1) if arguments.quick else (arguments.horizons, arguments.seeds)
    report = Report()
    for horizon in horizons:
        score_horizon(report, make_task(data, arguments.input_size, horizon, season), arguments, seeds)
    for system in dict.fromkeys(row.system for row in report.rows):
        for metric in ("mse", "mae"):
            values = [report.value(_case(arguments.input_size, h), system, metric) for h in horizons]
            known = [value for value in values if value is not None]
            report.add(f"L={arguments.input_size}, mean of horizons", system, metric, statistics.fmean(known))
    finish(report, "accuracy", argv, arguments.out)


def load(path: Path, borders: tuple[int, ...]) -> Data:
    """Read the rows up to the last border, standardised by the training rows."""
    if len(borders) != 3 or list(borders) != sorted(set(borders)):
        raise SystemExit(f"--borders takes three ascending row numbers, not {borders}")
    frame = pd.read_csv(path)
    if len(frame) < borders[2]:
        raise SystemExit(f"{path.name} has {len(frame)} rows, and the last border is {borders[2]}")
    y_TC = frame.iloc[: borders[2], 1:].to_numpy(dtype=np.float64)
    train_TC = y_TC[: borders[0]]
    ds = pd.DatetimeIndex(pd.to_datetime(frame.iloc[: borders[2], 0])).as_unit("us")
    freq = pd.tseries.frequencies.to_offset(ds[1] - ds[0]).freqstr
    standard_CT = ((y_TC - train_TC.mean(axis=0)) / train_TC.std(axis=0)).T.copy()
    names = tuple(map(str, frame.columns[1:]))
    panel = Panel(
        names,
        ds,
        standard_CT,
        parse_freq(freq),
        columns=Columns(static=("unique_id",)),
        static={"unique_id": names},
    )
    return Data(panel, (borders[0], borders[1], borders[2]))


def make_task(data: Data, input_size: int, horizon: int, season: int) -> Task:
    """Return the windows of one horizon; nothing of the test block is among what is learnt from."""
    fit_until, choose_until, _ = data.borders
    known = PanelTensors(data.panel.before(choose_until), "none", pick_device("auto"), channels(data))
    train = Windows(known, input_size, horizon, 0, fit_until)
    validation = Windows(known, input_size, horizon, fit_until, choose_until)
    return Task(data, input_size, horizon, season, train, validation)


def channels(data: Data) -> CovariatesSpec:
    """Return what networks are told besides the values: which channel it is."""
    return CovariatesSpec(static=(StaticSpec(name="unique_id", categories=tuple(sorted(data.panel.unique_ids))),))


def score_horizon(report: Report, task: Task, arguments: Namespace, seeds: int) -> None:
    """Score the baselines and the network at one horizon."""
    case = _case(task.input_size, task.horizon)
    window = max(task.input_size, task.season)
    baselines: dict[str, NetworkSpec] = {
        "repeat the last value": NaiveSpec(input_size=2),
        f"seasonal naive, {task.season}": SeasonalNaiveSpec(input_size=window, season_length=task.season),
        "ridge": RidgeSpec(input_size=task.input_size),
    }
    for name, network in baselines.items():
        spec = task.spec(network)
        fitted = Forecaster(spec, fit_baseline(spec, task.train, task.validation))
        _add(report, case, name, score(task, _asked(fitted)))
    if arguments.model != "none":
        recipe = ETT_MODELS[arguments.model]
        if arguments.quick:
            recipe = recipe.quick()
        score_network(report, task, arguments.model, recipe, seeds)


def score_network(report: Report, task: Task, name: str, recipe: Recipe, seeds: int) -> None:
    """Fit a network once for each seed; score each, and the mean of their forecasts."""
    case = _case(task.input_size, task.horizon)
    spec = task.spec(recipe.network(task.input_size), channels(task.data))
    fitted, scores, seconds = [], [], 0.0
    for seed in range(1, seeds + 1):
        began = time.perf_counter()
        config = recipe.training.model_copy(update={"seed": seed})
        result = fit(spec, config, task.train, task.validation)
        seconds += time.perf_counter() - began
        fitted.append(Forecaster(spec, result.network))
        scores.append(score(task, _asked(fitted[-1])))
        say(f"{case} {name} seed {seed}: mse {scores[-1][0]:.4f}, best epoch {result.best_epoch}")
    system = f"{OURS} {name}"
    _add(report, case, system, (statistics.fmean(s[0] for s in scores), statistics.fmean(s[1] for s in scores)))
    if seeds > 1:
        report.add(case, system, "mse, standard deviation over seeds", statistics.stdev(s[0] for s in scores))
        averaged = score(task, _averaged(fitted))
        _add(report, case, f"{system}, {seeds} seeds averaged", averaged)
    report.add(case, system, "seconds a fit", seconds / seeds)


def _asked(forecaster: Forecaster) -> Predict:
    """Return the forecaster as a function of windows and the name of their channel."""

    def predict(y_BL: FloatArray, channel: str) -> FloatArray:
        known = None
        if forecaster.spec.takes_covariates:
            # The channel's name alone is told; no recipe here asks what time it is.
            anytime = pd.DatetimeIndex(np.zeros(len(y_BL), dtype="datetime64[us]"))
            known = Covariates(anytime, static={"unique_id": [channel] * len(y_BL)})
        return forecaster.predict(y_BL, known)

    return predict


def _averaged(forecasters: Sequence[Forecaster]) -> Predict:
    return lambda y_BL, channel: np.mean([_asked(one)(y_BL, channel) for one in forecasters], axis=0)


def score(task: Task, predict: Predict) -> tuple[float, float]:
    """Return mean squared and mean absolute error over every test window of every channel."""
    _, first, stop = task.data.borders
    cutoffs = np.arange(first - 1, stop - task.horizon)
    longest = max(task.input_size, task.season)
    squared, absolute, count = 0.0, 0.0, 0
    for channel, y_T in zip(task.data.panel.unique_ids, task.data.panel.y_NT, strict=True):
        rows = np.lib.stride_tricks.sliding_window_view(y_T, longest + task.horizon)
        for chosen in np.array_split(cutoffs, -(-len(cutoffs) // AT_ONCE)):
            window = rows[chosen + 1 - longest]
            error = predict(window[:, :longest], channel)[..., 0] - window[:, longest:]
            squared += float(np.square(error).sum())
            absolute += float(np.abs(error).sum())
            count += error.size
    return squared / count, absolute / count


def _add(report: Report, case: str, system: str, errors: tuple[float, float]) -> None:
    report.add(case, system, "mse", errors[0])
    report.add(case, system, "mae", errors[1])


def _case(input_size: int, horizon: int) -> str:
    return f"L={input_size}, H={horizon}"
