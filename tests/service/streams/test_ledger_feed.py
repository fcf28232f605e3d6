"""What streams observe reaches the ledger, whatever happens in between."""

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from forecasting.spec import CovariatesSpec
from ledger.ledger import open_ledger
from service.ledger_link import LedgerLink
from service.settings import ServiceSettings
from service.streams.ledger_feed import LedgerFeed
from tests.service.conftest import build_forecaster, wait_until
from tests.service.streams.conftest import LSTM, Bench, OpenBench, loaded, row, walk


@pytest.fixture
def feed_of(tmp_path: Path) -> Iterator[Callable[..., LedgerFeed]]:
    """Return a function that makes a feed with a ledger, open or not."""
    feeds: list[LedgerFeed] = []

    def make(*, is_open: bool = True) -> LedgerFeed:
        link = LedgerLink(ServiceSettings(home=tmp_path, ledger_url=f"sqlite:///{tmp_path}/ledger.db"))
        link.ledger = open_ledger(link.settings.ledger_url) if is_open else None
        feeds.append(LedgerFeed(link))
        feeds[-1].start()
        return feeds[-1]

    yield make
    for feed in feeds:
        feed.stop()
        if feed._link.ledger is not None:
            feed._link.ledger.close()


def known(tmp_path: Path, *columns: str) -> pd.DataFrame:
    with closing(open_ledger(f"sqlite:///{tmp_path}/ledger.db")) as ledger:
        return ledger.observations.frame("pump", ("y", *columns))


def connect(bench: Bench, feed: LedgerFeed) -> None:
    bench.engine._feed = feed


def test_what_was_taken_in_is_in_the_ledger(
    bench: Bench, feed_of: Callable[..., LedgerFeed], tmp_path: Path
) -> None:
    feed = feed_of()
    connect(bench, feed)
    covariates = CovariatesSpec(past=("load",), future=("setpoint",))
    bench.models["pump"] = loaded(build_forecaster("pump", "h", LSTM, covariates=covariates))
    for step in range(6):
        told = {"past": {"load": step + 0.5}, "future": {"setpoint": [step + 0.25, 9.0]}}
        bench.send([row("a", step, walk(9)[step], **told), row("b", step, 2.0)])
    bench.send([row("a", 0, 77.0), row("a", 5, walk(9)[5])])
    wait_until(lambda: feed.has_all_until(10**9))
    frame = known(tmp_path, "load", "setpoint").set_index(["unique_id", "ds"]).sort_index()
    assert len(frame) == 12
    np.testing.assert_allclose(frame.loc["a", "y"], walk(9)[:6])
    np.testing.assert_allclose(frame.loc["a", "load"], np.arange(6) + 0.5)
    np.testing.assert_allclose(frame.loc["a", "setpoint"], np.arange(6) + 0.25)
    assert frame.loc["b", "load"].isna().all()


@pytest.mark.parametrize("saved", [False, True])
def test_what_the_ledger_was_not_told_before_a_crash_it_is_told_after(
    open_bench: OpenBench, feed_of: Callable[..., LedgerFeed], tmp_path: Path, saved: bool
) -> None:
    bench = open_bench(stream_journal_bytes=100_000)
    connect(bench, feed_of(is_open=False))
    for step in range(5):
        bench.send([row("a", step, float(step))])
    if saved:
        bench.engine._begin_snapshot()
        while bench.engine._snapshot is not None:
            bench.engine._save_slice()
    bench.die()
    feed = feed_of()
    connect(bench, feed)
    bench.send([row("a", 5, 5.0)])
    wait_until(lambda: feed.has_all_until(10**9))
    assert known(tmp_path)["y"].tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
