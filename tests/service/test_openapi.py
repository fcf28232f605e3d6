"""The OpenAPI document tells the truth: its examples work, and answers are what it says they are."""

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import positive_data_acceptance
from schemathesis.generation.case import Case
from schemathesis.schemas import BaseSchema

from forecasting.forecaster import Forecaster
from forecasting.spec import CovariatesSpec
from service.key_store import create_key
from service.openapi import EXAMPLE_ANSWER
from service.problems import KINDS, Problem
from service.schemas import ForecastAnswer
from tests.service.conftest import Publish, Serve, build_forecaster


@pytest.fixture(scope="session")
def document(client: httpx.Client) -> dict[str, Any]:
    return client.get("/openapi.json").json()


def forecast_operation(document: dict[str, Any]) -> dict[str, Any]:
    return document["paths"]["/v1/forecast"]["post"]


def test_every_request_example_is_answered(client: httpx.Client, document: dict[str, Any]) -> None:
    examples = forecast_operation(document)["requestBody"]["content"]["application/json"]["examples"]
    assert list(examples) == ["boiler", "co2", "price", "pump", "sales"]
    for example in examples.values():
        answer = client.post("/v1/forecast", json=example["value"])
        assert answer.status_code == 200, answer.text
        assert answer.json()["forecasts"][0]["status"] == "ok"


def test_every_example_of_observations_is_kept(client: httpx.Client, document: dict[str, Any]) -> None:
    body = document["paths"]["/v1/observations"]["post"]["requestBody"]
    examples = body["content"]["application/json"]["examples"]
    for example in examples.values():
        answer = client.post("/v1/observations", json=example["value"])
        assert answer.status_code == 200, answer.text
        assert answer.json()["refused"] == 0


def test_examples_are_made_for_the_models_that_are_there(publish: Publish, serve: Serve) -> None:
    with serve(ready=False) as client:
        content = forecast_operation(client.get("/openapi.json").json())["requestBody"]["content"]
        assert "examples" not in content["application/json"]
    publish(build_forecaster("turbine"))
    with serve() as client:
        content = forecast_operation(client.get("/openapi.json").json())["requestBody"]["content"]
        assert list(content["application/json"]["examples"]) == ["turbine"]


def test_the_example_answer_has_the_shape_of_an_answer(document: dict[str, Any]) -> None:
    shown = forecast_operation(document)["responses"]["200"]["content"]["application/json"]["example"]
    assert shown == EXAMPLE_ANSWER
    assert ForecastAnswer.model_validate_json(json.dumps(shown), strict=True).model_dump() == shown


def test_every_error_example_is_a_problem(document: dict[str, Any]) -> None:
    seen = set()
    for path in document["paths"].values():
        for operation in path.values():
            for status, response in operation["responses"].items():
                for example in (
                    response["content"].get("application/problem+json", {}).get("examples", {}).values()
                ):
                    problem = Problem.model_validate(example["value"], strict=True)
                    assert str(problem.status) == status
                    seen.add(problem.type)
    framework_only = {"bad-request", "not-found", "method-not-allowed", "not-ready"}
    before_any_route = {"unauthenticated", "missing-scope", "foreign-origin", "rate-limited", "head-too-large"}
    assert seen == {kind.type for kind in KINDS if kind.slug not in framework_only | before_any_route}


def test_where_keys_are_asked_for_the_document_says_how_and_which_scope(serve: Serve, tmp_path: Path) -> None:
    _, key = create_key(tmp_path / "keys.json", "reader", ["read"], datetime.now(UTC))
    with serve(keys_file=tmp_path / "keys.json", ready=False) as client:
        document = client.get("/openapi.json", headers={"x-api-key": key}).json()
    assert document["components"]["securitySchemes"].keys() == {"bearer", "header"}
    forecast, live = forecast_operation(document), document["paths"]["/health/live"]["get"]
    assert forecast["security"] == [{"bearer": []}, {"header": []}]
    assert forecast["description"].endswith("Needs a key (forecast).")
    assert {"401", "403", "429"} <= forecast["responses"].keys()
    assert "security" not in live
    assert "401" not in live["responses"]


