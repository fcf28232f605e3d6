"""Baselines as networks: naive, seasonal naive, drift and ridge, with the same input and output as the rest.

B batch, L input_size, H horizon. Their intervals are the residual quantiles that calibration stores.
"""

import torch
from torch import Tensor, nn

from forecasting.networks.base import Inputs, QuantileNetwork, ScaledForecast
from forecasting.scaling import ScaledWindow, Scaling, fill_forward, scale_window
from forecasting.spec import DriftSpec, ForecasterSpec, NaiveSpec, RidgeSpec, SeasonalNaiveSpec


class PointNetwork(QuantileNetwork):
    """A network that forecasts one value a step; every quantile starts at it."""

    def point_forecast(self, x_BL: Tensor, mask_BL: Tensor) -> Tensor:
        """Return `(B, H)` in the units of the input."""
        raise NotImplementedError

    def scaled_forecast(self, inputs: Inputs) -> ScaledForecast:
        scaled = scale_window(inputs.x_BL, inputs.mask_BL, "difference")
        point_BH = (self.point_forecast(inputs.x_BL, inputs.mask_BL) - scaled.anchor_B1) / scaled.scale_B1
        values_BSHQ = point_BH[:, None, :, None].expand(-1, 1, -1, self.n_quantiles)
        return ScaledForecast(values_BSHQ, scaled.anchor_B1, scaled.scale_B1)


class Naive(PointNetwork):
    """Repeat the last observed value."""

    def __init__(self, spec: ForecasterSpec, network: NaiveSpec) -> None:  # noqa: ARG002
        super().__init__(spec)

    def point_forecast(self, x_BL: Tensor, mask_BL: Tensor) -> Tensor:
        return fill_forward(x_BL, mask_BL)[:, -1:].expand(-1, self.horizon)


class SeasonalNaive(PointNetwork):
    """Repeat, for each season's step, the last value observed at that step."""

    def __init__(self, spec: ForecasterSpec, network: SeasonalNaiveSpec) -> None:
        super().__init__(spec)
        self.season_length = network.season_length

    def point_forecast(self, x_BL: Tensor, mask_BL: Tensor) -> Tensor:
        season = self.season_length
        whole = x_BL.shape[1] // season * season
        last_B1 = fill_forward(x_BL, mask_BL)[:, -1:]
        by_phase = (-1, season, whole // season)
        x_BPN = x_BL[:, -whole:].reshape(x_BL.shape[0], whole // season, season).transpose(1, 2)
        mask_BPN = mask_BL[:, -whole:].reshape(x_BL.shape[0], whole // season, season).transpose(1, 2)
        flat_x, flat_mask = x_BPN.reshape(-1, by_phase[2]), mask_BPN.reshape(-1, by_phase[2])
        latest_BP = fill_forward(flat_x, flat_mask)[:, -1].reshape(-1, season)
        latest_BP = torch.where(mask_BPN.any(dim=2), latest_BP, last_B1)
        phase_H = torch.arange(self.horizon, device=x_BL.device) % season
        return latest_BP[:, phase_H]


class Drift(PointNetwork):
    """Continue the line through the first and the last observed value of the window."""

    def __init__(self, spec: ForecasterSpec, network: DriftSpec) -> None:  # noqa: ARG002
        super().__init__(spec)

    def point_forecast(self, x_BL: Tensor, mask_BL: Tensor) -> Tensor:
        length = x_BL.shape[1]
        first_B1 = mask_BL.int().argmax(dim=1, keepdim=True)
        last_B1 = length - 1 - mask_BL.flip(1).int().argmax(dim=1, keepdim=True)
        rise_B1 = x_BL.gather(1, last_B1) - x_BL.gather(1, first_B1)
        slope_B1 = rise_B1 / (last_B1 - first_B1).clamp_min(1)
        # Steps are counted from the end of the window, which may lie beyond the last observed value.
        silent_B1 = length - 1 - last_B1
        step_H = torch.arange(1, self.horizon + 1, device=x_BL.device)
        return x_BL.gather(1, last_B1) + slope_B1 * (step_H + silent_B1)


class Ridge(QuantileNetwork):
    """A linear map from the scaled window to every step of the horizon."""

    def __init__(self, spec: ForecasterSpec, network: RidgeSpec) -> None:
        super().__init__(spec)
        self.scaling: Scaling = network.scaling
        self.linear = nn.Linear(network.input_size, spec.horizon)

    def scale(self, inputs: Inputs) -> ScaledWindow:
        """Return the window as the map sees it."""
        return scale_window(inputs.x_BL, inputs.mask_BL, self.scaling, whole=inputs.whole)

    def scaled_forecast(self, inputs: Inputs) -> ScaledForecast:
        scaled = self.scale(inputs)
        point_BH = self.linear(scaled.values_BL)
        values_BSHQ = point_BH[:, None, :, None].expand(-1, 1, -1, self.n_quantiles)
        return ScaledForecast(values_BSHQ, scaled.anchor_B1, scaled.scale_B1)
