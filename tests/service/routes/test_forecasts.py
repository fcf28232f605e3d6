"""POST /v1/forecast: the numbers, the dates, and what is refused."""

import httpx
import numpy as np
import pandas as pd
import pytest
from exchange_calendars import get_calendar

from forecasting.forecaster import Forecaster, summarise
from service.schemas import ForecastAnswer
from tests.service.conftest import Ask

RNG = np.random.default_rng(7)


def walk(n: int, level: float = 100.0) -> list[float]:
    return [float(v) for v in level + RNG.normal(size=n).cumsum()]


def test_answer_equals_predict_to_the_last_bit(client: httpx.Client, forecasters: dict[str, Forecaster]) -> None:
    pump = forecasters["pump"]
    y_BL = np.array([walk(40), walk(40, 1e6), walk(40, -3.0)])
    y_BL[1, [20, 33]] = np.nan
    series = [
        {"unique_id": f"s{i}", "start": "2024-01-01T00:00Z", "y": [None if np.isnan(v) else v for v in y]}
        for i, y in enumerate(y_BL.tolist())
    ]
    answer = client.post("/v1/forecast", json={"model": "pump", "h": 3, "level": [50, 95], "series": series})
    assert answer.status_code == 200
    expected = summarise(pump.predict(y_BL)[:, :3], pump.spec.quantiles, [50, 95])
    assert list(expected) == ["mean", "lo-50", "hi-50", "lo-95", "hi-95"]
    for i, forecast in enumerate(answer.json()["forecasts"]):
        assert forecast["unique_id"] == f"s{i}"
        assert forecast["status"] == "ok"
        for name, column_BH in expected.items():
            assert forecast[name] == column_BH[i].tolist()


def test_answer_has_the_documented_shape(ask: Ask) -> None:
    answer = ask("pump", start="2024-01-01T00:00Z", y=walk(24)).json()
    assert list(answer) == ["forecast_id", "model", "version", "alias", "forecasts"]
    assert (answer["model"], answer["version"], answer["alias"]) == ("pump", "1", "champion")
    (forecast,) = answer["forecasts"]
    columns = ["mean", "lo-80", "hi-80", "lo-95", "hi-95"]
    assert list(forecast) == ["unique_id", "cutoff", "status", "reason", "ds", *columns]
    assert all(len(forecast[name]) == 4 for name in ["ds", *columns])
    ForecastAnswer.model_validate_json(ask("pump", start="2024-01-01T00:00Z", y=walk(24)).content, strict=True)


def test_every_answer_has_an_id_of_its_own(ask: Ask) -> None:
    ids = {ask("co2", start="2024-01-06", y=walk(8)).json()["forecast_id"] for _ in range(3)}
    assert len(ids) == 3


def test_an_empty_level_asks_for_the_mean_alone(ask: Ask) -> None:
    (forecast,) = ask("pump", level=[], start="2024-01-01", y=walk(24)).json()["forecasts"]
    assert set(forecast) == {"unique_id", "cutoff", "status", "reason", "ds", "mean"}


def test_sessions_skip_weekends_and_holidays(ask: Ask) -> None:
    y = [2351.1, 2467.7, 2488.83, 2485.74, 2506.85]
    (forecast,) = ask("sp500", start="2018-12-24", y=y).json()["forecasts"]
    assert forecast["cutoff"] == "2018-12-31"
    assert forecast["ds"] == ["2019-01-02", "2019-01-03", "2019-01-04", "2019-01-07"]
    sessions = get_calendar("XNYS", start="2018-01-01", end="2020-01-01").sessions
    assert all(pd.Timestamp(ds) in sessions for ds in forecast["ds"])


