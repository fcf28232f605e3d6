"""Where the network cannot or should not answer the seasonal naive does, and says why."""

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import httpx
import numpy as np
import pandas as pd
import pytest

from forecasting.conformal import unadjusted
from forecasting.forecaster import summarise
from forecasting.registry import DirectoryRegistry
from forecasting.spec import MLPSpec
from ledger.adjustments import write_states
from ledger.database import writing
from ledger.ledger import open_ledger
from pipelines.replay import replay
from service.fallback import FEWEST_MOVES, SHORTEST_RUN, UNUSUAL
from tests.service.conftest import COVARIATES, Publish, Serve, build_forecaster, wait_until
from tests.service.test_model_slot import truncate_weights
from tests.service.test_telemetry import sample

Forecast = Callable[..., dict[str, object]]
RNG = np.random.default_rng(0)
DAY = [float(v) for v in 20 + 5 * np.sin(np.arange(24) / 24 * 2 * np.pi)]


def days(n: int) -> list[float]:
    """Return hourly values with the rhythm of a day, and noise."""
    return [float(v) for v in np.tile(DAY, n) + RNG.normal(size=24 * n)]


@pytest.fixture(scope="module")
def forecast(client: httpx.Client) -> Forecast:
    """Return a function that posts one series and returns its forecast."""

    def post(model: str, y: list[float | None], **rest: object) -> dict[str, object]:
        options = {name: rest.pop(name) for name in ("fallback", "h", "level", "record") if name in rest}
        start = {} if "ds" in rest else {"start": "2024-01-01"}
        series = {"unique_id": "pump-7", "y": y, **start, **rest}
        answer = client.post("/v1/forecast", json={"model": model, **options, "series": [series]})
        assert answer.status_code == 200, answer.text
        return answer.json()["forecasts"][0]

    return post


def test_a_short_history_is_answered_and_said(forecast: Forecast) -> None:
    found = forecast("pump", [1.0, 3.0, 2.0, 4.0, 3.0], h=2)
    assert found["status"] == "fallback"
    assert found["reason"] == (
        "series 'pump-7' has 5 points; this model needs 24 (input_size): "
        "answered by its last value, for it holds no season of 24 steps"
    )
    assert found["mean"] == pytest.approx([3.0, 3.0])
    assert found["lo-80"][0] < 3.0 < found["hi-80"][0]
    assert found["ds"] == ["2024-01-01T05:00:00Z", "2024-01-01T06:00:00Z"]


def test_one_value_is_enough_and_has_no_interval(forecast: Forecast) -> None:
    found = forecast("pump", [7.0], h=1, level=[80])
    assert (found["status"], found["mean"]) == ("fallback", [7.0])
    assert (found["lo-80"], found["hi-80"]) == ([None], [None])
    assert found["reason"].endswith("without intervals, which take 3 differences between seasons")


def test_a_short_price_stays_above_zero(forecast: Forecast) -> None:
    found = forecast("price", [100.0, 1.0, 80.0, 2.0, 90.0], level=[95])
    assert found["status"] == "fallback"
    assert all(0 < value < 1 for value in found["lo-95"])


def test_a_short_history_may_have_its_timestamps_in_any_order(forecast: Forecast) -> None:
    found = forecast("price", [2.0, 1.0], ds=["2024-01-04", "2024-01-01"])
    assert found["reason"].startswith("series 'pump-7' has 4 points; this model needs 6 (input_size)")
    assert (found["cutoff"], found["ds"][0]) == ("2024-01-04", "2024-01-05")
    assert found["mean"] == pytest.approx([2.0] * 4)


def test_a_refusal_can_be_asked_for(client: httpx.Client) -> None:
    series = [{"unique_id": "pump-7", "start": "2024-01-01", "y": [1.0] * 20}]
    answer = client.post("/v1/forecast", json={"model": "pump", "fallback": False, "series": series})
    assert answer.status_code == 422
    assert answer.json()["detail"] == "series 'pump-7' has 20 points; this model needs 24 (input_size)"


def test_good_and_weak_series_are_answered_together(client: httpx.Client) -> None:
    good = {"unique_id": "good", "start": "2024-01-01", "y": days(1)}
    short = {"unique_id": "short", "start": "2024-01-01", "y": [1.0, 2.0]}
    both = client.post("/v1/forecast", json={"model": "pump", "series": [short, good]}).json()["forecasts"]
    (alone,) = client.post("/v1/forecast", json={"model": "pump", "series": [good]}).json()["forecasts"]
    assert [one["status"] for one in both] == ["fallback", "ok"]
    assert both[1]["mean"] == pytest.approx(alone["mean"], rel=1e-6)


def test_a_sensor_that_stands_still_is_continued_from_before(forecast: Forecast) -> None:
    y = days(4)
    found = forecast("pump", [*y, *[y[-1]] * 30], h=2)
    assert found["status"] == "fallback"
    assert found["reason"] == (
        "series 'pump-7' has stood still for its last 31 values: answered by the seasonal naive of 24 steps"
    )
    assert found["cutoff"] == "2024-01-06T05:00:00Z"
    # The season is that of the last day on which it moved.
    assert found["mean"] == pytest.approx([y[-24 + 6], y[-24 + 7]])


