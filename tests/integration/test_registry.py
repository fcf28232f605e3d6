"""One contract for every registry: a directory, MLflow on SQLite, an MLflow server, a server on PostgreSQL."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from forecasting.artifact import artifact_digest, load_artifact, save_artifact
from forecasting.errors import ArtifactError, ModelNotFoundError, RegistryError, RegistryUnavailableError
from forecasting.registry import (
    TAG_PREVIOUS,
    TAG_PROMOTED_AT,
    DirectoryRegistry,
    Registry,
    load_version,
    open_registry,
    promote,
    rollback,
)
from tests.conftest import free_port, make_forecaster
from tests.processes import mlflow_server


@pytest.fixture(params=["directory", "sqlite", "server", pytest.param("postgres", marks=pytest.mark.postgres)])
def registry(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Registry]:
    if request.param == "directory":
        yield open_registry(f"file://{tmp_path}/registry", create=True)
    elif request.param == "sqlite":
        yield open_registry(f"sqlite:///{tmp_path}/home/mlflow.db")
    elif request.param == "server":
        yield open_registry(request.getfixturevalue("server"))
    else:
        with mlflow_server(tmp_path / "mlflow", request.getfixturevalue("postgres_url")) as uri:
            yield open_registry(uri)


def save(tmp_path: Path, seed: int) -> Path:
    folder = tmp_path / f"artifact-{seed}"
    save_artifact(make_forecaster(seed=seed), folder)
    return folder


def test_a_directory_that_is_not_there_is_no_empty_registry(tmp_path: Path) -> None:
    registry = open_registry(str(tmp_path / "mounted-later"))
    asked: tuple[Callable[[], object], ...] = (
        registry.models,
        lambda: registry.versions("pumps"),
        lambda: registry.resolve("pumps"),
        lambda: registry.version("pumps", "1"),
    )
    for ask in asked:
        with pytest.raises(RegistryUnavailableError, match="is it mounted"):
            ask()
    assert not (tmp_path / "mounted-later").exists(), "asking made it"
    registry.publish("pumps", save(tmp_path, 1), {})
    assert registry.models() == ["pumps"]


def test_registries_keep_the_contract(registry: Registry, tmp_path: Path) -> None:
    """The whole contract in one life of a model, because the real servers take seconds to start."""
    model = f"pumps-{time.time_ns()}"
    first, second = save(tmp_path, 1), save(tmp_path, 2)

    with pytest.raises(ModelNotFoundError):
        registry.versions(model)
    with pytest.raises(ModelNotFoundError):
        registry.resolve(model)

    one = registry.publish(model, first, {"note": "first"})
    assert (one.version, one.aliases, one.tags["note"]) == ("1", (), "first")
    assert one.digest == artifact_digest(first)
    assert one.created_at is not None
    with pytest.raises(ModelNotFoundError):
        registry.resolve(model)

    two = registry.publish(model, second, {})
    assert [v.version for v in registry.versions(model)] == ["2", "1"]
    assert model in registry.models()

    fetched = registry.fetch(one, tmp_path / "fetched")
    assert artifact_digest(fetched) == one.digest
    assert np.array_equal(
        load_artifact(fetched).predict(np.ones((1, 10))), make_forecaster(seed=1).predict(np.ones((1, 10)))
    )

    promote(registry, model, "1")
    assert registry.resolve(model).version == "1"
    champion = promote(registry, model, "2", {"why": "better"})
    assert champion.tags["why"] == "better"
    assert champion.tags[TAG_PREVIOUS] == "1"
    assert TAG_PROMOTED_AT in champion.tags
    assert registry.resolve(model).aliases == ("champion",)
    assert registry.version(model, "1").aliases == ()
    assert [v.aliases for v in registry.versions(model)] == [("champion",), ()]
    assert load_version(registry, two).spec.name == "pumps"

    promote(registry, model, "2")
    assert registry.resolve(model).tags[TAG_PREVIOUS] == "1", "promoting the champion again forgot its predecessor"

    assert rollback(registry, model).version == "1"
    assert registry.resolve(model).version == "1"
    with pytest.raises(RegistryError, match="no champion before it"):
        rollback(registry, model)

    registry.annotate(model, "2", {"note": "late"})
    assert registry.version(model, "2").tags["note"] == "late"
    for wrong in ("99", "latest", "../1"):
        with pytest.raises(ModelNotFoundError):
            registry.version(model, wrong)
    with pytest.raises(ModelNotFoundError):
        promote(registry, model, "99")
    with pytest.raises(ModelNotFoundError):
        registry.publish("Not A Name", first, {})


def test_versions_published_at_once_are_all_there(tmp_path: Path) -> None:
    artifact = save(tmp_path, 1)
    registries = [DirectoryRegistry(tmp_path / "registry") for _ in range(8)]
    threads = [threading.Thread(target=r.publish, args=("pumps", artifact, {})) for r in registries]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [v.version for v in registries[0].versions("pumps")] == [str(n) for n in range(8, 0, -1)]


def test_a_version_that_was_tampered_with_is_refused(tmp_path: Path) -> None:
    registry = DirectoryRegistry(tmp_path / "registry")
    version = registry.publish("pumps", save(tmp_path, 1), {})
    spec = tmp_path / "registry/pumps/versions/1/spec.json"
    spec.write_text(spec.read_text() + " ")
    with pytest.raises(ArtifactError, match="not what was published"):
        load_version(registry, version)


def test_a_server_that_is_down_is_unavailable_and_not_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    registry = open_registry(f"http://127.0.0.1:{free_port()}")
    with pytest.raises(RegistryUnavailableError):
        registry.resolve("pumps")
    with pytest.raises(RegistryUnavailableError):
        registry.models()
