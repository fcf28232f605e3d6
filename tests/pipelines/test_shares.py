"""Shares on their way into a panel: adjusted point in time, and members of a universe by date."""

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from forecasting.calendar import parse_freq
from forecasting.errors import SourceError
from forecasting.panel import Panel
from forecasting.spec import CovariatesSpec, PriceColumns, RecurrentSpec
from ledger.ledger import open_ledger
from pipelines.ingest import ingest_job
from pipelines.load import load_data
from pipelines.report import LogReporter
from pipelines.run import new_run
from pipelines.settings import PipelineSettings
from tests.pipelines.test_retrain import Listener
from tests.service.conftest import build_forecaster
from training.backtest import run_backtest
from training.job import load_job

JOB = """
name: shares
source: {kind: csv, path: shares.csv, adjust: forward}
target: {column: Close, transform: log_return}
covariates: {ranges: [garman_klass, overnight]}
freq: XNYS
horizon: 3
candidates: [{kind: lstm, input_size: 10, hidden_size: 4}]
evaluation: {n_windows: 2, validation_size: 30}
"""
UNIVERSE = JOB + "universe: {path: members.csv}\n"
N = 120


def shares(n: int = N, names: Sequence[str] = ("abc", "xyz")) -> pd.DataFrame:
    """Return shares as traded, with a dividend and a split on the way."""
    days = parse_freq("XNYS").range(pd.Timestamp("2012-01-03"), 200)[:n]
    frames = []
    for seed, name in enumerate(names):
        path = 60 * np.exp(np.random.default_rng(seed).normal(0, 0.006, size=200 * 5).cumsum().reshape(200, 5))[:n]
        path[40:] /= 3
        bars = [path[:, 0], path.max(axis=1), path.min(axis=1), path[:, -1]]
        frame = pd.DataFrame(dict(zip(["Open", "High", "Low", "Close"], np.round(bars, 2), strict=True)))
        frame = frame.assign(unique_id=name, ds=days, Dividends=0.0)
        frame["Stock Splits"] = 0.0
        frame.loc[20, "Dividends"], frame.loc[40, "Stock Splits"] = 0.37, 3.0
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


class Desk:
    """A folder with a job, its files, and what was said when it was loaded."""

    def __init__(self, folder: Path, settings: PipelineSettings) -> None:
        self.folder, self.settings, self.lines = folder, settings, Listener()

    def load(self, rows: pd.DataFrame, text: str = JOB, members: str | None = None) -> Panel:
        rows.to_csv(self.folder / "shares.csv", index=False)
        (self.folder / "job.yaml").write_text(text)
        if members is not None:
            (self.folder / "members.csv").write_text("unique_id,start,end\n" + members)
        self.lines = Listener()
        run = new_run(self.folder / "job.yaml", self.settings, self.lines)
        load_data(run)
        return run.panel


@pytest.fixture
def desk(tmp_path: Path, settings: PipelineSettings) -> Desk:
    return Desk(tmp_path, settings)


def day(n: int) -> str:
    return f"{parse_freq('XNYS').range(pd.Timestamp('2012-01-03'), 200)[n]:%Y-%m-%d}"


def test_actions_after_a_cutoff_change_no_input_no_return_and_no_forecast_before_it(desk: Desk) -> None:
    before = desk.load(shares())
    rows = shares(N + 20)
    last = rows["ds"] > before.ds[-1]
    later = rows.groupby("unique_id").cumcount()
    rows.loc[later == N + 1, "Stock Splits"] = 7.0
    rows.loc[later > N, ["Open", "High", "Low", "Close"]] /= 7.0
    rows.loc[later == N + 4, "Dividends"] = 0.021
    assert last.sum() == 40
    after = desk.load(rows)

    np.testing.assert_array_equal(after.y_NT[:, :N], before.y_NT)
    np.testing.assert_array_equal(after.past_NTP[:, :N], before.past_NTP)
    assert np.abs(np.diff(np.log(after.y_NT))).max() < 0.1  # nor is a split a crash
    told = CovariatesSpec(past=("garman_klass", "overnight"), prices=PriceColumns(close="y"))
    network = RecurrentSpec(input_size=10, hidden_size=4, scaling="difference")
    asked = build_forecaster("shares", "XNYS", network, horizon=3, transform="log_return", covariates=told)
    cutoffs = range(60, N - 3)
    one, two = (run_backtest(asked, panel, cutoffs, history_needed=10, in_sample=60) for panel in (before, after))
    np.testing.assert_array_equal(one.quantiles_BHQ, two.quantiles_BHQ)
    np.testing.assert_array_equal(one.actual_BH, two.actual_BH)


