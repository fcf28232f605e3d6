"""The benchmark of batch scoring measures what it says, on a small panel."""

from pathlib import Path

from benchmarks import batch
from benchmarks.report import OURS, Report


def test_a_small_panel_is_forecast_and_compared_with_the_forward_pass(tmp_path: Path) -> None:
    report = Report()
    batch.publish(tmp_path)
    size = batch.write_panel(tmp_path / "panel.parquet", n_series=30, points=60)
    found = batch.measure(str(tmp_path), processes=1, part_rows=500)
    assert found["seconds"] > 0
    assert found["peak_mib"] > 10
    assert len(list((tmp_path / "out-1").glob("part-*.parquet"))) == 4
    batch.run_cases(report, tmp_path, 30, 60, 500, (), size)
    assert (report.value("30 series of 60 points", OURS, "forward pass alone, series/s") or 0) > 0
