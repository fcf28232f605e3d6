"""Intervals online: how often the actual is inside a nominal 90 % before and after the world changes.

A forecaster that is right until the change, and then goes on as before: the quantiles of the process as it was. It
forecasts 24 steps ahead at every step, so that actuals come late and errors overlap, as they do in service. With
and without the online adjustment, on the same data. Widths are in ratio to those of the forecaster itself.

The interval score (Gneiting and Raftery, 2007) is the width and a penalty for what is outside: lower is better,
and neither a wide interval nor a narrow one is rewarded.

B series, T steps, H horizon, Q quantiles.
"""

import sys
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from benchmarks.report import OURS, Report, build_parser, finish, say
from forecasting.conformal import RATE, learn, rate_of, stretch
from forecasting.spec import quantiles_for

FloatArray = NDArray[np.float64]

LEVEL = 90.0
QUANTILES = quantiles_for((80.0, LEVEL, 95.0))
LOW, HIGH = QUANTILES.index(0.05), QUANTILES.index(0.95)
PHI = 0.8
"""How much of a deviation is left after a step."""
HORIZON = 24
WARM_UP = 200
"""Steps before anything is measured."""
BLOCKS = ((0, 50), (50, 100), (100, 200), (200, 500), (500, 1000))
"""Steps after the change, of which each is a row."""

Change = Callable[[FloatArray, int], FloatArray]


def _no_change(noise_BT: FloatArray, at: int) -> FloatArray:
    del at
    return _process(noise_BT)


def _double_variance(noise_BT: FloatArray, at: int) -> FloatArray:
    spread_T = np.where(np.arange(noise_BT.shape[1]) < at, 1.0, np.sqrt(2.0))
    return _process(noise_BT * spread_T)


def _halve_variance(noise_BT: FloatArray, at: int) -> FloatArray:
    spread_T = np.where(np.arange(noise_BT.shape[1]) < at, 1.0, np.sqrt(0.5))
    return _process(noise_BT * spread_T)


def _shift_level(noise_BT: FloatArray, at: int) -> FloatArray:
    return _process(noise_BT) + np.where(np.arange(noise_BT.shape[1]) < at, 0.0, 1.5)


def _heavy_tails(noise_BT: FloatArray, at: int) -> FloatArray:
    rng = np.random.default_rng(1)
    heavy_BT = rng.standard_t(3, size=noise_BT.shape) / np.sqrt(3.0)
    return _process(np.where(np.arange(noise_BT.shape[1]) < at, noise_BT, heavy_BT))


CHANGES: dict[str, Change] = {
    "no change": _no_change,
    "variance doubles": _double_variance,
    "variance halves": _halve_variance,
    "level shifts by 1.5": _shift_level,
    "tails grow heavy (t, 3)": _heavy_tails,
}


def main(argv: Sequence[str]) -> None:
    """Run every change with and without the adjustment."""
    parser = build_parser(
        "intervals", "Coverage of a nominal 90 % before and after a change, online adjusted or not."
    )
    parser.add_argument("--series", type=int, default=100, help="independent series (%(default)s)")
    parser.add_argument(
        "--rates", type=float, nargs="+", default=[0.05, RATE, 0.2], help="steps of the adjustment"
    )
    arguments = parser.parse_args(argv)
    n_series = 10 if arguments.quick else arguments.series
    report = Report()
    for name, change in CHANGES.items():
        say(f"{name}: {n_series} series")
        measure_case(report, name, change, n_series, arguments.rates)
    finish(report, "intervals", argv, arguments.out)


def measure_case(report: Report, name: str, change: Change, n_series: int, rates: Sequence[float]) -> None:
    """Add coverage, width and interval score before the change and in blocks after it."""
    at = WARM_UP + 500
    noise_BT = np.random.default_rng(0).normal(size=(n_series, at + BLOCKS[-1][1] + HORIZON))
    y_BT = change(noise_BT, at)
    raw = run_online(y_BT, 0.0)
    systems = {"as trained": raw} | {_system(rate): run_online(y_BT, rate) for rate in rates}
    blocks = [("before", slice(WARM_UP, at - HORIZON))]
    blocks += [(f"{first} to {last} after", slice(at + first, at + last)) for first, last in BLOCKS]
    for told, steps in blocks:
        for system, (inside_T, width_T, score_T) in systems.items():
            case = f"{name}, {told}"
            report.add(case, system, "coverage, nominal 0.90", inside_T[steps].mean())
            report.add(case, system, "width, ratio", width_T[steps].mean() / raw[1][steps].mean())
            report.add(case, system, "interval score, ratio", score_T[steps].mean() / raw[2][steps].mean())


def _system(rate: float) -> str:
    return OURS if rate == RATE else f"{OURS}, rate {rate:g}"


def run_online(y_BT: FloatArray, rate: float) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Forecast at every step and learn from every actual as it comes; 0 for a rate learns nothing.

    Returns:
        For each cutoff, over series and steps of the horizon: coverage, width, interval score.
    """
    n_series, n_steps = y_BT.shape
    cutoffs = n_steps - HORIZON
    spread_H = np.sqrt((1 - PHI ** (2 * np.arange(1, HORIZON + 1))) / (1 - PHI**2))
    offset_HQ = spread_H[:, None] * norm.ppf(QUANTILES)
    decay_H = PHI ** np.arange(1, HORIZON + 1)
    stretch_BHQ = np.zeros((n_series, HORIZON, len(QUANTILES)))
    rows = np.full((3, cutoffs), np.nan)
    ahead = np.arange(1, HORIZON + 1)
    steps = np.arange(HORIZON)
    rate_H = rate_of(ahead.astype(np.float64), rate)
    for t in range(cutoffs):
        if rate:
            # At time t the step h of the forecast made at t - h has its actual.
            made = np.maximum(t - ahead, 0)
            raw_BHQ = y_BT[:, made, None] * decay_H[:, None] + offset_HQ
            actual_BH = np.where(t - ahead >= 0, y_BT[:, [t]], np.nan)
            stretch_BHQ = learn(stretch_BHQ, raw_BHQ, actual_BH, QUANTILES, rate=rate_H)
        raw_BHQ = y_BT[:, [t], None] * decay_H[:, None] + offset_HQ
        issued_BHQ = stretch(raw_BHQ, QUANTILES, stretch_BHQ)
        low_BH, high_BH, actual_BH = issued_BHQ[..., LOW], issued_BHQ[..., HIGH], y_BT[:, t + 1 + steps]
        width_BH = high_BH - low_BH
        outside_BH = np.maximum(low_BH - actual_BH, 0.0) + np.maximum(actual_BH - high_BH, 0.0)
        rows[:, t] = (outside_BH == 0).mean(), width_BH.mean(), (width_BH + 20.0 * outside_BH).mean()
    return rows[0], rows[1], rows[2]


def _process(noise_BT: FloatArray) -> FloatArray:
    """Return an autoregression driven by noise."""
    y_BT = np.zeros_like(noise_BT)
    for t in range(1, noise_BT.shape[1]):
        y_BT[:, t] = PHI * y_BT[:, t - 1] + noise_BT[:, t]
    return y_BT


if __name__ == "__main__":
    main(sys.argv[1:])
