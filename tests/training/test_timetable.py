"""When a job is due: crons in a time zone, days without a session, and closes, early ones included."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from forecasting.errors import JobError
from tests.processes import write_job
from training.job import load_job
from training.timetable import Timetable, timetable_of


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


def timetable(tmp_path: Path, **schedule: str) -> Timetable:
    found = timetable_of(load_job(write_job(tmp_path, schedule.pop("cron", None), schedule=schedule)))
    assert found is not None
    return found


def test_a_cron_is_read_on_the_clock_of_its_time_zone(tmp_path: Path) -> None:
    berlin = timetable(tmp_path, cron="30 17 * * *", timezone="Europe/Berlin")
    assert berlin.next(at("2026-03-28T12:00Z")) == at("2026-03-28T17:30+01:00")
    assert berlin.next(at("2026-03-29T12:00Z")) == at("2026-03-29T17:30+02:00"), "the clocks went forward"
    assert berlin.previous(at("2026-03-29T12:00Z")) == at("2026-03-28T17:30+01:00")
    assert berlin.previous(at("2026-03-29T15:30Z")) == at("2026-03-29T15:30Z"), "at the very moment"
    assert berlin.describe() == "30 17 * * * Europe/Berlin"


def test_days_without_a_session_are_left_out(tmp_path: Path) -> None:
    york = timetable(tmp_path, cron="*/5 * * * * *", timezone="America/New_York", sessions="XNYS")
    assert york.next(at("2024-07-03T23:59:57-04:00")) == at("2024-07-05T00:00-04:00"), "past Independence Day"
    assert york.previous(at("2024-07-04T12:00-04:00")) == at("2024-07-03T23:59:55-04:00")
    assert york.next(at("2024-07-05T23:59:55-04:00")) == at("2024-07-08T00:00-04:00"), "past the week-end"


def test_a_job_is_due_after_every_close_the_early_ones_too(tmp_path: Path) -> None:
    closes = timetable(tmp_path, after_close="30min", sessions="XNYS")
    due, moment = [], at("2026-11-24T12:00Z")
    for _ in range(4):
        moment = closes.next(moment) or moment
        due.append(moment)
    assert due == [
        at("2026-11-24T16:30-05:00"),
        at("2026-11-25T16:30-05:00"),
        at("2026-11-27T13:30-05:00"),  # the day after Thanksgiving ends at 13:00
        at("2026-11-30T16:30-05:00"),
    ]
    assert closes.previous(at("2026-11-29T12:00Z")) == due[2]
    assert not closes.is_due(at("2026-11-27T16:30-05:00")), "when it would be on a usual day"
    assert not closes.is_due(at("2026-11-26T16:30-05:00"))
    assert closes.describe() == "30 min after the close of XNYS"


def test_a_delay_may_lead_into_the_next_day(tmp_path: Path) -> None:
    closes = timetable(tmp_path, after_close="10h", sessions="XNYS")
    assert closes.next(at("2026-11-27T12:00-05:00")) == at("2026-11-27T23:00-05:00")
    assert closes.next(at("2026-11-28T12:00-05:00")) == at("2026-12-01T02:00-05:00"), "Monday's, on Tuesday"


def test_every_tick_of_a_year_of_closes_is_one_of_the_cron_it_becomes(tmp_path: Path) -> None:
    closes = timetable(tmp_path, after_close="15min", sessions="XLON")
    moment, due = at("2026-12-01T00:00Z"), []
    while (moment := closes.next(moment) or moment) < at("2027-12-01T00:00Z"):
        due.append(moment)
    assert len(due) == 253
    assert {tick - timedelta(minutes=15) for tick in due} >= {at("2026-12-24T12:30Z"), at("2026-12-31T12:30Z")}


def test_a_schedule_that_never_falls_on_a_session_has_no_next_tick(tmp_path: Path) -> None:
    sundays = timetable(tmp_path, cron="0 9 * * 0", timezone="America/New_York", sessions="XNYS")
    assert sundays.next(at("2026-01-01T00:00Z")) is None


@pytest.mark.parametrize(
    ("schedule", "why"),
    [
        ({}, "either cron or after_close"),
        ({"cron": "0 3 * * *", "after_close": "1h"}, "either cron or after_close"),
        ({"after_close": "1h"}, "takes an exchange"),
        ({"after_close": "soon", "sessions": "XNYS"}, "no span of time"),
        ({"after_close": "30s", "sessions": "XNYS"}, "whole minutes"),
        ({"after_close": "-1h", "sessions": "XNYS"}, "whole minutes"),
        ({"after_close": "24h", "sessions": "XNYS"}, "up to a day"),
    ],
)
def test_a_schedule_that_says_too_much_or_too_little_is_refused(
    tmp_path: Path, schedule: dict[str, str], why: str
) -> None:
    path = write_job(tmp_path, schedule.pop("cron", None), schedule=schedule)
    with pytest.raises(JobError, match=why):
        load_job(path)


def test_a_digest_of_a_job_changes_with_all_but_its_schedule_and_its_search(tmp_path: Path) -> None:
    path = write_job(tmp_path, "0 3 * * *")
    digest = load_job(path).digest()
    assert load_job(write_job(tmp_path, "0 4 * * *", schedule={"timezone": "Europe/Berlin"})).digest() == digest
    text = path.read_text(encoding="utf-8")
    path.write_text(text + "search: {trials: 3}\n", encoding="utf-8")
    assert load_job(path).digest() == digest
    path.write_text(text.replace("horizon: 3", "horizon: 4"), encoding="utf-8")
    assert load_job(path).digest() != digest
