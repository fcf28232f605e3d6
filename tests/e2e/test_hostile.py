"""A real service process among clients that hold connections and say nothing."""

from pathlib import Path

import pytest

from benchmarks import hostile
from benchmarks.report import Report
from tests.conftest import missing_service
from tests.service.conftest import wait_until

CONNECTIONS = 400


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs Linux's /proc")
def test_idle_connections_cost_little_hold_nobody_up_and_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The benchmark does the same with 10,000."""
    monkeypatch.setattr(hostile, "REQUESTS", 50)
    try:
        hostile.allow_files(CONNECTIONS)
    except ValueError as error:
        missing_service(str(error))
    report = Report()
    with hostile.serve(tmp_path) as service:
        threads = service.threads
        for kind in hostile.KINDS:
            hostile.measure(report, service, kind, CONNECTIONS)
        wait_until(lambda: service.threads <= threads + 4)
    for kind in hostile.KINDS:
        case = f"{CONNECTIONS} {kind} connections"
        found = {row.metric: row.value for row in report.rows if row.case == case}
        assert found["files left open afterwards"] <= 0
        assert found["KiB of the service's memory each"] < 64
        assert found["ms, median meanwhile"] < 500
