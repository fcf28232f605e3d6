"""The gate: pure, errs as often as it says, and its reason can be read by whoever is on duty."""

import json

import numpy as np
import pytest

from pipelines.promotion import Account, Evidence, Live, decide, judge_trial, judge_watch, margin_of
from training.job import GateConfig

GATE = GateConfig()


def evidence(name: str, mean: float, seed: int = 0) -> Evidence:
    losses = np.abs(np.random.default_rng(seed).normal(mean, 0.05, size=(40, 1)))
    return Evidence(name, float(losses.mean()), losses)


def beside(champion: Evidence, better_by: float, spread: float = 0.05) -> Evidence:
    """A challenger whose losses differ from the champion's by exactly so much on average."""
    noise = np.random.default_rng(5).normal(0, spread, size=champion.losses_KN.shape)
    losses = champion.losses_KN - better_by + noise - noise.mean()
    return Evidence("lstm", float(losses.mean()), losses)


BASELINE = evidence("seasonal_naive", 1.0, 1)
CHAMPION = evidence("champion v3", 0.5, 2)


def test_the_first_model_with_skill_is_promoted() -> None:
    decision = decide(evidence("lstm", 0.5), None, BASELINE, GATE, lags=0)
    assert decision.promote
    assert decision.reason.startswith("crps on 40 cutoffs: lstm 0.")
    assert "(significant at 0.05" in decision.reason
    assert decision.reason.endswith("no champion to compare with")


def test_the_first_model_needs_no_proof_and_the_reason_says_that_there_is_none() -> None:
    decision = decide(beside(BASELINE, 0.001), None, BASELINE, GATE, lags=0)
    assert decision.promote
    assert "weak evidence, not significant at 0.05" in decision.reason


def test_a_model_without_skill_is_never_promoted() -> None:
    decision = decide(evidence("lstm", 1.2), None, BASELINE, GATE, lags=0)
    assert decision.action == "keep"
    assert decision.reason.endswith("no skill")


def test_beating_the_champion_is_not_enough_without_skill() -> None:
    assert decide(evidence("lstm", 1.2), evidence("champion v1", 1.5, 2), BASELINE, GATE, lags=0).action == "keep"


def test_matching_the_seasonal_naive_is_no_skill() -> None:
    same = Evidence("lstm", BASELINE.score, BASELINE.losses_KN)
    assert not decide(same, None, BASELINE, GATE, lags=0).promote


def test_a_challenger_shown_to_be_better_is_promoted_and_the_numbers_say_how_sure_that_is() -> None:
    decision = decide(evidence("lstm", 0.4), CHAMPION, BASELINE, GATE, lags=0, account=Account(looks=2))
    assert decision.action == "promote"
    assert "lstm 0.39" in decision.reason
    assert "at look 3)" in decision.reason
    assert decision.numbers["kind"] == "new"
    assert decision.numbers["look"] == 3
    assert decision.numbers["p_value"] < decision.numbers["level"]
    assert decision.numbers["scores"]["champion"] == CHAMPION.score
    assert decision.numbers["cutoffs"] == 40
    json.dumps(decision.numbers, allow_nan=False)


def test_a_challenger_that_may_be_better_goes_to_the_shadow() -> None:
    decision = decide(beside(CHAMPION, 0.01), CHAMPION, BASELINE, GATE, lags=0)
    assert decision.action == "shadow"
    assert decision.reason.endswith("better than the champion, but not enough evidence")
    assert decision.numbers["trial_level"] == decision.numbers["level"] == Account().level(GATE) / 2


def test_a_challenger_worse_than_the_champion_stays_out() -> None:
    decision = decide(evidence("lstm", 0.6), CHAMPION, BASELINE, GATE, lags=0)
    assert decision.action == "keep"
    assert decision.reason.endswith("worse than the champion")
    assert "champion v3" in decision.reason


def test_another_model_that_is_no_better_stays_out_and_a_refresh_that_is_no_worse_comes_in() -> None:
    same = Evidence("lstm", CHAMPION.score, CHAMPION.losses_KN)
    other = decide(same, CHAMPION, BASELINE, GATE, lags=0)
    assert other.action == "keep"
    assert other.reason.endswith("no better than the champion")
    refreshed = decide(same, CHAMPION, BASELINE, GATE, lags=0, refresh=True)
    assert refreshed.action == "promote"
    assert "= champion v3" in refreshed.reason
    assert "not worse by the margin of 2 %" in refreshed.reason


