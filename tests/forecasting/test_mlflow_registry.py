"""A SQLite store comes into being whole, however many processes want it and whenever one is interrupted."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mlflow.store.db.utils
import pytest

from forecasting.errors import RegistryError
from forecasting.mlflow_registry import MlflowRegistry
from forecasting.registry import open_registry


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


def test_a_uri_that_names_no_store_is_refused() -> None:
    with pytest.raises(RegistryError, match="MLflow refused"):
        MlflowRegistry("gopher://somewhere").models()
