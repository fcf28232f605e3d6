"""What the service says about its models."""

import httpx

from forecasting.forecaster import Forecaster


def test_a_model_tells_what_it_needs_and_what_it_gives(
    client: httpx.Client, forecasters: dict[str, Forecaster]
) -> None:
    info = client.get("/v1/models/pump").json()
    assert info.pop("loaded_at") > "2024"
    assert len(info.pop("digest")) == 64
    assert info == {
        "model": "pump",
        "status": "ok",
        "alias": "champion",
        "version": "1",
        "source": "registry",
        "kind": "lstm",
        "head": "quantile",
        "freq": "h",
        "season_length": 24,
        "input_size": 24,
        "horizon": 4,
        "level": [80.0, 95.0],
        "max_level": 95.0,
        "transform": "none",
        "covariates": {"past": [], "prices": [], "future": [], "static": {}, "calendar": [], "country": None},
        "failure": None,
    }


def test_the_list_holds_every_model_as_it_is_described_alone(client: httpx.Client) -> None:
    listed = client.get("/v1/models").json()["models"]
    assert [model["model"] for model in listed] == ["boiler", "co2", "price", "pump", "sales", "sp500"]
    assert listed == [client.get(f"/v1/models/{model['model']}").json() for model in listed]


def test_the_widest_level_can_be_asked_for(client: httpx.Client) -> None:
    widest = client.get("/v1/models/sp500").json()["max_level"]
    series = [{"unique_id": "a", "start": "2024-01-02", "y": [1.0, 2.0, 3.0, 2.0, 1.0]}]
    answer = client.post("/v1/forecast", json={"model": "sp500", "level": [widest], "series": series})
    assert answer.status_code == 200


def test_an_unknown_model_is_not_found(client: httpx.Client) -> None:
    answer = client.get("/v1/models/nope")
    assert answer.status_code == 404
    assert answer.json()["type"] == "urn:hindcast:problem:unknown-model"
