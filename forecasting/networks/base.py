"""What every network shares: a masked window in, quantiles for every step of the horizon out.

B batch, L input_size, S steps a forecast is made at (1, or L for every-step networks), H horizon,
Q quantiles, D hidden.
"""

from statistics import NormalDist
from typing import NamedTuple

import torch
from torch import Tensor, nn

from forecasting.spec import ForecasterSpec


class ScaledForecast(NamedTuple):
    """Quantiles without units; in units they are `anchor + scale * values`."""

    values_BSHQ: Tensor
    anchor_BS: Tensor
    scale_BS: Tensor


class QuantileNetwork(nn.Module):
    """Map `(B, L)` values and a mask to `(B, H, Q)` quantiles in the same units."""

    offsets_HQ: Tensor

    def __init__(self, spec: ForecasterSpec) -> None:
        super().__init__()
        self.horizon = spec.horizon
        self.n_quantiles = len(spec.quantiles)
        # What calibration adds in scaled units: the residual quantiles of a baseline, the conformal
        # correction of a network.
        self.register_buffer("offsets_HQ", torch.zeros(spec.horizon, self.n_quantiles))

    def scaled_forecast(self, x_BL: Tensor, mask_BL: Tensor) -> ScaledForecast:
        """Return the uncalibrated forecast after the last step (S is 1)."""
        raise NotImplementedError

    def forward(self, x_BL: Tensor, mask_BL: Tensor) -> Tensor:
        """Return calibrated quantiles, ascending along the last axis."""
        values_BSHQ, anchor_BS, scale_BS = self.scaled_forecast(x_BL, mask_BL)
        values_BHQ = (values_BSHQ[:, -1] + self.offsets_HQ).cummax(dim=-1).values
        return anchor_BS[:, -1, None, None] + scale_BS[:, -1, None, None] * values_BHQ


class QuantileHead(nn.Module):
    """Decode a hidden vector to quantiles that cannot cross.

    One unit is the middle quantile; the others are positive gaps (softplus) summed outwards from it, as in
    the incremental quantile functions of Park et al., 2022 (arXiv:2111.06581). It starts as a normal
    distribution about zero that widens with the square root of the step: the forecast of a random walk.
    """

    outwards_QQ: Tensor

    def __init__(self, hidden_size: int, horizon: int, quantiles: tuple[float, ...]) -> None:
        super().__init__()
        self.horizon, self.n_quantiles = horizon, len(quantiles)
        self.middle = min(range(len(quantiles)), key=lambda i: abs(quantiles[i] - 0.5))
        self.linear = nn.Linear(hidden_size, horizon * len(quantiles))
        self.register_buffer("outwards_QQ", self._outwards(), persistent=False)
        self._start_as_random_walk(quantiles)

    def _outwards(self) -> Tensor:
        """Return the matrix that sums gaps outwards: row = gap, column = quantile, -1 below the middle."""
        matrix_QQ = torch.zeros(self.n_quantiles, self.n_quantiles)
        for gap in range(self.n_quantiles):
            if gap < self.middle:
                matrix_QQ[gap, : gap + 1] = -1.0
            elif gap > self.middle:
                matrix_QQ[gap, gap:] = 1.0
        return matrix_QQ

    def _start_as_random_walk(self, quantiles: tuple[float, ...]) -> None:
        normal_Q = torch.tensor([NormalDist().inv_cdf(q) for q in quantiles])
        width_H1 = torch.arange(1, self.horizon + 1).sqrt()[:, None]
        gap_Q = torch.zeros_like(normal_Q)
        gap_Q[: self.middle] = normal_Q[1 : self.middle + 1] - normal_Q[: self.middle]
        gap_Q[self.middle + 1 :] = normal_Q[self.middle + 1 :] - normal_Q[self.middle : -1]
        bias_HQ = torch.log(torch.expm1((gap_Q * width_H1).clamp_min(1e-3)))
        bias_HQ[:, self.middle] = 0.0
        with torch.no_grad():
            self.linear.weight.mul_(0.1)
            self.linear.bias.copy_(bias_HQ.flatten())

    def forward(self, hidden_BSD: Tensor) -> Tensor:
        """Return `(B, S, H, Q)` quantiles, ascending."""
        raw_BSHQ: Tensor = self.linear(hidden_BSD).unflatten(-1, (self.horizon, self.n_quantiles))
        gaps_BSHQ = nn.functional.softplus(raw_BSHQ)
        return raw_BSHQ[..., self.middle, None] + gaps_BSHQ @ self.outwards_QQ
