"""The Diebold-Mariano test with the Harvey-Leybourne-Newbold correction."""

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from training.significance import FloatArray, betting_evidence, compare_losses, diebold_mariano


def test_without_overlap_it_is_the_t_test_of_the_difference() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=40), rng.normal(0.3, 1, size=40)
    assert diebold_mariano(a, b, lags=0) == pytest.approx(ttest_1samp(a - b, 0).pvalue, rel=1e-9)


def test_equal_forecasters_are_called_different_about_as_often_as_promised() -> None:
    rng = np.random.default_rng(1)
    called = 0
    for _ in range(1000):
        shocks = rng.normal(size=63)
        overlapping = shocks[3:] + shocks[2:-1] + shocks[1:-2]
        called += diebold_mariano(overlapping, np.zeros(60), lags=2) < 0.05
    assert 0.03 < called / 1000 < 0.10


def test_a_forecaster_does_not_differ_from_itself() -> None:
    losses = np.arange(10.0)
    assert diebold_mariano(losses, losses, lags=3) == 1.0


def test_a_cutoff_without_a_loss_is_left_out() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=40), rng.normal(0.3, 1, size=40)
    with_gap = diebold_mariano(np.insert(a, 7, np.nan), np.insert(b, 7, 1.0), lags=0)
    assert with_gap == diebold_mariano(a, b, lags=0)


def test_a_constant_advantage_is_certain() -> None:
    assert diebold_mariano(np.arange(10.0), np.arange(10.0) + 1, lags=0) == 0.0


def test_more_lags_than_cutoffs_is_no_error() -> None:
    assert 0 <= diebold_mariano(np.array([1.0, 2.0, 4.0]), np.array([2.0, 2.0, 2.0]), lags=50) <= 1


def overlapping_losses(rng: np.random.Generator, shape: tuple[int, int], lags: int) -> FloatArray:
    """Differences that share targets as forecasts `lags` cutoffs apart do, half of it shared by all."""
    k, n = shape
    shocks = rng.normal(size=(k + lags, n)) + rng.normal(size=(k + lags, 1))
    return sum((shocks[i : i + k] for i in range(lags + 1)), start=np.zeros((k, n)))


@pytest.mark.parametrize(("lags", "level"), [(0, 0.05), (0, 0.01), (4, 0.05), (4, 0.01)])
def test_equal_forecasters_pass_no_more_often_than_the_level_says(lags: int, level: float) -> None:
    rng = np.random.default_rng(2)
    passed = 0
    for _ in range(1000):
        losses = overlapping_losses(rng, (20, 12), lags)
        passed += compare_losses(losses, np.zeros_like(losses), lags).p_value < level
    assert passed / 1000 < level + 3 * np.sqrt(level * (1 - level) / 1000)


def test_many_series_at_one_cutoff_are_one_piece_of_evidence() -> None:
    rng = np.random.default_rng(3)
    weather = rng.normal(0.2, 1, size=(20, 1))
    alone = compare_losses(weather, np.zeros((20, 1)), 0)
    copied = compare_losses(np.repeat(weather, 500, axis=1), np.zeros((20, 500)), 0)
    assert copied.p_value == pytest.approx(alone.p_value, rel=0.05)
    assert copied.n_series == 500


def test_an_advantage_on_few_of_many_series_is_less_certain_than_the_same_one_on_all() -> None:
    rng = np.random.default_rng(4)
    noise = rng.normal(0, 0.1, size=(40, 20))
    on_all = noise - 0.1
    on_one = noise - np.where(np.arange(20) == 0, 2.0, 0.0)
    zero = np.zeros((40, 20))
    assert compare_losses(on_all, zero, 0).p_value < 1e-6
    assert compare_losses(on_one, zero, 0).p_value > 0.1


def test_it_is_one_sided_and_counts_from_the_margin() -> None:
    rng = np.random.default_rng(5)
    better = rng.normal(-0.5, 0.5, size=(40, 1))
    zero = np.zeros((40, 1))
    assert compare_losses(better, zero, 0).p_value < 0.001
    assert compare_losses(zero, better, 0).p_value > 0.999
    slightly_worse = better - better.mean() + 0.1
    assert compare_losses(slightly_worse, zero, 0).p_value > 0.5
    assert compare_losses(slightly_worse, zero, 0, margin=0.5).p_value < 0.001


