"""The closed loop: one round issues, scores, judges and asks, once."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandas as pd
import pytest
import yaml

from forecasting.artifact import save_artifact
from forecasting.registry import DirectoryRegistry, promote
from ledger.database import alone
from ledger.ledger import Ledger, open_ledger
from pipelines.loop import Loop, go_round
from pipelines.settings import PipelineSettings
from tests.conftest import make_forecaster, make_panel

JOB = {
    "source": {"kind": "ledger", "dataset": "pumps"},
    "freq": "D",
    "horizon": 3,
    "candidates": [{"kind": "mlp", "input_size": 10, "hidden_size": 8}],
    "triggers": {"new_data": 4, "skill": False, "coverage": False, "drift": False},
}
N_STEPS = 60


class Clock:
    """A clock the test moves; it is later than the registry's, which is that of the machine."""

    now = datetime(2100, 3, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        self.now += timedelta(microseconds=1)
        return self.now


@pytest.fixture
def clock() -> Clock:
    """A clock that stands."""
    return Clock()


@pytest.fixture
def loop(tmp_path: Path, clock: Clock) -> Iterator[Loop]:
    """A ledger with two series, a registry with a champion of `pumps`, and none of `fans`."""
    settings = PipelineSettings(home=tmp_path, registry_uri=f"file://{tmp_path}/registry")
    registry = DirectoryRegistry(tmp_path / "registry")
    save_artifact(make_forecaster(), tmp_path / "artifact")
    version = registry.publish("pumps", tmp_path / "artifact", {})
    promote(registry, "pumps", version.version)
    ledger = open_ledger(settings.ledger, clock)
    tell(ledger, 0, N_STEPS - 3)
    yield Loop(settings, ledger)
    ledger.close()


@pytest.fixture
def jobs(tmp_path: Path) -> dict[str, Path]:
    """Two job files."""
    files = {}
    for name in ("fans", "pumps"):
        files[name] = tmp_path / f"{name}.yaml"
        files[name].write_text(yaml.safe_dump({"name": name, **JOB}))
    return files


def tell(ledger: Ledger, first: int, last: int) -> None:
    """Let the steps from `first` to `last` of both series become known."""
    frame = make_panel(n_steps=N_STEPS).to_frame()
    days = pd.date_range("2024-01-01", periods=N_STEPS)[first:last]
    ledger.observations.append("pumps", frame[frame["ds"].isin(days)][["unique_id", "ds", "y"]])


def test_a_round_issues_then_scores_what_has_matured_and_nothing_twice(loop: Loop, jobs: dict[str, Path]) -> None:
    first = go_round(loop, jobs)
    assert first is not None
    fans, pumps = first.turns
    assert fans.issued is None, "there is no champion of fans"
    assert pumps.issued is not None
    assert (pumps.issued.champion, first.scored.forecasts) == (2, 0)

    again = go_round(loop, jobs)
    assert again is not None
    assert again.turns[1].issued is None, "nothing became known in between"

    tell(loop.ledger, N_STEPS - 3, N_STEPS)
    later = go_round(loop, jobs)
    assert later is not None
    assert later.scored.scores == 2 * 2 * 3, "two series, two kinds of actual, three steps"
    assert later.turns[1].issued is not None
    assert later.turns[1].issued.champion == 2
    assert loop.ledger.scores.summary(model="pumps")[0]["n"] == 6


def test_a_reason_to_retrain_is_asked_for_once_and_then_there_is_a_pause(
    loop: Loop, jobs: dict[str, Path], clock: Clock
) -> None:
    asked = go_round(loop, jobs)
    assert asked is not None
    assert [trigger.kind for trigger in asked.turns[1].asked] == ["new_data"]
    (queued,) = loop.ledger.runs.queued()
    assert (queued.job, queued.trigger) == ("pumps", "new_data")

    tell(loop.ledger, N_STEPS - 3, N_STEPS)
    waiting = go_round(loop, jobs)
    assert waiting is not None
    assert waiting.turns[1].asked == ()

    loop.ledger.runs.start(queued.key, "worker")
    loop.ledger.runs.finish(queued.key, "failed", error="no reason")
    loop.turned_at.clear()
    pausing = go_round(loop, jobs)
    assert pausing is not None
    assert pausing.turns[1].asked == ()

    clock.now += timedelta(hours=25)
    loop.turned_at.clear()
    resting = go_round(loop, jobs)
    assert resting is not None
    assert [trigger.kind for trigger in resting.turns[1].asked] == ["new_data"]


def test_a_job_that_fails_does_not_hold_up_the_others(loop: Loop, jobs: dict[str, Path]) -> None:
    jobs["fans"].write_text("name: fans\nnonsense: 1\n")
    done = go_round(loop, jobs)
    assert done is not None
    assert "nonsense" in done.failed["fans"]
    assert [turn.job for turn in done.turns] == ["pumps"]


def test_who_comes_while_another_goes_round_goes_home(loop: Loop, jobs: dict[str, Path]) -> None:
    with alone(loop.ledger.engine, "round"):
        assert go_round(loop, jobs) is None
    assert go_round(loop, jobs) is not None
