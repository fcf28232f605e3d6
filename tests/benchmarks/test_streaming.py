import pytest

from benchmarks import streaming as bench
from benchmarks.report import OURS, Report
from forecasting.spec import RecurrentSpec
from tests.conftest import make_forecaster


def test_streams_are_measured_beside_windows_and_old_ones_beside_young(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "INPUT_SIZE", 8)
    network = RecurrentSpec(kind="lstm", input_size=8, hidden_size=4)
    report, forecaster = Report(), make_forecaster(network, freq="h")
    bench.measure_engine(report, forecaster, 2000, rounds=1)
    bench.measure_age(report, forecaster, 2, old=100, rounds=2)
    for who in (OURS, bench.WINDOWS):
        assert report.value("2,000 series, one step of each", who, "observations/s of CPU")
    ratio = report.value("2 series, a step after 10 and after 100", OURS, "ratio of the two")
    assert ratio is not None
    assert 0.2 < ratio < 5
