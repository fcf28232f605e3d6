"""The loss networks are fitted with.

B batch, S steps forecasts are made at, H horizon, Q quantiles.
"""

import torch
from torch import Tensor


def pinball_loss(predicted_BSHQ: Tensor, target_BSH: Tensor, weight_BSH: Tensor, quantiles_Q: Tensor) -> Tensor:
    """Return the mean pinball loss over quantiles and all targets that carry weight.

    Its minimum over a distribution is that distribution's quantiles (Koenker and Bassett, 1978); its mean
    over a fine grid of quantiles is half the CRPS.
    """
    error_BSHQ = target_BSH[..., None] - predicted_BSHQ
    loss_BSHQ = torch.maximum(quantiles_Q * error_BSHQ, (quantiles_Q - 1.0) * error_BSHQ)
    return (loss_BSHQ.mean(dim=-1) * weight_BSH).sum() / weight_BSH.sum().clamp_min(1.0)
