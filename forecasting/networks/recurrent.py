"""RNN, GRU and LSTM that forecast at every step: one pass over T steps yields T forecasts of the horizon.

B batch, L steps, H horizon, Q quantiles, D hidden. Running scaling sees nothing later than its step, so the
forecast at step t is the same whether the pass goes on or stops there.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from forecasting.networks.base import QuantileHead, QuantileNetwork, ScaledForecast
from forecasting.scaling import RunningState, Scaling, scale_running
from forecasting.spec import ForecasterSpec, RecurrentSpec

N_FEATURES = 3


class RecurrentState(NamedTuple):
    """Everything a series leaves behind after a step: the running scale and the hidden (and cell) state."""

    running: RunningState
    hidden: tuple[Tensor, ...]


class Recurrent(QuantileNetwork):
    """A stack of recurrent layers whose every hidden state is decoded to the whole horizon."""

    def __init__(self, spec: ForecasterSpec, network: RecurrentSpec) -> None:
        super().__init__(spec)
        self.scaling: Scaling = network.scaling
        self.span = network.span
        cell = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}[network.kind]
        dropout = network.dropout if network.layers > 1 else 0.0
        self.recurrent = cell(
            N_FEATURES, network.hidden_size, num_layers=network.layers, dropout=dropout, batch_first=True
        )
        self.head = QuantileHead(network.hidden_size, spec.horizon, spec.quantiles)
        self._start_recurrence(network)

    def _start_recurrence(self, network: RecurrentSpec) -> None:
        """Start orthogonal (gradients neither vanish nor explode at first) and with open forget gates.

        Saxe et al., 2014 (arXiv:1312.6120); Jozefowicz et al., 2015.
        """
        for name, parameter in self.recurrent.named_parameters():
            if "weight_hh" in name:
                for block in parameter.data.split(network.hidden_size):
                    nn.init.orthogonal_(block)
            elif "bias" in name:
                nn.init.zeros_(parameter)
                if network.kind == "lstm" and "bias_ih" in name:
                    parameter.data[network.hidden_size : 2 * network.hidden_size] = 1.0

    def encode(
        self, x_BL: Tensor, mask_BL: Tensor, state: RecurrentState | None = None
    ) -> tuple[Tensor, Tensor, Tensor, RecurrentState]:
        """Advance L steps; return hidden `(B, L, D)`, anchor and scale `(B, L)`, and the state reached."""
        scaled, running = scale_running(
            x_BL, mask_BL, self.scaling, self.span, None if state is None else state.running
        )
        mask = mask_BL.to(x_BL.dtype)
        # asinh keeps the sign and the small values and tames the jumps, so that one of them cannot saturate
        # the gates for the rest of the window.
        features_BLF = torch.stack(
            [torch.asinh(scaled.levels_BL), torch.asinh(scaled.differences_BL), mask], dim=-1
        )
        hidden_BLD, after = self.recurrent(features_BLF, None if state is None else self._pack(state.hidden))
        hidden = after if isinstance(after, tuple) else (after,)
        return hidden_BLD, scaled.anchor_BS, scaled.scale_BS, RecurrentState(running, hidden)

    @staticmethod
    def _pack(hidden: tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
        return hidden if len(hidden) == 2 else hidden[0]

    def forecast_every_step(
        self, x_BL: Tensor, mask_BL: Tensor, state: RecurrentState | None = None, *, skip: int = 0
    ) -> tuple[ScaledForecast, RecurrentState]:
        """Return the uncalibrated forecasts made after each step but the first `skip`, and the state."""
        hidden_BLD, anchor_BL, scale_BL, after = self.encode(x_BL, mask_BL, state)
        values_BSHQ = self.head(hidden_BLD[:, skip:])
        return ScaledForecast(values_BSHQ, anchor_BL[:, skip:], scale_BL[:, skip:]), after

    def scaled_forecast(self, x_BL: Tensor, mask_BL: Tensor) -> ScaledForecast:
        return self.forecast_every_step(x_BL, mask_BL, skip=x_BL.shape[1] - 1)[0]
