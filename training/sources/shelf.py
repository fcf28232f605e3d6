"""What was fetched of one ticker, on disk: as it was sent, as traded when first known, and what was restated.

AAPL_2010-01-01.prices.parquet    the newest fetch: prices as they were sent
AAPL_2010-01-01.actions.parquet   and, beside it, the dividends and splits
AAPL_2010-01-01.traded.parquet    as-traded values by session, each with the time of the fetch it is from
AAPL_2010-01-01.restated.csv      every value that a later fetch contradicted, with both values and the time
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet

from training.sources.restated import KNOWN_AT, VALUES, Restated

MOST_RESTATED = 10_000
"""Lines of restated values that are kept, the newest."""

_FETCHED_AT = b"fetched_at"


@dataclass(frozen=True)
class Fetched:
    """What was sent for one ticker, on the sessions of its exchange's time zone, and when."""

    prices: pd.DataFrame
    actions: pd.DataFrame
    at: datetime


class Shelf:
    """The files of one ticker and first date."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._prices = folder / f"{name}.prices.parquet"
        self._actions = folder / f"{name}.actions.parquet"
        self.traded = folder / f"{name}.traded.parquet"
        self._restated = folder / f"{name}.restated.csv"

    def read(self) -> Fetched | None:
        """Return the newest fetch; nothing if there is none, or it is damaged or of two fetches."""
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
            _write_table(_to_table(frame).replace_schema_metadata(mark), path)

    def read_traded(self) -> pd.DataFrame | None:
        """Return what is known as traded, by session; nothing if there is none, or it is damaged."""
        try:
            table: pd.DataFrame = pyarrow.parquet.read_table(self.traded).to_pandas(ignore_metadata=True)
            return table.set_index("Date")[[*VALUES, KNOWN_AT]]
        except (pa.ArrowException, OSError, KeyError, TypeError, ValueError):
            return None

    def write_traded(self, known: pd.DataFrame, restated: Sequence[Restated], at: datetime) -> None:
        """Keep what is known now, after what was restated to it."""
        self._folder.mkdir(parents=True, exist_ok=True)
        if restated:
            rows = pd.DataFrame(
                [(at.isoformat(), f"{one.session:%Y-%m-%d}", one.column, one.old, one.new) for one in restated],
                columns=["found_at", "session", "column", "old", "new"],
            )
            before = pd.read_csv(self._restated) if self._restated.exists() else rows[:0]
            unfinished = _beside(self._restated)
            pd.concat([before, rows]).tail(MOST_RESTATED).to_csv(unfinished, index=False)
            unfinished.replace(self._restated)
        _write_table(
            pa.Table.from_pandas(known.rename_axis("Date").reset_index(), preserve_index=False), self.traded
        )


def _write_table(table: pa.Table, path: Path) -> None:
    """Write whole or not at all."""
    unfinished = _beside(path)
    pyarrow.parquet.write_table(table, unfinished)
    unfinished.replace(path)


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}")


def _to_table(frame: pd.DataFrame) -> pa.Table:
    """Return the frame with its sessions as a column Date in their time zone."""
    sessions = pd.DatetimeIndex(frame.index).as_unit("us")
    dates = pa.array(sessions.asi8, pa.timestamp("us", tz=str(sessions.tz)))
    return pa.Table.from_pandas(frame.reset_index(drop=True)).add_column(0, "Date", dates)
