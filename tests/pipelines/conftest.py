"""A tiny job that trains in a second, and settings that keep everything in a temporary folder."""

from pathlib import Path

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
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PipelineSettings:
    monkeypatch.setenv("HINDCAST_HOME", str(tmp_path / "home"))
    return PipelineSettings()
