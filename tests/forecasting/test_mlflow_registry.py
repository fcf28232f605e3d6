"""A SQLite store comes into being whole, however many processes want it and whenever one is interrupted."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mlflow.store.db.utils
import pytest
from mlflow.tracking import is_tracking_uri_set

from forecasting.artifact import SPEC
from forecasting.errors import RegistryError
from forecasting.mlflow_registry import MlflowRegistry, _signature
from forecasting.registry import open_registry
from forecasting.spec import CovariatesSpec, StaticSpec
from tests.conftest import make_spec


def test_several_may_make_the_same_store_at_once(tmp_path: Path) -> None:
    """Threads stand for processes: the lock is one between open files, whoever opened them."""
    uri = f"sqlite:///{tmp_path}/home/mlflow.db"
    with ThreadPoolExecutor(3) as pool:
        opening = [pool.submit(lambda: open_registry(uri).models()) for _ in range(3)]
    assert [one.result() for one in opening] == [[], [], []]


def test_an_interrupted_start_leaves_no_half_made_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(engine: object) -> None:
        raise KeyboardInterrupt

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    with monkeypatch.context() as patched:
        patched.setattr(mlflow.store.db.utils, "_upgrade_db", interrupt)
        with pytest.raises(KeyboardInterrupt):
            open_registry(uri).models()
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".lock"]
    assert open_registry(uri).models() == []


def test_mlflow_lets_the_covariates_through_and_demands_none(tmp_path: Path) -> None:
    statics = tuple(StaticSpec(name=name, categories=("a",)) for name in ("unique_id", "site"))
    covariates = CovariatesSpec(past=("ambient",), future=("setpoint",), static=statics)
    (tmp_path / SPEC).write_text(make_spec(covariates=covariates).model_dump_json())

    inputs = _signature(tmp_path).inputs
    assert inputs.input_names() == ["unique_id", "ds", "y", "ambient", "setpoint", "site"]
    assert inputs.required_input_names() == ["unique_id", "ds", "y"]


def test_a_uri_that_names_no_store_is_refused() -> None:
    with pytest.raises(RegistryError, match="MLflow refused"):
        MlflowRegistry("gopher://somewhere").models()


@pytest.mark.parametrize("own", [None, "sqlite:///own.db"])
def test_publishing_leaves_the_default_store_as_it_was(
    own: str | None, artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Left pinned, it would be inherited by every process started from here, and made by the next that looks."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        monkeypatch.delenv(name, raising=False)
    if own is not None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", own)
    MlflowRegistry(f"sqlite:///{tmp_path}/mlflow.db").publish("pumps", artifact, {})
    assert os.environ.get("MLFLOW_TRACKING_URI") == own
    assert "MLFLOW_REGISTRY_URI" not in os.environ
    assert is_tracking_uri_set() == (own is not None)
