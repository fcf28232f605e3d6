"""What was taken in already: files by their checksum, rows of another database by their watermark.

Both are written in the transaction of the observations they speak of: never twice, never half.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import pandas as pd
import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from ledger import bulk
from ledger.database import reading, writing
from ledger.moments import to_microseconds, to_moment
from ledger.observations import Appended, ObservationStore, lock_dataset
from ledger.schema import ingested, watermarks

LONGEST_FILE_NAME = 256


@dataclass(frozen=True)
class FileMark:
    """A file that is taken in."""

    name: str
    checksum: str
    """SHA-256 of its bytes."""
    refused: int = 0
    """Rows that were not taken in."""


@dataclass(frozen=True)
class IngestedFile:
    """A file that was taken in."""

    name: str
    known_at: datetime
    new: int
    revised: int
    unchanged: int
    refused: int


class IngestedStore:
    """Takes in what comes in pieces, each piece once."""

    def __init__(self, engine: Engine, observations: ObservationStore) -> None:
        self._engine = engine
        self._observations = observations

    def find_file(self, dataset: str, checksum: str) -> IngestedFile | None:
        """Return what is known of a file with these bytes, None where it was never taken in."""
        with reading(self._engine) as connection:
            return _find_file(connection, dataset, checksum)

    def append_file(
        self, dataset: str, rows: pd.DataFrame, file: FileMark, *, static: Sequence[str] = ()
    ) -> Appended | IngestedFile:
        """Add the rows of a file, or return what is known of it where it was taken in before.

        Raises:
            InputError: a column is absent, or holds no numbers.
            LedgerUnavailableError: the database does not answer; nothing was kept.
        """
        with writing(self._engine) as connection:
            bulk.allow_time(connection, rows.size)
            # Whoever takes in the same file at the same time waits here, and then finds it.
            lock_dataset(connection, dataset, exclusive=True)
            known = _find_file(connection, dataset, file.checksum)
            if known is not None:
                return known
            appended = self._observations.append_in(connection, dataset, rows, static=static)
            connection.execute(
                sa.insert(ingested).values(
                    dataset=dataset,
                    checksum=file.checksum,
                    name=file.name[:LONGEST_FILE_NAME],
                    known_at=to_microseconds(appended.known_at),
                    new=appended.new,
                    revised=appended.revised,
                    unchanged=appended.unchanged,
                    refused=file.refused,
                )
            )
        return appended

    def watermark(self, dataset: str, source: str) -> str | None:
        """Return how far a source was read; None where it never was."""
        query = sa.select(watermarks.c.watermark).where(*_is_source(dataset, source))
        with reading(self._engine) as connection:
            return connection.scalar(query)

    def append_until(
        self, dataset: str, rows: pd.DataFrame, source: str, watermark: str, *, static: Sequence[str] = ()
    ) -> Appended:
        """Add rows of a source, and note in the same transaction how far it has been read.

        Raises:
            InputError: a column is absent, or holds no numbers.
            LedgerUnavailableError: the database does not answer; nothing was kept.
        """
        with writing(self._engine) as connection:
            appended = self._observations.append_in(connection, dataset, rows, static=static)
            told = {"watermark": watermark, "known_at": to_microseconds(appended.known_at)}
            update = sa.update(watermarks).where(*_is_source(dataset, source)).values(**told)
            if connection.execute(update).rowcount == 0:
                connection.execute(sa.insert(watermarks).values(dataset=dataset, source=source, **told))
        return appended


def _is_source(dataset: str, source: str) -> tuple[sa.ColumnElement[bool], sa.ColumnElement[bool]]:
    return watermarks.c.dataset == dataset, watermarks.c.source == source


def _find_file(connection: Connection, dataset: str, checksum: str) -> IngestedFile | None:
    query = sa.select(ingested).where(ingested.c.dataset == dataset, ingested.c.checksum == checksum)
    row = connection.execute(query).one_or_none()
    if row is None:
        return None
    return IngestedFile(row.name, to_moment(row.known_at), row.new, row.revised, row.unchanged, row.refused)
