"""A model of range features is told the same by whatever way its prices come."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from forecasting.artifact import load_artifact
from forecasting.calendar import format_timestamp, parse_freq
from forecasting.forecaster import summarise
from forecasting.frame import forecast_frame
from forecasting.ranges import RANGE_FEATURES
from forecasting.registry import open_registry, promote
from ledger.ledger import open_ledger
from pipelines.batch import BatchOrder, forecast_batch
from pipelines.comparison import backtest_of
from pipelines.ingest import ingest_job
from pipelines.issue import issue
from pipelines.retrain import retrain
from pipelines.run import Run, new_run
from pipelines.settings import PipelineSettings
from service.app import create_app
from service.settings import ServiceSettings
from tests.pipelines.test_retrain import Listener
from tests.service.conftest import serve_app, wait_until
from training.backtest import Backtest

JOB = """
name: ranges
source: {kind: csv, path: shares.csv, columns: {unique_id: share, ds: day}}
target: {column: last, transform: log_return}
prices: {open: first, high: top, low: bottom, close: last}
freq: XNYS
horizon: 3
covariates: {ranges: [parkinson, garman_klass, rogers_satchell, overnight, intraday]}
candidates:
  - %s
training: {max_epochs: 1, steps_per_epoch: 20}
evaluation: {n_windows: 1, validation_size: 80}
"""
CANDIDATES = {
    "lstm": "{kind: lstm, input_size: 20, hidden_size: 8}",
    "volatility": "{kind: volatility_lstm, input_size: 20, hidden_size: 4, training: {members: 2}}",
}
PRICES = ["first", "top", "bottom"]
COLUMNS = ["mean", "lo-80", "hi-80", "lo-95", "hi-95"]


def shares(n_sessions: int = 300) -> pd.DataFrame:
    """Return two shares with prices that agree; a few highs are missing."""
    rng = np.random.default_rng(5)
    days = parse_freq("XNYS").range(pd.Timestamp("2012-01-03"), n_sessions)
    frames = []
    for name in ("abc", "xyz"):
        path = 50 * np.exp(rng.normal(0, 0.004, size=n_sessions * 9).cumsum().reshape(n_sessions, 9))
        frame = pd.DataFrame({"first": path[:, 0], "top": path.max(axis=1), "bottom": path.min(axis=1)}).round(2)
        frame["last"] = path[:, -1].round(2)
        frame.loc[rng.choice(n_sessions - 60, 40), "top"] = np.nan
        frame.loc[n_sessions - 9, "top"] = np.nan  # within the window that is asked with
        frames.append(frame.assign(share=name, day=days.strftime("%Y-%m-%d")))
    return pd.concat(frames, ignore_index=True)


@pytest.fixture(scope="module", params=CANDIDATES)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A job that has been trained; its candidate is the champion whatever the gate says."""
    folder = tmp_path_factory.mktemp("ranges")
    shares().to_csv(folder / "shares.csv", index=False)
    (folder / "job.yaml").write_text(JOB % CANDIDATES[request.param])
    settings = PipelineSettings(home=folder / "home")
    run = new_run(folder / "job.yaml", settings, Listener())
    outcome = retrain(run)
    assert outcome.version is not None
    promote(open_registry(settings.registry), run.job.name, outcome.version)
    return run


def candidate_of(run: Run) -> str:
    return run.job.candidates[0].name


@pytest.fixture(scope="module")
def backtest(run: Run) -> Backtest:
    return backtest_of(run, run.artifact(candidate_of(run)), run.split.cutoffs)


def known(run: Run, backtest: Backtest) -> pd.DataFrame:
    """Return the rows of the file up to the cutoff, as a long frame."""
    rows = pd.read_csv(run.base_dir / "shares.csv").rename(columns={"share": "unique_id", "day": "ds"})
    rows["ds"] = pd.to_datetime(rows["ds"])
    return rows[rows["ds"] <= backtest.panel.ds[backtest.cutoff_B[0]]]


def expected(backtest: Backtest, unique_id: str) -> pd.DataFrame:
    rows = backtest.to_frame()
    return rows[rows["unique_id"] == unique_id]


def nulls(values: pd.Series) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in values]


def assert_answer(answer: dict[str, Any], backtest: Backtest) -> None:
    (forecast,) = answer["forecasts"]
    assert forecast["status"] == "ok", forecast["reason"]
    rows = expected(backtest, forecast["unique_id"])
    assert forecast["cutoff"] == format_timestamp(rows["cutoff"].iloc[0], backtest.panel.calendar)
    for column in COLUMNS:
        np.testing.assert_allclose(forecast[column], rows[column], rtol=1e-6)


