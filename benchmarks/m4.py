"""Many series of unequal length and one horizon, by the protocol of the M4 competition.

sMAPE is the mean of 200 |y - f| / (|y| + |f|), MASE divides by the in-sample mean absolute seasonal difference,
and OWA is the mean of both in ratio to Naive2, each averaged over all series first. One global network over all.

N series, T steps of the longest, H horizon.
"""

import statistics
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from benchmarks.recipes import DECILES, M4_MODELS, M4_RECOMMENDED, Recipe
from benchmarks.report import OURS, Report, finish, say
from forecasting.calendar import parse_freq
from forecasting.forecaster import Forecaster
from forecasting.panel import Panel
from forecasting.spec import ForecasterSpec
from training import metrics
from training.fit import fit, pick_device
from training.windows import PanelTensors, Windows

FloatArray = NDArray[np.float64]

ALPHA_90 = 1.645
"""The autocorrelation at the season is tested at 90 %, as the competition's Naive2 does it."""


class Data(NamedTuple):
    """Series aligned at their ends, NaN before they begin, and what came after."""

    names: tuple[str, ...]
    y_NT: FloatArray
    actual_NH: FloatArray
    season: int

    @property
    def horizon(self) -> int:
        return int(self.actual_NH.shape[1])


def add_arguments(parser: ArgumentParser) -> None:
    """Add what the protocol needs to know."""
    parser.add_argument("--train", type=Path, required=True, help="one series a row: its name, then its values")
    parser.add_argument("--test", type=Path, required=True, help="the same rows: what came after")
    parser.add_argument("--season", type=int, default=1, help="steps of a season (default %(default)s)")
    parser.add_argument("--seeds", type=int, default=5, help="networks, each of a seed of its own")
    parser.add_argument(
        "--model", choices=[*M4_MODELS, "none"], default=M4_RECOMMENDED, help="default %(default)s"
    )


def run(arguments: Namespace, argv: Sequence[str]) -> None:
    """Fit and score the network and the baselines, and print the table."""
    torch.set_num_threads(arguments.threads)
    data = load(arguments.train, arguments.test, arguments.season)
    case = f"{len(data.names)} series, H={data.horizon}, season {data.season}"
    report = Report()
    _add(report, case, "naive", data, repeat_last(data))
    _add(report, case, "Naive2", data, naive2(data))
    if arguments.model != "none":
        score_network(report, case, data, arguments)
    finish(report, "accuracy", argv, arguments.out)


def load(train: Path, test: Path, season: int) -> Data:
    """Read both files; every series of the one has to be in the other."""
    histories, futures = _read_rows(train), _read_rows(test)
    if list(histories) != list(futures):
        odd = next(iter(set(histories) ^ set(futures)), "their order")
        raise SystemExit(f"{train.name} and {test.name} do not have the same series: {odd}")
    horizon = len(next(iter(futures.values())))
    longest = max(map(len, histories.values()))
    y_NT = np.full((len(histories), longest), np.nan)
    for row, values in zip(y_NT, histories.values(), strict=True):
        row[longest - len(values) :] = values
    return Data(tuple(histories), y_NT, np.stack([values[:horizon] for values in futures.values()]), season)


def _read_rows(path: Path) -> dict[str, FloatArray]:
    frame = pd.read_csv(path, header=0)
    values = frame.iloc[:, 1:].to_numpy(dtype=np.float64)
    names = frame.iloc[:, 0].astype(str)
    return {name: row[np.isfinite(row)] for name, row in zip(names, values, strict=True)}


def score_network(report: Report, case: str, data: Data, arguments: Namespace) -> None:
    """Fit the network once for each seed; score each, and the mean of their forecasts."""
    recipe: Recipe = M4_MODELS[arguments.model]
    if arguments.quick:
        recipe = recipe.quick()
    system, seeds = f"{OURS} {arguments.model}", 1 if arguments.quick else arguments.seeds
    forecasts: list[FloatArray] = []
    began = time.perf_counter()
    for seed in range(1, seeds + 1):
        forecasts.append(fit_and_forecast(data, recipe, seed))
        say(f"{system} seed {seed}: OWA {score(data, forecasts[-1])['OWA']:.4f}")
    seconds = (time.perf_counter() - began) / seeds
    each = [score(data, forecast_NH) for forecast_NH in forecasts]
    for name in each[0]:
        report.add(case, system, name, statistics.fmean(one[name] for one in each))
    if seeds > 1:
        report.add(
            case, system, "OWA, standard deviation over seeds", statistics.stdev(one["OWA"] for one in each)
        )
        _add(report, case, f"{system}, {seeds} seeds averaged", data, np.mean(forecasts, axis=0))
    report.add(case, system, "seconds a fit", seconds)


