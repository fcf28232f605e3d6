"""Scaling: exact under shift and rescaling, blind to the future, and the same step by step."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from forecasting.scaling import Scaling, fill_forward, scale_running, scale_window

SCALINGS: list[Scaling] = ["mean", "last", "difference"]


def windows(seed: int, length: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x_BL = torch.randn(3, length, generator=generator, dtype=torch.float64).cumsum(dim=1)
    mask_BL = torch.rand(3, length, generator=generator) > 0.2
    mask_BL[:, -1] = True
    return x_BL, mask_BL


@pytest.mark.parametrize("scaling", ["mean", "last"])
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_anchor_and_scale_give_the_levels_back(scaling: Scaling, seed: int) -> None:
    x_BL, mask_BL = windows(seed)
    scaled = scale_window(x_BL, mask_BL, scaling)
    restored_BL = scaled.anchor_B1 + scaled.scale_B1 * scaled.values_BL
    torch.testing.assert_close(restored_BL[mask_BL], x_BL[mask_BL])


@pytest.mark.parametrize("scaling", SCALINGS)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), factor=st.floats(0.01, 100), shift=st.floats(-1000, 1000))
def test_inputs_do_not_change_with_the_unit(scaling: Scaling, seed: int, factor: float, shift: float) -> None:
    x_BL, mask_BL = windows(seed)
    other_BL = factor * x_BL + shift
    was, now = (scale_window(x, mask_BL, scaling) for x in (x_BL, other_BL))
    moving_BL = (was.scale_B1 > 1e-9).expand_as(mask_BL) & mask_BL
    torch.testing.assert_close(now.values_BL[moving_BL], was.values_BL[moving_BL], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(now.scale_B1, factor * was.scale_B1, rtol=1e-6, atol=1e-9)
    before, after = (scale_running(x, mask_BL, scaling, 10)[0] for x in (x_BL, other_BL))
    moving_BL = (before.scale_BL > 1e-9) & mask_BL
    for name in ("levels_BL", "differences_BL"):
        one, other = getattr(before, name)[moving_BL], getattr(after, name)[moving_BL]
        torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(after.scale_BL[:, -1], factor * before.scale_BL[:, -1], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("scaling", SCALINGS)
def test_a_window_known_to_be_whole_is_scaled_as_one_that_was_looked_at(scaling: Scaling) -> None:
    x_BL, _ = windows(3)
    mask_BL = torch.ones_like(x_BL, dtype=torch.bool)
    for one, other in zip(
        scale_window(x_BL, mask_BL, scaling, whole=True), scale_window(x_BL, mask_BL, scaling), strict=True
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("scaling", SCALINGS)
def test_running_scaling_sees_nothing_later_than_its_step(scaling: Scaling) -> None:
    x_BL, mask_BL = windows(1, 300)
    changed_BL = x_BL.clone()
    changed_BL[:, 150:] += 1000
    before, after = (scale_running(x, mask_BL, scaling, 20)[0] for x in (x_BL, changed_BL))
    for was, now in zip(before, after, strict=True):
        assert torch.equal(was[:, :150], now[:, :150])


@pytest.mark.parametrize("scaling", SCALINGS)
def test_running_scaling_in_one_pass_equals_step_by_step(scaling: Scaling) -> None:
    x_BL, mask_BL = windows(2, 300)
    whole, _ = scale_running(x_BL, mask_BL, scaling, 20)
    state = None
    for t in range(x_BL.shape[1]):
        step, state = scale_running(x_BL[:, t : t + 1], mask_BL[:, t : t + 1], scaling, 20, state)
        for all_steps, one in zip(whole, step, strict=True):
            torch.testing.assert_close(one[:, 0], all_steps[:, t], rtol=1e-9, atol=1e-9)


def test_running_mean_is_the_hand_computed_one() -> None:
    x_BL = torch.tensor([[1.0, 3.0, 2.0]], dtype=torch.float64)
    scaled, _ = scale_running(x_BL, torch.ones_like(x_BL, dtype=torch.bool), "mean", span=3)
    # span 3 halves the weight each step: (3 + 1/2) / (1 + 1/2), (2 + 3/2 + 1/4) / (1 + 1/2 + 1/4)
    expected = torch.tensor([[1.0, 3.5 / 1.5, 3.75 / 1.75]], dtype=torch.float64)
    torch.testing.assert_close(scaled.anchor_BL, expected)


def test_missing_values_are_filled_from_the_past_only() -> None:
    x_BL = torch.tensor([[9.0, 1.0, 9.0, 9.0, 2.0, 9.0]])
    mask_BL = torch.tensor([[False, True, False, False, True, False]])
    assert fill_forward(x_BL, mask_BL).tolist() == [[1.0, 1.0, 1.0, 1.0, 2.0, 2.0]]


@pytest.mark.parametrize("scaling", ["mean", "last", "difference"])
@pytest.mark.parametrize("length", [1, 2, 96, 300])
def test_running_scaling_of_whole_windows_is_that_of_any(scaling: Scaling, length: int) -> None:
    x_BL = torch.randn(5, length, generator=torch.Generator().manual_seed(3)).cumsum(dim=1)
    mask_BL = torch.ones_like(x_BL, dtype=torch.bool)
    found = scale_running(x_BL, mask_BL, scaling, 20, whole=True)
    expected = scale_running(x_BL, mask_BL, scaling, 20)
    for kind in (0, 1):
        for one, other in zip(found[kind], expected[kind], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_weights_made_in_inference_mode_serve_training_too() -> None:
    x_BL = torch.randn(2, 37)
    mask_BL = torch.ones_like(x_BL, dtype=torch.bool)
    with torch.inference_mode():
        scale_running(x_BL, mask_BL, "mean", 41)
        scale_running(x_BL, mask_BL, "mean", 41, whole=True)
    learned_BL = x_BL.clone().requires_grad_()
    for whole in (False, True):
        scaled, _ = scale_running(learned_BL, mask_BL, "mean", 41, whole=whole)
        scaled.levels_BL.sum().backward()
    assert learned_BL.grad is not None
