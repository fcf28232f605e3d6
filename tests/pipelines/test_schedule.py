"""The worker: what it remembers when it is killed, that a tick runs once, and on which days.

Real workers, real schedules. Where a test needs ticks at known times, it hands them to the scheduler the way the
scheduler itself does (a backfill), instead of waiting for a clock.
"""

import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import mlflow
import pytest
from dbos import DBOSClient, DBOSPortableJSONSerializer

from forecasting.errors import JobError, LedgerUnavailableError, ModelNotFoundError
from forecasting.registry import ModelVersion, open_registry
from ledger.ledger import Ledger, open_ledger
from ledger.runs import RunRecord
from pipelines.cli import main
from pipelines.report import LogReporter
from pipelines.retrain import TAG_RUN_KEY, retrain
from pipelines.run import new_run
from pipelines.schedule import DurableSteps, find_jobs, is_session_day
from pipelines.settings import PipelineSettings
from tests.conftest import make_panel
from tests.processes import Process, run_to_end, running, write_job
from training.job import JobConfig, load_job
from training.tracking import Tracker

BASELINES = ("naive", "seasonal_naive", "drift", "ridge")
NEVER = "0 0 1 1 *"
"""Once a year: these tests bring their own ticks."""


@pytest.fixture(autouse=True)
def store(tmp_path: Path, lay_store: Callable[[Path], str]) -> str:
    """MLflow's store in the home of every process here, made beforehand."""
    return lay_store(tmp_path)


def worker(home: Path, log: str = "worker.log", **environment: str) -> AbstractContextManager[Process]:
    """Run a worker over the jobs in `home/jobs`."""
    command = ["hindcast", "worker", "--jobs", str(home / "jobs")]
    return running(command, home / log, {"HINDCAST_HOME": str(home), **environment})


@contextmanager
def scheduler(home: Path) -> Iterator[DBOSClient]:
    client = DBOSClient(
        system_database_url=f"sqlite:///{home}/scheduler.db", serializer=DBOSPortableJSONSerializer()
    )
    try:
        yield client
    finally:
        client.destroy()


def tick(home: Path, name: str, start: datetime, end: datetime) -> list[str]:
    """Hand every tick of a schedule between two times to the workers; return their ids."""
    with scheduler(home) as client:
        return [handle.get_workflow_id() for handle in client.backfill_schedule(name, start, end)]


def states(home: Path) -> dict[str, str]:
    """Return the status of every tick by its id."""
    with scheduler(home) as client:
        return {found.workflow_id: found.status for found in client.list_workflows()}


def versions(home: Path, model: str = "pumps") -> list[ModelVersion]:
    return open_registry(f"sqlite:///{home}/mlflow.db").versions(model)


def runs(home: Path, model: str = "pumps") -> list[tuple[str, str]]:
    """Return name and status of every MLflow run, oldest first; parents are called 'parent'."""
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{home}/mlflow.db")
    experiment = client.get_experiment_by_name(model)
    found = client.search_runs([experiment.experiment_id], order_by=["attributes.start_time ASC"])
    return [(run.data.tags.get("hindcast.candidate", "parent"), run.info.status) for run in found]


def wait_until_done(home: Path, ids: list[str], seconds: float = 60) -> None:
    """Wait until every tick has ended, well or badly."""
    deadline = time.monotonic() + seconds
    while not all(states(home)[tick_id] in ("SUCCESS", "ERROR") for tick_id in ids):
        assert time.monotonic() < deadline, states(home)
        time.sleep(0.2)


