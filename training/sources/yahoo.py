"""Daily prices from Yahoo Finance through yfinance: fetched raw, kept as fetched, adjusted on the way out.

Yahoo rewrites its whole history at every split, and what it calls adjusted at every dividend too. So what is kept
is what it sent, prices and actions (dividends, splits) side by side with the time of fetching, and what that says
the shares were traded at; adjusting starts from there, and a session's value depends on nothing after it.
"""

import random
import time
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Annotated, Literal

import pandas as pd
from pydantic import Field, PrivateAttr, StringConstraints, field_validator, model_validator

from forecasting.errors import SourceError
from training.adjust import ACTIONS, FACTOR, OHLC, VOLUME, adjust_forward, to_traded
from training.sources.base import SourceConfig, SourceContext
from training.sources.market import Market, list_days
from training.sources.restated import describe_restated, require_the_same, settle
from training.sources.shelf import Fetched, Shelf

Ticker = Annotated[
    str, StringConstraints(to_upper=True, pattern=r"^[A-Za-z0-9^][A-Za-z0-9.^=&_-]*$", max_length=40)
]

PRICES = [*OHLC, "Adj Close"]
LONGEST_WAIT = 60.0
MOST_SILENT = 0.1
"""Share of the tickers that may be dropped for want of an answer: beyond it chance would choose what is learnt."""


def _utc_now() -> datetime:
    return datetime.now(UTC)


