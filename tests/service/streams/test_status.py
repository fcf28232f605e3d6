"""A stream's forecast is never worse without saying so: sensors that stand still, and those that fell silent."""

import numpy as np
import pytest

from forecasting.spec import MLPSpec
from tests.service.conftest import build_forecaster
from tests.service.streams.conftest import Bench, JsonObject, OpenBench, loaded, row, walk

STILL = 60
"""Steps for which a sensor stands still: more than a season, and more than the ring of the bench holds."""


def tell(bench: Bench, y: list[float | None], unique_id: str = "a", start: int = 0) -> JsonObject:
    """Tell a series its values, each in a message of its own, and return the last forecast."""
    forecast: JsonObject = {}
    for step, value in enumerate(y, start):
        (forecast,) = bench.send([row(unique_id, step, value)])["forecasts"]
    return forecast


def reason_of(n: int) -> str:
    return f"series 'a' has stood still for its last {n} values"


def test_a_sensor_that_stands_still_is_said_for_as_long_as_it_does(bench: Bench) -> None:
    moving = walk(20)
    assert tell(bench, [*moving, *[moving[-1]] * 23])["status"] == "ok"
    for n in range(25, STILL):
        found = bench.forecast("a", 18 + n, moving[-1])
        assert (found["status"], found["reason"]) == ("degraded", reason_of(n))
        assert np.isfinite(found["mean"]).all()
    assert bench.forecast("a", 18 + STILL, moving[-1] + 1)["status"] == "ok"


def test_other_series_of_the_same_message_are_not_called_so(bench: Bench) -> None:
    moving, other = walk(80), walk(80, 1)
    for step in range(80):
        y = moving[min(step, 20)]
        shown = bench.send([row("b", step, other[step]), row("a", step, y)])["forecasts"]
    assert [(one["unique_id"], one["status"]) for one in shown] == [("b", "ok"), ("a", "degraded")]


@pytest.mark.parametrize(
    ("name", "y"),
    [
        ("constant all along", [5.0] * 70),
        ("a setpoint that was changed", [5.0] * 30 + [6.0] * 40),
        ("counts that are mostly zero", [0.0, 3.0, 0.0, 1.0, 0.0, 2.0, 0.0, 4.0, 1.0, *[0.0] * 60]),
        ("still for no longer than a season", [*walk(20), *[7.0] * 24]),
        ("still as often before", [*walk(10), *[7.0] * 20, *walk(10), *[7.0] * 40]),
        ("a value that hardly ever moves", [1.0, 2.0, 3.0] + [4.0] * 60),
    ],
)
def test_what_rests_with_reason_is_not_called_stuck(bench: Bench, name: str, y: list[float | None]) -> None:
    assert tell(bench, y)["status"] == "ok", name


def test_it_can_be_turned_off(open_bench: OpenBench) -> None:
    assert tell(open_bench(stuck_share=0.0), [*walk(20), *[7.0] * STILL])["status"] == "ok"


@pytest.mark.parametrize("change", ["crash", "restart", "version", "network"])
def test_it_is_known_after_a_crash_a_restart_and_a_swap(bench: Bench, change: str) -> None:
    tell(bench, [*walk(20), *[7.0] * STILL])
    if change == "crash":
        bench.die()
    elif change == "restart":
        bench.engine.close()
    elif change == "version":
        bench.models["pump"] = loaded(build_forecaster("pump", "h", seed=3), "2")
    else:
        network = MLPSpec(input_size=30, hidden_size=4)
        bench.models["pump"] = loaded(build_forecaster("pump", "h", network), "2")
    found = bench.forecast("a", 20 + STILL, 7.0)
    assert reason_of(STILL + 1) in found["reason"]


def test_a_late_value_that_differs_ends_the_run(bench: Bench) -> None:
    tell(bench, [*walk(20), *[7.0] * 40])
    tell(bench, [8.0], start=57)
    assert bench.forecast("a", 60, 7.0)["status"] == "ok"


def test_a_sensor_that_fell_silent_is_said_beyond_the_horizon(bench: Bench) -> None:
    assert tell(bench, [*walk(20), *[None] * 4])["status"] == "ok"
    silent = tell(bench, [None], start=24)
    assert silent["reason"] == "nothing was observed in the last 5 steps, and the horizon is 4 steps"
    assert silent["status"] == "degraded"
    assert tell(bench, [None] * 3, start=25)["reason"] == "none of the last 8 steps was observed"
    assert bench.forecast("a", 28, 50.0)["status"] == "ok"
