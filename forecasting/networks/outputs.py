"""What a network says of each step: the parameters of an output, and the quantiles they stand for.

Every output starts as the forecast of a random walk: a distribution about the anchor that widens with the
square root of the step. Quantiles ascend by construction.

B batch, S steps a forecast is made at, H horizon, P parameters, Q quantiles.
"""

from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
import torch
from scipy.special import stdtrit
from torch import Tensor, nn

from forecasting.spec import Head

LOWEST_SCALE = 1e-4
HEAVIEST = 0.5
"""Largest inverse of the degrees of freedom: with two or fewer a Student-t has no variance."""
GRID = 257


class Output(nn.Module):
    """Turns parameters into quantiles; `location` is the parameter that shifts the whole distribution."""

    n_parameters: int
    location: int

    def quantiles(self, parameters_BSHP: Tensor) -> Tensor:
        """Return `(B, S, H, Q)` quantiles, ascending."""
        raise NotImplementedError

    def start(self, horizon: int) -> Tensor:
        """Return the `(H, P)` parameters of a random walk."""
        raise NotImplementedError


def build_output(head: Head, probabilities: Sequence[float]) -> Output:
    """Build the output a spec names."""
    match head:
        case "quantile":
            return QuantileOutput(probabilities)
        case "student_t":
            return StudentTOutput(probabilities)
        case "point":
            return PointOutput(probabilities)


def _inverse_softplus(value: Tensor) -> Tensor:
    return torch.log(torch.expm1(value))


class QuantileOutput(Output):
    """One parameter is the middle quantile; the others are positive gaps (softplus) summed outwards from it.

    As in the incremental quantile functions of Park et al., 2022 (arXiv:2111.06581): they cannot cross.
    """

    outwards_QQ: Tensor

    def __init__(self, probabilities: Sequence[float]) -> None:
        super().__init__()
        self.probabilities = tuple(probabilities)
        self.n_parameters = len(probabilities)
        self.location = min(range(len(probabilities)), key=lambda i: abs(probabilities[i] - 0.5))
        self.register_buffer("outwards_QQ", self._outwards(), persistent=False)

    def _outwards(self) -> Tensor:
        """Return the matrix that sums gaps outwards: row = gap, column = quantile, -1 below the middle."""
        matrix_QQ = torch.zeros(self.n_parameters, self.n_parameters)
        for gap in range(self.n_parameters):
            if gap < self.location:
                matrix_QQ[gap, : gap + 1] = -1.0
            elif gap > self.location:
                matrix_QQ[gap, gap:] = 1.0
        return matrix_QQ

    def quantiles(self, parameters_BSHP: Tensor) -> Tensor:
        if self.n_parameters == 1:
            return parameters_BSHP
        gaps_BSHQ = nn.functional.softplus(parameters_BSHP)
        return parameters_BSHP[..., self.location, None] + gaps_BSHQ @ self.outwards_QQ

    def start(self, horizon: int) -> Tensor:
        normal_Q = torch.tensor([NormalDist().inv_cdf(q) for q in self.probabilities])
        width_H1 = torch.arange(1, horizon + 1).sqrt()[:, None]
        gap_Q = torch.zeros_like(normal_Q)
        gap_Q[: self.location] = normal_Q[1 : self.location + 1] - normal_Q[: self.location]
        gap_Q[self.location + 1 :] = normal_Q[self.location + 1 :] - normal_Q[self.location : -1]
        start_HQ = _inverse_softplus((gap_Q * width_H1).clamp_min(1e-3))
        start_HQ[:, self.location] = 0.0
        return start_HQ


class StudentTOutput(Output):
    """A Student-t density: location, scale (softplus), and how heavy its tails are.

    Tails are held as the inverse of the degrees of freedom, from 0 (a normal distribution) to below 0.5, so
    that the variance exists. Quantiles are read off a table of exact ones, linearly in that inverse.
    """

    table_GQ: Tensor

    def __init__(self, probabilities: Sequence[float]) -> None:
        super().__init__()
        self.n_parameters, self.location = 3, 0
        inverse_G1 = np.linspace(0.0, HEAVIEST, GRID)[:, None]
        degrees_G1 = 1.0 / np.maximum(inverse_G1, 1e-9)
        table_GQ = stdtrit(degrees_G1, np.asarray(probabilities)[None, :])
        self.register_buffer("table_GQ", torch.tensor(table_GQ.tolist()), persistent=False)

    def density(self, parameters_BSHP: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return location, scale and inverse degrees of freedom, each `(B, S, H)`."""
        location, scale, tail = parameters_BSHP.unbind(dim=-1)
        return location, nn.functional.softplus(scale) + LOWEST_SCALE, HEAVIEST * torch.sigmoid(tail)

    def quantiles(self, parameters_BSHP: Tensor) -> Tensor:
        location_BSH, scale_BSH, inverse_BSH = self.density(parameters_BSHP)
        place_BSH = inverse_BSH * ((GRID - 1) / HEAVIEST)
        below_BSH = place_BSH.long().clamp_max(GRID - 2)
        share_BSH1 = (place_BSH - below_BSH)[..., None]
        standard_BSHQ = torch.lerp(self.table_GQ[below_BSH], self.table_GQ[below_BSH + 1], share_BSH1)
        return location_BSH[..., None] + scale_BSH[..., None] * standard_BSHQ

    def start(self, horizon: int) -> Tensor:
        scale_H = _inverse_softplus(torch.arange(1, horizon + 1).sqrt())
        return torch.stack([torch.zeros(horizon), scale_H, torch.full((horizon,), -2.0)], dim=1)


class PointOutput(Output):
    """One value; its intervals are the residual quantiles that calibration stores."""

    def __init__(self, probabilities: Sequence[float]) -> None:
        super().__init__()
        self.n_quantiles = len(probabilities)
        self.n_parameters, self.location = 1, 0

    def quantiles(self, parameters_BSHP: Tensor) -> Tensor:
        return parameters_BSHP.expand(*parameters_BSHP.shape[:-1], self.n_quantiles)

    def start(self, horizon: int) -> Tensor:
        return torch.zeros(horizon, 1)
