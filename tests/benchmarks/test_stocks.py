"""The benchmark of daily returns: reads what people have, looks into nothing later, and its quick run runs."""

import json
from argparse import Namespace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks import stocks
from benchmarks.recipes import STOCKS
from benchmarks.share_prices import Shares, load_file, load_folder, load_sample


def prices(n: int = 700, seed: int = 1) -> pd.DataFrame:
    """Return a share whose volatility comes in clusters, as a download has it."""
    rng = np.random.default_rng(seed)
    calm = np.exp(np.convolve(rng.normal(0, 0.1, n), 0.97 ** np.arange(60))[:n])
    close = 100 * np.exp(np.cumsum(0.01 * calm * rng.standard_t(6, n)))
    open_ = close * np.exp(0.003 * calm * rng.normal(size=n))
    top = np.maximum(open_, close) * np.exp(0.004 * calm * np.abs(rng.normal(size=n)))
    bottom = np.minimum(open_, close) * np.exp(-0.004 * calm * np.abs(rng.normal(size=n)))
    columns = {"Open": open_, "High": top, "Low": bottom, "Close": close, "Adj Close": 0.9 * close, "Volume": 1000}
    return pd.DataFrame({"Date": pd.bdate_range("2012-01-02", periods=n).strftime("%Y-%m-%d"), **columns})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for seed, name in enumerate(("AAA", "BBB")):
        prices(seed=seed).to_csv(tmp_path / f"{name}.csv", index=False)
    return tmp_path


def arguments(**changed: object) -> Namespace:
    known = {"sample": None, "quick": False, "test_from": None, "refit_every": 100, "seed": 1}
    return Namespace(**{**known, **changed})


def test_a_folder_is_shares_named_like_their_files_on_common_sessions(folder: Path) -> None:
    prices(650, seed=3).iloc[50:].to_csv(folder / "CCC.csv", index=False)
    shares = load_folder(folder)
    assert shares.names == ("AAA", "BBB", "CCC")
    assert shares.x_NT.shape == (3, 700)
    assert np.isnan(shares.x_NT[2, :50]).all()
    assert np.isfinite(shares.garman_klass_NT[0]).all()


def test_returns_have_the_dividends_in_them_and_skip_sessions_without_a_trade(tmp_path: Path) -> None:
    frame = prices(10)
    frame.loc[3:, "Adj Close"] = frame["Close"]
    frame.loc[6, "Close"] = np.nan
    frame.to_csv(tmp_path / "one.csv", index=False)
    returns_T = load_file(tmp_path / "one.csv").returns[0]
    adjusted = np.log(frame["Adj Close"].drop(6)).diff() * 100
    np.testing.assert_allclose(returns_T, adjusted)


def test_a_column_may_name_the_shares(tmp_path: Path) -> None:
    both = pd.concat([prices(20).assign(Symbol="A"), prices(30, seed=2).assign(Symbol="B")])
    both.drop(columns="Adj Close").to_csv(tmp_path / "two.csv", index=False)
    shares = load_file(tmp_path / "two.csv")
    assert shares.names == ("A", "B")
    assert np.isfinite(shares.x_NT).sum(axis=1).tolist() == [20, 30]


@pytest.mark.parametrize("form", ["%Y-%m-%d 00:00:00%z", "%Y-%m-%dT00:00:00.000000%z", "%Y%m%d", "%Y-%m-%d 00:00"])
def test_sessions_are_the_dates_on_the_wall_of_the_exchange(tmp_path: Path, form: str) -> None:
    frame = prices(200)
    sessions = pd.DatetimeIndex(frame["Date"])
    frame["Date"] = sessions.tz_localize("America/New_York").strftime(form)
    frame.to_csv(tmp_path / "wall.csv", index=False)
    assert (load_file(tmp_path / "wall.csv").session_T == sessions.to_numpy()).all()


def test_a_date_that_cannot_be_read_is_refused_with_the_file(tmp_path: Path) -> None:
    prices(5).replace({"Date": {"2012-01-04": "soon"}}).to_csv(tmp_path / "soon.csv", index=False)
    with pytest.raises(SystemExit, match=r"soon.csv has a date that cannot be read, as 2020-01-31 can: .*soon"):
        load_file(tmp_path / "soon.csv")