def test_the_networks_are_told_what_prices_say(run: Run, backtest: Backtest) -> None:
    panel = backtest.panel
    assert panel.columns.past == RANGE_FEATURES
    rows = shares()
    rows = rows[rows["share"] == "abc"].reset_index(drop=True)
    parkinson = (100 * np.log(rows["top"] / rows["bottom"])) ** 2 / (4 * np.log(2))
    np.testing.assert_allclose(panel.past_NTP[0, :, 0], parkinson)
    assert np.isnan(parkinson).any()
    overnight = 100 * np.log(rows["first"] / rows["last"].shift())
    np.testing.assert_allclose(panel.past_NTP[0, :, RANGE_FEATURES.index("overnight")], overnight)
    assert run.spec_of(candidate_of(run)).covariates.price_columns == tuple(PRICES)


def test_requests_ledger_files_and_backtest_forecast_the_same(run: Run, backtest: Backtest) -> None:
    rows, settings = known(run, backtest), run.settings
    ledger = open_ledger(settings.ledger)
    ledger.observations.append(run.job.name, rows)
    report = issue(ledger, open_registry(settings.registry), run.job.name)
    assert (report.champion, report.left_out) == (2, {})
    for one in ledger.forecasts.select():
        told, columns = expected(backtest, one.unique_id), summarise(one.values_HQ[None], one.quantiles, [80, 95])
        assert one.cutoff == told["cutoff"].iloc[0].to_datetime64()
        for column in COLUMNS:
            np.testing.assert_allclose(columns[column][0], told[column], rtol=1e-6)
    app = create_app(ServiceSettings(registry_uri=settings.registry, home=settings.home))
    app.state.runtime.ledger_link.clock = lambda: (rows["ds"].max() + pd.Timedelta(hours=23)).tz_localize("UTC")
    with serve_app(app) as client:
        wait_until(lambda: app.state.runtime.ledger is not None)
        for unique_id, whole in rows.groupby("unique_id"):
            for length in (20, 21, 60):
                last = whole.tail(length)
                series = {"unique_id": unique_id, "ds": last["ds"].dt.strftime("%Y-%m-%d").tolist()}
                series |= {"y": nulls(last["last"]), "past": {name: nulls(last[name]) for name in PRICES}}
                answer = client.post("/v1/forecast", json={"model": "ranges", "series": [series]})
                assert answer.status_code == 200, answer.text
                assert_answer(answer.json(), backtest)
            assert_answer(client.get(f"/v1/models/ranges/series/{unique_id}/forecast").json(), backtest)
    ledger.close()


def test_features_may_be_sent_instead_of_the_prices(run: Run, backtest: Backtest) -> None:
    app = create_app(ServiceSettings(registry_uri=run.settings.registry, home=run.settings.home))
    panel, cutoff = backtest.panel, backtest.cutoff_B[0]
    with serve_app(app) as client:
        window = slice(cutoff - 19, cutoff + 1)
        past = {name: nulls(panel.past_NTP[0, window, p]) for p, name in enumerate(panel.columns.past)}
        series = {"unique_id": "abc", "start": str(panel.ds[cutoff - 19].date()), "past": past}
        series["y"] = nulls(panel.y_NT[0, window])
        body = {"model": "ranges", "series": [series]}
        assert_answer(client.post("/v1/forecast", json=body).json(), backtest)
        told = client.get("/v1/models/ranges").json()["covariates"]
        assert (told["past"], told["prices"]) == (list(RANGE_FEATURES), PRICES)
        del past["parkinson"]
        (forecast,) = client.post("/v1/forecast", json=body).json()["forecasts"]
        assert (forecast["status"], forecast["reason"]) == ("degraded", "past 'parkinson' is missing")


def test_files_bring_prices_too(run: Run, backtest: Backtest, tmp_path: Path) -> None:
    rows = known(run, backtest).rename(columns={"last": "y"})
    found = forecast_frame(load_artifact(run.artifact(candidate_of(run))), rows)
    for unique_id, forecast in found.groupby("unique_id"):
        for column in COLUMNS:
            np.testing.assert_allclose(forecast[column], expected(backtest, str(unique_id))[column], rtol=1e-6)
    rows.to_parquet(tmp_path / "rows.parquet")
    done = forecast_batch(
        BatchOrder("ranges", tmp_path / "rows.parquet", tmp_path / "out"), run.settings, Listener()
    )
    assert (done.series, done.rejects) == (2, 0)
    pd.testing.assert_frame_equal(
        pd.read_parquet(next((tmp_path / "out").glob("part-*.parquet"))).sort_values(
            ["unique_id", "ds"], ignore_index=True
        ),
        found.sort_values(["unique_id", "ds"], ignore_index=True),
        check_dtype=False,
        rtol=1e-6,
    )


def test_what_is_ingested_are_the_prices(run: Run, tmp_path: Path) -> None:
    ledger = open_ledger(f"sqlite:///{tmp_path}/ledger.db")
    done = ingest_job(run.job, run.base_dir, tmp_path, ledger, Listener())
    assert done.refused == 0
    (one, _) = ledger.observations.series("ranges")
    assert sorted(one.columns) == sorted([*PRICES, "last"])
    ledger.close()