@pytest.mark.parametrize(
    ("model", "start", "points", "cutoff", "first"),
    [
        ("pump", "2024-03-31T00:00Z", 24, "2024-03-31T23:00:00Z", "2024-04-01T00:00:00Z"),
        ("pump", "2024-03-31T02:00+02:00", 24, "2024-03-31T23:00:00Z", "2024-04-01T00:00:00Z"),
        ("pump", "2024-03-31 00:30", 24, "2024-03-31T23:30:00Z", "2024-04-01T00:30:00Z"),
        ("co2", "2024-01-06", 8, "2024-02-24", "2024-03-02"),
        ("price", "2024-02-26T00:00:00+05:30", 6, "2024-03-02", "2024-03-03"),
        ("sales", "2023-08-01", 6, "2024-01-01", "2024-02-01"),
    ],
)
def test_values_are_laid_out_on_the_models_calendar(
    ask: Ask, model: str, start: str, points: int, cutoff: str, first: str
) -> None:
    (forecast,) = ask(model, start=start, y=walk(points)).json()["forecasts"]
    assert (forecast["cutoff"], forecast["ds"][0]) == (cutoff, first)


def test_trailing_nulls_move_the_cutoff_back(ask: Ask) -> None:
    y = walk(24)
    (full,) = ask("pump", start="2024-01-01", y=y).json()["forecasts"]
    (trailing,) = ask("pump", start="2024-01-01", y=[*y, None, None]).json()["forecasts"]
    assert trailing == full
    assert full["cutoff"] == "2024-01-01T23:00:00Z"


def test_the_order_of_ds_does_not_matter_and_a_step_left_out_is_a_missing_value(ask: Ask) -> None:
    y = walk(24)
    hours = [f"2024-01-01T{hour:02d}:00:00Z" for hour in range(24)]
    (by_start,) = ask("pump", start=hours[0], y=[*y[:5], None, *y[6:]]).json()["forecasts"]
    kept = [i for i in RNG.permutation(24) if i != 5]
    (by_ds,) = ask("pump", ds=[hours[i] for i in kept], y=[y[i] for i in kept]).json()["forecasts"]
    assert by_ds == by_start


def test_repeated_timestamps_pass_when_they_agree(ask: Ask) -> None:
    y = walk(6)
    days = [f"2024-01-0{day}" for day in range(1, 7)]
    (once,) = ask("price", ds=days, y=y).json()["forecasts"]
    (twice,) = ask("price", ds=[*days, days[2], days[3]], y=[*y, y[2], None]).json()["forecasts"]
    assert twice == once


def test_what_comes_before_the_window_changes_nothing(ask: Ask) -> None:
    y = walk(24)
    (short,) = ask("pump", start="2024-01-02", y=y).json()["forecasts"]
    (long,) = ask("pump", start="2024-01-01", y=[*walk(24, 9000.0), *y]).json()["forecasts"]
    assert long == short


def test_a_forecast_that_is_not_finite_is_null_and_says_why(client: httpx.Client) -> None:
    series = [
        {"unique_id": "huge", "start": "2024-01-01", "y": [(-1) ** i * 1e300 for i in range(24)]},
        {"unique_id": "fine", "start": "2024-01-01", "y": walk(24)},
    ]
    answer = client.post("/v1/forecast", json={"model": "pump", "series": series})
    assert answer.status_code == 200
    huge, fine = answer.json()["forecasts"]
    assert huge["status"] == "degraded"
    assert "not finite" in huge["reason"]
    assert huge["mean"] == huge["lo-80"] == huge["hi-95"] == [None] * 4
    assert len(huge["ds"]) == 4
    assert fine["status"] == "ok"
    assert None not in fine["mean"]


def test_values_without_a_logarithm_count_as_missing_and_are_reported(ask: Ask) -> None:
    (forecast,) = ask("price", start="2024-01-01", y=[10.0, 11.0, 0.0, -3.0, 12.0, 13.0]).json()["forecasts"]
    assert forecast["status"] == "degraded"
    assert forecast["reason"].startswith("2 of the last 6 values are not above zero")
    assert None not in forecast["mean"]
    (missing,) = ask("price", start="2024-01-01", y=[10.0, 11.0, None, None, 12.0, 13.0]).json()["forecasts"]
    assert missing["status"] == "ok"
    assert missing["mean"] == forecast["mean"]


