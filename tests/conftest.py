"""Fixtures every test may use: small data, small forecasters, and the services that may or may not be there."""

import gc
import os
import secrets
import shutil
import socket
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

# Of this process and of those that tests start: where several share the cores, more threads wait for one another.
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import pandas as pd
import pytest
import torch

from forecasting.artifact import save_artifact
from forecasting.forecaster import Forecaster
from forecasting.panel import Panel, build_panel
from forecasting.spec import ForecasterSpec, MLPSpec, NetworkSpec, quantiles_for

torch.set_num_threads(1)

POSTGRES = os.environ.get("HINDCAST_TEST_POSTGRES", "postgresql://postgres@127.0.0.1:5432/postgres")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Keep the garbage collector off while the tests are imported, and away from all that afterwards."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()


def make_spec(network: NetworkSpec | None = None, **changes: object) -> ForecasterSpec:
    """Return a small daily spec; `changes` replace its fields."""
    fields = {
        "name": "pumps",
        "freq": "D",
        "season_length": 7,
        "horizon": 3,
        "quantiles": quantiles_for((80.0, 95.0)),
        "network": network or MLPSpec(input_size=10, hidden_size=8),
    }
    return ForecasterSpec.model_validate({**fields, **changes})


def make_forecaster(network: NetworkSpec | None = None, seed: int = 0, **changes: object) -> Forecaster:
    """Return an untrained forecaster with seeded weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Forecaster.untrained(make_spec(network, **changes))


def make_panel(n_series: int = 2, n_steps: int = 200, freq: str = "D", seed: int = 0, missing: int = 0) -> Panel:
    """Return seasonal random walks, each starting on the same day, with `missing` values taken out."""
    rng = np.random.default_rng(seed)
    steps = np.arange(n_steps)
    y_NT = 50 + 5 * np.sin(2 * np.pi * steps / 7) + rng.normal(size=(n_series, n_steps)).cumsum(axis=1)
    for y_T in y_NT:
        y_T[rng.choice(np.arange(1, n_steps - 1), size=missing, replace=False)] = np.nan
    ds = pd.date_range("2024-01-01", periods=n_steps, freq=freq)
    rows = [pd.DataFrame({"unique_id": f"pump-{i}", "ds": ds, "y": y_T}) for i, y_T in enumerate(y_NT)]
    return build_panel(pd.concat(rows), freq)


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    """A saved artefact of a small MLP."""
    save_artifact(make_forecaster(), tmp_path / "artifact")
    return tmp_path / "artifact"


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow store with nothing in it, one for all test processes: to make it takes MLflow a second."""
    from forecasting.mlflow_registry import open_client

    root = tmp_path_factory.getbasetemp()
    path = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / "empty-store" / "mlflow.db"
    open_client(f"sqlite:///{path}")
    return path


@pytest.fixture
def lay_store(empty_store: Path) -> Callable[[Path], str]:
    """Return a function that lays a new MLflow store into a folder, and returns its URI."""
    from forecasting.mlflow_registry import artifact_root_of

    def lay(folder: Path) -> str:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "mlflow.db"
        shutil.copyfile(empty_store, path)
        uri = f"sqlite:///{path}"
        with closing(sqlite3.connect(path)) as store, store:
            store.execute("UPDATE experiments SET artifact_location = ?", [f"{artifact_root_of(uri)}/0"])
        return uri

    return lay


def missing_service(reason: str) -> None:
    """Skip where a newcomer has no such service; fail where one was promised (CI)."""
    if os.environ.get("HINDCAST_REQUIRE_SERVICES"):
        pytest.fail(reason)
    pytest.skip(reason)


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def postgres_url() -> Iterator[str]:
    """A fresh database on a real PostgreSQL, dropped afterwards."""
    import psycopg

    name = f"hindcast_test_{secrets.token_hex(6)}"
    try:
        admin = psycopg.connect(POSTGRES, autocommit=True, connect_timeout=3)
    except psycopg.OperationalError:
        missing_service("needs PostgreSQL: none answers at HINDCAST_TEST_POSTGRES (default 127.0.0.1:5432)")
        raise
    with admin:
        admin.execute(f'CREATE DATABASE "{name}"')
    try:
        yield f"{POSTGRES.rsplit('/', 1)[0]}/{name}"
    finally:
        with psycopg.connect(POSTGRES, autocommit=True) as admin:
            admin.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
