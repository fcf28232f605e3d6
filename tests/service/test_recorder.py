"""Every answered forecast is kept, whatever the ledger does meanwhile; and what is lost is counted."""

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from forecasting.registry import TAG_DATASET, TAG_TARGET, DirectoryRegistry
from ledger.database import writing
from ledger.forecasts import IssuedForecast
from ledger.ledger import Ledger, open_ledger
from service import recorder as recorder_module
from tests.service.conftest import COVARIATES, Publish, Serve, build_forecaster, wait_until
from tests.service.test_main import Process, start
from tests.service.test_telemetry import sample

__all__ = ["start"]

Request = dict[str, Any]


def request_of(*names: str, **options: object) -> Request:
    series = [
        {"unique_id": name, "start": "2024-01-01", "y": [float(i + len(name)) for i in range(12)]}
        for name in names
    ]
    return {"model": "pump", "series": series, **options}


def ask(client: httpx.Client, request: Request) -> dict[str, Any]:
    answer = client.post("/v1/forecast", json=request)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


@contextmanager
def ledger_in(folder: Path) -> Iterator[Ledger]:
    ledger = open_ledger(f"sqlite:///{folder}/ledger.db")
    yield ledger
    ledger.close()


def find(folder: Path, forecast_id: str) -> list[IssuedForecast]:
    with ledger_in(folder) as ledger:
        return ledger.forecasts.find(forecast_id)


@pytest.fixture
def keep(serve: Serve, tmp_path: Path) -> Callable[..., Any]:
    """Serve with a home, and a ledger in it unless told otherwise."""

    def begin(**settings: object) -> Any:
        return serve(**{"home": tmp_path, "ledger_url": f"sqlite:///{tmp_path}/ledger.db", **settings})

    return begin


def test_an_answer_is_kept_whole_with_what_it_takes_to_compute_it_again(
    publish: Publish, keep: Callable[..., Any], tmp_path: Path
) -> None:
    forecaster = build_forecaster("pump")
    publish(forecaster)
    with keep() as client:
        answer = ask(client, request_of("a", "bb", h=2, level=[80]))
        wait_until(lambda: sample(client, "hindcast_forecasts_kept_total", outcome="written") == 2)
    first, second = find(tmp_path, answer["forecast_id"])
    assert (first.unique_id, second.unique_id, second.position) == ("a", "bb", 1)
    assert (first.model, first.version, first.role, first.dataset) == ("pump", "1", "champion", "pump")
    assert str(first.cutoff) == "2024-01-01T11:00:00.000000"
    assert first.horizon == forecaster.spec.horizon > 2, "the whole horizon, whatever was asked for"
    assert first.quantiles == forecaster.spec.quantiles
    expected_HQ = forecaster.predict(np.stack([first.inputs.y_L, second.inputs.y_L]))[1]
    np.testing.assert_array_equal(second.values_HQ, expected_HQ)
    assert second.inputs.y_L.tolist() == [float(i + 2) for i in range(12)]


def test_covariates_are_kept_as_the_network_was_told_them(
    publish: Publish, keep: Callable[..., Any], tmp_path: Path
) -> None:
    publish(build_forecaster("pump", covariates=COVARIATES))
    series = request_of("boiler-1")["series"][0]
    series |= {"past": {"load": [1.0] * 12}, "future": {"setpoint": [2.0] * 14}, "static": {"site": "north"}}
    with keep() as client:
        answer = ask(client, {"model": "pump", "series": [series]})
    (one,) = find(tmp_path, answer["forecast_id"])
    assert (one.status, one.inputs.has_covariates) == ("degraded", True)
    assert one.reason == answer["forecasts"][0]["reason"]
    assert one.inputs.static == {"unique_id": "boiler-1", "site": "north"}
    np.testing.assert_array_equal(one.inputs.past_LP[:, 1], [1.0] * 12)
    assert np.isnan(one.inputs.past_LP[:, 0]).all()


