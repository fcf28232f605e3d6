"""The distribution of the next session's return: the network beside what a quant would ask first.

    python -m benchmarks.stocks --sample sp500
    python -m benchmarks.stocks --folder DIR
    python -m benchmarks.stocks --csv FILE

Everyone forecasts one session ahead, at every session of the test period, and is fitted anew as often as everyone
else on what was known then. Of several shares there is one network for all and a rival for each.

N shares, T sessions, K test cutoffs, Q quantiles.
"""

import math
import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from benchmarks.recipes import STOCKS, STOCKS_RECOMMENDED, Recipe
from benchmarks.report import OURS, Report, build_parser, finish, say
from benchmarks.return_scores import QUANTILES, Said, add_scores
from benchmarks.share_prices import Shares, load_file, load_folder, load_sample
from forecasting.calendar import parse_freq
from forecasting.errors import TrainingError
from forecasting.forecaster import Forecaster
from forecasting.panel import Columns, Panel
from forecasting.spec import CovariatesSpec, EnsembleSpec, ForecasterSpec
from training.calibrate import calibrate
from training.econometrics import RIVALS, forecast_rival
from training.fit import fit, pick_device
from training.garch import VARIANCE_FLOOR
from training.skewed_t import SkewedT
from training.windows import PanelTensors, Windows

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

SAMPLE_TEST = "2015-01-01"
TEST_SHARE, MOST_TESTED = 0.4, 1006
YEAR = 252
VALIDATION_SHARE, MOST_VALIDATED = 3 / 16, 3 * YEAR
LONG_HISTORY = 2000
"""Sessions before the first fit from which on networks see two years of them, and not one."""
LEAST_KNOWN = 300
"""Returns of a share that have to be known before it is asked for."""
LEAST_BEFORE = 500
"""Sessions before the first that is forecast: windows of a year, and some of them to choose by."""
RANGES = ("parkinson", "garman_klass")


class Test(NamedTuple):
    """What is asked of everyone."""

    cutoff_K: IntArray
    """Sessions after which the next return is forecast."""
    refit_every: int

    def folds(self) -> list[IntArray]:
        """Return the cutoffs between one fit and the next."""
        first = int(self.cutoff_K[0])
        fold_K = (self.cutoff_K - first) // self.refit_every
        return [self.cutoff_K[fold_K == fold] for fold in np.unique(fold_K)]


def main(argv: Sequence[str]) -> None:
    """Run the benchmark."""
    parser = build_parser("stocks", "Densities of daily returns, the network beside econometric models.")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--sample", choices=["sp500"], help="the S&P 500, 1999 to 2018, which `arch` ships")
    source.add_argument(
        "--folder", type=Path, help="a CSV a share: Date, Open, High, Low, Close, Adj Close if known"
    )
    source.add_argument("--csv", type=Path, help="one CSV, of one share or with a column that names them")
    parser.add_argument("--test-from", help="first session to forecast (sample: 2015-01-01; else the last 40 %%)")
    parser.add_argument("--refit-every", type=int, default=YEAR, help="sessions between two fits (%(default)s)")
    parser.add_argument("--model", choices=[*STOCKS, "none"], default=STOCKS_RECOMMENDED, help="%(default)s")
    parser.add_argument("--rivals", nargs="+", choices=RIVALS, default=list(RIVALS), help="default all")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    shares = load(arguments)
    test = plan(shares, arguments)
    said = ask_everyone(shares, test, arguments)
    report = Report()
    actual_NK = np.stack([next_returns(shares, n, test) for n in range(len(shares.names))])
    add_scores(report, describe(shares, test), said, actual_NK)
    finish(report, "stocks", argv, arguments.out, wide=True)


def load(arguments: Namespace) -> Shares:
    """Read what is asked for; quickly, little of it."""
    if arguments.sample:
        shares = load_sample()
    else:
        shares = load_folder(arguments.folder) if arguments.folder else load_file(arguments.csv)
    return shares.take(3, 900) if arguments.quick else shares


