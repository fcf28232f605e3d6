"""Forecasts from the ledger alone: once each, champion and shadow at the same cutoffs, never with hindsight."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from forecasting.artifact import save_artifact
from forecasting.forecaster import Forecaster
from forecasting.registry import CHAMPION, SHADOW, TAG_ONLINE_INTERVALS, DirectoryRegistry
from forecasting.spec import CovariatesSpec, MLPSpec, StaticSpec
from ledger.forecasts import ForecastInputs, IssuedForecast
from ledger.ledger import Ledger, open_ledger
from pipelines.issue import issue
from pipelines.score import score_matured
from tests.conftest import make_forecaster
from tests.ledger.conftest import Ticking
from tests.ledger.issued import issued

START = pd.Timestamp("2024-01-01")
Publish = Callable[..., str]


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    opened = open_ledger(f"sqlite:///{tmp_path}/ledger.db", Ticking())
    yield opened
    opened.close()


@pytest.fixture
def registry(tmp_path: Path) -> DirectoryRegistry:
    return DirectoryRegistry(tmp_path / "registry")


@pytest.fixture
def publish(registry: DirectoryRegistry, tmp_path: Path) -> Publish:
    def publish(forecaster: Forecaster, alias: str = CHAMPION, **tags: str) -> str:
        artifact = tmp_path / f"artifact-{len(list(tmp_path.iterdir()))}"
        save_artifact(forecaster, artifact)
        version = registry.publish("pumps", artifact, tags).version
        registry.set_alias("pumps", alias, version)
        return version

    return publish


def days(n: int, unique_id: str = "pump-1", first: int = 0, **columns: object) -> pd.DataFrame:
    """Return daily observations."""
    ds = pd.date_range(START + pd.Timedelta(days=first), periods=n)
    y = 50.0 + np.random.default_rng(first).normal(size=n).cumsum()
    return pd.DataFrame({"unique_id": unique_id, "ds": ds, "y": y, **columns})


def test_every_series_is_forecast_once_by_champion_and_shadow(
    ledger: Ledger, registry: DirectoryRegistry, publish: Publish
) -> None:
    champion = make_forecaster()
    publish(champion)
    publish(make_forecaster(MLPSpec(input_size=6, hidden_size=4), seed=1), SHADOW)
    rows = [days(30), days(40, "pump-2"), days(8, "pump-3")]
    ledger.observations.append("pumps", pd.concat(rows))
    report = issue(ledger, registry, "pumps")
    # The third series is long enough for the shadow alone.
    assert (report.champion, report.shadow, report.beside) == (2, 3, 0)
    assert report.left_out == {"pump-3": "series 'pump-3' has 8 points; this model needs 10 (input_size)"}
    one, two, *shadows = ledger.forecasts.select()
    assert (one.unique_id, one.role, one.cutoff) == ("pump-1", "champion", np.datetime64("2024-01-30", "us"))
    assert (two.unique_id, two.cutoff) == ("pump-2", np.datetime64("2024-02-09", "us"))
    assert {(s.role, s.version) for s in shadows} == {("shadow", "2")}
    y_BL = np.stack([rows[0]["y"].to_numpy()[-10:], rows[1]["y"].to_numpy()[-10:]])
    assert (np.stack([one.values_HQ, two.values_HQ]) == champion.predict(y_BL)).all()
    assert (one.freq, one.season_length, one.adjustment_HQ) == ("D", 7, None)
    again = issue(ledger, registry, "pumps")
    assert (again.champion, again.shadow) == (0, 0)
    ledger.observations.append("pumps", days(1, first=30))
    again = issue(ledger, registry, "pumps")
    assert (again.champion, again.shadow) == (1, 1)
    # A revision makes another question of the same cutoff.
    ledger.observations.append("pumps", days(1, first=29))
    assert issue(ledger, registry, "pumps").champion == 1


def test_covariates_come_from_the_ledger(ledger: Ledger, registry: DirectoryRegistry, publish: Publish) -> None:
    site = StaticSpec(name="site", categories=("north", "south"))
    told = CovariatesSpec(past=("load",), future=("setpoint",), static=(site,), calendar=("weekday",))
    forecaster = make_forecaster(covariates=told)
    publish(forecaster)
    rows = days(30, load=np.arange(30.0), setpoint=1.0, site="south")
    ahead = pd.DataFrame({"unique_id": "pump-1", "ds": pd.date_range("2024-01-31", periods=3), "setpoint": 9.0})
    ledger.observations.append("pumps", rows, static=("site",))
    ledger.observations.append("pumps", ahead)
    assert issue(ledger, registry, "pumps").champion == 1
    (one,) = ledger.forecasts.select()
    assert one.cutoff == np.datetime64("2024-01-30", "us")
    assert one.inputs.past_LP is not None
    assert one.inputs.future_TF is not None
    assert one.inputs.past_LP[:, 0].tolist() == list(range(20, 30))
    assert one.inputs.future_TF[:, 0].tolist() == [1.0] * 10 + [9.0] * 3
    assert one.inputs.static == {"site": "south"}


def asked_of_the_service(y_L: np.ndarray, issued_at: pd.Timestamp, **changes: object) -> IssuedForecast:
    """Return what the service would have recorded of a question at the 30th day."""
    fields = {
        "forecast_id": "service",
        "issued_at": issued_at,
        "cutoff": np.datetime64("2024-01-30", "us"),
        "ds_H": np.array(["2024-01-31", "2024-02-01"], dtype="datetime64[us]"),
        "inputs": ForecastInputs(y_L),
        "freq": "D",
    }
    return replace(issued(0, horizon=2), **{**fields, **changes})


def appoint(ledger: Ledger, registry: DirectoryRegistry) -> None:
    """Let the shadow have been appointed when the ledger was new, as the gate records it."""
    from ledger.decisions import GATE, RecordedDecision

    kind, reason = "new", "lacks evidence"
    ledger.decisions.record(RecordedDecision("k", "pumps", "2", "1", "shadow", GATE, kind, reason))


def test_the_shadow_follows_what_the_service_was_asked(
    ledger: Ledger, registry: DirectoryRegistry, publish: Publish
) -> None:
    publish(make_forecaster())
    shadow = make_forecaster(MLPSpec(input_size=6, hidden_size=4), seed=1)
    publish(shadow, SHADOW)
    before = asked_of_the_service(np.arange(10.0), ledger.clock(), forecast_id="before")
    appoint(ledger, registry)
    y_L = days(30)["y"].to_numpy()[-10:]
    ledger.forecasts.append([before, asked_of_the_service(y_L, ledger.clock(), unique_id="elsewhere")])
    assert issue(ledger, registry, "pumps").beside == 1
    one = ledger.forecasts.select()[-1]
    assert (one.role, one.version, one.unique_id, one.horizon) == ("shadow", "2", "elsewhere", 2)
    assert one.reason == "beside service"
    assert (one.values_HQ == shadow.predict(y_L[None])[0, :2]).all()
    assert issue(ledger, registry, "pumps").beside == 0


def test_a_shadow_that_needs_more_asks_the_ledger_as_it_was(
    ledger: Ledger, registry: DirectoryRegistry, publish: Publish
) -> None:
    publish(make_forecaster())
    shadow = make_forecaster(MLPSpec(input_size=20, hidden_size=4), seed=1)
    publish(shadow, SHADOW)
    appoint(ledger, registry)
    known = days(30)
    ledger.observations.append("pumps", known)
    then = ledger.clock()
    y_L = known["y"].to_numpy()
    ledger.forecasts.append(
        [
            asked_of_the_service(y_L[-10:], then),
            asked_of_the_service(y_L[-10:], then, unique_id="x", forecast_id="x"),
        ]
    )
    ledger.observations.append("pumps", days(30).assign(y=1.0))
    ledger.observations.append("pumps", days(5, first=30))
    report = issue(ledger, registry, "pumps")
    # Of the other series the ledger knows nothing.
    assert report.beside == 1
    (one,) = ledger.forecasts.select()[-1:]
    assert one.cutoff == np.datetime64("2024-01-30", "us")
    assert (one.values_HQ == shadow.predict(y_L[None])[0, :2]).all()


@pytest.mark.parametrize("online", ["true", "false"])
def test_intervals_are_issued_as_the_scores_taught(
    ledger: Ledger, registry: DirectoryRegistry, publish: Publish, online: str
) -> None:
    forecaster = make_forecaster()
    publish(forecaster, **{TAG_ONLINE_INTERVALS: online})
    ledger.observations.append("pumps", days(30))
    issue(ledger, registry, "pumps")
    ledger.observations.append("pumps", days(2, first=30).assign(y=1000.0))
    score_matured(ledger)
    assert issue(ledger, registry, "pumps").champion == 1
    first, second = ledger.forecasts.select()
    assert first.adjustment_HQ is None
    if online == "false":
        assert second.adjustment_HQ is None
        return
    assert second.adjustment_HQ is not None
    raw_HQ = forecaster.predict(second.inputs.y_L[None])[0]
    assert (raw_HQ + second.adjustment_HQ == second.values_HQ).all()
    # Two of three steps have learned that the world is above.
    assert (second.adjustment_HQ[:2, -1] > 0).all()
    assert not second.adjustment_HQ[2].any()


def test_a_shadow_that_cannot_be_loaded_holds_up_no_champion(
    ledger: Ledger, registry: DirectoryRegistry, publish: Publish
) -> None:
    publish(make_forecaster())
    version = publish(make_forecaster(seed=1), SHADOW)
    (registry.root / f"pumps/versions/{version}/weights.safetensors").write_bytes(b"gone")
    ledger.observations.append("pumps", days(30))
    report = issue(ledger, registry, "pumps")
    assert (report.champion, report.shadow) == (1, 0)
