"""What asks `mlflow models serve` may ask the service: both are asked the same, with MLflow's own client."""

import asyncio
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import mlflow.pyfunc
import numpy as np
import pandas as pd
import pytest
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mlflow.pyfunc import scoring_server
from mlflow.pyfunc.scoring_server.client import ScoringServerClient
from mlflow.version import VERSION

from forecasting.artifact import save_artifact
from forecasting.forecaster import Forecaster
from forecasting.mlflow_registry import _signature
from forecasting.spec import CovariatesSpec, MLPSpec, StaticSpec
from tests.service.conftest import Publish, Serve, build_forecaster

HOURS = pd.date_range("2024-01-01", periods=30, freq="h")
DAYS = pd.date_range("2024-01-01", periods=10, freq="D")


def mlflow_app(forecaster: Forecaster, folder: Path) -> FastAPI:
    """Return the very application that `mlflow models serve` runs."""
    artifact, model = folder / "artifact", folder / "model"
    save_artifact(forecaster, artifact)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*input example was not provided.*")
        mlflow.pyfunc.save_model(
            model,
            loader_module="forecasting.mlflow_registry",
            data_path=str(artifact),
            signature=_signature(artifact),
            pip_requirements=[],
        )
    return scoring_server.init(mlflow.pyfunc.load_model(str(model)))


def post(app: FastAPI, body: Any, content_type: str = "application/json") -> httpx.Response:
    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://mlflow") as client:
            content = body if isinstance(body, str) else json.dumps(body)
            return await client.post("/invocations", content=content, headers={"content-type": content_type})

    return asyncio.run(ask())


def frame(names: str = "ba", ds: pd.DatetimeIndex = HOURS) -> pd.DataFrame:
    """Return series that are out of order, each with a gap."""
    series = [
        pd.DataFrame({"unique_id": name, "ds": ds, "y": (10 + i + np.sin(np.arange(len(ds)))).round(6)})
        for i, name in enumerate(names)
    ]
    return pd.concat(series).sort_values(["ds", "y"]).drop(index=len(ds) - 4).reset_index(drop=True)


def split(frame: pd.DataFrame) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(frame.to_json(orient="split", date_format="iso", index=False))
    return {"columns": content["columns"], "data": content["data"]}


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [dict(zip(split(frame)["columns"], row, strict=True)) for row in split(frame)["data"]]


@pytest.fixture(scope="module")
def pump() -> Forecaster:
    return build_forecaster("pump", "h")


@pytest.fixture(scope="module")
def theirs(pump: Forecaster, tmp_path_factory: pytest.TempPathFactory) -> FastAPI:
    return mlflow_app(pump, tmp_path_factory.mktemp("mlflow"))


@pytest.fixture
def ours(pump: Forecaster, publish: Publish, serve: Serve) -> Iterator[httpx.Client]:
    publish(pump)
    with serve() as client:
        yield client


def test_every_form_of_a_frame_is_answered_as_mlflow_answers_it(theirs: FastAPI, ours: httpx.Client) -> None:
    sent = frame()
    columns = {name: [record[name] for record in records(sent)] for name in sent}
    forms = ({"dataframe_split": split(sent)}, {"dataframe_records": records(sent)}, {"inputs": columns})
    for body in forms:
        answer, expected = ours.post("/invocations", json=body), post(theirs, body)
        assert answer.status_code == expected.status_code == 200, (answer.text, expected.text)
        agree(answer.json(), expected.json())
    answer = ours.post("/invocations", json={"instances": records(sent)})
    agree(answer.json(), expected.json())


def agree(answer: dict[str, Any], expected: dict[str, Any]) -> None:
    assert answer.keys() == expected.keys() == {"predictions"}
    frames = [pd.DataFrame(one["predictions"]) for one in (answer, expected)]
    pd.testing.assert_frame_equal(*frames, rtol=1e-9)


def test_levels_are_parameters(theirs: FastAPI, ours: httpx.Client) -> None:
    body = {"dataframe_split": split(frame()), "params": {"level": [50.0]}}
    answer = ours.post("/invocations", json=body).json()
    agree(answer, post(theirs, body).json())
    assert list(answer["predictions"][0])[-3:] == ["mean", "lo-50", "hi-50"]


