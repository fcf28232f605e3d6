"""Daily prices from Yahoo Finance through yfinance: fetched raw, kept as fetched, adjusted on the way out.

Yahoo rewrites adjusted history at every split and dividend, so what is kept is what it sent: prices and actions
(dividends, splits) side by side, each file with the time of fetching.
"""

import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Annotated, Literal

import pandas as pd
import pyarrow as pa
import pyarrow.parquet
from pydantic import Field, PrivateAttr, StringConstraints, field_validator, model_validator

from forecasting.errors import SourceError
from training.sources.base import SourceConfig, SourceContext

Ticker = Annotated[
    str, StringConstraints(to_upper=True, pattern=r"^[A-Za-z0-9^][A-Za-z0-9.^=&_-]*$", max_length=40)
]

PRICES = ["Open", "High", "Low", "Close", "Adj Close"]
ACTIONS = ["Dividends", "Stock Splits"]
LONGEST_WAIT = 60.0
_FETCHED_AT = b"fetched_at"


class YahooSource(SourceConfig):
    """Daily prices of some tickers; each ticker is a series."""

    kind: Literal["yahoo"] = Field("yahoo", description="Yahoo Finance; for personal use, under Yahoo's terms.")
    tickers: tuple[Ticker, ...] = Field(
        min_length=1, max_length=10_000, description="Yahoo's symbols, such as AAPL, ^GSPC, BTC-USD, EURUSD=X."
    )
    start: date | None = Field(None, description="First date wanted. Default: all there is.")
    end: date | None = Field(None, description="First date no longer wanted. Default: up to now.")
    adjust: bool = Field(
        default=False,
        description="Scale Open, High, Low and Close by Adj Close / Close, that is for dividends; Yahoo's prices "
        "are adjusted for splits in any case.",
    )
    on_failure: Literal["raise", "drop"] = Field(
        "raise", description="What one failed ticker does: raise fails them all, drop leaves it out and says so."
    )
    max_age_hours: float = Field(
        12.0, ge=0, description="Younger copies are used without asking Yahoo; 0 always asks."
    )
    max_attempts: int = Field(4, ge=1, le=20, description="Tries for one ticker, with growing pauses between.")
    pause_seconds: float = Field(
        2.0,
        gt=0,
        le=60,
        description="First pause; each next one is twice as long, up to a minute, give or take half.",
    )
    timeout_seconds: float = Field(10.0, gt=0, le=600, description="Time one answer may take.")

    _sleep: Callable[[float], None] = PrivateAttr(default=time.sleep)

    @field_validator("tickers")
    @classmethod
    def _tickers_differ(cls, tickers: tuple[str, ...]) -> tuple[str, ...]:
        twice = sorted({ticker for ticker in tickers if tickers.count(ticker) > 1})
        if twice:
            raise ValueError(f"named twice: {', '.join(twice)}")
        return tickers

    @model_validator(mode="after")
    def _start_precedes_end(self) -> "YahooSource":
        if self.start and self.end and self.start >= self.end:
            raise ValueError(f"start {self.start} does not precede end {self.end}")
        return self

    def load(self, context: SourceContext) -> pd.DataFrame:
        """Return one row a session: prices, Volume, Dividends and Stock Splits; `ds` is the session's date.

        Raises:
            SourceError: a ticker failed and `on_failure` is raise, or all failed; each is named with its reason.
        """
        wire = _Wire(self, context)
        frames: list[pd.DataFrame] = []
        failures: dict[str, str] = {}
        for ticker in self.tickers:
            try:
                frames.append(self._to_long(ticker, self._obtain(ticker, wire, context), context))
            except SourceError as error:
                failures[ticker] = str(error)
        if failures and (self.on_failure == "raise" or not frames):
            reasons = "; ".join(f"{ticker}: {reason}" for ticker, reason in failures.items())
            raise SourceError(f"Yahoo failed for {len(failures)} of {len(self.tickers)} tickers: {reasons}")
        for ticker, reason in failures.items():
            context.note(f"left out {ticker}: {reason}")
        return pd.concat(frames, ignore_index=True)

    def _obtain(self, ticker: str, wire: "_Wire", context: SourceContext) -> "Fetched":
        """Return the copy on disk while it is young, what Yahoo sends now, or an old copy when Yahoo is away."""
        shelf = Shelf(context.cache_dir / "yahoo", f"{ticker}_{self.start or 'first'}_{self.end or 'now'}")
        copy = shelf.read()
        if copy is not None and copy.age() <= timedelta(hours=self.max_age_hours):
            return copy
        try:
            fetched = wire.fetch(ticker)
        except _UnreachableError as error:
            if copy is None:
                raise
            hours = copy.age() / timedelta(hours=1)
            context.note(f"{ticker}: {error}; used the copy fetched {hours:.1f} hours ago")
            return copy
        try:
            shelf.write(fetched)
        except OSError as error:
            context.note(f"{ticker}: what was fetched could not be kept: {error}")
        return fetched

    def _to_long(self, ticker: str, fetched: "Fetched", context: SourceContext) -> pd.DataFrame:
        frame = fetched.prices.join(fetched.actions[ACTIONS])
        frame[ACTIONS] = frame[ACTIONS].fillna(0.0)
        priced = frame[PRICES].notna().any(axis=1)
        if not priced.all():
            context.note(f"{ticker}: {(~priced).sum()} of {len(frame)} sessions came without prices, left out")
            frame = frame[priced]
        if self.adjust:
            ratio = frame["Adj Close"] / frame["Close"]
            for column in ("Open", "High", "Low", "Close"):
                frame[column] *= ratio
        # The exchange's own midnight: the date on its wall is the session, whatever time UTC makes of it.
        sessions = pd.DatetimeIndex(frame.index).tz_localize(None).normalize().as_unit("us")
        frame = frame.set_axis(sessions).rename_axis("ds").reset_index()
        frame.insert(0, "unique_id", ticker)
        return frame


