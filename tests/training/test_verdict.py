"""The verdict: what it says, what it must not say, and that it does so no more often than promised."""

import numpy as np
import pytest

from training.verdict import ENOUGH, FloatArray, holm, verdict


def losses_of(seed: int, size: int = 800, **worse_by: float) -> dict[str, FloatArray]:
    rng = np.random.default_rng(seed)
    market = rng.chisquare(3, size=size) / 6
    return {name: market + worse + rng.normal(0, 0.03, size=size) for name, worse in worse_by.items()}


def returns_of(seed: int, skill: float, size: int = 800, drift: float = 0.0) -> tuple[FloatArray, FloatArray]:
    rng = np.random.default_rng(seed)
    signal = rng.normal(size=size)
    return drift + skill * signal + rng.normal(size=size), drift + skill * signal + rng.normal(0, 0.02, size=size)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_skill_in_the_distribution_alone() -> None:
    crps = losses_of(0, net=0.0, gjr_garch_skewt=0.01, random_walk=0.1)
    qlike = losses_of(1, net=0.0, gjr_garch_skewt=0.0, random_walk=0.0)
    r, mean = returns_of(2, 0.0)
    found = verdict("net", crps, qlike=qlike, returns_KN=r, mean_KN=mean)
    assert found.skill == ("distribution",)
    assert round(crps["net"].mean(), 4) == 0.5022
    assert round(qlike["random_walk"].mean(), 4) == 0.4843
    assert round(float((np.sign(r) == np.sign(mean)).mean()), 3) == 0.52
    assert found.sentence == (
        "No skill in the variance (QLIKE 0.4858 against 0.4843 of random_walk, p=1.00), direction (52.0 %, 95 % "
        "interval 48.5 to 55.5; always the same sign 51.0 %, p=1.00) or mean (R2 0.0004 against zero, p=1.00); "
        "skill in the distribution (CRPS 0.5022 against 0.5135 of gjr_garch_skewt, the best of 2 rivals, p<0.001) "
        "(800 cutoffs; p by Holm over 6 comparisons)."
    )


def test_no_skill_at_all_is_said_so() -> None:
    found = verdict("net", losses_of(3, net=0.0, garch=0.0))
    assert found.skill == ()
    assert found.sentence.startswith("No skill in the distribution (CRPS ")
    assert "garch, p=" in found.sentence


def test_skill_in_everything() -> None:
    r, mean = returns_of(4, 0.5)
    losses = losses_of(5, net=0.0, garch=0.02)
    found = verdict("net", losses, qlike=losses, returns_KN=r, mean_KN=mean)
    assert found.skill == ("distribution", "variance", "direction", "mean")
    assert found.sentence.startswith("Skill in the distribution (")
    assert "o skill" not in found.sentence


def test_to_beat_some_rivals_is_not_called_skill() -> None:
    found = verdict("net", losses_of(6, net=0.0, random_walk=0.1, ewma=0.05, gjr=0.0))
    assert found.skill == ()
    assert found.sentence.startswith(
        "No skill over all rivals in the distribution (better than random_walk and ewma, p<0.001, but CRPS "
    )
    assert "of gjr, which it cannot be told from, p=" in found.sentence


def test_a_better_rival_is_named() -> None:
    found = verdict("net", losses_of(7, net=0.02, garch=0.0))
    assert "of garch, which is better, p<0.001)" in found.sentence
    assert found.findings[0].worse
    some = verdict("net", losses_of(7, net=0.02, garch=0.0, random_walk=0.1))
    assert "better than random_walk" in some.sentence
    assert "of garch, which is better, p<0.001)" in some.sentence


def test_few_cutoffs_tell_nothing_however_small_the_p() -> None:
    losses = losses_of(8, ENOUGH - 1, net=0.0, garch=5.0)
    found = verdict("net", losses)
    assert found.sentence == "Nothing can be told from 49 cutoffs: it takes 50 that do not overlap."
    assert found.skill == ()
    assert not any(finding.better or finding.worse for finding in found.findings)
    overlapping = verdict("net", losses_of(8, 200, net=0.0, garch=5.0), lags=4)
    assert overlapping.sentence.startswith("Nothing can be told from 200 cutoffs, of which 40 do not overlap")
    assert verdict("net", losses_of(8, ENOUGH, net=0.0, garch=5.0)).skill == ("distribution",)