def test_prices_adjusted_backwards_would_have_moved(desk: Desk) -> None:
    before = desk.load(shares(), JOB.replace(", adjust: forward", ""))
    rows = shares(N + 20)
    rows[["Open", "High", "Low", "Close"]] /= 7.0  # as a vendor rewrites them at the split
    after = desk.load(rows, JOB.replace(", adjust: forward", ""))
    assert (after.y_NT[:, :N] != before.y_NT).all()


def test_a_share_is_there_while_it_is_a_member(desk: Desk) -> None:
    whole = desk.load(shares())
    panel = desk.load(shares(), UNIVERSE, f"abc,{day(0)},\nxyz,{day(10)},{day(50)}\nxyz,{day(80)},{day(100)}\n")
    members = np.zeros(N, dtype=bool)
    members[10:50] = members[80:100] = True
    assert np.isfinite(panel.y_NT[0]).all()
    np.testing.assert_array_equal(np.isfinite(panel.y_NT[1]), members)
    np.testing.assert_array_equal(panel.y_NT[1, members], whole.y_NT[1, members])
    assert np.isnan(panel.past_NTP[1, ~members]).all()
    asked = build_forecaster("shares", "XNYS", RecurrentSpec(input_size=10, hidden_size=4), horizon=3)
    test = run_backtest(asked, panel, range(20, N - 3), history_needed=10, in_sample=60)
    assert members[test.cutoff_B[test.series_B == 1]].all()
    assert np.isnan(test.actual_BH[(test.series_B == 1) & (test.cutoff_B == 48)][0, 1:]).all()


def test_that_a_share_left_later_moves_nothing_before_it(desk: Desk) -> None:
    before = desk.load(shares(), UNIVERSE, f"abc,{day(0)},\nxyz,{day(0)},\n")
    after = desk.load(shares(), UNIVERSE, f"abc,{day(0)},\nxyz,{day(0)},{day(90)}\n")
    np.testing.assert_array_equal(after.y_NT[:, :90], before.y_NT[:, :90])
    assert np.isnan(after.y_NT[1, 90:]).all()


def test_a_share_that_is_delisted_stays_in_the_data(desk: Desk) -> None:
    rows = shares()
    gone = (rows["unique_id"] == "xyz") & (rows["ds"] >= day(70))
    panel = desk.load(rows[~gone], UNIVERSE, f"abc,{day(0)},\nxyz,{day(0)},{day(70)}\n")
    assert panel.unique_ids == ("abc", "xyz")
    assert np.isfinite(panel.y_NT[1]).sum() == 70


def test_members_the_source_does_not_have_are_refused_with_their_line(desk: Desk) -> None:
    members = f"abc,{day(0)},\nxyz,{day(0)},\nxzy,{day(0)},\n"
    with pytest.raises(SourceError, match=r"members.csv line 4: there is no series 'xzy'"):
        desk.load(shares(), UNIVERSE, members)
    panel = desk.load(shares(), UNIVERSE + "bad_series: drop\n", members)
    assert panel.n_series == 2
    assert any(line.endswith("line 4: there is no series 'xzy'") for line in desk.lines.lines)


def test_shares_that_never_were_members_are_left_out_and_told(desk: Desk) -> None:
    panel = desk.load(shares(names=("abc", "other", "xyz")), UNIVERSE, f"abc,{day(0)},\nxyz,{day(0)},\n")
    assert panel.unique_ids == ("abc", "xyz")
    assert "left out, for they are not in the universe: other" in desk.lines.lines


def test_the_ledger_is_fed_with_members_alone(desk: Desk) -> None:
    desk.load(shares(), UNIVERSE, f"abc,{day(0)},\nxyz,{day(0)},{day(90)}\n")
    with closing(open_ledger(desk.settings.ledger)) as ledger:
        done = ingest_job(load_job(desk.folder / "job.yaml"), desk.folder, desk.folder, ledger, LogReporter())
        assert (done.rows, done.refused, done.new) == (2 * N, 0, 4 * (N + 90))
        lasts = {one.unique_id: str(one.last)[:10] for one in ledger.observations.series("shares")}
        assert lasts == {"abc": day(N - 1), "xyz": day(89)}
