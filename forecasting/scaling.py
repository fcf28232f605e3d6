"""Scaling that lives inside the network: raw units in, raw units out, nothing fitted to ship or to leak.

B batch, L input_size. Windows are scaled by their own statistics; every-step networks by running ones, which
at step t have seen nothing later than t. Both return an anchor and a scale with which outputs are read back:
`value = anchor + scale * output`, so forecasts follow any shift and any rescaling of their input exactly.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

Scaling = Literal["mean", "last", "difference"]
"""What the network sees and what its output is relative to.

`mean`: levels about the mean, forecasts about the mean. `last`: levels about the last value, forecasts about
the last value. `difference`: step-to-step changes, forecasts about the last value (returns; random walks).
"""

SCALE_FLOOR = 1e-20
"""The scale of a window in which nothing moved: its forecast is flat, and training leaves it out."""

CHUNK = 128


class Scaled(NamedTuple):
    """Network inputs without units, and what turns outputs back into units."""

    levels_BL: Tensor
    differences_BL: Tensor
    anchor_BS: Tensor
    scale_BS: Tensor


class RunningState(NamedTuple):
    """What running scaling remembers of a series: two decayed sums with their weights, and the last value."""

    level_sum_B: Tensor
    level_weight_B: Tensor
    spread_sum_B: Tensor
    spread_weight_B: Tensor
    last_B: Tensor
    seen_B: Tensor


def fill_forward(x_BL: Tensor, mask_BL: Tensor) -> Tensor:
    """Replace missing values by the last observed one, or by the first where none came before."""
    positions_L = torch.arange(x_BL.shape[1], device=x_BL.device)
    latest_BL = torch.where(mask_BL, positions_L, -1).cummax(dim=1).values
    first_B1 = mask_BL.int().argmax(dim=1, keepdim=True)
    return x_BL.gather(1, torch.where(latest_BL >= 0, latest_BL, first_B1))


def _differences(filled_BL: Tensor, previous_B1: Tensor, mask_BL: Tensor) -> Tensor:
    steps_BL = filled_BL - torch.cat([previous_B1, filled_BL[:, :-1]], dim=1)
    return steps_BL * mask_BL


def scale_window(x_BL: Tensor, mask_BL: Tensor, scaling: Scaling) -> Scaled:
    """Scale each window by its own statistics; S is 1: one anchor and one scale a window."""
    weight_BL = mask_BL.to(x_BL.dtype)
    filled_BL = fill_forward(x_BL, mask_BL)
    last_B1 = filled_BL[:, -1:]
    count_B1 = weight_BL.sum(dim=1, keepdim=True).clamp_min(1.0)
    mean_B1 = (filled_BL * weight_BL).sum(dim=1, keepdim=True) / count_B1
    differences_BL = _differences(filled_BL, filled_BL[:, :1], mask_BL)
    if scaling == "difference":
        spread_B1 = differences_BL.abs().sum(dim=1, keepdim=True) / (count_B1 - 1).clamp_min(1.0)
    else:
        variance_B1 = ((filled_BL - mean_B1).square() * weight_BL).sum(dim=1, keepdim=True) / count_B1
        spread_B1 = variance_B1.sqrt()
    scale_B1 = spread_B1.clamp_min(SCALE_FLOOR)
    anchor_B1 = mean_B1 if scaling == "mean" else last_B1
    return Scaled((filled_BL - anchor_B1) / scale_B1, differences_BL / scale_B1, anchor_B1, scale_B1)


def scale_running(
    x_BL: Tensor, mask_BL: Tensor, scaling: Scaling, span: int, state: RunningState | None = None
) -> tuple[Scaled, RunningState]:
    """Scale each step by an exponentially weighted mean and mean deviation of the steps up to it.

    Args:
        x_BL: values, anything where the mask is False.
        mask_BL: True where observed.
        scaling: see `Scaling`.
        span: steps over which the weights fall to 1/e squared (decay 1 - 2 / (span + 1)).
        state: where an earlier chunk of the same series ended; None starts afresh.

    Returns:
        Inputs and read-back values for every step (S is L), and the state after the last one.
    """
    state = state or _fresh_state(x_BL)
    decay = 1.0 - 2.0 / (span + 1.0)
    weight_BL = mask_BL.to(x_BL.dtype)
    filled_BL = _fill_from(x_BL, mask_BL, state)
    level_BL, level_state = _running_mean(filled_BL, weight_BL, decay, (state.level_sum_B, state.level_weight_B))
    # The first value of a series has no predecessor: its difference is zero and carries no weight.
    started_BL = (torch.cumsum(weight_BL, dim=1) - weight_BL + state.seen_B[:, None]) > 0
    previous_B1 = torch.where(state.seen_B > 0, state.last_B, filled_BL[:, 0])[:, None]
    differences_BL = _differences(filled_BL, previous_B1, mask_BL) * started_BL
    moved_BL = differences_BL if scaling == "difference" else filled_BL - level_BL
    spread_BL, spread_state = _running_mean(
        moved_BL.abs(), weight_BL * started_BL, decay, (state.spread_sum_B, state.spread_weight_B)
    )
    scale_BL = spread_BL.clamp_min(SCALE_FLOOR)
    scaled = Scaled(
        (filled_BL - level_BL) / scale_BL * mask_BL,
        differences_BL / scale_BL,
        level_BL if scaling == "mean" else filled_BL,
        scale_BL,
    )
    seen_B = state.seen_B + weight_BL.sum(dim=1)
    return scaled, RunningState(*level_state, *spread_state, filled_BL[:, -1], seen_B)


def _fresh_state(x_BL: Tensor) -> RunningState:
    zero_B = torch.zeros_like(x_BL[:, 0])
    return RunningState(zero_B, zero_B, zero_B, zero_B, zero_B, zero_B)


def _fill_from(x_BL: Tensor, mask_BL: Tensor, state: RunningState) -> Tensor:
    """Fill forward from the state's last value; before any observation, zero (never a later value)."""
    positions_L = torch.arange(x_BL.shape[1], device=x_BL.device)
    latest_BL = torch.where(mask_BL, positions_L, -1).cummax(dim=1).values
    before_B1 = state.last_B[:, None].expand_as(x_BL)
    return torch.where(latest_BL >= 0, x_BL.gather(1, latest_BL.clamp_min(0)), before_B1)


def _running_mean(
    value_BL: Tensor, weight_BL: Tensor, decay: float, state: tuple[Tensor, Tensor]
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Return the decayed weighted mean at every step, chunk by chunk as one triangular product each."""
    sum_B, total_B = state
    means = []
    for value_BC, weight_BC in zip(
        torch.split(value_BL, CHUNK, dim=1), torch.split(weight_BL, CHUNK, dim=1), strict=True
    ):
        steps_C = torch.arange(value_BC.shape[1], device=value_BC.device, dtype=value_BC.dtype)
        lag_CC = steps_C[:, None] - steps_C[None, :]
        decay_CC = torch.where(lag_CC >= 0, decay**lag_CC, 0.0)
        carry_C = decay ** (steps_C + 1)
        sum_BC = (value_BC * weight_BC) @ decay_CC.T + sum_B[:, None] * carry_C
        total_BC = weight_BC @ decay_CC.T + total_B[:, None] * carry_C
        means.append(torch.where(total_BC > 0, sum_BC / total_BC.clamp_min(1e-30), 0.0))
        sum_B, total_B = sum_BC[:, -1], total_BC[:, -1]
    return torch.cat(means, dim=1), (sum_B, total_B)