def test_many_comparisons_are_harder_to_pass_than_one() -> None:
    crps = losses_of(9, net=0.0, garch=0.0065)
    alone = verdict("net", crps)
    r, mean = returns_of(10, 0.0)
    among = verdict("net", crps, qlike=losses_of(11, net=0.0, garch=0.0), returns_KN=r, mean_KN=mean)
    assert alone.skill == ("distribution",)
    assert among.skill == ()
    assert among.findings[0].p_holm == pytest.approx(4 * alone.findings[0].p_value)


def test_always_up_and_a_forecast_that_says_nothing_have_no_skill() -> None:
    r, _ = returns_of(12, 0.0, drift=0.3)
    up = verdict("net", losses_of(13, net=0.0), returns_KN=r, mean_KN=np.full(800, 1e-6))
    assert up.direction is not None
    assert up.direction.p_half < 1e-6
    assert up.sentence.startswith("No skill in direction (")
    silent = verdict("net", losses_of(13, net=0.0), returns_KN=r, mean_KN=np.zeros(800))
    assert "direction (none was forecast)" in silent.sentence
    assert silent.skill == ()


def test_one_lucky_day_or_a_share_below_the_habit_is_no_skill_in_direction() -> None:
    r, _ = returns_of(12, 0.0, drift=0.3)
    once_down = np.where(np.arange(800) == np.argmin(r), -1.0, 1.0)
    rng = np.random.default_rng(19)
    often_wrong = np.where(rng.uniform(size=800) < 0.1, -np.sign(r), 1.0)
    for forecast in (once_down, often_wrong):
        found = verdict("net", losses_of(13, net=0.0), returns_KN=r, mean_KN=forecast)
        assert found.direction is not None
        assert found.direction.p_half < 0.01
        assert found.direction.share > 0.5
        assert "direction" not in found.skill
    assert verdict("net", {"net": np.zeros(800)}, returns_KN=r, mean_KN=r + rng.normal(size=800)).skill == (
        "direction",
        "mean",
    )


def test_predictable_returns_forecast_worse_than_by_zero_are_no_skill_in_the_mean() -> None:
    r, mean = returns_of(14, 0.3)
    found = verdict("net", losses_of(15, net=0.0), returns_KN=r, mean_KN=4 * mean)
    assert found.mean is not None
    assert found.mean.r2 < 0
    assert found.mean.p_value < 0.001
    assert "mean" not in found.skill


def test_an_infinite_loss_is_never_skill() -> None:
    losses = losses_of(16, net=0.0, garch=0.1)
    losses["net"][5] = np.inf
    found = verdict("net", losses)
    assert found.skill == ()
    assert "CRPS inf against" in found.sentence
    # What is left without that cutoff is no test of either.
    assert found.findings[0].p_value == 1.0
    assert not found.findings[0].worse


def test_a_rival_without_losses_is_not_compared_and_one_with_some_is_where_it_has_them() -> None:
    losses = losses_of(17, net=0.0, garch=0.02)
    gone = verdict("net", losses | {"har": np.full(800, np.nan)})
    assert gone.findings == verdict("net", losses).findings
    losses["garch"][:400] = np.nan
    found = verdict("net", losses).findings[0]
    assert found.score == pytest.approx(losses["net"][400:].mean())


def test_shares_count_by_their_cutoffs() -> None:
    losses = losses_of(18, 60, net=0.0, garch=0.004)
    alone = verdict("net", losses)
    copied = verdict("net", {name: np.repeat(loss[:, None], 40, axis=1) for name, loss in losses.items()})
    assert copied.n_cutoffs == 60
    assert copied.findings[0].p_value == pytest.approx(alone.findings[0].p_value, rel=0.1)


def test_where_there_is_no_skill_one_is_claimed_no_more_often_than_promised() -> None:
    claimed = 0
    for seed in range(200):
        r, mean = returns_of(1000 + seed, 0.0, 120)
        crps = losses_of(2000 + seed, 120, net=0.0, garch=0.0, ewma=0.0)
        qlike = losses_of(3000 + seed, 120, net=0.0, garch=0.0, ewma=0.0)
        found = verdict("net", crps, qlike=qlike, returns_KN=r, mean_KN=mean)
        claimed += any(finding.better or finding.worse for finding in found.findings)
    assert claimed / 200 < 0.08
