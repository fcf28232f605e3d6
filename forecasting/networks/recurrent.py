"""RNN, GRU and LSTM that forecast at every step: one pass over T steps yields T forecasts of the horizon.

B batch, L steps, H horizon, S steps a forecast is made at, P parameters of the output, Q quantiles, D hidden.
Running scaling sees nothing later than its step, so the forecast at step t is the same whether the pass goes on
or stops there.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from forecasting.networks.base import (
    CovariateTensors,
    EveryStepNetwork,
    Inputs,
    RawForecast,
    ScaledForecast,
)
from forecasting.networks.covariates import CovariateEncoder
from forecasting.networks.heads import DirectHead
from forecasting.scaling import RunningState, Scaling, read_back, scale_running
from forecasting.spec import ForecasterSpec, RecurrentSpec

N_FEATURES = 3


class RecurrentState(NamedTuple):
    """Everything a series leaves behind after a step: the running scale and the hidden (and cell) state."""

    running: RunningState
    hidden: tuple[Tensor, ...]

    def detach(self) -> "RecurrentState":
        """Return the same state, cut off from what made it: gradients end here."""
        running = RunningState(*(tensor.detach() for tensor in self.running))
        return RecurrentState(running, tuple(tensor.detach() for tensor in self.hidden))


class Recurrent(EveryStepNetwork):
    """A stack of recurrent layers whose every hidden state is decoded to the whole horizon.

    With autoregressive decoding it is decoded to the next step, and the horizon follows by feeding the middle of
    each forecast back; training then sees true values only (teacher forcing).
    """

    def __init__(self, spec: ForecasterSpec, network: RecurrentSpec) -> None:
        super().__init__(spec, network.head)
        self.scaling: Scaling = network.scaling
        self.span = network.span
        self.autoregressive = network.decoding == "autoregressive"
        self.encoder = CovariateEncoder(spec.covariates) if spec.covariates else None
        n_seen, n_ahead = (self.encoder.n_seen, self.encoder.n_ahead) if self.encoder is not None else (0, 0)
        cell = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}[network.kind]
        dropout = network.dropout if network.layers > 1 else 0.0
        self.recurrent = cell(
            N_FEATURES + n_seen, network.hidden_size, num_layers=network.layers, dropout=dropout, batch_first=True
        )
        self.head = DirectHead(network.hidden_size, self.trained_horizon, self.output, n_ahead)
        start_recurrence(self.recurrent)

    @property
    def trained_horizon(self) -> int:
        return 1 if self.autoregressive else self.horizon

    def encode(
        self, inputs: Inputs, state: RecurrentState | None = None
    ) -> tuple[Tensor, Tensor, Tensor, RecurrentState]:
        """Advance L steps; return hidden `(B, L, D)`, anchor and scale `(B, L)`, and the state reached."""
        before = None if state is None else state.running
        scaled, running = scale_running(
            inputs.x_BL, inputs.mask_BL, self.scaling, self.span, before, whole=inputs.whole
        )
        # asinh keeps the sign and the small values and tames the jumps, so that one of them cannot saturate
        # the gates for the rest of the window.
        features_BLF = torch.stack(
            [
                torch.asinh(scaled.levels_BL),
                torch.asinh(scaled.differences_BL),
                inputs.mask_BL.to(inputs.x_BL.dtype),
            ],
            dim=-1,
        )
        if self.encoder is not None:
            features_BLF = torch.cat([features_BLF, self.encoder.seen(inputs)], dim=-1)
        hidden_BLD, after = self.recurrent(features_BLF, None if state is None else self._pack(state.hidden))
        hidden = after if isinstance(after, tuple) else (after,)
        return hidden_BLD, scaled.anchor_BL, scaled.scale_BL, RecurrentState(running, hidden)

    @staticmethod
    def _pack(hidden: tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
        return hidden if len(hidden) == 2 else hidden[0]

    def forecast_steps(self, inputs: Inputs, *, skip: int = 0) -> RawForecast:
        return self.forecast_every_step(inputs, skip=skip)[0]

    def forecast_every_step(
        self, inputs: Inputs, state: RecurrentState | None = None, *, skip: int = 0
    ) -> tuple[RawForecast, RecurrentState]:
        """Return the forecasts made after each step but the first `skip`, and the state.

        Each is of `trained_horizon` steps; covariates, where the network takes them, reach as far or further.
        """
        hidden_BLD, anchor_BL, scale_BL, after = self.encode(inputs, state)
        ahead_BTF = self._ahead(inputs)
        parameters_BSHP = self.head(hidden_BLD[:, skip:], ahead_BTF)
        return RawForecast(parameters_BSHP, anchor_BL[:, skip:], scale_BL[:, skip:]), after

    def _ahead(self, inputs: Inputs) -> Tensor | None:
        if self.encoder is None or (ahead_BTF := self.encoder.ahead(inputs)) is None:
            return None
        return ahead_BTF[:, : inputs.x_BL.shape[1] + self.trained_horizon]

    def raw_forecast(self, inputs: Inputs) -> RawForecast:
        return self._read(self.advance(inputs), inputs)

    def scaled_forecast(self, inputs: Inputs) -> ScaledForecast:
        return self.forecast_from(self.advance(inputs), inputs)

    def advance(self, inputs: Inputs, state: RecurrentState | None = None) -> RecurrentState:
        """Return the state reached after the last step."""
        return self.encode(inputs, state)[-1]

    def forecast_from(self, state: RecurrentState, inputs: Inputs) -> ScaledForecast:
        """Forecast what follows a state; `inputs` are those of the steps, or of the last one, that led to it."""
        raw = self._read(state, inputs)
        if self.autoregressive:
            return self._feed_back(raw, state, inputs)
        return ScaledForecast(self.output.quantiles(raw.parameters_BSHP), raw.anchor_BS, raw.scale_BS)

    def _read(self, state: RecurrentState, inputs: Inputs) -> RawForecast:
        anchor_B1, scale_B1 = read_back(state.running, self.scaling)
        hidden_B1D = state.hidden[0][-1][:, None]
        return RawForecast(self.head(hidden_B1D, self._ahead(inputs)), anchor_B1, scale_B1)

    def _feed_back(self, raw: RawForecast, state: RecurrentState, inputs: Inputs) -> ScaledForecast:
        """Forecast step by step, taking the middle of each forecast for what happened."""
        length = inputs.x_BL.shape[1]
        anchor_B1, scale_B1 = raw.anchor_BS, raw.scale_BS
        steps = [self._relative(raw, anchor_B1, scale_B1)]
        for h in range(1, self.horizon):
            middle_B1 = raw.parameters_BSHP[:, 0, :, self.output.location]
            fed_B1 = raw.anchor_BS + raw.scale_BS * middle_B1
            one = inputs._replace(
                x_BL=fed_B1,
                mask_BL=torch.ones_like(fed_B1, dtype=torch.bool),
                covariates=_ahead_of(inputs.covariates, length, h),
            )
            raw, state = self.forecast_every_step(one, state)
            steps.append(self._relative(raw, anchor_B1, scale_B1))
        return ScaledForecast(torch.cat(steps, dim=2), anchor_B1, scale_B1)

    def _relative(self, raw: RawForecast, anchor_B1: Tensor, scale_B1: Tensor) -> Tensor:
        """Return the quantiles of a step in the scaled units of the cutoff, `(B, 1, 1, Q)`."""
        values_BSHQ = self.output.quantiles(raw.parameters_BSHP)
        shift_BS = (raw.anchor_BS - anchor_B1) / scale_B1
        return shift_BS[..., None, None] + (raw.scale_BS / scale_B1)[..., None, None] * values_BSHQ


def _ahead_of(covariates: CovariateTensors | None, length: int, h: int) -> CovariateTensors | None:
    """Return what is known when h steps ahead are taken for seen: nothing of the past columns."""
    if covariates is None:
        return None
    at = length + h - 1
    unknown_B1P = torch.full_like(covariates.past_BLP[:, :1], torch.nan)
    return CovariateTensors(unknown_B1P, covariates.future_BTF[:, at : at + 2], covariates.static_BS)


def start_recurrence(recurrent: nn.RNNBase) -> None:
    """Start orthogonal (gradients neither vanish nor explode at first) and with open forget gates.

    Saxe et al., 2014 (arXiv:1312.6120); Jozefowicz et al., 2015.
    """
    size = recurrent.hidden_size
    for name, parameter in recurrent.named_parameters():
        if "weight_hh" in name:
            for block in torch.split(parameter.data, size):
                nn.init.orthogonal_(block)
        elif "bias" in name:
            nn.init.zeros_(parameter)
            if isinstance(recurrent, nn.LSTM) and "bias_ih" in name:
                parameter.data[size : 2 * size] = 1.0