def test_the_version_says_which_dataset_and_column_it_forecasts(
    publish: Publish, registry: DirectoryRegistry, keep: Callable[..., Any], tmp_path: Path
) -> None:
    version = publish(build_forecaster("pump"))
    registry.annotate("pump", version.version, {TAG_DATASET: "plant", TAG_TARGET: "flow"})
    with keep() as client:
        answer = ask(client, request_of("a"))
    (one,) = find(tmp_path, answer["forecast_id"])
    assert (one.dataset, one.target, one.freq, one.season_length) == ("plant", "flow", "h", 24)


def test_what_is_only_tried_out_is_not_kept(publish: Publish, keep: Callable[..., Any], tmp_path: Path) -> None:
    publish(build_forecaster("pump"))
    with keep() as client:
        tried = ask(client, request_of("a", record=False))
        kept = ask(client, request_of("a"))
    assert find(tmp_path, tried["forecast_id"]) == []
    assert len(find(tmp_path, kept["forecast_id"])) == 1


def test_a_service_told_so_keeps_nothing(publish: Publish, keep: Callable[..., Any], tmp_path: Path) -> None:
    publish(build_forecaster("pump"))
    with keep(record_forecasts=False) as client:
        answer = ask(client, request_of("a"))
    assert find(tmp_path, answer["forecast_id"]) == []


def test_a_forecast_that_is_not_finite_is_kept_as_none(
    publish: Publish, keep: Callable[..., Any], tmp_path: Path
) -> None:
    publish(build_forecaster("pump"))
    series = {"unique_id": "a", "start": "2024-01-01", "y": [(-1) ** i * 1e300 for i in range(12)]}
    with keep() as client:
        answer = ask(client, {"model": "pump", "series": [series]})
    (one,) = find(tmp_path, answer["forecast_id"])
    assert one.status == "degraded"
    assert np.isnan(one.values_HQ).all()


def test_what_a_ledger_that_is_down_cannot_take_waits_in_files_and_is_written_at_the_next_start(
    publish: Publish, keep: Callable[..., Any], tmp_path: Path
) -> None:
    publish(build_forecaster("pump"))
    with keep(ledger_url="postgresql://127.0.0.1:1/none") as client:
        answers = [ask(client, request_of("a", "b")) for _ in range(3)]
        wait_until(lambda: sample(client, "hindcast_forecasts_waiting_bytes", where="file") > 0)
        wait_until(lambda: sample(client, "hindcast_forecasts_waiting_bytes", where="memory") == 0)
    assert list((tmp_path / "unwritten").glob("*.part"))
    with keep() as client:
        wait_until(lambda: sample(client, "hindcast_forecasts_waiting_bytes", where="file") == 0)
    assert [len(find(tmp_path, answer["forecast_id"])) for answer in answers] == [2, 2, 2]
    assert list((tmp_path / "unwritten").glob("*.part")) == []


def test_what_waits_is_written_when_the_ledger_is_back(
    publish: Publish, keep: Callable[..., Any], tmp_path: Path
) -> None:
    publish(build_forecaster("pump"))
    (tmp_path / "ledger.db").mkdir()
    with keep() as client:
        answer = ask(client, request_of("a"))
        wait_until(lambda: sample(client, "hindcast_forecasts_waiting_bytes", where="file") > 0)
        (tmp_path / "ledger.db").rmdir()
        wait_until(lambda: sample(client, "hindcast_forecasts_kept_total", outcome="written") == 1)
    assert len(find(tmp_path, answer["forecast_id"])) == 1


def test_a_ledger_that_hangs_slows_no_answer_and_loses_none(
    publish: Publish, keep: Callable[..., Any], tmp_path: Path
) -> None:
    publish(build_forecaster("pump"))
    with ledger_in(tmp_path) as ledger, keep() as client:
        wait_until(lambda: sample(client, "hindcast_ledger_failing") == 0)
        with writing(ledger.engine):  # whoever else wants to write waits
            began = time.monotonic()
            held = [ask(client, request_of("a", "b")) for _ in range(3)]
            assert time.monotonic() - began < 1
            wait_until(lambda: sample(client, "hindcast_forecasts_waiting_bytes", where="memory") == 0)
            assert sample(client, "hindcast_forecasts_waiting_bytes", where="file") > 0
            assert not sample(client, "hindcast_forecasts_kept_total")
        wait_until(lambda: sample(client, "hindcast_forecasts_waiting_bytes", where="file") == 0)
    assert [len(find(tmp_path, one["forecast_id"])) for one in held] == [2, 2, 2]


