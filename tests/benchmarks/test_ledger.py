from contextlib import closing
from pathlib import Path

from benchmarks import ledger as bench
from benchmarks.report import OURS, Report
from ledger.ledger import open_ledger


def test_every_way_in_and_out_is_measured_beside_the_plain_one(tmp_path: Path) -> None:
    report = Report()
    with closing(open_ledger(f"sqlite:///{tmp_path}/ledger.db")) as opened:
        bench.measure(report, "SQLite", opened, n_series=3, points=20, read_points=50)
        assert len(opened.observations.frame("bench")) == 3 * 50 + 200
        assert len(bench.read_plainly(opened)) == 3 * 50 + 200
    for case, peer in (
        ("SQLite, append 3 x 20", bench.EXECUTEMANY),
        ("SQLite, one row at a time", bench.ROW_BY_ROW),
        ("SQLite, read 3 x 50 as of now", bench.READ_SQL),
    ):
        ours, theirs = (report.value(case, who, "observations/s") for who in (OURS, peer))
        assert ours
        assert theirs
        assert report.value(case, OURS, f"ratio to {peer}") is not None
