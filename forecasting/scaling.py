"""Scaling that lives inside the network: raw units in, raw units out, nothing fitted to ship or to leak.

B batch, L input_size. Windows are scaled by their own statistics; every-step networks by running ones, which
at step t have seen nothing later than t. Both return an anchor and a scale with which outputs are read back:
`value = anchor + scale * output`, so forecasts follow any shift and any rescaling of their input exactly.
"""

from functools import lru_cache
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


class ScaledWindow(NamedTuple):
    """What a windowed network reads, levels or differences without units, and the way back to units."""

    values_BL: Tensor
    anchor_B1: Tensor
    scale_B1: Tensor


class ScaledSteps(NamedTuple):
    """What an every-step network reads, without units, and what turns the output of each step back into units."""

    levels_BL: Tensor
    differences_BL: Tensor
    anchor_BL: Tensor
    scale_BL: Tensor


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


def scale_window(x_BL: Tensor, mask_BL: Tensor, scaling: Scaling, *, whole: bool = False) -> ScaledWindow:
    """Scale each window by its own statistics.

    Args:
        x_BL: values, anything where the mask is False.
        mask_BL: True where observed.
        scaling: see `Scaling`.
        whole: nothing is missing in any of the windows, which spares the work of looking.
    """
    filled_BL = x_BL if whole else fill_forward(x_BL, mask_BL)
    anchor_B1 = filled_BL[:, -1:]
    if scaling == "difference":
        values_BL = _differences(filled_BL, filled_BL[:, :1], mask_BL)
        steps_B1 = mask_BL.sum(dim=1, keepdim=True) - 1
        spread_B1 = values_BL.abs().sum(dim=1, keepdim=True) / steps_B1.clamp_min(1)
    else:
        mean_B1, spread_B1 = _moments(filled_BL, None if whole else mask_BL)
        anchor_B1 = mean_B1 if scaling == "mean" else anchor_B1
        values_BL = filled_BL - anchor_B1
    scale_B1 = spread_B1.clamp_min(SCALE_FLOOR)
    return ScaledWindow(values_BL / scale_B1, anchor_B1, scale_B1)


