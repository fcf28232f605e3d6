"""What can be measured of streams from outside."""

from pathlib import Path

import httpx
import numpy as np
from prometheus_client import Histogram

from service.streams.tally import SECONDS, STAGES, Spread
from service.streams.telemetry import HistogramMetricFamily, _add
from tests.service.conftest import Publish, Serve, build_forecaster, wait_until
from tests.service.streams.conftest import LSTM, Bench, OpenBench, row, walk
from tests.service.test_telemetry import sample


def observe(client: httpx.Client, rows: list[dict[str, object]]) -> httpx.Response:
    return client.post("/v1/observe", json={"model": "pump", "observations": rows})


def test_observations_forecasts_and_passes_are_counted(publish: Publish, serve: Serve, tmp_path: Path) -> None:
    publish(build_forecaster("pump", "h", LSTM))
    y = walk(12)
    with serve(home=tmp_path / "home", stream_rewind=4, stream_gap=20) as client:
        observe(client, [row(name, step, y[step]) for step in range(10) for name in ("a", "b", "c")])
        observe(client, [row("a", 9, y[9]), row("b", 8, 1.0), row("c", 1, 5.0), row("d", 0, 1.0), {"ds": "x"}])
        observe(client, [row("a", 60, 1.0), {"unique_id": "a", "ds": "2024-01-03T13:30:00Z", "y": 1.0}])
        became = {
            "new": 31,
            "known": 1,
            "revised": 1,
            "restarted": 1,
            "too_late": 1,
            "off_grid": 1,
            "malformed": 1,
        }
        for outcome, count in became.items():
            found = sample(client, "hindcast_stream_observations_total", model="pump", outcome=outcome)
            assert found == count, outcome
        assert sample(client, "hindcast_stream_forecasts_total", status="ok", reason="") == 5
        assert sample(client, "hindcast_stream_forecasts_total", status="degraded", reason="short_history") == 2
        for stage in STAGES:
            assert sample(client, "hindcast_stream_stage_seconds_count", stage=stage) == 3
            assert (sample(client, "hindcast_stream_stage_seconds_sum", stage=stage) or 0) > 0
        assert sample(client, "hindcast_stream_pass_windows_count", kind="forecast") == 3
        assert sample(client, "hindcast_stream_pass_windows_sum", kind="forecast") == 7
        assert (sample(client, "hindcast_stream_pass_windows_count", kind="advance") or 0) >= 3
        wait_until(lambda: sample(client, "hindcast_stream_series", where="memory") == 4)
        assert (sample(client, "hindcast_stream_bytes", where="journal") or 0) > 0
        age = sample(client, "hindcast_stream_snapshot_age_seconds")
        assert age is not None
        assert 0 <= age < 60
        assert sample(client, "hindcast_stream_sockets") == 0
        assert sample(client, "hindcast_stream_waiting") == 0


def test_a_model_nobody_has_makes_no_label(publish: Publish, serve: Serve, tmp_path: Path) -> None:
    publish(build_forecaster("pump", "h", LSTM))
    with serve(home=tmp_path / "home") as client:
        client.post("/v1/observe", json={"model": "made-up", "observations": [row("a", 0, 1.0)]})
        assert "made-up" not in client.get("/metrics").text


def test_series_that_leave_memory_and_disk_are_counted(open_bench: OpenBench) -> None:
    bench = open_bench(stream_memory_bytes=64 * 1024, stream_disk_bytes=300 * 1024, stream_journal_bytes=1024)
    for start in range(0, 2000, 100):
        bench.send([row(f"s{i}", 0, 1.0) for i in range(start, start + 100)])
        while bench.engine.tidy():
            pass
    tally = bench.engine.tally
    assert tally.evicted["memory"] > 1500
    assert tally.evicted["disk"] > 500
    assert tally.kept.on_disk + tally.evicted["disk"] == 2000


def test_what_is_kept_is_counted_under_load_too(bench: Bench) -> None:
    bench.engine._counted_at = -np.inf
    bench.send([row("a", 0, 1.0)])
    assert bench.engine.tally.kept.in_memory == 1


def test_amounts_are_put_where_prometheus_puts_them() -> None:
    spread, plain = Spread(SECONDS), Histogram("x_seconds", "X.", buckets=SECONDS, registry=None)
    for amount in (0.0, SECONDS[0], 0.0003, SECONDS[-1], 7.0, 1e9):
        spread.add(amount)
        plain.observe(amount)
    family = HistogramMetricFamily("x_seconds", "X.", labels=[])
    _add(family, (), spread)
    expected = [s for s in next(iter(plain.collect())).samples if not s.name.endswith("_created")]
    assert [(s.name, s.labels, s.value) for s in family.samples] == [
        (f"x_seconds{s.name.removeprefix('x_seconds')}", s.labels, s.value) for s in expected
    ]
