"""A service under test is a real one: an HTTP server in a thread, a registry in a directory, real artefacts."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path

import httpx
import numpy as np
import pandas as pd
import pytest
import torch
import uvicorn
from fastapi import FastAPI

from forecasting.artifact import save_artifact
from forecasting.forecaster import Forecaster
from forecasting.registry import DirectoryRegistry, ModelVersion, promote
from forecasting.spec import (
    CovariatesSpec,
    ForecasterSpec,
    MLPSpec,
    NetworkSpec,
    RecurrentSpec,
    RidgeSpec,
    StaticSpec,
    quantiles_for,
)
from forecasting.transforms import Transform
from ledger.ledger import open_ledger
from service.app import create_app
from service.settings import ServiceSettings

torch.set_num_threads(1)

Ask = Callable[..., httpx.Response]
Publish = Callable[..., ModelVersion]
Serve = Callable[..., AbstractContextManager[httpx.Client]]


def wait_until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    """Wait for something that happens in another thread."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def build_forecaster(
    name: str,
    freq: str = "h",
    network: NetworkSpec | None = None,
    *,
    horizon: int = 4,
    seed: int = 0,
    transform: Transform = "none",
    covariates: CovariatesSpec | None = None,
) -> Forecaster:
    """Build a forecaster whose weights follow from its seed."""
    torch.manual_seed(seed)
    spec = ForecasterSpec(
        name=name,
        freq=freq,
        season_length=24,
        horizon=horizon,
        quantiles=quantiles_for((80, 95)),
        transform=transform,
        covariates=covariates or CovariatesSpec(),
        network=network or MLPSpec(input_size=12, hidden_size=8),
    )
    return Forecaster.untrained(spec)


COVARIATES = CovariatesSpec(
    past=("ambient", "load"),
    future=("setpoint",),
    static=(
        StaticSpec(name="unique_id", categories=("boiler-1", "boiler-2")),
        StaticSpec(name="site", categories=("north", "south")),
    ),
    calendar=("hour", "weekday", "holiday"),
    country="DE",
)


def publish_into(registry: DirectoryRegistry, folder: Path) -> Publish:
    """Return a function that publishes a forecaster, by default as the champion."""

    def publish(
        forecaster: Forecaster, *, champion: bool = True, damage: Callable[[Path], None] | None = None
    ) -> ModelVersion:
        artifact = folder / f"artifact-{time.monotonic_ns()}"
        save_artifact(forecaster, artifact)
        if damage is not None:
            damage(artifact)
        version = registry.publish(forecaster.spec.name, artifact, {})
        return promote(registry, forecaster.spec.name, version.version) if champion else version

    return publish


@contextmanager
def serve_app(app: FastAPI, *, ready: bool = True) -> Iterator[httpx.Client]:
    """Run an application behind a real socket."""
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_config=None, access_log=False, lifespan="on")
    server = uvicorn.Server(config)
    app.state.server = server
    thread = threading.Thread(target=server.run)
    thread.start()
    wait_until(lambda: server.started)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60.0) as client:
            if ready:
                wait_until(lambda: client.get("/health/ready").status_code == 200)
            yield client
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture
def registry(tmp_path: Path) -> DirectoryRegistry:
    (tmp_path / "registry").mkdir()
    return DirectoryRegistry(tmp_path / "registry")


@pytest.fixture
def publish(registry: DirectoryRegistry, tmp_path: Path) -> Publish:
    return publish_into(registry, tmp_path)


@pytest.fixture
def serve(registry: DirectoryRegistry) -> Serve:
    """Return a function that serves a registry, with settings given by keyword."""

    def start(
        served: DirectoryRegistry = registry, *, ready: bool = True, **settings: object
    ) -> AbstractContextManager[httpx.Client]:
        chosen = {"registry_uri": str(registry.root), "poll_seconds": 0.05, "ledger_url": "off", **settings}
        return serve_app(create_app(ServiceSettings(**chosen), served), ready=ready)

    return start


@pytest.fixture(scope="session")
def forecasters() -> dict[str, Forecaster]:
    """The models of the service most tests share."""
    models = (
        build_forecaster("pump", "h", RecurrentSpec(kind="lstm", input_size=24, hidden_size=8)),
        build_forecaster("sp500", "XNYS", MLPSpec(input_size=5, hidden_size=8)),
        build_forecaster("co2", "W-SAT", RidgeSpec(input_size=8), horizon=6),
        build_forecaster("price", "D", MLPSpec(input_size=6, hidden_size=8), transform="log_return"),
        build_forecaster("sales", "MS", MLPSpec(input_size=6, hidden_size=8)),
        build_forecaster("boiler", "h", MLPSpec(input_size=6, hidden_size=8), covariates=COVARIATES),
    )
    return {model.spec.name: model for model in models}


@pytest.fixture(scope="session")
def shared_app(forecasters: dict[str, Forecaster], tmp_path_factory: pytest.TempPathFactory) -> FastAPI:
    """An application with every model of `forecasters`; tests read it and change nothing."""
    folder = tmp_path_factory.mktemp("shared")
    registry = DirectoryRegistry(folder / "registry")
    for forecaster in forecasters.values():
        publish_into(registry, folder)(forecaster)
    with closing(open_ledger(f"sqlite:///{folder}/home/ledger.db")) as ledger:
        ds = pd.date_range("2024-01-01", periods=30, freq="h").as_unit("us")
        ledger.observations.append("pump", pd.DataFrame({"unique_id": "pump-7", "ds": ds, "y": np.arange(30.0)}))
        ledger.runs.set_job("co2", "c0ffee", "every Monday at 06:00", None)
    settings = ServiceSettings(
        registry_uri=str(registry.root),
        home=folder / "home",
        max_series=50,
        max_length=2000,
        max_levels=4,
        stream_to_ledger=False,
    )
    return create_app(settings)


@pytest.fixture(scope="session")
def client(shared_app: FastAPI) -> Iterator[httpx.Client]:
    with serve_app(shared_app) as client:
        wait_until(lambda: shared_app.state.runtime.ledger is not None)
        yield client


@pytest.fixture(scope="session")
def ask(client: httpx.Client) -> Ask:
    """Post one series to a model: `ask("pump", y=[...], start="2024-01-01")`."""

    def post(
        model: str,
        h: int | None = None,
        level: list[float] | None = None,
        *,
        fallback: bool = True,
        **series: object,
    ) -> httpx.Response:
        asked = {"model": model, "h": h, "level": level, "fallback": fallback}
        body = {**asked, "series": [{"unique_id": "pump-7", **series}]}
        return client.post("/v1/forecast", json=body)

    return post
