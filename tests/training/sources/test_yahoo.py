"""Yahoo through the real yfinance, whose requests reach a server on this machine that answers as Yahoo does."""

import gzip
import json
import os
import threading
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pandas as pd
import pyarrow.parquet
import pytest
import requests
from pydantic import TypeAdapter, ValidationError
from requests.adapters import HTTPAdapter

from forecasting.errors import SourceError
from forecasting.panel import build_panel
from training.sources import AnySource, SourceContext, YahooSource

os.environ["YF_DISABLE_CURL_CFFI"] = "1"  # read when yfinance is imported; its sessions are then of requests
yf_base, yf_cache, yf_data = (import_module(f"yfinance.{name}") for name in ("base", "cache", "data"))

# yfinance 1.7 calls pandas in ways that 3.1 deprecates
pytestmark = pytest.mark.filterwarnings("ignore::pandas.errors.Pandas4Warning:yfinance")

SESSIONS = ["2024-06-27", "2024-06-28", "2024-07-01", "2024-07-02"]
Answer = tuple[int, str]


def _chart(
    ticker: str,
    closes: list[float | None],
    *,
    zone: str = "America/New_York",
    sessions: list[str] = SESSIONS,
    events: dict[str, dict[str, dict[str, float]]] | None = None,
) -> Answer:
    """Answer as /v8/finance/chart does: columns of numbers on the exchange's opening times."""
    opening = [int(pd.Timestamp(f"{day} 09:30", tz="America/New_York").timestamp()) for day in sessions]
    prices = dict.fromkeys(("open", "high", "low", "close"), closes)
    volume = [None if close is None else 1000 + n for n, close in enumerate(closes)]
    adjusted = [None if close is None else close / 2 for close in closes]
    result = {
        "meta": {
            "symbol": ticker,
            "currency": "USD",
            "instrumentType": "EQUITY",
            "exchangeTimezoneName": zone,
            "validRanges": ["1d", "max"],
            "priceHint": 2,
        },
        "timestamp": opening,
        "events": events or {},
        "indicators": {"quote": [prices | {"volume": volume}], "adjclose": [{"adjclose": adjusted}]},
    }
    return 200, json.dumps({"chart": {"result": [result], "error": None}})


def _moment(day: str) -> int:
    return int(pd.Timestamp(f"{day} 09:30", tz="America/New_York").timestamp())


NOT_FOUND: Answer = (
    404,
    json.dumps(
        {
            "chart": {
                "result": None,
                "error": {"code": "Not Found", "description": "No data found, symbol may be delisted"},
            }
        }
    ),
)
TOO_MANY: Answer = (429, "Too Many Requests")
MALFORMED: Answer = (200, '{"chart": {"result": [{"meta": ')
HALF: Answer = _chart("HALF", [None, None, None, 4.0])


class Yahoo:
    """A server that answers each ticker with what it was told, in turn, the last answer for ever."""

    def __init__(self) -> None:
        self.answers: dict[str, list[Answer]] = {}
        self.elsewhere: Answer = (404, "{}")
        self.asked: list[str] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def prices_asked(self, ticker: str) -> int:
        """Return how often the prices (and not only the time zone) of a ticker were asked for."""
        return sum(f"/chart/{ticker}?" in url and "period1" in url for url in self.asked)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _answer(self, url: str) -> Answer:
        self.asked.append(url)
        path = urlsplit(url).path
        if path.endswith("/getcrumb"):
            return 200, "a-crumb"
        if "/v8/finance/chart/" not in path:
            return self.elsewhere
        told = self.answers.get(unquote(path).rsplit("/", 1)[1], [NOT_FOUND])
        wants_prices = "period1" in url
        return told.pop(0) if wants_prices and len(told) > 1 else _time_zone_or_prices(told[0], wants_prices)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        yahoo = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, text = yahoo._answer(self.path)
                body = gzip.compress(text.encode())
                self.send_response(status)
                self.send_header("Content-Encoding", "gzip")
                self.send_header("Set-Cookie", "A3=a-cookie; Domain=.yahoo.com; Path=/; Max-Age=3600")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the base class's name
                pass

        return Handler


