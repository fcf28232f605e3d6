"""Trials in the shadow, on a real registry and a real ledger; the scores are given."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from forecasting.artifact import save_artifact
from forecasting.errors import LedgerUnavailableError
from forecasting.registry import (
    SHADOW,
    TAG_DECISION,
    TAG_NUMBERS,
    TAG_REASON,
    DirectoryRegistry,
    ModelVersion,
    promote,
    resolve_or_none,
    watch_previous,
)
from ledger.decisions import RecordedDecision
from ledger.ledger import Ledger, open_ledger
from pipelines.promotion import Decision
from pipelines.score import score_matured
from pipelines.trial import Court, judge_shadow, overlapping
from tests.conftest import make_forecaster
from tests.ledger.issued import issued, rows_of
from tests.pipelines.conftest import TINY
from training.job import GateMetric, parse_job

JOB = parse_job(TINY)
START = pd.Timestamp("2024-03-01")


@dataclass
class GivenScores:
    """Losses by version at cutoffs four hours apart, two series each."""

    losses: dict[str, np.ndarray] = field(default_factory=dict)

    def paired_losses(
        self, model: str, one_version: str, other_version: str, metric: GateMetric = "crps"
    ) -> pd.DataFrame:
        assert (model, metric) == ("tiny", "crps")
        one, other = self.losses.get(one_version, np.empty(0)), self.losses.get(other_version, np.empty(0))
        count = min(len(one), len(other))
        cutoffs = pd.date_range(START, periods=count, freq="4h")
        parts = [
            pd.DataFrame({"unique_id": name, "cutoff": cutoffs, "one": one[:count], "other": other[:count]})
            for name in ("a", "b")
        ]
        return pd.concat(parts, ignore_index=True)


def losses(mean: float, count: int, seed: int) -> np.ndarray:
    return mean * np.exp(np.random.default_rng(seed).normal(0, 0.05, size=count))


@pytest.fixture
def registry(tmp_path: Path) -> DirectoryRegistry:
    """Three versions, of which the first is the champion."""
    registry = DirectoryRegistry(tmp_path / "registry")
    for seed in range(3):
        save_artifact(make_forecaster(seed=seed), tmp_path / f"artifact-{seed}")
        registry.publish("tiny", tmp_path / f"artifact-{seed}", {})
    promote(registry, "tiny", "1")
    return registry


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    opened = open_ledger(f"sqlite:///{tmp_path}/ledger.db")
    yield opened
    opened.close()


@pytest.fixture
def court(registry: DirectoryRegistry, ledger: Ledger) -> Court:
    return Court(registry, ledger.decisions, GivenScores({}))


def send_to_the_shadow(court: Court, version: str = "2", margin: float = 0.0) -> None:
    court.decisions.record(
        RecordedDecision(
            f"run-{version}:gate", "tiny", version, "1", "shadow", "gate", "new", "perhaps",
            {"trial_level": 0.005, "margin": margin, "look": 1},
        )
    )  # fmt: skip
    court.registry.set_alias("tiny", SHADOW, version)


def give(court: Court, **by_version: np.ndarray) -> None:
    assert isinstance(court.scores, GivenScores)
    court.scores.losses = {name.removeprefix("v"): values for name, values in by_version.items()}


def test_nobody_in_the_shadow_is_nothing_to_judge(court: Court) -> None:
    assert judge_shadow(court, JOB) is None


def test_a_trial_goes_on_and_is_not_recorded_while_there_is_no_evidence(court: Court) -> None:
    send_to_the_shadow(court)
    for count in (0, 10):
        give(court, v1=losses(1.0, count, 1), v2=losses(1.0, count, 2))
        decision = judge_shadow(court, JOB)
        assert decision is not None
        assert decision.action == "shadow"
    assert court.registry.resolve("tiny").version == "1"
    assert court.registry.resolve("tiny", SHADOW).version == "2"
    assert len(court.decisions.of_model("tiny")) == 1


def test_a_challenger_that_proves_itself_live_is_promoted_and_the_one_before_stays_to_be_compared(
    court: Court,
) -> None:
    noted: list[tuple[ModelVersion, Decision]] = []
    court = Court(court.registry, court.decisions, court.scores, lambda *told: noted.append(told))
    send_to_the_shadow(court)
    give(court, v1=losses(1.0, 40, 1), v2=losses(0.8, 40, 2))
    decision = judge_shadow(court, JOB)
    assert decision is not None
    assert decision.action == "promote"
    champion = court.registry.resolve("tiny")
    assert champion.version == "2"
    assert champion.tags[TAG_DECISION] == "promoted"
    assert champion.tags[TAG_REASON].endswith("better live")
    assert '"evidence"' in champion.tags[TAG_NUMBERS]
    assert court.registry.resolve("tiny", SHADOW).version == "1"
    recorded = court.decisions.of_model("tiny", limit=1)[0]
    assert (recorded.action, recorded.by, recorded.version, recorded.against) == ("promote", "trial", "2", "1")
    assert recorded.numbers["last_cutoff"] == (START + 39 * pd.Timedelta("4h")).isoformat()
    assert court.decisions.promoted("tiny") == {"2"}
    assert [version.version for version, _ in noted] == ["2"]


def test_a_challenger_without_evidence_leaves_the_shadow_in_the_end(court: Court) -> None:
    send_to_the_shadow(court)
    give(court, v1=losses(1.0, 60, 1), v2=losses(1.0, 60, 2))
    decision = judge_shadow(court, JOB)
    assert decision is not None
    assert decision.action == "keep"
    assert resolve_or_none(court.registry, "tiny", SHADOW) is None
    assert court.registry.version("tiny", "2").tags[TAG_DECISION] == "not promoted"


def test_what_made_it_champion_does_not_count_in_its_watch(court: Court) -> None:
    send_to_the_shadow(court)
    before = losses(1.0, 40, 1), losses(0.8, 40, 2)
    give(court, v1=before[0], v2=before[1])
    judge_shadow(court, JOB)
    give(court, v1=before[0], v2=before[1])
    decision = judge_shadow(court, JOB)
    assert decision is not None
    assert decision.reason.startswith("0 live cutoffs")
    after = np.concatenate([before[0], losses(1.0, 15, 3)]), np.concatenate([before[1], losses(1.6, 15, 4)])
    give(court, v1=after[0], v2=after[1])
    decision = judge_shadow(court, JOB)
    assert decision is not None
    assert decision.action == "rollback", decision.reason
    assert decision.numbers["cutoffs"] == 15


def test_a_new_champion_that_is_worse_live_makes_way_for_the_one_before(court: Court) -> None:
    promote(court.registry, "tiny", "2")
    watch_previous(court.registry, "tiny")
    give(court, v1=losses(1.0, 15, 1), v2=losses(1.5, 15, 2))
    decision = judge_shadow(court, JOB)
    assert decision is not None
    assert decision.action == "rollback"
    assert court.registry.resolve("tiny").version == "1"
    assert resolve_or_none(court.registry, "tiny", SHADOW) is None
    gone = court.registry.version("tiny", "2")
    assert gone.tags[TAG_DECISION] == "rolled back"
    assert gone.tags[TAG_REASON].endswith("the new champion is worse live")
    assert "rolled back from version 2" in court.registry.resolve("tiny").tags[TAG_REASON]
    recorded = court.decisions.of_model("tiny", limit=1)[0]
    assert (recorded.action, recorded.kind, recorded.version, recorded.against) == ("rollback", "watch", "2", "1")


def test_a_new_champion_that_holds_its_own_is_alone_after_the_watch(court: Court) -> None:
    promote(court.registry, "tiny", "2", {TAG_REASON: "much better"})
    watch_previous(court.registry, "tiny")
    give(court, v1=losses(1.0, 30, 1), v2=losses(1.0, 30, 2))
    decision = judge_shadow(court, JOB)
    assert decision is not None
    assert decision.action == "keep"
    assert court.registry.resolve("tiny").version == "2"
    assert court.registry.resolve("tiny").tags[TAG_REASON] == "much better"
    assert resolve_or_none(court.registry, "tiny", SHADOW) is None


def test_a_trial_against_a_champion_that_is_gone_ends(court: Court) -> None:
    send_to_the_shadow(court, "2")
    promote(court.registry, "tiny", "3")
    decision = judge_shadow(court, JOB)
    assert decision is not None
    assert decision.action == "keep"
    assert "version 1, is the champion no more" in decision.reason
    assert resolve_or_none(court.registry, "tiny", SHADOW) is None


def test_a_version_somebody_put_into_the_shadow_is_left_there(court: Court) -> None:
    court.registry.set_alias("tiny", SHADOW, "3")
    give(court, v1=losses(1.0, 40, 1), v3=losses(0.5, 40, 2))
    assert judge_shadow(court, JOB) is None
    assert court.registry.resolve("tiny").version == "1"
    assert court.registry.resolve("tiny", SHADOW).version == "3"


class Dying(DirectoryRegistry):
    """A registry that dies at the n-th change, before it or after it."""

    def __init__(self, root: Path, change: int, *, after: bool) -> None:
        super().__init__(root)
        self._left, self._after = change, after

    def _count(self, after: bool) -> None:
        if after == self._after:
            self._left -= 1
            if self._left == 0:
                raise KeyboardInterrupt

    def set_alias(self, model: str, alias: str, version: str) -> None:
        self._count(after=False)
        super().set_alias(model, alias, version)
        self._count(after=True)

    def remove_alias(self, model: str, alias: str) -> None:
        self._count(after=False)
        super().remove_alias(model, alias)
        self._count(after=True)

    def annotate(self, model: str, version: str, tags: Mapping[str, str]) -> None:
        self._count(after=False)
        super().annotate(model, version, tags)
        self._count(after=True)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("change", range(1, 6))
@pytest.mark.parametrize("case", ["promote", "rollback"])
def test_a_judgement_killed_at_any_change_is_carried_through_by_the_next(
    court: Court, registry: DirectoryRegistry, case: str, change: int, after: bool
) -> None:
    if case == "promote":
        send_to_the_shadow(court)
        give(court, v1=losses(1.0, 40, 1), v2=losses(0.8, 40, 2))
        champion, shadow = "2", "1"
    else:
        promote(registry, "tiny", "2")
        watch_previous(registry, "tiny")
        give(court, v1=losses(1.0, 15, 1), v2=losses(1.5, 15, 2))
        champion, shadow = "1", None
    dying = Court(Dying(registry.root, change, after=after), court.decisions, court.scores)
    try:
        judge_shadow(dying, JOB)
    except KeyboardInterrupt:
        judge_shadow(court, JOB)
    assert registry.resolve("tiny").version == champion
    found = resolve_or_none(registry, "tiny", SHADOW)
    assert (found and found.version) == shadow
    assert [d.action for d in court.decisions.of_model("tiny")].count(case) == 1


def test_what_was_recorded_is_carried_out_whatever_the_scores_say_by_then(
    court: Court, registry: DirectoryRegistry
) -> None:
    send_to_the_shadow(court)
    give(court, v1=losses(1.0, 40, 1), v2=losses(0.8, 40, 2))
    with pytest.raises(KeyboardInterrupt):
        judge_shadow(Court(Dying(registry.root, 2, after=False), court.decisions, court.scores), JOB)
    give(court, v1=losses(1.0, 40, 1), v2=losses(3.0, 40, 2))
    decision = judge_shadow(court, JOB)
    assert decision is not None
    assert decision.action == "promote"
    assert registry.resolve("tiny").version == "2"


def test_without_the_ledger_no_alias_moves(court: Court, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    send_to_the_shadow(court)
    give(court, v1=losses(1.0, 40, 1), v2=losses(0.8, 40, 2))

    def fail(decision: RecordedDecision) -> RecordedDecision:
        raise LedgerUnavailableError("the ledger's database does not answer")

    with monkeypatch.context() as broken:
        broken.setattr(ledger.decisions, "record", fail)
        with pytest.raises(LedgerUnavailableError):
            judge_shadow(court, JOB)
    assert court.registry.resolve("tiny").version == "1"
    judge_shadow(court, JOB)
    assert court.registry.resolve("tiny").version == "2"


@pytest.mark.parametrize(
    ("freq", "step", "most"), [("h", "4h", 0), ("h", "1h", 3), ("h", "2h", 1), ("h", "9h", 0)]
)
def test_cutoffs_within_a_horizon_are_counted(freq: str, step: str, most: int) -> None:
    assert JOB.freq == freq
    assert JOB.horizon == 4
    assert overlapping(pd.date_range(START, periods=12, freq=step), JOB) == most


def test_sessions_are_counted_on_their_calendar() -> None:
    text = TINY.replace("freq: h\nhorizon", "freq: XNYS\nhorizon")
    sessions = pd.DatetimeIndex(["2024-07-01", "2024-07-02", "2024-07-03", "2024-07-05", "2024-07-08"])
    assert overlapping(sessions, parse_job(text)) == 3


def test_from_forecasts_and_actuals_to_a_promotion(ledger: Ledger, tmp_path: Path) -> None:
    """No score is given here: the ledger's own decide."""
    registry = DirectoryRegistry(tmp_path / "registry")
    for seed in range(2):
        save_artifact(make_forecaster(seed=seed), tmp_path / f"artifact-{seed}")
        registry.publish("pumps", tmp_path / f"artifact-{seed}", {})
    promote(registry, "pumps", "1")
    registry.set_alias("pumps", SHADOW, "2")
    sent = RecordedDecision(
        "run-2:gate", "pumps", "2", "1", "shadow", "gate", "new", "perhaps", {"trial_level": 0.005, "margin": 0.0}
    )
    ledger.decisions.record(sent)
    rng = np.random.default_rng(0)
    actuals = 10 + rng.normal(size=160)
    for k in range(39):
        cutoff = 4 * k
        for version, role, spread in (("1", "champion", 4.0), ("2", "shadow", 1.0)):
            centre = 10 + spread * rng.normal()
            told: dict[str, Any] = {"version": version, "role": role, "forecast_id": f"{version}-{k}"}
            ledger.forecasts.append([issued(cutoff, centre, horizon=4, **told)])
    ledger.observations.append("pumps", rows_of(actuals.tolist()))
    score_matured(ledger, adjust=False)
    job = parse_job(TINY.replace("name: tiny", "name: pumps"))
    decision = judge_shadow(Court(registry, ledger.decisions, ledger.scores), job)
    assert decision is not None
    assert decision.action == "promote", decision.reason
    assert decision.numbers["cutoffs"] == 39
    assert registry.resolve("pumps").version == "2"
