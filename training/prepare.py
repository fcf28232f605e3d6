"""What a network does not learn by descent: statistics of its data, where it starts, its share in a blend.

P past columns, F future columns or features, M values measured.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from forecasting.covariates import UNKNOWN
from forecasting.networks import QuantileNetwork
from forecasting.networks.base import TrainedNetwork
from forecasting.networks.segment import Segment
from forecasting.networks.volatility import Volatility
from forecasting.scaling import SCALE_FLOOR
from training.job import Units
from training.losses import TARGET_LIMIT, skewed_t_loss
from training.windows import Windows

SMALLEST_SPREAD = 1e-6
MOST_WINDOWS = 8192
BATCH = 1024

PENALTY = 0.1
"""On the squared weights of the linear path, which reads features of variance 1.

Of 0 to 1 the best on the S&P 500 of 2007 to 2014, by far better than none: the features are much alike."""

MOST_SOLVED = 2048
"""Windows the linear path is fitted to."""

MOST_MEASURED = 512
"""Windows whose features are measured: neighbours share most of their steps."""


@torch.no_grad()
def measure_covariates(network: TrainedNetwork, train: Windows) -> None:
    """Set mean and scale of each numeric column to those of the training block."""
    encoder = network.encoder
    if encoder is None:
        return
    data, stop = train.data, train.stop
    for columns, mean, scale in (
        (data.past_NTP[:, :stop], encoder.past_mean_P, encoder.past_scale_P),
        (data.future_NUF[:, :stop], encoder.future_mean_F, encoder.future_scale_F),
    ):
        for i in range(columns.shape[2]):
            _measure(columns[..., i], mean, scale, i)


def _measure(column_NT: Tensor, mean: Tensor, scale: Tensor, i: int) -> None:
    known = column_NT[column_NT.isfinite()].double()
    if len(known):
        mean[i] = known.mean()
        spread = known.std(correction=0)
        scale[i] = spread if spread > SMALLEST_SPREAD else 1.0


@torch.no_grad()
def measure_units(network: TrainedNetwork, train: Windows) -> None:
    """Set the unit of each known series to its spread in the training block."""
    if not isinstance(network, Segment) or network.units is None:
        return
    x_NT, mask_NT = train.data.x_NT[:, : train.stop], train.data.mask_NT[:, : train.stop]
    count_N = mask_NT.sum(dim=1).clamp_min(1)
    mean_N1 = (x_NT.sum(dim=1) / count_N)[:, None]
    spread_N = (((x_NT - mean_N1) * mask_NT).square().sum(dim=1) / count_N).sqrt()
    code_N = train.data.static_NS[:, network.units.place]
    network.units.unit_U[code_N] = spread_N
    network.units.unit_U[UNKNOWN] = 0.0


@torch.no_grad()
def measure_features(network: Volatility, train: Windows) -> None:
    """Set mean and scale of each feature of a volatility network to those of training windows, spread evenly."""
    skip = train.input_size // 4
    chosen = torch.split(train.spread(MOST_MEASURED), BATCH)
    features = [network.features(train.gather(chosen_B).inputs)[0][:, skip:].flatten(0, 1) for chosen_B in chosen]
    features_MF = torch.cat(features)
    for i in range(network.n_features):
        _measure(features_MF[:, i], network.feature_mean_F, network.feature_scale_F, i)


class _Steps(NamedTuple):
    """What the linear path reads of M steps, and what it is fitted to, in units of the running scale."""

    features_MF: Tensor
    target_MH: Tensor
    weight_MH: Tensor

    def loss(self, network: Volatility, weight_HF: Tensor, constant_HP: Tensor) -> Tensor:
        """Return the mean negative log density."""
        log_scale_MH = self.features_MF @ weight_HF.T
        parameters_MHP = constant_HP + log_scale_MH[..., None] * network.log_scale_P
        loss_MH = skewed_t_loss(network.output.density(parameters_MHP), self.target_MH)
        return (loss_MH * self.weight_MH).sum() / self.weight_MH.sum().clamp_min(1.0)


def solve_linear_path(network: Volatility, train: Windows) -> None:
    """Fit the linear path and the constant part of the density by maximum likelihood, as an econometrician would.

    All training steps at once, by L-BFGS, in which no seed has a part. The weights stay as they are found here;
    descent fits what the recurrent path adds, and keeps nothing of it that does not help on validation.
    """
    scored = train.input_size - train.input_size // 4
    # Twice as many windows as hold every step once: the steps of a window have pasts of different lengths.
    steps = _steps(network, train, min(MOST_SOLVED, 2 * math.ceil(len(train) / scored)))
    weight_HF = network.linear.weight.detach().double().requires_grad_()
    constant_HP = network.constant_HP.detach().double().requires_grad_()
    descent = torch.optim.LBFGS(
        [weight_HF, constant_HP], max_iter=100, history_size=20, line_search_fn="strong_wolfe"
    )

    def penalised_loss() -> float:
        descent.zero_grad()
        loss = steps.loss(network, weight_HF, constant_HP) + PENALTY * weight_HF.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    descent.step(penalised_loss)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        network.linear.weight.copy_(weight_HF)
        network.constant_HP.copy_(constant_HP)


def _steps(network: Volatility, windows: Windows, n_windows: int) -> _Steps:
    """Return the steps of evenly spread windows but those at their start, in double precision."""
    skip = windows.input_size // 4
    parts = []
    for chosen_B in torch.split(windows.spread(n_windows), BATCH):
        batch = windows.gather_every_step(chosen_B, skip, windows.horizon)
        features_BLF, anchor_BL, scale_BL = network.features(batch.inputs)
        features_BSF = network.standardise(features_BLF[:, skip:])
        scale_BS1 = scale_BL[:, skip:, None]
        target_BSH = ((batch.target_BSH - anchor_BL[:, skip:, None]) / scale_BS1).clamp(
            -TARGET_LIMIT, TARGET_LIMIT
        )
        weight_BSH = batch.target_mask_BSH & (scale_BS1 > SCALE_FLOOR)
        target_BSH = torch.where(weight_BSH, target_BSH, 0.0)
        parts.append([tensor.flatten(0, 1).double() for tensor in (features_BSF, target_BSH, weight_BSH)])
    return _Steps(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))


@torch.no_grad()
def start_warm(network: QuantileNetwork, before: QuantileNetwork) -> None:
    """Start a network from a fitted one of the same spec; its calibration is made anew."""
    network.load_state_dict(before.state_dict())
    network.offsets_HQ.zero_()
    if isinstance(network, Segment):
        network.share.fill_(1.0)


@torch.no_grad()
def weigh_linear(network: Segment, validation: Windows, units: Units) -> None:
    """Set the share of the network in its blend with the linear map: the one with the least squared error.

    It is a least-squares weight between 0 and 1, so it cannot be worse than either alone on the validation
    windows. Windows count as in the loss: alike, or in the units of their series.
    """
    if network.linear is None:
        return
    network.eval()
    covariance, variance = 0.0, 0.0
    for chosen_B in torch.split(validation.spread(MOST_WINDOWS), BATCH):
        batch = validation.gather(chosen_B)
        # While it is fitted the network stands alone: its share is still 1.
        alone = network.raw_forecast(batch.inputs)
        linear_BSH = network.linear(network.scale(batch.inputs).values_BL)[:, None]
        gain_BSH = alone.parameters_BSHP[..., network.output.location] - linear_BSH
        target_BSH = (batch.target_BSH - alone.anchor_BS[..., None]) / alone.scale_BS[..., None]
        weight_BSH = batch.target_mask_BSH & (alone.scale_BS > SCALE_FLOOR)[..., None] & (target_BSH.abs() < 1e3)
        unit_BS1 = torch.ones_like(alone.scale_BS)[..., None]
        if units == "series":
            unit_BS1 = (alone.scale_BS / batch.unit_B1.clamp_min(SCALE_FLOOR))[..., None]
        gain_BSH = torch.where(weight_BSH, gain_BSH * unit_BS1, 0.0)
        error_BSH = torch.where(weight_BSH, (target_BSH - linear_BSH) * unit_BS1, 0.0)
        covariance += float((gain_BSH * error_BSH).sum())
        variance += float(gain_BSH.square().sum())
    network.share.fill_(min(1.0, max(0.0, covariance / variance)) if variance > 0 else 0.0)