def _time_zone_or_prices(answer: Answer, wants_prices: bool) -> Answer:
    """Let only price requests fail in passing: the time zone of a ticker is asked for first, and once."""
    passing = answer in (TOO_MANY, MALFORMED)
    return _chart("ANY", [1.0], sessions=SESSIONS[:1]) if passing and not wants_prices else answer


class ToYahoo(HTTPAdapter):
    """Send what is addressed to any https host to the server on this machine."""

    def __init__(self, address: str) -> None:
        super().__init__()
        self._address = address

    def send(self, request: requests.PreparedRequest, **options: object) -> requests.Response:
        rerouted = request.copy()
        rerouted.url = f"{self._address}{request.path_url}"
        response = super().send(rerouted, **options)  # type: ignore[arg-type]
        response.url = str(request.url)
        return response


@pytest.fixture
def yahoo() -> Iterator[Yahoo]:
    server = Yahoo()
    session = requests.Session()
    session.trust_env = False
    session.mount("https://", ToYahoo(server.address))
    yf_data.SingletonMeta._instances.clear()
    yf_data.YfData(session=session)  # the one session all of yfinance asks through
    yf_base._tz_info_fetch_ctr = 0
    for manager, kept in (("_TzCacheManager", "_tz_cache"), ("_CookieCacheManager", "_Cookie_cache")):
        setattr(getattr(yf_cache, manager), kept, None)
    yield server
    server.close()
    session.close()


class Job:
    """A source in a fresh folder, with its pauses written down and not slept."""

    def __init__(self, folder: Path) -> None:
        self.notes: list[str] = []
        self.pauses: list[float] = []
        self.context = SourceContext(folder, folder / "cache", self.notes.append)

    def load(self, *tickers: str, **options: object) -> pd.DataFrame:
        source = YahooSource.model_validate(
            {"tickers": tickers, "start": "2024-06-27", "end": "2024-07-03"} | options
        )
        source._sleep = self.pauses.append
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


def test_tickers_become_series_on_session_dates(yahoo: Yahoo, job: Job) -> None:
    yahoo.answers = {"AAPL": [_chart("AAPL", [1, 2, 3, 4])], "MSFT": [_chart("MSFT", [5, 6, 7, 8])]}

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
    yahoo.answers = {"^GSPC": [_chart("^GSPC", [1, 2, 3, 4])]}
    assert len(job.load("^GSPC", start=None, end=None)) == 4
    assert any("period1=-" in url for url in yahoo.asked)  # 99 years ago


def test_dates_are_those_of_the_exchange_and_not_of_utc(yahoo: Yahoo, job: Job) -> None:
    # The same moments are the next day's small hours in Sydney.
    yahoo.answers = {"BHP.AX": [_chart("BHP.AX", [1, 2, 3, 4], zone="Australia/Sydney")]}
    frame = job.load("BHP.AX", end="2024-07-05")
    assert frame["ds"].dt.strftime("%Y-%m-%d").tolist() == ["2024-06-27", "2024-06-28", "2024-07-01", "2024-07-02"]


def test_yahoos_own_prices_stand_as_they_came_beside_splits_and_dividends(yahoo: Yahoo, job: Job) -> None:
    events = {
        "dividends": {"1": {"amount": 0.25, "date": _moment("2024-06-28")}},
        "splits": {"2": {"date": _moment("2024-07-01"), "numerator": 10.0, "denominator": 1.0}},
    }
    yahoo.answers = {"NVDA": [_chart("NVDA", [10, 20, 30, 40], events=events)]}

    frame = job.load("NVDA", adjust="none")

    assert frame["Dividends"].tolist() == [0, 0.25, 0, 0]
    assert frame["Stock Splits"].tolist() == [0, 0, 10, 0]
    assert frame["Close"].tolist() == [10, 20, 30, 40]
    assert frame["Adj Close"].tolist() == [5, 10, 15, 20]


