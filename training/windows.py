"""Windows and lanes, gathered on the device from the whole panel; there is no DataLoader.

N series, T steps, M windows, B batch, L input_size, H horizon. The panel lies on the device once; a batch is
one gather. For a recurrent network the same window is a lane: a target for every one of its L steps.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from forecasting.panel import Panel
from forecasting.transforms import Transform, apply_transform


@dataclass(frozen=True)
class Split:
    """Positions on the panel's grid: targets before `validation` train, before `test` choose, the rest test."""

    validation: int
    test: int
    cutoffs: tuple[int, ...]
    """The test cutoffs, ascending: positions of the last observed step."""


class Batch(NamedTuple):
    """Windows with their targets; missing values are zero and masked."""

    x_BL: Tensor
    mask_BL: Tensor
    target_BLH: Tensor
    target_mask_BLH: Tensor


class PanelTensors:
    """A panel on a device, on the modelling scale, each series about its own mean.

    Networks follow shifts of their input exactly, so taking the mean off changes nothing but the precision.
    """

    def __init__(self, panel: Panel, transform: Transform, device: torch.device) -> None:
        x_NT = apply_transform(panel.y_NT, transform)
        observed_NT = np.isfinite(x_NT)
        count_N1 = observed_NT.sum(axis=1, keepdims=True)
        centre_N1 = np.where(observed_NT, x_NT, 0.0).sum(axis=1, keepdims=True) / np.maximum(count_N1, 1)
        centred_NT = np.where(observed_NT, x_NT - centre_N1, 0.0).astype(np.float32)
        self.x_NT = torch.from_numpy(centred_NT).to(device)
        self.mask_NT = torch.from_numpy(observed_NT).to(device)
        self.device = device


class Windows:
    """Every window of `input_size` steps whose targets lie in a stretch of the grid."""

    def __init__(self, data: PanelTensors, input_size: int, horizon: int, start: int, stop: int) -> None:
        """List the windows.

        Args:
            data: the panel on its device.
            input_size: steps of history in a window.
            horizon: steps of targets.
            start: position of the first target any window may have.
            stop: position after the last one.
        """
        self.data, self.input_size, self.horizon = data, input_size, horizon
        self.series_M, self.cutoff_M = self._list(max(start, input_size), stop)

    def __len__(self) -> int:
        return len(self.series_M)

    def _list(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Return series and cutoff of every window with a value to learn from and a value to learn."""
        cutoffs = torch.arange(start - 1, max(start - 1, stop - self.horizon), device=self.data.device)
        seen_NT = torch.nn.functional.pad(self.data.mask_NT.int().cumsum(dim=1), (1, 0))
        seen_before = seen_NT[:, cutoffs + 1 - self.input_size]
        seen_at = seen_NT[:, cutoffs + 1]
        seen_after = seen_NT[:, cutoffs + 1 + self.horizon]
        # A window must reach back to its series' start at most, and know enough of it to have a scale.
        usable = (seen_at - seen_before >= min(self.input_size, max(2, self.input_size // 2))) & (
            seen_after > seen_at
        )
        series_M, index_M = usable.nonzero(as_tuple=True)
        return series_M, cutoffs[index_M]

    def gather(self, chosen_B: Tensor) -> Batch:
        """Return windows with the target after their last step only (L is 1 in the targets)."""
        batch = self._gather(chosen_B, self.horizon)
        return Batch(
            batch.x_BL[:, : self.input_size],
            batch.mask_BL[:, : self.input_size],
            batch.x_BL[:, None, self.input_size :],
            batch.mask_BL[:, None, self.input_size :],
        )

    def gather_lanes(self, chosen_B: Tensor, skip: int) -> Batch:
        """Return windows with the targets after every step but the first `skip`."""
        batch = self._gather(chosen_B, self.horizon)
        x_BLH = batch.x_BL.unfold(1, self.horizon, 1)[:, 1 + skip :]
        mask_BLH = batch.mask_BL.unfold(1, self.horizon, 1)[:, 1 + skip :]
        return Batch(batch.x_BL[:, : self.input_size], batch.mask_BL[:, : self.input_size], x_BLH, mask_BLH)

    def _gather(self, chosen_B: Tensor, ahead: int) -> Batch:
        series_B1 = self.series_M[chosen_B][:, None]
        offsets = torch.arange(1 - self.input_size, 1 + ahead, device=self.data.device)
        steps_BL = self.cutoff_M[chosen_B][:, None] + offsets
        x_BL, mask_BL = self.data.x_NT[series_B1, steps_BL], self.data.mask_NT[series_B1, steps_BL]
        return Batch(x_BL, mask_BL, x_BL, mask_BL)

    def spread(self, at_most: int) -> Tensor:
        """Return the indices of windows, evenly spaced, no more than `at_most`."""
        count = min(len(self), at_most)
        # In double precision: single knows no odd whole number above 2^24, and a large panel has more windows.
        last = max(len(self) - 1, 0)
        return torch.linspace(0, last, count, dtype=torch.float64, device=self.data.device).round().long()
