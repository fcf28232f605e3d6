"""The job of US shares, with a server in place of Yahoo: what is there is loaded, what is not is named."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from forecasting.calendar import parse_freq
from pipelines.load import load_data
from pipelines.run import new_run
from pipelines.settings import PipelineSettings
from tests.pipelines.test_retrain import Listener
from tests.yahoo import TOO_MANY, Yahoo, chart, moment, serve_yahoo
from training.job import load_job
from training.sources import YahooSource

JOB = Path(__file__).parents[2] / "jobs" / "us-shares.yaml"
GONE = ("FB", "TWTR", "XLNX", "ATVI", "SIVB")

# yfinance 1.7 calls pandas in ways that 3.1 deprecates
pytestmark = pytest.mark.filterwarnings("ignore::pandas.errors.Pandas4Warning:yfinance")


@pytest.fixture
def yahoo() -> Iterator[Yahoo]:
    with serve_yahoo() as server:
        yield server


def test_the_job_loads_what_yahoo_has_and_names_what_it_has_not(yahoo: Yahoo, settings: PipelineSettings) -> None:
    source = load_job(JOB).source
    assert isinstance(source, YahooSource)
    days = parse_freq("XNYS").sessions  # type: ignore[attr-defined]
    days = [f"{day:%Y-%m-%d}" for day in days[(days >= "2005-01-03") & (days < "2010-01-01")]]
    rng = np.random.default_rng(0)
    for ticker in set(source.tickers) - set(GONE):
        closes = np.round(50 * np.exp(rng.normal(0, 0.01, len(days)).cumsum()), 2).tolist()
        split = {"splits": {"1": {"date": moment(days[900]), "numerator": 2.0, "denominator": 1.0}}}
        yahoo.answers[ticker] = [chart(ticker, closes, sessions=days, events=split if ticker == "AAPL" else None)]
    yahoo.answers["BA"][:0] = [TOO_MANY] * 2  # yfinance itself asks twice
    listener = Listener()
    run = new_run(JOB, settings, listener)
    load_data(run)
    assert run.panel.n_series == len(source.tickers) - len(GONE)
    assert run.panel.n_steps == len(days)
    assert run.panel.columns.past == ("parkinson", "garman_klass", "overnight")
    assert np.abs(np.diff(np.log(run.panel.y_NT))).max() < 0.1
    told = [line.split(":")[0] for line in listener.lines if line.startswith("left out")]
    assert told == [f"left out {ticker}" for ticker in GONE]
