"""Triggers: each asks when it has a cause, says it, and is silent when chance is enough."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from forecasting.artifact import save_artifact
from forecasting.registry import CHAMPION, DirectoryRegistry
from ledger.ledger import Ledger, open_ledger
from ledger.scores import ScoreStore
from pipelines.triggers import check_coverage, check_skill, check_triggers, request_retraining
from tests.conftest import make_forecaster
from tests.ledger.conftest import Ticking
from training.job import JobConfig, TriggersConfig, parse_job

JOB = """
name: pumps
source: {kind: csv, path: pumps.csv}
freq: h
horizon: 4
level: [80, 95]
candidates: [{kind: mlp, input_size: 12}]
triggers: {skill: false, coverage: false, drift: false}
"""


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    opened = open_ledger(f"sqlite:///{tmp_path}/ledger.db", Ticking())
    yield opened
    opened.close()


@pytest.fixture
def registry(tmp_path: Path) -> DirectoryRegistry:
    registry = DirectoryRegistry(tmp_path / "registry")
    save_artifact(make_forecaster(), tmp_path / "artifact")
    registry.publish("pumps", tmp_path / "artifact", {"hindcast.data_end": "2024-02-01"})
    registry.set_alias("pumps", CHAMPION, "1")
    return registry


def job_with(**triggers: object) -> JobConfig:
    job = parse_job(JOB)
    config = TriggersConfig(**{"skill": False, "coverage": False, "drift": False, **triggers})  # type: ignore[arg-type]
    return job.model_copy(update={"triggers": config})


def cutoffs(rival_K: NDArray[np.float64], naive_K: NDArray[np.float64], covered: float) -> pd.DataFrame:
    """Return scores by cutoff, every second hour, so that two forecasts overlap."""
    ds = pd.date_range("2024-01-01", periods=len(rival_K), freq="2h")
    rng = np.random.default_rng(0)
    inside = rng.binomial(20, covered, size=len(ds)) / 20
    columns = {"cutoff": ds, "rival": rival_K, "naive": naive_K, "coverage_80": inside, "coverage_95": 0.95}
    return pd.DataFrame(columns)


def errors(seed: int, mean: float, n: int = 60) -> NDArray[np.float64]:
    """Return errors that are alike from one cutoff to the next."""
    noise = np.random.default_rng(seed).normal(scale=0.2, size=n + 1)
    return mean + noise[1:] + noise[:-1]


def test_a_champion_without_skill_is_told() -> None:
    job, config = parse_job(JOB), TriggersConfig()
    trigger = check_skill(cutoffs(errors(1, 1.3), errors(2, 1.0), 0.8), job, config)
    assert trigger is not None
    assert trigger.kind == "skill"
    assert "below the margin 0.02" in trigger.cause
    # Better than the naive; as good but for chance; too few cutoffs.
    assert check_skill(cutoffs(errors(1, 0.7), errors(2, 1.0), 0.8), job, config) is None
    assert check_skill(cutoffs(errors(1, 1.0), errors(2, 1.0), 0.8), job, config) is None
    assert check_skill(cutoffs(errors(1, 1.3, 12), errors(2, 1.0, 12), 0.8), job, config) is None


def test_coverage_off_the_mark_is_told_on_both_sides() -> None:
    job, config = parse_job(JOB), TriggersConfig()
    flat = np.ones(60)
    assert check_coverage(cutoffs(flat, flat, 0.8), job, config) is None
    low, high = (check_coverage(cutoffs(flat, flat, share), job, config) for share in (0.7, 0.9))
    assert low is not None
    assert high is not None
    assert low.kind == high.kind == "coverage"
    assert "the live coverage of 80 % is 7" in low.cause


def test_levels_share_the_chance_of_a_false_alarm() -> None:
    job, config = parse_job(JOB), TriggersConfig()
    flat = np.ones(60)
    many = tuple(range(81, 90))
    frame = cutoffs(flat, flat, 0.76).assign(**{f"coverage_{level}": level / 100 for level in many})
    alone = check_coverage(frame, job.model_copy(update={"level": (80,)}), config)
    assert alone is not None
    assert check_coverage(frame, job.model_copy(update={"level": (80, *many)}), config) is None


def test_only_the_newest_cutoffs_count(
    ledger: Ledger, registry: DirectoryRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_with(skill=True)
    assert job.triggers is not None
    bad, good = (cutoffs(errors(1, mean), errors(2, 1.0), 0.8) for mean in (1.3, 0.99))
    newest = pd.concat([bad, good.assign(cutoff=good["cutoff"] + pd.Timedelta(days=60))])
    assert len(good) >= job.triggers.cutoffs
    for frame, kinds in ((newest, []), (bad, ["skill"])):
        monkeypatch.setattr(ScoreStore, "by_cutoff", lambda *_, frame=frame, **__: frame)
        assert [trigger.kind for trigger in check_triggers(job, ledger, registry)] == kinds


def test_coverage_that_was_not_measured_is_no_cause(ledger: Ledger) -> None:
    """The levels of a job may reach beyond what its champion was trained for."""
    job, config = parse_job(JOB), TriggersConfig()
    flat = np.ones(60)
    unknown = cutoffs(flat, flat, 0.8).assign(coverage_95=np.nan)
    assert check_coverage(unknown, job, config) is None
    partly = cutoffs(flat, flat, 0.7)
    partly.loc[:20, "coverage_80"] = np.nan
    found = check_coverage(partly, job, config)
    assert found is not None
    assert "the live coverage of 80 % is 69.1 %" in found.cause
    assert "on 39 cutoffs" in found.cause
    partly.loc[:45, "coverage_80"] = np.nan
    assert check_coverage(partly, job, config) is None, "too few cutoffs"


def test_chance_alarms_no_more_often_than_alpha() -> None:
    job, config = parse_job(JOB), TriggersConfig(alpha=0.05)
    alarms = 0
    for seed in range(200):
        frame = cutoffs(errors(2 * seed, 1.0), errors(2 * seed + 1, 1.0), 0.8)
        # Exactly at the margin, where the test is to be right.
        frame["rival"] *= 1 - job.gate.margin
        alarms += check_skill(frame, job, config) is not None
    assert alarms / 200 <= 0.08


def observe(ledger: Ledger, factor: float) -> None:
    """Let a month pass, and then four days that move by a factor."""
    rng = np.random.default_rng(0)
    ds = pd.date_range("2023-09-01", "2024-02-05", freq="h")
    steps = rng.normal(size=len(ds)) * np.where(ds > pd.Timestamp("2024-02-01"), factor, 1.0)
    ledger.observations.append("pumps", pd.DataFrame({"unique_id": "pump-1", "ds": ds, "y": steps.cumsum()}))


@pytest.mark.parametrize(("factor", "found"), [(1.0, []), (3.0, ["drift"])])
def test_data_that_move_otherwise_are_told(
    ledger: Ledger, registry: DirectoryRegistry, factor: float, found: list[str]
) -> None:
    observe(ledger, factor)
    triggers = check_triggers(job_with(drift=True), ledger, registry)
    assert [trigger.kind for trigger in triggers] == found
    # With a longer window, too little came after the training.
    assert check_triggers(job_with(drift=True, window=120), ledger, registry) == []


def test_enough_new_data_ask_once_until_a_worker_takes_it(ledger: Ledger, registry: DirectoryRegistry) -> None:
    ledger.runs.request("pumps", "request", "by hand", "first")
    ledger.runs.start("first", "me")
    rows = pd.DataFrame({"unique_id": "pump-1", "ds": pd.date_range("2024-02-01", periods=50, freq="h"), "y": 1.0})
    ledger.runs.finish("first", "done")
    ledger.observations.append("pumps", rows)
    assert check_triggers(job_with(new_data=51), ledger, registry) == []
    triggers = check_triggers(job_with(new_data=50), ledger, registry)
    assert [trigger.kind for trigger in triggers] == ["new_data"]
    run = request_retraining(job_with(), ledger, triggers)
    assert run is not None
    assert (run.trigger, run.state, run.cause) == ("new_data", "queued", triggers[0].cause)
    assert request_retraining(job_with(), ledger, triggers) == run
    assert request_retraining(job_with(), ledger, []) is None


def test_a_job_without_triggers_or_champion_is_left_alone(ledger: Ledger, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    empty = DirectoryRegistry(tmp_path / "empty")
    assert check_triggers(job_with(new_data=1), ledger, empty) == []
    assert check_triggers(parse_job(JOB).model_copy(update={"triggers": None}), ledger, empty) == []


def test_drift_is_measured_against_the_training_data_and_not_against_what_came_since(
    ledger: Ledger, registry: DirectoryRegistry
) -> None:
    """A change that is half a year old would be the rule by now, were that half a year part of the past."""
    rng = np.random.default_rng(0)
    ds = pd.date_range("2023-09-01", "2024-08-01", freq="h")
    steps = rng.normal(size=len(ds)) * np.where(ds > pd.Timestamp("2024-02-01"), 3.0, 1.0)
    ledger.observations.append("pumps", pd.DataFrame({"unique_id": "pump-1", "ds": ds, "y": steps.cumsum()}))
    triggers = check_triggers(job_with(drift=True), ledger, registry)
    assert [trigger.kind for trigger in triggers] == ["drift"]