@pytest.mark.parametrize(
    ("worse_by", "spread", "action"), [(0.0, 0.005, "promote"), (0.0, 0.1, "shadow"), (0.03, 0.005, "keep")]
)
def test_a_refresh_has_to_be_shown_to_be_within_the_margin(worse_by: float, spread: float, action: str) -> None:
    noise = np.random.default_rng(6).normal(0, spread, size=(40, 1))
    losses = CHAMPION.losses_KN * (1 + worse_by + noise - noise.mean())
    refresh = Evidence("lstm", float(losses.mean()), losses)
    decision = decide(refresh, CHAMPION, BASELINE, GATE, lags=0, refresh=True)
    assert decision.action == action
    assert decision.numbers["kind"] == "refresh"


def test_a_refresh_pays_for_the_looks_before_it() -> None:
    noise = np.random.default_rng(6).normal(0, 0.05, size=(40, 1))
    losses = CHAMPION.losses_KN * (1 + noise - noise.mean())
    refresh = Evidence("lstm", float(losses.mean()), losses)
    first, later = (
        decide(refresh, CHAMPION, BASELINE, GATE, lags=0, refresh=True, account=Account(looks=looks))
        for looks in (0, GATE.looks - 1)
    )
    assert later.numbers["level"] < first.numbers["p_value"] == later.numbers["p_value"] < GATE.alpha
    assert later.action == "shadow"


def test_the_margin_of_a_root_is_that_of_its_square() -> None:
    assert margin_of(GateConfig(metric="crps", margin=0.02)) == 0.02
    assert margin_of(GateConfig(metric="rmse", margin=0.02)) == pytest.approx(0.0404)


def test_the_levels_of_all_looks_add_up_to_alpha() -> None:
    assert sum(Account(looks).level(GATE) for looks in range(52)) == pytest.approx(0.05)
    assert Account(0).level(GateConfig(looks=1)) == 0.05


def test_every_promotion_pays_for_later_looks() -> None:
    assert Account(looks=9, promotions=4).level(GATE) == pytest.approx(5 * Account(looks=9).level(GATE))
    assert Account(looks=9, promotions=9).level(GATE) == pytest.approx(Account().level(GATE))


def test_more_looks_ask_for_more_evidence() -> None:
    challenger = beside(CHAMPION, 0.025)
    assert decide(challenger, CHAMPION, BASELINE, GATE, lags=0).action == "promote"
    later = decide(challenger, CHAMPION, BASELINE, GATE, lags=0, account=Account(looks=51))
    assert later.action == "shadow"


@pytest.mark.parametrize("lags", [0, 3])
def test_of_equally_good_challengers_at_most_alpha_are_promoted_in_a_year_of_looks(lags: int) -> None:
    rng = np.random.default_rng(11)
    promoted = 0
    for _ in range(60):
        shocks = rng.normal(size=(72 + lags, 3)) + rng.normal(size=(72 + lags, 1))
        noise = sum((shocks[i : i + 72] for i in range(lags + 1)), start=np.zeros((72, 3)))
        for look in range(52):
            losses = 0.5 + 0.05 * noise[look : look + 20]
            champion = Evidence("champion v1", 0.5, np.full_like(losses, 0.5))
            decision = decide(
                Evidence("lstm", float(losses.mean()), losses),
                champion,
                Evidence("seasonal_naive", 2.0, np.full_like(losses, 2.0)),
                GATE,
                lags=lags,
                account=Account(look),
            )
            if decision.promote:
                promoted += 1
                break
    assert promoted <= 0.05 * 60


def test_a_champion_without_a_score_stops_nobody_and_is_named() -> None:
    champion = Evidence("champion v3", float("nan"), np.full((40, 1), np.nan))
    decision = decide(evidence("lstm", 0.5), champion, BASELINE, GATE, lags=0)
    assert decision.promote
    assert "champion v3 has no finite score" in decision.reason
    assert "look" not in decision.numbers
    assert not decide(evidence("lstm", 1.2), champion, BASELINE, GATE, lags=0).promote


def test_a_baseline_without_a_score_stops_nobody() -> None:
    naive = Evidence("seasonal_naive", float("nan"), np.full((40, 1), np.nan))
    decision = decide(evidence("lstm", 0.4), CHAMPION, naive, GATE, lags=0)
    assert decision.promote
    assert "seasonal_naive has no finite score" in decision.reason


@pytest.mark.parametrize("score", [float("nan"), float("inf")])
def test_a_score_that_is_no_number_is_refused(score: float) -> None:
    decision = decide(Evidence("lstm", score, np.array([[score]])), None, BASELINE, GATE, lags=0)
    assert decision.action == "keep"
    assert "no finite score" in decision.reason
    json.dumps(decision.numbers, allow_nan=False)


