"""The states of many series as one flat array, and the every-step network that advances them in one pass.

Values are relative to a level in double precision, the last one that was seen: a series may drift as far as it
likes, single precision carries its movement. The level moves with every step, and the state with it.

B series, L steps, H horizon, Q quantiles, W numbers in the state of one series.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from forecasting.forecaster import Forecaster
from forecasting.networks.base import CovariateTensors, Inputs, QuantileNetwork
from forecasting.networks.ensemble import Ensemble
from forecasting.networks.recurrent import Recurrent, RecurrentState
from forecasting.scaling import RunningState, shift_state

FloatArray = NDArray[np.float64]
SingleArray = NDArray[np.float32]
BoolArray = NDArray[np.bool_]

N_RUNNING = len(RunningState._fields)


class Recurrence:
    """Advances the states of a forecaster's network, and forecasts from them."""

    def __init__(self, forecaster: Forecaster, members: list[Recurrent]) -> None:
        self._forecaster = forecaster
        self._members = members
        self._widths = [_width(member) for member in members]
        self.width = sum(self._widths)
        """Numbers in the state of one series."""

    @torch.inference_mode()
    def advance(
        self,
        state_BW: SingleArray,
        level_B: FloatArray,
        x_BL: FloatArray,
        covariates: CovariateTensors | None = None,
    ) -> tuple[SingleArray, FloatArray]:
        """Advance L steps, on the scale the network models, NaN where missing.

        Returns:
            The states reached and the levels they are relative to; a state is not finite where a value was
            too far away to be worked with.
        """
        mask_BL = np.isfinite(x_BL)
        after_B = _last_values(x_BL, mask_BL, level_B)
        with np.errstate(over="ignore", invalid="ignore"):
            centred_BL = np.where(mask_BL, x_BL - after_B[:, None], 0.0).astype(np.float32)
            shift_B = self._forecaster.tensor(after_B - level_B)
        inputs = Inputs(self._forecaster.tensor(centred_BL), self._forecaster.tensor(mask_BL), covariates)
        states = [
            member.advance(inputs, state._replace(running=shift_state(state.running, shift_B)))
            for member, state in zip(self._members, self._unpack(state_BW), strict=True)
        ]
        packed_BW = torch.cat([_pack(state) for state in states], dim=1)
        return np.asarray(packed_BW.cpu().numpy(), dtype=np.float32), after_B

    @torch.inference_mode()
    def forecast(
        self, state_BW: SingleArray, level_B: FloatArray, covariates: CovariateTensors | None = None
    ) -> FloatArray:
        """Return the `(B, H, Q)` quantiles after the step each state was reached at, as `Forecaster.predict` does.

        Args:
            state_BW: the states.
            level_B: what they are relative to.
            covariates: of that one step, and of the horizon after it.
        """
        one_B1 = self._forecaster.tensor(np.zeros((len(state_BW), 1), dtype=np.float32))
        inputs = Inputs(one_B1, torch.ones_like(one_B1, dtype=torch.bool), covariates)
        forecasts = [
            member.forecast_from(state, inputs)
            for member, state in zip(self._members, self._unpack(state_BW), strict=True)
        ]
        network = self._forecaster.network
        combined = network.combine(forecasts) if isinstance(network, Ensemble) else forecasts[0]
        relative_BHQ = np.asarray(network.calibrate(combined).cpu().numpy(), dtype=np.float64)
        return self._forecaster.to_observed(relative_BHQ + level_B[:, None, None])

    def _unpack(self, state_BW: SingleArray) -> list[RecurrentState]:
        packed_BW = self._forecaster.tensor(np.ascontiguousarray(state_BW))
        parts = torch.split(packed_BW, self._widths, dim=1)
        return [_unpack(part_BW, member) for part_BW, member in zip(parts, self._members, strict=True)]


def recurrence_of(forecaster: Forecaster) -> Recurrence | None:
    """Return what advances a forecaster's states; None where its network has none, and sees windows only."""
    members = _members(forecaster.network)
    return Recurrence(forecaster, members) if members else None


def _members(network: QuantileNetwork) -> list[Recurrent]:
    networks = network.networks() if isinstance(network, Ensemble) else [network]
    recurrent = [member for member in networks if isinstance(member, Recurrent)]
    return recurrent if len(recurrent) == len(networks) else []


def _last_values(x_BL: FloatArray, mask_BL: BoolArray, before_B: FloatArray) -> FloatArray:
    """Return the last value seen of each series, that before where there is none."""
    last_B = x_BL.shape[1] - 1 - mask_BL[:, ::-1].argmax(axis=1)
    chosen_B: FloatArray = np.where(mask_BL.any(axis=1), x_BL[np.arange(len(x_BL)), last_B], before_B)
    return chosen_B


def _n_hidden(member: Recurrent) -> int:
    return 2 if isinstance(member.recurrent, torch.nn.LSTM) else 1


def _shape(member: Recurrent) -> tuple[int, int]:
    """Return layers and units of a network."""
    return int(member.recurrent.num_layers), int(member.recurrent.hidden_size)


def _width(member: Recurrent) -> int:
    layers, size = _shape(member)
    return N_RUNNING + _n_hidden(member) * layers * size


def _pack(state: RecurrentState) -> Tensor:
    hidden = [layers.transpose(0, 1).flatten(1) for layers in state.hidden]
    return torch.cat([torch.stack(state.running, dim=1), *hidden], dim=1)


def _unpack(state_BW: Tensor, member: Recurrent) -> RecurrentState:
    hidden_BNLD = state_BW[:, N_RUNNING:].reshape(len(state_BW), _n_hidden(member), *_shape(member))
    hidden = tuple(part.transpose(0, 1).contiguous() for part in hidden_BNLD.unbind(dim=1))
    return RecurrentState(RunningState(*state_BW[:, :N_RUNNING].unbind(dim=1)), hidden)
