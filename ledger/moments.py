"""Moments and timestamps as the tables hold them: microseconds since 1970."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import numpy as np
from numpy.typing import NDArray

Clock = Callable[[], datetime]
"""Tells the time, with a time zone; simulations and tests bring their own."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def utc_now() -> datetime:
    """Return this moment."""
    return datetime.now(UTC)


def to_microseconds(moment: datetime) -> int:
    """Return a moment as the tables hold it.

    Raises:
        ValueError: the moment has no time zone.
    """
    if moment.tzinfo is None:
        raise ValueError(f"{moment} has no time zone")
    return (moment - _EPOCH) // timedelta(microseconds=1)


def to_moment(microseconds: int) -> datetime:
    """Return a moment of the tables, in UTC."""
    return _EPOCH + timedelta(microseconds=microseconds)


def stamps_to_microseconds(ds: NDArray[np.datetime64]) -> NDArray[np.int64]:
    """Return timestamps of a series as the tables hold them."""
    return ds.astype("datetime64[us]").astype(np.int64)


def microseconds_to_stamps(microseconds: NDArray[np.int64]) -> NDArray[np.datetime64]:
    """Return timestamps of the tables as a panel has them."""
    return microseconds.astype("datetime64[us]")