def fit_and_forecast(data: Data, recipe: Recipe, seed: int) -> FloatArray:
    """Fit on everything but the last horizon, which chooses; forecast the steps after the end."""
    network = recipe.network(data.horizon)
    spec = ForecasterSpec(
        name="m4",
        freq="D",
        season_length=data.season,
        horizon=data.horizon,
        quantiles=DECILES,
        level=(),
        transform="log_return" if (data.y_NT[np.isfinite(data.y_NT)] > 0).all() else "none",
        network=network,
    )
    y_NT = _padded(data.y_NT, spec.input_size)
    n_steps = y_NT.shape[1] - data.horizon
    ds = parse_freq("D").range(pd.Timestamp("1970-01-01"), y_NT.shape[1])
    tensors = PanelTensors(Panel(data.names, ds, y_NT, parse_freq("D")), spec.transform, pick_device("auto"))
    train = Windows(tensors, spec.input_size, data.horizon, 0, n_steps, min_observed=data.horizon)
    validation = Windows(tensors, spec.input_size, data.horizon, n_steps, y_NT.shape[1], min_observed=data.horizon)
    config = recipe.training.model_copy(update={"seed": seed})
    forecaster = Forecaster(spec, fit(spec, config, train, validation).network)
    quantiles_NHQ = forecaster.predict(y_NT)
    return quantiles_NHQ[..., len(DECILES) // 2]


def _padded(y_NT: FloatArray, input_size: int) -> FloatArray:
    missing = max(0, input_size + 1 - y_NT.shape[1])
    return np.pad(y_NT, ((0, 0), (missing, 0)), constant_values=np.nan)


def repeat_last(data: Data) -> FloatArray:
    """Return the last value of each series, H times."""
    return np.repeat(data.y_NT[:, -1:], data.horizon, axis=1)


def naive2(data: Data) -> FloatArray:
    """Return the competition's Naive2: the last value, seasonally adjusted where a season shows."""
    return np.stack([_naive2(y_T[np.isfinite(y_T)], data.season, data.horizon) for y_T in data.y_NT])


def _naive2(y_T: FloatArray, season: int, horizon: int) -> FloatArray:
    indices = np.ones(season)
    if season > 1 and _is_seasonal(y_T, season):
        indices = _seasonal_indices(y_T, season)
    last = y_T[-1] / indices[(len(y_T) - 1) % season]
    forecast_H: FloatArray = last * indices[(len(y_T) + np.arange(horizon)) % season]
    return forecast_H


def _is_seasonal(y_T: FloatArray, season: int) -> bool:
    if len(y_T) < 3 * season:
        return False
    centred = y_T - y_T.mean()
    acf = np.array([(centred[k:] * centred[: len(centred) - k]).sum() for k in range(season + 1)])
    acf = acf / acf[0]
    limit = ALPHA_90 * np.sqrt((1 + 2 * np.square(acf[1:season]).sum()) / len(y_T))
    return bool(abs(acf[season]) > limit)


def _seasonal_indices(y_T: FloatArray, season: int) -> FloatArray:
    """Return multiplicative indices by classical decomposition: ratios to a centred moving average."""
    if season % 2:
        weights = np.full(season, 1 / season)
    else:
        weights = np.concatenate([[0.5], np.ones(season - 1), [0.5]]) / season
    half = len(weights) // 2
    trend = np.convolve(y_T, weights, mode="valid")
    ratio = y_T[half : half + len(trend)] / trend
    phase = (half + np.arange(len(trend))) % season
    indices = np.array([ratio[phase == p].mean() for p in range(season)])
    scaled: FloatArray = indices / indices.mean()
    return scaled


def score(data: Data, forecast_NH: FloatArray) -> dict[str, float]:
    """Return sMAPE, MASE and OWA, each series counting alike."""
    benchmark = _errors(data, naive2(data))
    smape, mase = _errors(data, forecast_NH)
    return {"sMAPE": smape, "MASE": mase, "OWA": (smape / benchmark[0] + mase / benchmark[1]) / 2}


def _errors(data: Data, forecast_NH: FloatArray) -> tuple[float, float]:
    scale_N = np.array([metrics.seasonal_scale(y_T[np.isfinite(y_T)], data.season)[0] for y_T in data.y_NT])
    return metrics.smape(data.actual_NH, forecast_NH), metrics.mase(data.actual_NH, forecast_NH, scale_N)


def _add(report: Report, case: str, system: str, data: Data, forecast_NH: FloatArray) -> None:
    for name, value in score(data, forecast_NH).items():
        report.add(case, system, name, value)
