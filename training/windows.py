"""Windows and lanes, gathered on the device from the whole panel; there is no DataLoader.

N series, T steps, U steps covariates are known of (T and those beyond), M windows, R runs of windows, B batch,
L input_size, H horizon, S steps a forecast is made at, P past, F future and calendar columns.

A window has a target after its last step, or after every step. A lane is a stretch of many windows' length that
a recurrent network crosses in chunks, its state carried on.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from forecasting.calendar_features import calendar_features
from forecasting.covariates import encode_static
from forecasting.networks.base import CovariateTensors, Inputs
from forecasting.panel import Panel
from forecasting.spec import CovariatesSpec
from forecasting.transforms import Transform, apply_transform

CELLS_AT_ONCE = 500_000
"""Cells of the panel worked on at a time: what is needed on the way must not outgrow what is kept."""


@dataclass(frozen=True)
class Split:
    """Positions on the panel's grid: targets before `validation` train, those before `test` choose and calibrate.

    From `test` on nothing is learned from. The first cutoff is the step before it, or an embargo later.
    """

    validation: int
    test: int
    cutoffs: tuple[int, ...]
    """The test cutoffs, ascending: positions of the last observed step."""


class Batch(NamedTuple):
    """Inputs with the targets of S steps; missing values are zero and masked."""

    inputs: Inputs
    target_BSH: Tensor
    target_mask_BSH: Tensor
    unit_B1: Tensor
    """The scale of each series over all of the panel."""

    def first_steps(self, horizon: int) -> "Batch":
        """Return the batch with the first targets only."""
        return self._replace(
            target_BSH=self.target_BSH[..., :horizon], target_mask_BSH=self.target_mask_BSH[..., :horizon]
        )


class PanelTensors:
    """A panel on a device, on the modelling scale, each series about its own mean.

    Networks follow shifts of their input exactly, so taking the mean off changes nothing but the precision.
    """

    def __init__(
        self,
        panel: Panel,
        transform: Transform,
        device: torch.device,
        covariates: CovariatesSpec | None = None,
    ) -> None:
        self.device = device
        self.covariates = covariates or CovariatesSpec()
        x_NT, observed_NT, unit_N = _centre(panel.y_NT, transform)
        self.x_NT = torch.from_numpy(x_NT).to(device)
        self.mask_NT = torch.from_numpy(observed_NT).to(device)
        self.unit_N1 = torch.from_numpy(unit_N).to(device)[:, None]
        self.whole = bool(observed_NT.all())
        """Nothing is missing anywhere."""
        self.first_ordinal = int(panel.calendar.ordinals(panel.ds[:1])[0])
        self._put_covariates(panel)

    def _put_covariates(self, panel: Panel) -> None:
        known = self.covariates
        if not known:
            return
        static = [encode_static(panel.static[s.name], s) for s in known.static]
        static_NS = np.stack(static, axis=1) if static else np.empty((panel.n_series, 0), dtype=np.int64)
        past = [panel.columns.past.index(name) for name in known.past]
        future = [panel.columns.future.index(name) for name in known.future]
        n_known = panel.future_NUF.shape[1]
        ds = panel.calendar.range(panel.ds[0], n_known)
        made_UK = calendar_features(panel.calendar, ds, known.calendar, known.country)
        self.past_NTP = torch.from_numpy(panel.past_NTP[:, :, past].astype(np.float32)).to(self.device)
        self.future_NUF = torch.from_numpy(panel.future_NUF[:, :, future].astype(np.float32)).to(self.device)
        self.calendar_UK = torch.from_numpy(made_UK.astype(np.float32)).to(self.device)
        self.static_NS = torch.from_numpy(static_NS).to(self.device)

    @property
    def n_series(self) -> int:
        return len(self.x_NT)

    @property
    def n_steps(self) -> int:
        return self.x_NT.shape[1]

    def stretch(self, series_B: Tensor, first_B: Tensor, length: int, *, inside: bool) -> tuple[Tensor, Tensor]:
        """Return values and mask of stretches; `inside` promises that none leaves the grid."""
        if inside:  # rows of a view: no table of positions is made, which takes longer than the values
            x_BL = self.x_NT.unfold(1, length, 1)[series_B, first_B]
            if self.whole:
                return x_BL, self.mask_NT[:1, :1].expand(x_BL.shape)
            return x_BL, self.mask_NT.unfold(1, length, 1)[series_B, first_B]
        step_BL = first_B[:, None] + torch.arange(length, device=self.device)
        cell_BL = step_BL.clamp(0, self.n_steps - 1)
        mask_BL = self.mask_NT[series_B[:, None], cell_BL] & (step_BL == cell_BL)
        return self.x_NT[series_B[:, None], cell_BL] * mask_BL, mask_BL

    def gather(
        self, series_B: Tensor, first_B: Tensor, length: int, horizon: int, *, inside: bool
    ) -> tuple[Inputs, Tensor, Tensor]:
        """Return what a network sees of stretches, and their values and mask, `horizon` steps longer."""
        x_BT, mask_BT = self.stretch(series_B, first_B, length + horizon, inside=inside)
        inputs = Inputs(
            x_BT[:, :length],
            mask_BT[:, :length],
            self._covariates(series_B, first_B, length, horizon) if self.covariates else None,
            first_B + (self.first_ordinal + length - 1),
            whole=inside and self.whole,
        )
        return inputs, x_BT, mask_BT

    def _covariates(self, series_B: Tensor, first_B: Tensor, length: int, horizon: int) -> CovariateTensors:
        series_B1 = series_B[:, None]
        step_BT = first_B[:, None] + torch.arange(length + horizon, device=self.device)
        past_BL, future_BT = step_BT[:, :length], step_BT.clamp(0, self.future_NUF.shape[1] - 1)
        past_BLP = self.past_NTP[series_B1, past_BL.clamp(0, self.n_steps - 1)]
        past_BLP = past_BLP.masked_fill(((past_BL < 0) | (past_BL >= self.n_steps))[..., None], torch.nan)
        future_BTF = self.future_NUF[series_B1, future_BT]
        future_BTF = future_BTF.masked_fill((step_BT != future_BT)[..., None], torch.nan)
        # Steps outside the grid are masked in the values; their calendar is that of the nearest step inside.
        future_BTF = torch.cat([future_BTF, self.calendar_UK[future_BT]], dim=-1)
        return CovariateTensors(past_BLP, future_BTF, self.static_NS[series_B])


def _centre(
    y_NT: NDArray[np.float64], transform: Transform
) -> tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.float32]]:
    """Return values about each series' mean, zero where missing; what is observed; and each series' scale."""
    x_NT = np.empty(y_NT.shape, dtype=np.float32)
    observed_NT = np.empty(y_NT.shape, dtype=bool)
    unit_N = np.empty(len(y_NT), dtype=np.float32)
    for rows in _row_blocks(*y_NT.shape):
        values_NT = apply_transform(y_NT[rows], transform)
        known_NT = np.isfinite(values_NT)
        count_N1 = np.maximum(known_NT.sum(axis=1, keepdims=True), 1)
        values_NT = np.where(known_NT, values_NT, 0.0)
        values_NT -= values_NT.sum(axis=1, keepdims=True) / count_N1
        values_NT *= known_NT
        x_NT[rows], observed_NT[rows] = values_NT, known_NT
        unit_N[rows] = np.sqrt(np.square(values_NT).sum(axis=1) / count_N1[:, 0])
    return x_NT, observed_NT, unit_N


def _row_blocks(n_rows: int, n_columns: int) -> Iterator[slice]:
    size = max(1, CELLS_AT_ONCE // max(1, n_columns))
    return (slice(start, start + size) for start in range(0, n_rows, size))


class Windows:
    """Every window of `input_size` steps whose targets lie in a stretch of the grid.

    Windows are held as runs of neighbouring cutoffs, so that a panel of ten thousand series needs a list of ten
    thousand runs and not of ten million windows.
    """

    def __init__(
        self,
        data: PanelTensors,
        input_size: int,
        horizon: int,
        start: int,
        stop: int,
        *,
        min_observed: int | None = None,
    ) -> None:
        """List the windows.

        Args:
            data: the panel on its device.
            input_size: steps of history in a window.
            horizon: steps of targets.
            start: position of the first target any window may have.
            stop: position after the last one.
            min_observed: values a window must have. Default half of it; given, a window may also reach back
                beyond the first step of the grid, where everything is missing.
        """
        self.data, self.input_size, self.horizon, self.stop = data, input_size, horizon, stop
        self.needed = min(input_size, max(2, input_size // 2)) if min_observed is None else min_observed
        self.padded = min_observed is not None
        first = max(start, input_size if min_observed is None else self.needed) - 1
        self.series_R, self.cutoff_R, self.total_R = self._list_runs(first, max(first, stop - horizon))
        self._count = int(self.total_R[-1]) if len(self.total_R) else 0

    def __len__(self) -> int:
        return self._count

    def _list_runs(self, first: int, last: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return series and first cutoff of every run, and how many windows there are up to its end."""
        blocks = [self._runs_of(rows, first, last) for rows in _row_blocks(self.data.n_series, self.data.n_steps)]
        series_R, cutoff_R, length_R = (torch.cat(parts) for parts in zip(*blocks, strict=True))
        return series_R, cutoff_R, length_R.cumsum(dim=0)

    def _runs_of(self, rows: slice, first: int, last: int) -> tuple[Tensor, Tensor, Tensor]:
        usable_NC = torch.nn.functional.pad(self._usable(rows, first, last).to(torch.int8), (1, 1))
        change_NC = usable_NC.diff(dim=1)
        series_R, begin_R = (change_NC == 1).nonzero(as_tuple=True)
        _, end_R = (change_NC == -1).nonzero(as_tuple=True)
        return series_R + (rows.start or 0), begin_R + first, end_R - begin_R

    def _usable(self, rows: slice, first: int, last: int) -> Tensor:
        """Return which cutoffs have values to learn from and a value to learn."""
        seen_NT = torch.nn.functional.pad(self.data.mask_NT[rows].cumsum(dim=1, dtype=torch.int32), (1, 0))
        cutoffs = torch.arange(first, last, device=self.data.device)
        before = (cutoffs + 1 - self.input_size).clamp_min(0)
        seen_at = seen_NT[:, cutoffs + 1]
        enough = seen_at - seen_NT[:, before] >= self.needed
        return enough & (seen_NT[:, cutoffs + 1 + self.horizon] > seen_at)

    def locate(self, chosen_B: Tensor) -> tuple[Tensor, Tensor]:
        """Return series and cutoff of windows by their number."""
        run_B = torch.searchsorted(self.total_R, chosen_B, right=True)
        before_B = torch.where(run_B > 0, self.total_R[run_B - 1], 0)
        return self.series_R[run_B], self.cutoff_R[run_B] + chosen_B - before_B

    def gather(self, chosen_B: Tensor) -> Batch:
        """Return windows with the target after their last step only (S is 1)."""
        series_B, first_B = self._place(chosen_B)
        inputs, x_BT, mask_BT = self.data.gather(
            series_B, first_B, self.input_size, self.horizon, inside=not self.padded
        )
        ahead = slice(self.input_size, None)
        return Batch(inputs, x_BT[:, None, ahead], mask_BT[:, None, ahead], self.data.unit_N1[series_B])

    def gather_every_step(self, chosen_B: Tensor, skip: int, horizon: int) -> Batch:
        """Return windows with `horizon` targets after every step but the first `skip`."""
        series_B, first_B = self._place(chosen_B)
        return _every_step(self.data, series_B, first_B, (self.input_size, horizon, skip), inside=not self.padded)

    def _place(self, chosen_B: Tensor) -> tuple[Tensor, Tensor]:
        series_B, cutoff_B = self.locate(chosen_B)
        return series_B, cutoff_B + 1 - self.input_size

    def spread(self, at_most: int) -> Tensor:
        """Return the numbers of windows, evenly spaced, no more than `at_most`."""
        count = min(len(self), at_most)
        # In double precision: single knows no odd whole number above 2^24, and a large panel has more windows.
        last = max(len(self) - 1, 0)
        return torch.linspace(0, last, count, dtype=torch.float64, device=self.data.device).round().long()


