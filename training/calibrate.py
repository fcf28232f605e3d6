"""Calibration on the validation block: one formula for networks and for baselines.

For each step and quantile the offset is the conformal quantile of the residuals in units of the forecast's own
scale. For a point forecast that makes its intervals (split conformal prediction: Lei et al., 2018); for a
network it corrects its quantiles (conformalised quantile regression: Romano et al., 2019), per step.

A volatility network is corrected in its scale alone. Offsets are constant in units of the running scale and so
wrong in every regime but the mean one, and they move the middle by what a block happened to return. Compared on
the S&P 500 of 2007 to 2014 (three fits, each calibrated on the two years before its test) and on 44 shares in 2014
and 2015: a factor on the scale from the validation likelihood improved QLIKE and the tails wherever it widened,
and made CRPS, QLIKE and tails worse wherever a calm block had it narrow. So it may widen, and nothing else.

B batch, H horizon, Q quantiles, M validation windows.
"""

import math

import torch
from torch import Tensor

from forecasting.networks import QuantileNetwork
from forecasting.networks.ensemble import Ensemble
from forecasting.networks.volatility import Volatility
from forecasting.scaling import SCALE_FLOOR
from training.losses import skewed_t_loss
from training.windows import Windows

MOST_WINDOWS = 8192
BATCH = 1024
FEW_RESIDUALS = 10
"""Below this many residuals at a step, quantiles of residuals mean nothing and a network is left as it is."""

WIDEST, FACTORS = 2.0, 71
"""The largest factor on a scale, and how many from 1 to it are tried."""


@torch.inference_mode()
def calibrate(network: QuantileNetwork, validation: Windows, quantiles: tuple[float, ...]) -> None:
    """Set the network's `offsets_HQ` from its residuals on the validation windows; widen a volatility network."""
    network.eval()
    members = network.networks() if isinstance(network, Ensemble) else [network]
    if all(isinstance(member, Volatility) for member in members):
        for member in members:
            if isinstance(member, Volatility):
                _widen(member, validation)
        return
    residual_MHQ = _residuals(network, validation)
    offsets_HQ = torch.zeros_like(network.offsets_HQ)
    for h in range(residual_MHQ.shape[1]):
        residual_MQ = residual_MHQ[:, h][~residual_MHQ[:, h].isnan().any(dim=1)]
        if len(residual_MQ) >= FEW_RESIDUALS:
            for q, probability in enumerate(quantiles):
                offsets_HQ[h, q] = _conformal_quantile(residual_MQ[:, q], probability)
    network.offsets_HQ.copy_(offsets_HQ)


def _widen(network: Volatility, validation: Windows) -> None:
    """Multiply the scale of each step by the factor, 1 or above, under which the validation block is likeliest."""
    log_factor_G = torch.linspace(0.0, math.log(WIDEST), FACTORS, device=validation.data.device)
    gain_GH = torch.zeros(FACTORS, network.horizon, dtype=torch.float64, device=log_factor_G.device)
    for chosen_B in torch.split(validation.spread(MOST_WINDOWS), BATCH):
        batch = validation.gather(chosen_B)
        raw = network.raw_forecast(batch.inputs)
        density = network.output.density(raw.parameters_BSHP)
        weight_BSH = batch.target_mask_BSH & (raw.scale_BS > SCALE_FLOOR)[..., None]
        target_BSH = (batch.target_BSH - raw.anchor_BS[..., None]) / raw.scale_BS[..., None]
        target_BSH = torch.where(weight_BSH, target_BSH, 0.0)
        for g, log_factor in enumerate(log_factor_G):
            wider = density._replace(scale=density.scale * log_factor.exp())
            gain_GH[g] -= (skewed_t_loss(wider, target_BSH) * weight_BSH).sum(dim=(0, 1))
    network.constant_HP.add_(log_factor_G[gain_GH.argmax(dim=0), None] * network.log_scale_P)


def _residuals(network: QuantileNetwork, validation: Windows) -> Tensor:
    """Return target minus forecast in scales, NaN where there is nothing to compare."""
    parts = []
    for chosen_B in torch.split(validation.spread(MOST_WINDOWS), BATCH):
        batch = validation.gather(chosen_B)
        forecast = network.scaled_forecast(batch.inputs)
        anchor_B1, scale_B1 = forecast.anchor_BS[:, -1:], forecast.scale_BS[:, -1:]
        target_BH = (batch.target_BSH[:, -1] - anchor_B1) / scale_B1
        known_BH = batch.target_mask_BSH[:, -1] & (scale_B1 > SCALE_FLOOR)
        target_BH = torch.where(known_BH, target_BH, torch.nan)
        parts.append(target_BH[..., None] - forecast.values_BSHQ[:, -1])
    return torch.cat(parts)


def _conformal_quantile(residual_M: Tensor, probability: float) -> Tensor:
    """Return the residual that a share of `probability` of new ones stays below, corrected for M being finite."""
    count = len(residual_M)
    # Outwards from the median, which has no outside: to push it down would be a bias.
    outwards = 0.0 if probability == 0.5 else probability if probability > 0.5 else probability - 1
    return torch.quantile(residual_M.double(), min(1.0, max(0.0, probability + outwards / count))).float()
