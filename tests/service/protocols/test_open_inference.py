"""Triton's published HTTP client against a service that runs."""

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tritonclient.utils import InferenceServerException

from forecasting.forecaster import Forecaster
from ledger.ledger import open_ledger
from service.protocols.open_inference import OUTPUTS
from tests.service.conftest import Publish, Serve, build_forecaster, wait_until

INPUT_SIZE, HORIZON = 24, 4


@pytest.fixture(scope="module")
def client_of_triton(client: httpx.Client) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(str(client.base_url).removeprefix("http://")) as found:
        yield found


def numbers(name: str, values: np.ndarray, *, binary: bool = True) -> triton.InferInput:
    tensor = triton.InferInput(name, list(values.shape), "FP64" if values.dtype == np.float64 else "FP32")
    return tensor.set_data_from_numpy(values, binary_data=binary)


def texts(name: str, values: list[str], *, binary: bool = True) -> triton.InferInput:
    tensor = triton.InferInput(name, [len(values)], "BYTES")
    return tensor.set_data_from_numpy(np.array([text.encode() for text in values], object), binary_data=binary)


def histories(n_series: int = 3, length: int = 30) -> np.ndarray:
    y_BL = np.random.default_rng(7).normal(20, 3, (n_series, length))
    y_BL[0, length // 2] = np.nan
    return y_BL


def test_health_and_metadata_are_told(client_of_triton: triton.InferenceServerClient) -> None:
    assert client_of_triton.is_server_live()
    assert client_of_triton.is_server_ready()
    assert client_of_triton.is_model_ready("pump")
    assert client_of_triton.is_model_ready("pump", "1")
    assert not client_of_triton.is_model_ready("pump", "2")
    assert not client_of_triton.is_model_ready("nobody")
    assert client_of_triton.get_server_metadata()["extensions"] == ["binary_tensor_data", "model_repository"]
    index = client_of_triton.get_model_repository_index()
    assert {"name": "pump", "version": "1", "state": "READY", "reason": ""} in index


def test_metadata_describes_every_tensor(client_of_triton: triton.InferenceServerClient) -> None:
    told = client_of_triton.get_model_metadata("boiler", "1")
    assert (told["name"], told["versions"], told["platform"]) == ("boiler", ["1"], "hindcast")
    inputs = {tensor["name"]: (tensor["datatype"], tensor["shape"]) for tensor in told["inputs"]}
    assert inputs == {
        "y": ("FP64", [-1, -1]),
        "past.ambient": ("FP64", [-1, -1]),
        "past.load": ("FP64", [-1, -1]),
        "future.setpoint": ("FP64", [-1, -1]),
        "unique_id": ("BYTES", [-1]),
        "start": ("BYTES", [-1]),
        "static.site": ("BYTES", [-1]),
    }
    assert [tensor["name"] for tensor in told["outputs"]] == list(OUTPUTS)
    assert told["outputs"][0] == {"name": "quantiles", "datatype": "FP64", "shape": [-1, HORIZON, 13]}


@pytest.mark.parametrize("binary", [True, False])
def test_tensors_in_are_quantiles_out(
    client_of_triton: triton.InferenceServerClient, forecasters: dict[str, Forecaster], binary: bool
) -> None:
    y_BL, pump = histories(), forecasters["pump"]
    inputs = [numbers("y", y_BL, binary=binary), texts("unique_id", ["a", "b", "zürich"], binary=binary)]
    outputs = [triton.InferRequestedOutput(name, binary_data=binary) for name in OUTPUTS]
    result = client_of_triton.infer("pump", inputs, outputs=outputs, request_id="mine")
    expected_BHQ = pump.predict(y_BL)
    np.testing.assert_allclose(result.as_numpy("quantiles"), expected_BHQ, rtol=1e-6)
    assert result.as_numpy("mean").shape == (3, HORIZON)
    np.testing.assert_array_equal(result.as_numpy("probabilities"), pump.spec.quantiles)
    assert [bytes(text) if binary else text.encode() for text in result.as_numpy("status")] == [b"ok"] * 3
    told = result.get_response()
    assert (told["model_name"], told["model_version"], told["id"]) == ("pump", "1", "mine")


def test_all_outputs_come_where_none_is_asked_for(client_of_triton: triton.InferenceServerClient) -> None:
    result = client_of_triton.infer("pump", [numbers("y", histories().astype(np.float32))], model_version="1")
    assert [output["name"] for output in result.get_response()["outputs"]] == list(OUTPUTS)
    assert np.isfinite(result.as_numpy("quantiles")).all()


def test_covariates_are_tensors_too(client_of_triton: triton.InferenceServerClient, client: httpx.Client) -> None:
    y_BL, wave_BT = np.nan_to_num(histories(2, 6)), np.nan_to_num(histories(2, 10))
    inputs = [
        numbers("y", y_BL),
        numbers("past.ambient", wave_BT[:, :6].copy()),
        numbers("past.load", wave_BT[:, 4:].copy()),
        numbers("future.setpoint", wave_BT),
        texts("unique_id", ["boiler-1", "boiler-2"]),
        texts("start", ["2024-01-01T00:00", "2024-06-01T00:00"]),
        texts("static.site", ["north", "south"]),
    ]
    result = client_of_triton.infer("boiler", inputs)
    series = [
        {
            "unique_id": f"boiler-{b + 1}",
            "start": start,
            "y": y_BL[b].tolist(),
            "past": {"ambient": wave_BT[b, :6].tolist(), "load": wave_BT[b, 4:].tolist()},
            "future": {"setpoint": wave_BT[b].tolist()},
            "static": {"site": site},
        }
        for b, (start, site) in enumerate([("2024-01-01T00:00", "north"), ("2024-06-01T00:00", "south")])
    ]
    ours = client.post("/v1/forecast", json={"model": "boiler", "series": series}).json()["forecasts"]
    np.testing.assert_allclose(result.as_numpy("mean"), [one["mean"] for one in ours], rtol=1e-6)
    assert result.as_numpy("cutoff").tolist() == [one["cutoff"].encode() for one in ours]


@pytest.mark.parametrize("packed", ["gzip", "deflate"])
def test_answers_are_compressed_for_who_asks(
    client_of_triton: triton.InferenceServerClient, client: httpx.Client, packed: str
) -> None:
    y_BL = histories(20)
    result = client_of_triton.infer("pump", [numbers("y", y_BL)], response_compression_algorithm=packed)
    plain = client_of_triton.infer("pump", [numbers("y", y_BL)])
    np.testing.assert_allclose(result.as_numpy("quantiles"), plain.as_numpy("quantiles"), rtol=1e-6)
    answer = infer(client, {"inputs": [tensor(y_BL)]}, headers={"accept-encoding": packed})
    assert answer.headers["content-encoding"] == packed


@pytest.mark.parametrize("packed", ["gzip", "deflate"])
def test_requests_may_be_compressed(client_of_triton: triton.InferenceServerClient, packed: str) -> None:
    y_BL = histories(20)
    result = client_of_triton.infer("pump", [numbers("y", y_BL)], request_compression_algorithm=packed)
    plain = client_of_triton.infer("pump", [numbers("y", y_BL)])
    np.testing.assert_allclose(result.as_numpy("quantiles"), plain.as_numpy("quantiles"), rtol=1e-6)


def test_errors_are_told_as_the_client_expects_them(client_of_triton: triton.InferenceServerClient) -> None:
    asked: list[tuple[str, list[Any], str, str]] = [
        ("nobody", [numbers("y", histories())], "404", "no model is named 'nobody'"),
        (
            "pump",
            [numbers("y", histories() * np.nan)],
            "400",
            "series '#0' has no observed value: every y is null",
        ),
        (
            "pump",
            [numbers("x", histories())],
            "400",
            "there is no input 'x'; model 'pump' takes y, unique_id, start",
        ),
        ("pump", [texts("y", ["a"])], "400", "input 'y' has datatype 'BYTES'; expected FP64 or FP32"),
        ("pump", [numbers("y", histories()[0])], "400", "input 'y' has 1 dimensions; expected [series, steps]"),
        ("pump", [numbers("y", histories(60))], "400", "60 series in one request; expected 1 to 50"),
        (
            "boiler",
            [numbers("y", histories())],
            "400",
            "model 'boiler' looks at the time of each step: send 'start'",
        ),
    ]
    for model, inputs, status, reason in asked:
        with pytest.raises(InferenceServerException) as caught:
            client_of_triton.infer(model, inputs)
        assert caught.value.status() == status
        assert caught.value.message().startswith(reason)


def test_a_short_history_is_answered_by_the_seasonal_naive_and_that_is_said(
    client_of_triton: triton.InferenceServerClient,
) -> None:
    result = client_of_triton.infer("pump", [numbers("y", histories(length=5))])
    assert set(result.as_numpy("status")) == {b"fallback"}
    assert b"has 5 points; this model needs 24" in result.as_numpy("reason")[0]


def test_nothing_is_ready_before_its_models_are(serve: Serve, publish: Publish) -> None:
    with serve(ready=False) as client:
        found = triton.InferenceServerClient(str(client.base_url).removeprefix("http://"))
        assert found.is_server_live()
        assert not found.is_server_ready()
        assert client.get("/v2/health/ready").json() == {"ready": False, "name": None}
        publish(build_forecaster("pump"))
        wait_until(found.is_server_ready)


def test_only_forecasts_with_names_and_timestamps_are_kept(publish: Publish, serve: Serve, tmp_path: Path) -> None:
    publish(build_forecaster("pump"))
    named, dated = texts("unique_id", ["kept"]), texts("start", ["2024-01-01"])
    y = numbers("y", histories(1, 12))
    with serve(ledger_url=f"sqlite:///{tmp_path}/ledger.db", home=tmp_path) as client:
        found = triton.InferenceServerClient(str(client.base_url).removeprefix("http://"))
        found.infer("pump", [y, texts("unique_id", ["unkept"])])
        found.infer("pump", [y, dated])
        found.infer("pump", [y, texts("unique_id", ["tried"]), dated], parameters={"record": False})
        found.infer("pump", [y, named, dated])
        with closing(open_ledger(f"sqlite:///{tmp_path}/ledger.db")) as ledger:
            wait_until(lambda: bool(ledger.forecasts.select()))
            assert [one.unique_id for one in ledger.forecasts.select()] == ["kept"]


def tensor(values: np.ndarray, **more: Any) -> dict[str, Any]:
    data = [None if np.isnan(value) else value for value in values.ravel().tolist()]
    return {"name": "y", "datatype": "FP64", "shape": list(values.shape), "data": data, **more}


def infer(client: httpx.Client, body: dict[str, Any] | bytes, **more: Any) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return client.post("/v2/models/pump/infer", content=content, **more)


def test_data_may_be_in_rows_and_null_is_a_missing_value(client: httpx.Client) -> None:
    y_BL = histories()
    flat = tensor(y_BL)
    rows = [flat["data"][i : i + 30] for i in range(0, 90, 30)]
    answers = [infer(client, {"inputs": [one]}) for one in (flat, flat | {"data": rows})]
    assert answers[0].status_code == 200
    assert answers[0].json() == answers[1].json()


def test_a_request_whose_parts_contradict_one_another_is_refused(client: httpx.Client) -> None:
    sound = tensor(histories())
    size = {"parameters": {"binary_data_size": 720}}
    asked: list[tuple[dict[str, Any], str]] = [
        ({"inputs": [sound, sound]}, "input 'y' is there twice"),
        ({"inputs": [sound | {"shape": [3, 29]}]}, "input 'y' has shape [3, 29] and 90 values"),
        ({"inputs": [sound | {"shape": [2**31 - 1] * 2}]}, "input 'y' has shape [2147483647, 2147483647]"),
        ({"inputs": [sound | {"shape": [2**31 - 1, 0], "data": []}]}, "2147483647 series in one request"),
        ({"inputs": [sound | {"shape": [10**30, 0]}]}, "inputs.0.shape.0: Input should be less than 2147483648"),
        ({"inputs": [sound | {"data": ["1"] * 90}]}, "data[0] of input 'y': Input should be a valid number"),
        ({"inputs": [sound | {"datatype": "INT8"}]}, "input 'y' has datatype 'INT8'; expected FP64 or FP32"),
        ({"inputs": [sound | size]}, "the inputs take 720 bytes of binary data, and 0 were sent"),
        ({"inputs": [sound], "outputs": [{"name": "x"}]}, "there is no output 'x'; there are quantiles, mean"),
        (
            {"inputs": [sound], "outputs": [{"name": "mean", "parameters": {"classification": 3}}]},
            "classification of output 'mean' is not supported",
        ),
        (
            {"inputs": [sound | {"parameters": {"shared_memory_region": "mine"}}]},
            "input 'y' is in shared memory, which is not supported",
        ),
        ({"inputs": []}, "inputs: List should have at least 1 item"),
    ]
    for body, reason in asked:
        answer = infer(client, body)
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"].startswith(reason)


def test_every_byte_must_belong_to_a_tensor(client: httpx.Client) -> None:
    y = {"name": "y", "datatype": "FP64", "shape": [1, 24], "parameters": {"binary_data_size": 192}}
    text = json.dumps({"inputs": [y]}).encode()
    length = {"inference-header-content-length": str(len(text))}
    for behind in (b"", bytes(191), bytes(193)):
        answer = infer(client, text + behind, headers=length)
        assert answer.status_code == 400
        reason = f"the inputs take 192 bytes of binary data, and {len(behind)} were sent"
        assert answer.json()["error"].startswith(reason)
    infinite = np.full(24, np.inf).tobytes()
    told = infer(client, text + infinite, headers=length).json()["error"]
    assert told == "input 'y' holds an infinite value; NaN is a missing one"


def test_names_must_be_names_and_starts_timestamps(client: httpx.Client) -> None:
    for name, values, reason in (
        ("unique_id", ["a", "a", "b"], "a series is there twice"),
        ("unique_id", ["a", "", "b"], "unique_id[1] '' is no name"),
        ("unique_id", ["a"], "unique_id is of 1 series, and y of 3"),
        (
            "start",
            ["2024-01-01", "9999-01-01", "soon"],
            "start[1] '9999-01-01' is no timestamp (and 1 more problem)",
        ),
    ):
        texts_sent = {"name": name, "datatype": "BYTES", "shape": [len(values)], "data": values}
        answer = infer(client, {"inputs": [tensor(histories()), texts_sent]})
        assert answer.status_code == 400
        assert answer.json()["error"].startswith(reason)


def test_a_length_that_is_none_is_refused(client: httpx.Client) -> None:
    body = json.dumps({"inputs": [tensor(histories())]}).encode()
    for declared in ("-1", "x", "", "1e3", "99999999", "9" * 4000, "²"):
        answer = infer(client, body, headers=[(b"inference-header-content-length", declared.encode())])
        assert answer.status_code == 400, declared
        assert answer.json()["error"].startswith("inference-header-content-length is")
    assert infer(client, body, headers={"inference-header-content-length": "10"}).status_code == 400


SIZES = st.one_of(st.none(), st.integers(-5, 800), st.just(10**30), st.text(max_size=2), st.booleans())
DATA = st.recursive(
    st.one_of(st.none(), st.floats(), st.integers(-(10**400), 10**400), st.text(max_size=3)),
    lambda inner: st.lists(inner, max_size=30),
    max_leaves=40,
)


@st.composite
def hostile(draw: st.DrawFn) -> tuple[bytes, str | None]:
    inputs = [
        {
            "name": draw(st.sampled_from(["y", "unique_id", "start", "past.x", "static.", "\x00"])),
            "datatype": draw(st.sampled_from(["FP64", "FP32", "BYTES", "BOOL", ""])),
            "shape": draw(st.lists(st.sampled_from([0, 1, 2, 24, 30, 2**31 - 1, 10**25, -1]), max_size=3)),
            "data": draw(st.one_of(DATA, st.just([1.0] * 24), st.just([1e308] * 30))),
            "parameters": {"binary_data_size": draw(SIZES)},
        }
        for _ in range(draw(st.integers(0, 3)))
    ]
    text = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": draw(st.booleans())}}).encode()
    behind = draw(st.one_of(st.just(b""), st.binary(max_size=900), st.just(b"\xff" * 192), st.just(bytes(192))))
    declared = draw(st.one_of(st.none(), st.just(str(len(text))), st.integers(-5, 2000).map(str)))
    return text + behind, declared


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(hostile())
def test_no_request_breaks_the_service(client: httpx.Client, sent: tuple[bytes, str | None]) -> None:
    body, declared = sent
    answer = infer(client, body, headers={} if declared is None else {"inference-header-content-length": declared})
    assert answer.status_code in (200, 400), answer.text
    assert answer.status_code == 200 or set(answer.json()) == {"error"}


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(st.binary(min_size=192, max_size=192), st.integers(1, 3))
def test_any_bytes_are_numbers_or_refused(client: httpx.Client, some: bytes, n_series: int) -> None:
    sent = {
        "name": "y",
        "datatype": "FP64",
        "shape": [n_series, 24],
        "parameters": {"binary_data_size": 192 * n_series},
    }
    text = json.dumps({"inputs": [sent]}).encode()
    length = {"inference-header-content-length": str(len(text))}
    answer = infer(client, text + some * n_series, headers=length)
    assert answer.status_code in (200, 400), answer.text
