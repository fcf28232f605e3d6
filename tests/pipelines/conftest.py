"""A tiny job that trains in a second, and settings that keep everything in a temporary folder."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipelines.settings import PipelineSettings

TINY = """
name: tiny
source: {kind: simulate, n_sensors: 2, n_steps: 500, freq: h, seed: 1}
freq: h
horizon: 4
candidates:
  - {kind: mlp, input_size: 24, hidden_size: 16}
  - {kind: lstm, input_size: 24, hidden_size: 8}
training: {max_epochs: 3, learning_rate: 0.01}
evaluation: {n_windows: 6, validation_size: 120}
"""


@pytest.fixture
def job_file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture
def settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lay_store: Callable[[Path], str]
) -> PipelineSettings:
    lay_store(tmp_path / "home")
    monkeypatch.setenv("HINDCAST_HOME", str(tmp_path / "home"))
    return PipelineSettings()


@pytest.fixture
def gappy_job(job_file: Path, tmp_path: Path) -> Path:
    """Data with so many gaps before the validation block that no window of 100 steps knows enough."""
    rng = np.random.default_rng(0)
    y = rng.normal(size=500).cumsum()
    y[(np.arange(500) % 72 >= 24) & (np.arange(500) < 350)] = np.nan
    rows = pd.DataFrame({"unique_id": "a", "ds": pd.date_range("2024-01-01", periods=500, freq="h"), "y": y})
    rows.to_csv(tmp_path / "gappy.csv", index=False)
    simulated = "source: {kind: simulate, n_sensors: 2, n_steps: 500, freq: h, seed: 1}"
    text = TINY.replace(simulated, "source: {kind: csv, path: gappy.csv}")
    job_file.write_text(text.replace("kind: lstm, input_size: 24", "kind: lstm, input_size: 100"))
    return job_file
