"""The panels the benchmarks train on: a file of the ETT shape, or one generated from a seed.

N series, T steps.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from forecasting.calendar import parse_freq
from forecasting.panel import FloatArray, Panel


def generate_values(n_series: int, n_steps: int, seed: int = 1) -> FloatArray:
    """Return `(N, T)` hourly series: a day, a week, a slow walk and noise, in other proportions for each."""
    rng = np.random.default_rng(seed)
    hours_T = 2 * np.pi * np.arange(n_steps)
    y_NT = np.empty((n_series, n_steps))
    for y_T in y_NT:
        day, week = rng.uniform(0.5, 2.0, 2)
        phase = rng.uniform(0, 2 * np.pi, 2)
        y_T[:] = day * np.sin(hours_T / 24 + phase[0]) + week * np.sin(hours_T / 168 + phase[1])
        y_T += np.cumsum(rng.normal(0, 0.05, n_steps)) + rng.normal(0, 0.3, n_steps)
    return y_NT


def load_values(path: Path, train_share: float) -> FloatArray:
    """Return `(N, T)` from a file of a date column and one column a series, standardised on its training rows.

    Columns of an ETT file are measured in different units; without that the largest would be the only one
    that counts in an error over all of them.
    """
    y_TN = pd.read_csv(path).iloc[:, 1:].to_numpy(dtype=np.float64)
    train_TN = y_TN[: int(train_share * len(y_TN))]
    values: FloatArray = ((y_TN - train_TN.mean(axis=0)) / train_TN.std(axis=0)).T.copy()
    return values


def as_panel(y_NT: FloatArray) -> Panel:
    """Return hourly series as the product holds them."""
    ds = pd.date_range("2020-01-01", periods=y_NT.shape[1], freq="h")
    return Panel(tuple(f"s{n}" for n in range(len(y_NT))), ds, y_NT, parse_freq("h"))