def test_covariates_and_dates_are_answered_as_mlflow_answers_them(
    publish: Publish, serve: Serve, tmp_path: Path
) -> None:
    statics = (StaticSpec(name="unique_id", categories=("a", "b")), StaticSpec(name="site", categories=("north",)))
    covariates = CovariatesSpec(past=("ambient",), future=("setpoint",), static=statics, calendar=("weekday",))
    boiler = build_forecaster("boiler", "D", MLPSpec(input_size=6, hidden_size=8), covariates=covariates)
    publish(boiler)
    sent = frame("ab", DAYS).assign(ambient=3.0, setpoint=np.arange(18.0), site="north")
    ahead = pd.DataFrame({"ds": pd.date_range(DAYS[-1], periods=5)[1:], "setpoint": [7.0, 8.0, 9.0, 9.5]})
    sent = pd.concat([sent, *(ahead.assign(unique_id=name, site="north") for name in "ab")])
    body = {"dataframe_records": records(sent)}
    with serve() as client:
        answer = client.post("/invocations", json=body)
        agree(answer.json(), post(mlflow_app(boiler, tmp_path), body).json())
        twice = {"dataframe_records": records(sent.assign(site=["north", *["south"] * (len(sent) - 1)]))}
        assert "has two names in a static column" in client.post("/invocations", json=twice).json()["message"]
        without = {"dataframe_records": records(sent.drop(columns="setpoint").dropna(subset="y"))}
        told = client.post("/invocations", json=without).json()["degraded"]
    assert told == dict.fromkeys("ab", "future 'setpoint' is missing")


def test_mlflows_client_finds_what_it_expects(ours: httpx.Client) -> None:
    client = ScoringServerClient("127.0.0.1", ours.base_url.port)
    client.ping()
    assert client.get_version() == VERSION
    predictions = client.invoke(frame(), params={"level": [80.0]}).get_predictions()
    assert list(predictions) == ["unique_id", "cutoff", "ds", "mean", "lo-80", "hi-80"]
    assert len(predictions) == 8
    assert ours.get("/health").text == ours.get("/ping").text == "\n"


def test_csv_is_answered_like_json(ours: httpx.Client) -> None:
    """MLflow's own server cannot read timestamps from CSV."""
    sent = frame()
    sent.loc[40, "y"] = np.nan
    as_csv = ours.post("/invocations", content=sent.to_csv(), headers={"content-type": "text/csv"})
    as_json = ours.post("/invocations", json={"dataframe_split": split(sent)})
    assert as_csv.status_code == 200, as_csv.text
    assert as_csv.json() == as_json.json()


def test_ping_says_404_while_nothing_can_answer(serve: Serve) -> None:
    with serve(ready=False) as client:
        assert client.get("/ping").status_code == 404
        assert client.post("/invocations", json={}).status_code == 503


def test_one_of_several_models_is_named_or_set(pump: Forecaster, publish: Publish, serve: Serve) -> None:
    publish(pump)
    publish(build_forecaster("valve", "h"))
    body = {"dataframe_split": split(frame())}
    with serve() as client:
        refused = client.post("/invocations", json=body)
        assert refused.status_code == 400
        assert refused.json() == {
            "error_code": "BAD_REQUEST",
            "message": "2 models are here: name one as /invocations?model=NAME, or set HINDCAST_DEFAULT_MODEL; "
            "there are pump (h), valve (h)",
        }
        named = client.post("/invocations?model=pump", json=body)
        unknown = client.post("/invocations?model=nobody", json=body)
        assert (unknown.status_code, unknown.json()["error_code"]) == (404, "RESOURCE_DOES_NOT_EXIST")
    with serve(default_model="pump") as client:
        assert client.post("/invocations", json=body).json() == named.json()


