"""What a network says of each step: the parameters of an output, and the quantiles they stand for.

Every output starts as the forecast of a random walk: a distribution about the anchor that widens with the
square root of the step. Quantiles ascend by construction.

B batch, S steps a forecast is made at, H horizon, P parameters, Q quantiles.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtr, stdtrit
from torch import Tensor, nn

from forecasting.spec import Head

LOWEST_SCALE = 1e-4
HEAVIEST = 0.5
"""Largest inverse of the degrees of freedom: with two or fewer a Student-t has no variance."""
GRID = 257

LOG_SCALE_LIMIT = 8.0
HEAVIEST_STANDARDISED = 0.49
"""The same where the density is held by its standard deviation, which must not only exist but be worked with."""
MOST_SKEWED = 0.99
NORMAL_SCORES, FARTHEST_SCORE = 193, 6.5
LIGHT_TAILS = 0.02
"""Inverse degrees of freedom below which a Student-t is nearly normal."""


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
        case "skewed_t":
            return SkewedTOutput(probabilities)
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


class SkewedTDensity(NamedTuple):
    """A skewed Student-t by what can be said of it, in tensors of one shape, mostly `(B, S, H)`."""

    location: Tensor
    """Its mean."""
    scale: Tensor
    """Its standard deviation."""
    tail: Tensor
    """The inverse of its degrees of freedom, from 0 (normal) to below 0.5."""
    skew: Tensor
    """Between -1 and 1; below 0 the left tail is the longer one."""


class SkewedTOutput(Output):
    """The skewed Student-t of Hansen (1994): location, log scale, how heavy its tails are, and how skewed it is.

    It is held by its mean and its standard deviation, so that whatever the tails learn, the scale is the square
    root of the variance. Quantiles are put together from those of a Student-t, read off a table of exact ones that
    is linear in the inverse of the degrees of freedom and in the normal score of the probability.

    Hansen, B. E. (1994). Autoregressive conditional density estimation. International Economic Review 35(3).
    """

    is_log_scale = (0.0, 1.0, 0.0, 0.0)
    """One at the parameter to which is added what scales the distribution by its exponential."""

    probability_Q: Tensor
    table_GN: Tensor

    def __init__(self, probabilities: Sequence[float]) -> None:
        super().__init__()
        self.n_parameters, self.location = 4, 0
        self.register_buffer("probability_Q", torch.tensor(list(probabilities)), persistent=False)
        self.register_buffer("table_GN", torch.tensor(_student_t_table().tolist()), persistent=False)

    def density(self, parameters_BSHP: Tensor) -> SkewedTDensity:
        """Return mean, standard deviation, inverse degrees of freedom and skew, each `(B, S, H)`."""
        location, log_scale, tail, skew = parameters_BSHP.unbind(dim=-1)
        return SkewedTDensity(
            location,
            torch.exp(log_scale.clamp(-LOG_SCALE_LIMIT, LOG_SCALE_LIMIT)),
            HEAVIEST_STANDARDISED * torch.sigmoid(tail),
            MOST_SKEWED * torch.tanh(skew),
        )

    def quantiles(self, parameters_BSHP: Tensor) -> Tensor:
        density = self.density(parameters_BSHP)
        standard_BSHQ = self._standard_quantiles(density.tail[..., None], density.skew[..., None])
        return density.location[..., None] + density.scale[..., None] * standard_BSHQ

    def _standard_quantiles(self, tail: Tensor, skew: Tensor) -> Tensor:
        """Return the quantiles of mean 0 and variance 1, for tails and skews that end in an axis of length 1."""
        below = self.probability_Q < 0.5 * (1 - skew)
        side = torch.where(below, 1 - skew, 1 + skew)
        # The probability of lying further out on the same side, which single precision holds where 1 - p is lost.
        outside = torch.where(below, self.probability_Q, 1 - self.probability_Q) / side
        student = self._student_t(outside, tail) * (1 - 2 * tail).sqrt()
        centre, spread = hansen_constants(tail, skew)[1:]
        return (torch.where(below, -side, side) * student - centre) / spread

    def _student_t(self, outside: Tensor, tail: Tensor) -> Tensor:
        """Return how far out a Student-t is with that probability above it, of at most a half."""
        score = -torch.special.ndtri(outside.clamp(1e-10, 0.5))
        n_tails, n_scores = self.table_GN.shape
        row, column = tail * ((n_tails - 1) / HEAVIEST), score.clamp_max(FARTHEST_SCORE) * _PER_SCORE
        g, n = row.long().clamp_max(n_tails - 2), column.long().clamp_max(n_scores - 2)
        by_tail = [torch.lerp(self.table_GN[g, n + i], self.table_GN[g + 1, n + i], row - g) for i in (0, 1)]
        student: Tensor = score * torch.exp(torch.lerp(by_tail[0], by_tail[1], column - n))
        return student

    def start(self, horizon: int) -> Tensor:
        log_scale_H = 0.5 * torch.log(torch.arange(1, horizon + 1))
        zero_H = torch.zeros(horizon)
        return torch.stack([zero_H, log_scale_H, torch.full((horizon,), -1.5), zero_H], dim=1)


_PER_SCORE = (NORMAL_SCORES - 1) / FARTHEST_SCORE


@lru_cache(maxsize=1)
def _student_t_table() -> NDArray[np.float64]:
    """Return the log of Student-t quantiles over normal ones, by inverse degrees of freedom and normal score."""
    inverse_G1 = np.linspace(0.0, HEAVIEST, GRID)[:, None]
    # At the median both are zero; just beside it their ratio is its limit.
    score_N = np.maximum(np.linspace(0.0, FARTHEST_SCORE, NORMAL_SCORES), 1e-3)
    student_GN = -stdtrit(1.0 / np.maximum(inverse_G1, 1e-9), ndtr(-score_N))
    ratio_GN: NDArray[np.float64] = np.log(student_GN / score_N)
    return ratio_GN


def hansen_constants(tail: Tensor, skew: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return log c, a and b of Hansen's density, from the inverse degrees of freedom and the skew.

    The ratio of gamma functions is taken from its series where tails are light, which single precision would lose.
    """
    tail = tail.clamp_min(1e-6)
    degrees = 1.0 / tail.clamp_min(LIGHT_TAILS)
    exact = torch.lgamma((degrees + 1) / 2) - torch.lgamma(degrees / 2) - 0.5 * torch.log(degrees)
    series = -0.5 * math.log(2.0) - tail / 4 + tail**3 / 24
    log_c = torch.where(tail < LIGHT_TAILS, series, exact) - 0.5 * (math.log(math.pi) + torch.log1p(-2 * tail))
    a = 4 * skew * torch.exp(log_c) * (1 - 2 * tail) / (1 - tail)
    b = (1 + 3 * skew.square() - a.square()).sqrt()
    return log_c, a, b


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
