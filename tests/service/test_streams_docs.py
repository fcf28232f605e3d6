"""docs/streams.md is held to what the service does."""

import re
from pathlib import Path

import numpy as np
import pytest

from forecasting.spec import RecurrentSpec, RidgeSpec
from forecasting.stream import Streams
from service.routes import streams as routes
from service.settings import ServiceSettings
from service.streams.messages import StreamAnswer, StreamObservation
from tests.service.conftest import Publish, Serve, build_forecaster

TEXT = (Path(__file__).parents[2] / "docs" / "streams.md").read_text()


def test_the_command_works_as_it_is_printed(publish: Publish, serve: Serve, tmp_path: Path) -> None:
    publish(build_forecaster("co2", "W-SAT", RidgeSpec(input_size=2)))
    (body,) = re.findall(r"-d '(.*?)'", TEXT, re.DOTALL)
    with serve(home=tmp_path / "home") as client:
        answer = client.post("/v1/observe", content=body, headers={"content-type": "application/json"})
    shown = StreamAnswer.model_validate_json(answer.content)
    assert [(one.unique_id, one.status) for one in shown.forecasts] == [
        ("mauna-loa", "ok"),
        ("south-pole", "degraded"),
    ]
    assert shown.refused == 0


def test_every_field_of_an_observation_is_explained() -> None:
    assert re.findall(r"^\| `(\w+)` \|", TEXT, re.MULTILINE) == list(StreamObservation.model_fields)


@pytest.mark.parametrize("name", [name for name in ServiceSettings.model_fields if name.startswith("stream_")])
def test_settings_that_are_named_exist_and_bounds_are_named(name: str) -> None:
    named = set(re.findall(r"HINDCAST_(STREAM_\w+)", TEXT))
    assert {one.lower() for one in named} <= set(ServiceSettings.model_fields)
    if name.endswith(("bytes", "rewind", "gap", "seconds", "ledger")) and name != "stream_message_bytes":
        assert name.upper() in named


def test_every_code_a_socket_is_closed_with_is_listed() -> None:
    codes = (routes.GOING_AWAY, routes.NOT_TEXT, routes.TOO_LARGE, routes.RESTARTING, routes.TRY_LATER)
    assert all(f" {code} " in TEXT for code in codes)


def test_the_memory_of_a_series_is_what_is_stated() -> None:
    network = RecurrentSpec(kind="lstm", input_size=96, hidden_size=64)
    streams = Streams(build_forecaster("pump", "h", network, horizon=24), capacity=1)
    (stated,) = re.findall(r"takes ([\d,]+) bytes a row", TEXT)
    assert streams.bytes_each == int(stated.replace(",", ""))
    states = 3 * 4 * (2 * 64 + 6)
    assert 0 < streams.bytes_each - 8 * 192 - states < 200
    assert np.dtype(streams.layout.dtype).itemsize == streams.bytes_each