@pytest.mark.slow
def test_a_worker_killed_or_stopped_while_it_fits_goes_on_in_that_step(tmp_path: Path) -> None:
    write_job(tmp_path / "jobs", NEVER, max_epochs=60)
    with worker(tmp_path, "first.log") as first:
        first.wait_for("scheduled pumps")
        ids = tick(tmp_path, "pumps", datetime(2024, 6, 1, tzinfo=UTC), datetime(2025, 6, 1, tzinfo=UTC))
        first.wait_for("mlp: epoch 10 of 60")
        first.kill()
    with worker(tmp_path, "second.log") as second:
        second.wait_for("mlp: epoch 10 of 60")
        assert second.stop(signal.SIGTERM, seconds=5) == 0
    for process in (first, second):
        assert "epoch 60 of 60" not in process.log, "it ended too late to mean anything"
    with pytest.raises(ModelNotFoundError):
        versions(tmp_path)
    assert ("parent", "RUNNING") in runs(tmp_path)

    with worker(tmp_path, "third.log") as third:
        third.wait_for("pumps version 1 promoted")
        wait_until_done(tmp_path, ids)
    assert states(tmp_path) == {ids[0]: "SUCCESS"}
    assert [(v.version, v.aliases) for v in versions(tmp_path)] == [("1", ("challenger", "champion"))]
    once = [("parent", "FINISHED"), *((name, "FINISHED") for name in BASELINES)]
    assert sorted(runs(tmp_path)) == sorted([*once, ("mlp", "KILLED"), ("mlp", "KILLED"), ("mlp", "FINISHED")])
    assert "2 series" in first.log
    assert "2 series" not in second.log + third.log, "the data were loaded once, before the kill"
    assert not list((tmp_path / "runs").iterdir()), "the run's folder is gone"


@pytest.mark.slow
@pytest.mark.postgres
def test_workers_that_share_a_scheduler_run_each_tick_once(tmp_path: Path, postgres_url: str) -> None:
    write_job(tmp_path / "jobs", "*/5 * * * * *", schedule={"force": True})
    shared = {"HINDCAST_SCHEDULER_DB": postgres_url}
    with (
        worker(tmp_path, "a.log", HINDCAST_WORKER_ID="a", **shared) as a,
        worker(tmp_path, "b.log", HINDCAST_WORKER_ID="b", **shared) as b,
    ):
        for process in (a, b):
            process.wait_for("scheduled pumps")
        deadline = time.monotonic() + 60
        while sum(process.log.count("promoted:") for process in (a, b)) < 3:
            assert time.monotonic() < deadline, a.log + b.log
            time.sleep(0.1)
        assert [process.stop() for process in (a, b)] == [0, 0]
    keys = [version.tags[TAG_RUN_KEY] for version in versions(tmp_path)]
    assert len(set(keys)) == len(keys) >= 3
    # A tick that ran again would find its version and publish none: only the log would show it.
    assert (a.log + b.log).count("is version") <= len(keys)


@pytest.mark.slow
def test_a_second_worker_of_the_same_name_is_refused(tmp_path: Path) -> None:
    write_job(tmp_path / "jobs", NEVER)
    with worker(tmp_path) as first:
        first.wait_for("scheduled pumps")
        command = ["hindcast", "worker", "--jobs", str(tmp_path / "jobs")]
        second = run_to_end(command, {"HINDCAST_HOME": str(tmp_path)})
        assert first.is_running
    assert second.returncode == 1
    assert second.stderr.splitlines() == [
        "error: a worker named 'worker' is already running; give this one another HINDCAST_WORKER_ID"
    ]


@pytest.mark.slow
def test_ticks_on_days_without_a_session_train_nothing(tmp_path: Path) -> None:
    new_york = {"timezone": "America/New_York", "sessions": "XNYS"}
    write_job(tmp_path / "jobs", "30 21 * * *", schedule=new_york)
    with worker(tmp_path) as process:
        process.wait_for("scheduled pumps")
        # Thursday is Independence Day, and every tick is on the next day in UTC already.
        ids = tick(tmp_path, "pumps", datetime(2024, 7, 4, 6, tzinfo=UTC), datetime(2024, 7, 8, 6, tzinfo=UTC))
        wait_until_done(tmp_path, ids)
    assert [tick_id.removeprefix("sched-pumps-") for tick_id in ids] == [
        f"2024-07-{day:02}T21:30:00-04:00" for day in (4, 5, 6, 7)
    ]
    assert set(states(tmp_path).values()) == {"SUCCESS"}
    assert [v.tags[TAG_RUN_KEY] for v in versions(tmp_path)] == ["pumps-20240706T0130000000"], "Friday, in UTC"
    for day in ("2024-07-04", "2024-07-06", "2024-07-07"):
        assert f"pumps: no session on {day}, nothing to do" in process.log