def test_without_overlap_and_with_one_series_it_is_half_of_diebold_mariano() -> None:
    rng = np.random.default_rng(6)
    # Luck that changes sides every time: nothing lasts, so no lag counts.
    a = np.abs(rng.normal(1, 0.1, size=40)) * np.where(np.arange(40) % 2, 1, -1) + 0.1
    two_sided = diebold_mariano(a, np.zeros(40), lags=0)
    assert compare_losses(-a[:, None], np.zeros((40, 1)), 0).p_value == pytest.approx(two_sided / 2, rel=1e-9)


def test_both_sides_together_are_twice_the_nearer_one() -> None:
    rng = np.random.default_rng(13)
    one, other = rng.normal(0.3, 1, size=(2, 40, 1)) * [[[1.0]], [[2.0]]]
    there, back = compare_losses(one, other, 0), compare_losses(other, one, 0)
    assert there.two_sided == pytest.approx(back.two_sided)
    assert there.two_sided == pytest.approx(2 * min(there.p_value, back.p_value))
    assert compare_losses(one, one, 0).two_sided == 1.0
    assert compare_losses(one + 1, one, 0).two_sided == 0.0
    assert compare_losses(one[:6], other[:6], lags=3).two_sided == 1.0


def test_luck_that_lasts_is_less_evidence_than_as_much_luck_that_does_not() -> None:
    rng = np.random.default_rng(12)
    fleeting = rng.normal(size=(40, 1))
    lasting = np.sort(fleeting, axis=0)
    zero = np.zeros((40, 1))
    lasting_p, fleeting_p = (compare_losses(d - 0.5, zero, 0).p_value for d in (lasting, fleeting))
    assert lasting_p > 2 * fleeting_p


def test_too_few_forecasts_that_do_not_overlap_prove_nothing() -> None:
    losses = np.linspace(1, 2, 6)[:, None]
    assert compare_losses(losses - 1, losses, lags=3).p_value == 1.0
    assert compare_losses(losses[:0], losses[:0], lags=0).p_value == 1.0


def test_a_missing_loss_is_left_out_and_an_unequal_panel_weighs_cutoffs_alike() -> None:
    losses = np.array([[1.0, np.nan], [1.0, 3.0], [2.0, np.nan], [np.nan, np.nan]])
    found = compare_losses(losses, np.zeros_like(losses), 0)
    assert found.difference == pytest.approx((1 + 2 + 2) / 3)
    assert (found.n_cutoffs, found.n_series) == (3, 2)


def test_the_same_forecasts_are_never_better_and_always_within_a_margin() -> None:
    losses = np.random.default_rng(7).uniform(1, 2, size=(6, 2))
    assert compare_losses(losses, losses, 0).p_value == 1.0
    assert compare_losses(losses, losses, 0, margin=0.01).p_value == 0.0


@pytest.mark.parametrize("lags", [0, 3])
@pytest.mark.parametrize("tails", ["normal", "heavy"])
def test_evidence_that_is_looked_at_all_the_time_misleads_no_more_often_than_promised(
    lags: int, tails: str
) -> None:
    rng = np.random.default_rng(8)
    misled = 0
    for _ in range(400):
        shocks = rng.normal(size=(2, 60 + lags)) if tails == "normal" else rng.standard_t(3, size=(2, 60 + lags))
        own_2K = sum((shocks[:, i : i + 60] for i in range(lags + 1)), start=np.zeros((2, 60)))
        one_K, other_K = np.exp(0.1 * own_2K)
        misled += betting_evidence(one_K, other_K, lags).max() >= 10
    assert misled / 400 < 0.1


def test_evidence_grows_for_the_better_and_not_for_the_worse() -> None:
    rng = np.random.default_rng(9)
    good, bad = rng.uniform(0.7, 0.9, size=40), rng.uniform(0.9, 1.1, size=40)
    assert betting_evidence(good, bad, 0)[-1] > 1000
    assert betting_evidence(bad, good, 0)[-1] < 1.5
    assert betting_evidence(good, bad, 4)[-1] > 1
    evidence = betting_evidence(good, bad, 0)
    assert (np.diff(evidence) >= 0).all(), "what was once proven stays proven"


def test_a_margin_makes_no_worse_provable() -> None:
    rng = np.random.default_rng(10)
    one, other = np.exp(rng.normal(0, 0.03, size=(2, 60)))
    assert betting_evidence(one, other, 0)[-1] < 20
    assert betting_evidence(one, other, 0, margin=0.05)[-1] > 20


def test_an_infinite_loss_counts_and_a_missing_one_does_not() -> None:
    other = np.ones(12)
    assert betting_evidence(np.full(12, np.inf), other, 0)[-1] == 1.0
    assert betting_evidence(other, np.full(12, np.inf), 0)[-1] > 20
    assert betting_evidence(np.full(12, np.nan), other, 0).tolist() == [1.0] * 12
