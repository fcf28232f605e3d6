"""Daily open, high, low and close of shares and indices, from files of any exchange; for `benchmarks.stocks`.

N shares, T sessions.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from forecasting.ranges import PRICES, RangeFeature, range_feature

FloatArray = NDArray[np.float64]
DateArray = NDArray[np.datetime64]

DATES = ("date", "ds", "timestamp", "time", "datetime", "day")
OFFSET = r"(?<=\d:\d\d)(\.\d+)?\s*(Z|[+-]\d\d:?\d\d)$"
"""What follows the time of day: a fraction of its second, and how far from UTC it is."""
NAMES = ("unique_id", "ticker", "symbol", "name", "share", "stock")


class Shares(NamedTuple):
    """Shares on the sessions that any of them has; NaN where one was not traded."""

    names: tuple[str, ...]
    session_T: DateArray
    x_NT: FloatArray
    """100 times the log of the close, dividends put back where the file says what they were."""
    garman_klass_NT: FloatArray
    """Daily variance within the session, in percent squared."""
    parkinson_NT: FloatArray

    @property
    def returns(self) -> FloatArray:
        """Return `(N, T)` log returns in percent from one session of a share to its next, NaN in the first."""
        return np.stack([_returns(x_T) for x_T in self.x_NT])

    def take(self, n_shares: int, n_sessions: int) -> "Shares":
        """Return the first shares, and the last sessions of them."""
        part = (slice(n_shares), slice(-n_sessions, None))
        return Shares(
            self.names[:n_shares],
            self.session_T[-n_sessions:],
            self.x_NT[part],
            self.garman_klass_NT[part],
            self.parkinson_NT[part],
        )


def _returns(x_T: FloatArray) -> FloatArray:
    traded = np.flatnonzero(np.isfinite(x_T))
    return_T = np.full(len(x_T), np.nan)
    return_T[traded[1:]] = np.diff(x_T[traded])
    return return_T


def load_sample() -> Shares:
    """Return the S&P 500 that `arch` ships, 1999 to 2018."""
    from arch.data import sp500

    return _align({"^GSPC": _read_columns(sp500.load().reset_index(), "the sample")})


def load_file(path: Path) -> Shares:
    """Return the shares of one CSV: of one share, or of several with a column that names them.

    Raises:
        SystemExit: it has not the columns, or no usable session.
    """
    return _align(_read_file(path))


def load_folder(folder: Path) -> Shares:
    """Return the shares of every CSV of a folder, each named like its file.

    Raises:
        SystemExit: there is none, one has not the columns, or a share is in two.
    """
    paths = sorted(folder.glob("*.csv"))
    if not paths:
        raise SystemExit(f"{folder.name} has no file *.csv")
    found: dict[str, pd.DataFrame] = {}
    for path in paths:
        told = _read_file(path)
        twice = sorted(found.keys() & told.keys())
        if twice:
            raise SystemExit(f"{path.name} has {', '.join(twice)}, which another file before it has too")
        found.update(told)
    return _align(found)


def _read_file(path: Path) -> dict[str, pd.DataFrame]:
    frame = pd.read_csv(path)
    column = next((c for c in frame.columns if str(c).strip().lower() in NAMES), None)
    if column is None:
        return {path.stem: _read_columns(frame, path.name)}
    return {str(name): _read_columns(part, f"{path.name}, {name}") for name, part in frame.groupby(column)}


def _read_columns(frame: pd.DataFrame, where: str) -> pd.DataFrame:
    """Return the prices by session, ascending."""
    named = frame.rename(columns=lambda c: str(c).strip().lower().replace("_", " "))
    date = next((c for c in named.columns if c in DATES), None)
    absent = [c for c in PRICES if c not in named.columns]
    if date is None or absent:
        lacks = ", ".join([*([] if date else ["a date"]), *absent])
        raise SystemExit(f"{where} lacks {lacks}; it has {', '.join(map(str, frame.columns))}")
    sessions = _read_sessions(named[date], where)
    kept = [*PRICES, *(["adj close"] if "adj close" in named.columns else [])]
    prices = named[kept].apply(pd.to_numeric, errors="coerce").set_axis(sessions)
    prices = prices[~prices.index.duplicated(keep="last")].sort_index()
    traded = (prices["close"] > 0) & np.isfinite(prices["close"])
    return pd.DataFrame(prices[traded])


def _read_sessions(told: pd.Series, where: str) -> pd.DatetimeIndex:
    """Return the dates on the exchange's own wall, whatever their distance from UTC, which changes with summer."""
    texts = told.astype(str).str.replace(OFFSET, "", regex=True)
    try:
        return pd.DatetimeIndex(pd.to_datetime(texts)).normalize()
    except ValueError as error:
        raise SystemExit(f"{where} has a date that cannot be read, as 2020-01-31 can: {error}") from error


def _align(found: Mapping[str, pd.DataFrame]) -> Shares:
    usable = {name: prices for name, prices in found.items() if len(prices) > 1}
    if not usable:
        raise SystemExit("no share has two sessions with a close above zero")
    sessions = pd.DatetimeIndex(sorted(set().union(*(prices.index for prices in usable.values()))))
    rows = [prices.reindex(sessions) for prices in usable.values()]
    return Shares(
        tuple(usable),
        sessions.to_numpy(),
        np.stack([_log_price(prices) for prices in rows]),
        _variance(rows, "garman_klass"),
        _variance(rows, "parkinson"),
    )


def _log_price(prices: pd.DataFrame) -> FloatArray:
    """Return 100 times the log of the close whose returns have the dividends in them, where they are known."""
    close_T = prices["close"].to_numpy(dtype=np.float64)
    if "adj close" in prices:
        adjusted_T = prices["adj close"].to_numpy(dtype=np.float64)
        close_T = np.where(adjusted_T > 0, adjusted_T, np.nan)
    x_T: FloatArray = 100.0 * np.log(close_T)
    return x_T


def _variance(rows: Sequence[pd.DataFrame], feature: RangeFeature) -> FloatArray:
    prices = [{name: part[name].to_numpy(dtype=np.float64) for name in PRICES} for part in rows]
    return np.stack([range_feature(feature, one) for one in prices])
