"""A server on this machine that answers as Yahoo does, and the real yfinance asking it."""

import gzip
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from urllib.parse import unquote, urlsplit

import pandas as pd
import requests
from requests.adapters import HTTPAdapter

os.environ["YF_DISABLE_CURL_CFFI"] = "1"  # read when yfinance is imported; its sessions are then of requests
yf_base, yf_cache, yf_data = (import_module(f"yfinance.{name}") for name in ("base", "cache", "data"))

SESSIONS = ["2024-06-27", "2024-06-28", "2024-07-01", "2024-07-02"]
Answer = tuple[int, str]


def chart(
    ticker: str,
    closes: list[float | None],
    *,
    zone: str = "America/New_York",
    sessions: list[str] = SESSIONS,
    volumes: list[float] | None = None,
    events: dict[str, dict[str, dict[str, float]]] | None = None,
) -> Answer:
    """Answer as /v8/finance/chart does: columns of numbers on the exchange's opening times."""
    opening = [int(pd.Timestamp(f"{day} 09:30", tz="America/New_York").timestamp()) for day in sessions]
    prices = dict.fromkeys(("open", "high", "low", "close"), closes)
    volume = volumes or [None if close is None else 1000 + n for n, close in enumerate(closes)]
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


def moment(day: str) -> int:
    """Return when a session of New York opens, in seconds since 1970."""
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
HALF: Answer = chart("HALF", [None, None, None, 4.0])


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
    return chart("ANY", [1.0], sessions=SESSIONS[:1]) if passing and not wants_prices else answer


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


@contextmanager
def serve_yahoo() -> Iterator[Yahoo]:
    """Serve in place of Yahoo; yfinance forgets what it knew."""
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
