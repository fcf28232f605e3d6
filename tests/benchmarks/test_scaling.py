from benchmarks import scaling
from benchmarks.report import OURS, Report


def test_a_measurement_says_speed_and_memory() -> None:
    found = scaling.measure("mlp", n_series=3, n_points=200, steps=2)
    assert found["rate"] > 0
    assert found["peak_mib"] > 10


def test_a_larger_panel_is_compared_with_the_smallest_and_with_its_data() -> None:
    report = Report()
    scaling.measure_case(report, "mlp", (2, 4), points=200, steps=2, runs=1, threads=1)
    assert report.value("mlp, 2 series", OURS, "forecasts/s, ratio to 2 series") == 1.0
    assert report.value("mlp, 4 series", OURS, "data, MiB") == 4 * 200 * 8 / 2**20
    assert report.value("mlp, 4 series", OURS, "peak memory above the constant, ratio to data") is None, (
        "too small"
    )
