"""The drift test: how often it alarms where nothing changed, and how often where something did.

Autoregressions with a season and a shock all series share, from white noise to a random walk. The false-alarm rate
is to be at most the level of the test, however much each value depends on those before. Each history is tested
once; a job that is checked every day looks at windows that overlap, so its alarms come in clusters.
"""

import sys
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from benchmarks.report import OURS, Report, build_parser, finish, say
from training.drift import measure_drift

FloatArray = NDArray[np.float64]

SEASON, WINDOW = 24, 48
PASTS = (20, 40)
"""Windows the past holds."""
PHIS = (0.0, 0.5, 0.9, 0.99, 1.0)
LEVELS = (0.02, 0.05, 0.1)
CHANGES = ("moves 1.25 times as far", "moves 1.5 times as far", "loses its season", "white noise on top")


def main(argv: Sequence[str]) -> None:
    """Measure false alarms and power."""
    parser = build_parser("drift", "False-alarm rate and power of the drift test, on autocorrelated series.")
    parser.add_argument("--histories", type=int, default=1000, help="histories of each kind (%(default)s)")
    parser.add_argument("--series", type=int, default=3, help="series of a history (%(default)s)")
    arguments = parser.parse_args(argv)
    histories = 20 if arguments.quick else arguments.histories
    report = Report()
    for past in PASTS:
        for phi in PHIS if past == PASTS[0] else PHIS[::2]:
            case = f"no change, autocorrelation {phi:g}, {past} windows of past"
            say(case)
            p_values = np.array([ask_once(seed, phi, arguments.series, past, None) for seed in range(histories)])
            for level in LEVELS:
                report.add(case, OURS, f"alarms at {level:g}", (p_values <= level).mean())
    for change in CHANGES:
        case = f"{change}, autocorrelation 0.9, {PASTS[1]} windows of past"
        say(case)
        few = range(max(10, histories // 5))
        p_values = np.array([ask_once(seed, 0.9, arguments.series, PASTS[1], change) for seed in few])
        for level in LEVELS:
            report.add(case, OURS, f"alarms at {level:g}", (p_values <= level).mean())
    finish(report, "drift", argv, arguments.out)


def ask_once(seed: int, phi: float, n_series: int, past: int, change: str | None) -> float:
    """Return the p-value of one history."""
    return measure_drift(generate(seed, phi, n_series, past, change), WINDOW, SEASON).p_value


def generate(seed: int, phi: float, n_series: int, past: int, change: str | None) -> FloatArray:
    """Return series that change, if at all, with the newest window."""
    rng = np.random.default_rng(seed)
    n_steps = past * WINDOW + WINDOW + SEASON + 1
    shocks_NT = rng.normal(size=(n_series, n_steps)) + 0.5 * rng.normal(size=n_steps)
    factor = {"moves 1.25 times as far": 1.25, "moves 1.5 times as far": 1.5}.get(change or "", 1.0)
    shocks_NT[:, -WINDOW:] *= factor
    y_NT = np.zeros_like(shocks_NT)
    for t in range(1, n_steps):
        y_NT[:, t] = phi * y_NT[:, t - 1] + shocks_NT[:, t]
    season_T = 3.0 * np.sin(2 * np.pi * np.arange(n_steps) / SEASON)
    if change == "loses its season":
        season_T[-WINDOW:] = season_T[-WINDOW]
    if change == "white noise on top":
        y_NT[:, -WINDOW:] += rng.normal(size=(n_series, WINDOW))
    return y_NT + season_T


if __name__ == "__main__":
    main(sys.argv[1:])
