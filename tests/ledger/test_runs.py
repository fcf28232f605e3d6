"""Runs: asking twice queues once, the queue is bounded, and a run that has ended stays as it ended."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest

from forecasting.errors import LedgerError, QueueFullError
from ledger import runs as runs_module
from ledger.ledger import Ledger, open_ledger
from ledger.runs import PATIENCE, EndState
from tests.ledger.conftest import Ticking


def begin(ledger: Ledger, job: str, end: EndState | None = None) -> str:
    """Record a run by "me" that is under way, or has ended; return its key."""
    key = ledger.runs.request(job, "command", "asked", f"{job}-{len(ledger.runs.list())}").key
    assert ledger.runs.start(key, "me").state == "running"
    if end is not None:
        ledger.runs.finish(key, end)
    return key


def test_a_run_goes_from_the_queue_to_its_end_and_keeps_what_came_of_it(ledger: Ledger, clock: Ticking) -> None:
    asked = ledger.runs.request("pumps", "request", "asked over HTTP", "monday")
    assert (asked.state, asked.started_at, asked.requested_at) == ("queued", None, clock.now)
    assert ledger.runs.queued() == [asked]
    started = ledger.runs.start("monday", "worker-1")
    assert (started.state, started.worker, started.started_at) == ("running", "worker-1", clock.now)
    assert ledger.runs.queued() == []
    assert ledger.runs.running("worker-1") == [started]
    ledger.runs.describe("monday", "data", "config")
    done = ledger.runs.finish("monday", "done", version="3", decision="promoted", reason="better")
    assert (done.data_digest, done.config_digest, done.version, done.reason) == ("data", "config", "3", "better")
    assert done.ended
    assert ledger.runs.get("monday") == ledger.runs.last_done("pumps") == done
    assert ledger.runs.running("worker-1") == []


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
    assert ledger.runs.request("c", "command", "asked").job == "c", "this one is run by who asks"


def test_an_ended_run_stays_as_it_ended(ledger: Ledger) -> None:
    key = begin(ledger, "pumps")
    done = ledger.runs.finish(key, "done", version="1")
    assert ledger.runs.finish(key, "failed", error="late news") == done
    assert ledger.runs.start(key, "another") == done
    with pytest.raises(LedgerError, match="no run has the key 'nobody'"):
        ledger.runs.finish("nobody", "done")


def test_runs_are_listed_newest_first_by_job_and_state(ledger: Ledger) -> None:
    keys = [begin(ledger, "a", "failed"), begin(ledger, "b"), begin(ledger, "a")]
    assert [run.key for run in ledger.runs.list()] == keys[::-1]
    assert [run.key for run in ledger.runs.list("a")] == [keys[2], keys[0]]
    assert [run.key for run in ledger.runs.list("a", "failed")] == [keys[0]]
    assert [run.key for run in ledger.runs.list(limit=1)] == [keys[2]]
    assert ledger.runs.last_done("a") is None
    assert ledger.runs.get("nobody") is None


def test_a_run_is_skipped_when_another_of_its_job_began_later_and_is_done(ledger: Ledger) -> None:
    waiting = ledger.runs.request("pumps", "schedule", "tick", "tick", force=True)
    forced = ledger.runs.request("pumps", "request", "asked", "forced", force=True)
    failed = begin(ledger, "pumps", "failed")
    done = begin(ledger, "pumps", "done")
    skipped = ledger.runs.start(waiting.key, "me")
    assert (skipped.state, skipped.started_at) == ("skipped", None)
    assert skipped.reason == f"run {done} of the same job began later and is done"
    assert ledger.runs.start(forced.key, "me").state == "running"
    ledger.runs.finish(forced.key, "failed", error="x")
    assert ledger.runs.start(ledger.runs.request("pumps", "request", "asked").key, "me").state == "running"
    assert failed != done


def test_a_failed_run_overtakes_nobody(ledger: Ledger) -> None:
    waiting = ledger.runs.request("pumps", "schedule", "tick", "tick")
    begin(ledger, "pumps", "failed")
    assert ledger.runs.start(waiting.key, "me").state == "running"


def test_a_job_has_one_run_under_way_at_a_time_unless_its_worker_is_gone(ledger: Ledger, clock: Ticking) -> None:
    first = begin(ledger, "pumps")
    second = ledger.runs.request("pumps", "schedule", "tick", "tick")
    assert ledger.runs.start(second.key, "you").state == "queued"
    assert ledger.runs.start(begin(ledger, "fans"), "me").state == "running", "another job's"
    assert ledger.runs.start(first, "you").worker == "me"
    clock.now += PATIENCE
    ledger.runs.touch(first)
    assert ledger.runs.start(second.key, "you").state == "queued", "it gave a sign of life"
    clock.now += PATIENCE
    assert ledger.runs.start(second.key, "you").state == "running"
    taken = ledger.runs.start(first, "you")
    assert (taken.state, taken.worker) == ("running", "you")


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
