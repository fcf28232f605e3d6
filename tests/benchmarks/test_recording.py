"""The benchmark of recording asks real services, and counts what became of their forecasts."""

import json
from contextlib import ExitStack
from pathlib import Path

import pytest

from benchmarks import recording
from benchmarks.report import Report


@pytest.mark.slow
def test_services_with_and_without_a_ledger_are_asked_and_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording, "CONNECTIONS", (2,))
    report = Report()
    registry = recording.publish_model(tmp_path)
    with ExitStack() as stack:
        services = {
            name: stack.enter_context(recording.serve(tmp_path, registry, name, silent_port=0))
            for name in ("off", "SQLite")
        }
        recording.measure_case(report, services, n_series=2, rounds=1, seconds=0.2)
        recording.add_losses(report, services, tmp_path)
    case = "2 series a request, 2 at a time"
    assert (report.value(case, "ledger SQLite", "median, ms") or 0) > 0
    assert (report.value(case, "ledger SQLite", "requests/s, ratio to no ledger") or 0) > 0
    answered = report.value("all of it", "ledger SQLite", "forecasts answered")
    assert answered
    assert report.value("all of it", "ledger SQLite", "forecasts in the ledger") == answered
    assert report.value("all of it", "ledger off", "forecasts in the ledger") is None


def test_the_series_of_a_request_differ() -> None:
    first, second = json.loads(recording.build_body(2))["series"]
    assert len(first["y"]) == recording.INPUT_SIZE
    assert first["y"] != second["y"]
