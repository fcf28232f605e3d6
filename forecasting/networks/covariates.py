"""How covariates enter a network: standardised, masked, embedded; beside the history, and ahead of it.

B batch, L input_size, H horizon, T = L + H, S steps a forecast is made at, D hidden, P past columns,
F future and calendar columns, E width of all embeddings, W width of what lies ahead.
"""

import math
from collections.abc import Collection

import torch
from torch import Tensor, nn

from forecasting.calendar_features import n_columns
from forecasting.networks.base import CovariateTensors, Inputs
from forecasting.scaling import ScaledWindow
from forecasting.spec import CovariatesSpec

AHEAD_WIDTH = 16
FORGET_COLUMNS, FORGET_NAMES = 0.05, 0.05
"""Shares of training windows whose columns, or whose names, are hidden: so the network can do without."""


def _embedding_width(categories: int) -> int:
    return min(16, 2 + math.isqrt(categories))


class CovariateEncoder(nn.Module):
    """Turns covariates into features of each step of the window and of each step ahead.

    Numeric columns are standardised by the statistics of the training block, which travel with the weights; a
    missing value is zero and marked. An unknown name has an embedding of its own, trained by hiding names.

    Args:
        covariates: what there is.
        apart: places of past columns that the network reads in its own way, and that are no features here.
    """

    past_mean_P: Tensor
    past_scale_P: Tensor
    future_mean_F: Tensor
    future_scale_F: Tensor

    def __init__(self, covariates: CovariatesSpec, *, apart: Collection[int] = ()) -> None:
        super().__init__()
        n_past, n_future = len(covariates.past), len(covariates.future)
        self.read = [place for place in range(n_past) if place not in apart]
        self.n_calendar = n_columns(covariates.calendar)
        for name, size in (("past", n_past), ("future", n_future)):
            self.register_buffer(f"{name}_mean_{name[0].upper()}", torch.zeros(size))
            self.register_buffer(f"{name}_scale_{name[0].upper()}", torch.ones(size))
        counts = [len(static.categories) for static in covariates.static]
        self.embeddings = nn.ModuleList(nn.Embedding(n + 1, _embedding_width(n)) for n in counts)
        self.n_static = sum(_embedding_width(n) for n in counts)
        self.n_ahead = 2 * n_future + self.n_calendar
        self.n_timed = 2 * len(self.read) + self.n_ahead
        self.n_seen = self.n_timed + self.n_static

    def hide_some(self, inputs: Inputs) -> Inputs:
        """Hide the covariates of a few windows of a training batch."""
        past_BLP, future_BTF, static_BS = _given(inputs)
        n, device = len(static_BS), static_BS.device
        hidden_B11 = (torch.rand(n, device=device) < FORGET_COLUMNS)[:, None, None]
        n_columns = future_BTF.shape[2] - self.n_calendar
        columns = torch.arange(future_BTF.shape[2], device=device) < n_columns
        covariates = CovariateTensors(
            past_BLP.masked_fill(hidden_B11, torch.nan),
            future_BTF.masked_fill(hidden_B11 & columns, torch.nan),
            static_BS.masked_fill(torch.rand(static_BS.shape, device=device) < FORGET_NAMES, 0),
        )
        return inputs._replace(covariates=covariates)

    def timed(self, inputs: Inputs) -> Tensor:
        """Return the features of each step of the window that change with time, `(B, L, n_timed)`."""
        past_BLP, future_BTF, _ = _given(inputs)
        length = inputs.x_BL.shape[1]
        return torch.cat([self._past_features(past_BLP), self._ahead_features(future_BTF[:, :length])], dim=-1)

    def _past_features(self, past_BLP: Tensor) -> Tensor:
        mean_P, scale_P = self.past_mean_P, self.past_scale_P
        if len(self.read) < len(mean_P):
            past_BLP, mean_P, scale_P = past_BLP[..., self.read], mean_P[self.read], scale_P[self.read]
        return _standardise(past_BLP, mean_P, scale_P)

    def ahead(self, inputs: Inputs) -> Tensor | None:
        """Return the features of every step of the window and the horizon, `(B, T, n_ahead)`."""
        if not self.n_ahead:
            return None
        return self._ahead_features(_given(inputs).future_BTF)

    def static(self, inputs: Inputs) -> Tensor:
        """Return the embedded names of each series, `(B, E)`."""
        if not len(self.embeddings):
            return inputs.x_BL.new_zeros(len(inputs.x_BL), 0)
        codes_BS = _given(inputs).static_BS
        return torch.cat([table(codes_BS[:, i]) for i, table in enumerate(self.embeddings)], dim=-1)

    def seen(self, inputs: Inputs) -> Tensor:
        """Return everything known of each step of the window, `(B, L, n_seen)`."""
        static_B1E = self.static(inputs)[:, None]
        return torch.cat([self.timed(inputs), static_B1E.expand(-1, inputs.x_BL.shape[1], -1)], dim=-1)

    def _ahead_features(self, future_BTF: Tensor) -> Tensor:
        n_future = len(self.future_mean_F)
        columns = _standardise(future_BTF[..., :n_future], self.future_mean_F, self.future_scale_F)
        return torch.cat([columns, future_BTF[..., n_future:]], dim=-1)


