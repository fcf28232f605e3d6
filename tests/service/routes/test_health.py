"""Alive is not ready; ready is not without reproach."""

import httpx

from forecasting.registry import DirectoryRegistry, promote
from tests.service.conftest import Publish, Serve, build_forecaster, wait_until
from tests.service.test_model_slot import truncate_weights


def test_a_service_without_models_is_alive_and_not_ready(serve: Serve) -> None:
    with serve(ready=False) as client:
        assert client.get("/health/live").json() == {"status": "alive"}
        wait_until(lambda: "being read" not in client.get("/health/ready").text)
        answer = client.get("/health/ready")
        assert answer.status_code == 503
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["detail"] == "no model in the registry has the alias 'champion' yet"
        assert answer.json()["models"] == []


def test_the_first_promotion_makes_it_ready(publish: Publish, registry: DirectoryRegistry, serve: Serve) -> None:
    publish(build_forecaster("pump"), champion=False)
    with serve(ready=False) as client:
        assert client.get("/health/ready").status_code == 503
        promote(registry, "pump", "1")
        wait_until(lambda: client.get("/health/ready").status_code == 200)


def test_a_model_asked_for_by_name_must_be_there(publish: Publish, serve: Serve) -> None:
    publish(build_forecaster("pump"))
    with serve(models="pump,fan", ready=False) as client:
        wait_until(lambda: "no version with the alias" in client.get("/health/ready").text)
        answer = client.get("/health/ready").json()
        assert answer["status"] == 503
        assert answer["errors"][0]["detail"].startswith("model 'fan' is not loaded: ")
        assert {m["model"]: m["status"] for m in answer["models"]} == {"fan": "failed", "pump": "ok"}


def test_a_model_that_is_bad_from_the_start_keeps_it_from_being_ready(publish: Publish, serve: Serve) -> None:
    publish(build_forecaster("pump"), damage=truncate_weights)
    with serve(ready=False) as client:
        wait_until(lambda: "weights.safetensors cannot be read" in client.get("/health/ready").text)
        assert client.get("/health/ready").status_code == 503


def test_a_stale_model_stays_ready_and_says_why(publish: Publish, serve: Serve) -> None:
    publish(build_forecaster("pump"))
    with serve() as client:
        publish(build_forecaster("pump", seed=2), damage=truncate_weights)
        wait_until(lambda: client.get("/health/ready").json()["models"][0]["status"] == "stale")
        answer = client.get("/health/ready")
        assert answer.status_code == 200
        (model,) = answer.json()["models"]
        assert (model["version"], model["failure"]["version"]) == ("1", "2")
        assert model["failure"]["since"] == client.get("/health/ready").json()["models"][0]["failure"]["since"]


def test_the_root_leads_to_the_documentation(client: httpx.Client) -> None:
    answer = client.get("/")
    assert answer.status_code == 307
    assert answer.headers["location"] == "/docs"