def test_adjusting_scales_prices_on_the_way_out_and_keeps_them_raw_on_disk(yahoo: Yahoo, job: Job) -> None:
    yahoo.answers = {"AAPL": [_chart("AAPL", [10, 20, 30, 40])]}
    assert job.load("AAPL", adjust="back")["Open"].tolist() == [5, 10, 15, 20]
    assert job.load("AAPL", adjust="none")["Open"].tolist() == [10, 20, 30, 40]
    assert yahoo.prices_asked("AAPL") == 1


def test_prices_and_actions_are_kept_apart_as_fetched_with_the_time(yahoo: Yahoo, job: Job) -> None:
    events = {"dividends": {"1": {"amount": 0.25, "date": _moment("2024-06-28")}}}
    yahoo.answers = {"AAPL": [_chart("AAPL", [1, 2, None, 4], events=events)]}
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
    yahoo.answers = {"AAPL": [TOO_MANY] * 6 + [_chart("AAPL", [1, 2, 3, 4])]}

    assert len(job.load("AAPL", pause_seconds=4)) == 4

    assert len(job.pauses) == 3
    for pause, middle in zip(job.pauses, [4, 8, 16], strict=True):
        assert middle / 2 <= pause <= middle * 1.5
    assert all("AAPL: YFRateLimitError" in note and "asking again in" in note for note in job.notes)


def test_attempts_are_bounded_and_the_rest_is_not_asked_while_the_rate_is_limited(yahoo: Yahoo, job: Job) -> None:
    yahoo.answers = {"AAPL": [TOO_MANY], "MSFT": [_chart("MSFT", [1, 2, 3, 4])]}
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
    yahoo.answers = {"AAPL": [_chart("AAPL", [1, 2, 3, 4])]}
    with pytest.raises(
        SourceError, match=r"Yahoo failed for 1 of 2 tickers: TWTR: Yahoo knows no such ticker; it may be delisted"
    ):
        job.load("AAPL", "TWTR")
    assert job.pauses == []


def test_a_ticker_without_prices_in_the_range_is_named_with_yahoos_reason(yahoo: Yahoo, job: Job) -> None:
    yahoo.answers = {"AAPL": [_chart("AAPL", [1, 2, 3, 4]), NOT_FOUND]}
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
    yahoo.answers = {"AAPL": [_chart("AAPL", [1, 2, 3, 4])]}
    frame = job.load("TWTR", "AAPL", on_failure="drop")
    assert frame["unique_id"].unique().tolist() == ["AAPL"]
    assert len(job.notes) == 1
    assert job.notes[0].startswith("left out TWTR: ")


def test_dropping_every_ticker_is_an_error_all_the_same(yahoo: Yahoo, job: Job) -> None:
    with pytest.raises(SourceError, match=r"failed for 2 of 2 tickers: TWTR: .*; YHOO: "):
        job.load("TWTR", "YHOO", on_failure="drop")


@pytest.mark.parametrize("answer", [MALFORMED, HALF, _chart("AAPL", [None] * 4), (500, "oops"), (200, "{}")])
def test_a_broken_answer_is_asked_for_again(yahoo: Yahoo, job: Job, answer: Answer) -> None:
    yahoo.answers = {"AAPL": [_chart("AAPL", [1, 2, 3, 4])]}
    job.load("AAPL", end="2024-07-02")  # the time zone is known from now on
    yahoo.answers = {"AAPL": [answer, answer, _chart("AAPL", [1, 2, 3, 4])]}
    assert job.load("AAPL")["Close"].tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (MALFORMED, "JSONDecodeError"),
        (HALF, "half an answer: 1 of 4 sessions have prices"),
        (_chart("AAPL", [None] * 4), "half an answer: 0 of 4 sessions have prices"),
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
    yahoo.answers = {"AAPL": [_chart("AAPL", [1, 2, 3, 4], zone="Mars/Olympus")]}
    with pytest.raises(SourceError, match=r"AAPL: .*no timezone found"):
        job.load("AAPL")


def test_a_session_without_prices_is_left_out_and_counted(yahoo: Yahoo, job: Job) -> None:
    yahoo.answers = {"AAPL": [_chart("AAPL", [1, None, 3, 4])]}
    assert job.load("AAPL")["Close"].tolist() == [1, 3, 4]
    assert job.notes == ["AAPL: 1 of 4 sessions came without prices, left out"]


