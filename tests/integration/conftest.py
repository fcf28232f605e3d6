"""One MLflow server for every test that only needs one: it takes seconds to start."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.processes import mlflow_server


@pytest.fixture(scope="session")
def server_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the server keeps its records and its artefacts."""
    return tmp_path_factory.mktemp("mlflow")


@pytest.fixture(scope="session")
def server(server_folder: Path) -> Iterator[str]:
    """An MLflow server on SQLite with proxied artefacts."""
    with mlflow_server(server_folder, f"sqlite:///{server_folder}/server.db") as uri:
        yield uri
