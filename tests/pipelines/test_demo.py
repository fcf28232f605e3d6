"""The demo: what it checks before it trains."""

import socket
from pathlib import Path

import pytest

from forecasting.errors import HindcastError
from pipelines.demo import run_demo
from pipelines.settings import PipelineSettings


def test_a_port_that_is_taken_is_refused_before_the_training(tmp_path: Path) -> None:
    settings = PipelineSettings(home=tmp_path / "home")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(HindcastError, match=f"port {port} of 127.0.0.1 is taken; choose another with --port"):
            run_demo(settings, port=port, once=True)
    assert not settings.home.exists()
