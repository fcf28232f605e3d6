"""From a hidden vector to the parameters of the whole horizon, with what is known of each step ahead.

B batch, S steps a forecast is made at, H horizon, D hidden, T window and horizon, F future columns, P parameters.
"""

import torch
from torch import Tensor, nn

from forecasting.networks.covariates import AheadEffect
from forecasting.networks.outputs import Output


class DirectHead(nn.Module):
    """Decode each hidden vector to every step of the horizon at once."""

    def __init__(self, hidden_size: int, horizon: int, output: Output, n_ahead: int = 0) -> None:
        super().__init__()
        self.shape = (horizon, output.n_parameters)
        self.linear = nn.Linear(hidden_size, horizon * output.n_parameters)
        if n_ahead:
            self.effect = AheadEffect(hidden_size, horizon, n_ahead, output.n_parameters)
        # Worked out on the CPU even where a network is only laid out (on the meta device, to be loaded): there the
        # same few operations import a compiler.
        with torch.device("cpu"):
            start_HP = output.start(horizon)
        with torch.no_grad():
            self.linear.weight.mul_(0.1)
            self.linear.bias.copy_(start_HP.flatten())

    def forward(self, hidden_BSD: Tensor, ahead_BTF: Tensor | None = None) -> Tensor:
        """Return the parameters `(B, S, H, P)`."""
        parameters_BSHP: Tensor = self.linear(hidden_BSD).view(*hidden_BSD.shape[:-1], *self.shape)
        return parameters_BSHP if ahead_BTF is None else parameters_BSHP + self.effect(hidden_BSD, ahead_BTF)