def _given(inputs: Inputs) -> CovariateTensors:
    if inputs.covariates is None:
        raise ValueError("a network that takes covariates was given none")
    return inputs.covariates


def _standardise(values: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """Return standardised columns, zero where missing, and beside them where they are known."""
    known = values.isfinite()
    standard = torch.where(known, (values - mean) / scale, 0.0)
    return torch.cat([torch.asinh(standard), known.to(values.dtype)], dim=-1)


class SeriesUnits(nn.Module):
    """The spread of each known series in the training data, by its code; of an unknown one, nothing."""

    unit_U: Tensor

    def __init__(self, covariates: CovariatesSpec) -> None:
        super().__init__()
        self.place = [static.name for static in covariates.static].index("unique_id")
        n_series = len(covariates.static[self.place].categories)
        self.register_buffer("unit_U", torch.zeros(n_series + 1))

    def forward(self, inputs: Inputs, scaled: ScaledWindow) -> ScaledWindow:
        """Return a scaled window in units of its series, as it is where the series is not known."""
        unit_B1 = self.unit_U[_given(inputs).static_BS[:, self.place]][:, None]
        unit_B1 = torch.where(unit_B1 > 0, unit_B1, scaled.scale_B1)
        return ScaledWindow(scaled.values_BL * (scaled.scale_B1 / unit_B1), scaled.anchor_B1, unit_B1)


class AheadEffect(nn.Module):
    """What is known of a step ahead changes what is said of it: a small network of both."""

    def __init__(self, hidden_size: int, horizon: int, n_ahead: int, n_parameters: int) -> None:
        super().__init__()
        self.horizon = horizon
        self.from_hidden = nn.Linear(hidden_size, horizon * AHEAD_WIDTH)
        self.from_ahead = nn.Linear(n_ahead, AHEAD_WIDTH)
        self.out = nn.Linear(AHEAD_WIDTH, n_parameters)
        with torch.no_grad():
            self.out.weight.mul_(0.1)
            self.out.bias.zero_()

    def forward(self, hidden_BSD: Tensor, ahead_BTF: Tensor) -> Tensor:
        """Return what to add to the parameters of each step, `(B, S, H, P)`.

        The window's steps are the first of `ahead_BTF`; the last S of them are those forecasts are made at.
        """
        hidden_BSHW = self.from_hidden(hidden_BSD).unflatten(-1, (self.horizon, AHEAD_WIDTH))
        n_steps = hidden_BSD.shape[1]
        first = ahead_BTF.shape[1] - self.horizon - n_steps + 1
        # Projected before it is unfolded: each step is ahead of many forecasts.
        projected_BTW = self.from_ahead(ahead_BTF[:, first:])
        ahead_BSHW = projected_BTW.unfold(1, self.horizon, 1).transpose(2, 3)
        effect: Tensor = self.out(torch.relu(hidden_BSHW + ahead_BSHW))
        return effect
