"""A retraining on record: begun once for a key, skipped where nothing changed, one at a time for a job."""

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from forecasting.errors import HindcastError, JobError, RegistryUnavailableError, SourceError
from ledger.ledger import Ledger, open_ledger
from ledger.runs import RunRecord
from pipelines import recorded
from pipelines.recorded import retrain_recorded
from pipelines.report import LogReporter
from pipelines.retrain import Outcome
from pipelines.run import new_run
from pipelines.schedule import DurableSteps
from pipelines.settings import PipelineSettings
from pipelines.steps import run_now
from tests.processes import write_job


@pytest.fixture
def settings(tmp_path: Path) -> PipelineSettings:
    return PipelineSettings(home=tmp_path / "home", registry_uri=f"file://{tmp_path}/registry")


@pytest.fixture
def ledger(settings: PipelineSettings) -> Iterator[Ledger]:
    opened = open_ledger(settings.ledger)
    yield opened
    opened.close()


@pytest.fixture
def job(tmp_path: Path) -> Path:
    return write_job(tmp_path / "jobs", "0 3 * * *")


def ask(
    ledger: Ledger, settings: PipelineSettings, job: Path, key: str, *, force: bool = False
) -> tuple[Outcome | None, RunRecord]:
    """Ask for a run and run it; return what came of it and its record."""
    run = new_run(job, settings, LogReporter(), key)
    ledger.runs.request(run.job.name, "command", "asked by a test", key, force=force)
    outcome = retrain_recorded(run, ledger.runs, "me")
    return outcome, record_of(ledger, key)


def record_of(ledger: Ledger, key: str) -> RunRecord:
    record = ledger.runs.get(key)
    assert record is not None
    return record


def test_what_came_of_a_retraining_is_on_record_and_the_same_again_is_skipped(
    ledger: Ledger, settings: PipelineSettings, job: Path
) -> None:
    outcome, first = ask(ledger, settings, job, "first")
    assert outcome is not None
    assert outcome.decision is not None
    assert (first.state, first.version, first.decision) == ("done", "1", "promoted")
    assert first.reason == outcome.decision.reason
    assert first.data_digest is not None
    assert first.config_digest == new_run(job, settings, LogReporter()).job.digest()
    assert first.worker == "me"

    nothing, again = ask(ledger, settings, job, "second")
    assert nothing is None
    assert (again.state, again.version) == ("skipped", None)
    assert again.reason == "nothing changed since run first, which made version 1: same data, same job"
    assert again.data_digest == first.data_digest

    _, forced = ask(ledger, settings, job, "third", force=True)
    assert (forced.state, forced.version) == ("done", "2")

    job.write_text(job.read_text(encoding="utf-8").replace("0 3 * * *", "0 4 * * *"), encoding="utf-8")
    assert ask(ledger, settings, job, "another-schedule")[1].state == "skipped"
    job.write_text(job.read_text(encoding="utf-8").replace("n_steps: 300", "n_steps: 301"), encoding="utf-8")
    assert ask(ledger, settings, job, "more-data")[1].version == "3"
    write_job(job.parent, "0 3 * * *", max_epochs=1)
    assert ask(ledger, settings, job, "another-job")[1].version == "4"


def test_nothing_is_skipped_when_the_version_is_gone(
    ledger: Ledger, settings: PipelineSettings, job: Path
) -> None:
    ask(ledger, settings, job, "first")
    shutil.rmtree(Path(settings.registry.removeprefix("file://")))
    assert ask(ledger, settings, job, "second")[1].state == "done"


def test_a_key_that_has_ended_is_not_run_again(ledger: Ledger, settings: PipelineSettings, job: Path) -> None:
    _, first = ask(ledger, settings, job, "first")
    assert ask(ledger, settings, job, "first") == (None, first)
    broken = write_job(job.parent, "0 3 * * *", name="broken")
    broken.write_text(broken.read_text(encoding="utf-8").replace("n_steps: 300", "n_steps: 12"), encoding="utf-8")
    with pytest.raises(HindcastError) as failed:
        ask(ledger, settings, broken, "bad")
    record = record_of(ledger, "bad")
    assert (record.state, record.error) == ("failed", str(failed.value))
    assert ask(ledger, settings, broken, "bad") == (None, record), "the same, not another try"


def test_an_interrupted_run_is_on_record_as_failed(ledger: Ledger, settings: PipelineSettings, job: Path) -> None:
    def interrupt(name: str, function: Any, *args: object) -> Any:
        if name == "load":
            raise KeyboardInterrupt
        return function(*args)

    ledger.runs.request("pumps", "command", "asked", "k")
    with pytest.raises(KeyboardInterrupt):
        retrain_recorded(new_run(job, settings, LogReporter(), "k"), ledger.runs, "me", interrupt)
    assert (record_of(ledger, "k").state, record_of(ledger, "k").error) == ("failed", "interrupted")


def test_a_run_waits_for_the_one_under_way_and_is_skipped_if_that_began_later(
    ledger: Ledger, settings: PipelineSettings, job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorded, "LOOK_SECONDS", 0.01)
    for key in ("early", "other"):
        ledger.runs.request("pumps", "command", "asked", key)
    assert ledger.runs.start("other", "somebody").state == "running"
    run = new_run(job, settings, LogReporter(), "early")
    waiting = threading.Thread(target=retrain_recorded, args=(run, ledger.runs, "me"))
    waiting.start()
    waiting.join(0.3)
    assert waiting.is_alive()
    assert record_of(ledger, "early").state == "queued"
    ledger.runs.finish("other", "done", version="1")
    waiting.join(10)
    assert record_of(ledger, "early").reason == "run other of the same job began later and is done"


def durable(monkeypatch: pytest.MonkeyPatch, retries: int) -> DurableSteps:
    """Return steps that run without a scheduler to remember them."""
    monkeypatch.setattr("pipelines.schedule.durable_step", run_now)
    return DurableSteps(retries, 0.001)


@pytest.mark.parametrize("error", [RegistryUnavailableError("MLflow is away"), SourceError("no answer")])
def test_a_step_is_tried_again_when_something_did_not_answer(
    error: HindcastError, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[int] = []

    def flaky(value: str) -> str:
        calls.append(1)
        if len(calls) < 3:
            raise error
        return value

    assert durable(monkeypatch, 2)("publish", flaky, "done") == "done"
    assert [record.getMessage() for record in caplog.records] == [
        f"step publish: {error}; try 1 of 2 in 0.001 s",
        f"step publish: {error}; try 2 of 2 in 0.002 s",
    ]
    calls.clear()
    with pytest.raises(HindcastError, match=str(error)):
        durable(monkeypatch, 1)("publish", flaky, "done")
    assert len(calls) == 2, "once, and again once"


@pytest.mark.parametrize(
    ("error", "said"), [(JobError("bad field"), "bad field"), (KeyError("x"), "unexpected KeyError")]
)
def test_a_step_that_fails_for_good_is_not_tried_again(
    error: Exception, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def broken() -> None:
        calls.append(1)
        raise error

    with pytest.raises(HindcastError, match=said):
        durable(monkeypatch, 5)("load", broken)
    assert calls == [1]


def test_a_run_gives_signs_of_life(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorded, "BEAT_SECONDS", 0.01)
    ledger.runs.request("pumps", "command", "asked", "k")
    first = ledger.runs.start("k", "me").seen_at
    with recorded._beating(ledger.runs, "k"):
        threading.Event().wait(0.2)
    seen = record_of(ledger, "k").seen_at
    assert first is not None
    assert seen is not None
    assert seen > first
