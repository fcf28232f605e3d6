"""GET /v1/accuracy: the sums of the scores in the ledger, asked over HTTP."""

from collections.abc import Iterator

import httpx
import numpy as np
import pandas as pd
import pytest

from ledger.forecasts import ForecastInputs, IssuedForecast
from ledger.ledger import Ledger, open_ledger
from ledger.moments import utc_now
from pipelines.score import score_matured
from service.app import create_app
from service.settings import ServiceSettings
from tests.service.conftest import serve_app, wait_until

QUANTILES = (0.05, 0.5, 0.95)


def issued(unique_id: str, version: str, cutoff: str, bias: float) -> IssuedForecast:
    """Return a forecast of 10 for two steps that is off by its bias, one unit wide on either side."""
    ahead = np.datetime64(cutoff, "us") + np.array([1, 2]) * np.timedelta64(1, "D").astype("timedelta64[us]")
    return IssuedForecast(
        forecast_id=f"{unique_id}-{version}-{cutoff}",
        position=0,
        batch_id=f"{unique_id}-{version}-{cutoff}",
        issued_at=utc_now(),
        dataset="pump",
        model="pump",
        version=version,
        role="champion",
        unique_id=unique_id,
        cutoff=np.datetime64(cutoff, "us"),
        ds_H=ahead,
        quantiles=QUANTILES,
        values_HQ=np.array([[9.0, 10.0, 11.0]] * 2) + bias,
        adjustment_HQ=None,
        inputs=ForecastInputs(np.full(7, 12.0)),
        freq="D",
        season_length=7,
    )


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ledger]:
    ledger = open_ledger(f"sqlite:///{tmp_path_factory.mktemp('home')}/ledger.db")
    ds = pd.date_range("2024-01-01", periods=20, freq="D").as_unit("us")
    rows = [pd.DataFrame({"unique_id": name, "ds": ds, "y": 10.0}) for name in ("a", "b")]
    ledger.observations.append("pump", pd.concat(rows))
    cutoffs = ("2024-01-08", "2024-01-10")
    ledger.forecasts.append([issued(uid, "1", cutoff, 0.5) for uid in ("a", "b") for cutoff in cutoffs])
    ledger.forecasts.append([issued("a", "2", cutoff, -2.0) for cutoff in cutoffs])
    score_matured(ledger)
    yield ledger
    ledger.close()


@pytest.fixture(scope="module")
def served(ledger: Ledger, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    settings = ServiceSettings(
        home=tmp_path_factory.mktemp("service"), registry_uri="nowhere", ledger_url=str(ledger.engine.url)
    )
    app = create_app(settings)
    with serve_app(app, ready=False) as client:
        wait_until(lambda: app.state.runtime.ledger is not None)
        yield client


def test_versions_are_told_apart(served: httpx.Client) -> None:
    rows = served.get("/v1/accuracy", params={"model": "pump"}).json()["rows"]
    assert [(row["version"], row["role"], row["n"], row["mae"]) for row in rows] == [
        ("1", "champion", 8, 0.5),
        ("2", "champion", 4, 2.0),
    ]
    assert rows[0]["coverage"] == {"80": 1.0, "90": 1.0, "95": None}
    assert rows[1]["coverage"]["90"] == 0.0
    # The seasonal naive said 12 where it was 10.
    assert (rows[0]["mase"], rows[0]["skill"]) == (0.25, 0.75)
    assert rows[0]["unique_id"] is rows[0]["step"] is None


def test_what_is_asked_for_is_all_that_counts(served: httpx.Client) -> None:
    query = {"model": "pump", "version": "1", "unique_id": "a", "since": "2024-01-09T00:00:00Z"}
    (row,) = served.get("/v1/accuracy", params=query).json()["rows"]
    assert row["n"] == 2
    assert served.get("/v1/accuracy", params={"model": "other"}).json() == {"rows": []}


def test_rows_are_of_what_is_asked_for(served: httpx.Client) -> None:
    rows = served.get("/v1/accuracy", params={"by": ["unique_id", "step"], "level": 90}).json()["rows"]
    assert [(row["unique_id"], row["step"], row["n"], row["model"]) for row in rows] == [
        ("a", 1, 4, None),
        ("a", 2, 4, None),
        ("b", 1, 2, None),
        ("b", 2, 2, None),
    ]
    assert rows[0]["coverage"] == {"90": 0.5}
    assert len(served.get("/v1/accuracy", params={"by": "step", "limit": 1}).json()["rows"]) == 1


@pytest.mark.parametrize("query", [{"by": "colour"}, {"level": 0}, {"role": "king"}, {"since": "0900-01-01"}])
def test_impossible_wishes_are_refused(served: httpx.Client, query: dict[str, str]) -> None:
    answer = served.get("/v1/accuracy", params=query)
    assert (answer.status_code, answer.json()["type"]) == (422, "urn:hindcast:problem:invalid-request")
