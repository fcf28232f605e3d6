"""The distribution of the next session's return: the network beside what a quant would ask first.

    python -m benchmarks.stocks --sample sp500
    python -m benchmarks.stocks --folder DIR
    python -m benchmarks.stocks --csv FILE

Everyone forecasts one session ahead, at every session of the test period, and is fitted anew as often as everyone
else on what was known then. Of several shares there is one network for all and a rival for each.

N shares, T sessions, K test cutoffs, Q quantiles.
"""

import sys
import time
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from benchmarks.recipes import STOCKS, STOCKS_RECOMMENDED, Recipe
from benchmarks.report import OURS, Report, build_parser, finish, say
from benchmarks.share_prices import Shares, load_file, load_folder, load_sample
from forecasting.calendar import parse_freq
from forecasting.errors import TrainingError
from forecasting.forecaster import Forecaster
from forecasting.panel import Columns, Panel
from forecasting.spec import CovariatesSpec, EnsembleSpec, ForecasterSpec
from training import risk
from training.confidence_set import model_confidence_set
from training.econometrics import RIVALS, forecast_rival
from training.fit import fit, pick_device
from training.metrics import crps_each
from training.significance import compare_losses, diebold_mariano
from training.skewed_t import SkewedT
from training.verdict import verdict
from training.windows import PanelTensors, Windows

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

QUANTILES = tuple(round(0.005 * i, 3) for i in range(1, 200))
SAMPLE_TEST = "2015-01-01"
TEST_SHARE, MOST_TESTED = 0.4, 1006
YEAR = 252
VALIDATION_SHARE = 0.2
LEAST_KNOWN = 300
"""Returns of a share that have to be known before it is asked for."""
LEAST_BEFORE = 500
"""Sessions before the first that is forecast: windows of a year, and some of them to choose by."""
RISKS = (0.01, 0.05)
RANGES = ("parkinson", "garman_klass")


class Said(NamedTuple):
    """What one system says of one share's next return, at each of its cutoffs, in percent."""

    quantiles_KQ: FloatArray
    variance_K: FloatArray
    density: SkewedT | None


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
    add_scores(report, describe(shares, test), shares, test, said)
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


def _spread(density: SkewedT, place_K: IntArray, n: int) -> SkewedT:
    wide = [np.full(n, np.nan) for _ in density]
    for field_K, known in zip(wide, density, strict=True):
        field_K[place_K] = known
    return SkewedT(*wide)


def ask_network(shares: Shares, test: Test, recipe: Recipe, arguments: Namespace) -> list[Said]:
    """Fit one network for all shares before each fold, and let it forecast the fold."""
    panel, spec = as_panel(shares), build_spec(recipe)
    folds = test.folds()
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


def build_spec(recipe: Recipe) -> ForecasterSpec:
    """Return what is forecast: one step of the log return, by the mean of several networks."""
    network, members = recipe.network(YEAR), recipe.training.members
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
    border = round((1 - VALIDATION_SHARE) * known.n_steps)
    train = Windows(tensors, spec.input_size, 1, 0, border - 1)
    validation = Windows(tensors, spec.input_size, 1, border, known.n_steps)
    config = recipe.training.model_copy(update={"seed": arguments.seed})
    return Forecaster(spec, fit(spec, config, train, validation).network)


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
        for part_K, found_KH in zip(density, forecaster.density(y_KL[asked_K], told), strict=True):
            part_K[asked_K] = found_KH[:, 0]
    return Said(quantiles_KQ, density.scale**2, density)


def _join(parts: Sequence[Said]) -> Said:
    densities = [part.density for part in parts if part.density is not None]
    density = SkewedT(*(np.concatenate(fields) for fields in zip(*densities, strict=True))) if densities else None
    return Said(
        np.concatenate([part.quantiles_KQ for part in parts]),
        np.concatenate([part.variance_K for part in parts]),
        density,
    )


def add_scores(report: Report, case: str, shares: Shares, test: Test, said: Mapping[str, list[Said]]) -> None:
    """Add every score of every system, and how sure it is that the network differs from each other."""
    actual_NK = np.stack([_next_returns(shares, n, test) for n in range(len(shares.names))])
    scored = {name: _losses(each, actual_NK) for name, each in said.items()}
    # Everyone is judged where everyone said something.
    known_NK = np.logical_and.reduce([np.isfinite(losses["CRPS"]) for losses in scored.values()])
    actual_NK = np.where(known_NK, actual_NK, np.nan)
    asked = f"{int(known_NK.any(axis=1).sum())} of {len(known_NK)} shares, {int(known_NK.sum())} forecasts"
    say(f"everyone is judged on {asked}")
    for name, losses in scored.items():
        for metric, loss_NK in losses.items():
            if np.isfinite(loss_NK[known_NK]).all():
                report.add(case, name, metric, _mean_over_shares(loss_NK, known_NK))
        _add_risk(report, case, name, said[name], actual_NK)
    _add_comparisons(report, case, scored, known_NK)
    ours = next((name for name in said if name.startswith(OURS)), None)
    if ours is not None and len(said) > 1:
        say(judge(ours, scored, said[ours], actual_NK))


def _next_returns(shares: Shares, n: int, test: Test) -> FloatArray:
    """Return what happened after each cutoff, NaN where nobody is asked."""
    return_K = np.full(len(test.cutoff_K), np.nan)
    cutoff_K = askable(shares, n, test)
    return_K[np.searchsorted(test.cutoff_K, cutoff_K)] = shares.returns[n][cutoff_K + 1]
    return return_K


