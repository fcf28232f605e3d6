"""Streams under test: an engine on a real folder, with real models, driven without a network."""

import json
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from forecasting.calendar import parse_freq
from forecasting.forecaster import Forecaster
from forecasting.spec import RecurrentSpec
from service.ledger_link import LedgerLink
from service.model_slot import LoadedModel
from service.problems import MODEL_NOT_LOADED, ProblemError
from service.settings import ServiceSettings
from service.streams.engine import Engine
from service.streams.ledger_feed import LedgerFeed
from service.streams.messages import parse_observe
from tests.service.conftest import build_forecaster

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LSTM = RecurrentSpec(kind="lstm", input_size=8, hidden_size=6)
JsonObject = dict[str, Any]


def loaded(forecaster: Forecaster, version: str = "1") -> LoadedModel:
    calendar = parse_freq(forecaster.spec.freq)
    name = forecaster.spec.name
    return LoadedModel(name, version, "champion", f"digest-{version}", NOW, forecaster, calendar, name, "y")


def hour(step: int) -> str:
    return (pd.Timestamp("2024-01-01") + pd.Timedelta(hours=step)).isoformat() + "Z"


def row(unique_id: str, step: int, y: float | None, **told: object) -> JsonObject:
    return {"unique_id": unique_id, "ds": hour(step), "y": y, **told}


def walk(n_steps: int, seed: int = 0) -> list[float]:
    return (50 + np.random.default_rng(seed).normal(size=n_steps).cumsum()).tolist()


class Bench:
    """An engine and the models it resolves, which a test may swap, take away, or start again."""

    def __init__(self, home: Path, **settings: object) -> None:
        self.settings = ServiceSettings(
            home=home, **{"ledger_url": "off", "stream_rewind": 4, "stream_gap": 20, **settings}
        )
        self.models = {"pump": loaded(build_forecaster("pump", "h", LSTM))}
        self.engine = self._engine()

    def _engine(self) -> Engine:
        feed = LedgerFeed(LedgerLink(self.settings))
        return Engine(self.settings, self._resolve, lambda _model, _names, quantiles: quantiles, lambda: NOW, feed)

    def _resolve(self, name: str) -> LoadedModel:
        if name not in self.models:
            raise ProblemError(MODEL_NOT_LOADED, "it is being loaded")
        return self.models[name]

    def die(self) -> None:
        """Begin again as after kill -9: nothing is saved, and the lock goes with the process."""
        if self.engine._journal is not None and self.engine._store is not None:
            self.engine._journal.rotate()
            self.engine._store.close()
        self.engine._folder.release()
        self.engine = self._engine()

    def send_all(self, *bodies: JsonObject) -> list[JsonObject | ProblemError]:
        """Answer requests that arrived together."""
        messages = [parse_observe(json.dumps({"model": "pump", **body}).encode(), 10_000) for body in bodies]
        outcomes = self.engine.answer(messages)
        return [json.loads(one) if isinstance(one, bytes) else one for one in outcomes]  # type: ignore[misc]

    def send(self, rows: Sequence[JsonObject], **options: object) -> JsonObject:
        """Answer one request."""
        (answer,) = self.send_all({"observations": list(rows), **options})
        if isinstance(answer, Exception):
            raise answer
        return answer

    def forecast(self, unique_id: str, step: int, y: float) -> JsonObject:
        """Tell one value and return the forecast of its series."""
        (forecast,) = self.send([row(unique_id, step, y)])["forecasts"]
        return dict(forecast)


OpenBench = Callable[..., Bench]


@pytest.fixture
def open_bench(tmp_path: Path) -> Iterator[OpenBench]:
    """Return a function that opens an engine on a folder, by default the test's own."""
    opened: list[Bench] = []

    def start(home: str = "home", **settings: object) -> Bench:
        opened.append(Bench(tmp_path / home, **settings))
        return opened[-1]

    yield start
    for bench in opened:
        bench.engine.close()


@pytest.fixture
def bench(open_bench: OpenBench) -> Bench:
    return open_bench()