def plan(shares: Shares, arguments: Namespace) -> Test:
    """Choose the cutoffs: of every session of the test period the one before it.

    Raises:
        SystemExit: too little is known before the first.
    """
    sessions = shares.session_T
    asked_from = arguments.test_from or (SAMPLE_TEST if arguments.sample and not arguments.quick else None)
    tested = min(MOST_TESTED, int(TEST_SHARE * len(sessions)))
    first = (
        len(sessions) - tested if asked_from is None else int(np.searchsorted(sessions, np.datetime64(asked_from)))
    )
    if not LEAST_BEFORE <= first < len(sessions):
        raise SystemExit(
            f"{len(sessions)} sessions, the first to forecast is number {first}: "
            f"{LEAST_BEFORE} have to come before it"
        )
    return Test(np.arange(first - 1, len(sessions) - 1), arguments.refit_every)


def describe(shares: Shares, test: Test) -> str:
    """Return what the case is called."""
    first, last = (str(shares.session_T[k + 1])[:10] for k in (test.cutoff_K[0], test.cutoff_K[-1]))
    who = shares.names[0] if len(shares.names) == 1 else f"{len(shares.names)} shares"
    return f"{who}, {len(test.cutoff_K)} sessions from {first} to {last}"


def ask_everyone(shares: Shares, test: Test, arguments: Namespace) -> dict[str, list[Said]]:
    """Return what each system says of each share."""
    said: dict[str, list[Said]] = {}
    if arguments.model != "none":
        recipe = STOCKS[arguments.model].quick() if arguments.quick else STOCKS[arguments.model]
        said[f"{OURS} {arguments.model}"] = ask_network(shares, test, recipe, arguments)
    for name in arguments.rivals:
        began = time.perf_counter()
        said[name] = [ask_rival(name, shares, n, test, arguments.seed) for n in range(len(shares.names))]
        say(f"{name}: {time.perf_counter() - began:.0f} s")
    return said


def ask_rival(name: str, shares: Shares, n: int, test: Test, seed: int) -> Said:
    """Let a rival forecast one share; where it cannot, it says nothing of it."""
    return_T, variance_T = shares.returns[n], shares.garman_klass_NT[n]
    cutoff_K = askable(shares, n, test)
    silent = Said(np.full((len(test.cutoff_K), len(QUANTILES)), np.nan), np.full(len(test.cutoff_K), np.nan), None)
    if not len(cutoff_K):
        return silent
    try:
        found = forecast_rival(
            name, return_T, cutoff_K, 1, QUANTILES, refit_every=test.refit_every, variances_T=variance_T, seed=seed
        )
    except TrainingError as error:
        say(f"{name} says nothing of {shares.names[n]}: {error}")
        return silent
    place_K = np.searchsorted(test.cutoff_K, cutoff_K)
    silent.quantiles_KQ[place_K] = found.quantiles_KHQ[:, 0]
    silent.variance_K[place_K] = found.variance_KH[:, 0]
    return silent._replace(
        density=None if found.first is None else _spread(found.first, place_K, len(test.cutoff_K))
    )


def askable(shares: Shares, n: int, test: Test) -> IntArray:
    """Return the cutoffs at which a share is traded, enough of it is known, and its next session follows."""
    known_T = np.isfinite(shares.returns[n])
    enough_K = np.cumsum(known_T)[test.cutoff_K] >= LEAST_KNOWN
    asked_K: IntArray = test.cutoff_K[enough_K & known_T[test.cutoff_K] & known_T[test.cutoff_K + 1]]
    return asked_K


def next_returns(shares: Shares, n: int, test: Test) -> FloatArray:
    """Return what happened after each cutoff, NaN where nobody is asked."""
    return_K = np.full(len(test.cutoff_K), np.nan)
    cutoff_K = askable(shares, n, test)
    return_K[np.searchsorted(test.cutoff_K, cutoff_K)] = shares.returns[n][cutoff_K + 1]
    return return_K


def _spread(density: SkewedT, place_K: IntArray, n: int) -> SkewedT:
    wide = [np.full(n, np.nan) for _ in density]
    for field_K, known in zip(wide, density, strict=True):
        field_K[place_K] = known
    return SkewedT(*wide)


