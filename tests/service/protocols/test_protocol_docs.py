"""docs/protocols.md is held to what the service does."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from forecasting.spec import MLPSpec
from service.protocols.open_inference import OUTPUTS
from tests.service.conftest import Publish, Serve, build_forecaster
from tests.service.test_openapi import ROUTES

TEXT = (Path(__file__).parents[3] / "docs" / "protocols.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


def test_every_example_works_as_it_is_printed(publish: Publish, serve: Serve) -> None:
    publish(build_forecaster("pump", "h", MLPSpec(input_size=24, hidden_size=8)))
    with serve() as client:
        address = f"127.0.0.1:{client.base_url.port}"
        timegpt, triton, mlflow = (run(example, address) for example in EXAMPLES)
    for name in ("ahead", "windows", "anomalies", "named"):
        assert np.isfinite(timegpt[name]["TimeGPT"]).all()
    assert np.isfinite(triton["result"].as_numpy("quantiles")).all()
    assert list(mlflow["forecast"]) == ["unique_id", "cutoff", "ds", "mean", "lo-80", "hi-80"]


def run(example: str, address: str) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(example.replace("127.0.0.1:8000", address), names)  # noqa: S102  (it is ours)
    return names


def test_every_address_of_a_protocol_is_told() -> None:
    own = ("/v1/", "/health/", "/metrics")
    versioned = {path.replace("/versions/{version}", "") for _, path in ROUTES}
    for path in versioned:
        if not path.startswith(own) and path not in SDK_ONLY:
            assert f"{path}`" in TEXT or f"`{path.rpartition('}')[2]}`" in TEXT, path


SDK_ONLY = {"/model_params", "/validate_api_key", "/v2/forecast", "/v2/cross_validation", "/v2/anomaly_detection"}
"""Nobody types these."""


@pytest.mark.parametrize("name", OUTPUTS)
def test_every_output_is_told(name: str) -> None:
    assert f"`{name}`" in TEXT