def test_the_network_is_asked_where_no_fallback_is_wanted_and_the_reason_stays(forecast: Forecast) -> None:
    y = days(4)
    found = forecast("pump", [*y, *[y[-1]] * 30], fallback=False)
    assert (found["status"], found["reason"]) == (
        "degraded",
        "series 'pump-7' has stood still for its last 31 values",
    )


@pytest.mark.parametrize(
    ("name", "y"),
    [
        ("constant all along", [5.0] * 100),
        ("a setpoint that was changed", [5.0] * 60 + [6.0] * 40),
        ("counts that are mostly zero", [0, 0, 3, 0, 1, 0, 0, 2, 0, 0, 0, 1, 4, 0, 2] + [0] * 60),
        ("still for no longer than a season", [*days(4), *[7.0] * 24]),
        ("still as often before", [*days(1), *[7.0] * 20, *days(1), *[7.0] * 40]),
        ("a value that hardly ever moves", [1.0, 2.0, 3.0] + [4.0] * 60),
        ("moving at its end", [*days(2), *[7.0] * 40, 7.5]),
    ],
)
def test_what_rests_with_reason_is_not_called_stuck(forecast: Forecast, name: str, y: list[float]) -> None:
    assert forecast("pump", [float(v) for v in y])["status"] == "ok", name


def test_the_rule_is_the_one_in_the_documentation() -> None:
    assert (SHORTEST_RUN, UNUSUAL, FEWEST_MOVES) == (12, 5, 4)


def test_stuck_can_be_turned_off(publish: Publish, serve: Serve) -> None:
    publish(build_forecaster("pump"))
    y = days(4)
    body = {"model": "pump", "series": [{"unique_id": "a", "start": "2024-01-01", "y": [*y, *[y[-1]] * 30]}]}
    for share, status in ((0.5, "fallback"), (0.0, "ok")):
        with serve(stuck_share=share) as client:
            assert client.post("/v1/forecast", json=body).json()["forecasts"][0]["status"] == status


def test_input_that_is_too_old_is_continued_over_the_gap(forecast: Forecast) -> None:
    y = days(3)
    found = forecast("pump", [*y, *[None] * 30], h=2)
    assert found["status"] == "fallback"
    assert found["reason"] == (
        "series 'pump-7' has no value in the last 30 steps, and the horizon is 4 steps: "
        "answered by the seasonal naive of 24 steps, continued over the gap"
    )
    assert found["cutoff"] == "2024-01-03T23:00:00Z"
    assert found["ds"] == ["2024-01-05T06:00:00Z", "2024-01-05T07:00:00Z"]
    assert found["mean"] == pytest.approx([y[-24 + 6], y[-24 + 7]])
    assert np.ptp([found["lo-80"][0], found["hi-80"][0]]) > 0


def test_a_short_gap_is_left_to_the_network(forecast: Forecast) -> None:
    found = forecast("pump", [*days(2), None, None, None, None])
    assert (found["status"], found["ds"][0]) == ("ok", "2024-01-03T00:00:00Z")


def test_steps_ahead_with_future_columns_are_no_gap(forecast: Forecast) -> None:
    ahead = {"future": {"setpoint": [60.0] * 16}, "past": {"ambient": [3.0] * 12, "load": [1.0] * 12}}
    static = {"unique_id": "boiler-1", "site": "north"}
    found = forecast("boiler", [61.0, 62.0, 60.0, 61.5, 60.5, 61.0, *[None] * 6], static=static, **ahead)
    assert found["status"] == "ok", found["reason"]


def test_an_unknown_series_is_degraded_and_counted_as_such(publish: Publish, serve: Serve) -> None:
    publish(build_forecaster("boiler", "h", MLPSpec(input_size=6, hidden_size=8), covariates=COVARIATES))
    y = [61.0, 62.0, 60.0, 61.5, 60.5, 61.0]
    with serve() as client:
        for name, n in (("boiler-9", 6), ("boiler-1", 6), ("short", 2)):
            series = [{"unique_id": name, "start": "2024-01-01", "y": y[:n]}]
            client.post("/v1/forecast", json={"model": "boiler", "series": series})
        counted = "hindcast_series_forecast_total"
        assert sample(client, counted, status="degraded", reason="unknown_series") == 1
        assert sample(client, counted, status="degraded", reason="covariates") == 1
        assert sample(client, counted, status="fallback", reason="short_history") == 1