class Lanes:
    """Long stretches of the series, crossed in chunks by truncated back-propagation through time."""

    def __init__(
        self, data: PanelTensors, horizon: int, stop: int, *, chunk: int, n_chunks: int, random_offsets: bool
    ) -> None:
        """Measure the series.

        Args:
            data: the panel on its device.
            horizon: steps of targets after every step.
            stop: position after the last target.
            chunk: steps gradients reach back.
            n_chunks: chunks in a lane.
            random_offsets: lanes start anywhere, and not only at multiples of their length.
        """
        self.data, self.horizon, self.chunk, self.n_chunks = data, horizon, chunk, n_chunks
        self.length, self.random_offsets = chunk * n_chunks, random_offsets
        # Nothing after `stop` may be seen: it is cut off here, once.
        mask_NT = data.mask_NT[:, :stop]
        self.stop = stop
        self.first_N = mask_NT.to(torch.int8).argmax(dim=1)
        last_N = stop - 1 - mask_NT.flip(1).to(torch.int8).argmax(dim=1)
        self.room_N = (last_N + 1 - self.first_N - horizon).clamp_min(0) * mask_NT.any(dim=1)
        """Steps of each series a lane may lie on, with targets after each."""

    def __len__(self) -> int:
        """Return the number of steps that lanes can begin at."""
        return int(self.room_N.sum())

    def sample(self, n_lanes: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw series and first steps of lanes: long series more often."""
        series_B = torch.multinomial(self.room_N.double(), n_lanes, replacement=True, generator=generator)
        share_B = torch.rand(n_lanes, generator=generator, device=self.data.device, dtype=torch.float64)
        room_B = self.room_N[series_B]
        if self.random_offsets:
            offset_B = (share_B * (room_B - self.length + 1).clamp_min(1)).long()
        else:
            offset_B = (share_B * (room_B // self.length).clamp_min(1)).long() * self.length
        return series_B, self.first_N[series_B] + offset_B

    def gather(self, lanes: tuple[Tensor, Tensor], number: int, skip: int) -> Batch:
        """Return one chunk of lanes, with the targets after every step but the first `skip`."""
        series_B, first_B = lanes
        begin_B = first_B + number * self.chunk
        batch = _every_step(self.data, series_B, begin_B, (self.chunk, self.horizon, skip), inside=False)
        # A short series ends within its lane: what follows, and what lies behind `stop`, carries no weight.
        offset_S = torch.arange(skip, self.chunk, device=self.data.device)
        ahead_SH = offset_S[:, None] + torch.arange(1, self.horizon + 1, device=self.data.device)
        inside_BSH = begin_B[:, None, None] + ahead_SH < self.stop
        return batch._replace(target_mask_BSH=batch.target_mask_BSH & inside_BSH)


def _every_step(
    data: PanelTensors, series_B: Tensor, first_B: Tensor, sizes: tuple[int, int, int], *, inside: bool
) -> Batch:
    """Return stretches with the targets after every step; sizes are length, horizon and steps skipped."""
    length, horizon, skip = sizes
    inputs, x_BT, mask_BT = data.gather(series_B, first_B, length, horizon, inside=inside)
    after = slice(skip + 1, None)
    return Batch(
        inputs,
        x_BT[:, after].unfold(1, horizon, 1),
        mask_BT[:, after].unfold(1, horizon, 1),
        data.unit_N1[series_B],
    )
