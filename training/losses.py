"""The losses networks are fitted with, in units of each forecast's scale or of its series.

B batch, S steps forecasts are made at, H horizon, P parameters of the output, Q quantiles.
"""

import math
from typing import Any

import torch
from torch import Tensor

from forecasting.networks.base import RawForecast
from forecasting.networks.outputs import (
    LIGHT_TAILS,
    Output,
    SkewedTDensity,
    SkewedTOutput,
    StudentTOutput,
    hansen_constants,
)
from forecasting.scaling import SCALE_FLOOR
from training.job import LossKind, Units
from training.windows import Batch

TARGET_LIMIT = 50.0
"""Targets further than this many scales away are drawn in: a sensor that sticks and jumps must not rule."""


class ForecastLoss:
    """The loss of a raw forecast, over all targets that carry weight.

    A forecast is made in the scale of its window. Loss in those units lets every window count alike; loss in the
    units of the series lets a window count as its errors do, which is what a score over the series measures.
    """

    def __init__(self, kind: LossKind, units: Units, output: Output, quantiles_Q: Tensor) -> None:
        self.kind, self.units, self.output, self.quantiles_Q = kind, units, output, quantiles_Q

    def __call__(self, forecast: RawForecast, batch: Batch) -> Tensor:
        """Return the mean loss."""
        target_BSH = (batch.target_BSH - forecast.anchor_BS[..., None]) / forecast.scale_BS[..., None]
        moving_BS1 = (forecast.scale_BS > SCALE_FLOOR)[..., None]
        weight_BSH = (batch.target_mask_BSH & moving_BS1).to(target_BSH.dtype)
        target_BSH = torch.where(weight_BSH > 0, target_BSH.clamp(-TARGET_LIMIT, TARGET_LIMIT), 0.0)
        loss_BSH = self._each(forecast.parameters_BSHP.float(), target_BSH)
        if self.units == "series" and self.kind != "likelihood":
            share_BS1 = (forecast.scale_BS / batch.unit_B1.clamp_min(SCALE_FLOOR))[..., None]
            loss_BSH = loss_BSH * (share_BS1.square() if self.kind == "squared" else share_BS1)
        return (loss_BSH * weight_BSH).sum() / weight_BSH.sum().clamp_min(1.0)

    def _each(self, parameters_BSHP: Tensor, target_BSH: Tensor) -> Tensor:
        match self.kind:
            case "quantile":
                return pinball(self.output.quantiles(parameters_BSHP), target_BSH, self.quantiles_Q)
            case "likelihood":
                return self._likelihood(parameters_BSHP, target_BSH)
            case "squared":
                return (parameters_BSHP[..., self.output.location] - target_BSH).square()
            case "absolute":
                return (parameters_BSHP[..., self.output.location] - target_BSH).abs()

    def _likelihood(self, parameters_BSHP: Tensor, target_BSH: Tensor) -> Tensor:
        match self.output:
            case StudentTOutput():
                return student_t_loss(self.output.density(parameters_BSHP), target_BSH)
            case SkewedTOutput():
                return skewed_t_loss(self.output.density(parameters_BSHP), target_BSH)
            case _:
                raise TypeError("only a density has a likelihood")


def pinball(predicted_BSHQ: Tensor, target_BSH: Tensor, quantiles_Q: Tensor) -> Tensor:
    """Return the mean pinball loss over the quantiles, `(B, S, H)`.

    Its minimum over a distribution is that distribution's quantiles (Koenker and Bassett, 1978); its mean
    over a fine grid of quantiles is half the CRPS.
    """
    loss_BSH: Tensor = _Pinball.apply(predicted_BSHQ, target_BSH, quantiles_Q)  # type: ignore[no-untyped-call]
    return loss_BSH


class _Pinball(torch.autograd.Function):
    """The pinball loss with the derivative written out: a quarter of the time autograd takes for its pieces."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, predicted_BSHQ: Tensor, target_BSH: Tensor, quantiles_Q: Tensor
    ) -> Tensor:
        error_BSHQ = target_BSH[..., None] - predicted_BSHQ
        slope_BSHQ = quantiles_Q - (error_BSHQ < 0).to(error_BSHQ.dtype)
        ctx.save_for_backward(slope_BSHQ)
        return (error_BSHQ * slope_BSHQ).mean(dim=-1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:  # noqa: ANN401  (as torch types it)
        (slope_BSHQ,) = ctx.saved_tensors
        return slope_BSHQ * (-grads[0] / slope_BSHQ.shape[-1])[..., None], None, None


def student_t_loss(density: tuple[Tensor, Tensor, Tensor], target_BSH: Tensor) -> Tensor:
    """Return the negative log density of a Student-t, `(B, S, H)`.

    It is written in the inverse of the degrees of freedom, so that it passes into the normal one where tails are
    light; there the ratio of gamma functions is taken from its series, which single precision would lose.
    """
    location_BSH, scale_BSH, inverse_BSH = density
    inverse_BSH = inverse_BSH.clamp_min(1e-6)
    degrees_BSH = 1.0 / inverse_BSH.clamp_min(LIGHT_TAILS)
    exact_BSH = torch.lgamma(degrees_BSH / 2) - torch.lgamma((degrees_BSH + 1) / 2) + 0.5 * torch.log(degrees_BSH)
    series_BSH = 0.5 * math.log(2.0) + inverse_BSH / 4 - inverse_BSH**3 / 24
    normaliser_BSH = torch.where(inverse_BSH < LIGHT_TAILS, series_BSH, exact_BSH) + 0.5 * math.log(math.pi)
    squared_BSH = ((target_BSH - location_BSH) / scale_BSH).square()
    tails_BSH = 0.5 * (1.0 / inverse_BSH + 1.0) * torch.log1p(squared_BSH * inverse_BSH)
    return normaliser_BSH + torch.log(scale_BSH) + tails_BSH


def skewed_t_loss(density: SkewedTDensity, target_BSH: Tensor) -> Tensor:
    """Return the negative log density of Hansen's skewed Student-t (1994), `(B, S, H)`.

    As that of the Student-t it is written in the inverse of the degrees of freedom, down to the normal one.
    """
    location_BSH, scale_BSH, tail_BSH, skew_BSH = density
    tail_BSH = tail_BSH.clamp_min(1e-6)
    log_c, a, b = hansen_constants(tail_BSH, skew_BSH)
    moved_BSH = b * (target_BSH - location_BSH) / scale_BSH + a
    squared_BSH = (moved_BSH / torch.where(moved_BSH < 0, 1 - skew_BSH, 1 + skew_BSH)).square()
    tails_BSH = 0.5 * (1.0 / tail_BSH + 1.0) * torch.log1p(squared_BSH * (tail_BSH / (1 - 2 * tail_BSH)))
    return torch.log(scale_BSH) - torch.log(b) - log_c + tails_BSH