def _losses(each: Sequence[Said], actual_NK: FloatArray) -> dict[str, FloatArray]:
    """Return the `(N, K)` losses of a system by score; NaN where it said nothing."""
    parts = [_losses_of_one(said, actual_K) for said, actual_K in zip(each, actual_NK, strict=True)]
    return {metric: np.stack([part[metric] for part in parts]) for metric in parts[0]}


def _losses_of_one(said: Said, actual_K: FloatArray) -> dict[str, FloatArray]:
    nothing_K = np.full(len(actual_K), np.nan)
    each = {
        "CRPS": crps_each(actual_K[:, None], said.quantiles_KQ[:, None], QUANTILES)[:, 0],
        "QLIKE": risk.qlike_each(actual_K, said.variance_K),
        "log score": nothing_K if said.density is None else risk.log_score_each(actual_K, said.density),
    }
    for p in RISKS:
        each[f"pinball {p:.0%}"] = risk.pinball_each(actual_K, said.quantiles_KQ[:, QUANTILES.index(p)], p)
    low_K, high_K = (said.quantiles_KQ[:, QUANTILES.index(p)] for p in (0.05, 0.95))
    inside_K = ((low_K <= actual_K) & (actual_K <= high_K)).astype(np.float64)
    each["coverage of the 90 % interval"] = np.where(np.isfinite(low_K), inside_K, np.nan)
    return each


def _mean_over_shares(loss_NK: FloatArray, known_NK: NDArray[np.bool_]) -> float:
    """Return the mean over shares of the mean of each."""
    asked_N = known_NK.any(axis=1)
    means_N = np.where(known_NK, loss_NK, 0.0).sum(axis=1)[asked_N] / known_NK.sum(axis=1)[asked_N]
    return float(means_N.mean())


def _add_risk(report: Report, case: str, name: str, each: Sequence[Said], actual_NK: FloatArray) -> None:
    """Add the back-tests of the value at risk: of one share their p, of several the share of those that pass."""
    for p in RISKS:
        at, column = f"VaR {p:.0%}", QUANTILES.index(p)
        hits = [
            risk.hits_below(actual_K, said.quantiles_KQ[:, column])[np.isfinite(actual_K)]
            for said, actual_K in zip(each, actual_NK, strict=True)
            if np.isfinite(actual_K).any()
        ]
        tests = {
            "Kupiec p": [risk.kupiec(hits_K, p) for hits_K in hits],
            "Christoffersen independence p": [risk.christoffersen_independence(hits_K) for hits_K in hits],
            "Christoffersen conditional p": [risk.christoffersen_conditional(hits_K, p) for hits_K in hits],
        }
        report.add(case, name, f"{at}, share of days below", float(np.mean([hits_K.mean() for hits_K in hits])))
        for title, values in tests.items():
            if len(values) == 1:
                report.add(case, name, f"{at}, {title}", values[0])
            else:
                report.add(
                    case, name, f"{at}, shares with {title} > 0.05", float(np.mean(np.array(values) > 0.05))
                )


def _add_comparisons(
    report: Report, case: str, scored: Mapping[str, Mapping[str, FloatArray]], known_NK: NDArray[np.bool_]
) -> None:
    """Add the network's p against each rival (Diebold-Mariano), and everyone's in the model confidence set."""
    ours = next((name for name in scored if name.startswith(OURS)), None)
    for metric in ("CRPS", "QLIKE"):
        losses = {name: np.where(known_NK, each[metric], np.nan) for name, each in scored.items()}
        for name, loss_NK in losses.items():
            if ours is not None and name != ours:
                report.add(
                    case, f"{ours} against {name}", f"{metric}, difference", _difference(losses[ours], loss_NK)
                )
                p_value = compare(losses[ours], loss_NK)
                report.add(case, f"{ours} against {name}", f"{metric}, Diebold-Mariano p", p_value)
        if len(losses) > 1:
            daily = {name: _daily_means(loss_NK) for name, loss_NK in losses.items()}
            for name, p_value in model_confidence_set(daily, alpha=0.1).p_values.items():
                report.add(case, name, f"{metric}, model confidence set p", p_value)


def judge(
    ours: str, scored: Mapping[str, Mapping[str, FloatArray]], said: Sequence[Said], actual_NK: FloatArray
) -> str:
    """Return in one sentence whether the network has skill."""
    known_NK = np.isfinite(actual_NK)
    losses = {
        metric: {name: np.where(known_NK, each[metric], np.nan).T for name, each in scored.items()}
        for metric in ("CRPS", "QLIKE")
    }
    mean_NK = np.stack([one.density.location for one in said if one.density is not None])
    found = verdict(ours, losses["CRPS"], qlike=losses["QLIKE"], returns_KN=actual_NK.T, mean_KN=mean_NK.T)
    return found.sentence


def _difference(loss_NK: FloatArray, other_NK: FloatArray) -> float:
    return float(np.nanmean(np.nanmean(loss_NK - other_NK, axis=1)))


def compare(loss_NK: FloatArray, other_NK: FloatArray) -> float:
    """Return the two-sided p that both are equally good; days are clusters where there are several shares."""
    if len(loss_NK) == 1:
        return diebold_mariano(loss_NK[0], other_NK[0], lags=0)
    one_sided = compare_losses(loss_NK.T, other_NK.T, lags=0).p_value
    return 2.0 * min(one_sided, 1.0 - one_sided)


def _daily_means(loss_NK: FloatArray) -> FloatArray:
    asked_K = np.isfinite(loss_NK).any(axis=0)
    means_K = np.full(loss_NK.shape[1], np.nan)
    means_K[asked_K] = np.nanmean(loss_NK[:, asked_K], axis=0)
    return means_K


if __name__ == "__main__":
    main(sys.argv[1:])