def test_a_large_request_is_answered_like_many_small_ones(client: httpx.Client) -> None:
    series = [{"unique_id": f"s{i}", "start": f"2024-01-{1 + i % 28:02d}", "y": walk(300)} for i in range(40)]
    together = client.post("/v1/forecast", json={"model": "pump", "series": series})
    assert len(together.request.content) > 64 * 1024
    for one, forecast in zip(series[::13], together.json()["forecasts"][::13], strict=True):
        alone = client.post("/v1/forecast", json={"model": "pump", "series": [one]}).json()["forecasts"][0]
        assert alone["ds"] == forecast["ds"]
        assert alone["mean"] == pytest.approx(forecast["mean"], rel=1e-6)


@pytest.mark.parametrize(
    ("model", "series", "path", "message"),
    [
        (
            "pump",
            {"start": "2024-01-01", "y": [1.0] * 20},
            "series[0].y",
            "series 'pump-7' has 20 points; this model needs 24 (input_size)",
        ),
        (
            "pump",
            {"start": "2024-01-01", "y": [1.0] * 20 + [None] * 9},
            "series[0].y",
            "series 'pump-7' has 20 points; this model needs 24 (input_size)",
        ),
        (
            "price",
            {"ds": ["2024-01-01", "2024-01-05"], "y": [1.0, 2.0]},
            "series[0].y",
            "series 'pump-7' has 5 points; this model needs 6 (input_size)",
        ),
        (
            "pump",
            {"start": "2024-01-01", "y": [None, None]},
            "series[0].y",
            "series 'pump-7' has no observed value: every y is null",
        ),
        (
            "price",
            {"start": "2024-01-01", "y": [0.0] * 6},
            "series[0].y",
            "series 'pump-7' has no value above zero, which log_return needs",
        ),
        (
            "sp500",
            {"start": "2024-01-06", "y": [1.0] * 5},
            "series[0].start",
            "series 'pump-7': 2024-01-06 00:00:00 is not a session of XNYS",
        ),
        (
            "sp500",
            {"start": "2049-12-20", "y": [1.0] * 6},
            "series[0].start",
            "series 'pump-7': the sessions of XNYS are known until 2049-12-31 only",
        ),
        (
            "co2",
            {"start": "2024-01-07", "y": [1.0] * 8},
            "series[0].start",
            "series 'pump-7': 2024-01-07 is a Sunday, which is not on the grid of W-SAT",
        ),
        (
            "sp500",
            {"ds": ["2024-01-02", "2024-01-03", "2024-01-04", "2024-01-06"], "y": [1.0] * 4},
            "series[0].ds[3]",
            "series 'pump-7': 2024-01-06 does not lie on the grid of XNYS",
        ),
        (
            "pump",
            {"ds": ["2024-01-01T00:30", "2024-01-01T01:00", "2024-01-01T02:00"], "y": [1.0] * 3},
            "series[0].ds[0]",
            "series 'pump-7': 2024-01-01T00:30 does not lie on the grid of h",
        ),
        (
            "co2",
            {"ds": ["2024-01-07", "2024-01-08"], "y": [1.0] * 2},
            "series[0].ds[0]",
            "series 'pump-7': 2024-01-07 does not lie on the grid of W-SAT",
        ),
        (
            "price",
            {"ds": ["2024-01-01", "2024-01-02", "2024-01-01"], "y": [1.0, 2.0, 3.0]},
            "series[0].ds[2]",
            "series 'pump-7' has two different values at 2024-01-01",
        ),
        (
            "pump",
            {"ds": ["2024-01-01T00:00Z", "2024-01-01T01:00"], "y": [1.0, 2.0]},
            "series[0].ds",
            "series 'pump-7': some timestamps carry a UTC offset and some do not",
        ),
        (
            "price",
            {"ds": ["2024-01-01", "2024-02-30"], "y": [1.0, 2.0]},
            "series[0].ds[1]",
            "series 'pump-7': ds[1] '2024-02-30' is no timestamp: day is out of range for month",
        ),
        (
            "price",
            {"start": "2024-02-30", "y": [1.0, 2.0]},
            "series[0].start",
            "series 'pump-7': start '2024-02-30' is no timestamp: day is out of range for month",
        ),
        (
            "pump",
            {"start": "2024-01-01", "y": [1.0] * 2001},
            "series[0].y",
            "series 'pump-7' has 2001 values; at most 2000",
        ),
    ],
)
def test_a_series_that_cannot_be_forecast_is_named(
    ask: Ask, model: str, series: dict[str, object], path: str, message: str
) -> None:
    answer = ask(model, fallback=False, **series)
    assert answer.status_code == 422
    problem = answer.json()
    assert problem["errors"] == [{"path": path, "unique_id": "pump-7", "detail": message}]
    assert problem["detail"] == message