@pytest.mark.slow
def test_a_retraining_that_fails_says_so_and_the_worker_goes_on(tmp_path: Path) -> None:
    path = write_job(tmp_path / "jobs", NEVER)
    good = path.read_text()
    path.write_text(good.replace("n_steps: 300", "n_steps: 300\n  missing_rate: 0.9"))
    window = datetime(2024, 6, 1, tzinfo=UTC), datetime(2025, 6, 1, tzinfo=UTC)
    with worker(tmp_path) as process:
        process.wait_for("scheduled pumps")
        failed = tick(tmp_path, "pumps", *window)
        process.wait_for(r"ERROR pumps: the retraining of 2025-01-01 .* failed: ")
        wait_until_done(tmp_path, failed)
        path.write_text(good)
        window = datetime(2023, 6, 1, tzinfo=UTC), datetime(2024, 6, 1, tzinfo=UTC)
        wait_until_done(tmp_path, repaired := tick(tmp_path, "pumps", *window))
    assert states(tmp_path) == {failed[0]: "ERROR", repaired[0]: "SUCCESS"}
    assert [v.version for v in versions(tmp_path)] == ["1"]
    assert {status for _, status in runs(tmp_path)} <= {"FINISHED", "FAILED"}
    assert not list((tmp_path / "runs").iterdir())


@pytest.mark.slow
def test_missed_ticks_are_made_up_for_once_and_requests_are_run_at_once(tmp_path: Path) -> None:
    job = load_job(write_job(tmp_path / "jobs", "0 0 * * *"))
    path = write_job(tmp_path / "jobs", NEVER, name="fans")
    path.write_text(path.read_text(encoding="utf-8").split("schedule:")[0], encoding="utf-8")
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    ledger = open_ledger(f"sqlite:///{tmp_path}/ledger.db")
    # As a worker left it that was last alive five days ago.
    ledger.runs.set_job("pumps", job.digest(), "0 0 * * * UTC", today - timedelta(days=4))
    ledger.runs.set_job("gone", "digest", None, None)
    with worker(tmp_path) as process:
        process.wait_for("no worker fired the tick of .*; it is caught up now")
        caught_up = wait_for_runs(ledger, 1)[0]
        assert (caught_up.trigger, caught_up.state, caught_up.version) == ("schedule", "done", "1")
        assert caught_up.cause == f"the tick of {today}, which is late: no worker was there or free to run it"
        assert [(known.name, known.schedule, known.next_tick) for known in ledger.runs.jobs()] == [
            ("fans", None, None),
            ("pumps", "0 0 * * * UTC", today + timedelta(days=1)),
        ]

        for key in ("same", "fans"):
            ledger.runs.request("pumps" if key == "same" else "fans", "request", "asked over HTTP", key)
        ledger.runs.request("nobody", "request", "asked over HTTP", "unknown")
        ended = {run.key: run for run in wait_for_runs(ledger, 4)}
        wait_until_done(tmp_path, list(states(tmp_path)))
    assert {key: ended[key].state for key in ("same", "fans", "unknown")} == {
        "same": "skipped",
        "fans": "done",
        "unknown": "failed",
    }
    assert ended["same"].reason == (
        f"nothing changed since run {caught_up.key}, which made version 1: same data, same job"
    )
    started = ended["same"].started_at
    assert started is not None
    assert started - ended["same"].requested_at < timedelta(seconds=4), (
        "two seconds, on a machine that is not busy"
    )
    assert ended["unknown"].error == "no worker knows a job named 'nobody'"
    assert set(states(tmp_path).values()) == {"SUCCESS"}
    assert len(states(tmp_path)) == 3, "one of four missed ticks, and two requests for jobs there are"
    assert [v.tags[TAG_RUN_KEY] for v in versions(tmp_path)] == [caught_up.key]
    ledger.close()


