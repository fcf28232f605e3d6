"""Any forecast the service gave can be computed again from the ledger, and is the same but for rounding."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import sqlalchemy as sa
from typer.testing import CliRunner

from forecasting.conformal import unadjusted
from forecasting.errors import InputError
from forecasting.forecaster import Forecaster
from forecasting.registry import DirectoryRegistry
from forecasting.spec import MLPSpec, RecurrentSpec
from ledger.database import writing
from ledger.ledger import Ledger, open_ledger
from ledger.schema import forecasts
from ledger.scores import StepScores
from pipelines.cli import app
from pipelines.replay import Replayed, replay
from service.app import create_app
from service.settings import ServiceSettings
from tests.service.conftest import COVARIATES, build_forecaster, publish_into, serve_app, wait_until

LSTM = RecurrentSpec(kind="lstm", input_size=12, hidden_size=8)

MODELS: dict[str, Forecaster] = {
    "mlp": build_forecaster("mlp", network=MLPSpec(input_size=12, hidden_size=16)),
    "lstm": build_forecaster("lstm", network=LSTM),
    "returns": build_forecaster("returns", "D", MLPSpec(input_size=12, hidden_size=8), transform="log_return"),
    "told": build_forecaster("told", network=LSTM, covariates=COVARIATES),
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def registry(home: Path) -> DirectoryRegistry:
    registry = DirectoryRegistry(home / "registry")
    for model in MODELS.values():
        publish_into(registry, home)(model)
    return registry


@pytest.fixture(scope="module")
def client(home: Path, registry: DirectoryRegistry) -> Iterator[httpx.Client]:
    with serve_app(
        create_app(ServiceSettings(home=home, registry_uri=str(registry.root), poll_seconds=0.1))
    ) as client:
        yield client


@pytest.fixture(scope="module")
def ledger(home: Path) -> Iterator[Ledger]:
    ledger = open_ledger(f"sqlite:///{home}/ledger.db")
    yield ledger
    ledger.close()


def ask(client: httpx.Client, ledger: Ledger, model: str, n_series: int, **options: object) -> str:
    """Ask for forecasts of series that differ, wait until they are kept, and return their name."""
    series: list[dict[str, Any]] = [
        {
            "unique_id": f"boiler-{i}",
            "start": f"2024-02-{i % 3 + 1:02d}",
            "y": [50.1 + i * 0.7 + (j * (i + 3)) % 5 if j % 7 else None for j in range(1, 14 + i % 4)],
        }
        for i in range(n_series)
    ]
    if model == "told":
        for one in series[::2]:
            one["past"] = {"load": [0.1 * j for j in range(len(one["y"]))]}
            one["future"] = {"setpoint": [60.3] * (len(one["y"]) + 2)}
            one["static"] = {"site": "north"}
    answer = client.post("/v1/forecast", json={"model": model, "series": series, **options})
    assert answer.status_code == 200, answer.text
    forecast_id = str(answer.json()["forecast_id"])
    wait_until(lambda: bool(ledger.forecasts.find(forecast_id)))
    return forecast_id


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    ("n_series", "options"), [(1, {}), (7, {"h": 2, "level": [90]})], ids=["alone", "several, shorter"]
)
def test_a_replay_is_the_same(
    client: httpx.Client, ledger: Ledger, registry: DirectoryRegistry, model: str, n_series: int, options: Any
) -> None:
    replayed = replay(ledger, registry, ask(client, ledger, model, n_series, **options))
    assert [one.issued.unique_id for one in replayed] == [f"boiler-{i}" for i in range(n_series)]
    assert all(one.same for one in replayed)
    assert all(one.identical for one in replayed) or n_series > 1, "alone it is the same to the last bit"
    assert {one.issued.horizon for one in replayed} == {MODELS[model].spec.horizon}


def test_adjusted_intervals_are_issued_kept_and_replayed(
    client: httpx.Client, ledger: Ledger, registry: DirectoryRegistry
) -> None:
    spec = MODELS["mlp"].spec
    before = replay(ledger, registry, ask(client, ledger, "mlp", 3))
    plain = unadjusted(spec.quantiles, spec.horizon)
    learned = replace(plain, stretch_HQ=plain.stretch_HQ + 0.123 * (np.array(spec.quantiles) != 0.5))
    nothing = StepScores(*(np.empty(0, dtype=np.int64),) * 3, *(np.empty(0),) * 5)
    ledger.scores.keep([], nothing, {("mlp", "1", "boiler-1"): learned})

    def ask_until_adjusted() -> list[Replayed]:
        return replay(ledger, registry, ask(client, ledger, "mlp", 3))

    wait_until(lambda: ask_until_adjusted()[1].issued.adjustment_HQ is not None)
    after = ask_until_adjusted()
    assert all(one.same for one in after)
    width = [one.issued.values_HQ[:, -1] - one.issued.values_HQ[:, 0] for one in (before[1], after[1])]
    np.testing.assert_allclose(width[1] / width[0], np.exp(0.123))
    for other in (0, 2):
        np.testing.assert_allclose(before[other].issued.values_HQ, after[other].issued.values_HQ, rtol=1e-6)


def test_what_differs_by_rounding_is_the_same_and_not_identical(
    client: httpx.Client, ledger: Ledger, registry: DirectoryRegistry
) -> None:
    (one,) = replay(ledger, registry, ask(client, ledger, "lstm", 1))
    assert (one.same, one.identical) == (True, True)
    reach = float(np.nanmax(one.issued.inputs.y_L) - np.nanmin(one.issued.inputs.y_L))
    assert replace(one, identical=False, difference=1e-7 * reach).same
    assert not replace(one, identical=False, difference=1e-3 * reach).same
    assert not replace(one, identical=False, difference=np.inf).same


def test_the_command_says_so_and_ends_with_1_where_a_value_differs(
    client: httpx.Client,
    ledger: Ledger,
    registry: DirectoryRegistry,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    forecast_id = ask(client, ledger, "lstm", 2)
    monkeypatch.setenv("HINDCAST_HOME", str(home))
    monkeypatch.setenv("HINDCAST_REGISTRY_URI", str(registry.root))
    same = CliRunner().invoke(app, ["replay", forecast_id])
    assert (same.exit_code, "2 series, identical" in same.stdout) == (0, True), same.output
    with writing(ledger.engine) as connection:
        wanted = sa.and_(forecasts.c.forecast_id == forecast_id, forecasts.c.position == 1)
        issued = bytearray(connection.scalar(sa.select(forecasts.c.issued).where(wanted)))
        issued[5] ^= 0xFF  # a thousandth or so
        connection.execute(sa.update(forecasts).where(wanted).values(issued=bytes(issued)))
    other = CliRunner().invoke(app, ["replay", forecast_id])
    assert other.exit_code == 1
    assert "1 of 2 series are not the same" in other.stdout
    assert "boiler-1" in other.stdout


def test_a_forecast_nobody_gave_cannot_be_replayed(ledger: Ledger, registry: DirectoryRegistry) -> None:
    with pytest.raises(InputError, match="the ledger has no forecast 'none'"):
        replay(ledger, registry, "none")
