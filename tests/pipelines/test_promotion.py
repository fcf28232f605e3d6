"""The gate: pure, and its reason can be read by whoever is on duty."""

import numpy as np
import pytest

from pipelines.promotion import Evidence, decide
from training.job import GateConfig

GATE = GateConfig()


def evidence(name: str, mean: float, seed: int = 0) -> Evidence:
    losses = np.abs(np.random.default_rng(seed).normal(mean, 0.05, size=40))
    return Evidence(name, float(losses.mean()), tuple(losses))


BASELINE = evidence("seasonal_naive", 1.0, 1)


def test_the_first_model_with_skill_is_promoted() -> None:
    decision = decide(evidence("lstm", 0.5), None, BASELINE, GATE, lags=0)
    assert decision.promote
    assert decision.reason.startswith("crps on 40 cutoffs: lstm 0.")
    assert "(significant at 0.05" in decision.reason
    assert decision.reason.endswith("no champion to compare with")


def test_a_model_without_skill_is_never_promoted() -> None:
    decision = decide(evidence("lstm", 1.2), None, BASELINE, GATE, lags=0)
    assert not decision.promote
    assert decision.reason.endswith("no skill")


def test_beating_the_champion_is_not_enough_without_skill() -> None:
    assert not decide(evidence("lstm", 1.2), evidence("champion v1", 1.5, 2), BASELINE, GATE, lags=0).promote


def test_matching_the_seasonal_naive_is_no_skill() -> None:
    assert not decide(Evidence("lstm", BASELINE.score, BASELINE.losses_K), None, BASELINE, GATE, lags=0).promote


def test_a_challenger_worse_than_the_champion_stays_out() -> None:
    decision = decide(evidence("lstm", 0.6), evidence("champion v3", 0.5, 2), BASELINE, GATE, lags=0)
    assert not decision.promote
    assert decision.reason.endswith("worse than the champion")
    assert "champion v3" in decision.reason


def test_a_challenger_equal_to_the_champion_is_not_worse() -> None:
    champion = evidence("champion v3", 0.5)
    decision = decide(Evidence("lstm", champion.score, champion.losses_K), champion, BASELINE, GATE, lags=0)
    assert decision.promote
    assert "=" in decision.reason


def test_an_advantage_of_chance_is_called_that() -> None:
    decision = decide(evidence("lstm", 0.999, 3), None, evidence("seasonal_naive", 1.0, 4), GATE, lags=0)
    assert "not significant" in decision.reason


def test_a_champion_without_a_score_stops_nobody_and_is_named() -> None:
    champion = Evidence("champion v3", float("nan"), (float("nan"),) * 40)
    decision = decide(evidence("lstm", 0.5), champion, BASELINE, GATE, lags=0)
    assert decision.promote
    assert "champion v3 has no finite score" in decision.reason
    assert not decide(evidence("lstm", 1.2), champion, BASELINE, GATE, lags=0).promote


@pytest.mark.parametrize("score", [float("nan"), float("inf")])
def test_a_score_that_is_no_number_is_refused(score: float) -> None:
    decision = decide(Evidence("lstm", score, (score,)), None, BASELINE, GATE, lags=0)
    assert not decision.promote
    assert "no finite score" in decision.reason
