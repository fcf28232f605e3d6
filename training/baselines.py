"""Baselines, fitted on the same split as every candidate: naive, seasonal naive, drift and ridge.

They are forecasters like the networks, so the same `predict`, calibration, backtest and artefact serve them.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from forecasting.errors import TrainingError
from forecasting.networks import QuantileNetwork, build_network
from forecasting.networks.linear import Ridge
from forecasting.networks.segment import Segment
from forecasting.spec import (
    DriftSpec,
    ForecasterSpec,
    NaiveSpec,
    NetworkSpec,
    RidgeSpec,
    SeasonalNaiveSpec,
)
from training.job import JobConfig
from training.windows import Batch, Windows

FloatArray = NDArray[np.float64]

MOST_WINDOWS = 100_000
GATHER = 4096
RIDGES = tuple(10.0 ** (exponent / 2) for exponent in range(-14, 7))
"""Ridge penalties tried, relative to the mean variance of an input."""


def baseline_specs(job: JobConfig) -> dict[str, NetworkSpec]:
    """Return the four baselines every job is compared with, on windows as long as its candidates see."""
    window = max([candidate.network.input_size for candidate in job.candidates] + [job.season + 1, 2])
    specs: tuple[NetworkSpec, ...] = (
        NaiveSpec(input_size=window),
        SeasonalNaiveSpec(input_size=window, season_length=job.season),
        DriftSpec(input_size=window),
        RidgeSpec(input_size=window, scaling="difference" if job.target.transform == "log_return" else "last"),
    )
    return {spec.kind: spec for spec in specs}


def fit_baseline(spec: ForecasterSpec, train: Windows, validation: Windows) -> QuantileNetwork:
    """Build a baseline; the ridge is solved in closed form, with its penalty chosen on the validation windows.

    Raises:
        TrainingError: a ridge has no complete window to solve on or to choose with.
    """
    network = build_network(spec)
    if isinstance(network, Ridge):
        solve_window_map(network.linear, network, train, validation)
    return network.to(train.data.device)


@torch.no_grad()
def solve_window_map(linear: nn.Linear, network: Ridge | Segment, train: Windows, validation: Windows) -> None:
    """Set a linear map from the scaled window to the scaled horizon to the ridge solution.

    It has no intercept: that would be a trend of the training block, carried on for ever. The penalty is the one
    with the least squared error on the validation windows.

    Raises:
        TrainingError: there is no complete window to solve on or to choose with.
    """
    x_ML, y_MH = _design(network, train)
    x_val_ML, y_val_MH = _design(network, validation)
    if not len(x_ML) or not len(x_val_ML):
        raise TrainingError("ridge has no window with every target known to learn from")
    values_K, vectors_LK = np.linalg.eigh(x_ML.T @ x_ML / len(x_ML))
    projected_KH = vectors_LK.T @ (x_ML.T @ y_MH) / len(x_ML)
    spread = max(float(values_K.mean()), 1e-12)
    solutions = [
        vectors_LK @ (projected_KH / (np.maximum(values_K, 0.0) + ridge * spread)[:, None]) for ridge in RIDGES
    ]
    errors = [np.square(x_val_ML @ weight_LH - y_val_MH).mean() for weight_LH in solutions]
    linear.weight.copy_(torch.from_numpy(solutions[int(np.argmin(errors))].T))
    if linear.bias is not None:
        linear.bias.zero_()


def _design(network: Ridge | Segment, windows: Windows) -> tuple[FloatArray, FloatArray]:
    """Return inputs `(M, L)` and scaled targets `(M, H)` of the windows that have every target."""
    inputs, targets = [], []
    for chosen_B in torch.split(windows.spread(MOST_WINDOWS), GATHER):
        batch: Batch = windows.gather(chosen_B)
        scaled = network.scale(batch.inputs)
        y_BH = (batch.target_BSH[:, -1] - scaled.anchor_B1) / scaled.scale_B1
        complete_B = batch.target_mask_BSH[:, -1].all(dim=1) & (y_BH.abs() < 1e3).all(dim=1)
        inputs.append(scaled.values_BL[complete_B].double().cpu().numpy())
        targets.append(y_BH[complete_B].double().cpu().numpy())
    return np.concatenate(inputs), np.concatenate(targets)
