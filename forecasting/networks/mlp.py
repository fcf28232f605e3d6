"""The windowed multi-layer perceptron, the neural baseline: it sees its window and nothing else."""

from typing import cast

import torch
from torch import Tensor, nn

from forecasting.networks.base import Inputs, RawForecast, TrainedNetwork
from forecasting.networks.covariates import CovariateEncoder
from forecasting.networks.heads import DirectHead
from forecasting.scaling import Scaling, scale_window
from forecasting.spec import ForecasterSpec, MLPSpec


class MLP(TrainedNetwork):
    """Hidden layers over the scaled window and its mask; any window length, 1 included."""

    def __init__(self, spec: ForecasterSpec, network: MLPSpec) -> None:
        super().__init__(spec, network.head)
        self.scaling: Scaling = network.scaling
        self.encoder = CovariateEncoder(spec.covariates) if spec.covariates else None
        layers: list[nn.Module] = []
        width = 2 * network.input_size
        if self.encoder is not None:
            width += network.input_size * self.encoder.n_timed + self.encoder.n_static
        for _ in range(network.layers):
            layers += [nn.Linear(width, network.hidden_size), nn.ReLU(), nn.Dropout(network.dropout)]
            width = network.hidden_size
        self.hidden = nn.Sequential(*layers)
        n_ahead = self.encoder.n_ahead if self.encoder is not None else 0
        self.head = DirectHead(width, spec.horizon, self.output, n_ahead)

    def raw_forecast(self, inputs: Inputs) -> RawForecast:
        scaled = scale_window(inputs.x_BL, inputs.mask_BL, self.scaling, whole=inputs.whole)
        if self.encoder is None:
            first_BD = self._first_layer(scaled.values_BL, inputs)
            ahead_BTF = None
        else:
            mask_BL = inputs.mask_BL.to(scaled.values_BL.dtype)
            timed, static_BE = self.encoder.timed(inputs).flatten(1), self.encoder.static(inputs)
            first_BD = self.hidden[0](torch.cat([scaled.values_BL, mask_BL, timed, static_BE], dim=1))
            ahead_BTF = self.encoder.ahead(inputs)
        hidden_B1D = self.hidden[1:](first_BD)[:, None]
        return RawForecast(self.head(hidden_B1D, ahead_BTF), scaled.anchor_B1, scaled.scale_B1)

    def _first_layer(self, values_BL: Tensor, inputs: Inputs) -> Tensor:
        """Return the first layer of values and mask; a mask of ones adds the same to every window, once."""
        first = cast("nn.Linear", self.hidden[0])
        if not inputs.whole:
            mask_BL = inputs.mask_BL.to(values_BL.dtype)
            return cast("Tensor", first(torch.cat([values_BL, mask_BL], dim=1)))
        of_values_DL, of_mask_DL = first.weight.chunk(2, dim=1)
        return nn.functional.linear(values_BL, of_values_DL, first.bias + of_mask_DL.sum(dim=1))
