"""The Model Confidence Set: who is left out, who is not, and what the bootstrap cannot say."""

import numpy as np
import pytest
from arch.bootstrap import MCS

from training.confidence_set import RESAMPLES, FloatArray, model_confidence_set


def losses_of(seed: int, size: int = 300, **worse_by: float) -> dict[str, FloatArray]:
    """Return losses that share a market, each worse than the best by so much on average."""
    rng = np.random.default_rng(seed)
    market = rng.chisquare(3, size=size)
    return {name: market + worse + rng.normal(0, 0.3, size=size) for name, worse in worse_by.items()}


def test_the_worse_are_left_out_and_the_equal_are_not() -> None:
    found = model_confidence_set(losses_of(0, one=0.0, other=0.0, worse=0.2, worst=0.5))
    assert found.included == ("one", "other")
    assert max(found.p_values.values()) == 1.0
    assert found.p_values["worst"] <= found.p_values["worse"] < 0.01
    assert (found.block, found.n_cutoffs) == (7, 300)


def test_it_is_the_one_of_arch() -> None:
    losses = losses_of(1, one=0.0, other=0.02, third=0.05)
    theirs = MCS(np.column_stack(list(losses.values())), size=0.1, reps=RESAMPLES, block_size=7, seed=5)
    theirs.compute()
    found = model_confidence_set(losses, 0.1, seed=5)
    assert 0 < min(found.p_values.values()) < 0.5
    assert list(found.p_values.values()) == theirs.pvalues["Pvalue"].sort_index().tolist()
    assert len(found.included) == len(theirs.included)


def test_the_same_seed_gives_the_same_set() -> None:
    losses = losses_of(2, one=0.0, other=0.03)
    assert model_confidence_set(losses) == model_confidence_set(losses)
    assert model_confidence_set(losses).p_values != model_confidence_set(losses, seed=2).p_values


def test_the_best_is_in_as_often_as_promised() -> None:
    held = sum(
        "best" in model_confidence_set(losses_of(seed, 120, best=0.0, equal=0.0, worse=0.05), 0.1).included
        for seed in range(60)
    )
    assert held >= 49  # 0.9 of 60, less two standard errors


def test_a_missing_loss_is_left_out_for_all() -> None:
    losses = losses_of(3, 101, one=0.0, other=0.05)
    with_gap = {name: loss.copy() for name, loss in losses.items()}
    with_gap["one"][50] = np.nan
    without = {name: np.delete(loss, 50) for name, loss in losses.items()}
    assert model_confidence_set(with_gap) == model_confidence_set(without)
    assert model_confidence_set(with_gap).n_cutoffs == 100


def test_forecasts_that_overlap_are_drawn_in_longer_blocks() -> None:
    assert model_confidence_set(losses_of(4, one=0.0, other=0.0), lags=4).block == 10


def test_equal_losses_share_a_p_value() -> None:
    losses = losses_of(5, one=0.0, worse=0.2)
    found = model_confidence_set(losses | {"twin": losses["one"], "worse twin": losses["worse"]})
    assert found.p_values["twin"] == found.p_values["one"] == 1.0
    assert found.p_values["worse twin"] == found.p_values["worse"] < 0.01
    assert model_confidence_set({"a": losses["one"], "b": losses["one"]}).included == ("a", "b")


def test_a_steady_disadvantage_and_an_infinite_loss_are_out() -> None:
    losses = losses_of(6, one=0.0, other=0.0)
    once_infinite = losses["one"].copy()
    once_infinite[7] = np.inf
    found = model_confidence_set(losses | {"steady": losses["one"] + 1e-3, "infinite": once_infinite})
    assert found.included == ("one", "other")
    assert found.p_values["steady"] == found.p_values["infinite"] == 0.0
    assert model_confidence_set({"a": once_infinite, "b": once_infinite}).included == ("a", "b")


@pytest.mark.parametrize("size", [0, 1, 3])
def test_few_cutoffs_leave_nobody_out(size: int) -> None:
    found = model_confidence_set({"one": np.zeros(size), "other": np.arange(size) + 1.0})
    assert found.p_values == {"one": 1.0, "other": 1.0}
    assert found.included == ("one", "other")


def test_one_alone_is_the_best() -> None:
    assert model_confidence_set(losses_of(7, alone=0.0)).p_values == {"alone": 1.0}
