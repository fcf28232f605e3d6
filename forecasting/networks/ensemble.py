"""The mean of several networks that differ in their seed only.

Quantiles are averaged at equal probability (Vincentization: Ratcliff, 1979), which keeps the shape of the
distribution where averaging densities would widen it.

B batch, S steps a forecast is made at, H horizon, Q quantiles.
"""

from collections.abc import Callable, Sequence

import torch
from torch import nn

from forecasting.networks.base import Inputs, QuantileNetwork, ScaledForecast
from forecasting.spec import EnsembleSpec, ForecasterSpec


class Ensemble(QuantileNetwork):
    """Average the members' forecasts, in the scaled units of the first."""

    def __init__(
        self,
        spec: ForecasterSpec,
        network: EnsembleSpec,
        build_member: Callable[[ForecasterSpec], QuantileNetwork],
    ) -> None:
        super().__init__(spec)
        member = spec.model_copy(update={"network": network.member})
        self.members = nn.ModuleList(build_member(member) for _ in range(network.n_members))

    def networks(self) -> list[QuantileNetwork]:
        """Return the members."""
        return [member for member in self.members if isinstance(member, QuantileNetwork)]

    def set_members(self, members: list[QuantileNetwork]) -> None:
        """Put fitted networks in the place of the fresh ones."""
        self.members = nn.ModuleList(members)

    def scaled_forecast(self, inputs: Inputs) -> ScaledForecast:
        return self.combine([member.scaled_forecast(inputs) for member in self.networks()])

    def combine(self, forecasts: Sequence[ScaledForecast]) -> ScaledForecast:
        """Return the mean of what the members say."""
        # Members are scaled alike: anchor and scale are statistics of the window, which none of them learns.
        values_BSHQ = torch.stack([forecast.values_BSHQ for forecast in forecasts]).mean(dim=0)
        return ScaledForecast(values_BSHQ, forecasts[0].anchor_BS, forecasts[0].scale_BS)
