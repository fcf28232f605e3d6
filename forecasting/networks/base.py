"""What every network shares: what it sees, and quantiles for every step of the horizon out of it.

B batch, L input_size, H horizon, T = L + H, S steps a forecast is made at (1, or L for every-step networks),
Q quantiles, P parameters of an output, F future and calendar columns.
"""

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from forecasting.networks.outputs import Output, build_output
from forecasting.spec import ForecasterSpec, Head

if TYPE_CHECKING:
    from forecasting.networks.covariates import CovariateEncoder


class CovariateTensors(NamedTuple):
    """What is known besides the values; NaN where missing, code 0 for a name that is not known."""

    past_BLP: Tensor
    future_BTF: Tensor
    """Future columns, then those of the calendar, from the window's first step to the horizon's last."""
    static_BS: Tensor


class Inputs(NamedTuple):
    """Everything a network sees: values (anything where the mask is False), and what else is known."""

    x_BL: Tensor
    mask_BL: Tensor
    covariates: CovariateTensors | None = None
    ordinal_B: Tensor | None = None
    """The number of the last step, counted from a fixed origin: it says where a cycle stands."""
    whole: bool = False
    """Nothing is missing in the values, which need not be looked for."""


class ScaledForecast(NamedTuple):
    """Quantiles without units; in units they are `anchor + scale * values`."""

    values_BSHQ: Tensor
    anchor_BS: Tensor
    scale_BS: Tensor


class RawForecast(NamedTuple):
    """The parameters of an output without units; see `forecasting.networks.outputs`."""

    parameters_BSHP: Tensor
    anchor_BS: Tensor
    scale_BS: Tensor


class QuantileNetwork(nn.Module):
    """Map what is known of a series to `(B, H, Q)` quantiles in the units of its values."""

    offsets_HQ: Tensor

    def __init__(self, spec: ForecasterSpec) -> None:
        super().__init__()
        self.horizon = spec.horizon
        self.n_quantiles = len(spec.quantiles)
        # What calibration adds in scaled units: the residual quantiles of a point forecast, the conformal
        # correction of quantiles.
        self.register_buffer("offsets_HQ", torch.zeros(spec.horizon, self.n_quantiles))

    def scaled_forecast(self, inputs: Inputs) -> ScaledForecast:
        """Return the uncalibrated forecast after the last step (S is 1)."""
        raise NotImplementedError

    def forward(self, inputs: Inputs) -> Tensor:
        """Return calibrated quantiles, ascending along the last axis."""
        return self.calibrate(self.scaled_forecast(inputs))

    def calibrate(self, forecast: ScaledForecast) -> Tensor:
        """Return the quantiles of the last step a forecast was made at, calibrated and in units."""
        values_BSHQ, anchor_BS, scale_BS = forecast
        values_BHQ = (values_BSHQ[:, -1] + self.offsets_HQ).cummax(dim=-1).values
        return anchor_BS[:, -1, None, None] + scale_BS[:, -1, None, None] * values_BHQ


class TrainedNetwork(QuantileNetwork):
    """A network fitted by gradient descent: it says the parameters of an output, which the loss reads."""

    encoder: "CovariateEncoder | None"
    """How covariates enter, where the network takes any."""

    def __init__(self, spec: ForecasterSpec, head: Head) -> None:
        super().__init__(spec)
        self.head_kind: Head = head
        self.output: Output = build_output(head, spec.quantiles)

    @property
    def trained_horizon(self) -> int:
        """Return the steps a raw forecast has; one where the others follow by feeding back."""
        return self.horizon

    def raw_forecast(self, inputs: Inputs) -> RawForecast:
        """Return the parameters of the forecast after the last step (S is 1)."""
        raise NotImplementedError

    def scaled_forecast(self, inputs: Inputs) -> ScaledForecast:
        raw = self.raw_forecast(inputs)
        return ScaledForecast(self.output.quantiles(raw.parameters_BSHP), raw.anchor_BS, raw.scale_BS)


class EveryStepNetwork(TrainedNetwork):
    """A network that forecasts after every step of its window, blind to what is later, and learns from all."""

    def forecast_steps(self, inputs: Inputs, *, skip: int = 0) -> RawForecast:
        """Return the forecasts made after each step but the first `skip`, each of `trained_horizon` steps."""
        raise NotImplementedError
