import numpy as np
import pytest

from benchmarks import gate
from benchmarks.report import OURS, Report


def test_equally_good_models_are_equally_good() -> None:
    rng = np.random.default_rng(0)
    for world in gate.WORLDS:
        pairs = [world.draw(rng, world.n_cutoffs) for _ in range(100)]
        ratios = [loss_KN.mean() / other_KN.mean() - 1.0 for loss_KN, other_KN in pairs]
        assert abs(np.mean(ratios)) < 4 * np.std(ratios) / 10
        assert pairs[0][0].shape == (world.n_cutoffs, world.n_series)


def test_a_better_model_loses_as_much_less_as_it_is_said_to() -> None:
    rng = np.random.default_rng(1)
    pairs = [gate.SENSORS.draw(rng, 400, better=0.2) for _ in range(20)]
    assert np.mean([loss_KN.mean() / other_KN.mean() for loss_KN, other_KN in pairs]) == pytest.approx(
        0.8, abs=0.02
    )


def test_the_benchmark_reports_everybody_in_every_case() -> None:
    report = Report()
    gate.measure_equals(report, gate.SENSORS, 3)
    for system in gate.SYSTEMS:
        for metric in (
            "promoted, one look",
            "promoted in 52 weeks, always new",
            "promoted in 52 weeks, always the same",
        ):
            assert report.value("equally good: 12 series, 20 cutoffs", system, metric) is not None
    gate.measure_watches(report, gate.SENSORS, 5)
    case = "watch of 30 cutoffs, level 0.05: 12 series, 20 cutoffs"
    assert report.value(case, OURS, "rolled back, new champion worse by 100 %") == 1.0