def test_a_file_without_prices_is_refused_with_what_it_has(tmp_path: Path) -> None:
    prices(5).drop(columns=["High", "Date"]).to_csv(tmp_path / "half.csv", index=False)
    with pytest.raises(SystemExit, match=r"half.csv lacks a date, high; it has Open, Low"):
        load_file(tmp_path / "half.csv")
    with pytest.raises(SystemExit, match="has no file"):
        load_folder(tmp_path / "nowhere")


def test_a_share_in_two_files_is_refused(folder: Path) -> None:
    prices(20).assign(Symbol="BBB").to_csv(folder / "more.csv", index=False)
    with pytest.raises(SystemExit, match=r"more.csv has BBB, which another file before it has too"):
        load_folder(folder)


def test_too_little_history_is_refused_in_numbers(tmp_path: Path) -> None:
    prices(700).to_csv(tmp_path / "short.csv", index=False)
    with pytest.raises(
        SystemExit, match="700 sessions, the first to forecast is number 420: 500 have to come before"
    ):
        stocks.plan(load_file(tmp_path / "short.csv"), arguments())


def test_the_sample_is_tested_from_2015_on_as_the_protocol_says() -> None:
    shares = load_sample()
    test = stocks.plan(shares, arguments(sample="sp500", refit_every=252))
    assert len(test.cutoff_K) == 1006
    assert str(shares.session_T[test.cutoff_K[0] + 1])[:10] == "2015-01-02"
    assert [len(fold_K) for fold_K in test.folds()] == [252, 252, 252, 250]


def test_neither_the_network_nor_a_rival_looks_ahead(folder: Path) -> None:
    shares = load_folder(folder)
    test = stocks.Test(np.arange(560, 600), 1000)
    later_T = np.arange(700) > 580
    jumps = np.where(later_T, 5.0 * (-1.0) ** np.arange(700), 0.0)
    other = Shares(shares.names, shares.session_T, shares.x_NT + jumps, *(v + 30.0 * later_T for v in shares[3:]))
    ask = arguments(quick=True)
    for name in ("gjr_garch_t", "har", "historical"):
        before, after = (stocks.ask_rival(name, which, 0, test, 1).quantiles_KQ for which in (shares, other))
        np.testing.assert_array_equal(before[:21], after[:21])
        assert not np.array_equal(before[21:], after[21:])
    recipe = STOCKS["volatility_rnn"].quick()
    before, after = (stocks.ask_network(which, test, recipe, ask)[0].quantiles_KQ for which in (shares, other))
    np.testing.assert_array_equal(before[:21], after[:21])
    assert not np.array_equal(before[21:], after[21:])


def test_of_a_share_that_stands_still_the_network_says_no_less_than_rivals_may(tmp_path: Path) -> None:
    still = prices().assign(**dict.fromkeys(["Open", "High", "Low", "Close", "Adj Close"], 20.0))
    for name, frame in (("MOVES", prices()), ("STILL", still)):
        frame.to_csv(tmp_path / f"{name}.csv", index=False)
    shares, test = load_folder(tmp_path), stocks.Test(np.arange(560, 570), 1000)
    said = stocks.ask_network(shares, test, STOCKS["volatility_rnn"].quick(), arguments())[1]
    rival = stocks.ask_rival("ewma", shares, 1, test, 1)
    assert said.variance_K == pytest.approx(rival.variance_K)
    assert said.density is not None
    assert said.density.scale**2 == pytest.approx(rival.variance_K)


def test_the_quick_run_scores_everyone_and_says_whether_there_is_skill(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "stocks.json"
    ask = ["--folder", str(folder), "--rivals", "random_walk", "ewma", "--test-from", "2014-04-01", "--quick"]
    stocks.main([*ask, "--model", "volatility_rnn", "--threads", "1", "--out", str(out)])
    found = {(row["system"], row["metric"]): row["value"] for row in json.loads(out.read_text())["rows"]}
    for system in ("hindcast volatility_rnn", "random_walk", "ewma"):
        assert 0.3 < found[system, "CRPS"] < 1.5
        assert 0.7 < found[system, "coverage of the 90 % interval"] <= 1.0
    assert 0 <= found["ewma", "CRPS, p against the network"] <= 1
    assert found["ewma", "CRPS less the network's"] == pytest.approx(
        found["ewma", "CRPS"] - found["hindcast volatility_rnn", "CRPS"]
    )
    assert "skill" in capsys.readouterr().err
