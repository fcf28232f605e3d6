"""Runs: asking twice queues once, the queue is bounded, and a run that has ended stays as it ended."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest

from forecasting.errors import LedgerError, QueueFullError
from ledger import runs as runs_module
from ledger.ledger import Ledger, open_ledger
from tests.ledger.conftest import Ticking


def test_a_run_goes_from_the_queue_to_its_end_and_keeps_what_came_of_it(ledger: Ledger, clock: Ticking) -> None:
    asked = ledger.runs.request("pumps", "request", "asked over HTTP", "monday")
    assert (asked.state, asked.started_at, asked.requested_at) == ("queued", None, clock.now)
    assert ledger.runs.queued() == [asked]
    started = ledger.runs.start("monday", "worker-1")
    assert (started.state, started.worker, started.started_at) == ("running", "worker-1", clock.now)
    assert ledger.runs.queued() == []
    assert ledger.runs.running("pumps") == [started]
    ledger.runs.describe("monday", "data", "config")
    done = ledger.runs.finish("monday", "done", version="3", decision="promoted", reason="better")
    assert (done.data_digest, done.config_digest, done.version, done.reason) == ("data", "config", "3", "better")
    assert done.ended
    assert ledger.runs.get("monday") == ledger.runs.last_done("pumps") == done
    assert ledger.runs.running("pumps") == []


def test_asking_twice_without_a_key_queues_one_run_of_a_job(ledger: Ledger) -> None:
    first = ledger.runs.request("pumps", "drift", "the inputs drifted")
    assert ledger.runs.request("pumps", "request", "asked over HTTP") == first
    assert ledger.runs.request("fans", "request", "asked over HTTP").key != first.key
    ledger.runs.start(first.key, "worker")
    assert ledger.runs.request("pumps", "request", "asked again").state == "queued", "the first one runs already"


def test_a_key_names_one_run_whatever_became_of_it(ledger: Ledger) -> None:
    first = ledger.runs.request("pumps", "request", "asked", "k1")
    assert ledger.runs.request("pumps", "request", "asked again", "k1") == first
    ledger.runs.start("k1", "worker")
    failed = ledger.runs.finish("k1", "failed", error="no data")
    assert ledger.runs.request("pumps", "request", "asked again", "k1") == failed
    assert ledger.runs.begin("pumps", "command", "asked", "k1", "me") == failed
    with pytest.raises(LedgerError, match="key 'k1' is that of a run of job 'pumps', not of 'fans'"):
        ledger.runs.request("fans", "request", "asked", "k1")


@pytest.mark.parametrize("key", ["", "../up", "with space", "x" * 129, "a'b", ".hidden"])
def test_a_key_that_is_no_name_is_refused(ledger: Ledger, key: str) -> None:
    with pytest.raises(LedgerError, match="cannot be the key of a run"):
        ledger.runs.request("pumps", "request", "asked", key)


def test_the_queue_is_bounded(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs_module, "MAX_QUEUED", 2)
    for job in ("a", "b"):
        ledger.runs.request(job, "request", "asked")
    with pytest.raises(QueueFullError, match="2 retrainings wait already"):
        ledger.runs.request("c", "request", "asked")
    assert ledger.runs.request("a", "request", "asked").job == "a", "what is queued can still be asked for"
    assert ledger.runs.begin("c", "command", "asked", None, "me").state == "running", "this one does not wait"


def test_an_ended_run_stays_as_it_ended(ledger: Ledger) -> None:
    key = ledger.runs.begin("pumps", "command", "asked", None, "me").key
    done = ledger.runs.finish(key, "done", version="1")
    assert ledger.runs.finish(key, "failed", error="late news") == done
    assert ledger.runs.start(key, "another") == done
    with pytest.raises(LedgerError, match="no run has the key 'nobody'"):
        ledger.runs.finish("nobody", "done")


def test_runs_are_listed_newest_first_by_job_and_state(ledger: Ledger) -> None:
    keys = [ledger.runs.begin(job, "command", "asked", None, "me").key for job in ("a", "b", "a")]
    ledger.runs.finish(keys[0], "failed", error="x")
    assert [run.key for run in ledger.runs.list()] == keys[::-1]
    assert [run.key for run in ledger.runs.list("a")] == [keys[2], keys[0]]
    assert [run.key for run in ledger.runs.list("a", "failed")] == [keys[0]]
    assert [run.key for run in ledger.runs.list(limit=1)] == [keys[2]]
    assert ledger.runs.last_done("a") is None
    assert ledger.runs.get("nobody") is None


def test_a_run_that_began_after_a_moment_is_found_unless_it_failed(ledger: Ledger, clock: Ticking) -> None:
    waiting = ledger.runs.request("pumps", "schedule", "tick", "tick")
    assert ledger.runs.begun_since("pumps", waiting.requested_at, but="tick") is None
    key = ledger.runs.begin("pumps", "command", "asked", None, "me").key
    found = ledger.runs.begun_since("pumps", waiting.requested_at, but="tick")
    assert found is not None
    assert found.key == key
    assert ledger.runs.begun_since("pumps", clock.now + timedelta(seconds=1), but="tick") is None
    assert ledger.runs.begun_since("fans", waiting.requested_at, but="tick") is None
    ledger.runs.finish(key, "failed", error="x")
    assert ledger.runs.begun_since("pumps", waiting.requested_at, but="tick") is None


def test_jobs_are_known_until_they_are_forgotten(ledger: Ledger) -> None:
    next_tick = datetime(2024, 3, 4, 22, 30, tzinfo=UTC)
    ledger.runs.set_job("sp500", "digest-1", "30 17 * * 1-5 America/New_York", None)
    ledger.runs.set_job("sp500", "digest-2", "30 17 * * 1-5 America/New_York", next_tick)
    ledger.runs.set_job("co2", "digest-3", None, None)
    assert [(job.name, job.config_digest, job.next_tick) for job in ledger.runs.jobs()] == [
        ("co2", "digest-3", None),
        ("sp500", "digest-2", next_tick),
    ]
    ledger.runs.forget_job("co2")
    assert ledger.runs.job("co2") is None
    assert ledger.runs.job("sp500") == ledger.runs.jobs()[0]


def test_askers_at_the_same_moment_get_one_run(ledger_url: str) -> None:
    ledgers = [open_ledger(ledger_url) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        asked = list(pool.map(lambda one: one.runs.request("pumps", "request", "asked"), ledgers))
        named = list(pool.map(lambda one: one.runs.request("pumps", "request", "asked", "k"), ledgers))
    assert len({run.key for run in asked}) == 1
    assert len(named) == 4
    assert len(ledgers[0].runs.list()) == 2
    for one in ledgers:
        one.close()