class YahooSource(SourceConfig):
    """Daily prices of some tickers; each ticker is a series."""

    kind: Literal["yahoo"] = Field("yahoo", description="Yahoo Finance; for personal use, under Yahoo's terms.")
    tickers: tuple[Ticker, ...] = Field(
        min_length=1, max_length=10_000, description="Yahoo's symbols, such as AAPL, ^GSPC, BTC-USD, EURUSD=X."
    )
    start: date | None = Field(None, description="First date wanted. Default: all there is.")
    end: date | None = Field(None, description="First date no longer wanted. Default: up to now.")
    adjust: Literal["forward", "back", "none"] = Field(
        "forward",
        description="forward: as traded, times the factors of splits and dividends up to the session, so that "
        "nothing later moves it. back: Yahoo's own, times Adj Close / Close. none: Yahoo's own, for later splits.",
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
    _now: Callable[[], datetime] = PrivateAttr(default_factory=lambda: _utc_now)

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
        """Return one row a session that is over: prices, Volume, Dividends, Stock Splits; `ds` is its date.

        Raises:
            SourceError: a ticker failed and `on_failure` is raise, or all failed, or so many for want of an answer
                that another time may do better; each is named with its reason.
        """
        wire = _Wire(self, context)
        frames: list[pd.DataFrame] = []
        failures: dict[str, SourceError] = {}
        for ticker in self.tickers:
            try:
                frames.append(self._load_ticker(ticker, wire, context))
            except SourceError as error:
                failures[ticker] = error
        silent = sum(isinstance(error, _UnreachableError) for error in failures.values())
        by_chance = silent > MOST_SILENT * len(self.tickers)
        if failures and (self.on_failure == "raise" or by_chance or not frames):
            reasons = "; ".join(f"{ticker}: {reason}" for ticker, reason in failures.items())
            raise SourceError(f"Yahoo failed for {len(failures)} of {len(self.tickers)} tickers: {reasons}")
        for ticker, reason in failures.items():
            context.note(f"left out {ticker}: {reason}")
        return pd.concat(frames, ignore_index=True)

    def _load_ticker(self, ticker: str, wire: "_Wire", context: SourceContext) -> pd.DataFrame:
        shelf = Shelf(context.cache_dir / "yahoo", f"{ticker}_{self.start or 'first'}")
        market = Market(context.freq)
        fetched = self._obtain(ticker, shelf, wire, market, context)
        timezone = str(pd.DatetimeIndex(fetched.prices.index).tz)
        market.require_time_zone(timezone)
        sent = _by_session(fetched)
        # All of it: the split of a session that is not over is in the prices before it already.
        traded = to_traded(sent)
        over = market.are_over(pd.DatetimeIndex(sent.index), timezone, fetched.at)
        known = self._settle(ticker, shelf, traded[over], fetched.at, context)
        frame = (
            sent[over] if self.adjust != "forward" else adjust_forward(known)[[*OHLC, VOLUME, *ACTIONS, FACTOR]]
        )
        if self.adjust == "back":
            frame[OHLC] = frame[OHLC].mul(frame["Adj Close"] / frame["Close"], axis=0)
        return self._to_long(ticker, frame, market, context)

    def _obtain(self, ticker: str, shelf: Shelf, wire: "_Wire", market: Market, context: SourceContext) -> Fetched:
        """Return the copy on disk while it is young, what Yahoo sends now, or an old copy when Yahoo is away."""
        copy = shelf.read()
        if copy is not None and self._is_fresh(copy, market):
            return copy
        try:
            fetched = wire.fetch(ticker)
        except _UnreachableError as error:
            if copy is None:
                raise
            hours = self._age(copy) / timedelta(hours=1)
            context.note(f"{ticker}: {error}; used the copy fetched {hours:.1f} hours ago")
            return copy
        try:
            shelf.write(fetched)
        except OSError as error:
            context.note(f"{ticker}: what was fetched could not be kept: {error}")
        return fetched

    def _is_fresh(self, copy: Fetched, market: Market) -> bool:
        young = self._age(copy) <= timedelta(hours=self.max_age_hours)
        return young and not market.has_ended_between(copy.at, self._now())

    def _age(self, copy: Fetched) -> timedelta:
        return self._now() - copy.at

    def _settle(
        self, ticker: str, shelf: Shelf, traded: pd.DataFrame, at: datetime, context: SourceContext
    ) -> pd.DataFrame:
        """Return what is known as traded, and say what this fetch restated of it."""
        before = shelf.read_traded()
        known, restated = settle(before, traded, at)
        try:
            require_the_same(before, restated)
        except SourceError as error:
            raise SourceError(f"{error}. If it is to be taken as it is now, delete {shelf.traded}") from error
        if restated:
            context.note(f"{ticker}: {describe_restated(restated)}")
        if before is None or not known.equals(before):
            try:
                shelf.write_traded(known, restated, at)
            except OSError as error:
                context.note(f"{ticker}: what is known as traded could not be kept: {error}")
        return known

    def _to_long(self, ticker: str, frame: pd.DataFrame, market: Market, context: SourceContext) -> pd.DataFrame:
        if self.end is not None:
            frame = frame[frame.index < pd.Timestamp(self.end)]
        priced = frame[OHLC].notna().any(axis=1)
        if not priced.all():
            context.note(f"{ticker}: {(~priced).sum()} of {len(frame)} sessions came without prices, left out")
            frame = frame[priced]
        strays = market.find_strays(pd.DatetimeIndex(frame.index))
        if strays.any():
            days = list_days(pd.DatetimeIndex(frame.index[strays]))
            context.note(f"{ticker}: {days} left out: no session of {context.freq}")
            frame = frame[~strays]
        absent = market.find_absent(pd.DatetimeIndex(frame.index))
        if len(absent):
            context.note(
                f"{ticker}: nothing came of {len(absent)} sessions of {context.freq}: {list_days(absent)}"
            )
        if frame.empty:
            raise SourceError("no session with prices is left")
        frame = frame.rename_axis("ds").reset_index()
        frame.insert(0, "unique_id", ticker)
        return frame


def _by_session(fetched: Fetched) -> pd.DataFrame:
    """Return prices and actions by the date of the session, ascending."""
    frame = fetched.prices.join(fetched.actions[ACTIONS], how="outer")
    frame[ACTIONS] = frame[ACTIONS].fillna(0.0)
    frame[[*PRICES, VOLUME]] = frame[[*PRICES, VOLUME]].astype("float64")
    # The exchange's own midnight: the date on its wall is the session, whatever time UTC makes of it.
    frame.index = pd.DatetimeIndex(frame.index).tz_localize(None).normalize().as_unit("us")
    return frame[~frame.index.duplicated(keep="last")].sort_index()


class _UnreachableError(SourceError):
    """Yahoo gave no usable answer; it may later."""


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
                fetched = self._ask(yfinance, ticker)
            except Exception as error:  # what a broken reply raises in yfinance is not declared
                if refusal := _find_refusal(yfinance, error):
                    raise SourceError(refusal) from error
                reason = _describe(error)
                self._limited = isinstance(error, yfinance.exceptions.YFRateLimitError)
            else:
                self._limited = False  # it was waited out
                return fetched
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
            end=None,  # all later splits are in the prices, so all must be told
            auto_adjust=False,
            actions=True,
            keepna=True,
            timeout=config.timeout_seconds,
        )
        _validate_history(history)
        acted = (history[ACTIONS] != 0).any(axis=1)
        prices, actions = history[[*PRICES, "Volume"]], history.loc[acted, history.columns.difference(PRICES)]
        return Fetched(prices, actions.drop(columns="Volume"), config._now())


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
