"""GET /v1/models/{model}/series/...: the ledger says what a client would have sent, and the answer is the same."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import numpy as np
import pandas as pd
import pytest

from forecasting.registry import TAG_DATASET, TAG_TARGET, DirectoryRegistry
from forecasting.spec import MLPSpec
from ledger.ledger import Ledger, open_ledger
from service.app import create_app
from service.settings import ServiceSettings
from tests.service.conftest import COVARIATES, build_forecaster, publish_into, serve_app, wait_until

SIZE = 12


class Clock:
    """A clock that stands where it is put."""

    def __init__(self) -> None:
        self.now = datetime(2024, 1, 11, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now


def rows_of(unique_id: str, days: int = 10, *, start: str = "2024-01-01", seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    ds = pd.date_range(start, periods=24 * days, freq="h").as_unit("us")
    y = 20 + 5 * np.sin(np.arange(len(ds)) / 4) + rng.normal(size=len(ds))
    return pd.DataFrame({"unique_id": unique_id, "ds": ds, "y": y})


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="module")
def ledger(home: Path, clock: Clock) -> Iterator[Ledger]:
    """A ledger with pumps, boilers of another dataset, and prices of an exchange."""
    ledger = open_ledger(f"sqlite:///{home}/ledger.db", clock)
    ledger.observations.append("pump", pd.concat([rows_of("pump-7"), rows_of("a/b c", seed=1)]))
    ledger.observations.append("pump", rows_of("short", 1).head(5))
    ledger.observations.append("pump", rows_of("old", start="2020-01-01"))
    boiler = rows_of("boiler-1").rename(columns={"y": "flow"}).assign(ambient=3.5, load=0.7, site="north")
    ledger.observations.append("plant", boiler, static=["site"])
    ahead = pd.date_range("2024-01-01", periods=24 * 10 + 4, freq="h").as_unit("us")
    ledger.observations.append("plant", pd.DataFrame({"unique_id": "boiler-1", "ds": ahead, "setpoint": 61.5}))
    sessions = pd.to_datetime(["2024-01-02", "2024-01-03", "2024-01-04", "2024-01-05", "2024-01-08", "2024-01-09"])
    closes = pd.DataFrame(
        {"unique_id": "^GSPC", "ds": sessions.as_unit("us"), "y": [4742.0, 4704, 4688, 4697, 4763, 4756]}
    )
    ledger.observations.append("sp500", closes)
    yield ledger
    ledger.close()


@pytest.fixture(scope="module")
def served(home: Path, ledger: Ledger, clock: Clock) -> Iterator[httpx.Client]:
    assert ledger
    registry = DirectoryRegistry(home / "registry")
    publish = publish_into(registry, home)
    publish(build_forecaster("pump"))
    publish(build_forecaster("sp500", "XNYS", MLPSpec(input_size=5, hidden_size=8)))
    version = publish(build_forecaster("boiler", "h", MLPSpec(input_size=6, hidden_size=8), covariates=COVARIATES))
    registry.annotate("boiler", version.version, {TAG_DATASET: "plant", TAG_TARGET: "flow"})
    app = create_app(ServiceSettings(home=home, registry_uri=str(registry.root), poll_seconds=0.1))
    app.state.runtime.ledger_link.clock = clock
    with serve_app(app) as client:
        wait_until(lambda: app.state.runtime.ledger is not None)
        yield client


@pytest.fixture
def forecast(served: httpx.Client) -> Callable[..., httpx.Response]:
    def ask(model: str, unique_id: str, **query: Any) -> httpx.Response:
        return served.get(f"/v1/models/{model}/series/{quote(unique_id, safe='')}/forecast", params=query)

    return ask


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return {k: v for k, v in one.items() if k != "forecast_id"} == {
        k: v for k, v in other.items() if k != "forecast_id"
    }


def test_the_answer_is_that_to_the_same_history_sent(
    served: httpx.Client, forecast: Callable[..., httpx.Response]
) -> None:
    answer = forecast("pump", "pump-7", h=3, level=[80, 90])
    assert answer.status_code == 200, answer.text
    rows = rows_of("pump-7").tail(SIZE)
    series = {"unique_id": "pump-7", "start": str(rows["ds"].iloc[0]), "y": rows["y"].tolist()}
    body = {"model": "pump", "h": 3, "level": [80, 90], "series": [series]}
    sent = served.post("/v1/forecast", json=body)
    assert same(answer.json(), sent.json())
    assert answer.json()["forecasts"][0]["status"] == "ok"


def test_the_forecast_is_recorded_as_any_other(ledger: Ledger, forecast: Callable[..., httpx.Response]) -> None:
    kept, tried = forecast("pump", "pump-7").json(), forecast("pump", "pump-7", record=False).json()
    wait_until(lambda: len(ledger.forecasts.find(kept["forecast_id"])) == 1)
    assert ledger.forecasts.find(tried["forecast_id"]) == []


def test_as_of_sees_nothing_that_became_known_later(
    ledger: Ledger, clock: Clock, forecast: Callable[..., httpx.Response]
) -> None:
    before = forecast("pump", "a/b c").json()
    then, clock.now = clock.now, datetime(2024, 1, 11, 6, tzinfo=UTC)
    more = rows_of("a/b c", 11, seed=1).tail(24)
    revised = rows_of("a/b c", seed=1).tail(3).assign(y=99.0)
    ledger.observations.append("pump", pd.concat([more, revised]))
    now = forecast("pump", "a/b c").json()
    assert now["forecasts"][0]["cutoff"] == "2024-01-11T23:00:00Z"
    past = forecast("pump", "a/b c", as_of=then.isoformat().replace("+00:00", "Z")).json()
    assert same(past, before)
    assert ledger.forecasts.find(past["forecast_id"]) == []
    clock.now = then
    unknown = forecast("pump", "a/b c", as_of="2023-01-01T00:00:00")
    assert (unknown.status_code, unknown.json()["type"]) == (404, "urn:hindcast:problem:unknown-series")


def test_covariates_and_names_come_from_the_ledger_as_far_ahead_as_they_are_known(
    ledger: Ledger, forecast: Callable[..., httpx.Response]
) -> None:
    answer = forecast("boiler", "boiler-1").json()
    assert (answer["forecasts"][0]["status"], answer["forecasts"][0]["reason"]) == ("ok", None)
    wait_until(lambda: bool(ledger.forecasts.find(answer["forecast_id"])))
    (kept,) = ledger.forecasts.find(answer["forecast_id"])
    np.testing.assert_array_equal(kept.inputs.past_LP, [[3.5, 0.7]] * 6)
    np.testing.assert_array_equal(kept.inputs.future_TF, [[61.5]] * 10)
    assert kept.inputs.static == {"unique_id": "boiler-1", "site": "north"}
    assert (kept.dataset, kept.target) == ("plant", "flow")


def test_an_exchange_goes_by_its_sessions(forecast: Callable[..., httpx.Response]) -> None:
    (answer,) = forecast("sp500", "^GSPC", h=2).json()["forecasts"]
    assert (answer["cutoff"], answer["ds"]) == ("2024-01-09", ["2024-01-10", "2024-01-11"])


def test_history_that_lies_far_back_is_found_and_said_to_be_old(forecast: Callable[..., httpx.Response]) -> None:
    (answer,) = forecast("pump", "old").json()["forecasts"]
    assert answer["status"] == "degraded"
    assert answer["reason"] == "the newest observation, 2020-01-10T23:00:00Z, is older than the horizon of 4 steps"


def test_a_series_that_is_too_short_says_how_long_it_is(forecast: Callable[..., httpx.Response]) -> None:
    answer = forecast("pump", "short", fallback=False)
    assert answer.status_code == 422
    assert answer.json()["detail"] == "series 'short' has 5 points; this model needs 12 (input_size)"


def test_what_cannot_be_found_is_a_problem_of_its_own(forecast: Callable[..., httpx.Response]) -> None:
    for model, unique_id, kind in (("pump", "none", "unknown-series"), ("nope", "pump-7", "unknown-model")):
        answer = forecast(model, unique_id)
        assert (answer.status_code, answer.json()["type"]) == (404, f"urn:hindcast:problem:{kind}")
    assert forecast("pump", "boiler-1").status_code == 404, "of another dataset"


@pytest.mark.parametrize(
    ("query", "path"),
    [
        ({"h": 99}, "h"),
        ({"h": 0}, "query.h"),
        ({"level": 100}, "query.level.0"),
        ({"as_of": "1066-10-14"}, "query.as_of"),
    ],
)
def test_impossible_wishes_are_refused_by_name(
    forecast: Callable[..., httpx.Response], query: dict[str, Any], path: str
) -> None:
    answer = forecast("pump", "pump-7", **query)
    assert (answer.status_code, answer.json()["errors"][0]["path"]) == (422, path)


def test_series_are_listed_a_page_at_a_time(served: httpx.Client) -> None:
    address = "/v1/models/pump/series"
    first = served.get(address, params={"limit": 3}).json()
    assert [one["unique_id"] for one in first["series"]] == ["a/b c", "old", "pump-7"]
    assert first["series"][2] == {
        "unique_id": "pump-7",
        "first": "2024-01-01T00:00:00Z",
        "last": "2024-01-10T23:00:00Z",
    }
    rest = served.get(address, params={"limit": 3, "after": first["next"]}).json()
    assert ([one["unique_id"] for one in rest["series"]], rest["next"]) == (["short"], None)
    assert [one["unique_id"] for one in served.get(address, params={"prefix": "p"}).json()["series"]] == ["pump-7"]
    boilers = served.get("/v1/models/boiler/series").json()
    assert (boilers["dataset"], [one["unique_id"] for one in boilers["series"]]) == ("plant", ["boiler-1"])


def test_without_a_ledger_the_answer_is_a_problem(home: Path, served: httpx.Client) -> None:
    assert served
    settings = ServiceSettings(home=home, registry_uri=str(home / "registry"), ledger_url="off")
    with serve_app(create_app(settings)) as client:
        for path in (
            "/v1/models/pump/series",
            "/v1/models/pump/series/pump-7/forecast",
            "/v1/accuracy",
            "/v1/jobs",
        ):
            answer = client.get(path)
            assert (answer.status_code, answer.json()["type"]) == (503, "urn:hindcast:problem:ledger-unavailable")