def ask_network(shares: Shares, test: Test, recipe: Recipe, arguments: Namespace) -> list[Said]:
    """Fit one network for all shares before each fold, and let it forecast the fold."""
    panel, folds = as_panel(shares), test.folds()
    spec = build_spec(recipe, 500 if folds[0][0] >= LONG_HISTORY else 250)
    parts: list[list[Said]] = []
    for i, cutoff_K in enumerate(folds):
        began = time.perf_counter()
        forecaster = fit_network(panel.before(int(cutoff_K[0]) + 1), spec, recipe, arguments)
        parts.append([ask_forecaster(forecaster, panel, n, cutoff_K) for n in range(panel.n_series)])
        say(f"fold {i + 1} of {len(folds)}: fitted in {time.perf_counter() - began:.0f} s")
    return [_join([part[n] for part in parts]) for n in range(panel.n_series)]


def as_panel(shares: Shares) -> Panel:
    """Return the shares as the product holds them, a step a session whatever the exchange."""
    ds = parse_freq("D").range(pd.Timestamp("1970-01-01"), len(shares.session_T))
    past_NTP = np.stack([shares.parkinson_NT, shares.garman_klass_NT], axis=2)
    return Panel(
        shares.names,
        ds,
        np.exp(shares.x_NT / 100.0),
        parse_freq("D"),
        columns=Columns(past=RANGES),
        past_NTP=past_NTP,
    )


def build_spec(recipe: Recipe, input_size: int) -> ForecasterSpec:
    """Return what is forecast: one step of the log return, by the mean of several networks."""
    network, members = recipe.network(input_size), recipe.training.members
    if members > 1:
        network = EnsembleSpec.model_validate({"n_members": members, "member": network})
    return ForecasterSpec(
        name="stocks",
        freq="D",
        season_length=1,
        horizon=1,
        quantiles=QUANTILES,
        level=(90.0, 98.0),
        transform="log_return",
        covariates=CovariatesSpec(past=RANGES),
        network=network,
    )


def fit_network(known: Panel, spec: ForecasterSpec, recipe: Recipe, arguments: Namespace) -> Forecaster:
    """Fit on the older part of what is known, choose on the newer; a step between them belongs to neither."""
    tensors = PanelTensors(known, spec.transform, pick_device("auto"), spec.covariates)
    border = known.n_steps - min(MOST_VALIDATED, round(VALIDATION_SHARE * known.n_steps))
    train = Windows(tensors, spec.input_size, 1, 0, border - 1)
    validation = Windows(tensors, spec.input_size, 1, border, known.n_steps)
    config = recipe.training.model_copy(update={"seed": arguments.seed})
    network = fit(spec, config, train, validation).network
    calibrate(network, validation, spec.quantiles)
    return Forecaster(spec, network)


def ask_forecaster(forecaster: Forecaster, panel: Panel, n: int, cutoff_K: IntArray) -> Said:
    """Return what the network says of one share, NaN where it was not traded of late."""
    spec = forecaster.spec
    step_KL = cutoff_K[:, None] + np.arange(1 - spec.input_size, 1)
    y_KL = np.where(step_KL >= 0, panel.y_NT[n, step_KL.clip(min=0)], np.nan)
    asked_K = np.isfinite(y_KL[:, -1])
    quantiles_KQ = np.full((len(cutoff_K), len(QUANTILES)), np.nan)
    density = SkewedT(*np.full((4, len(cutoff_K)), np.nan))
    if asked_K.any():
        told = panel.covariates_at(
            np.full(asked_K.sum(), n), cutoff_K[asked_K], spec.covariates, spec.input_size, spec.horizon
        )
        price_KQ = forecaster.predict(y_KL[asked_K], told)[:, 0]
        quantiles_KQ[asked_K] = 100.0 * np.log(price_KQ / y_KL[asked_K, -1:])
        for part_K, found_KH in zip(density, forecaster.predict_density(y_KL[asked_K], told), strict=True):
            part_K[asked_K] = found_KH[:, 0]
        # As rivals are held to it: where a share stands still, who says less would win or lose by any amount.
        np.maximum(density.scale, math.sqrt(VARIANCE_FLOOR), out=density.scale)
    return Said(quantiles_KQ, density.scale**2, density)


def _join(parts: Sequence[Said]) -> Said:
    densities = [part.density for part in parts if part.density is not None]
    density = SkewedT(*(np.concatenate(fields) for fields in zip(*densities, strict=True))) if densities else None
    return Said(
        np.concatenate([part.quantiles_KQ for part in parts]),
        np.concatenate([part.variance_K for part in parts]),
        density,
    )


if __name__ == "__main__":
    main(sys.argv[1:])