def test_a_young_copy_is_used_without_asking(yahoo: Yahoo, job: Job) -> None:
    yahoo.answers = {"AAPL": [_chart("AAPL", [1, 2, 3, 4])]}
    first = job.load("AAPL")
    yahoo.asked.clear()
    job.grow_older(11)
    pd.testing.assert_frame_equal(job.load("AAPL"), first)
    assert yahoo.asked == []


def test_an_old_copy_is_replaced(yahoo: Yahoo, job: Job) -> None:
    yahoo.answers = {"AAPL": [_chart("AAPL", [1, 2, 3, 4]), _chart("AAPL", [5, 6, 7, 8])]}
    job.load("AAPL")
    job.grow_older(13)
    assert job.load("AAPL")["Close"].tolist() == [5, 6, 7, 8]
    assert job.load("AAPL", max_age_hours=1)["Close"].tolist() == [5, 6, 7, 8]
    assert yahoo.prices_asked("AAPL") == 2


def test_no_copy_is_young_enough_for_an_age_of_zero(yahoo: Yahoo, job: Job) -> None:
    yahoo.answers = {"AAPL": [_chart("AAPL", [1, 2, 3, 4]), _chart("AAPL", [5, 6, 7, 8])]}
    job.load("AAPL")
    assert job.load("AAPL", max_age_hours=0)["Close"].tolist() == [5, 6, 7, 8]


def test_a_copy_serves_only_the_range_it_was_fetched_for(yahoo: Yahoo, job: Job) -> None:
    yahoo.answers = {"AAPL": [_chart("AAPL", [1, 2, 3, 4]), _chart("AAPL", [5, 6, 7, 8])]}
    job.load("AAPL")
    assert job.load("AAPL", start="2024-06-01")["Close"].tolist() == [5, 6, 7, 8]


def test_an_old_copy_serves_while_the_wire_is_down_and_its_age_is_told(yahoo: Yahoo, job: Job) -> None:
    yahoo.answers = {"AAPL": [_chart("AAPL", [1, 2, 3, 4])]}
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
    yahoo.answers = {"AAPL": [_chart("AAPL", [1, 2, 3, 4]), NOT_FOUND]}
    job.load("AAPL")
    job.grow_older(50)
    with pytest.raises(SourceError, match="delisted"):
        job.load("AAPL")


@pytest.mark.parametrize("what", ["prices", "actions"])
@pytest.mark.parametrize("damage", [b"", b"not parquet at all"])
def test_a_damaged_copy_is_fetched_again(yahoo: Yahoo, job: Job, what: str, damage: bytes) -> None:
    yahoo.answers = {"AAPL": [_chart("AAPL", [1, 2, 3, 4])]}
    job.load("AAPL")
    job.kept(what)[0].write_bytes(damage)
    assert job.load("AAPL")["Close"].tolist() == [1, 2, 3, 4]
    assert yahoo.prices_asked("AAPL") == 2


def test_a_cache_that_cannot_be_written_costs_the_copy_and_not_the_data(yahoo: Yahoo, job: Job) -> None:
    yahoo.answers = {"AAPL": [_chart("AAPL", [1, 2, 3, 4])]}
    job.context.cache_dir.write_text("a file where a folder should be")
    assert job.load("AAPL")["Close"].tolist() == [1, 2, 3, 4]
    assert job.notes[0].startswith("AAPL: what was fetched could not be kept")
    assert job.notes[1].startswith("AAPL: what is known as traded could not be kept")


def test_prices_and_actions_of_two_fetches_are_no_copy(yahoo: Yahoo, job: Job) -> None:
    yahoo.answers = {"AAPL": [_chart("AAPL", [1, 2, 3, 4])]}
    job.load("AAPL")
    older = job.kept("actions")[0].read_bytes()
    job.load("AAPL", max_age_hours=0)
    job.kept("actions")[0].write_bytes(older)
    job.load("AAPL")
    assert yahoo.prices_asked("AAPL") == 3


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