class _UnreachableError(SourceError):
    """Yahoo gave no usable answer; it may later."""


@dataclass(frozen=True)
class Fetched:
    """What Yahoo sent for one ticker, on the sessions of its exchange's time zone, and when."""

    prices: pd.DataFrame
    actions: pd.DataFrame
    at: datetime

    def age(self) -> timedelta:
        return datetime.now(UTC) - self.at


class _Wire:
    """yfinance with its errors switched on, asked again after a pause when Yahoo stumbles."""

    def __init__(self, config: YahooSource, context: SourceContext) -> None:
        self._config = config
        self._context = context
        self._limited = False

    def fetch(self, ticker: str) -> Fetched:
        """Ask Yahoo for one ticker.

        Raises:
            _UnreachableError: all attempts failed for a reason that may pass.
            SourceError: Yahoo knows no such ticker, or no prices of it.
        """
        if self._limited:
            raise _UnreachableError("not asked, because Yahoo is limiting the rate")
        yfinance = _import_yfinance(self._context.cache_dir)
        for attempt in range(1, self._config.max_attempts + 1):
            try:
                return self._ask(yfinance, ticker)
            except Exception as error:  # what a broken reply raises in yfinance is not declared
                if refusal := _find_refusal(yfinance, error):
                    raise SourceError(refusal) from error
                reason = _describe(error)
                self._limited = isinstance(error, yfinance.exceptions.YFRateLimitError)
            if attempt < self._config.max_attempts:
                self._pause(ticker, attempt, reason)
        raise _UnreachableError(f"no usable answer in {self._config.max_attempts} attempts; {reason}")

    def _pause(self, ticker: str, attempt: int, reason: str) -> None:
        longest = min(LONGEST_WAIT, self._config.pause_seconds * 2 ** (attempt - 1))
        seconds = longest * random.uniform(0.5, 1.5)  # noqa: S311  # so that many workers do not ask at once
        self._context.note(f"{ticker}: {reason}; asking again in {seconds:.1f} s")
        self._config._sleep(seconds)

    def _ask(self, yfinance: ModuleType, ticker: str) -> Fetched:
        yfinance.config.debug.hide_exceptions = False  # by default a failure is a log line and an empty frame
        yfinance.data.YfData.cache_get.cache_clear()  # it remembers bad answers too, for the life of the process
        config = self._config
        history = yfinance.Ticker(ticker).history(
            period=None if config.start else "max",
            start=config.start and config.start.isoformat(),
            end=config.end and config.end.isoformat(),
            auto_adjust=False,
            actions=True,
            keepna=True,
            timeout=config.timeout_seconds,
        )
        _validate_history(history)
        acted = (history[ACTIONS] != 0).any(axis=1)
        prices, actions = history[[*PRICES, "Volume"]], history.loc[acted, history.columns.difference(PRICES)]
        return Fetched(prices, actions.drop(columns="Volume"), datetime.now(UTC))