def test_steps_that_leave_the_calendar_are_refused(ask: Ask) -> None:
    answer = ask("sales", start="2199-12-01", y=[1.0] * 2000)
    assert answer.status_code == 200, "a month beyond the last start is still a month"
    assert ask("sales", start="2200-01-01", y=[1.0] * 6).json()["errors"][0]["path"] == "series[0].start"


def test_every_bad_series_is_reported_at_once(client: httpx.Client) -> None:
    series = [
        {"unique_id": "short", "start": "2024-01-01", "y": [1.0]},
        {"unique_id": "good", "start": "2024-01-01", "y": walk(24)},
        {"unique_id": "empty", "start": "2024-01-01", "y": [None]},
    ]
    body = {"model": "pump", "h": 99, "fallback": False, "series": series}
    problem = client.post("/v1/forecast", json=body).json()
    assert [e["path"] for e in problem["errors"]] == ["h", "series[0].y", "series[2].y"]
    assert [e["unique_id"] for e in problem["errors"]] == [None, "short", "empty"]
    assert problem["detail"].endswith("(and 2 more problems)")


@pytest.mark.parametrize(
    ("asked", "path", "message"),
    [
        ({"h": 5}, "h", "h is 5; model 'pump' forecasts at most 4 steps"),
        ({"level": [80, 99]}, "level[1]", "level 99 is outside what this model was trained for"),
        ({"level": [80, 80.0]}, "level[1]", "level 80 is there twice"),
        ({"level": [10, 20, 30, 40, 50]}, "level", "5 levels; at most 4"),
    ],
)
def test_what_the_model_cannot_give_is_refused(
    ask: Ask, asked: dict[str, object], path: str, message: str
) -> None:
    answer = ask("pump", start="2024-01-01", y=walk(24), **asked)
    assert answer.status_code == 422
    (error,) = answer.json()["errors"]
    assert error["path"] == path
    assert error["detail"].startswith(message)


def test_an_unknown_model_is_not_found(ask: Ask) -> None:
    answer = ask("nope", start="2024-01-01", y=walk(24))
    assert answer.status_code == 404
    assert answer.json()["detail"] == "no model is named 'nope'; known: boiler, co2, price, pump, sales, sp500"


def test_values_after_the_cutoff_of_other_series_change_nothing(client: httpx.Client) -> None:
    """A series is forecast from itself alone, whoever travels with it."""
    one = {"unique_id": "a", "start": "2024-01-01", "y": walk(24)}
    alone = client.post("/v1/forecast", json={"model": "pump", "series": [one]}).json()["forecasts"][0]
    other = {"unique_id": "b", "start": "2025-01-01", "y": walk(24, 1e5)}
    both = client.post("/v1/forecast", json={"model": "pump", "series": [one, other]}).json()["forecasts"][0]
    assert both["mean"] == pytest.approx(alone["mean"], rel=1e-6)
