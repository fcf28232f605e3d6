"""Yahoo through the real yfinance, whose requests reach a server on this machine that answers as Yahoo does."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet
import pytest
from pydantic import TypeAdapter, ValidationError

from forecasting.errors import SourceError
from forecasting.panel import build_panel
from tests.yahoo import HALF, MALFORMED, NOT_FOUND, SESSIONS, TOO_MANY, Answer, Yahoo, chart, moment, serve_yahoo
from training.sources import AnySource, SourceContext, YahooSource

# yfinance 1.7 calls pandas in ways that 3.1 deprecates
pytestmark = pytest.mark.filterwarnings("ignore::pandas.errors.Pandas4Warning:yfinance")

LATER = [*SESSIONS, "2024-07-03"]


@pytest.fixture
def yahoo() -> Iterator[Yahoo]:
    with serve_yahoo() as server:
        yield server


class Job:
    """A source in a fresh folder, with its pauses written down and not slept."""

    def __init__(self, folder: Path) -> None:
        self.notes: list[str] = []
        self.pauses: list[float] = []
        self.context = SourceContext(folder, folder / "cache", self.notes.append)
        self.now: datetime | None = None

    def load(self, *tickers: str, **options: object) -> pd.DataFrame:
        source = YahooSource.model_validate(
            {"tickers": tickers, "start": "2024-06-27", "end": "2024-07-03"} | options
        )
        source._sleep = self.pauses.append
        if self.now is not None:
            at = self.now
            source._now = lambda: at
        return source.load(self.context)

    def kept(self, what: str) -> list[Path]:
        return sorted((self.context.cache_dir / "yahoo").glob(f"*.{what}.parquet"))

    def grow_older(self, hours: float) -> None:
        """Date what is kept back."""
        at = (datetime.now(UTC) - timedelta(hours=hours)).isoformat().encode()
        for path in [*self.kept("prices"), *self.kept("actions")]:
            table = pyarrow.parquet.read_table(path)
            pyarrow.parquet.write_table(
                table.replace_schema_metadata({**table.schema.metadata, b"fetched_at": at}), path
            )


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path)


def splits(day: str, ratio: float) -> dict[str, dict[str, dict[str, float]]]:
    return {"splits": {"1": {"date": moment(day), "numerator": ratio, "denominator": 1.0}}}


def test_tickers_become_series_on_session_dates(yahoo: Yahoo, job: Job) -> None:
    yahoo.answers = {"AAPL": [chart("AAPL", [1, 2, 3, 4])], "MSFT": [chart("MSFT", [5, 6, 7, 8])]}

    frame = job.load("aapl", "MSFT")

    prices = ["Open", "High", "Low", "Close", "Volume"]
    assert list(frame.columns) == ["unique_id", "ds", *prices, "Dividends", "Stock Splits", "Factor"]
    assert frame["ds"].dt.strftime("%Y-%m-%d").tolist() == SESSIONS * 2
    assert frame["ds"].dtype == "datetime64[us]"
    assert frame["Close"].tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert frame["Factor"].tolist() == [1] * 8
    panel = build_panel(frame.rename(columns={"Close": "y"}), "XNYS")
    assert panel.unique_ids == ("AAPL", "MSFT")
    assert panel.quality[0].n_missing == 0
    assert job.pauses == []


def test_all_there_is_is_asked_for_without_a_start(yahoo: Yahoo, job: Job) -> None:
    yahoo.answers = {"^GSPC": [chart("^GSPC", [1, 2, 3, 4])]}
    assert len(job.load("^GSPC", start=None, end=None)) == 4
    assert any("period1=-" in url for url in yahoo.asked)  # 99 years ago


def test_dates_are_those_of_the_exchange_and_not_of_utc(yahoo: Yahoo, job: Job) -> None:
    # The same moments are the next day's small hours in Sydney.
    yahoo.answers = {"BHP.AX": [chart("BHP.AX", [1, 2, 3, 4], zone="Australia/Sydney")]}
    frame = job.load("BHP.AX", end="2024-07-05")
    assert frame["ds"].dt.strftime("%Y-%m-%d").tolist() == ["2024-06-27", "2024-06-28", "2024-07-01", "2024-07-02"]


def test_yahoos_own_prices_stand_as_they_came_beside_splits_and_dividends(yahoo: Yahoo, job: Job) -> None:
    events = {
        "dividends": {"1": {"amount": 0.25, "date": moment("2024-06-28")}},
        "splits": {"2": {"date": moment("2024-07-01"), "numerator": 10.0, "denominator": 1.0}},
    }
    yahoo.answers = {"NVDA": [chart("NVDA", [10, 20, 30, 40], events=events)]}

    frame = job.load("NVDA", adjust="none")

    assert frame["Dividends"].tolist() == [0, 0.25, 0, 0]
    assert frame["Stock Splits"].tolist() == [0, 0, 10, 0]
    assert frame["Close"].tolist() == [10, 20, 30, 40]
    assert frame["Adj Close"].tolist() == [5, 10, 15, 20]


def test_adjusting_scales_prices_on_the_way_out_and_keeps_them_raw_on_disk(yahoo: Yahoo, job: Job) -> None:
    yahoo.answers = {"AAPL": [chart("AAPL", [10, 20, 30, 40])]}
    assert job.load("AAPL", adjust="back")["Open"].tolist() == [5, 10, 15, 20]
    assert job.load("AAPL", adjust="none")["Open"].tolist() == [10, 20, 30, 40]
    assert yahoo.prices_asked("AAPL") == 1


def test_prices_and_actions_are_kept_apart_as_fetched_with_the_time(yahoo: Yahoo, job: Job) -> None:
    events = {"dividends": {"1": {"amount": 0.25, "date": moment("2024-06-28")}}}
    yahoo.answers = {"AAPL": [chart("AAPL", [1, 2, None, 4], events=events)]}
    job.load("AAPL")

    prices, actions = (pyarrow.parquet.read_table(job.kept(what)[0]) for what in ("prices", "actions"))

    kept = prices.to_pandas().set_index("Date")
    assert list(kept.columns) == ["Open", "High", "Low", "Close", "Adj Close", "Volume"]
    assert str(kept.index.tz) == "America/New_York"
    assert kept["Close"].isna().tolist() == [False, False, True, False]
    assert actions.to_pandas()["Dividends"].tolist() == [0.25]
    fetched_at = datetime.fromisoformat(prices.schema.metadata[b"fetched_at"].decode())
    assert abs(datetime.now(UTC) - fetched_at) < timedelta(minutes=1)
    assert actions.schema.metadata[b"fetched_at"] == prices.schema.metadata[b"fetched_at"]


def test_a_rate_limit_is_waited_out_with_growing_pauses(yahoo: Yahoo, job: Job) -> None:
    # yfinance itself asks twice, with another cookie, before it gives an attempt up.
    yahoo.answers = {"AAPL": [TOO_MANY] * 6 + [chart("AAPL", [1, 2, 3, 4])]}

    assert len(job.load("AAPL", pause_seconds=4)) == 4

    assert len(job.pauses) == 3
    for pause, middle in zip(job.pauses, [4, 8, 16], strict=True):
        assert middle / 2 <= pause <= middle * 1.5
    assert all("AAPL: YFRateLimitError" in note and "asking again in" in note for note in job.notes)


def test_a_rate_limit_that_was_waited_out_does_not_keep_the_next_ticker_from_being_asked_for(
    yahoo: Yahoo, job: Job
) -> None:
    yahoo.answers = {"AAPL": [TOO_MANY] * 2 + [chart("AAPL", [1, 2, 3, 4])], "MSFT": [chart("MSFT", [1, 2, 3, 4])]}
    assert job.load("AAPL", "MSFT")["unique_id"].nunique() == 2


def test_a_half_failed_download_is_an_error_whatever_is_dropped(yahoo: Yahoo, job: Job) -> None:
    names = [f"S{n}" for n in range(10)]
    yahoo.answers = {name: [chart(name, [1, 2, 3, 4])] for name in names}
    for name in names[:2]:
        yahoo.answers[name] = [MALFORMED]
    options: dict[str, object] = {"on_failure": "drop", "max_attempts": 1}
    with pytest.raises(SourceError, match=r"Yahoo failed for 2 of 10 tickers: S0: no usable answer in 1 attempts"):
        job.load(*names, **options)
    yahoo.answers["S1"] = [chart("S1", [1, 2, 3, 4])]
    assert job.load(*names, **options)["unique_id"].nunique() == 9


def test_attempts_are_bounded_and_the_rest_is_not_asked_while_the_rate_is_limited(yahoo: Yahoo, job: Job) -> None:
    yahoo.answers = {"AAPL": [TOO_MANY], "MSFT": [chart("MSFT", [1, 2, 3, 4])]}
    with pytest.raises(
        SourceError, match=r"2 of 2 tickers: AAPL: no usable answer in 3 attempts.*MSFT: not asked"
    ):
        job.load("AAPL", "MSFT", max_attempts=3)
    assert len(job.pauses) == 2
    assert yahoo.prices_asked("MSFT") == 0


def test_pauses_end_at_a_minute_give_or_take_half(yahoo: Yahoo, job: Job) -> None:
    yahoo.answers = {"AAPL": [TOO_MANY]}
    with pytest.raises(SourceError, match="8 attempts"):
        job.load("AAPL", max_attempts=8, pause_seconds=30)
    assert max(job.pauses) <= 90


def test_a_delisted_ticker_is_named_and_not_asked_for_again(yahoo: Yahoo, job: Job) -> None:
    yahoo.answers = {"AAPL": [chart("AAPL", [1, 2, 3, 4])]}
    with pytest.raises(
        SourceError, match=r"Yahoo failed for 1 of 2 tickers: TWTR: Yahoo knows no such ticker; it may be delisted"
    ):
        job.load("AAPL", "TWTR")
    assert job.pauses == []


def test_a_ticker_without_prices_in_the_range_is_named_with_yahoos_reason(yahoo: Yahoo, job: Job) -> None:
    yahoo.answers = {"AAPL": [chart("AAPL", [1, 2, 3, 4]), NOT_FOUND]}
    job.load("AAPL")
    with pytest.raises(SourceError, match=r"AAPL: .*No data found, symbol may be delisted"):
        job.load("AAPL", start="2024-06-20")
    assert job.pauses == []


def test_tickers_beyond_the_first_two_are_found_to_be_gone_as_well(yahoo: Yahoo, job: Job) -> None:
    # yfinance looks elsewhere for the time zone of the first two it does not find, and then no more.
    with pytest.raises(SourceError, match=r"3 of 3 tickers: A: .* delisted; B: .* delisted; C: .*delisted"):
        job.load("A", "B", "C")
    assert job.pauses == []


def test_no_message_quotes_the_crumb_of_the_session(yahoo: Yahoo, job: Job) -> None:
    yahoo.elsewhere = (500, "oops")
    with pytest.raises(SourceError, match="delisted") as failed:
        job.load("TWTR")
    assert "TWTR: HTTPError: status 500; asking again" in job.notes[0]
    assert not [text for text in [str(failed.value), *job.notes] if "crumb" in text]


def test_dropping_a_failed_ticker_keeps_the_others_and_says_so(yahoo: Yahoo, job: Job) -> None:
    yahoo.answers = {"AAPL": [chart("AAPL", [1, 2, 3, 4])]}
    frame = job.load("TWTR", "AAPL", on_failure="drop")
    assert frame["unique_id"].unique().tolist() == ["AAPL"]
    assert len(job.notes) == 1
    assert job.notes[0].startswith("left out TWTR: ")


def test_dropping_every_ticker_is_an_error_all_the_same(yahoo: Yahoo, job: Job) -> None:
    with pytest.raises(SourceError, match=r"failed for 2 of 2 tickers: TWTR: .*; YHOO: "):
        job.load("TWTR", "YHOO", on_failure="drop")


@pytest.mark.parametrize("answer", [MALFORMED, HALF, chart("AAPL", [None] * 4), (500, "oops"), (200, "{}")])
def test_a_broken_answer_is_asked_for_again(yahoo: Yahoo, job: Job, answer: Answer) -> None:
    yahoo.answers = {"AAPL": [chart("AAPL", [1, 2, 3, 4])]}
    job.load("AAPL", end="2024-07-02")  # the time zone is known from now on
    yahoo.answers = {"AAPL": [answer, answer, chart("AAPL", [1, 2, 3, 4])]}
    assert job.load("AAPL")["Close"].tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (MALFORMED, "JSONDecodeError"),
        (HALF, "half an answer: 1 of 4 sessions have prices"),
        (chart("AAPL", [None] * 4), "half an answer: 0 of 4 sessions have prices"),
    ],
)
def test_an_answer_that_stays_broken_is_an_error_with_the_ticker_and_the_reason(
    yahoo: Yahoo, job: Job, answer: Answer, reason: str
) -> None:
    yahoo.answers = {"AAPL": [answer]}
    with pytest.raises(SourceError, match=rf"AAPL: no usable answer in 4 attempts; .*{reason}"):
        job.load("AAPL")
    assert len(job.pauses) == 3
    assert job.kept("prices") == []


def test_a_time_zone_that_is_none_is_an_error_with_the_ticker(yahoo: Yahoo, job: Job) -> None:
    yahoo.answers = {"AAPL": [chart("AAPL", [1, 2, 3, 4], zone="Mars/Olympus")]}
    with pytest.raises(SourceError, match=r"AAPL: .*no timezone found"):
        job.load("AAPL")


def test_a_session_without_prices_is_left_out_and_counted(yahoo: Yahoo, job: Job) -> None:
    yahoo.answers = {"AAPL": [chart("AAPL", [1, None, 3, 4])]}
    assert job.load("AAPL")["Close"].tolist() == [1, 3, 4]
    assert job.notes == ["AAPL: 1 of 4 sessions came without prices, left out"]


def test_a_young_copy_is_used_without_asking(yahoo: Yahoo, job: Job) -> None:
    yahoo.answers = {"AAPL": [chart("AAPL", [1, 2, 3, 4])]}
    first = job.load("AAPL")
    yahoo.asked.clear()
    job.grow_older(11)
    pd.testing.assert_frame_equal(job.load("AAPL"), first)
    assert yahoo.asked == []


def test_an_old_copy_is_replaced(yahoo: Yahoo, job: Job) -> None:
    yahoo.answers = {"AAPL": [chart("AAPL", [1, 2, 3, 4]), chart("AAPL", [5, 6, 7, 8])]}
    job.load("AAPL")
    job.grow_older(13)
    assert job.load("AAPL")["Close"].tolist() == [5, 6, 7, 8]
    assert job.load("AAPL", max_age_hours=1)["Close"].tolist() == [5, 6, 7, 8]
    assert yahoo.prices_asked("AAPL") == 2


def test_no_copy_is_young_enough_for_an_age_of_zero(yahoo: Yahoo, job: Job) -> None:
    yahoo.answers = {"AAPL": [chart("AAPL", [1, 2, 3, 4]), chart("AAPL", [5, 6, 7, 8])]}
    job.load("AAPL")
    assert job.load("AAPL", max_age_hours=0)["Close"].tolist() == [5, 6, 7, 8]


def test_a_copy_serves_only_the_range_it_was_fetched_for(yahoo: Yahoo, job: Job) -> None:
    yahoo.answers = {"AAPL": [chart("AAPL", [1, 2, 3, 4]), chart("AAPL", [5, 6, 7, 8])]}
    job.load("AAPL")
    assert job.load("AAPL", start="2024-06-01")["Close"].tolist() == [5, 6, 7, 8]


def test_an_old_copy_serves_while_the_wire_is_down_and_its_age_is_told(yahoo: Yahoo, job: Job) -> None:
    yahoo.answers = {"AAPL": [chart("AAPL", [1, 2, 3, 4])]}
    job.load("AAPL")
    job.grow_older(50)
    yahoo.close()
    assert job.load("AAPL", max_attempts=2)["Close"].tolist() == [1, 2, 3, 4]
    assert len(job.pauses) == 1
    assert "ConnectionError" in job.notes[-1]
    assert job.notes[-1].endswith("used the copy fetched 50.0 hours ago")


def test_without_a_copy_a_wire_that_is_down_is_an_error(yahoo: Yahoo, job: Job) -> None:
    yahoo.close()
    with pytest.raises(SourceError, match="AAPL: no usable answer in 2 attempts"):
        job.load("AAPL", max_attempts=2)


def test_an_old_copy_does_not_hide_that_a_ticker_is_gone(yahoo: Yahoo, job: Job) -> None:
    yahoo.answers = {"AAPL": [chart("AAPL", [1, 2, 3, 4]), NOT_FOUND]}
    job.load("AAPL")
    job.grow_older(50)
    with pytest.raises(SourceError, match="delisted"):
        job.load("AAPL")


@pytest.mark.parametrize("what", ["prices", "actions"])
@pytest.mark.parametrize("damage", [b"", b"not parquet at all"])
def test_a_damaged_copy_is_fetched_again(yahoo: Yahoo, job: Job, what: str, damage: bytes) -> None:
    yahoo.answers = {"AAPL": [chart("AAPL", [1, 2, 3, 4])]}
    job.load("AAPL")
    job.kept(what)[0].write_bytes(damage)
    assert job.load("AAPL")["Close"].tolist() == [1, 2, 3, 4]
    assert yahoo.prices_asked("AAPL") == 2


def test_a_cache_that_cannot_be_written_costs_the_copy_and_not_the_data(yahoo: Yahoo, job: Job) -> None:
    yahoo.answers = {"AAPL": [chart("AAPL", [1, 2, 3, 4])]}
    job.context.cache_dir.write_text("a file where a folder should be")
    assert job.load("AAPL")["Close"].tolist() == [1, 2, 3, 4]
    assert job.notes[0].startswith("AAPL: what was fetched could not be kept")
    assert job.notes[1].startswith("AAPL: what is known as traded could not be kept")


def test_prices_and_actions_of_two_fetches_are_no_copy(yahoo: Yahoo, job: Job) -> None:
    yahoo.answers = {"AAPL": [chart("AAPL", [1, 2, 3, 4])]}
    job.load("AAPL")
    older = job.kept("actions")[0].read_bytes()
    job.load("AAPL", max_age_hours=0)
    job.kept("actions")[0].write_bytes(older)
    job.load("AAPL")
    assert yahoo.prices_asked("AAPL") == 3


def test_a_later_split_moves_nothing_before_it_not_by_a_bit(yahoo: Yahoo, job: Job) -> None:
    rng = np.random.default_rng(4)
    closes = np.round(100 + rng.normal(size=4), 2)
    # Yahoo has single precision, and divides all of it by the new split.
    sent = [float(np.float32(close)) for close in closes]
    resent = [float(np.float32(close / 3)) for close in closes]
    volumes = [3000, 3003, 3006, 3009, 2000]
    later = chart("AAPL", [*resent, 34.5], sessions=LATER, volumes=volumes, events=splits("2024-07-03", 3.0))
    yahoo.answers = {"AAPL": [chart("AAPL", sent), later]}
    before = job.load("AAPL", end=None, max_age_hours=0)
    after = job.load("AAPL", end=None, max_age_hours=0)
    pd.testing.assert_frame_equal(after[:4], before, check_exact=True)
    assert after["Factor"].tolist() == [1, 1, 1, 1, 3]
    assert after["Close"].iloc[4] == 34.5 * 3
    assert job.notes == []


@pytest.mark.parametrize(("again", "moves"), [(0.000469, False), (0.002, True)])
def test_a_small_dividend_that_a_split_leaves_few_digits_is_not_restated(
    yahoo: Yahoo, job: Job, again: float, moves: bool
) -> None:
    def told(amount: float) -> dict[str, dict[str, dict[str, float]]]:
        return {"dividends": {"1": {"amount": amount, "date": moment("2024-06-28")}}}

    # Six decimals, whatever the splits: of 0.001875 in new shares, four for one, that is 0.000469.
    later = chart(
        "NVDA",
        [0.1, 0.1, 0.11, 0.12, 0.13],
        sessions=LATER,
        volumes=[4000, 4004, 4008, 4012, 2000],
        events=told(again) | splits("2024-07-03", 4.0),
    )
    yahoo.answers = {"NVDA": [chart("NVDA", [0.4, 0.4, 0.44, 0.48], events=told(0.001875)), later]}
    before = job.load("NVDA", end=None, max_age_hours=0)
    after = job.load("NVDA", end=None, max_age_hours=0)
    assert after[:4].equals(before) is not moves
    assert [note.startswith("NVDA: its history was restated: Dividends of") for note in job.notes] == [
        True
    ] * moves


def test_a_later_dividend_moves_nothing_before_it(yahoo: Yahoo, job: Job) -> None:
    events = {"dividends": {"1": {"amount": 2.0, "date": moment("2024-07-03")}}}
    later = chart("AAPL", [10, 20, 30, 40, 40], sessions=LATER, events=events)
    yahoo.answers = {"AAPL": [chart("AAPL", [10, 20, 30, 40]), later]}
    before = job.load("AAPL", end=None, max_age_hours=0)
    after = job.load("AAPL", end=None, max_age_hours=0)
    pd.testing.assert_frame_equal(after[:4], before, check_exact=True)
    assert after["Close"].iloc[4] == pytest.approx(40 / (1 - 2 / 40))


def test_splits_after_the_end_of_what_is_wanted_are_undone_too(yahoo: Yahoo, job: Job) -> None:
    events = splits("2024-07-03", 2.0)
    yahoo.answers = {"AAPL": [chart("AAPL", [5, 10, 15, 20, 21], sessions=LATER, events=events)]}
    assert job.load("AAPL", end="2024-07-03")["Close"].tolist() == [10, 20, 30, 40]
    assert all("period2=17199" not in url for url in yahoo.asked)  # July 2024: more is asked for than is wanted


def test_prices_that_are_said_differently_later_are_told_and_kept_with_both_values(yahoo: Yahoo, job: Job) -> None:
    yahoo.answers = {"AAPL": [chart("AAPL", [10, 20, 30, 40]), chart("AAPL", [10, 22, 30, 40])]}
    job.load("AAPL")
    assert job.load("AAPL", max_age_hours=0)["Close"].tolist() == [10, 22, 30, 40]
    assert job.notes == [
        "AAPL: its history was restated: Open of 2024-06-28 was 20, now 22; High of 2024-06-28 was 20, now 22; "
        "Low of 2024-06-28 was 20, now 22; Close of 2024-06-28 was 20, now 22"
    ]
    (kept,) = (job.context.cache_dir / "yahoo").glob("*.restated.csv")
    lines = pd.read_csv(kept)
    assert lines["column"].tolist() == ["Open", "High", "Low", "Close"]
    assert lines[["session", "old", "new"]].drop_duplicates().values.tolist() == [["2024-06-28", 20, 22]]
    job.load("AAPL", max_age_hours=0)
    assert len(job.notes) == 1
    traded = pyarrow.parquet.read_table(job.kept("traded")[0]).to_pandas()
    assert traded["Known At"].nunique() == 2
    assert traded["Known At"].argmax() == 1


def test_a_restated_action_is_told(yahoo: Yahoo, job: Job) -> None:
    events = {"dividends": {"1": {"amount": 0.25, "date": moment("2024-06-28")}}}
    closes: list[float | None] = [10, 20, 30, 40]
    yahoo.answers = {"AAPL": [chart("AAPL", closes), chart("AAPL", closes, events=events)]}
    job.load("AAPL")
    job.load("AAPL", max_age_hours=0)
    assert job.notes == ["AAPL: its history was restated: Dividends of 2024-06-28 was 0, now 0.25"]


def test_a_session_that_is_no_longer_sent_stays_known(yahoo: Yahoo, job: Job) -> None:
    shorter = chart("AAPL", [10, 30, 40], sessions=[SESSIONS[0], *SESSIONS[2:]], volumes=[1000, 1002, 1003])
    yahoo.answers = {"AAPL": [chart("AAPL", [10, 20, 30, 40]), shorter]}
    before = job.load("AAPL")
    pd.testing.assert_frame_equal(job.load("AAPL", max_age_hours=0), before)
    assert job.notes == ["AAPL: its history was restated: Close of 2024-06-28 was 20, now nothing"]


def test_many_restated_values_make_one_bounded_line(yahoo: Yahoo, job: Job) -> None:
    yahoo.answers = {"AAPL": [chart("AAPL", [10, 20, 30, 40]), chart("AAPL", [11, 22, 33, 44])]}
    job.load("AAPL")
    job.load("AAPL", max_age_hours=0)
    (note,) = job.notes
    assert note.endswith("Open of 2024-06-28 was 20, now 22; and 11 more")


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("2024-07-02 15:59", 3),  # while the session runs
        ("2024-07-02 16:10", 3),  # quotes are a quarter of an hour late
        ("2024-07-02 16:15", 4),
        ("2024-07-02 19:00", 4),
    ],
)
def test_the_session_of_today_counts_once_it_is_over(yahoo: Yahoo, job: Job, asked: str, expected: int) -> None:
    yahoo.answers = {"AAPL": [chart("AAPL", [10, 20, 30, 40])]}
    job.now = pd.Timestamp(asked, tz="America/New_York").to_pydatetime()
    job.context = replace(job.context, freq="XNYS")
    frame = job.load("AAPL", end=None)
    assert len(frame) == expected
    # What a running session was quoted at is not history that would be restated.
    job.now += timedelta(hours=30)
    yahoo.answers = {"AAPL": [chart("AAPL", [10, 20, 30, 41])]}
    assert job.load("AAPL", end=None)["Close"].tolist() == [10, 20, 30, 41]
    assert len(job.notes) == (expected == 4)


def test_half_a_day_is_over_at_its_early_close(yahoo: Yahoo, job: Job) -> None:
    days = ["2024-07-01", "2024-07-02", "2024-07-03"]  # the third ends at one o'clock
    yahoo.answers = {"AAPL": [chart("AAPL", [10, 20, 30], sessions=days)]}
    job.context = replace(job.context, freq="XNYS")
    for asked, expected in (("2024-07-03 12:30", 2), ("2024-07-03 13:20", 3)):
        job.now = pd.Timestamp(asked, tz="America/New_York").to_pydatetime()
        assert len(job.load("AAPL", end=None, max_age_hours=0)) == expected


def test_without_an_exchange_a_session_is_over_when_its_day_is(yahoo: Yahoo, job: Job) -> None:
    yahoo.answers = {"BTC-USD": [chart("BTC-USD", [10, 20, 30, 40], zone="UTC")]}
    for asked, expected in (("2024-07-02 23:00", 3), ("2024-07-03 01:00", 4)):
        job.now = pd.Timestamp(asked, tz="UTC").to_pydatetime()
        assert len(job.load("BTC-USD", end=None, max_age_hours=0)) == expected


@pytest.mark.parametrize(("ticker", "zone"), [("BTC-USD", "UTC"), ("BHP.AX", "Australia/Sydney")])
def test_a_ticker_of_another_exchange_is_refused_with_both_time_zones(
    yahoo: Yahoo, job: Job, ticker: str, zone: str
) -> None:
    job.context = replace(job.context, freq="XNYS")
    yahoo.answers = {
        ticker: [chart(ticker, [1, 2, 3, 4], zone=zone)],
        "AAPL": [chart("AAPL", [1, 2, 3, 4])],
    }
    message = rf"{ticker}: keeps the hours of {zone}, and XNYS those of America/New_York"
    with pytest.raises(SourceError, match=message):
        job.load(ticker)
    assert job.load(ticker, "AAPL", on_failure="drop")["unique_id"].unique().tolist() == ["AAPL"]


def test_dates_the_exchange_does_not_have_are_left_out_or_refused(yahoo: Yahoo, job: Job) -> None:
    job.context = replace(job.context, freq="XNYS")
    days = ["2024-06-27", "2024-06-28", "2024-06-29", "2024-06-30", "2024-07-01"]
    yahoo.answers = {"AAPL": [chart("AAPL", [1, 2, 3, 4, 5], sessions=days)]}
    assert job.load("AAPL")["Close"].tolist() == [1, 2, 5]
    assert job.notes == ["AAPL: 2024-06-29, 2024-06-30 left out: no session of XNYS"]
    every = [f"{day:%Y-%m-%d}" for day in pd.date_range("2024-06-15", "2024-07-01")]
    yahoo.answers = {"ODD": [chart("ODD", [1.0] * len(every), sessions=every)]}
    with pytest.raises(SourceError, match=r"ODD: was traded on 7 of 17 dates on which XNYS was not, such as"):
        job.load("ODD", start="2024-06-01")


def test_sessions_nothing_came_of_are_told_and_stay_missing(yahoo: Yahoo, job: Job) -> None:
    job.context = replace(job.context, freq="XNYS")
    days = ["2024-06-27", "2024-07-01", "2024-07-02"]
    yahoo.answers = {"AAPL": [chart("AAPL", [1, 2, 3], sessions=days)]}
    frame = job.load("AAPL")
    assert job.notes == ["AAPL: nothing came of 1 sessions of XNYS: 2024-06-28"]
    assert build_panel(frame.rename(columns={"Close": "y"}), "XNYS").quality[0].n_missing == 1


def test_a_name_that_was_given_to_another_share_is_refused(yahoo: Yahoo, job: Job) -> None:
    days = [f"{day:%Y-%m-%d}" for day in pd.bdate_range("2024-05-01", periods=30)]
    other = chart(
        "FB", [25.0] * 12, sessions=[f"{day:%Y-%m-%d}" for day in pd.bdate_range("2024-06-13", periods=12)]
    )
    yahoo.answers = {"FB": [chart("FB", [300.0] * 30, sessions=days), other]}
    job.load("FB")
    for _ in range(2):
        with pytest.raises(
            SourceError, match=r"FB: is said to have been something else on 30 of 30 sessions.*delete"
        ):
            job.load("FB", max_age_hours=0)


def test_a_young_copy_is_not_used_once_a_session_has_ended_since(yahoo: Yahoo, job: Job) -> None:
    job.context = replace(job.context, freq="XNYS")
    yahoo.answers = {"AAPL": [chart("AAPL", [1, 2, 3, 4])]}
    asked = ["15:00", "16:05", "16:20", "16:30"]
    for clock, expected, times in zip(asked, [3, 3, 4, 4], [1, 1, 2, 2], strict=True):
        job.now = pd.Timestamp(f"2024-07-02 {clock}", tz="America/New_York").to_pydatetime()
        assert len(job.load("AAPL", end=None)) == expected
        assert yahoo.prices_asked("AAPL") == times


@pytest.mark.parametrize("damage", [b"", b"not parquet at all"])
def test_a_damaged_record_of_what_was_traded_is_begun_anew(yahoo: Yahoo, job: Job, damage: bytes) -> None:
    yahoo.answers = {"AAPL": [chart("AAPL", [1, 2, 3, 4])]}
    before = job.load("AAPL")
    job.kept("traded")[0].write_bytes(damage)
    pd.testing.assert_frame_equal(job.load("AAPL"), before)
    assert job.notes == []


def test_without_yfinance_the_error_says_what_to_install(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "yfinance", None)
    with pytest.raises(SourceError, match=r"pip install hindcast\[yahoo\]"):
        job.load("AAPL")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tickers", []),
        ("tickers", ["../secrets"]),
        ("tickers", ["AAPL", "aapl"]),
        ("start", "2024-07-03"),
        ("max_attempts", 0),
        ("pause_seconds", 0),
        ("max_age_hours", -1),
        ("on_failure", "ignore"),
        ("adjust", True),
        ("interval", "1h"),
        ("_sleep", "x"),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused(field: str, value: object) -> None:
    config = {
        "kind": "yahoo",
        "tickers": ["AAPL"],
        "start": date(2024, 1, 1),
        "end": date(2024, 7, 3),
        field: value,
    }
    with pytest.raises(ValidationError, match=field):
        TypeAdapter(AnySource).validate_python(config)