def _find_refusal(yfinance: ModuleType, error: Exception) -> str | None:
    """Return why asking again is of no use: Yahoo answered, and knows no such ticker or no prices of it."""
    if _status(error) == 404:
        return "Yahoo knows no such ticker; it may be delisted"
    if isinstance(error, yfinance.exceptions.YFPricesMissingError) and error.yahoo_reason is None:
        return None  # the answer was empty
    return str(error) if isinstance(error, yfinance.exceptions.YFTickerMissingError) else None


def _describe(error: Exception) -> str:
    status = _status(error)  # its own message would quote the address, and the session's crumb in it
    return f"{type(error).__name__}: {f'status {status}' if status else error}"


def _status(error: Exception) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _validate_history(history: pd.DataFrame) -> None:
    absent = [column for column in [*PRICES, "Volume", *ACTIONS] if column not in history.columns]
    if absent or history.empty:
        raise ValueError(f"an answer without {', '.join(absent) or 'rows'}")
    if pd.DatetimeIndex(history.index).tz is None:
        raise ValueError("sessions without a time zone")
    priced = int(history[PRICES].notna().any(axis=1).sum())
    if priced < len(history) / 2:
        raise ValueError(f"half an answer: {priced} of {len(history)} sessions have prices")


@cache
def _import_yfinance(cache_dir: Path) -> ModuleType:
    """Import yfinance, and have it keep its cookies and time zones with the rest of the cache."""
    try:
        yfinance = import_module("yfinance")
    except ImportError as error:
        raise SourceError("the yahoo source needs yfinance: pip install hindcast[yahoo]") from error
    yfinance.set_tz_cache_location(str(cache_dir / "yfinance"))
    return yfinance


class Shelf:
    """Two Parquet files with what was fetched for one request: its prices and, beside them, its actions."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._prices = folder / f"{name}.prices.parquet"
        self._actions = folder / f"{name}.actions.parquet"

    def read(self) -> Fetched | None:
        """Return what was kept; nothing if there is none, or it is damaged or of two fetches."""
        try:
            prices, actions = (pyarrow.parquet.read_table(path) for path in (self._prices, self._actions))
            at = datetime.fromisoformat(prices.schema.metadata[_FETCHED_AT].decode())
            if actions.schema.metadata[_FETCHED_AT] != prices.schema.metadata[_FETCHED_AT]:
                return None
            return Fetched(prices.to_pandas().set_index("Date"), actions.to_pandas().set_index("Date"), at)
        except (pa.ArrowException, OSError, KeyError, TypeError, ValueError):
            return None

    def write(self, fetched: Fetched) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        mark = {_FETCHED_AT: fetched.at.isoformat().encode()}
        for path, frame in ((self._prices, fetched.prices), (self._actions, fetched.actions)):
            unfinished = path.with_name(f".{path.name}.{os.getpid()}")
            pyarrow.parquet.write_table(_to_table(frame).replace_schema_metadata(mark), unfinished)
            unfinished.replace(path)


def _to_table(frame: pd.DataFrame) -> pa.Table:
    """Return the frame with its sessions as a column Date in their time zone."""
    sessions = pd.DatetimeIndex(frame.index).as_unit("us")
    dates = pa.array(sessions.asi8, pa.timestamp("us", tz=str(sessions.tz)))
    return pa.Table.from_pandas(frame.reset_index(drop=True)).add_column(0, "Date", dates)
