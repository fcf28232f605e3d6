"""What a share was traded at, as it first became known, and what a vendor says differently later.

A split rewrites every earlier price a vendor sends, and undoing it does not give the same numbers back to the last
bit. So what is known of a session stays as it was first known, unless it differs by more than such rounding: then
history was restated, the new value counts from now on, and the difference is told.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np
import pandas as pd

from forecasting.errors import SourceError
from training.adjust import ACTIONS, DIVIDENDS, OHLC, VOLUME
from training.sources.market import MOST_TOLD

TOLERANCE = 1e-4
"""Largest relative difference that is rounding: prices before many splits have few digits left."""

DIVIDEND_ROUNDING = 1e-5
"""Difference of a dividend that is rounding whatever its size, as a share of the close.

Vendors send six decimals of what it would be in today's shares: of a small one few digits are left by a split."""

FEW_SESSIONS = 20
"""Known sessions up to which any number of them may be contradicted."""

VALUES = [*OHLC, VOLUME, *ACTIONS]
KNOWN_AT = "Known At"
"""The column of the time of the fetch a session's values are from."""


@dataclass(frozen=True)
class Restated:
    """A value of a past session that is said to be another one."""

    session: pd.Timestamp
    column: str
    old: float
    new: float
    """NaN for none."""

    def __str__(self) -> str:
        old, new = ("nothing" if np.isnan(value) else f"{value:.7g}" for value in (self.old, self.new))
        return f"{self.column} of {self.session:%Y-%m-%d} was {old}, now {new}"


def settle(known: pd.DataFrame | None, sent: pd.DataFrame, at: datetime) -> tuple[pd.DataFrame, list[Restated]]:
    """Return what is known after a fetch, and what it restated.

    Args:
        known: as this function returned it last; None for the first fetch.
        sent: as-traded values by session, ascending; sessions that are over.
        at: the time of the fetch.

    Returns:
        As-traded values by session with KNOWN_AT. A value that is no longer sent stays known.
    """
    if known is None or known.empty:
        return sent[VALUES].assign(**{KNOWN_AT: pd.Timestamp(at)}), []
    sessions = known.index.union(sent.index)
    old, new = known[VALUES].reindex(sessions), sent[VALUES].reindex(sessions)
    rounding = TOLERANCE * old.abs()
    rounding[DIVIDENDS] += DIVIDEND_ROUNDING * old["Close"].fillna(0.0)
    same = (new - old).abs() <= rounding
    same |= new.isna() & old.isna()
    settled = old.where(same | new.isna(), new)
    differs = ~same & (sessions <= known.index[-1])[:, None]
    # Of a session that came or went as a whole the close says enough.
    whole = ~(sessions.isin(known.index) & sessions.isin(sent.index))
    differs.loc[whole, differs.columns != "Close"] = False
    taken = (~same & new.notna()).any(axis=1)
    known_at = known[KNOWN_AT].reindex(sessions).where(~taken, pd.Timestamp(at))
    old_TC, new_TC = old.to_numpy(), new.to_numpy()
    found = [
        Restated(sessions[row], VALUES[column], old_TC[row, column], new_TC[row, column])
        for row, column in np.argwhere(differs.to_numpy())
    ]
    return settled.assign(**{KNOWN_AT: known_at}), found


def require_the_same(known: pd.DataFrame | None, found: Sequence[Restated]) -> None:
    """Refuse a fetch that contradicts most of what is known: it is no history that was restated.

    Raises:
        SourceError: a name was given to another share, or prices do not fit the splits sent with them.
    """
    n_known, n_differ = 0 if known is None else len(known), len({one.session for one in found})
    if n_known > FEW_SESSIONS and n_differ > n_known / 2:
        raise SourceError(
            f"is said to have been something else on {n_differ} of {n_known} sessions, such as: {found[0]}; it is "
            "another share of the same name, or prices came that do not fit their splits"
        )


def describe_restated(found: Sequence[Restated]) -> str:
    """Say in one line what was restated, the first few of it."""
    more = f"; and {len(found) - MOST_TOLD} more" if len(found) > MOST_TOLD else ""
    return f"its history was restated: {'; '.join(map(str, found[:MOST_TOLD]))}{more}"
