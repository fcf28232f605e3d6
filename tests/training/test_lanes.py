"""Lanes: long stretches crossed in chunks, the state carried, nothing seen that must not be."""

import numpy as np
import pytest
import torch

from forecasting.errors import TrainingError
from forecasting.networks import build_network
from forecasting.networks.base import Inputs
from forecasting.networks.recurrent import Recurrent
from forecasting.panel import Panel
from forecasting.spec import RecurrentSpec
from tests.conftest import make_panel, make_spec
from tests.training.test_fit import blocks, quick_fit
from training.fit import fit
from training.job import TrainingConfig
from training.windows import Lanes, PanelTensors

CPU = torch.device("cpu")


def counting_panel(n_steps: int = 100) -> Panel:
    panel = make_panel(2, n_steps)
    y_NT = np.arange(n_steps) + np.array([[0.0], [1000.0]])
    y_NT[1, :40] = np.nan
    return Panel(panel.unique_ids, panel.ds, y_NT, panel.calendar)


def lanes_of(panel: Panel, stop: int, **settings: int | bool) -> Lanes:
    return Lanes(
        PanelTensors(panel, "none", CPU),
        3,
        stop,
        chunk=int(settings.get("chunk", 10)),
        n_chunks=int(settings.get("n_chunks", 4)),
        random_offsets=bool(settings.get("random_offsets", True)),
    )


def test_chunks_follow_one_another_and_targets_follow_every_step() -> None:
    lanes = lanes_of(counting_panel(), 100)
    drawn = lanes.sample(50, torch.Generator().manual_seed(0))
    before = None
    for number in range(4):
        batch = lanes.gather(drawn, number, skip=0)
        known = batch.inputs.mask_BL[:, 0]
        first_B = batch.inputs.x_BL[:, 0]
        if before is not None:
            assert torch.equal(first_B[known], before[known] + 10)
        before = first_B
        expected_BSH = batch.inputs.x_BL[:, :, None] + torch.arange(1, 4)
        scored = batch.target_mask_BSH
        assert scored.any()
        assert torch.equal(batch.target_BSH[scored], expected_BSH[scored])


@pytest.mark.parametrize("random_offsets", [True, False])
def test_no_target_of_a_lane_lies_behind_the_training_block(random_offsets: bool) -> None:
    panel = counting_panel()
    poisoned = panel.y_NT.copy()
    poisoned[:, 70:] = 1e9
    data = PanelTensors(Panel(panel.unique_ids, panel.ds, poisoned, panel.calendar), "none", CPU)
    lanes = Lanes(data, 3, 70, chunk=10, n_chunks=4, random_offsets=random_offsets)
    generator = torch.Generator().manual_seed(0)
    highest = float(data.x_NT[:, :70].max())
    for _ in range(20):
        drawn = lanes.sample(16, generator)
        for number in range(4):
            batch = lanes.gather(drawn, number, skip=0)
            assert not (batch.target_BSH[batch.target_mask_BSH] > highest).any()


def test_fixed_offsets_are_multiples_of_the_lane_and_random_ones_are_not() -> None:
    generator = torch.Generator().manual_seed(0)
    series_B, first_B = lanes_of(counting_panel(), 100, random_offsets=False, n_chunks=2).sample(200, generator)
    begins = torch.tensor([0, 40])[series_B]
    assert set(((first_B - begins) % 20).tolist()) == {0}
    _, anywhere_B = lanes_of(counting_panel(), 100, n_chunks=2).sample(200, generator)
    assert len(set((anywhere_B % 20).tolist())) > 10


@pytest.mark.parametrize("kind", ["rnn", "gru", "lstm"])
def test_chunk_by_chunk_with_the_state_carried_is_the_full_pass(kind: str) -> None:
    network = build_network(make_spec(RecurrentSpec(kind=kind, input_size=60, hidden_size=8))).eval()
    assert isinstance(network, Recurrent)
    x_BL, mask_BL = torch.randn(3, 60).cumsum(dim=1), torch.rand(3, 60) > 0.1
    whole, _ = network.forecast_every_step(Inputs(x_BL, mask_BL))
    state, parts = None, []
    for start in range(0, 60, 15):
        chunk = Inputs(x_BL[:, start : start + 15], mask_BL[:, start : start + 15])
        forecast, state = network.forecast_every_step(chunk, state)
        state = state.detach()
        parts.append(forecast.parameters_BSHP)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole.parameters_BSHP, rtol=1e-4, atol=1e-4)


def test_gradients_end_where_a_chunk_begins() -> None:
    network = build_network(make_spec(RecurrentSpec(kind="lstm", input_size=20, hidden_size=8)))
    assert isinstance(network, Recurrent)
    first_BL = torch.randn(1, 10).cumsum(dim=1).requires_grad_()
    mask_BL = torch.ones(1, 10, dtype=torch.bool)
    _, state = network.forecast_every_step(Inputs(first_BL, mask_BL))
    carried, _ = network.forecast_every_step(Inputs(torch.randn(1, 10), mask_BL), state)
    cut, _ = network.forecast_every_step(Inputs(torch.randn(1, 10), mask_BL), state.detach())
    assert torch.autograd.grad(carried.parameters_BSHP.sum(), first_BL, retain_graph=True)[0].abs().sum() > 0
    assert torch.autograd.grad(cut.parameters_BSHP.sum(), first_BL, allow_unused=True)[0] is None


@pytest.mark.parametrize("kind", ["rnn", "gru", "lstm"])
def test_a_network_trained_on_lanes_learns_the_season(kind: str) -> None:
    network = RecurrentSpec(kind=kind, input_size=28, hidden_size=16)
    assert quick_fit(network, truncation=20, lane_chunks=5, batch_size=32).validation_loss < 0.06


def test_a_warm_up_longer_than_a_chunk_trains_on_what_comes_after_it() -> None:
    network = RecurrentSpec(kind="lstm", input_size=28, hidden_size=16)
    result = quick_fit(network, truncation=10, lane_chunks=6, warm_up=25, max_epochs=1, steps_per_epoch=6)
    # Of six chunks in a lane two are warm-up, half of the third is scored: six steps are 5 + 10 + 10 + 10 and
    # 5 + 10 again, of 64 lanes each.
    assert result.forecasts_seen == 64 * (5 + 10 + 10 + 10 + 5 + 10)


def test_a_warm_up_that_leaves_nothing_to_score_is_refused() -> None:
    network = RecurrentSpec(kind="lstm", input_size=28, hidden_size=16)
    with pytest.raises(TrainingError, match=r"warm_up is 40, and a lane has 40 steps"):
        quick_fit(network, truncation=10, lane_chunks=4, warm_up=40)
    with pytest.raises(TrainingError, match=r"warm_up is 28, and a window has 28 steps"):
        quick_fit(network, warm_up=28)


def test_what_follows_the_training_block_changes_no_weight() -> None:
    spec = make_spec(RecurrentSpec(kind="gru", input_size=28, hidden_size=8))
    config = TrainingConfig(max_epochs=1, truncation=20, lane_chunks=4)
    train, validation = blocks(spec)
    before = fit(spec, config, train, validation).network.state_dict()
    train.data.x_NT[:, train.stop :] = 1e6
    # The validation block is among what was changed, so the weights are chosen with another, untouched one.
    _, untouched = blocks(spec)
    after = fit(spec, config, train, untouched).network.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