def test_files_are_bounded_and_what_is_lost_is_counted(
    publish: Publish, keep: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    publish(build_forecaster("pump"))
    with keep(ledger_url="postgresql://127.0.0.1:1/none", unwritten_bytes=10) as client:
        ask(client, request_of("a", "b"))
        wait_until(lambda: sample(client, "hindcast_forecasts_kept_total", outcome="dropped") == 2)
    assert "2 forecasts are not kept" in caplog.text


def test_memory_is_bounded_and_what_is_lost_is_counted(publish: Publish, keep: Callable[..., Any]) -> None:
    publish(build_forecaster("pump"))
    with keep(record_memory_bytes=1024) as client:
        ask(client, request_of(*"abcdefgh"))
        wait_until(lambda: sample(client, "hindcast_forecasts_kept_total", outcome="dropped") == 8)


def test_an_answer_the_ledger_refuses_takes_no_other_with_it(
    publish: Publish, keep: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder_module, "LINGER", 0.3)
    publish(build_forecaster("pump"))
    with ledger_in(tmp_path) as ledger, writing(ledger.engine) as connection:
        connection.exec_driver_sql(
            "CREATE TRIGGER refuse BEFORE INSERT ON forecasts WHEN NEW.unique_id = 'bad' "
            "BEGIN SELECT RAISE(ABORT, 'refused'); END"
        )
    with keep() as client:
        wait_until(lambda: sample(client, "hindcast_ledger_failing") == 0)
        bad, good = ask(client, request_of("good", "bad")), ask(client, request_of("good"))
        wait_until(lambda: sample(client, "hindcast_forecasts_kept_total", outcome="refused") == 2)
        wait_until(lambda: sample(client, "hindcast_forecasts_kept_total", outcome="written") == 1)
    assert find(tmp_path, bad["forecast_id"]) == []
    assert len(find(tmp_path, good["forecast_id"])) == 1


@pytest.mark.slow
def test_sigterm_loses_nothing(publish: Publish, start: Callable[..., Process], tmp_path: Path) -> None:
    publish(build_forecaster("pump"))
    process = start(HINDCAST_DRAIN_SECONDS="0", HINDCAST_HOME=str(tmp_path))
    wait_until(process.is_ready)
    ids = [ask(process.client, request_of(f"s{i}"))["forecast_id"] for i in range(20)]
    process.popen.send_signal(signal.SIGTERM)
    assert process.popen.wait(timeout=20) == 0
    with ledger_in(tmp_path) as ledger:
        assert all(ledger.forecasts.find(forecast_id) for forecast_id in ids)


@pytest.mark.slow
def test_sigkill_loses_only_what_was_answered_just_then(
    publish: Publish, start: Callable[..., Process], tmp_path: Path
) -> None:
    publish(build_forecaster("pump"))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"postgresql://127.0.0.1:{silent.getsockname()[1]}/ledger"
        process = start(HINDCAST_LEDGER_URL=url, HINDCAST_HOME=str(tmp_path))
        wait_until(process.is_ready)
        ids = [ask(process.client, request_of(f"s{i}"))["forecast_id"] for i in range(5)]
        time.sleep(recorder_module.LINGER + 0.5)
        os.kill(process.popen.pid, signal.SIGKILL)
        process.popen.wait(timeout=20)
    again = start(HINDCAST_HOME=str(tmp_path), HINDCAST_DRAIN_SECONDS="0")
    wait_until(lambda: sample(again.client, "hindcast_forecasts_kept_total", outcome="written") == 5)
    with ledger_in(tmp_path) as ledger:
        assert all(ledger.forecasts.find(forecast_id) for forecast_id in ids)


def test_no_thread_is_left_behind(publish: Publish, keep: Callable[..., Any]) -> None:
    publish(build_forecaster("pump"))
    before = set(threading.enumerate())
    with keep() as client:
        ask(client, request_of("a"))
        assert {"recorder-files", "recorder-ledger", "ledger"} <= {
            t.name for t in set(threading.enumerate()) - before
        }
    wait_until(lambda: not set(threading.enumerate()) - before)