def test_every_reference_can_be_followed(document: dict[str, Any]) -> None:
    for reference in re.findall(r'"#/components/schemas/(\w+)"', json.dumps(document)):
        assert reference in document["components"]["schemas"]
    assert "HTTPValidationError" not in json.dumps(document)


def test_every_field_of_a_request_is_described(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    for name in ("ForecastRequest", "SeriesHistory", "ObservationsRequest", "SeriesObservations", "Observation"):
        assert all(field.get("description") for field in schemas[name]["properties"].values())


def test_the_documentation_page_needs_no_internet(client: httpx.Client) -> None:
    page = client.get("/docs")
    assert page.status_code == 200
    assets = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(assets) == 3
    assert not re.findall(r"https?://", page.text)
    for asset in assets:
        assert client.get(asset).status_code == 200


@pytest.fixture(scope="session")
def api_schema(client: httpx.Client) -> BaseSchema:
    return schemathesis.openapi.from_url(f"{client.base_url}/openapi.json")


ROUTES = [
    ("POST", "/v1/forecast"),
    ("POST", "/v1/observations"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/{model}"),
    ("GET", "/v1/models/{model}/series"),
    ("GET", "/v1/models/{model}/series/{unique_id}/forecast"),
    ("GET", "/v1/accuracy"),
    ("GET", "/v1/jobs"),
    ("GET", "/v1/jobs/{job}"),
    ("GET", "/v1/jobs/{job}/runs"),
    ("GET", "/v1/jobs/{job}/runs/{key}"),
    ("POST", "/v1/jobs/{job}/retrain"),
    ("POST", "/v1/observe"),
    ("GET", "/v1/streams"),
    ("GET", "/health/live"),
    ("GET", "/health/ready"),
    ("GET", "/metrics"),
    ("GET", "/validate_api_key"),
    ("GET", "/model_params"),
    ("POST", "/v2/forecast"),
    ("POST", "/v2/cross_validation"),
    ("POST", "/v2/anomaly_detection"),
    ("GET", "/v2"),
    ("GET", "/v2/health/live"),
    ("GET", "/v2/health/ready"),
    ("POST", "/v2/repository/index"),
    ("GET", "/v2/models/{model}/versions/{version}"),
    ("GET", "/v2/models/{model}"),
    ("GET", "/v2/models/{model}/versions/{version}/ready"),
    ("GET", "/v2/models/{model}/ready"),
    ("POST", "/v2/models/{model}/versions/{version}/infer"),
    ("POST", "/v2/models/{model}/infer"),
    ("GET", "/ping"),
    ("GET", "/version"),
    ("POST", "/invocations"),
]


NOTHING_TO_BREAK = {
    *("/v1/models", "/v1/models/{model}", "/v1/jobs", "/v1/jobs/{job}", "/v1/jobs/{job}/runs/{key}"),
    *("/health/live", "/health/ready", "/metrics", "/v1/streams"),
    *("/validate_api_key", "/v2", "/v2/health/live", "/v2/health/ready", "/v2/repository/index"),
    *("/v2/models/{model}", "/v2/models/{model}/versions/{version}"),
    *("/v2/models/{model}/ready", "/v2/models/{model}/versions/{version}/ready"),
    *("/ping", "/version"),
}
"""They take neither a body nor parameters but names, and any text may be one."""


def test_every_documented_route_is_tried(document: dict[str, Any]) -> None:
    assert [(method.upper(), path) for path, item in document["paths"].items() for method in item] == ROUTES


LONGER_THAN_A_SCHEMA_CAN_SAY = [positive_data_acceptance]
"""A history can be well formed and still too short for its model."""


def hold(strategy: st.SearchStrategy[Case], examples: int) -> None:
    """Send what is drawn, and hold the answers to the document."""

    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(strategy)
    def check(case: Case) -> None:
        case.call_and_validate(excluded_checks=LONGER_THAN_A_SCHEMA_CAN_SAY)

    check()


def _name_known_columns(series: list[dict[str, Any]], covariates: CovariatesSpec) -> None:
    """Give the columns that were made up the names of those the model takes."""
    known = {
        "past": covariates.past,
        "future": covariates.future,
        "static": [static.name for static in covariates.static],
    }
    for one in series:
        for kind, names in known.items():
            if one.get(kind):
                one[kind] = dict(zip(names, one[kind].values(), strict=False))


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_answers_conform_to_the_document_and_none_is_a_5xx(api_schema: BaseSchema, method: str, path: str) -> None:
    hold(api_schema[path][method].as_strategy(), 25)


CAN_BE_BROKEN = [(method, path) for method, path in ROUTES if path not in NOTHING_TO_BREAK]


@pytest.mark.parametrize(("method", "path"), CAN_BE_BROKEN)
def test_requests_that_break_the_document_are_refused_as_it_says(
    api_schema: BaseSchema, method: str, path: str
) -> None:
    examples = 40 if path == "/v1/forecast" else 15
    hold(api_schema[path][method].as_strategy(generation_mode=GenerationMode.NEGATIVE), examples)


def test_requests_to_real_models_are_answered_or_refused_as_it_says(
    api_schema: BaseSchema, forecasters: dict[str, Forecaster]
) -> None:
    """Names made up at random find no model: here the document's requests meet the ones that are there."""

    @st.composite
    def cases(draw: st.DrawFn) -> Case:
        case = draw(api_schema["/v1/forecast"]["POST"].as_strategy())
        case.body["model"] = draw(st.sampled_from(sorted(forecasters)))
        _name_known_columns(case.body["series"], forecasters[case.body["model"]].spec.covariates)
        return case

    hold(cases(), 60)


def test_observations_of_real_models_are_taken_in_or_refused_as_it_says(
    api_schema: BaseSchema, forecasters: dict[str, Forecaster]
) -> None:
    @st.composite
    def cases(draw: st.DrawFn) -> Case:
        case = draw(api_schema["/v1/observe"]["POST"].as_strategy())
        case.body["model"] = draw(st.sampled_from(sorted(forecasters)))
        _name_known_columns(case.body["observations"], forecasters[case.body["model"]].spec.covariates)
        return case

    hold(cases(), 60)


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("/v2/forecast", {"freq": "h"}),
        ("/v2/cross_validation", {"freq": "h"}),
        ("/v2/anomaly_detection", {"model": "pump", "freq": "h"}),
        ("/v2/models/{model}/infer", {}),
        ("/invocations", {}),
    ],
)
def test_requests_of_other_protocols_to_real_models_are_answered_or_refused_as_it_says(
    api_schema: BaseSchema, path: str, asked: dict[str, str]
) -> None:
    """The document's requests, with the name of a model that is there."""

    @st.composite
    def cases(draw: st.DrawFn) -> Case:
        case = draw(api_schema[path]["POST"].as_strategy())
        if isinstance(case.body, dict):
            case.body |= asked
        if "{model}" in path:
            case.path_parameters = {"model": "pump"}
        elif path == "/invocations":
            case.query = {"model": "pump"}
        return case

    hold(cases(), 25)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/models/{model}/series"),
        ("GET", "/v1/models/{model}/series/{unique_id}/forecast"),
        ("GET", "/v1/jobs/{job}/runs"),
        ("POST", "/v1/jobs/{job}/retrain"),
    ],
)
def test_questions_about_what_the_ledger_knows_are_answered_or_refused_as_it_says(
    api_schema: BaseSchema, method: str, path: str
) -> None:
    """The same with the names of what is in the ledger: only the rest is made up."""
    known = {"model": "pump", "unique_id": "pump-7", "job": "co2"}

    @st.composite
    def cases(draw: st.DrawFn) -> Case:
        case = draw(api_schema[path][method].as_strategy())
        case.path_parameters = {name: known[name] for name in case.path_parameters}
        return case

    hold(cases(), 25)