def wait_for_runs(ledger: Ledger, count: int, seconds: float = 60) -> list[RunRecord]:
    """Wait until so many runs have ended, and return all there are, newest first."""
    deadline = time.monotonic() + seconds
    while not (len(found := ledger.runs.list()) == count and all(run.ended for run in found)):
        assert time.monotonic() < deadline, found
        time.sleep(0.1)
    return list(found)


@pytest.mark.slow
def test_a_job_that_is_gone_is_not_scheduled_any_more(tmp_path: Path) -> None:
    write_job(tmp_path / "jobs", NEVER)
    gone = write_job(tmp_path / "jobs", NEVER, name="fans")
    with worker(tmp_path) as process:
        process.wait_for("scheduled pumps")
    gone.unlink()
    with worker(tmp_path, "second.log") as process:
        process.wait_for("no longer scheduled: fans")
        process.wait_for("scheduled pumps")
    with scheduler(tmp_path) as client:
        assert [known["schedule_name"] for known in client.list_schedules()] == ["pumps"]


@pytest.mark.slow
def test_a_training_killed_while_it_fits_leaves_no_version_and_moves_no_alias(tmp_path: Path) -> None:
    settings = PipelineSettings(home=tmp_path)
    before = new_run(write_job(tmp_path / "jobs", NEVER), settings, LogReporter())
    assert retrain(before).version == "1"
    path = write_job(tmp_path / "jobs", NEVER, max_epochs=2000)
    with running(
        ["hindcast", "train", str(path)], tmp_path / "train.log", {"HINDCAST_HOME": str(tmp_path)}
    ) as train:
        train.wait_for("mlp: epoch 10 of 2000")
        train.kill()
    assert [(v.version, v.aliases) for v in versions(tmp_path)] == [("1", ("challenger", "champion"))]


def test_a_training_opened_again_closes_what_it_left_open(tmp_path: Path) -> None:
    job = write_job(tmp_path / "jobs", NEVER)
    tracker = Tracker(f"sqlite:///{tmp_path}/mlflow.db", load_job(job), job.read_text())
    other = tracker.start_training(make_panel(), {TAG_RUN_KEY: "another tick"})
    for _ in range(2):
        tracker.start_training(make_panel(), {TAG_RUN_KEY: "this tick"})
    assert [status for _, status in runs(tmp_path)] == ["RUNNING", "KILLED", "RUNNING"]
    assert mlflow.MlflowClient(tracking_uri=tracker.uri).get_run(other).info.status == "RUNNING"


def job(tmp_path: Path, **schedule: str) -> JobConfig:
    return load_job(write_job(tmp_path, NEVER, schedule=schedule))


@pytest.mark.parametrize(
    ("tick_at", "is_session"),
    [
        ("2024-07-03 17:30:00-04:00", True),
        ("2024-07-04 17:30:00-04:00", False),  # Independence Day
        ("2024-07-05 23:30:00-04:00", True),  # Friday in New York, Saturday in UTC
        ("2024-07-06 03:30:00+00:00", True),  # the same moment
        ("2024-07-06 17:30:00-04:00", False),  # Saturday
        ("2024-07-07 23:30:00-04:00", False),  # Sunday in New York, Monday in UTC
        ("2024-11-29 17:30:00-05:00", True),  # half a session is a session
    ],
)
def test_a_tick_counts_on_the_day_it_is_where_the_job_lives(
    tmp_path: Path, tick_at: str, is_session: bool
) -> None:
    pumps = job(tmp_path, timezone="America/New_York", sessions="XNYS")
    assert is_session_day(pumps, tick_at) is is_session
    assert is_session_day(pumps, datetime.fromisoformat(tick_at)) is is_session