NAMES = {"unique_id": ["a"], "ds": ["2024-01-01"], "y": [1.0]}
REFUSED = [
    ({}, "send exactly one of dataframe_split, dataframe_records, instances, inputs; got none"),
    (
        {"inputs": NAMES, "instances": []},
        "send exactly one of dataframe_split, dataframe_records, instances, inputs",
    ),
    ({"inputs": {"unique_id": ["a"]}}, "the frame has no column ds, y; it needs unique_id, ds, y"),
    ({"inputs": {**NAMES, "y": []}}, "columns differ in length: {'unique_id': 1, 'ds': 1, 'y': 0}"),
    ({"inputs": {**NAMES, "y": ["1"]}}, "y.0 of series 'a': Input should be a valid number"),
    ({"inputs": {**NAMES, "ds": ["soon"]}}, "ds.0 of series 'a': String should match pattern"),
    ({"inputs": {**NAMES, "unique_id": [7]}}, "unique_id of row 0 is no name"),
    ({"inputs": {**NAMES, "y": [None]}}, "series 'a' has no observed value: every y is null"),
    ({"instances": []}, "the frame has no column unique_id, ds, y"),
    ({"dataframe_split": {"columns": ["y", "y"], "data": [[1, 2]]}}, "the frame has the column 'y' twice"),
    ({"dataframe_split": {"columns": ["y"], "data": [[1, 2]]}}, "row 0 has 2 values, and there are 1 columns"),
    ({"inputs": NAMES, "params": {"level": "all"}}, "params.level: Input should be a valid array"),
]


def test_a_frame_that_is_none_is_refused_with_the_reason(ours: httpx.Client) -> None:
    for body, reason in REFUSED:
        answer = ours.post("/invocations", json=body)
        assert (answer.status_code, answer.json()["error_code"]) == (400, "BAD_REQUEST")
        assert answer.json()["message"].startswith(reason), answer.text


def test_a_short_history_is_answered_by_the_seasonal_naive_and_that_is_said(ours: httpx.Client) -> None:
    answer = ours.post("/invocations", json={"inputs": NAMES}).json()
    assert answer["predictions"][0]["mean"] == 1.0
    assert answer["degraded"]["a"].startswith(
        "series 'a' has 1 points; this model needs 12 (input_size): answered by"
    )


ANYTHING = st.one_of(st.none(), st.floats(), st.integers(-(10**400), 10**400), st.text(max_size=3), st.booleans())
COLUMN = st.one_of(
    st.lists(ANYTHING, max_size=14),
    st.just([1.5] * 12),
    st.just(["a"] * 12),
    st.just([f"2024-01-01T{hour:02}:00" for hour in range(12)]),
)
FRAMES = st.fixed_dictionaries({}, optional={"unique_id": COLUMN, "ds": COLUMN, "y": COLUMN, "\x00": COLUMN})


@st.composite
def hostile(draw: st.DrawFn) -> dict[str, Any]:
    columns = draw(FRAMES)
    rows = [list(row) for row in zip(*columns.values(), strict=False)]
    forms = {
        "inputs": columns,
        "instances": [dict(zip(columns, row, strict=True)) for row in rows],
        "dataframe_records": [draw(FRAMES)],
        "dataframe_split": {"columns": [*columns], "data": [*rows, draw(st.lists(ANYTHING, max_size=3))]},
    }
    form = draw(st.sampled_from(sorted(forms)))
    return {form: forms[form], "params": draw(st.one_of(st.none(), st.just({"level": [80]}), ANYTHING))}


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(hostile(), st.booleans())
def test_no_request_breaks_the_service(client: httpx.Client, body: dict[str, Any], as_csv: bool) -> None:
    content = json.dumps(body)
    if as_csv:
        content = "\n".join(",".join(map(str, row)) for row in zip(*body.get("inputs", {}).values(), strict=False))
    kind = {"content-type": "text/csv" if as_csv else "application/json"}
    answer = client.post("/invocations?model=pump", content=content.encode(), headers=kind)
    assert answer.status_code in (200, 400), answer.text
    assert answer.status_code == 200 or set(answer.json()) == {"error_code", "message"}


def test_bytes_that_are_no_frame_are_refused(ours: httpx.Client) -> None:
    header = b"unique_id,ds,y\n"
    csv_bodies = (
        b"",
        b"\xff",
        b"\x00",
        header,
        header + b"a,2024-01-01,x",
        header + b"a,2024-01-01",
        b'"' * 200_000,
    )
    for body in csv_bodies:
        assert ours.post("/invocations", content=body, headers={"content-type": "text/csv"}).status_code == 400
    for body in (b"", b"[]", b"{", b"\xff", b'{"inputs": ' + b"[" * 5000, b'{"inputs": {"y": [1e999]}}'):
        answer = ours.post("/invocations", content=body, headers={"content-type": "application/json"})
        assert answer.status_code == 400
    assert ours.post("/invocations", content=b"", headers={"content-type": "text/plain"}).status_code == 415