def _moments(filled_BL: Tensor, mask_BL: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each window's observed values; of all, without a mask."""
    if mask_BL is None:
        mean_B1 = filled_BL.mean(dim=1, keepdim=True)
        return mean_B1, (filled_BL - mean_B1).square().mean(dim=1, keepdim=True).sqrt()
    weight_BL = mask_BL.to(filled_BL.dtype)
    count_B1 = weight_BL.sum(dim=1, keepdim=True).clamp_min(1.0)
    mean_B1 = (filled_BL * weight_BL).sum(dim=1, keepdim=True) / count_B1
    variance_B1 = ((filled_BL - mean_B1).square() * weight_BL).sum(dim=1, keepdim=True) / count_B1
    return mean_B1, variance_B1.sqrt()


def scale_running(
    x_BL: Tensor,
    mask_BL: Tensor,
    scaling: Scaling,
    span: int,
    state: RunningState | None = None,
    *,
    whole: bool = False,
) -> tuple[ScaledSteps, RunningState]:
    """Scale each step by an exponentially weighted mean and mean deviation of the steps up to it.

    Args:
        x_BL: values, anything where the mask is False.
        mask_BL: True where observed.
        scaling: see `Scaling`.
        span: steps over which the weights fall to 1/e squared (decay 1 - 2 / (span + 1)).
        state: where an earlier chunk of the same series ended; None starts afresh.
        whole: nothing is missing, which spares the work of looking.

    Returns:
        Inputs and read-back values for every step and the state after the last one.
    """
    decay = 1.0 - 2.0 / (span + 1.0)
    if whole and state is None and x_BL.shape[1] <= CHUNK:
        return _scale_whole(x_BL, scaling, decay)
    state = state or _fresh_state(x_BL)
    weight_BL = mask_BL.to(x_BL.dtype)
    filled_BL = x_BL if whole else _fill_from(x_BL, mask_BL, state)
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
    scaled = ScaledSteps(
        (filled_BL - level_BL) / scale_BL * mask_BL,
        differences_BL / scale_BL,
        level_BL if scaling == "mean" else filled_BL,
        scale_BL,
    )
    seen_B = state.seen_B + weight_BL.sum(dim=1)
    return scaled, RunningState(*level_state, *spread_state, filled_BL[:, -1], seen_B)


def _scale_whole(x_BL: Tensor, scaling: Scaling, decay: float) -> tuple[ScaledSteps, RunningState]:
    """Scale windows that miss nothing and follow nothing: all weights are known in advance.

    That is what nearly every request asks for; beside a small network the rest would take longer than the network.
    """
    known = _whole_weights(x_BL.shape[1], decay, x_BL.dtype, x_BL.device)
    level_sum_BL = x_BL @ known.decay_LL
    level_BL = level_sum_BL / known.level_total_L
    differences_BL = torch.diff(x_BL, dim=1, prepend=x_BL[:, :1])
    centred_BL = x_BL - level_BL
    moved_BL = differences_BL if scaling == "difference" else centred_BL
    spread_sum_BL = moved_BL.abs() @ known.later_decay_LL
    scale_BL = (spread_sum_BL / known.spread_total_L).clamp_min(SCALE_FLOOR)
    anchor_BL = level_BL if scaling == "mean" else x_BL
    last_B = x_BL[:, -1]
    ones_B = torch.ones_like(last_B)
    state = RunningState(
        level_sum_BL[:, -1],
        ones_B * known.level_total_L[-1],
        spread_sum_BL[:, -1],
        ones_B * known.last_spread_weight,
        last_B,
        ones_B * x_BL.shape[1],
    )
    return ScaledSteps(centred_BL / scale_BL, differences_BL / scale_BL, anchor_BL, scale_BL), state


class _WholeWeights(NamedTuple):
    """What weights of one sum up to at each step; a first value has none before it, and no say in the spread."""

    decay_LL: Tensor
    later_decay_LL: Tensor
    level_total_L: Tensor
    spread_total_L: Tensor
    """One where nothing was summed yet."""
    last_spread_weight: float


@lru_cache(maxsize=64)
def _whole_weights(steps: int, decay: float, dtype: torch.dtype, device: torch.device) -> _WholeWeights:
    with torch.inference_mode(mode=False):
        decay_LL = _decays(steps, decay, dtype, device)[0].T.contiguous()
        later_decay_LL = decay_LL.clone()
        later_decay_LL[0] = 0.0
        ones_1L = torch.ones(1, steps, dtype=dtype, device=device)
        spread_total_L = (ones_1L @ later_decay_LL)[0]
        last_spread_weight = float(spread_total_L[-1])
        spread_total_L[0] = 1.0
        level_total_L = (ones_1L @ decay_LL)[0]
        return _WholeWeights(decay_LL, later_decay_LL, level_total_L, spread_total_L, last_spread_weight)


def _fresh_state(x_BL: Tensor) -> RunningState:
    zero_B = torch.zeros_like(x_BL[:, 0])
    return RunningState(zero_B, zero_B, zero_B, zero_B, zero_B, zero_B)


def _fill_from(x_BL: Tensor, mask_BL: Tensor, state: RunningState) -> Tensor:
    """Fill forward from the state's last value; before any observation, zero (never a later value)."""
    positions_L = torch.arange(x_BL.shape[1], device=x_BL.device)
    latest_BL = torch.where(mask_BL, positions_L, -1).cummax(dim=1).values
    before_B1 = state.last_B[:, None].expand_as(x_BL)
    return torch.where(latest_BL >= 0, x_BL.gather(1, latest_BL.clamp_min(0)), before_B1)


def running_mean(value_BL: Tensor, weight_BL: Tensor, decay: float) -> Tensor:
    """Return at every step the mean of the values up to it, weights decaying by the step; 0 without any weight."""
    zero_B = torch.zeros_like(value_BL[:, 0])
    return _running_mean(value_BL, weight_BL, decay, (zero_B, zero_B))[0]


def _running_mean(
    value_BL: Tensor, weight_BL: Tensor, decay: float, state: tuple[Tensor, Tensor]
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Return the decayed weighted mean at every step, chunk by chunk as one triangular product each."""
    if value_BL.shape[1] <= CHUNK:
        return _decayed_mean(value_BL, weight_BL, decay, state)
    means = []
    for value_BC, weight_BC in zip(
        torch.split(value_BL, CHUNK, dim=1), torch.split(weight_BL, CHUNK, dim=1), strict=True
    ):
        mean_BC, state = _decayed_mean(value_BC, weight_BC, decay, state)
        means.append(mean_BC)
    return torch.cat(means, dim=1), state


def _decayed_mean(
    value_BC: Tensor, weight_BC: Tensor, decay: float, state: tuple[Tensor, Tensor]
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    sum_B, total_B = state
    decay_CC, carry_C = _decays(value_BC.shape[1], decay, value_BC.dtype, value_BC.device)
    sum_BC = (value_BC * weight_BC) @ decay_CC.T + sum_B[:, None] * carry_C
    total_BC = weight_BC @ decay_CC.T + total_B[:, None] * carry_C
    mean_BC = _weighted_mean(sum_BC, total_BC)
    return mean_BC, (sum_BC[:, -1], total_BC[:, -1])


@lru_cache(maxsize=64)
def _decays(steps: int, decay: float, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the weight of each step in the sum at each later one, and that of what came before the chunk."""
    # Made outside inference mode, wherever it is first asked for: training differentiates through products of it.
    with torch.inference_mode(mode=False):
        steps_C = torch.arange(steps, device=device, dtype=dtype)
        lag_CC = steps_C[:, None] - steps_C[None, :]
        return torch.where(lag_CC >= 0, decay**lag_CC, 0.0), decay ** (steps_C + 1)


def _weighted_mean(total: Tensor, weight: Tensor) -> Tensor:
    return torch.where(weight > 0, total / weight.clamp_min(1e-30), 0.0)


def read_back(state: RunningState, scaling: Scaling) -> tuple[Tensor, Tensor]:
    """Return the anchor and the scale `(B, 1)` of the step a state was reached at."""
    anchor_B = state.last_B if scaling != "mean" else _weighted_mean(state.level_sum_B, state.level_weight_B)
    scale_B = _weighted_mean(state.spread_sum_B, state.spread_weight_B).clamp_min(SCALE_FLOOR)
    return anchor_B[:, None], scale_B[:, None]


def shift_state(state: RunningState, shift_B: Tensor) -> RunningState:
    """Return the state the same series would have left if `shift`, in double precision, were off its values."""
    seen_B = state.seen_B > 0
    level_B = state.level_sum_B.double() - shift_B * state.level_weight_B.double()
    last_B = torch.where(seen_B, state.last_B.double() - shift_B, 0.0)
    return state._replace(
        level_sum_B=torch.where(seen_B, level_B, 0.0).to(state.level_sum_B.dtype),
        last_B=last_B.to(state.last_B.dtype),
    )
