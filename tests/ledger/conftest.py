"""A fresh ledger on each kind of database."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ledger.ledger import Ledger, open_ledger


class Ticking:
    """A clock that moves a second with every look, or where it is told to."""

    def __init__(self) -> None:
        self.now = datetime(2024, 3, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        self.now += timedelta(seconds=1)
        return self.now


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def ledger_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/ledger.db"
    url: str = request.getfixturevalue("postgres_url")
    return url


@pytest.fixture
def clock() -> Ticking:
    """A clock the test can move."""
    return Ticking()


@pytest.fixture
def ledger(ledger_url: str, clock: Ticking) -> Iterator[Ledger]:
    """An empty ledger."""
    opened = open_ledger(ledger_url, clock)
    yield opened
    opened.close()
