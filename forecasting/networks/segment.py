"""A recurrent network over segments: a long window in few steps, a long horizon decoded at once.

After SegRNN (Lin et al., 2023, arXiv:2308.11200): the window is cut into segments of a day or two, each is
embedded, the recurrence runs over the few segments, and one more step from each output position gives all output
segments side by side. Optional are a linear map of the window beside it, from the closed-form ridge, and a
learned cycle taken off the window and put back (CycleNet, Lin et al., 2024, arXiv:2409.18479).

B batch, L input_size, H horizon, T = L + H, N input segments, M output segments, G segment_size, D hidden,
F future and calendar columns, P parameters of the output.
"""

import torch
from torch import Tensor, nn

from forecasting.networks.base import Inputs, RawForecast, TrainedNetwork
from forecasting.networks.covariates import CovariateEncoder, SeriesUnits
from forecasting.networks.recurrent import start_recurrence
from forecasting.scaling import ScaledWindow, Scaling, scale_window
from forecasting.spec import ForecasterSpec, SegmentSpec

POSITION_SPREAD = 0.1


class Segment(TrainedNetwork):
    """Embed segments, run one recurrent layer over them, decode every output segment from its position."""

    def __init__(self, spec: ForecasterSpec, network: SegmentSpec) -> None:
        super().__init__(spec, network.head)
        size, width = network.segment_size, network.hidden_size
        self.scaling: Scaling = network.scaling
        self.segment_size = size
        self.n_in = network.input_size // size
        self.n_out = -(-spec.horizon // size)
        self.encoder = CovariateEncoder(spec.covariates) if spec.covariates else None
        self.units = SeriesUnits(spec.covariates) if network.scale == "series" else None
        n_timed, n_ahead, n_static = 0, 0, 0
        if self.encoder is not None:
            n_timed, n_ahead, n_static = self.encoder.n_timed, self.encoder.n_ahead, self.encoder.n_static
        self.embedding = nn.Linear(size * (2 + n_timed), width)
        cell = {"segment_rnn": nn.RNN, "segment_gru": nn.GRU, "segment_lstm": nn.LSTM}[network.kind]
        self.recurrent = cell(width, width, batch_first=True)
        self.position_MD = nn.Parameter(POSITION_SPREAD * torch.randn(self.n_out, width))
        self.from_static = nn.Linear(n_static, width, bias=False) if n_static else None
        self.from_ahead = nn.Linear(size * n_ahead, width, bias=False) if n_ahead else None
        self.dropout = nn.Dropout(network.dropout)
        self.out = nn.Linear(width, size * self.output.n_parameters)
        self.linear_part = network.linear
        self.linear = nn.Linear(network.input_size, spec.horizon, bias=False) if network.linear != "none" else None
        # The share of the network in a blend; while it is fitted it stands alone.
        self.register_buffer("share", torch.ones(()))
        self.cycle_C = nn.Parameter(torch.zeros(network.cycle)) if network.cycle else None
        self.register_buffer("start_HP", self.output.start(spec.horizon), persistent=False)
        self._start()

    start_HP: Tensor
    share: Tensor

    def _start(self) -> None:
        """Start at the linear map alone where it is a skip, else close to the random walk."""
        start_recurrence(self.recurrent)
        with torch.no_grad():
            self.out.weight.mul_(0.0 if self.linear_part == "skip" else 0.1)
            self.out.bias.zero_()
        if self.linear is not None:
            nn.init.zeros_(self.linear.weight)
            self.linear.requires_grad_(self.linear_part == "skip")

    def scale(self, inputs: Inputs) -> ScaledWindow:
        """Return the window as the network and the linear map beside it see it."""
        scaled = scale_window(inputs.x_BL, inputs.mask_BL, self.scaling, whole=inputs.whole)
        return scaled if self.units is None else self.units(inputs, scaled)

    def raw_forecast(self, inputs: Inputs) -> RawForecast:
        scaled = self.scale(inputs)
        values_BL = scaled.values_BL
        cycle_BT = self._cycle(inputs)
        if cycle_BT is not None:
            values_BL = values_BL - cycle_BT[:, : values_BL.shape[1]]
        state = self._encode(values_BL, inputs)
        parameters_BHP = self._decode(state, inputs) + self.start_HP
        at = self.output.location
        location_BH = parameters_BHP[..., at]
        if cycle_BT is not None:
            location_BH = location_BH + cycle_BT[:, values_BL.shape[1] :]
        if self.linear is not None:
            location_BH = self._with_linear(location_BH, self.linear(scaled.values_BL))
        parameters_BHP = torch.cat(
            [parameters_BHP[..., :at], location_BH[..., None], parameters_BHP[..., at + 1 :]], dim=-1
        )
        return RawForecast(parameters_BHP[:, None], scaled.anchor_B1, scaled.scale_B1)

    def _with_linear(self, location_BH: Tensor, linear_BH: Tensor) -> Tensor:
        if self.linear_part == "skip":
            return location_BH + linear_BH
        return self.share * location_BH + (1.0 - self.share) * linear_BH

    def _encode(self, values_BL: Tensor, inputs: Inputs) -> tuple[Tensor, ...]:
        """Run over the segments that end the window, and return the state after the last."""
        features = [values_BL[..., None], inputs.mask_BL[..., None].to(values_BL.dtype)]
        if self.encoder is not None:
            features.append(self.encoder.timed(inputs))
        steps = self.n_in * self.segment_size
        features_BLF = torch.cat(features, dim=-1)[:, -steps:]
        segments_BNF = features_BLF.reshape(len(values_BL), self.n_in, -1)
        _, state = self.recurrent(torch.relu(self.embedding(segments_BNF)))
        return state if isinstance(state, tuple) else (state,)

    def _decode(self, state: tuple[Tensor, ...], inputs: Inputs) -> Tensor:
        """Take one step from the state for each output position at once; return parameters `(B, H, P)`."""
        n = state[0].shape[1]
        queries_BMD = self.position_MD.expand(n, -1, -1)
        if self.encoder is not None:
            queries_BMD = queries_BMD + self._known_ahead(inputs)
        # Every position starts from the same state, so positions are rows of one batch.
        repeated = tuple(part.repeat_interleave(self.n_out, dim=1) for part in state)
        packed = repeated if len(repeated) == 2 else repeated[0]
        decoded, _ = self.recurrent(queries_BMD.reshape(n * self.n_out, 1, -1), packed)
        out = self.out(self.dropout(decoded)).reshape(n, self.n_out * self.segment_size, -1)
        parameters_BHP: Tensor = out[:, : self.horizon]
        return parameters_BHP

    def _known_ahead(self, inputs: Inputs) -> Tensor:
        """Return what names and known columns add to the query of each output segment, `(B, M or 1, D)`."""
        if self.encoder is None:
            raise ValueError("a network without covariates knows nothing ahead")
        known = inputs.x_BL.new_zeros(len(inputs.x_BL), 1, self.position_MD.shape[1])
        if self.from_static is not None:
            known = known + self.from_static(self.encoder.static(inputs))[:, None]
        ahead_BTF = self.encoder.ahead(inputs)
        if self.from_ahead is not None and ahead_BTF is not None:
            ahead_BHF = ahead_BTF[:, inputs.x_BL.shape[1] :]
            missing = self.n_out * self.segment_size - self.horizon
            padded_BHF = nn.functional.pad(ahead_BHF, (0, 0, 0, missing))
            known = known + self.from_ahead(padded_BHF.reshape(len(padded_BHF), self.n_out, -1))
        return known

    def _cycle(self, inputs: Inputs) -> Tensor | None:
        """Return the learned cycle over window and horizon, zero at the window's last step, `(B, T)`."""
        if self.cycle_C is None:
            return None
        if inputs.ordinal_B is None:
            raise ValueError("a network with a learned cycle was not told where in it the window ends")
        length = inputs.x_BL.shape[1]
        steps_T = torch.arange(1 - length, self.horizon + 1, device=inputs.x_BL.device)
        place_BT = (inputs.ordinal_B[:, None] + steps_T) % len(self.cycle_C)
        cycle_BT = self.cycle_C[place_BT]
        return cycle_BT if self.scaling == "mean" else cycle_BT - cycle_BT[:, length - 1 : length]
