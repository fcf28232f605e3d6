"""Windows: each value where it belongs, each target inside its block."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from forecasting.panel import Panel
from tests.conftest import make_panel
from training.windows import PanelTensors, Windows

CPU = torch.device("cpu")


def counting_panel(n_steps: int = 60) -> Panel:
    """Series 0 counts 0, 1, 2, ...; series 1 counts from 1000."""
    panel = make_panel(2, n_steps)
    y_NT = np.arange(n_steps) + np.array([[0.0], [1000.0]])
    return Panel(panel.unique_ids, panel.ds, y_NT, panel.calendar)


@settings(max_examples=40, deadline=None)
@given(
    input_size=st.integers(1, 12), horizon=st.integers(1, 6), start=st.integers(0, 30), length=st.integers(1, 30)
)
def test_targets_follow_their_window_and_stay_in_their_block(
    input_size: int, horizon: int, start: int, length: int
) -> None:
    data = PanelTensors(counting_panel(), "none", CPU)
    windows = Windows(data, input_size, horizon, start, start + length)
    first = max(start, input_size)
    assert len(windows) == 2 * max(0, start + length - horizon - first + 1)
    if not len(windows):
        return
    batch = windows.gather(torch.arange(len(windows)))
    # Counting series: every value is its position less the mean of the positions.
    position_BL = batch.inputs.x_BL + 29.5
    ahead_BH = batch.target_BSH[:, 0] + 29.5
    steps = torch.arange(input_size + horizon)
    whole = torch.cat([position_BL, ahead_BH], dim=1)
    assert torch.equal(whole, whole[:, :1] + steps)
    assert ahead_BH.min() >= start
    assert ahead_BH.max() < start + length


def test_lanes_have_the_targets_of_every_step() -> None:
    data = PanelTensors(counting_panel(), "none", CPU)
    windows = Windows(data, 10, 3, 0, 60)
    chosen = torch.tensor([0, 5, len(windows) - 1])
    lanes = windows.gather_every_step(chosen, 4, 3)
    assert lanes.target_BSH.shape == (3, 6, 3)
    for step in range(6):
        expected = lanes.inputs.x_BL[:, [4 + step]] + torch.arange(1, 4)
        assert torch.equal(lanes.target_BSH[:, step], expected)
    assert torch.equal(lanes.target_BSH[:, -1], windows.gather(chosen).target_BSH[:, 0])


def test_missing_values_are_masked_in_inputs_and_targets() -> None:
    panel = make_panel(3, 100, missing=20)
    data = PanelTensors(panel, "none", CPU)
    windows = Windows(data, 10, 5, 0, 100)
    batch = windows.gather(torch.arange(len(windows)))
    series_M, cutoff_M = windows.locate(torch.arange(len(windows)))
    steps = cutoff_M[:, None].numpy() + np.arange(-9, 6)
    observed = np.isfinite(panel.y_NT[series_M.numpy()[:, None], steps])
    assert np.array_equal(batch.inputs.mask_BL.numpy(), observed[:, :10])
    assert np.array_equal(batch.target_mask_BSH[:, 0].numpy(), observed[:, 10:])
    assert not batch.inputs.x_BL[~batch.inputs.mask_BL].any()


def test_a_window_with_nothing_to_learn_is_left_out() -> None:
    panel = make_panel(1, 60)
    y_NT = panel.y_NT.copy()
    y_NT[0, 20:40] = np.nan
    data = PanelTensors(Panel(panel.unique_ids, panel.ds, y_NT, panel.calendar), "none", CPU)
    windows = Windows(data, 10, 5, 0, 60)
    cutoffs = set(windows.locate(torch.arange(len(windows)))[1].tolist())
    assert 18 in cutoffs, "one target is known"
    assert 19 not in cutoffs, "no target is known"
    assert 30 not in cutoffs, "hardly any input is known"


def test_spread_stays_inside_more_windows_than_single_precision_can_count() -> None:
    windows = Windows(PanelTensors(counting_panel(), "none", CPU), 5, 2, 0, 60)
    windows._count = 2**24 + 2
    assert windows.spread(100)[-1] == 2**24 + 1


@pytest.mark.parametrize("at_most", [1, 7, 10_000])
def test_spread_covers_the_whole_block(at_most: int) -> None:
    windows = Windows(PanelTensors(counting_panel(), "none", CPU), 5, 2, 0, 60)
    chosen = windows.spread(at_most)
    assert len(chosen) == min(at_most, len(windows))
    assert chosen[0] == 0
    if at_most > 1:
        assert chosen[-1] == len(windows) - 1
