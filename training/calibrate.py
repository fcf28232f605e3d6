"""Calibration on the validation block: one formula for networks and for baselines.

For each step and quantile the offset is the conformal quantile of the residuals in units of the forecast's own
scale. For a point forecast that makes its intervals (split conformal prediction: Lei et al., 2018); for a
network it corrects its quantiles (conformalised quantile regression: Romano et al., 2019), per step.

B batch, H horizon, Q quantiles, M validation windows.
"""

import torch
from torch import Tensor

from forecasting.networks import QuantileNetwork
from forecasting.scaling import SCALE_FLOOR
from training.windows import Windows

MOST_WINDOWS = 8192
BATCH = 1024
FEW_RESIDUALS = 10
"""Below this many residuals at a step, quantiles of residuals mean nothing and a network is left as it is."""


@torch.inference_mode()
def calibrate(network: QuantileNetwork, validation: Windows, quantiles: tuple[float, ...]) -> None:
    """Set the network's `offsets_HQ` from its residuals on the validation windows."""
    network.eval()
    residual_MHQ = _residuals(network, validation)
    offsets_HQ = torch.zeros_like(network.offsets_HQ)
    for h in range(residual_MHQ.shape[1]):
        residual_MQ = residual_MHQ[:, h][~residual_MHQ[:, h].isnan().any(dim=1)]
        if len(residual_MQ) >= FEW_RESIDUALS:
            for q, probability in enumerate(quantiles):
                offsets_HQ[h, q] = _conformal_quantile(residual_MQ[:, q], probability)
    network.offsets_HQ.copy_(offsets_HQ)


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