def test_whoever_stands_before_a_champion_takes_a_look_however_it_ends() -> None:
    """Else only the lucky ones would count, and the union bound would not hold."""
    for mean in (1.2, 0.6, 0.4):
        assert decide(evidence("lstm", mean), CHAMPION, BASELINE, GATE, lags=0).numbers["look"] == 1


def live(challenger: float, champion: float, count: int, spread: float = 0.05, seed: int = 0) -> Live:
    noise = np.exp(np.random.default_rng(seed).normal(0, spread, size=(2, count)))
    return Live("v4", "v3", challenger * noise[0], champion * noise[1], lags=0)


def test_a_trial_goes_on_until_the_evidence_suffices() -> None:
    assert judge_trial(live(0.8, 1.0, 5), level=0.005, most=60).action == "shadow"
    decision = judge_trial(live(0.8, 1.0, 40), level=0.005, most=60)
    assert decision.action == "promote"
    assert decision.reason.startswith("40 live cutoffs: v4 0.79")
    assert decision.reason.endswith("better live")
    assert decision.numbers["evidence"] >= decision.numbers["needed"] == 200


def test_a_trial_without_evidence_is_given_up() -> None:
    assert judge_trial(live(1.0, 1.0, 59), level=0.005, most=60).action == "shadow"
    decision = judge_trial(live(1.0, 1.0, 60), level=0.005, most=60)
    assert decision.action == "keep"
    assert decision.reason.endswith("the trial is over")


def test_cutoffs_that_overlap_give_a_trial_as_much_more_time() -> None:
    even = live(1.0, 1.0, 239)
    overlapping = Live(even.challenger, even.champion, even.challenger_K, even.champion_K, lags=3)
    assert judge_trial(overlapping, level=0.005, most=60).action == "shadow"
    assert judge_watch(overlapping, level=0.005, most=60).action == "shadow"
    assert judge_watch(overlapping, level=0.005, most=59).action == "keep"


def test_a_trial_of_a_worse_challenger_ends_early() -> None:
    decision = judge_trial(live(1.3, 1.0, 30), level=0.005, most=60)
    assert decision.action == "keep"
    assert decision.reason.endswith("worse live")


def test_a_refresh_on_trial_may_be_as_good() -> None:
    even = live(1.0, 1.0, 60, spread=0.01)
    assert judge_trial(even, level=0.005, most=99).action == "shadow"
    assert judge_trial(even, level=0.005, most=99, margin=0.02).action == "promote"


def test_who_is_mostly_a_little_better_and_terrible_at_times_is_not_promoted() -> None:
    lucky = live(0.9, 1.0, 50, spread=0.01)
    lucky.challenger_K[-4:] = 9.0
    decision = judge_trial(lucky, level=0.01, most=60)
    assert decision.numbers["evidence"] > 100
    assert decision.action == "shadow"


def test_who_is_mostly_a_little_worse_beside_one_terrible_at_times_is_not_given_up() -> None:
    unlucky = live(1.0, 0.9, 50, spread=0.01)
    unlucky.champion_K[-4:] = 9.0
    trial = judge_trial(unlucky, level=0.01, most=60)
    assert trial.numbers["evidence_of_worse"] > 100
    assert trial.action == "shadow"
    other_way = Live(unlucky.champion, unlucky.challenger, unlucky.champion_K, unlucky.challenger_K, lags=0)
    watch = judge_watch(other_way, level=0.01, most=60)
    assert watch.numbers["evidence"] > 100
    assert watch.action == "shadow"


def test_a_trial_without_a_score_goes_on() -> None:
    nothing = Live("v4", "v3", np.empty(0), np.empty(0), 0)
    assert judge_trial(nothing, level=0.005, most=60).action == "shadow"
    assert judge_watch(nothing, level=0.05, most=20).action == "shadow"


def test_a_new_champion_that_is_worse_live_is_rolled_back() -> None:
    decision = judge_watch(live(1.0, 1.5, 15), level=0.05, most=20)
    assert decision.action == "rollback"
    assert decision.reason.endswith("the new champion is worse live")


def test_a_new_champion_that_holds_its_own_is_kept() -> None:
    assert judge_watch(live(1.0, 0.9, 19), level=0.05, most=20).action == "shadow"
    assert judge_watch(live(1.0, 0.9, 20), level=0.05, most=20).action == "keep"


def test_equally_good_champions_are_rolled_back_no_more_often_than_alpha() -> None:
    gone = sum(
        any(judge_watch(_first(even, k), level=0.05, most=20).action == "rollback" for k in range(1, 21))
        for even in (live(1.0, 1.0, 20, seed=seed) for seed in range(100))
    )
    assert gone <= 5


def _first(of: Live, count: int) -> Live:
    return Live(of.challenger, of.champion, of.challenger_K[:count], of.champion_K[:count], of.lags)
