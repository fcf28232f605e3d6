"""The windowed multi-layer perceptron, the neural baseline: it sees its window and nothing else."""

import torch
from torch import Tensor, nn

from forecasting.networks.base import QuantileHead, QuantileNetwork, ScaledForecast
from forecasting.scaling import Scaling, scale_window
from forecasting.spec import ForecasterSpec, MLPSpec


class MLP(QuantileNetwork):
    """Hidden layers over the scaled window and its mask; any window length, 1 included."""

    def __init__(self, spec: ForecasterSpec, network: MLPSpec) -> None:
        super().__init__(spec)
        self.scaling: Scaling = network.scaling
        layers: list[nn.Module] = []
        width = 2 * network.input_size
        for _ in range(network.layers):
            layers += [nn.Linear(width, network.hidden_size), nn.ReLU(), nn.Dropout(network.dropout)]
            width = network.hidden_size
        self.hidden = nn.Sequential(*layers)
        self.head = QuantileHead(width, spec.horizon, spec.quantiles)

    def scaled_forecast(self, x_BL: Tensor, mask_BL: Tensor) -> ScaledForecast:
        scaled = scale_window(x_BL, mask_BL, self.scaling)
        values_BL = scaled.differences_BL if self.scaling == "difference" else scaled.levels_BL
        inputs_BF = torch.cat([values_BL, mask_BL.to(values_BL.dtype)], dim=1)
        values_BSHQ = self.head(self.hidden(inputs_BF)[:, None])
        return ScaledForecast(values_BSHQ, scaled.anchor_BS, scaled.scale_BS)