def test_a_model_whose_weights_are_lost_is_answered_for(publish: Publish, serve: Serve) -> None:
    publish(build_forecaster("pump"), damage=truncate_weights)
    body = {"model": "pump", "series": [{"unique_id": "a", "start": "2024-01-01", "y": [1.0, 2.0, 3.0, 4.0]}]}
    with serve(models="pump", ready=False) as client:
        wait_until(lambda: client.get("/v1/models/pump").json()["status"] == "failed")
        assert client.get("/health/ready").status_code == 503
        answer = client.post("/v1/forecast", json=body).json()
        assert (answer["version"], answer["forecasts"][0]["status"]) == ("1", "fallback")
        assert answer["forecasts"][0]["reason"].startswith(
            "model 'pump' cannot answer: version 1 cannot be loaded: answered by its last value"
        )
        refused = client.post("/v1/forecast", json={**body, "fallback": False})
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
        assert client.post("/v1/forecast", json={**body, "model": "nobody"}).status_code == 404
        publish(build_forecaster("pump"))
        wait_until(lambda: client.get("/health/ready").status_code == 200)


def test_what_the_seasonal_naive_answered_is_kept_scored_apart_and_computed_again(
    registry: DirectoryRegistry, publish: Publish, serve: Serve
) -> None:
    publish(build_forecaster("pump"))
    url = f"sqlite:///{registry.root.parent}/ledger.db"
    y, gap = days(3), [None] * 6
    series = [
        {"unique_id": "ok", "start": "2024-01-01", "y": y},
        {"unique_id": "stale", "start": "2024-01-01", "y": [*y, *gap]},
        {"unique_id": "short", "start": "2024-01-01", "y": y[:5]},
    ]
    with serve(ledger_url=url, home=registry.root.parent) as client:
        answer = client.post("/v1/forecast", json={"model": "pump", "series": series}).json()
    ledger = open_ledger(url)
    kept = ledger.forecasts.find(answer["forecast_id"])
    assert [one.status for one in kept] == ["ok", "fallback", "fallback"]
    for one, said in zip(kept, answer["forecasts"], strict=True):
        assert [f"{pd.Timestamp(ds).isoformat()}Z" for ds in one.ds_H] == said["ds"]
        assert summarise(one.values_HQ[None], one.quantiles, [])["mean"][0].tolist() == said["mean"]
    assert kept[1].inputs.y_L[:-6].tolist() == y
    assert [one.same for one in replay(ledger, registry, answer["forecast_id"])] == [True] * 3
    ledger.close()


def test_what_was_learned_of_the_network_does_not_widen_the_seasonal_naive(
    registry: DirectoryRegistry, publish: Publish, serve: Serve
) -> None:
    forecaster = build_forecaster("pump")
    publish(forecaster)
    plain = unadjusted(forecaster.spec.quantiles, forecaster.spec.horizon)
    learned = replace(plain, stretch_HQ=np.full_like(plain.stretch_HQ, 0.3))
    url = f"sqlite:///{registry.root.parent}/ledger.db"
    with closing(open_ledger(url)) as ledger, writing(ledger.engine) as connection:
        write_states(connection, {("pump", "1", name): learned for name in ("good", "short")}, 1)
    body = [{"unique_id": "good", "start": "2024-01-01", "y": days(1)}]
    body.append({"unique_id": "short", "start": "2024-01-01", "y": days(1)[:6]})
    with serve(ledger_url=url) as client, serve() as without:

        def bounds(client: httpx.Client) -> list[list[float]]:
            asked = {"model": "pump", "record": False, "series": body}
            return [one["lo-80"] for one in client.post("/v1/forecast", json=asked).json()["forecasts"]]

        wait_until(lambda: bounds(client)[0] != bounds(without)[0])
        assert bounds(client)[1] == bounds(without)[1]


def test_the_ledgers_old_series_are_continued_to_the_steps_ahead(
    registry: DirectoryRegistry, publish: Publish, serve: Serve
) -> None:
    publish(build_forecaster("pump"))
    url = f"sqlite:///{registry.root.parent}/ledger.db"
    last = datetime.now(UTC).replace(minute=0, second=0, microsecond=0, tzinfo=None) - timedelta(hours=40)
    ds = pd.date_range(end=last, periods=72, freq="h").as_unit("us")
    y = days(3)
    with closing(open_ledger(url)) as ledger:
        ledger.observations.append("pump", pd.DataFrame({"unique_id": "old", "ds": ds, "y": y}))
    with serve(ledger_url=url) as client:
        address = "/v1/models/pump/series/old/forecast"
        wait_until(lambda: client.get(address).status_code == 200)
        (found,) = client.get(address, params={"h": 2}).json()["forecasts"]
        assert found["status"] == "fallback"
        assert "no value in the last" in found["reason"]
        ahead = [pd.Timestamp(text).tz_localize(None) for text in found["ds"]]
        assert ahead[0] > pd.Timestamp(datetime.now(UTC).replace(tzinfo=None)) - pd.Timedelta(hours=1)
        steps = int((ahead[0] - last) / pd.Timedelta(hours=1))
        assert found["mean"][0] == pytest.approx(y[-24 + (steps - 1) % 24])
        assert all(later - one == pd.Timedelta(hours=1) for one, later in pairwise(ahead))
        (plain,) = client.get(address, params={"fallback": False}).json()["forecasts"]
        assert plain["status"] == "degraded"