def test_a_job_of_an_exchange_needs_no_second_mention_of_it(tmp_path: Path) -> None:
    path = write_job(tmp_path, NEVER, schedule={"timezone": "America/New_York"})
    path.write_text(path.read_text().replace("freq: D", "freq: XNYS"))
    assert not is_session_day(load_job(path), "2024-07-04 17:30:00-04:00")


def test_a_job_that_follows_no_exchange_never_rests(tmp_path: Path) -> None:
    assert is_session_day(job(tmp_path), "2024-07-06 17:30:00+00:00")


def run_worker(jobs: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> int | str | None:
    """Run `hindcast worker` in this process, which must refuse; return its exit code."""
    monkeypatch.setenv("HINDCAST_HOME", str(home))
    monkeypatch.setattr(sys, "argv", ["hindcast", "worker", "--jobs", str(jobs)])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code


def test_a_folder_a_worker_cannot_use_is_wrong_usage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs, home = tmp_path / "jobs", tmp_path / "home"
    assert run_worker(jobs, home, monkeypatch) == 2
    assert f"no job file (*.yaml) in {jobs}" in capsys.readouterr().err.replace("\n", "")

    path = write_job(jobs, "61 * * * *")
    assert run_worker(jobs, home, monkeypatch) == 2
    assert "schedule.cron" in (said := capsys.readouterr().err)
    assert "'61 * * * *' is not a cron" in said.replace("\n", " ")

    path.write_text(path.read_text()[: path.read_text().index("schedule:")])
    assert "schedule" not in path.read_text()
    assert run_worker(jobs, home, monkeypatch) == 2
    assert "no job file has a schedule" in capsys.readouterr().err


def test_a_database_that_cannot_be_used_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_job(tmp_path / "jobs", NEVER)
    monkeypatch.setenv("HINDCAST_SCHEDULER_DB", "not a database")
    assert run_worker(tmp_path / "jobs", tmp_path / "home", monkeypatch) == 1
    said = capsys.readouterr().err
    assert "error: the scheduler's database cannot be used" in said
    assert "Traceback" not in said


def test_two_jobs_of_one_name_are_refused(tmp_path: Path) -> None:
    path = write_job(tmp_path, NEVER)
    path.with_name("copy.yml").write_text(path.read_text())
    with pytest.raises(JobError, match="both named 'pumps'"):
        find_jobs(tmp_path)


@pytest.mark.parametrize(("failures", "tries", "value"), [(0, 1, "done"), (2, 3, "done"), (3, 3, None)])
def test_a_step_is_tried_again_so_many_times_and_no_more(
    failures: int, tries: int, value: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[str] = []

    def step(what: str) -> str:
        asked.append(what)
        if len(asked) <= failures:
            raise LedgerUnavailableError(f"try {len(asked)}")
        return "done"

    answer = DurableSteps(retries=2, pause=0.0)._try("step", step, "it")
    assert asked == ["it"] * tries
    assert answer == {"value": "done", "failed": None} if value else answer == {"failed": "try 3"}
    said = [record.getMessage() for record in caplog.records]
    assert [line.split("; ")[1] for line in said] == [f"try {k} of 2 in 0 s" for k in range(1, tries)]


def test_a_step_that_would_fail_again_is_not_tried_again() -> None:
    asked: list[None] = []

    def step() -> None:
        asked.append(None)
        raise JobError("no such column")

    assert DurableSteps(retries=2, pause=0.0)._try("step", step) == {"failed": "no such column"}
    assert len(asked) == 1
